//! Requests of the kernel: counts, errors and times for each operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::access::AccessLog;
use super::histogram::{Histogram, Snapshot};

/// What the kernel never uses: stands for whatever is asked of the control folder, where a read may wait for a
/// second.
const CONTROL: u32 = 63;

/// Requests by number, as in the kernel's `include/uapi/linux/fuse.h`; the last stands for all others.
const OPERATIONS: [(u32, &str); 39] = [
    (1, "lookup"),
    (2, "forget"),
    (3, "getattr"),
    (4, "setattr"),
    (5, "readlink"),
    (6, "symlink"),
    (8, "mknod"),
    (9, "mkdir"),
    (10, "unlink"),
    (11, "rmdir"),
    (12, "rename"),
    (13, "link"),
    (14, "open"),
    (15, "read"),
    (16, "write"),
    (17, "statfs"),
    (18, "release"),
    (20, "fsync"),
    (21, "setxattr"),
    (22, "getxattr"),
    (23, "listxattr"),
    (24, "removexattr"),
    (25, "flush"),
    (27, "opendir"),
    (28, "readdir"),
    (29, "releasedir"),
    (30, "fsyncdir"),
    (35, "create"),
    (40, "poll"),
    (42, "forget_many"),
    (43, "fallocate"),
    (44, "readdirplus"),
    (45, "rename2"),
    (46, "lseek"),
    (47, "copy_file_range"),
    (51, "tmpfile"),
    (52, "statx"),
    (CONTROL, "control"),
    (u32::MAX, "other"),
];

/// Where each request number stands in [`OPERATIONS`].
const PLACES: [u8; 64] = {
    let mut places = [OPERATIONS.len() as u8 - 1; 64];
    let mut i = 0;
    while i + 1 < OPERATIONS.len() {
        places[OPERATIONS[i].0 as usize] = i as u8;
        i += 1;
    }
    places
};

/// Copies of the counters, so that threads seldom share one.
const SHARDS: usize = 8;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation(u8);

impl Operation {
    /// READ.
    pub const READ: Operation = Operation::of_opcode(15);
    /// Anything about the control folder.
    pub const CONTROL: Operation = Operation::of_opcode(CONTROL);
    /// WRITE.
    pub const WRITE: Operation = Operation::of_opcode(16);

    /// By the kernel's number.
    #[must_use]
    pub const fn of_opcode(number: u32) -> Operation {
        let last = OPERATIONS.len() as u8 - 1;
        Operation(if number < 64 { PLACES[number as usize] } else { last })
    }

    /// Its name in metrics and in the access log.
    #[must_use]
    pub fn name(self) -> &'static str {
        OPERATIONS[self.0 as usize].1
    }
}

/// The counters of a few threads. Aligned so that no two shards share a cache line, nor the pair of lines that
/// processors fetch together.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    answered: [AtomicU64; OPERATIONS.len()],
    errors: [AtomicU64; OPERATIONS.len()],
    times: [Histogram; OPERATIONS.len()],
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
        (0..OPERATIONS.len()).map(|i| {
            let sum = |of: fn(&Shard) -> &[AtomicU64; OPERATIONS.len()]| {
                self.shards.iter().map(|shard| of(shard)[i].load(Relaxed)).sum()
            };
            let mut times = Snapshot::default();
            self.shards.iter().for_each(|shard| times.add(&shard.times[i].snapshot()));
            OperationCounts {
                operation: Operation(i as u8),
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
    use super::*;

    #[test]
    fn every_number_has_its_name_and_unknown_ones_share_one() {
        for (number, name) in &OPERATIONS[..OPERATIONS.len() - 1] {
            assert_eq!(Operation::of_opcode(*number).name(), *name);
        }
        for number in [0, 7, 26, 62, 64, 4096, u32::MAX] {
            assert_eq!(Operation::of_opcode(number).name(), "other", "{number}");
        }
        assert_eq!((Operation::READ.name(), Operation::WRITE.name()), ("read", "write"));
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
