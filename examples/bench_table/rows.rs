//! The rows of the table: who competes, from which state of the files, and what is to be reached.

use swapfs::bench::Cleanup;
use swapfs::turns::Turns;
use swapfs::units::MIB;

use crate::Outcome;
use crate::client::{Action, Task};
use crate::group::{Goal, Group, timed};
use crate::place::{Place, State, Way};
use crate::sample::{Sample, Unit};
use crate::work::{Calls, Fio, Pace, client, python, zero3};

/// Bytes of the large calls.
const LARGE: usize = 16 << 20;
/// Streams, and processes, of the rows with several.
const STREAMS: u64 = 4;
const PROCESSES: u64 = 8;

/// What `--rows` knows.
pub(crate) const NAMES: [&str; 32] = [
    "direct-8-read",
    "direct-8-first",
    "direct-8-write",
    "direct-16-read",
    "direct-16-first",
    "direct-16-write",
    "direct-16m-read",
    "direct-16m-write",
    "read",
    "read-4",
    "write",
    "warm-read",
    "uring-read",
    "uring-write",
    "bytes",
    "memmap-fill",
    "memmap-sum",
    "random-1",
    "random-32",
    "processes-write",
    "processes-read",
    "zero3",
    "stat",
    "create-unlink",
    "open-read",
    "status",
    "status-busy",
    "handle-read",
    "handle-write",
    "deepspeed-read",
    "deepspeed-write",
    "layers",
];

/// What all rows need to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) cleanup: &'a Cleanup,
    pub(crate) place: &'a Place,
    /// Of the file that most rows move.
    pub(crate) bytes: u64,
    pub(crate) pool_bytes: u64,
    /// Calls of the rows with small ones.
    pub(crate) calls: usize,
    /// Of the ZeRO-3 round's parameters and states.
    pub(crate) round_mib: u64,
    /// There are huge pages for fio.
    pub(crate) huge: bool,
    pub(crate) python: bool,
}

/// Goals on A and on B.
fn shares(a: f64, b: f64) -> [Option<Goal>; 2] {
    [Some(Goal::AtLeast(a)), Some(Goal::AtLeast(b))]
}

/// How often a row is measured. The ZeRO-3 round has fewer turns: each moves as many bytes as another row in all.
pub(crate) fn turns_of(row: &str, turns: Turns) -> Turns {
    match row {
        "zero3" => Turns { rounds: turns.rounds.min(3), warmup: 0 },
        _ => turns,
    }
}

fn one(name: &str, bytes: u64) -> Vec<(String, u64)> {
    vec![(name.to_owned(), bytes)]
}

fn several(name: &str, count: u64, bytes: u64) -> Vec<(String, u64)> {
    (0..count).map(|number| (format!("{name}-{number}"), bytes / count)).collect()
}

/// Where the reference finds what is only read, and has room to write.
fn other(reading: bool) -> Way {
    if reading { Way::Behind } else { Way::Beside }
}

impl<'a> Plan<'a> {
    /// All rows of the place.
    pub(crate) fn groups(self) -> Vec<Group<'a>> {
        let mut groups = self.queued();
        groups.extend(self.large_calls());
        groups.extend(self.buffered());
        groups.extend(self.by_uring());
        if self.python {
            groups.extend(self.scripts());
        }
        groups.extend(self.random());
        groups.extend(self.processes());
        if self.place.name == 'A' {
            groups.push(self.round());
        }
        groups.extend(self.calls());
        groups
    }

    fn run_fio(
        self, fio: Fio, way: Way, files: Vec<(String, u64)>, state: State,
    ) -> impl FnMut(u32) -> Outcome<Sample> + 'a {
        move |_| timed(self.place, way, &files, state, |paths| fio.run(self.cleanup, paths))
    }

    fn run_client(
        self, task: Task, way: Way, files: Vec<(String, u64)>, state: State,
    ) -> impl FnMut(u32) -> Outcome<Sample> + 'a {
        move |number| {
            let task =
                |paths: &[std::path::PathBuf]| Task { paths: paths.to_vec(), ..task.clone() };
            let mut sample =
                timed(self.place, way, &files, state, |paths| client(self.cleanup, &task(paths)))?;
            // Looking maps the file: the first run that counts is enough.
            if way == Way::Mount && number <= 1 {
                sample.cached = files.iter().map(|(name, _)| self.place.cached(name)).sum();
            }
            Ok(sample)
        }
    }

    /// The same by fio on the folder, with ordinary memory and with huge pages.
    fn beside_fio(
        self, group: Group<'a>, fio: Fio, files: &[(String, u64)], state: State,
        goals: [Option<Goal>; 2],
    ) -> Group<'a> {
        let way = other(fio.rw != "write");
        let name = format!("folder, fio depth {}", fio.depth);
        let ordinary = self.run_fio(fio.clone(), way, files.to_vec(), state);
        let group = group.beside(name, goals, ordinary);
        if !self.huge {
            return group;
        }
        let name = format!("folder, fio depth {}, huge pages", fio.depth);
        let fio = Fio { huge: true, ..fio };
        group.beside(name, [None, None], self.run_fio(fio, way, files.to_vec(), state))
    }

    /// libaio, direct, 1 MiB, as DeepSpeed's handle and fio move partitions.
    fn queued(self) -> Vec<Group<'a>> {
        let rows = [
            ("direct-8-read", "direct 1 MiB, depth 8, cold read", "read", 8, State::Cold),
            ("direct-8-first", "direct 1 MiB, depth 8, first write", "write", 8, State::Gone),
            ("direct-8-write", "direct 1 MiB, depth 8, overwrite", "write", 8, State::Cold),
            ("direct-16-read", "direct 1 MiB, depth 16, cold read", "read", 16, State::Cold),
            ("direct-16-first", "direct 1 MiB, depth 16, first write", "write", 16, State::Gone),
            ("direct-16-write", "direct 1 MiB, depth 16, overwrite", "write", 16, State::Cold),
        ];
        let group = |(id, title, rw, depth, state)| {
            let goals = match (rw, state) {
                ("write", State::Gone) => shares(0.95, 0.80),
                _ => shares(0.97, 0.85),
            };
            let fio = Fio::direct(rw, depth, self.bytes);
            let files = one(rw, self.bytes);
            let group = Group::new(id, title, Unit::Throughput);
            let ours = self.run_fio(fio.clone(), Way::Mount, files.clone(), state);
            let group = group.ours(format!("mount, fio depth {depth}"), ours);
            self.beside_fio(group, fio, &files, state, goals)
        };
        rows.into_iter().map(group).collect()
    }

    /// One large direct call after the other.
    fn large_calls(self) -> Vec<Group<'a>> {
        let rows = [
            ("direct-16m-read", "direct 16 MiB calls, cold read", Action::Read, shares(1.0, 0.85)),
            (
                "direct-16m-write",
                "direct 16 MiB calls, overwrite",
                Action::Write,
                shares(1.0, 0.80),
            ),
        ];
        let group = |(id, title, action, goals)| {
            let reading = action == Action::Read;
            let files = one(if reading { "read" } else { "write" }, self.bytes);
            let task = Task::stream(action, Vec::new(), self.bytes, LARGE).direct();
            let run = |way| self.run_client(task.clone(), way, files.clone(), State::Cold);
            let group = Group::new(id, title, Unit::Throughput).ours("mount", run(Way::Mount));
            group.beside("folder, the same", goals, run(other(reading)))
        };
        rows.into_iter().map(group).collect()
    }

    /// Plain calls, as everyone makes them.
    fn buffered(self) -> Vec<Group<'a>> {
        let read = Task::stream(Action::Read, Vec::new(), self.bytes, LARGE);
        let files = one("read", self.bytes);
        let run = |way| self.run_client(read.clone(), way, files.clone(), State::Cold);
        let single = Group::new("read", "plain read, 16 MiB calls, cold", Unit::Throughput)
            .ours("mount", run(Way::Mount))
            .beside("folder, buffered", shares(1.1, 1.1), run(Way::Behind));
        let fio = Fio::direct("read", 8, self.bytes);
        let single = self.beside_fio(single, fio, &files, State::Cold, shares(0.97, 0.8));

        let each = self.bytes / STREAMS;
        let files = several("stream", STREAMS, self.bytes);
        let read = Task { bytes: each, ..read.clone() };
        let run = |way| self.run_client(read.clone(), way, files.clone(), State::Cold);
        let four = Group::new("read-4", "plain read, four streams, cold", Unit::Throughput)
            .ours("mount", run(Way::Mount))
            .beside("folder, buffered", shares(1.1, 1.0), run(Way::Behind));
        let fio = Fio { jobs: 4, ..Fio::direct("read", 8, each) };
        let four = self.beside_fio(four, fio, &files, State::Cold, shares(0.97, 0.8));

        let write = Task::stream(Action::Write, Vec::new(), self.bytes, LARGE);
        let files = one("write", self.bytes);
        let run = |way| self.run_client(write.clone(), way, files.clone(), State::Cold);
        let out = Group::new("write", "plain write + fsync, 16 MiB calls", Unit::Throughput)
            .ours("mount", run(Way::Mount))
            .beside("folder, buffered", shares(1.5, 1.5), run(Way::Beside));
        let fio = Fio::direct("write", 8, self.bytes);
        let out = self.beside_fio(out, fio, &files, State::Cold, shares(0.97, 0.8));

        let bytes = (self.bytes / 4).min(self.pool_bytes / 2);
        let warm = Task { passes: 4, ..Task::stream(Action::Read, Vec::new(), bytes, 1 << 20) };
        let run = |way| self.run_client(warm.clone(), way, one("warm", bytes), State::Warm);
        let warm = Group::new("warm-read", "warm read, 1 MiB calls", Unit::Throughput)
            .ours("mount, from the pool", run(Way::Mount))
            .beside("folder, from the page cache", shares(0.6, 0.6), run(Way::Beside));
        vec![single, four, out, warm]
    }

    /// Buffered calls of 32 KiB by io_uring, one after the other, beside the same by pread and pwrite.
    fn by_uring(self) -> Vec<Group<'a>> {
        let rows = [
            ("uring-read", "buffered io_uring, 32 KiB reads, cold", "read"),
            ("uring-write", "buffered io_uring, 32 KiB writes", "write"),
        ];
        let group = |(id, title, rw)| {
            let bytes = self.bytes / 4;
            let run = |calls| {
                let fio = Fio { block: 32 << 10, calls, ..Fio::direct(rw, 1, bytes) };
                self.run_fio(fio, Way::Mount, one("uring", bytes), State::Cold)
            };
            let group = Group::new(id, title, Unit::Throughput).ours("mount", run(Calls::Uring));
            group.beside("mount, plain calls", shares(0.5, 0.5), run(Calls::Plain))
        };
        rows.into_iter().map(group).collect()
    }

    /// What Python's users do.
    fn scripts(self) -> Vec<Group<'a>> {
        let run = |action: &'static str, way, name: &'static str| {
            move |_| {
                let files = one(name, self.bytes);
                timed(self.place, way, &files, State::Cold, |paths| {
                    python(self.cleanup, action, &paths[0], self.bytes)
                })
            }
        };
        let title = "write + fsync from Python bytes (unaligned)";
        vec![
            Group::new("bytes", title, Unit::Throughput)
                .ours("mount", run("bytes", Way::Mount, "write"))
                .beside(
                    "mount, aligned memory",
                    shares(0.95, 0.9),
                    run("pages", Way::Mount, "write"),
                ),
            Group::new("memmap-fill", "numpy memmap, fill + flush", Unit::Throughput)
                .ours("mount", run("fill", Way::Mount, "write"))
                .beside("folder", shares(0.8, 0.6), run("fill", Way::Beside, "write")),
            Group::new("memmap-sum", "numpy memmap, cold sum", Unit::Throughput)
                .ours("mount", run("sum", Way::Mount, "read"))
                .beside("folder", shares(0.8, 0.6), run("sum", Way::Behind, "read")),
        ]
    }

    fn random(self) -> Vec<Group<'a>> {
        let files = one("read", self.bytes);
        let fio = |depth| Fio {
            block: 4096,
            pace: Pace::AtMost(2),
            ..Fio::direct("randread", depth, self.bytes)
        };
        let run = |depth, way| self.run_fio(fio(depth), way, files.clone(), State::Cold);
        let more = [Some(Goal::Plus(12.0)), Some(Goal::Plus(10.0))];
        vec![
            Group::new("random-1", "4 KiB random read, depth 1, p50", Unit::Latency)
                .ours("mount, fio", run(1, Way::Mount))
                .beside("folder, fio", more, run(1, Way::Behind)),
            Group::new("random-32", "4 KiB random read, depth 32", Unit::CallRate)
                .ours("mount, fio", run(32, Way::Mount))
                .beside("folder, fio", shares(0.6, 0.5), run(32, Way::Behind)),
        ]
    }

    /// Eight processes with a file each.
    fn processes(self) -> Vec<Group<'a>> {
        let total = 2 * self.bytes;
        let rows = [
            ("processes-write", "8 processes, overwrite, depth 4 each", "write"),
            ("processes-read", "8 processes, cold read, depth 4 each", "read"),
        ];
        let group = |(id, title, rw)| {
            let jobs = usize::try_from(PROCESSES).unwrap_or(1);
            let fio = Fio { jobs, ..Fio::direct(rw, 4, total / PROCESSES) };
            let files = several("process", PROCESSES, total);
            let run = |way| self.run_fio(fio.clone(), way, files.clone(), State::Cold);
            Group::new(id, title, Unit::Throughput).ours("mount, fio", run(Way::Mount)).beside(
                "folder, fio",
                shares(0.95, 0.8),
                run(other(rw == "read")),
            )
        };
        rows.into_iter().map(group).collect()
    }

    /// The example of that name, on a pool a quarter of its partitions.
    fn round(self) -> Group<'a> {
        let run = |way: &'static str| {
            move |_| {
                let folder = self.place.folder(Way::Beside);
                let pool_mib = self.round_mib / 4;
                zero3(self.cleanup, &folder, way, self.round_mib, pool_mib)
            }
        };
        Group::new("zero3", "ZeRO-3 round, pool a quarter of it, 3 runs", Unit::Seconds)
            .ours("mount, plain calls", run("mount"))
            .beside("folder, plain calls", [Some(Goal::AtLeast(2.0)), None], run("folder"))
            .beside("folder, aio handle", [Some(Goal::AtLeast(0.95)), None], run("folder-aio"))
    }

    /// Small calls, each timed.
    fn calls(self) -> Vec<Group<'a>> {
        let small: Vec<_> = several("small", 64, 64 * 4096);
        let run = |action, xattr: &'static str, way, files: Vec<(String, u64)>, state| {
            let task = Task::calls(action, Vec::new(), self.calls);
            self.run_client(Task { xattr: xattr.to_owned(), ..task }, way, files, state)
        };
        let both = |goal| [Some(goal), Some(goal)];
        let group = |id, title, action, goal, files: &[(String, u64)]| {
            let run = |way| run(action, "", way, files.to_vec(), State::Warm);
            Group::new(id, title, Unit::Latency).ours("mount", run(Way::Mount)).beside(
                "folder",
                both(Goal::Plus(goal)),
                run(Way::Beside),
            )
        };
        let creating = |way| {
            move |_| {
                let folder = self.place.folder(way);
                let task = Task::calls(Action::CreateUnlink, vec![folder], self.calls / 4);
                timed(self.place, way, &[], State::Cold, |_| client(self.cleanup, &task))
            }
        };
        let status = |action, way, name: &'static str| move |_| self.status(action, way, name);
        vec![
            group("stat", "stat, p50", Action::Stat, 15.0, &small),
            Group::new("create-unlink", "create + unlink, p50", Unit::Latency)
                .ours("mount", creating(Way::Mount))
                .beside("folder", both(Goal::Plus(60.0)), creating(Way::Beside)),
            group("open-read", "open + read 4 KiB + close, p50", Action::OpenRead, 40.0, &small),
            Group::new("status", "getxattr user.swap.status, p50", Unit::Latency)
                .ours("mount", status(Action::Getxattr, Way::Mount, "user.swap.status"))
                .beside(
                    "folder, an attribute of a user's",
                    both(Goal::Within(20.0)),
                    status(Action::Getxattr, Way::Beside, "user.note"),
                ),
            Group::new("status-busy", "the same during a write, p50", Unit::Latency)
                .ours("mount", status(Action::GetxattrBusy, Way::Mount, "user.swap.status"))
                .beside(
                    "folder, an attribute of a user's",
                    both(Goal::Within(20.0)),
                    status(Action::GetxattrBusy, Way::Beside, "user.note"),
                ),
        ]
    }

    fn status(self, action: Action, way: Way, xattr: &str) -> Outcome<Sample> {
        let mut files = one("asked", 4 * MIB);
        if action == Action::GetxattrBusy {
            files.push(("write".to_owned(), self.bytes));
        }
        timed(self.place, way, &files, State::Cold, |paths| {
            if way == Way::Beside {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&paths[0], xattr, b"available", flags)?;
            }
            let task = Task::calls(action, paths.to_vec(), self.calls);
            let task = Task { xattr: xattr.to_owned(), bytes: self.bytes, call: 1 << 20, ..task };
            client(self.cleanup, &task)
        })
    }
}
