//! Where the daemon's log goes: standard error in the foreground, else `SWAP_FOLDER/.swapfs/log`.
//! Until the mount answers, warnings and errors of a background daemon reach the user as well.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, openat, renameat};

use super::SwapFolder;
use crate::sys_process::reason;

/// A log file of this many bytes is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;

static STARTING: AtomicBool = AtomicBool::new(false);

/// Starts logging by the filter. The first call counts.
pub(super) fn start(filter: &str, swap: &SwapFolder, foreground: bool) -> Result<(), String> {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter).format_timestamp_millis();
    if !foreground {
        let file = open(swap).map_err(|error| {
            format!("{}/.swapfs/log: {}", swap.path().display(), reason(&error.into()))
        })?;
        builder.target(env_logger::Target::Pipe(Box::new(file)));
        STARTING.store(true, Ordering::Relaxed);
    }
    let logger = builder.build();
    let level = logger.filter();
    if log::set_boxed_logger(Box::new(DaemonLog(logger))).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// From here on nobody watches standard error.
pub(super) fn started() {
    STARTING.store(false, Ordering::Relaxed);
}

fn open(swap: &SwapFolder) -> rustix::io::Result<File> {
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = || openat(swap.control(), "log", flags, Mode::RUSR | Mode::WUSR).map(File::from);
    let file = open()?;
    if file.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        renameat(swap.control(), "log", swap.control(), "log.1")?;
        return open();
    }
    Ok(file)
}

struct DaemonLog(env_logger::Logger);

impl log::Log for DaemonLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.log(record);
        let for_user = record.level() <= log::Level::Warn && self.0.matches(record);
        if for_user && STARTING.load(Ordering::Relaxed) {
            eprintln!("swapfs: {}: {}", record.level().as_str().to_lowercase(), record.args());
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}
