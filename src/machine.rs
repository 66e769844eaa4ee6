//! What is read of the machine: files that the daemon does not see any more once it has shut itself in.

use std::io;
use std::num::NonZero;
use std::sync::OnceLock;

/// A number that changes when the machine is started.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Who may use io_uring.
pub(crate) const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
/// What puts idle processors to sleep.
pub(crate) const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
/// Huge pages of 2 MiB that nobody has, and those of them that are promised to somebody.
pub(crate) const HUGE_PAGES_FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
/// See [`HUGE_PAGES_FREE`].
pub(crate) const HUGE_PAGES_RESERVED: &str =
    "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";

const FILES: [&str; 5] =
    [BOOT_ID, IO_URING_DISABLED, IDLE_DRIVER, HUGE_PAGES_FREE, HUGE_PAGES_RESERVED];

#[derive(Debug)]
struct Known {
    files: Vec<(&'static str, String)>,
    processors: usize,
}

static KNOWN: OnceLock<Known> = OnceLock::new();

/// Reads everything, to be known when the files are out of sight.
pub(crate) fn remember() {
    KNOWN.get_or_init(|| {
        let read = |path| Some((path, std::fs::read_to_string(path).ok()?));
        Known { files: FILES.into_iter().filter_map(read).collect(), processors: count() }
    });
}

/// The text of one of the files above, without the blanks at its ends.
///
/// # Errors
/// When it can neither be read nor is remembered.
pub(crate) fn text(path: &str) -> io::Result<String> {
    let read = std::fs::read_to_string(path);
    let text = read.or_else(|error| {
        let known =
            KNOWN.get().and_then(|known| known.files.iter().find(|(name, _)| *name == path));
        known.map(|(_, text)| text.clone()).ok_or(error)
    })?;
    Ok(text.trim().to_owned())
}

/// How many processors this process may use.
pub(crate) fn processors() -> usize {
    // The limits of control groups are read from files.
    KNOWN.get().map_or_else(count, |known| known.processors)
}

fn count() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_sight_is_remembered() {
        let seen = text(BOOT_ID).unwrap();
        assert_eq!(seen.len(), 36);
        remember();
        assert_eq!(processors(), count());
        let known = KNOWN.get().unwrap();
        assert!(known.files.iter().any(|(path, text)| *path == BOOT_ID && text.trim() == seen));
        assert!(text("/sys/nothing").is_err());
    }
}
