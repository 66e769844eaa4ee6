//! Lines for the log: made under the lock, written after it is free.

use crate::aio::device::BackingFile;
use crate::paths::plain;
use std::sync::Arc;
use std::time::Duration;

use super::lock::assert_outside;
/// Something for the log that is no failed transfer.
pub(crate) enum Note {
    /// Bytes from `offset` on that could not be written were given up.
    Dropped { file: Arc<dyn BackingFile>, offset: u64 },
    /// A file of `known` bytes now has `found`, although nobody changed it through the mount.
    Changed { file: Arc<dyn BackingFile>, known: u64, found: u64 },
}

impl Note {
    pub(super) fn log(&self) {
        match self {
            Note::Dropped { file, offset } => {
                let name = label(&**file);
                log::error!(
                    partition = name.as_str();
                    "bytes of {name} at {offset} that could not be written were dropped: the pool has no other room"
                );
            }
            Note::Changed { file, known, found } => {
                let name = label(&**file);
                log::warn!(
                    partition = name.as_str();
                    "{name} was changed beneath the mount: {known} bytes became {found}"
                );
            }
        }
    }
}

/// A failed transfer, for its log line.
pub(crate) struct Failure {
    pub(crate) operation: &'static str,
    pub(crate) file: Arc<dyn BackingFile>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) errno: crate::error::Errno,
}

impl Failure {
    pub(super) fn log(&self) {
        let name = label(&*self.file);
        log::error!(
            partition = name.as_str();
            "{} of {name} failed: offset {}, length {}: {:?} ({})",
            self.operation,
            self.offset,
            self.length,
            self.errno,
            self.errno.desc()
        );
    }
}

/// A change to be told in the log.
pub(crate) struct Stall {
    pub(super) file: Arc<dyn BackingFile>,
    pub(super) waited: Duration,
    pub(super) ended: bool,
}

impl Stall {
    pub(crate) fn log(&self) {
        let (name, s) = (label(&*self.file), self.waited.as_secs());
        match self.ended {
            false => {
                log::error!(partition = name.as_str(); "{name}: the device has not answered for {s} s, still waiting");
            }
            true => {
                log::warn!(partition = name.as_str(); "{name}: the device answers again, after {s} s");
            }
        }
    }
}

/// The backing file's path for messages. Asks the kernel.
pub(crate) fn label(file: &dyn BackingFile) -> String {
    assert_outside("naming a file");
    file.descriptor()
        .and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .map_or_else(|| format!("partition #{}", file.id()), |path| plain(&path))
}
