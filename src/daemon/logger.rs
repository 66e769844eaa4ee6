//! Where the daemon's log goes: standard error in the foreground, else `SWAP_FOLDER/.swapfs/log`.
//! Until the mount answers, warnings and errors of a background daemon reach the user as well.
//!
//! The file lies on the device that the daemon swaps to. A thread of its own writes it, so that a device that
//! hangs keeps nobody else from working.
//!
//! What clients can cause again and again is limited ([`limit`]), and so is the file's length ([`file`]).
//!
//! A panic is logged before its thread unwinds. What the runtime itself has to say, before it aborts for want of
//! memory, goes to standard error, which is the log file once the mount answers.

mod file;
mod limit;

use std::fs::File;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use jiff::Timestamp;
use nix::sys::signal::{SigSet, SigmaskHow};
use parking_lot::Mutex;

use super::SwapFolder;
use crate::metrics::lines::{LINES, Lines as Counts};
use crate::panics::outlive;
use crate::streams::tell;
use crate::sys_process::reason;
use file::LogFile;
use limit::{Limiter, Verdict};

/// Lines that wait for the file; more are dropped and counted.
const LINES_MAX: usize = 4096;

/// The target of lines that a user who waits for the mount sees too, whatever their level.
pub(crate) const TO_THE_USER: &str = "swapfs::start";

/// How long the file may take for the last lines, and for that of a panic.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// The thread that writes the file.
const WRITER_NAME: &str = "swapfs-log";

static STARTING: AtomicBool = AtomicBool::new(false);

/// The way to the thread that writes the file, where there is one.
static WRITER: OnceLock<Sender<Line>> = OnceLock::new();

/// The file and its lines, until the thread that writes them is started: a daemon that gives up rights has one thread.
static UNWRITTEN: Mutex<Option<(LogFile, Receiver<Line>)>> = Mutex::new(None);

/// The file, which is standard error once nobody else watches that.
static FILE: Mutex<Option<File>> = Mutex::new(None);

static LIMITER: OnceLock<Mutex<Limiter>> = OnceLock::new();

/// What the writing thread gets.
enum Line {
    Text(Vec<u8>),
    /// Everything before is in the file when this is dropped.
    Mark(#[expect(dead_code, reason = "its end is the answer")] Sender<()>),
}

/// Starts logging by the filter; a file is written from [`start_writer`] on. The first call counts.
pub(super) fn start(filter: &str, swap: &SwapFolder, foreground: bool) -> Result<(), String> {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter).format_timestamp_millis();
    if !foreground {
        let file = LogFile::open(swap).map_err(|error| {
            format!("{}/.swapfs/log: {}", swap.path().display(), reason(&error))
        })?;
        *FILE.lock() = file.file().ok();
        let (sender, lines) = bounded(LINES_MAX);
        *UNWRITTEN.lock() = Some((file, lines));
        let lines = WRITER.get_or_init(|| sender).clone();
        builder.target(env_logger::Target::Pipe(Box::new(Lines { lines, dropped: 0 })));
        STARTING.store(true, Ordering::Relaxed);
    }
    let logger = builder.build();
    let level = logger.filter();
    if log::set_boxed_logger(Box::new(DaemonLog(logger))).is_ok() {
        log::set_max_level(level);
    }
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Before the mount answers the user is told as well.
        if !log_panic(panic) || STARTING.load(Ordering::Relaxed) {
            print(panic);
        }
    }));
    Ok(())
}

/// From here on nobody watches standard error: it is the log's.
pub(super) fn started() {
    let file = FILE.lock();
    STARTING.store(false, Ordering::Relaxed);
    if let Some(file) = &*file {
        let _ = nix::unistd::dup2_stderr(file);
    }
}

/// The log goes to another file from here on.
fn begun(new: &LogFile) {
    let mut file = FILE.lock();
    *file = new.file().ok();
    if let (Some(file), false) = (&*file, STARTING.load(Ordering::Relaxed)) {
        let _ = nix::unistd::dup2_stderr(file);
    }
}

/// Says what was left out and not said, and waits for the last lines, but not for a device that hangs.
pub(super) fn finish() {
    // A start that failed early has lines as well.
    let _ = start_writer(None);
    let untold = LIMITER.get().map_or(0, |limiter| limiter.lock().untold());
    if untold > 0 {
        log::info!("{untold} lines like others before were left out");
    }
    if let Some(writer) = WRITER.get() {
        wait_for(writer);
    }
}

/// Waits until what was sent before is in the file, for a second at most.
fn wait_for(writer: &Sender<Line>) {
    let (mark, written) = bounded(0);
    if writer.try_send(Line::Mark(mark)).is_ok() {
        let _ = written.recv_timeout(LAST_LINES_TIMEOUT);
    }
}

/// Logs a panic and waits until that is written, past the logger, whose lock the thread may have. False where it has
/// to be printed: in the foreground, and on the thread that writes the log.
fn log_panic(panic: &PanicHookInfo<'_>) -> bool {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let Some(writer) = WRITER.get().filter(|_| name != WRITER_NAME) else { return false };
    // The thread may be the one that has the limiter.
    if let Some(mut limiter) = LIMITER.get().and_then(Mutex::try_lock)
        && let Some(at) = panic.location()
        && limiter.judge_kind((at.file(), at.line()), None, Instant::now()) == Verdict::LeaveOut
    {
        return true;
    }
    let why = panic.payload_as_str().unwrap_or("no text").replace('\n', " ");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let now = Timestamp::now();
    let line = format!("[{now:.3} ERROR swapfs] thread {name} panicked at {place}: {why}\n");
    let _ = writer.try_send(Line::Text(line.into_bytes()));
    wait_for(writer);
    true
}

/// Starts the thread that writes the file, where there is one to be written. It takes no signals: those are for the daemon's
/// own threads. A folder that was opened anew since is told.
pub(super) fn start_writer(swap: Option<&SwapFolder>) -> Result<(), String> {
    let Some((mut file, lines)) = UNWRITTEN.lock().take() else { return Ok(()) };
    let start = || {
        if let Some(swap) = swap {
            file.move_to(swap)?;
        }
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let started = std::thread::Builder::new()
            .name(WRITER_NAME.to_owned())
            .spawn(move || outlive(|| write_lines(&mut file, &lines)));
        before.thread_set_mask()?;
        started.map(drop)
    };
    start().map_err(|error: io::Error| format!("cannot start a thread: {}", reason(&error)))
}

fn write_lines(file: &mut LogFile, lines: &Receiver<Line>) {
    while let Ok(line) = lines.recv() {
        if let Line::Text(text) = line
            && file.write(&text)
        {
            begun(file);
        }
    }
}

/// Hands lines over without ever waiting.
struct Lines {
    lines: Sender<Line>,
    dropped: u64,
}

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut all = Vec::new();
        if self.dropped > 0 {
            all.extend_from_slice(format!("[{} lines were dropped]\n", self.dropped).as_bytes());
        }
        all.extend_from_slice(text);
        match self.lines.try_send(Line::Text(all)) {
            Ok(()) => self.dropped = 0,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped += 1;
                Counts::count(&LINES.dropped);
            }
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct DaemonLog(env_logger::Logger);

impl log::Log for DaemonLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.0.matches(record) {
            return;
        }
        let limiter = LIMITER.get_or_init(Mutex::default);
        let verdict = limiter.lock().decide(record, Instant::now());
        let Verdict::Log { left_out } = verdict else { return };
        if left_out > 0 {
            let mut note = log::Record::builder();
            note.level(record.level()).target(record.target());
            let text = format_args!("{left_out} lines like the next one were left out");
            self.0.log(&note.args(text).build());
        }
        self.0.log(record);
        if record.level() <= log::Level::Warn && STARTING.load(Ordering::Relaxed) {
            tell!("{}: {}", record.level().as_str().to_lowercase(), record.args());
        } else if record.target() == TO_THE_USER && STARTING.load(Ordering::Relaxed) {
            tell!("{}", record.args());
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}
