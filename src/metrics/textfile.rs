//! Metrics as a file for node_exporter.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes `text` to `path` so that a reader sees the old or the new one whole; readable by everyone, as
/// node_exporter runs as a user of its own.
///
/// # Errors
/// When the folder is not there or may not be written.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Does not end in .prom: node_exporter leaves it alone.
    name.push(format!(".{}", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&fresh, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
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
