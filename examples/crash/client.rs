//! One client: changes its files, remembers every call, and goes on until the daemon is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, XattrFlags};

use crate::history::{Change, History};

/// No file becomes longer, in bytes.
const LENGTH_MAX: u64 = 6 << 20;

/// Longest call in bytes: one request of the kernel's, so that a call is done to a block wholly or not.
const CALL_MAX: u64 = 1 << 20;

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Bytes that begin with a page of memory, as a request needs to stay whole.
struct Pages {
    memory: Vec<u8>,
    start: usize,
}

impl Pages {
    fn new() -> Pages {
        let memory = vec![0; CALL_MAX as usize + 4096];
        let address = memory.as_ptr().addr();
        Pages { start: address.next_multiple_of(4096) - address, memory }
    }

    /// Fills `length` bytes with what belongs to `seed`, nowhere zero.
    fn fill(&mut self, seed: u64, length: usize) -> &[u8] {
        let bytes = &mut self.memory[self.start..][..length];
        let mut random = Random::new(seed);
        for piece in bytes.chunks_mut(8) {
            let word = (random.next() | 0x0101_0101_0101_0101).to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
        bytes
    }
}

/// A file of a client's.
pub(crate) struct Owned {
    pub(crate) name: String,
    pub(crate) history: History,
    file: Option<File>,
}

impl Owned {
    pub(crate) fn new(name: String) -> Owned {
        Owned { name, history: History::default(), file: None }
    }
}

/// A client and its files.
pub(crate) struct Client {
    pub(crate) files: Vec<Owned>,
    random: Random,
    pages: Pages,
    /// Calls that returned.
    pub(crate) calls: u64,
}

/// Whether a call failed because the daemon is gone. Of a direct call that several requests serve the kernel
/// then says EIO, so that the mount itself is asked.
fn is_gone(mnt: &Path, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED) => true,
        Some(libc::EIO) => {
            use rustix::io::Errno;
            // A thread of a killed daemon may live a moment longer than the one whose transfers it takes back,
            // and pass on that they were cancelled.
            (0..200).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                matches!(rustix::fs::statfs(mnt), Err(Errno::NOTCONN | Errno::CONNABORTED))
            })
        }
        _ => false,
    }
}

impl Client {
    pub(crate) fn new(number: usize, seed: u64) -> Client {
        let files = (0..3).map(|file| Owned::new(format!("client-{number}-{file}"))).collect();
        Client { files, random: Random::new(seed), pages: Pages::new(), calls: 0 }
    }

    /// Makes the files and puts their names on stable storage.
    pub(crate) fn prepare(&mut self, mnt: &Path) -> io::Result<()> {
        for file in &mut self.files {
            let made = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(mnt.join(&file.name))?;
            made.sync_all()?;
        }
        Ok(())
    }

    /// Works until the daemon is gone, or `stop` is set.
    pub(crate) fn run(&mut self, mnt: &Path, stop: &AtomicBool) -> Result<(), String> {
        while !stop.load(Ordering::Relaxed) {
            let index = self.random.below(self.files.len() as u64) as usize;
            match self.step(mnt, index) {
                Ok(()) => self.calls += 1,
                Err(error) if is_gone(mnt, &error) => break,
                Err(error) => return Err(format!("{}: at work: {error}", self.files[index].name)),
            }
        }
        self.files.iter_mut().for_each(|file| file.file = None);
        Ok(())
    }

    fn open(&mut self, mnt: &Path, index: usize) -> io::Result<()> {
        let path: PathBuf = mnt.join(&self.files[index].name);
        let flags = self.random.pick(&[0, 0, libc::O_DIRECT, libc::O_DSYNC]);
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        self.files[index].file = Some(file);
        Ok(())
    }

    fn step(&mut self, mnt: &Path, index: usize) -> io::Result<()> {
        if self.files[index].file.is_none() || self.random.below(40) == 0 {
            self.open(mnt, index)?;
        }
        match self.random.below(100) {
            0..45 => self.write(index),
            45..60 => self.stream(index),
            60..66 => self.resize(index),
            66..70 => self.punch(index),
            70..80 => self.read(index),
            80..90 => self.synchronize(index),
            90..93 => self.synchronize_all(mnt),
            93..97 => self.ask(mnt, index),
            _ => {
                self.files[index].file = None;
                Ok(())
            }
        }
    }

    fn file(&self, index: usize) -> &File {
        self.files[index].file.as_ref().expect("opened before")
    }

    /// Whether writes of a file are on stable storage when they return.
    fn is_stable(&self, index: usize) -> bool {
        let flags = rustix::fs::fcntl_getfl(self.file(index));
        flags.is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DSYNC))
    }

    fn write_at(&mut self, index: usize, offset: u64, length: u64) -> io::Result<()> {
        let seed = self.random.next();
        let stable = self.is_stable(index);
        let data = self.pages.fill(seed, length as usize);
        let owned = &mut self.files[index];
        owned.history.begin(Change::Write(offset, data.to_vec()));
        let file = owned.file.as_ref().expect("opened before");
        let count = file.write_at(data, offset)?;
        if count != data.len() {
            return Err(io::Error::other(format!("{count} of {length} bytes were written")));
        }
        if stable {
            owned.history.synchronized_range(offset..offset + length);
        }
        Ok(())
    }

    fn write(&mut self, index: usize) -> io::Result<()> {
        let length = 1 + match self.random.below(4) {
            0 => self.random.below(600),
            1 => self.random.below(9000),
            2 => self.random.below(100_000),
            _ => self.random.below(CALL_MAX),
        };
        let end = self.files[index].history.length().min(LENGTH_MAX - length);
        let mut offset = self.random.below(end + 1);
        if self.random.below(2) == 0 {
            offset = offset / 4096 * 4096;
        }
        self.write_at(index, offset, length)
    }

    /// Several calls, one behind the other.
    fn stream(&mut self, index: usize) -> io::Result<()> {
        let length = self.random.pick(&[4096, 65_536, 262_144, CALL_MAX, 100_001]);
        let mut offset = self.files[index].history.length();
        if offset + 4 * length > LENGTH_MAX {
            offset = 0;
        }
        for _ in 0..4 {
            self.write_at(index, offset, length)?;
            offset += length;
        }
        Ok(())
    }

    fn resize(&mut self, index: usize) -> io::Result<()> {
        let length =
            self.random.below(self.files[index].history.length() * 5 / 4 + 5000).min(LENGTH_MAX);
        self.files[index].history.begin(Change::Resize(length));
        self.file(index).set_len(length)
    }

    fn punch(&mut self, index: usize) -> io::Result<()> {
        let start = self.random.below(self.files[index].history.length() + 1);
        let length = 1 + self.random.below(300_000);
        self.files[index].history.begin(Change::Punch(start..start + length));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(self.file(index), flags, start, length)?)
    }

    fn read(&mut self, index: usize) -> io::Result<()> {
        let now = self.files[index].history.now();
        let (length, at) = (now.len() as u64, self.files[index].history.length());
        let start = self.random.below(at + 1) / 512 * 512;
        let count = (length - start.min(length)).min(200_000) / 512 * 512;
        let room = self.pages.start;
        let bytes = &mut self.pages.memory[room..][..count as usize];
        let file = self.files[index].file.as_ref().expect("opened before");
        file.read_exact_at(bytes, start)?;
        if bytes != &self.files[index].history.now()[start as usize..][..count as usize] {
            return Err(io::Error::other(format!("wrong bytes at {start} before any crash")));
        }
        Ok(())
    }

    fn synchronize(&mut self, index: usize) -> io::Result<()> {
        match self.random.below(2) {
            0 => self.file(index).sync_all()?,
            _ => self.file(index).sync_data()?,
        }
        self.files[index].history.synchronized();
        Ok(())
    }

    fn synchronize_all(&mut self, mnt: &Path) -> io::Result<()> {
        File::open(mnt)?.sync_all()?;
        self.files.iter_mut().for_each(|file| file.history.synchronized());
        Ok(())
    }

    fn ask(&mut self, mnt: &Path, index: usize) -> io::Result<()> {
        let request = self.random.pick(&["swap_out", "release", "swap_in"]);
        let path = mnt.join(&self.files[index].name);
        match rustix::fs::setxattr(
            path,
            "user.swap.request",
            request.as_bytes(),
            XattrFlags::empty(),
        ) {
            // More than the pool can keep.
            Err(rustix::io::Errno::NOBUFS) => Ok(()),
            result => Ok(result?),
        }
    }
}
