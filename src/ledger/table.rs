//! The table of records: `.swapfs/ledger`, one slot of 256 bytes for each partition that was written.
//!
//! A slot holds what is known of the partition as a whole and the entries of its first pages; the entries of
//! later pages are in a file of the slot's own. Slots are written in place: none crosses a sector, so that
//! each is the old or the new one whatever happens, and what reached the page cache survives the process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, mkdirat, openat, unlinkat};

use super::entry::{BATCH, ENTRY_BYTES, Entry, crc};
use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::error::{Errno, Result};
use crate::sys::errno;

/// The table inside `.swapfs`, and the folder of the slots' own files.
const TABLE_NAME: &str = "ledger";
const SUMS_NAME: &str = "sums";

/// Bytes of a slot.
const SLOT_BYTES: u64 = 256;

/// Where a slot's entries begin, and how many there are.
const ENTRIES_AT: u64 = 64;
pub(super) const INLINE_PAGES: u64 = 16;

/// The table grows by this many slots.
const GROWTH_SLOTS: u32 = 256;

/// Says that a slot is in use, and in which version of the format: "SWL1".
const MAGIC: u32 = 0x314c_5753;

/// What a record says of a partition as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// See the constants.
    pub(super) flags: u32,
    pub(super) ino: u64,
    pub(super) generation: u64,
    /// Size and times (nanoseconds since 1970) of the backing file when it was settled.
    pub(super) size: u64,
    pub(super) modified_ns: i64,
    pub(super) changed_ns: i64,
    /// With [`PADDED`]: the end of the bytes that were written; what the file holds beyond is padding.
    pub(super) true_size: u64,
}

/// Written to since it was settled.
pub(super) const ACTIVE: u32 = 1;
/// The backing file may be longer than `true_size`.
pub(super) const PADDED: u32 = 2;
/// Has a file of its own for the entries beyond the first.
pub(super) const SIDECAR: u32 = 4;
/// It was being written when the daemon or the machine ended: what does not match is torn, not damaged.
pub(super) const SUSPECT: u32 = 8;
/// Has torn pages.
pub(super) const HAS_TORN: u32 = 16;

impl Header {
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn encode(&self) -> [u8; ENTRIES_AT as usize] {
        let mut bytes = [0; ENTRIES_AT as usize];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        let words = [
            self.ino,
            self.generation,
            self.size,
            self.modified_ns.cast_unsigned(),
            self.changed_ns.cast_unsigned(),
            self.true_size,
        ];
        for (place, word) in bytes[8..56].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = crc(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` for what is no record, or a damaged one.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let word32 = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if word32(0)? != MAGIC || word32(60)? != crc(bytes.get(..60)?) {
            return None;
        }
        Some(Self {
            flags: word32(4)?,
            ino: word(8)?,
            generation: word(16)?,
            size: word(24)?,
            modified_ns: word(32)?.cast_signed(),
            changed_ns: word(40)?.cast_signed(),
            true_size: word(48)?,
        })
    }
}

/// Which inode a record is of: its number and its generation.
pub(super) type Identity = (u64, u64);

/// Which slots are whose.
#[derive(Debug, Default)]
struct Slots {
    index: HashMap<Identity, u32>,
    /// The generation that an inode number was met with last: there is one inode of a number at a time.
    generations: HashMap<u64, u64>,
    free: Vec<u32>,
    /// Slots that the table has room for.
    count: u32,
}

impl Slots {
    fn take(&mut self, identity: Identity) -> Option<u32> {
        let slot = self.free.pop()?;
        self.insert(identity, slot);
        Some(slot)
    }

    fn insert(&mut self, identity: Identity, slot: u32) {
        self.index.insert(identity, slot);
        self.generations.insert(identity.0, identity.1);
    }

    fn disown(&mut self, identity: Identity, slot: u32) {
        if self.index.get(&identity) == Some(&slot) {
            self.index.remove(&identity);
            if self.generations.get(&identity.0) == Some(&identity.1) {
                self.generations.remove(&identity.0);
            }
        }
    }
}

/// The table, open.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    /// `.swapfs/sums`.
    sums: OwnedFd,
    writable: bool,
    /// Never held across a call.
    slots: Mutex<Slots>,
    /// Held while the table grows.
    growing: Mutex<()>,
}

impl Table {
    /// Opens the table below `control`, the folder `.swapfs`, and makes it when it may be written.
    /// `None` when there is none and it may not.
    pub(super) fn open(control: BorrowedFd<'_>, writable: bool) -> io::Result<Option<Self>> {
        let access = if writable { OFlags::RDWR | OFlags::CREATE } else { OFlags::RDONLY };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = openat(control, TABLE_NAME, flags, Mode::RUSR | Mode::WUSR);
        let file = match opened {
            Err(rustix::io::Errno::NOENT) if !writable => return Ok(None),
            opened => File::from(opened?),
        };
        if writable {
            match mkdirat(control, SUMS_NAME, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let folder = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let sums = openat(control, SUMS_NAME, folder, Mode::empty())?;
        let slots = Mutex::new(read_slots(&file)?);
        Ok(Some(Self { file, sums, writable, slots, growing: Mutex::new(()) }))
    }

    /// Whether it may be changed.
    pub(super) fn writable(&self) -> bool {
        self.writable
    }

    /// A second descriptor of the table, for a device to sync.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// The slot of a partition, when it has one.
    pub(super) fn find(&self, identity: Identity) -> Option<u32> {
        self.slots.lock().index.get(&identity).copied()
    }

    /// The record of another inode that had this number before, and so is gone: with what to give back.
    pub(super) fn predecessor(&self, identity: Identity) -> Option<(Identity, u32)> {
        let slots = self.slots.lock();
        let generation =
            slots.generations.get(&identity.0).filter(|known| **known != identity.1)?;
        let gone = (identity.0, *generation);
        Some((gone, *slots.index.get(&gone)?))
    }

    /// All records' inodes, with their slots.
    pub(super) fn all(&self) -> Vec<(Identity, u32)> {
        self.slots.lock().index.iter().map(|(identity, slot)| (*identity, *slot)).collect()
    }

    /// Takes a free slot for a partition. What is in it means nothing until [`Table::fill`].
    pub(super) fn take(&self, identity: Identity) -> Result<u32> {
        if let Some(slot) = self.slots.lock().take(identity) {
            return Ok(slot);
        }
        let _growing = self.growing.lock();
        let from = {
            let mut slots = self.slots.lock();
            if let Some(slot) = slots.take(identity) {
                return Ok(slot);
            }
            slots.count
        };
        let bytes = u64::from(GROWTH_SLOTS) * SLOT_BYTES;
        allocate(&self.file, u64::from(from) * SLOT_BYTES, bytes)?;
        let mut slots = self.slots.lock();
        slots.count += GROWTH_SLOTS;
        slots.free.extend((from..from + GROWTH_SLOTS).rev());
        Ok(slots.take(identity).expect("made just now"))
    }

    /// The first of a slot: its header, and nothing known of its pages.
    pub(super) fn fill(&self, slot: u32, header: &Header) -> Result<()> {
        let mut bytes = [0; SLOT_BYTES as usize];
        bytes[..ENTRIES_AT as usize].copy_from_slice(&header.encode());
        self.write(&bytes, slot, 0)
    }

    /// A slot that was taken and never filled is free again.
    pub(super) fn release(&self, identity: Identity, slot: u32) {
        let mut slots = self.slots.lock();
        slots.disown(identity, slot);
        slots.free.push(slot);
    }

    /// The slot is not found any more; it is to be given back.
    pub(super) fn disown(&self, identity: Identity, slot: u32) {
        self.slots.lock().disown(identity, slot);
    }

    /// Gives a partition's slot back, and its file of entries with it.
    pub(super) fn give_back(&self, header: &Header, slot: u32) {
        let identity = (header.ino, header.generation);
        let cleared = self.write(&[0; SLOT_BYTES as usize], slot, 0);
        if header.has(SIDECAR) {
            let (folder, name) = sidecar_name(slot);
            if let Err(error) = unlinkat(&self.sums, format!("{folder}/{name}"), AtFlags::empty()) {
                log::debug!("sums of slot {slot}: {error}");
            }
        }
        let mut slots = self.slots.lock();
        slots.disown(identity, slot);
        // One that could not be cleared is found again at the next mount, and is not for anybody else.
        if cleared.is_ok() {
            slots.free.push(slot);
        }
    }

    /// The header in a slot.
    pub(super) fn header(&self, slot: u32) -> Result<Header> {
        let mut bytes = [0; ENTRIES_AT as usize];
        read_whole(&self.file, &mut bytes, u64::from(slot) * SLOT_BYTES)?;
        Header::decode(&bytes).ok_or(Errno::EUCLEAN)
    }

    pub(super) fn set_header(&self, slot: u32, header: &Header) -> Result<()> {
        self.write(&header.encode(), slot, 0)
    }

    fn write(&self, bytes: &[u8], slot: u32, at: u64) -> Result<()> {
        let offset = u64::from(slot) * SLOT_BYTES + at;
        write_whole(&self.file, bytes, offset)
    }

    /// Opens a slot's file of entries; a new one is empty.
    pub(super) fn sidecar(&self, slot: u32, new: bool) -> Result<DiskFile> {
        let (folder, name) = sidecar_name(slot);
        let mut flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        flags |= if self.writable { OFlags::RDWR } else { OFlags::RDONLY };
        if new {
            flags |= OFlags::CREATE | OFlags::TRUNC;
        }
        let path = format!("{folder}/{name}");
        let open = || openat(&self.sums, path.as_str(), flags, Mode::RUSR | Mode::WUSR);
        let opened = match open() {
            Err(rustix::io::Errno::NOENT) if new => {
                match mkdirat(&self.sums, folder.as_str(), Mode::RWXU) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => open(),
                    Err(error) => Err(error),
                }
            }
            opened => opened,
        };
        DiskFile::new(opened.map_err(errno)?)
    }

    /// Reads the entries of consecutive pages.
    pub(super) fn read_entries(
        &self, slot: u32, sidecar: Option<&DiskFile>, first: u64, entries: &mut [Entry],
    ) -> Result<()> {
        let mut bytes = [0; BATCH * ENTRY_BYTES as usize];
        let bytes = &mut bytes[..entries.len() * ENTRY_BYTES as usize];
        let inline = inline_count(first, entries.len());
        let (own, others) = bytes.split_at_mut(inline * ENTRY_BYTES as usize);
        if inline > 0 {
            let at = u64::from(slot) * SLOT_BYTES + ENTRIES_AT + first * ENTRY_BYTES;
            read_whole(&self.file, own, at)?;
        }
        if let (Some(sidecar), false) = (sidecar, others.is_empty()) {
            read_whole(sidecar, others, (first + inline as u64) * ENTRY_BYTES)?;
        }
        for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks().0) {
            *entry = Entry::decode(*bytes);
        }
        Ok(())
    }

    /// Writes the entries of consecutive pages; without the slot's file, nothing is known of those beyond the
    /// first.
    pub(super) fn write_entries(
        &self, slot: u32, sidecar: Option<&DiskFile>, first: u64, entries: &[Entry],
    ) -> Result<()> {
        let mut bytes = [0; BATCH * ENTRY_BYTES as usize];
        let bytes = &mut bytes[..entries.len() * ENTRY_BYTES as usize];
        for (bytes, entry) in bytes.as_chunks_mut().0.iter_mut().zip(entries) {
            *bytes = entry.encode();
        }
        let inline = inline_count(first, entries.len());
        let (own, others) = bytes.split_at(inline * ENTRY_BYTES as usize);
        if inline > 0 {
            self.write(own, slot, ENTRIES_AT + first * ENTRY_BYTES)?;
        }
        if let (Some(sidecar), false) = (sidecar, others.is_empty()) {
            write_whole(sidecar, others, (first + inline as u64) * ENTRY_BYTES)?;
        }
        Ok(())
    }

    /// Forgets all entries from page `first` on.
    pub(super) fn cut_entries(
        &self, slot: u32, sidecar: Option<&DiskFile>, first: u64,
    ) -> Result<()> {
        if first < INLINE_PAGES {
            let zeros = [0; (INLINE_PAGES * ENTRY_BYTES) as usize];
            let bytes = &zeros[(first * ENTRY_BYTES) as usize..];
            self.write(bytes, slot, ENTRIES_AT + first * ENTRY_BYTES)?;
        }
        if let Some(sidecar) = sidecar {
            let length = first.max(INLINE_PAGES) * ENTRY_BYTES;
            if sidecar.status()?.size > length {
                sidecar.set_len(length)?;
            }
        }
        Ok(())
    }

    /// Puts everything in the table on stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Hands all of the table to the kernel once more, after what was handed over before was lost.
    pub(super) fn rewrite(&self) -> Result<()> {
        rewrite(&self.file)
    }

    /// The same with all slots' files, and whatever else the filesystem has in memory.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.file)?)
    }
}

/// How many of `count` entries from page `first` on are in the slot itself.
fn inline_count(first: u64, count: usize) -> usize {
    (INLINE_PAGES.saturating_sub(first) as usize).min(count)
}

fn sidecar_name(slot: u32) -> (String, String) {
    (format!("{:02x}", slot & 0xff), format!("{slot:08x}"))
}

/// Allocates a range of a file, growing it; where the filesystem cannot, the file grows without.
pub(super) fn allocate(file: impl AsFd, offset: u64, length: u64) -> Result<()> {
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), offset, length) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            rustix::fs::ftruncate(&file, offset + length).map_err(errno)
        }
        result => result.map_err(errno),
    }
}

/// Writes a file's bytes over themselves.
pub(super) fn rewrite(file: impl AsFd) -> Result<()> {
    let mut part = vec![0; 1 << 16];
    let mut offset = 0;
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut part[..], offset)) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                write_whole(&file, &part[..count], offset)?;
                offset += count as u64;
            }
            Err(error) => return Err(errno(error)),
        }
    }
}

/// Reads all of `bytes`; what lies beyond the end of the file is zero.
fn read_whole(file: impl AsFd, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let read = || rustix::io::pread(&file, &mut *bytes, offset);
        match rustix::io::retry_on_intr(read).map_err(errno)? {
            0 => {
                bytes.fill(0);
                return Ok(());
            }
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

fn write_whole(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let write = || rustix::io::pwrite(&file, bytes, offset);
        let count = rustix::io::retry_on_intr(write).map_err(errno)?;
        bytes = &bytes[count..];
        offset += count as u64;
    }
    Ok(())
}

/// Finds whose slots are whose.
fn read_slots(file: &File) -> io::Result<Slots> {
    let mut slots = Slots::default();
    let mut part = vec![0; 1 << 20];
    let (mut damaged, mut offset) = (0, 0);
    let size = file.metadata()?.len();
    slots.count = u32::try_from(size / SLOT_BYTES).unwrap_or(u32::MAX);
    while offset < size {
        let count = part.len().min((size - offset) as usize);
        read_whole(file, &mut part[..count], offset)?;
        for (i, bytes) in part[..count].as_chunks::<{ SLOT_BYTES as usize }>().0.iter().enumerate()
        {
            let slot = (offset / SLOT_BYTES) as u32 + i as u32;
            match Header::decode(bytes) {
                Some(header) => {
                    slots.insert((header.ino, header.generation), slot);
                }
                None => {
                    damaged +=
                        u32::from(bytes[..ENTRIES_AT as usize].iter().any(|byte| *byte != 0));
                    slots.free.push(slot);
                }
            }
        }
        offset += count as u64;
    }
    slots.free.reverse();
    if damaged > 0 {
        log::warn!(".swapfs/ledger: {damaged} damaged records are ignored");
    }
    Ok(slots)
}

#[cfg(test)]
mod tests;
