//! Says that the daemon is alive while it writes: the table's modification time.
//!
//! After a crash it tells the daemon's last changes from those that others have made since (see `verdict`).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::table::Table;

/// How often.
const PERIOD: Duration = Duration::from_millis(2);

/// Periods without a write after which it sleeps: waking it costs more than a look.
const IDLE_MAX: u32 = 50;

/// A file may have been changed so long after the daemon said that it lives, in nanoseconds: where the thread goes before
/// all others, and where it may have to wait for a processor.
const DOUBT_NS: i64 = 8_000_000;
const DOUBT_IN_LINE_NS: i64 = 40_000_000;

#[derive(Debug, Default)]
struct Beat {
    /// Writes under way.
    writes: u64,
    /// When it was said last.
    last: Option<Instant>,
    asleep: bool,
    ended: bool,
}

impl Beat {
    /// Whether it is to be said now.
    fn is_due(&mut self, after: Duration) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= after);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

#[derive(Debug, Default)]
struct Shared {
    beat: Mutex<Beat>,
    called: Condvar,
}

/// The thread that does it, asleep while nothing is written. Ends when dropped.
#[derive(Debug)]
pub(super) struct Pulse {
    shared: Arc<Shared>,
    table: Arc<Table>,
    thread: Option<JoinHandle<()>>,
    doubt_ns: i64,
}

impl Pulse {
    /// Starts it; where the table may not be written, nothing is to be said.
    pub(super) fn start(table: Arc<Table>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (told, goes_first) = sync_channel(1);
        let start = || {
            let (shared, table) = (shared.clone(), table.clone());
            std::thread::Builder::new().name("swapfs-pulse".into()).spawn(move || {
                let _ = told.send(crate::sys::go_first().is_ok());
                shared.run(&table);
            })
        };
        let thread = table.writable().then(start).transpose()?;
        let goes_first = thread.is_some() && goes_first.recv() == Ok(true);
        let doubt_ns = if goes_first { DOUBT_NS } else { DOUBT_IN_LINE_NS };
        Ok(Self { shared, table, thread, doubt_ns })
    }

    /// A file may have been changed so long after the daemon was last seen alive.
    pub(super) fn doubt_ns(&self) -> i64 {
        self.doubt_ns
    }

    /// A write is about to be handed on.
    pub(super) fn begin(&self) {
        let (due, asleep) = {
            let mut beat = self.shared.beat.lock();
            beat.writes += 1;
            (beat.writes == 1 && beat.is_due(PERIOD / 2), std::mem::take(&mut beat.asleep))
        };
        if due {
            self.table.pulse();
        }
        if asleep {
            self.shared.called.notify_one();
        }
    }

    /// It has ended.
    pub(super) fn end(&self) {
        let mut beat = self.shared.beat.lock();
        beat.writes = beat.writes.saturating_sub(1);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.beat.lock().ended = true;
        self.shared.called.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, table: &Table) {
        let mut idle = IDLE_MAX;
        loop {
            {
                let mut beat = self.beat.lock();
                while idle >= IDLE_MAX && beat.writes == 0 && !beat.ended {
                    beat.asleep = true;
                    self.called.wait(&mut beat);
                }
                beat.asleep = false;
                if beat.ended {
                    return;
                }
                self.called.wait_for(&mut beat, PERIOD);
                idle = if beat.writes == 0 { idle + 1 } else { 0 };
                if beat.writes == 0 || !beat.is_due(PERIOD / 2) {
                    continue;
                }
            }
            table.pulse();
        }
    }
}
