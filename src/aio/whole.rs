//! Continues short transfers, so that everybody above sees whole ones.
//!
//! A device may move fewer bytes than asked: the kernel stops at a signal, at the first block that it cannot allocate,
//! at a damaged page of memory, or just so. [`Whole`] asks for the rest, until there is none, the file ends or an error
//! comes. A transfer then has moved everything, has failed, or was a read that met the end of its file. Of a failed
//! transfer any part may have been moved.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::device::{
    Action, Completion, CompletionSink, Device, DeviceStats, Geometry, InlineReader, Transfer,
    refused,
};
use crate::error::Errno;

/// A device whose transfers are whole. Its statistics are those of the device inside, to which each rest is one more
/// transfer.
pub struct Whole {
    inner: Arc<dyn Device>,
    sink: Arc<Sink>,
}

struct Sink {
    above: OnceLock<Arc<dyn CompletionSink>>,
    /// The device inside, which knows this sink.
    inner: Weak<dyn Device>,
    alignment: usize,
    /// Transfers whose rest is under way, with what has been moved of them: few, and not for long.
    begun: Mutex<Vec<(Identity, Action)>>,
    /// Their number. It is looked at without the lock, which a completion takes only when it is not zero.
    count: AtomicUsize,
}

/// What a transfer is known by when it comes back: its token, place in the file and memory. Tokens alone are not enough,
/// because a submitter may use one token for all of its transfers.
type Identity = (u64, u64, usize);

impl std::fmt::Debug for Whole {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(formatter)
    }
}

impl Whole {
    /// Wraps a device that is not connected yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Device>) -> Arc<Self> {
        let sink = Arc::new(Sink {
            above: OnceLock::new(),
            inner: Arc::downgrade(&inner),
            alignment: inner.geometry().alignment,
            begun: Mutex::default(),
            count: AtomicUsize::new(0),
        });
        Arc::new(Self { inner, sink })
    }
}

impl Device for Whole {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.sink.above.set(sink).is_ok(), "connect is called once");
        self.inner.connect(self.sink.clone());
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        self.inner.submit(batch);
    }

    fn inline_reader(&self) -> Option<Box<dyn InlineReader>> {
        // The rest of such a read is an ordinary transfer.
        self.inner.inline_reader()
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl CompletionSink for Sink {
    fn complete(&self, done: &mut Vec<Completion>) {
        // Nothing here allocates or locks unless a transfer is short. A rest that is among `done` is counted: it was
        // before it was submitted.
        let none_begun = self.count.load(Ordering::Acquire) == 0;
        let (mut rests, mut ended) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < done.len() {
            let Completion { transfer, result } = &done[at];
            if none_begun && !result.is_ok_and(|moved| moved < transfer.action.length()) {
                at += 1;
                continue;
            }
            let (mut completion, before) = self.rejoin(done.swap_remove(at));
            match self.kept(&mut completion, before) {
                Some(kept) => rests.push(self.rest(completion.transfer, kept)),
                None => ended.push(completion),
            }
        }
        done.append(&mut ended);
        if !rests.is_empty() {
            match self.inner.upgrade() {
                Some(inner) => inner.submit(&mut rests),
                None => {
                    let gone = rests.drain(..).map(|rest| refused(rest, Errno::ENODEV));
                    done.extend(gone.map(|rest| self.rejoin(rest).0));
                }
            }
        }
        if !done.is_empty() {
            self.above.get().expect("connect comes before the first submission").complete(done);
        }
    }
}

impl Sink {
    /// The transfer that a completion belongs to, with the bytes moved of all of it, and how many of these were moved
    /// before.
    fn rejoin(&self, completion: Completion) -> (Completion, usize) {
        let Completion { transfer, result } = completion;
        let returned = identity(&transfer);
        let mut begun = self.begun.lock();
        let found = begun.iter().position(|(rest, _)| *rest == returned);
        let front = found.map(|at| begun.swap_remove(at).1);
        self.count.store(begun.len(), Ordering::Release);
        drop(begun);
        let Transfer { token, action, file, offset } = transfer;
        let (before, action) = match front {
            Some(front) => (front.length(), front.join(action)),
            None => (0, action),
        };
        let transfer = Transfer { token, action, file, offset: offset - before as u64 };
        (Completion { transfer, result: result.map(|moved| before + moved) }, before)
    }

    /// How many bytes of a transfer stay moved when its rest is asked for; `None` when it has ended. Earlier attempts
    /// moved the first `before` bytes.
    fn kept(&self, completion: &mut Completion, before: usize) -> Option<usize> {
        let Completion { transfer, result } = completion;
        let moved = (*result).ok()?;
        if moved >= transfer.action.length() || is_at_end(transfer, moved) {
            return None;
        }
        // A rest has to be aligned too, so bytes behind the last boundary are moved again.
        let kept = moved / self.alignment * self.alignment;
        if kept > before {
            return Some(kept);
        }
        // A read met the end of its file, which has grown since.
        if let Action::Write(_) = transfer.action {
            *result = Err(Errno::EIO);
        }
        None
    }

    /// Keeps the first `kept` bytes of a transfer back, and returns the rest.
    fn rest(&self, transfer: Transfer, kept: usize) -> Transfer {
        let Transfer { token, action, file, offset } = transfer;
        let (front, action) = action.split_front(kept);
        let rest = Transfer { token, action, file, offset: offset + kept as u64 };
        let mut begun = self.begun.lock();
        begun.push((identity(&rest), front));
        self.count.store(begun.len(), Ordering::Release);
        rest
    }
}

fn identity(transfer: &Transfer) -> Identity {
    (transfer.token, transfer.offset, transfer.action.address())
}

/// Returns true for a short read that met the end of its file. A size of 0 says nothing: devices and pipes have it.
fn is_at_end(transfer: &Transfer, moved: usize) -> bool {
    let end = transfer.offset + moved as u64;
    let ends = || transfer.file.status().is_ok_and(|status| (1..=end).contains(&status.size));
    matches!(transfer.action, Action::Read(_)) && (moved == 0 || ends())
}
