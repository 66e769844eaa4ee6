//! Requests of the kernel: counts, errors and times for each operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::access::AccessLog;
use super::histogram::{Histogram, Snapshot};
use crate::opcode::Opcode;

/// How many operations are counted apart: the opcodes, and what is asked of the control folder.
const OPERATIONS: usize = Opcode::COUNT + 1;

/// Copies of the counters, so that threads seldom share one.
const SHARDS: usize = 8;

/// What a request is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation(u8);

impl Operation {
    /// READ.
    pub const READ: Operation = Operation::of(Opcode::Read);
    /// WRITE.
    pub const WRITE: Operation = Operation::of(Opcode::Write);
    /// Whatever is asked of the control folder, where a read may wait for a second.
    pub const CONTROL: Operation = Operation(Opcode::COUNT as u8);

    /// A request with this opcode.
    #[must_use]
    pub const fn of(opcode: Opcode) -> Operation {
        Operation(if opcode.name().is_some() { opcode } else { Opcode::Other } as u8)
    }

    /// Its name in metrics and in the access log.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.own_name().unwrap_or("other")
    }

    /// `None` for opcodes that are counted as another operation.
    fn own_name(self) -> Option<&'static str> {
        if self == Self::CONTROL { Some("control") } else { Opcode::at(self.0.into()).name() }
    }
}

/// The counters of a few threads. Aligned so that no two shards share a cache line, nor the pair of lines that
/// processors fetch together.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    answered: [AtomicU64; OPERATIONS],
    errors: [AtomicU64; OPERATIONS],
    times: [Histogram; OPERATIONS],
}

/// Counters of all requests.
#[derive(Debug)]
pub struct Requests {
    shards: Box<[Shard]>,
}

impl Default for Requests {
    fn default() -> Self {
        let shard = || Shard {
            answered: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            times: std::array::from_fn(|_| Histogram::default()),
        };
        Self { shards: std::iter::repeat_with(shard).take(SHARDS).collect() }
    }
}

/// What was counted of one operation.
#[derive(Debug, Clone, Copy)]
pub struct OperationCounts {
    /// Which.
    pub operation: Operation,
    /// Answered; FORGET, which gets no answer, when it was done.
    pub answered: u64,
    /// Of these with an errno.
    pub errors: u64,
    /// From when the request was read until its answer was written.
    pub times: Snapshot,
}

impl OperationCounts {
    /// Returns true when a request for the operation was answered.
    #[must_use]
    pub fn happened(&self) -> bool {
        self.answered > 0
    }
}

impl Requests {
    fn shard(&self) -> &Shard {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Relaxed) % SHARDS;
        }
        &self.shards[MINE.with(|mine| *mine)]
    }

    /// What was counted so far, of every operation.
    pub fn counts(&self) -> impl Iterator<Item = OperationCounts> {
        let all = (0..OPERATIONS as u8).map(Operation);
        all.filter(|operation| operation.own_name().is_some()).map(|operation| {
            let i = usize::from(operation.0);
            let sum = |of: fn(&Shard) -> &[AtomicU64; OPERATIONS]| {
                self.shards.iter().map(|shard| of(shard)[i].load(Relaxed)).sum()
            };
            let mut times = Snapshot::default();
            self.shards.iter().for_each(|shard| times.add(&shard.times[i].snapshot()));
            OperationCounts {
                operation,
                answered: sum(|shard| &shard.answered),
                errors: sum(|shard| &shard.errors),
                times,
            }
        })
    }
}

/// Who asked for what, for the access log.
#[derive(Debug)]
pub struct Note {
    /// The caller's user.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's process; 0 for the kernel itself.
    pub pid: u32,
    /// Paths and numbers, as they stand between the parentheses of a line.
    pub arguments: String,
}

/// A request on its way, from being read to being answered.
#[derive(Debug)]
pub struct Ticket {
    operation: Operation,
    started: Instant,
    note: Option<Box<Note>>,
}

/// What watches a mount's requests.
#[derive(Debug, Default)]
pub struct Watch {
    /// The counters.
    pub requests: Requests,
    /// The lines for whoever reads them.
    pub access: Arc<AccessLog>,
}

impl Watch {
    /// A request has been read. `note` is only called while somebody reads the access log.
    pub fn begin(&self, operation: Operation, note: impl FnOnce() -> Option<Note>) -> Ticket {
        let note = if self.access.is_open() { note().map(Box::new) } else { None };
        Ticket { operation, started: Instant::now(), note }
    }

    /// Its answer is about to be written. Counted before, so that whoever has the answer finds it counted.
    pub fn answering(&self, ticket: &Ticket, errno: i32) {
        let (shard, place) = (self.requests.shard(), ticket.operation.0 as usize);
        shard.answered[place].fetch_add(1, Relaxed);
        if errno != 0 {
            shard.errors[place].fetch_add(1, Relaxed);
        }
    }

    /// Its answer, with `bytes` after the header, has been written.
    pub fn answered(&self, ticket: Ticket, errno: i32, bytes: usize) {
        let time = ticket.started.elapsed();
        self.requests.shard().times[ticket.operation.0 as usize].record(time);
        if let Some(note) = ticket.note {
            let bytes = (ticket.operation == Operation::READ).then_some(bytes);
            self.access.note(ticket.operation.name(), &note, errno, bytes, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_operation_is_counted_once_by_its_name() {
        let counts: Vec<_> = Requests::default().counts().collect();
        let names: BTreeSet<_> = counts.iter().map(|count| count.operation.name()).collect();
        assert_eq!((counts.len(), names.len()), (39, 39));
        assert!(["read", "write", "control", "other"].iter().all(|name| names.contains(name)));
        for opcode in (0..Opcode::COUNT).map(Opcode::at) {
            let operation = Operation::of(opcode);
            assert!(counts.iter().any(|count| count.operation == operation), "{opcode:?}");
            assert_eq!(operation.name(), opcode.name().unwrap_or("other"));
        }
    }

    #[test]
    fn what_many_threads_count_adds_up() {
        let watch = Watch::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    for number in 0..100 {
                        let ticket =
                            watch.begin(Operation::READ, || unreachable!("nobody reads the log"));
                        let errno = if number % 10 == 0 { libc::EIO } else { 0 };
                        watch.answering(&ticket, errno);
                        watch.answered(ticket, errno, 0);
                    }
                });
            }
        });
        let counts: Vec<_> = watch.requests.counts().filter(|count| count.answered > 0).collect();
        assert_eq!(counts.len(), 1);
        let total = 200 * SHARDS as u64;
        assert_eq!((counts[0].operation, counts[0].answered), (Operation::READ, total));
        assert_eq!((counts[0].errors, counts[0].times.count()), (total / 10, total));
    }
}
