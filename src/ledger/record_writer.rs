//! The thread that writes the ledger, so that nobody who serves requests or takes completions ever waits for
//! the filesystem that the records are on.
//!
//! It does one thing after the other, in the order in which it was told. That order is what the records rely on:
//! a write is on record before its transfer is handed on, and its end before anything that came after it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use crate::sys_process::touch_stack;

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    asleep: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    called: Condvar,
}

/// The thread, and what it is still to do. Ends, with all of that done, when it is dropped.
pub(super) struct RecordWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for RecordWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordWriter")
            .field("tasks", &self.shared.queue.lock().tasks.len())
            .finish()
    }
}

impl RecordWriter {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let work = shared.clone();
        let thread = thread::Builder::new().name("swapfs-ledger".into()).spawn(move || {
            touch_stack();
            work.serve();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has it done after everything that it was told before. Never blocks.
    pub(super) fn later(&self, task: impl FnOnce() + Send + 'static) {
        let asleep = {
            let mut queue = self.shared.queue.lock();
            queue.tasks.push_back(Box::new(task));
            std::mem::take(&mut queue.asleep)
        };
        if asleep {
            self.shared.called.notify_one();
        }
    }

    /// The same, and waits for the outcome. What the thread itself asks for is done at once.
    pub(super) fn wait<R: Send + 'static>(&self, task: impl FnOnce() -> R + Send + 'static) -> R {
        if self.is_here() {
            return task();
        }
        let (answer, outcome) = sync_channel(1);
        self.later(move || {
            let _ = answer.send(task());
        });
        outcome.recv().expect("every task is done")
    }

    fn is_here(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id())
    }
}

impl Drop for RecordWriter {
    fn drop(&mut self) {
        self.shared.queue.lock().ended = true;
        self.shared.called.notify_one();
        // The last file of a mount may be closed by one of its own tasks.
        if !self.is_here()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut tasks = VecDeque::new();
        loop {
            {
                let mut queue = self.queue.lock();
                while queue.tasks.is_empty() {
                    if queue.ended {
                        return;
                    }
                    queue.asleep = true;
                    self.called.wait(&mut queue);
                }
                queue.asleep = false;
                std::mem::swap(&mut queue.tasks, &mut tasks);
            }
            for task in tasks.drain(..) {
                task();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_in_order_before_the_end() {
        let writer = Arc::new(RecordWriter::start().unwrap());
        let done = Arc::new(Mutex::new(Vec::new()));
        for number in 0..100 {
            let done = done.clone();
            writer.later(move || done.lock().push(number));
        }
        let seen = done.clone();
        assert_eq!(writer.wait(move || seen.lock().len()), 100);
        let (inner, seen) = (writer.clone(), done.clone());
        assert_eq!(writer.wait(move || inner.wait(move || seen.lock().len())), 100);
        let last = done.clone();
        writer.later(move || last.lock().push(100));
        drop(writer);
        assert_eq!(*done.lock(), (0..=100).collect::<Vec<_>>());
    }
}
