//! A client of its own process: plain calls, timed one by one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use swapfs::noise::fill;

use crate::sample::{Sample, percentile};

/// The name under which this program is the client.
pub(crate) const NAME: &str = "bench-client";
/// What memory for O_DIRECT begins on.
const PAGE: usize = 4096;
/// Pause between two questions while something is written, so that they are spread over it.
const PAUSE: Duration = Duration::from_micros(300);

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Whole files, one thread each.
    Read,
    /// The same, and fsync.
    Write,
    /// stat(2) of the files, in turn.
    Stat,
    /// A new file in the first path, a folder, and away with it.
    CreateUnlink,
    /// Of the files, in turn: open, read, close.
    OpenRead,
    /// Of the files, in turn: open and close.
    Open,
    /// An extended attribute of the files, in turn.
    Getxattr,
    /// The same of the first, while the second is written and synchronized.
    GetxattrBusy,
}

/// What it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) action: Action,
    pub(crate) paths: Vec<PathBuf>,
    /// Bytes of each file.
    pub(crate) bytes: u64,
    /// Bytes of a call.
    pub(crate) call: usize,
    pub(crate) direct: bool,
    /// Times that whole files are moved.
    pub(crate) passes: u32,
    /// Calls, of those that move no whole files.
    pub(crate) count: usize,
    pub(crate) xattr: String,
}

impl Task {
    /// Whole files.
    pub(crate) fn stream(action: Action, paths: Vec<PathBuf>, bytes: u64, call: usize) -> Self {
        Self {
            action,
            paths,
            bytes,
            call,
            direct: false,
            passes: 1,
            count: 0,
            xattr: String::new(),
        }
    }

    /// Past the page cache.
    pub(crate) fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Small calls.
    pub(crate) fn calls(action: Action, paths: Vec<PathBuf>, count: usize) -> Self {
        Self { count, ..Self::stream(action, paths, 0, PAGE) }
    }
}

/// Does what the first argument says, and prints a [`Sample`].
pub(crate) fn main() -> ExitCode {
    let run = || -> crate::Outcome<String> {
        let text = std::env::args().nth(1).ok_or("nothing to do")?;
        Ok(serde_json::to_string(&run(&serde_json::from_str(&text)?)?)?)
    };
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> crate::Outcome<Sample> {
    match task.action {
        Action::Read | Action::Write => streams(task),
        Action::GetxattrBusy => busy(task),
        _ => calls(task),
    }
}

/// Processor seconds of this process until now.
fn spent() -> io::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A file, and memory that begins on a page.
struct Stream {
    path: PathBuf,
    file: File,
    memory: Vec<u8>,
    start: usize,
}

impl Stream {
    fn new(task: &Task, path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        match task.action {
            Action::Read => options.read(true),
            _ => options.write(true).create(true).truncate(false).mode(0o600),
        };
        if task.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let named = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
        let mut memory = vec![0; task.call + PAGE];
        fill(&mut memory, 1);
        let start = memory.as_ptr().align_offset(PAGE);
        Ok(Self { path: path.to_owned(), file: options.open(path).map_err(named)?, memory, start })
    }

    /// Microseconds of each call.
    fn work(&mut self, task: &Task) -> io::Result<Vec<f64>> {
        let memory = &mut self.memory[self.start..self.start + task.call];
        let mut times = Vec::new();
        for place in 0..task.bytes.div_ceil(task.call as u64) * u64::from(task.passes) {
            let offset = place % task.bytes.div_ceil(task.call as u64) * task.call as u64;
            let left = usize::try_from(task.bytes - offset).unwrap_or(usize::MAX);
            let part = &mut memory[..task.call.min(left)];
            let started = Instant::now();
            match task.action {
                Action::Read => self.file.read_exact_at(part, offset)?,
                _ => self.file.write_all_at(part, offset)?,
            }
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
        if task.action != Action::Read {
            self.file.sync_all()?;
        }
        Ok(times)
    }
}

fn streams(task: &Task) -> crate::Outcome<Sample> {
    let streams: io::Result<Vec<_>> =
        task.paths.iter().map(|path| Stream::new(task, path)).collect();
    let mut streams = streams?;
    let barrier = Barrier::new(streams.len() + 1);
    let (times, seconds, cpu) = std::thread::scope(|scope| -> io::Result<_> {
        let threads: Vec<_> = streams
            .iter_mut()
            .map(|stream| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let worked = stream.work(task);
                    let named = |error| format!("{}: {error}", stream.path.display());
                    worked.map_err(|error| io::Error::other(named(error)))
                })
            })
            .collect();
        let cpu = spent()?;
        let started = Instant::now();
        barrier.wait();
        let mut times = Vec::new();
        for thread in threads {
            times.extend(thread.join().map_err(|_| io::Error::other("a thread ended"))??);
        }
        Ok((times, started.elapsed().as_secs_f64(), spent()? - cpu))
    })?;
    let mut sample = sample_of(times, seconds, cpu);
    sample.bytes = task.bytes * u64::from(task.passes) * task.paths.len() as u64;
    Ok(sample)
}

/// One small call.
fn call(task: &Task, number: usize, memory: &mut [u8]) -> io::Result<()> {
    let path = &task.paths[number % task.paths.len()];
    match task.action {
        Action::Stat => fs::metadata(path).map(drop),
        Action::CreateUnlink => {
            let name = path.join(format!("new-{number}"));
            File::create_new(&name)?;
            fs::remove_file(&name)
        }
        Action::Open => File::open(path).map(drop),
        Action::OpenRead => File::open(path)?.read_exact_at(memory, 0),
        _ => Ok(rustix::fs::getxattr(path, task.xattr.as_str(), memory).map(drop)?),
    }
}

fn calls(task: &Task) -> crate::Outcome<Sample> {
    let mut memory = vec![0; task.call.min(PAGE)];
    let mut times = Vec::with_capacity(task.count);
    // Names and code are known before it counts.
    for number in 0..task.count.min(task.paths.len()).min(1000) {
        call(task, number, &mut memory)?;
    }
    let (cpu, begun) = (spent()?, Instant::now());
    for number in 0..task.count {
        let started = Instant::now();
        call(task, number, &mut memory)?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(sample_of(times, seconds, spent()? - cpu))
}

fn sample_of(mut times: Vec<f64>, seconds: f64, client_cpu: f64) -> Sample {
    times.sort_unstable_by(f64::total_cmp);
    Sample {
        seconds,
        count: times.len() as u64,
        client_cpu: Some(client_cpu),
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
        ..Sample::default()
    }
}

/// Questions while a stream runs, as many as fit into it.
fn busy(task: &Task) -> crate::Outcome<Sample> {
    let [asked, written] = &task.paths[..] else { return Err("two files are needed".into()) };
    let write = Task::stream(Action::Write, vec![written.clone()], task.bytes, task.call);
    let mut stream = Stream::new(&write, written)?;
    let ended = AtomicBool::new(false);
    let question = Task { paths: vec![asked.clone()], ..task.clone() };
    let mut value = vec![0; PAGE];
    let mut times = Vec::new();
    let (cpu, begun) = (spent()?, Instant::now());
    std::thread::scope(|scope| -> io::Result<()> {
        let writer = scope.spawn(|| {
            let result = stream.work(&write);
            ended.store(true, Ordering::Release);
            result
        });
        while !ended.load(Ordering::Acquire) {
            let started = Instant::now();
            call(&question, 0, &mut value)?;
            times.push(started.elapsed().as_secs_f64() * 1e6);
            std::thread::sleep(PAUSE);
        }
        writer.join().map_err(|_| io::Error::other("the writer ended"))?.map(drop)
    })?;
    let mut sample = sample_of(times, begun.elapsed().as_secs_f64(), spent()? - cpu);
    sample.bytes = task.bytes;
    Ok(sample)
}
