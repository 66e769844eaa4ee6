//! `/run/mount/utab`, where mount(8) and umount(8) keep what the kernel does not.
//!
//! umount(8) asks statfs(2) first what kind of filesystem it has to do with, and that says `fuse` for all of
//! FUSE; only for a mountpoint that is in this table does it look further and find the helper that
//! synchronizes first. What cannot be written here is left out: the helper is then not called, and the
//! daemon finishes alone.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::FS_TYPE;
use crate::sys_process::reason;

const FOLDER: &str = "/run/mount";

/// Says that umount(8) is to call its helper for this mount.
pub(super) fn add(source: &OsStr, mountpoint: &Path) {
    let line = line(source, mountpoint);
    report(change(Path::new(FOLDER), mountpoint, Some(&line)));
}

/// Takes that back, when the mount is gone.
pub(super) fn remove(mountpoint: &Path) {
    // Without a table there is nothing to take back.
    if Path::new(FOLDER).join("utab").exists() {
        report(change(Path::new(FOLDER), mountpoint, None));
    }
}

fn report(changed: io::Result<()>) {
    if let Err(error) = changed {
        log::debug!("{FOLDER}/utab: {}", reason(&error));
    }
}

fn line(source: &OsStr, mountpoint: &Path) -> Vec<u8> {
    let mut line = b"SRC=".to_vec();
    line.extend(escape(source));
    line.extend(b" TARGET=");
    line.extend(escape(mountpoint.as_os_str()));
    line.extend(b" ROOT=/ OPTS=uhelper=");
    line.extend(FS_TYPE.as_bytes());
    line.push(b'\n');
    line
}

/// Octal escapes, as in the kernel's own table.
fn escape(text: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            _ => escaped.push(*byte),
        }
    }
    escaped
}

/// Puts `new` in place of the lines about `mountpoint`, under the lock that libmount takes.
fn change(folder: &Path, mountpoint: &Path, new: Option<&[u8]>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let open = |name: &str| {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o644);
        options.open(folder.join(name))
    };
    let lock = open("utab.lock")?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let table = folder.join("utab");
    let old = match std::fs::read(&table) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut target = b"TARGET=".to_vec();
    target.extend(escape(mountpoint.as_os_str()));
    let others = old.split_inclusive(|byte| *byte == b'\n').filter(|line| {
        let mut fields = line.trim_ascii_end().split(|byte| *byte == b' ');
        !fields.any(|field| field == target)
    });
    let mut text: Vec<u8> = others.flatten().copied().collect();
    text.extend(new.unwrap_or_default());
    if text == old {
        return Ok(());
    }
    let next = format!("utab.swapfs-{}", std::process::id());
    let mut file = open(&next)?;
    file.set_len(0)?;
    file.write_all(&text)?;
    std::fs::rename(folder.join(next), table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("utab");
        let other = "SRC=/dev/x TARGET=/mnt/s\\040t2 ROOT=/ OPTS=user=me\n";
        std::fs::write(&table, other).unwrap();
        let at = Path::new("/mnt/s t");
        let new = line(OsStr::new("/swap"), at);
        for _ in 0..2 {
            change(folder.path(), at, Some(&new)).unwrap();
            let expected = "SRC=/swap TARGET=/mnt/s\\040t ROOT=/ OPTS=uhelper=fuse.swapfs\n";
            assert_eq!(std::fs::read_to_string(&table).unwrap(), format!("{other}{expected}"));
        }
        change(folder.path(), at, None).unwrap();
        assert_eq!(std::fs::read_to_string(&table).unwrap(), other);
        assert_eq!(folder.path().read_dir().unwrap().count(), 2, "the table and its lock");
    }
}
