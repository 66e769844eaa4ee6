//! The table of records: `.swapfs/ledger`, one slot of 256 bytes for each partition that was written.
//!
//! A slot holds what is known of the partition as a whole (64 bytes), the entries of its first pages (128), and the
//! change of shape that is under way (32); the entries of later pages are in a file of the slot's own. Slots are
//! written in place: none crosses a sector, so that each is the old or the new one whatever happens, and what reached
//! the page cache survives the process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, unlinkat,
};

use super::entry::{BATCH, ENTRY_BYTES, Entry, Format, crc};
use super::stamp::Stamp;
use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::error::{Errno, Result, errno_of};
use crate::sys::errno;
use crate::trust;

/// The table inside `.swapfs`, and the folder of the slots' own files.
const TABLE_NAME: &str = "ledger";
const SUMS_NAME: &str = "sums";

/// Bytes of a slot.
const SLOT_BYTES: u64 = 256;

/// Where a slot's entries begin, and how many there are.
const ENTRIES_AT: u64 = 64;
pub(super) const INLINE_PAGES: u64 = 16;

/// Where the change of shape that is under way is noted: its first byte, the one after its last, and their crc.
const CHANGE_AT: u64 = 192;
const CHANGE_BYTES: usize = 20;

/// The table grows by this many slots.
const GROWTH_SLOTS: u32 = 256;

/// Says that a slot is in use, and in which version of the format: "SWL1" and "SWL2".
const MAGIC_FIRST: u32 = 0x314c_5753;
const MAGIC: u32 = 0x324c_5753;

/// What a record says of a partition as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// How its entries are encoded.
    pub(super) format: Format,
    /// See the constants.
    pub(super) flags: u32,
    pub(super) ino: u64,
    pub(super) generation: u64,
    /// Size and times (nanoseconds since 1970) of the backing file when it was looked at last.
    pub(super) size: u64,
    pub(super) modified_ns: i64,
    pub(super) changed_ns: i64,
    /// With [`TIMED`]: the modification time that it is about to get. With [`PADDED`], in the first format: the end of
    /// the bytes that were written. With [`SHOWN`]: the change time to show, in nanoseconds since 1970.
    pub(super) next: u64,
    /// The session that wrote this last; 0 in the first format.
    pub(super) session: u32,
}

/// The backing file is being written or changed: its size and times may be newer than those on record.
pub(super) const ACTIVE: u32 = 1;
/// First format: the backing file may be padded to the alignment behind `next`.
pub(super) const PADDED: u32 = 2;
/// Has a file of its own for the entries beyond the first.
pub(super) const SIDECAR: u32 = 4;
/// What does not match may be due to a power cut: torn, not damaged.
pub(super) const SUSPECT: u32 = 8;
/// Has torn pages.
pub(super) const HAS_TORN: u32 = 16;
/// The backing file is about to get the modification time `next`.
pub(super) const TIMED: u32 = 32;
/// A change of shape is under way: pages in its range may be as before or as after it.
pub(super) const SHAPING: u32 = 64;

/// All bytes of it were recorded, from its first on: a page that nothing is known of is a hole, or lost its entry in a
/// power cut.
pub(super) const COMPLETE: u32 = 128;

/// The backing file got its change time `changed_ns` by our own doing: its user changed it at the time `next`.
pub(super) const SHOWN: u32 = 256;

impl Header {
    /// The change time to show of a backing file that has this one, where it is not its own.
    pub(super) fn shown(&self, changed_ns: i64) -> Option<i64> {
        let holds = self.has(SHOWN) && !self.has(TIMED | PADDED) && self.changed_ns == changed_ns;
        holds.then(|| self.next.cast_signed())
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn encode(&self) -> [u8; ENTRIES_AT as usize] {
        let mut bytes = [0; ENTRIES_AT as usize];
        let magic = match self.format {
            Format::First => MAGIC_FIRST,
            Format::Second => MAGIC,
        };
        bytes[..4].copy_from_slice(&magic.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        let words = [
            self.ino,
            self.generation,
            self.size,
            self.modified_ns.cast_unsigned(),
            self.changed_ns.cast_unsigned(),
            self.next,
        ];
        for (place, word) in bytes[8..56].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&self.session.to_le_bytes());
        let sum = crc(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` for what is no record, or one with more than one wrong bit.
    fn decode(bytes: &[u8; ENTRIES_AT as usize]) -> Option<Self> {
        if bytes.iter().all(|byte| *byte == 0) {
            return None;
        }
        Self::decode_exactly(bytes).or_else(|| {
            // The crc of so few bytes tells which bit it is.
            (0..bytes.len() * 8).find_map(|bit| {
                let mut mended = *bytes;
                mended[bit / 8] ^= 1 << (bit % 8);
                Self::decode_exactly(&mended)
            })
        })
    }

    fn decode_exactly(bytes: &[u8; ENTRIES_AT as usize]) -> Option<Self> {
        let word32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let format = match word32(0) {
            MAGIC_FIRST => Format::First,
            MAGIC => Format::Second,
            _ => return None,
        };
        (word32(60) == crc(&bytes[..60])).then(|| Self {
            format,
            flags: word32(4),
            ino: word(8),
            generation: word(16),
            size: word(24),
            modified_ns: word(32).cast_signed(),
            changed_ns: word(40).cast_signed(),
            next: word(48),
            session: word32(56),
        })
    }
}

/// Which inode a record is of: its number and its generation.
pub(super) type Identity = (u64, u64);

/// Where a record's entries are, and how they are encoded.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) sums: Option<std::sync::Arc<DiskFile>>,
    pub(super) format: Format,
}

/// Which slots are whose.
#[derive(Debug, Default)]
struct Slots {
    index: HashMap<Identity, u32>,
    /// The generation that an inode number was met with last: there is one inode of a number at a time.
    generations: HashMap<u64, u64>,
    free: Vec<u32>,
    /// Slots that the table has room for.
    count: u32,
    /// The newest session that any record tells of.
    session: u32,
    /// Some record was being changed when it was written last.
    active: bool,
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
        // First: whoever finds the table finds the folder.
        let made = writable.then(|| trust::make_folder(control, SUMS_NAME)).transpose()?;
        let file = match trust::open_file(control, TABLE_NAME, access) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !writable => return Ok(None),
            opened => opened?,
        };
        let sums = match made {
            Some(sums) => sums,
            None => trust::open_folder(control, SUMS_NAME)?,
        };
        let slots = Mutex::new(read_slots(&file)?);
        Ok(Some(Self { file, sums, writable, slots, growing: Mutex::new(()) }))
    }

    /// Whether there are records below `control`.
    pub(super) fn is_there(control: BorrowedFd<'_>) -> io::Result<bool> {
        match rustix::fs::statat(control, TABLE_NAME, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(status.st_size > 0),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it may be changed.
    pub(super) fn writable(&self) -> bool {
        self.writable
    }

    /// A second descriptor of the table, for a device to sync.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// The newest session that any record told of when the table was opened, and whether any was being changed then.
    pub(super) fn last_known(&self) -> (u32, bool) {
        let slots = self.slots.lock();
        (slots.session, slots.active)
    }

    /// Records in it.
    pub(super) fn len(&self) -> usize {
        self.slots.lock().index.len()
    }

    /// When it was written last, in nanoseconds since 1970: the daemon that wrote it was alive then.
    pub(super) fn alive_ns(&self) -> io::Result<i64> {
        Ok(Stamp::of(&self.file)?.modified_ns)
    }

    /// Notes that the daemon is alive.
    pub(super) fn pulse(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = rustix::fs::futimens(&self.file, &times);
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

    /// Notes the bytes whose pages a change of shape is about to change.
    pub(super) fn set_change(&self, slot: u32, bytes: &Range<u64>) -> Result<()> {
        let mut noted = [0; CHANGE_BYTES];
        noted[..8].copy_from_slice(&bytes.start.to_le_bytes());
        noted[8..16].copy_from_slice(&bytes.end.to_le_bytes());
        let sum = crc(&noted[..16]);
        noted[16..].copy_from_slice(&sum.to_le_bytes());
        self.write(&noted, slot, CHANGE_AT)
    }

    /// The bytes that were noted last; all of them where that is damaged.
    pub(super) fn noted_change(&self, slot: u32) -> Result<Range<u64>> {
        let mut noted = [0; CHANGE_BYTES];
        read_whole(&self.file, &mut noted, u64::from(slot) * SLOT_BYTES + CHANGE_AT)?;
        let word = |at: usize| u64::from_le_bytes(noted[at..at + 8].try_into().expect("eight"));
        match noted[16..] == crc(&noted[..16]).to_le_bytes() {
            true => Ok(word(0)..word(8)),
            false => Ok(0..u64::MAX),
        }
    }

    /// Opens a slot's file of entries; a new one is empty.
    pub(super) fn sidecar(&self, slot: u32, new: bool) -> Result<DiskFile> {
        let (folder, name) = sidecar_name(slot);
        let mut flags = if self.writable { OFlags::RDWR } else { OFlags::RDONLY };
        flags.set(OFlags::CREATE, new);
        let path = format!("{folder}/{name}");
        let open = || trust::open_file(&self.sums, &path, flags);
        let opened = match open() {
            Err(error) if new && error.kind() == io::ErrorKind::NotFound => {
                trust::make_folder(&self.sums, &folder).and_then(|_| open())
            }
            opened => opened,
        };
        let file = opened.map_err(|error| errno_of(&error))?;
        if new {
            file.set_len(0).map_err(|error| errno_of(&error))?;
        }
        Ok(DiskFile::opened(file.into(), self.writable))
    }

    /// Reads the entries of consecutive pages.
    pub(super) fn read_entries(
        &self, place: &Place, first: u64, entries: &mut [Entry],
    ) -> Result<()> {
        let (slot, sidecar) = (place.slot, place.sums.as_deref());
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
            *entry = Entry::decode(*bytes, place.format);
        }
        Ok(())
    }

    /// Writes the entries of consecutive pages; without the slot's file, nothing is known of those beyond the
    /// first.
    pub(super) fn write_entries(&self, place: &Place, first: u64, entries: &[Entry]) -> Result<()> {
        let (slot, sidecar) = (place.slot, place.sums.as_deref());
        let mut bytes = [0; BATCH * ENTRY_BYTES as usize];
        let bytes = &mut bytes[..entries.len() * ENTRY_BYTES as usize];
        for (bytes, entry) in bytes.as_chunks_mut().0.iter_mut().zip(entries) {
            *bytes = entry.encode(place.format);
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

    /// Forgets all entries of these pages, torn ones too.
    pub(super) fn forget_entries(&self, place: &Place, pages: &Range<u64>) -> Result<()> {
        let inline = pages.start.min(INLINE_PAGES)..pages.end.min(INLINE_PAGES);
        if inline.start < inline.end {
            let zeros = [0; (INLINE_PAGES * ENTRY_BYTES) as usize];
            let bytes = &zeros[..((inline.end - inline.start) * ENTRY_BYTES) as usize];
            self.write(bytes, place.slot, ENTRIES_AT + inline.start * ENTRY_BYTES)?;
        }
        let Some(sidecar) = &place.sums else { return Ok(()) };
        let size = sidecar.status()?.size;
        let from = pages.start.max(INLINE_PAGES) * ENTRY_BYTES;
        let to = pages.end.saturating_mul(ENTRY_BYTES);
        if from >= size || from >= to {
            return Ok(());
        }
        if to >= size {
            return sidecar.set_len(from);
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&**sidecar, punch, from, to - from) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = [0; BATCH * ENTRY_BYTES as usize];
                let mut at = from;
                while at < to {
                    let count = (to - at).min(zeros.len() as u64);
                    write_whole(&**sidecar, &zeros[..count as usize], at)?;
                    at += count;
                }
                Ok(())
            }
            punched => punched.map_err(errno),
        }
    }

    /// The next pages from `first` on, before `end`, of which anything may be known: holes in the file of entries are
    /// skipped. `None` when there are none.
    pub(super) fn known_pages(&self, place: &Place, first: u64, end: u64) -> Option<Range<u64>> {
        if first >= end {
            return None;
        }
        if first < INLINE_PAGES {
            return Some(first..end.min(INLINE_PAGES));
        }
        let sidecar = place.sums.as_ref()?;
        let at = first * ENTRY_BYTES;
        let data = match rustix::fs::seek(&**sidecar, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return None,
            // A filesystem that cannot tell has no holes.
            Err(_) => at,
        };
        let size = sidecar.status().ok()?.size;
        let hole = rustix::fs::seek(&**sidecar, SeekFrom::Hole(data)).unwrap_or(size);
        let (from, to) = (data / ENTRY_BYTES, hole.min(size).div_ceil(ENTRY_BYTES).min(end));
        (from < to).then(|| from.max(first)..to)
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

pub(super) fn write_whole(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> Result<()> {
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
            let bytes: &[u8; ENTRIES_AT as usize] = bytes.first_chunk().expect("a slot is longer");
            match Header::decode(bytes) {
                Some(header) => {
                    slots.insert((header.ino, header.generation), slot);
                    slots.session = slots.session.max(header.session);
                    slots.active |= header.has(ACTIVE);
                }
                // Whose it was is not known any more: it is nobody else's either.
                None if bytes.iter().any(|byte| *byte != 0) => damaged += 1,
                None => slots.free.push(slot),
            }
        }
        offset += count as u64;
    }
    slots.free.reverse();
    if damaged > 0 {
        log::error!(
            ".swapfs/ledger: {damaged} records are damaged: of as many partitions nothing is known, torn blocks \
             of theirs are read as they are"
        );
    }
    Ok(slots)
}

#[cfg(test)]
mod tests;
