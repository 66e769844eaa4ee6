//! What the tests share: bytes to write, waiting, attributes, users.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Nothing that is waited for takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A small generator (xorshift): the same numbers in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Length of the table of bytes: prime, so that no two blocks of a file are the same.
const TABLE: usize = 1_000_003;

fn table() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut random = Random::new(7);
        (0..TABLE).map(|_| random.below(255) as u8 + 1).collect()
    })
}

/// The bytes that belong at `offset`; never zero.
pub(crate) fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let table = table();
    let mut bytes = Vec::with_capacity(length + TABLE);
    let mut at = (offset % TABLE as u64) as usize;
    while bytes.len() < length {
        bytes.extend_from_slice(&table[at..]);
        at = 0;
    }
    bytes.truncate(length);
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn same(found: &[u8], expected: &[u8]) {
    if found != expected {
        let at = found.iter().zip(expected).position(|(a, b)| a != b);
        panic!(
            "{} bytes where {} are expected, first difference at {at:?}",
            found.len(),
            expected.len()
        );
    }
}

/// Writes the pattern from 0 to `length` in pieces.
pub(crate) fn write_pattern(file: &File, length: u64, piece: usize) {
    let mut at = 0;
    while at < length {
        let bytes = pattern(at, piece.min((length - at) as usize));
        file.write_all_at(&bytes, at).unwrap();
        at += bytes.len() as u64;
    }
}

/// The file is the pattern from 0 to `length` and nothing more.
#[track_caller]
pub(crate) fn is_pattern(path: &Path, length: u64) {
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), length, "{}", path.display());
    let mut bytes = vec![0; 777_777];
    let mut at = 0;
    while at < length {
        let count = file.read_at(&mut bytes, at).unwrap();
        assert!(count > 0, "{} ends at {at}", path.display());
        same(&bytes[..count], &pattern(at, count));
        at += count as u64;
    }
}

/// Bytes that a file occupies.
pub(crate) fn occupied(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Reads an attribute.
pub(crate) fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 8192];
    let count = rustix::fs::getxattr(path, name, value.as_mut_slice())?;
    value.truncate(count);
    Ok(value)
}

/// Reads one of our attributes, by the part of its name after `user.swap.`.
#[track_caller]
pub(crate) fn swap_xattr(path: &Path, name: &str) -> String {
    let value = xattr(path, &format!("user.swap.{name}"));
    String::from_utf8(value.unwrap_or_else(|errno| panic!("{name}: {errno}"))).unwrap()
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
}

/// All attribute names, in the order in which they are listed.
pub(crate) fn xattr_names(path: &Path) -> Vec<String> {
    let mut names = vec![0; 65536];
    let count = rustix::fs::listxattr(path, names.as_mut_slice()).unwrap();
    let names = String::from_utf8(names[..count].to_vec()).unwrap();
    names.split_terminator('\0').map(str::to_owned).collect()
}

/// Everything on stable storage: fsync of the root.
pub(crate) fn sync_all(mnt: &Path) {
    File::open(mnt).unwrap().sync_all().unwrap();
}

/// The errno of a failed call of the standard library.
#[track_caller]
pub(crate) fn errno<T>(result: std::io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => Errno::from_io_error(&error).unwrap(),
    }
}

/// Who does something.
#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'static [u32],
    pub(crate) umask: u32,
}

/// An ordinary user.
pub(crate) const fn user(id: u32) -> User {
    User { uid: id, gid: id, groups: &[], umask: 0o022 }
}

/// Does `work` as `user` in the folder `within`: on a thread of its own, whose identity, working
/// directory and umask are its own.
pub(crate) fn as_user<T: Send>(within: &Path, user: User, work: impl FnOnce() -> T + Send) -> T {
    let joined = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            become_user(within, user);
            work()
        });
        running.join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn become_user(within: &Path, user: User) {
    // SAFETY: the thread shares no descriptors by this, only its directory and umask become its own.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
    // As root: the folders above may be closed to the user.
    std::env::set_current_dir(within).unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(user.umask));
    let groups: Vec<Gid> = user.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    rustix::thread::set_thread_groups(&groups).unwrap();
    let (gid, uid) = (Gid::from_raw(user.gid), Uid::from_raw(user.uid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
}

/// Whether this process may act as other users and mount; says so where a test is left out.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("left out: needs root");
    }
    root
}

/// A mapping of a file, unmapped at the end.
pub(crate) struct Map {
    pub(crate) at: *mut u8,
    pub(crate) length: usize,
}

impl Map {
    pub(crate) fn new(file: &File, length: usize, shared: bool, writable: bool) -> Map {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let flags = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        let protection = match writable {
            true => ProtFlags::READ | ProtFlags::WRITE,
            false => ProtFlags::READ,
        };
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file.as_fd(), 0) };
        Map { at: at.unwrap().cast(), length }
    }

    /// A copy of some bytes.
    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping.
        let from = unsafe { self.at.add(offset) };
        // SAFETY: as above, and the target is as long.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length) };
        bytes
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: within the mapping.
        let to = unsafe { self.at.add(offset) };
        // SAFETY: as above; the tests map for writing where they write.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// msync(MS_SYNC) of all of it.
    pub(crate) fn sync(&self) {
        let flags = rustix::mm::MsyncFlags::SYNC;
        // SAFETY: the whole mapping.
        unsafe { rustix::mm::msync(self.at.cast(), self.length, flags) }.unwrap();
    }

    /// Pages of the file that are in the page cache.
    pub(crate) fn cached_pages(&self) -> usize {
        let mut pages = vec![0_u8; self.length.div_ceil(4096)];
        // SAFETY: one byte for each page of the mapping.
        let result = unsafe { libc::mincore(self.at.cast(), self.length, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.at.cast(), self.length) };
    }
}

/// mkfifo(3), which makes a node that is no regular file.
pub(crate) fn make_fifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o644) }, 0);
}
