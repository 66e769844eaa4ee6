//! Metrics as a file for node_exporter.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use crate::trust::is_named;

/// Writes `text` to `path` so that a reader sees the old or the new one whole; readable by everyone, as
/// node_exporter runs as a user of its own.
///
/// # Errors
/// When the folder is not there or may not be written.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Opened once: between two uses of its path somebody may put another one there.
    let folder = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    let mut fresh = name.to_owned();
    // Does not end in .prom: node_exporter leaves it alone.
    fresh.push(format!(".{}", std::process::id()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(&folder, &fresh, flags, Mode::from_raw_mode(0o644))?);
    let written = (&file)
        .write_all(text.as_bytes())
        .and_then(|()| Ok(renameat(&folder, &fresh, &folder, name)?));
    if written.is_err() && is_named(&folder, &fresh, &file).unwrap_or(false) {
        let _ = unlinkat(&folder, &fresh, AtFlags::empty());
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_textfile_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swapfs.prom");
        for text in ["a 1\n", "a 2\n"] {
            write_textfile(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        assert!(write_textfile(&folder.path().join("no/swapfs.prom"), "").is_err());
    }
}
