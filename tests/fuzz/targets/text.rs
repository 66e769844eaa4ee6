//! Text that users and the kernel give: configuration files, mount options, sizes, the table of mounts.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use swapfs::config::{Config, ConfigError, Settings};
use swapfs::units::{format_exact, format_short, parse_size};

/// A file with these bytes, and the path to it.
fn file(bytes: &[u8]) -> (std::fs::File, PathBuf) {
    let memory = rustix::fs::memfd_create("config", MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes).unwrap();
    // As one that its reader has made: only such a file may name one to be replaced.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

/// "one clear line naming what was wrong and what is accepted".
fn is_one_line(error: &ConfigError) {
    let line = error.to_string();
    assert!(!line.is_empty() && line.len() < 2000, "{line}");
    assert!(!line.chars().any(char::is_control), "{line:?}");
}

/// Everything but the origins.
fn values(config: &Config) -> Vec<(&'static str, String)> {
    config.rows().into_iter().map(|row| (row.key, row.value)).collect()
}

/// Any file is taken, or refused in one line; what is taken is the same when it is written down and read again.
pub(crate) fn config(input: &[u8]) {
    let (_file, path) = file(input);
    let mut settings = Settings::new();
    if let Err(error) = settings.read_file(&path) {
        return is_one_line(&error);
    }
    let config = match settings.build() {
        Ok(config) => config,
        Err(error) => return is_one_line(&error),
    };
    if let Err(error) = config.nvme_path() {
        is_one_line(&error);
    }
    let _ = (config.pool_note(), config.to_json().to_string());
    for line in config.warnings() {
        assert!(!line.contains('\n'), "{line:?}");
    }
    assert!(config.pool_size / config.block_size >= 8 && config.read_ahead <= config.pool_size);
    let (_again, path) = file(config.to_template().to_string().as_bytes());
    let mut settings = Settings::new();
    settings.read_file(&path).unwrap();
    assert_eq!(values(&settings.build().unwrap()), values(&config));
}

/// As above, of a list of mount options; with and without tolerance for unknown ones.
pub(crate) fn options(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for sloppy in [false, true] {
        let mut settings = Settings::new();
        let built = settings.mount_options(text, sloppy).and_then(|()| settings.build());
        let config = match built {
            Ok(config) => config,
            Err(error) => {
                is_one_line(&error);
                continue;
            }
        };
        let list: Vec<String> =
            config.rows().iter().map(|row| format!("{}=\"{}\"", row.key, row.value)).collect();
        let mut settings = Settings::new();
        settings.mount_options(&list.join(","), false).unwrap();
        assert_eq!(values(&settings.build().unwrap()), values(&config));
    }
    for flag in ["pool_size", "log", "open_swap_in", "list_xattr", "queue_depth", "nonsense"] {
        if let Err(error) = Settings::new().flag(flag, text) {
            is_one_line(&error);
        }
    }
}

/// A size that is understood is the same when it is printed and read again.
pub(crate) fn size(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some(bytes) = parse_size(text) else { return };
    assert_eq!(parse_size(&format_exact(bytes)), Some(bytes));
    assert!(!format_short(bytes).is_empty());
    // Nothing but blanks, digits, a point and letters is a size.
    let plain =
        |letter: char| letter.is_ascii_alphanumeric() || letter == '.' || letter.is_whitespace();
    assert!(text.chars().all(plain), "{text:?}");
}

/// The table of mounts has names that users chose: whatever they are, they stay within their line.
pub(crate) fn mounts(input: &[u8]) {
    let lines = input.split(|byte| *byte == b'\n').count();
    let found = swapfs::mount::parse_mount_table(input);
    assert!(found.len() <= lines);
    for mount in found {
        assert!(mount.mountpoint.as_os_str().len() <= input.len());
        assert!(!mount.fs_type.contains(' '));
    }
}
