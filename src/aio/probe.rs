//! What a swap folder's filesystem demands of direct I/O, asked and tried.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::file::errno;
use crate::error::Result;
use crate::trust;

/// `STATX_DIOALIGN` of `linux/stat.h` (Linux 6.1).
const STATX_DIOALIGN: u32 = 0x2000;

/// Alignments tried where the filesystem does not tell, smallest first, in bytes.
const ALIGNMENTS_TRIED: [usize; 2] = [512, 4096];

/// Largest alignment believed, in bytes.
const ALIGNMENT_MAX: usize = 1 << 20;

/// How transfers to a folder's files must be aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Whether files can be opened with O_DIRECT and such a write and read succeeded.
    pub direct: bool,
    /// Bytes; memory addresses must be multiples of it. 512 when not direct.
    pub memory_alignment: usize,
    /// Bytes; offsets and lengths must be multiples of it. 512 when not direct.
    pub offset_alignment: usize,
    /// Whether the filesystem stated these alignments itself (statx, Linux 6.1).
    pub stated: bool,
}

impl Probe {
    /// The one alignment that satisfies both, at least 512 bytes.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.memory_alignment.max(self.offset_alignment).max(512)
    }
}

/// Finds out by writing to and reading from a nameless temporary file in `folder`. Blocks for these
/// two small transfers.
///
/// # Errors
///
/// Those of creating a file in the folder: EACCES, EROFS, ENOSPC, ... A filesystem without direct I/O is
/// no error.
pub fn probe(folder: BorrowedFd<'_>) -> Result<Probe> {
    let mut refused =
        Probe { direct: false, memory_alignment: 512, offset_alignment: 512, stated: false };
    let file = match create(folder, OFlags::DIRECT) {
        Ok(file) => file,
        // EINVAL is open's answer where O_DIRECT is not supported.
        Err(Errno::INVAL) => {
            create(folder, OFlags::empty()).map_err(errno)?;
            return Ok(refused);
        }
        // A full disk is no reason not to serve what is on it.
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => match open_there(folder) {
            Some(file) => file,
            None => return Err(errno(error)),
        },
        Err(error) => return Err(errno(error)),
    };
    let stated = match stated_alignment(file.as_fd()) {
        // Asked and answered: this file does no direct I/O, though open took the flag.
        Some((_, 0)) => {
            refused.stated = true;
            return Ok(refused);
        }
        stated => stated,
    };
    refused.stated = stated.is_some();
    let (stated, tried) = match stated {
        Some(both) => ([both; 2], 1),
        None => (ALIGNMENTS_TRIED.map(|alignment| (alignment, alignment)), 2),
    };
    let largest = stated[stated.len() - 1];
    for (memory_alignment, offset_alignment) in stated.into_iter().take(tried) {
        match try_transfers(file.as_fd(), memory_alignment, offset_alignment) {
            Ok(()) => {
                return Ok(Probe { direct: true, memory_alignment, offset_alignment, ..refused });
            }
            // Nothing could be tried on a full disk (BADF: in a file that was there). What the filesystem states
            // stands; without a word of its own the largest is right for the smaller ones too.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::BADF) => {
                let known =
                    if refused.stated { (memory_alignment, offset_alignment) } else { largest };
                let (memory_alignment, offset_alignment) = known;
                return Ok(Probe { direct: true, memory_alignment, offset_alignment, ..refused });
            }
            Err(error) => log::debug!("O_DIRECT with {offset_alignment} bytes: {error}"),
        }
    }
    Ok(refused)
}

/// The mount's own lock file, which is there when a new one cannot be made; for direct reading.
fn open_there(folder: BorrowedFd<'_>) -> Option<OwnedFd> {
    let control = trust::open_folder(folder, ".swapfs").ok()?;
    trust::open_file(control, "lock", OFlags::RDONLY | OFlags::DIRECT).ok().map(OwnedFd::from)
}

/// A new file for reading and writing, with no name in the folder.
pub(crate) fn create(folder: BorrowedFd<'_>, extra: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | extra;
    match rustix::fs::openat(folder, c".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        result => return result,
    }
    let name = format!(".swapfs-probe-{}", std::process::id());
    let flags = flags | OFlags::CREATE | OFlags::EXCL;
    let result = rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR);
    // A refused O_DIRECT may leave the file behind, so this is not only for success.
    if !matches!(result, Err(Errno::EXIST)) {
        let _ = rustix::fs::unlinkat(folder, &name, AtFlags::empty());
    }
    result
}

/// What the filesystem says: memory and offset alignment, `(0, 0)` for no direct I/O; `None` when
/// it does not say.
pub(crate) fn stated_alignment(file: BorrowedFd<'_>) -> Option<(usize, usize)> {
    let mask = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let statx = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, mask).ok()?;
    if statx.stx_mask & STATX_DIOALIGN == 0 {
        return None;
    }
    let memory = usize::try_from(statx.stx_dio_mem_align).ok()?;
    let offset = usize::try_from(statx.stx_dio_offset_align).ok()?;
    let believable = |value: usize| value.is_power_of_two() && value <= ALIGNMENT_MAX;
    match (memory, offset) {
        (_, 0) => Some((0, 0)),
        _ if believable(memory) && believable(offset) => Some((memory, offset)),
        _ => None,
    }
}

/// Writes `length` bytes at offset `length` and reads them back, at an address that is a multiple
/// of `memory_alignment`.
fn try_transfers(
    file: BorrowedFd<'_>, memory_alignment: usize, length: usize,
) -> rustix::io::Result<()> {
    let mut memory = vec![0x5A_u8; length + memory_alignment];
    let start = memory.as_ptr().addr().next_multiple_of(memory_alignment) - memory.as_ptr().addr();
    let buffer = &mut memory[start..start + length];
    let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, &*buffer, length as u64))?;
    buffer.fill(0);
    let read = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buffer, length as u64))?;
    let same = buffer.iter().all(|byte| *byte == 0x5A);
    if written == length && read == length && same { Ok(()) } else { Err(Errno::IO) }
}

/// Why the filesystem of `folder` cannot promise space for bytes it has accepted; `None` when
/// fallocate(2) does. Copy-on-write filesystems take new space for every rewrite.
#[must_use]
pub fn unreservable(folder: BorrowedFd<'_>) -> Option<&'static str> {
    const BTRFS: i64 = 0x9123_683E;
    const ZFS: i64 = 0x2FC1_2FC1;
    const BCACHEFS: i64 = 0xCA45_1A4E;
    match rustix::fs::fstatfs(folder).ok()?.f_type as i64 {
        BTRFS => return Some("btrfs does not reserve space for rewrites"),
        ZFS => return Some("ZFS does not reserve space"),
        BCACHEFS => return Some("bcachefs does not reserve space for rewrites"),
        _ => {}
    }
    let file = create(folder, OFlags::empty()).ok()?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 4096) {
        Err(rustix::io::Errno::OPNOTSUPP) => Some("the filesystem has no fallocate"),
        _ => None,
    }
}

/// Whether files of `folder` can share blocks (`cp --reflink`): a rewrite of shared ones takes new space, which
/// fallocate(2) does not promise. Tried with two nameless files.
#[must_use]
pub fn shares_blocks(folder: BorrowedFd<'_>) -> bool {
    let both = (create(folder, OFlags::empty()), create(folder, OFlags::empty()));
    let (Ok(from), Ok(to)) = both else { return false };
    let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&from, &[1; 4096], 0));
    written == Ok(4096) && rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_on_disk_and_in_memory_are_probed() {
        for path in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
            let folder = std::fs::File::open(path).unwrap();
            let found = probe(folder.as_fd()).unwrap();
            println!("{path}: {found:?}");
            assert!(found.alignment().is_power_of_two());
            assert!(found.alignment() >= 512);
        }
    }

    #[test]
    fn unwritable_folder_is_an_error() {
        let folder = std::fs::File::open("/proc").unwrap();
        assert!(probe(folder.as_fd()).is_err());
    }
}
