//! The ring's registered files, filled lazily and replaced when full, least recently used first.
//!
//! A registered file is a reference to the open file: it keeps an unlinked file's space. So each
//! [`DiskFile`] knows the lanes it was registered with and tells them when it is dropped.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use io_uring::Submitter;

use super::super::device::BackingFile;
use super::super::file::DiskFile;
use super::lane::Lane;

#[derive(Debug)]
pub(super) struct FileTable {
    entries: Vec<Entry>,
    index_of: HashMap<u64, u32>,
    free: Vec<u32>,
    clock: u64,
    warned: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// 0 when free.
    id: u64,
    /// Transfers in flight that name this entry.
    users: u32,
    /// The clock when a transfer last took it.
    used: u64,
}

impl FileTable {
    /// For a table of `size` files registered with the ring; 0 when that was refused.
    pub(super) fn new(size: u32) -> Self {
        Self {
            entries: vec![Entry::default(); size as usize],
            index_of: HashMap::with_capacity(size as usize + 1),
            free: (0..size).rev().collect(),
            clock: 0,
            warned: false,
        }
    }

    pub(super) fn size(&self) -> usize {
        self.entries.len()
    }

    /// The file's entry, registered now if need be, for one more transfer. `None` when there is no
    /// entry to be had; the transfer goes by descriptor then.
    pub(super) fn acquire(
        &mut self, submitter: &Submitter<'_>, lane: &Arc<Lane>, file: &DiskFile,
    ) -> Option<u32> {
        let index = match self.index_of.get(&file.id()) {
            Some(index) => *index,
            None => self.register(submitter, lane, file)?,
        };
        self.clock += 1;
        let entry = &mut self.entries[index as usize];
        entry.users += 1;
        entry.used = self.clock;
        Some(index)
    }

    /// One transfer that named the entry is done.
    pub(super) fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.users = entry.users.checked_sub(1).expect("released as often as acquired");
    }

    /// Gives up a dropped file. Nothing to do if it was replaced meanwhile.
    pub(super) fn forget(&mut self, submitter: &Submitter<'_>, id: u64) {
        let Some(index) = self.index_of.remove(&id) else {
            return;
        };
        let entry = &mut self.entries[index as usize];
        assert_eq!(entry.users, 0, "a transfer in flight keeps its file");
        *entry = Entry::default();
        if self.update(submitter, index, -1) {
            self.free.push(index);
        }
    }

    fn register(
        &mut self, submitter: &Submitter<'_>, lane: &Arc<Lane>, file: &DiskFile,
    ) -> Option<u32> {
        let descriptor = file.descriptor()?;
        let index = self.free.pop().or_else(|| self.evict())?;
        // Weak: a file does not keep a device. Told before it is registered, and `file` is borrowed
        // from a live transfer, so its drop cannot be missed.
        let weak: Weak<Lane> = Arc::downgrade(lane);
        file.registered_with(weak);
        if !self.update(submitter, index, descriptor) {
            self.free.push(index);
            return None;
        }
        self.entries[index as usize].id = file.id();
        self.index_of.insert(file.id(), index);
        Some(index)
    }

    /// Takes the entry of the idle file that was not used for the longest time.
    fn evict(&mut self) -> Option<u32> {
        let idle = self.entries.iter().enumerate().filter(|(_, entry)| entry.users == 0);
        let (index, entry) = idle.min_by_key(|(_, entry)| entry.used)?;
        self.index_of.remove(&entry.id);
        let index = u32::try_from(index).expect("the table's size is a u32");
        self.entries[index as usize] = Entry::default();
        Some(index)
    }

    fn update(&mut self, submitter: &Submitter<'_>, index: u32, descriptor: RawFd) -> bool {
        match submitter.register_files_update(index, &[descriptor]) {
            Ok(_) => true,
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    log::warn!("cannot change a ring's registered files: {error}");
                }
                false
            }
        }
    }
}
