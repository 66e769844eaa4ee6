//! What the clients do. Each keeps a few files, knows what is in them, and reads them back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, XattrFlags};

use crate::Shared;

const MIB: u64 = 1 << 20;

/// A client's habit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whole files from the beginning to the end, larger together than the pool.
    Stream,
    /// The same with O_DIRECT.
    Direct,
    /// Small pieces anywhere.
    Random,
    /// Many small files that come, are renamed, and go.
    Churn,
    /// Grows, cuts, punches.
    Shape,
    /// Reads through a mapping what it has written.
    Map,
    /// Asks for partitions to be swapped in and out, and where they are.
    Ask,
}

/// The clients of a soak.
pub(crate) const KINDS: [Kind; 10] = [
    Kind::Stream,
    Kind::Stream,
    Kind::Direct,
    Kind::Direct,
    Kind::Random,
    Kind::Random,
    Kind::Churn,
    Kind::Shape,
    Kind::Map,
    Kind::Ask,
];

/// A file and what it holds.
struct Known {
    name: String,
    bytes: Vec<u8>,
}

pub(crate) struct Client {
    number: usize,
    kind: Kind,
    mnt: PathBuf,
    state: u64,
    files: Vec<Known>,
    made: u64,
    stream_bytes: u64,
}

/// Memory that O_DIRECT takes as it is.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(length: usize) -> Aligned {
        let memory = vec![0; length + 4096];
        let address = memory.as_ptr().addr();
        Aligned { start: address.next_multiple_of(4096) - address, memory }
    }

    fn bytes(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.start..][..length]
    }
}

fn same(found: &[u8], expected: &[u8], what: &str) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    Err(format!("{what}: wrong bytes, {} of {}, first at {at:?}", found.len(), expected.len()))
}

impl Client {
    pub(crate) fn new(number: usize, kind: Kind, seed: u64, mnt: &Path, pool_mib: u64) -> Client {
        let state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (number as u64) << 32 | 1;
        let stream_bytes = pool_mib * MIB * 3 / 4;
        Client {
            number,
            kind,
            mnt: mnt.to_owned(),
            state,
            files: Vec::new(),
            made: 0,
            stream_bytes,
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 11
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn data(&mut self, length: usize) -> Vec<u8> {
        let mut word = self.next() | 0x0101_0101_0101_0101;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            word = word.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 0x0101_0101_0101_0101;
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("soak-{}-{}", self.number, self.made)
    }

    pub(crate) fn run(&mut self, shared: &Shared) -> Result<(), String> {
        while !shared.stopped() {
            let done = match self.kind {
                Kind::Stream => self.stream(shared, false),
                Kind::Direct => self.stream(shared, true),
                Kind::Random => self.random(shared),
                Kind::Churn => self.churn(shared),
                Kind::Shape => self.shape(shared),
                Kind::Map => self.map(shared),
                Kind::Ask => self.ask(shared),
            };
            done.map_err(|line| format!("client {} ({:?}): {line}", self.number, self.kind))?;
        }
        Ok(())
    }

    /// Every file that is left, at another place perhaps.
    pub(crate) fn check_all(&mut self, folder: &Path) -> Result<(), String> {
        for file in &self.files {
            let found = std::fs::read(folder.join(&file.name));
            let found = found.map_err(|error| format!("{}: {error}", file.name))?;
            same(&found, &file.bytes, &file.name)?;
        }
        Ok(())
    }

    fn stream(&mut self, shared: &Shared, direct: bool) -> Result<(), String> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let number = self.made % 2;
        let name = format!("soak-{}-{number}", self.number);
        self.made += 1;
        let path = self.mnt.join(&name);
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true).custom_flags(flags);
        let file = shared.timed("open", 0, || options.open(&path))?;
        let piece = [65_536, 262_144, 1 << 20][self.below(3) as usize];
        let length = self.stream_bytes / 2 + if direct { 0 } else { self.below(5000) };
        let base = self.data(piece);
        let turn = |index: u64| (index as usize * 4099) % piece;
        let mut room = Aligned::new(piece);
        let mut at = 0;
        while at < length {
            let count = (piece as u64).min(length - at) as usize;
            let bytes = room.bytes(count);
            let mut turned = base.clone();
            turned.rotate_left(turn(at / piece as u64));
            bytes.copy_from_slice(&turned[..count]);
            shared.timed("write", count as u64, || file.write_all_at(bytes, at))?;
            at += count as u64;
        }
        if self.below(2) == 0 {
            shared.timed("fsync", 0, || file.sync_all())?;
        }
        if self.below(2) == 0 {
            ask(shared, &path, "release")?;
        }
        let mut at = 0;
        while at < length && !shared.stopped() {
            let count = (piece as u64).min(length - at) as usize;
            let bytes = room.bytes(count);
            shared.timed("read", count as u64, || file.read_exact_at(bytes, at))?;
            let mut turned = base.clone();
            turned.rotate_left(turn(at / piece as u64));
            same(bytes, &turned[..count], &format!("{name} from {at}"))?;
            at += count as u64;
        }
        shared.timed("close", 0, || {
            drop(file);
            Ok(())
        })
    }

    /// The file with this number, made where there is none.
    fn known(&mut self, shared: &Shared, index: usize, length: usize) -> Result<File, String> {
        if self.files.len() <= index {
            let name = self.new_name();
            let bytes = self.data(length);
            let path = self.mnt.join(&name);
            shared
                .timed("write of a whole file", length as u64, || std::fs::write(path, &bytes))?;
            self.files.push(Known { name, bytes });
        }
        let path = self.mnt.join(&self.files[index].name);
        shared.timed("open", 0, || File::options().read(true).write(true).open(path))
    }

    fn random(&mut self, shared: &Shared) -> Result<(), String> {
        let index = self.below(3).min(self.files.len() as u64) as usize;
        let file = self.known(shared, index, (self.number + 1) * 1_300_003)?;
        for _ in 0..50 {
            let size = self.files[index].bytes.len() as u64;
            let length = 1 + self.below(20_000).min(size - 1);
            let at = self.below(size - length + 1);
            let range = at as usize..(at + length) as usize;
            if self.below(2) == 0 {
                let data = self.data(length as usize);
                self.files[index].bytes[range].copy_from_slice(&data);
                shared.timed("write", length, || file.write_all_at(&data, at))?;
            } else {
                let mut found = vec![0; length as usize];
                shared.timed("read", length, || file.read_exact_at(&mut found, at))?;
                same(&found, &self.files[index].bytes[range], &self.files[index].name)?;
            }
        }
        match self.below(3) {
            0 => shared.timed("fdatasync", 0, || file.sync_data()),
            _ => Ok(()),
        }
    }

    fn churn(&mut self, shared: &Shared) -> Result<(), String> {
        let name = self.new_name();
        let length = self.below(30_000) as usize;
        let bytes = self.data(length);
        let (first, last) = (self.mnt.join(format!("{name}.new")), self.mnt.join(&name));
        shared.timed("write of a small file", length as u64, || std::fs::write(&first, &bytes))?;
        shared.timed("rename", 0, || std::fs::rename(&first, &last))?;
        self.files.push(Known { name, bytes });
        let index = self.below(self.files.len() as u64) as usize;
        let path = self.mnt.join(&self.files[index].name);
        let found = shared.timed("read of a small file", 0, || std::fs::read(&path))?;
        same(&found, &self.files[index].bytes, &self.files[index].name)?;
        if self.files.len() > 400 {
            shared.timed("unlink", 0, || std::fs::remove_file(&path))?;
            self.files.swap_remove(index);
        }
        if self.made.is_multiple_of(100) {
            shared.timed("listing", 0, || std::fs::read_dir(&self.mnt).map(Iterator::count))?;
        }
        Ok(())
    }

    fn shape(&mut self, shared: &Shared) -> Result<(), String> {
        let file = self.known(shared, 0, 3 << 20)?;
        let size = self.files[0].bytes.len() as u64;
        match self.below(3) {
            0 => {
                let length = self.below(8 << 20);
                shared.timed("truncate", 0, || file.set_len(length))?;
                self.files[0].bytes.resize(length as usize, 0);
            }
            1 => {
                let (start, length) = (self.below(size + 1), 1 + self.below(1 << 20));
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let punch = || Ok(rustix::fs::fallocate(&file, flags, start, length)?);
                shared.timed("punch", 0, punch)?;
                let end = (start + length).min(size);
                self.files[0].bytes[start as usize..end as usize].fill(0);
            }
            _ => {
                let (at, length) = (self.below(size + 1), 1 + self.below(300_000));
                let data = self.data(length as usize);
                shared.timed("write", length, || file.write_all_at(&data, at))?;
                let end = (at + length) as usize;
                let bytes = &mut self.files[0].bytes;
                bytes.resize(bytes.len().max(end), 0);
                bytes[at as usize..end].copy_from_slice(&data);
            }
        }
        let mut found = vec![0; self.files[0].bytes.len()];
        shared.timed("read", found.len() as u64, || file.read_exact_at(&mut found, 0))?;
        same(&found, &self.files[0].bytes, &self.files[0].name)
    }

    fn map(&mut self, shared: &Shared) -> Result<(), String> {
        let file = self.known(shared, 0, 2 << 20)?;
        let length = 1 + self.below(50_000);
        let at = self.below((2 << 20) - length);
        let data = self.data(length as usize);
        shared.timed("write", length, || file.write_all_at(&data, at))?;
        let Known { name, bytes } = &mut self.files[0];
        bytes[at as usize..(at + length) as usize].copy_from_slice(&data);
        let found = shared.timed("reading a mapping", length, || mapped(&file, bytes.len()))?;
        same(&found, bytes, name)
    }

    fn ask(&mut self, shared: &Shared) -> Result<(), String> {
        let folder = self.mnt.clone();
        let names = shared.timed("listing", 0, || std::fs::read_dir(&folder))?;
        for (count, entry) in names.enumerate() {
            let path = entry.map_err(|error| error.to_string())?.path();
            let mut value = [0; 64];
            // It may be gone by now, as any that is asked here.
            for name in ["user.swap.status", "user.swap.dirty", "user.swap.inflight"] {
                let read = || match rustix::fs::getxattr(&path, name, &mut value[..]) {
                    Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
                    Err(error) => Err(error.into()),
                };
                shared.timed("status", 0, read)?;
            }
            if count % 7 == 0 {
                let request = ["swap_in", "swap_out", "release"][self.below(3) as usize];
                ask(shared, &path, request)?;
            }
            if shared.stopped() {
                break;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(())
    }
}

/// A request; a file that is gone, or larger than what the pool has left, is no failure.
fn ask(shared: &Shared, path: &Path, request: &str) -> Result<(), String> {
    shared.timed("request", 0, || {
        let flags = XattrFlags::empty();
        match rustix::fs::setxattr(path, "user.swap.request", request.as_bytes(), flags) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

/// A copy of a file's bytes as a mapping shows them.
fn mapped(file: &File, length: usize) -> io::Result<Vec<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let mut bytes = vec![0; length];
    // SAFETY: a new mapping at a place of the kernel's choice.
    let map =
        unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
    // SAFETY: the mapping has `length` bytes, and nobody cuts the file: it is this client's own.
    unsafe { std::ptr::copy_nonoverlapping(map.cast::<u8>(), bytes.as_mut_ptr(), length) };
    // SAFETY: the mapping of above, which nobody refers to any more.
    unsafe { munmap(map, length) }?;
    Ok(bytes)
}
