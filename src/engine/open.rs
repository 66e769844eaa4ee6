//! Opening partitions.

use std::sync::Arc;
use std::time::SystemTime;

use super::core::{Engine, OpenSwapIn};
use super::ids::{BlockId, HandleId, PartitionId};
use super::info::ChangeTime;
use super::locked::Locked;
use super::partition::{FileKey, Handle, Partition};
use super::state::State;
use crate::aio::device::{BackingFile, FileStatus};
use crate::error::{Errno, Result};
use crate::shares::{Full, Share, User};

/// Descriptors of a partition that is open: its file, and that of its checksums.
const DESCRIPTORS: usize = 2;

/// What a user needs to open a partition: his share of the handles, and of the descriptors.
#[derive(Debug)]
#[must_use = "given back when it is dropped"]
pub struct Admission {
    handle: Share,
    descriptors: Share,
}

/// What is opened, and how.
struct Opening {
    key: FileKey,
    read: bool,
    write: bool,
    status: FileStatus,
    /// Partitions forgotten before its status was asked for.
    drops: u64,
}

/// The partition, if it is known and its descriptor will do.
fn openable(st: &mut State, key: FileKey, write: bool) -> Option<PartitionId> {
    let id = *st.keys.get(&key)?;
    (!write || st.part(id).file.writable()).then_some(id)
}

/// A moment, by the partitions that the engine had let go of.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

impl Engine {
    /// Opens a partition for the daemon itself, see [`Engine::open_as`].
    ///
    /// # Errors
    /// As [`Engine::open_as`].
    pub fn open(
        &self, key: FileKey, read: bool, write: bool,
        open: impl FnOnce() -> Result<Arc<dyn BackingFile>>,
    ) -> Result<HandleId> {
        self.open_as(User::OWN, key, read, write, open)
    }

    /// Opens a partition: makes it known, or adds a handle to it when it is. `open` provides the
    /// backing file and is only called when there is none yet (or `write` is asked for and the
    /// present descriptor cannot); it is called without the engine's lock.
    ///
    /// # Errors
    /// What `open` fails with; EIO when bytes of the partition were lost and `read` is asked for; ESTALE
    /// when it has neither a name nor a handle any more; EMFILE and ENFILE beyond the user's share.
    pub fn open_as(
        &self, user: User, key: FileKey, read: bool, write: bool,
        open: impl FnOnce() -> Result<Arc<dyn BackingFile>>,
    ) -> Result<HandleId> {
        let share = self.bounds().handles.take(user, 1).map_err(Full::of_files)?;
        let (mut share, mut opened) = (Some(share), None);
        self.with(|locked| {
            let id = openable(locked.state, key, write)
                .filter(|id| locked.state.part(*id).openers.join(user));
            if let (Some(id), Some(share)) = (id, share.take_if(|_| id.is_some())) {
                opened = Some(locked.add_handle(id, read, write, share));
            }
        });
        match (opened, share) {
            (Some(opened), _) => opened,
            (None, Some(handle)) => {
                self.open_admitted(self.admit_with(handle)?, key, read, write, open)
            }
            (None, None) => unreachable!("a handle was made of it"),
        }
    }

    /// What a user needs to open a partition that he has not open yet.
    ///
    /// # Errors
    /// EMFILE and ENFILE beyond the user's share.
    pub fn admit(&self, user: User) -> Result<Admission> {
        self.admit_with(self.bounds().handles.take(user, 1).map_err(Full::of_files)?)
    }

    fn admit_with(&self, handle: Share) -> Result<Admission> {
        let taken = self.bounds().descriptors.take(handle.user(), DESCRIPTORS);
        Ok(Admission { handle, descriptors: taken.map_err(Full::of_files)? })
    }

    /// As [`Engine::open_as`], by a user who was admitted.
    ///
    /// # Errors
    /// As [`Engine::open_as`], but for the share.
    pub fn open_admitted(
        &self, admission: Admission, key: FileKey, read: bool, write: bool,
        open: impl FnOnce() -> Result<Arc<dyn BackingFile>>,
    ) -> Result<HandleId> {
        let (mut admission, mut opened, mut drops) = (Some(admission), None, 0);
        self.with(|locked| {
            drops = locked.state.drops;
            if let Some(id) = openable(locked.state, key, write)
                && let Some(Admission { handle, descriptors }) = admission.take()
            {
                locked.state.part(id).openers.enter(descriptors);
                opened = Some(locked.add_handle(id, read, write, handle));
            }
        });
        let Some(admission) = admission else {
            return opened.expect("made of the admission");
        };
        let file = open()?;
        let status = file.status()?;
        self.open_with(admission, Opening { key, read, write, status, drops }, file)
    }

    /// As [`Engine::open_admitted`], for writing, of a file that was created since the `moment` and is empty: it is
    /// only asked about its size if somebody may have written to it already.
    ///
    /// # Errors
    /// As [`Engine::open_admitted`].
    pub fn open_new(
        &self, admission: Admission, key: FileKey, read: bool, file: Arc<dyn BackingFile>,
        moment: Moment,
    ) -> Result<HandleId> {
        let modified = SystemTime::UNIX_EPOCH;
        let status = FileStatus { size: 0, allocated: 0, modified, changed: modified, links: 1 };
        let opening = Opening { key, read, write: true, status, drops: moment.0 };
        self.open_with(admission, opening, file)
    }

    /// Now, for [`Engine::open_new`].
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment(self.with(|locked| locked.state.drops))
    }

    fn open_with(
        &self, admission: Admission, opening: Opening, file: Arc<dyn BackingFile>,
    ) -> Result<HandleId> {
        let Opening { key, read, write, status, drops } = opening;
        let Admission { handle, descriptors } = admission;
        // A file without holes needs no reservation; unwritten extents count as holes, harmlessly.
        let dense = status.size > 0
            && file.writable()
            && status.allocated >= status.size
            && file.seek(0, true).unwrap_or(0) >= status.size;
        let unit = self.shape.unit;
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                if write && !locked.state.part(id).file.writable() {
                    let old = std::mem::replace(&mut locked.state.part(id).file, file);
                    locked.actions.files.push(old);
                } else {
                    locked.actions.files.push(file);
                }
                locked.state.part(id).openers.enter(descriptors);
                return locked.add_handle(id, read, write, handle);
            }
            // Whoever had it open in between may have left another size: then, and only then, it is
            // asked again here, where nobody can come between.
            let (status, dense) = match locked.state.drops == drops {
                true => (status, dense),
                false => (file.status()?, false),
            };
            let mut part = Partition::new(key, file);
            part.openers.enter(descriptors);
            part.size = status.size;
            part.disk_size = status.size;
            part.written_end = status.size;
            part.written.insert(0..status.size.next_multiple_of(self.shape.block_size));
            if dense {
                part.reserved.insert(0..status.size.next_multiple_of(unit));
            }
            if status.allocated > status.size.next_multiple_of(unit.max(65536)) {
                part.user.insert(status.size.next_multiple_of(unit)..status.allocated);
            }
            let id = locked.state.partitions.insert(part);
            locked.state.keys.insert(key, id);
            locked.state.wake_up(id, status.size, locked.actions);
            locked.state.trim(self.options.idle_partitions_max, locked.actions);
            locked.add_handle(id, read, write, handle)
        })
    }
}

impl Locked<'_> {
    /// The handle's user has been entered among the openers.
    fn add_handle(
        &mut self, id: PartitionId, read: bool, write: bool, share: Share,
    ) -> Result<HandleId> {
        let part = self.state.part(id);
        // Of one without a name and a handle the bytes are being dropped.
        let refusal = match part.gone() {
            true => Some(Errno::ESTALE),
            false => (read && !part.lost.is_empty()).then_some(Errno::EIO),
        };
        if let Some(errno) = refusal {
            part.openers.leave(share.user());
            return Err(errno);
        }
        part.handles += 1;
        part.lingering.clear();
        let idle_since = std::mem::take(&mut part.idle_since);
        self.state.idle.remove(&idle_since);
        let part = self.state.part(id);
        let (errors_seen, releases) = (part.error_count, part.releases);
        let handle = Handle {
            partition: id,
            share,
            errors_seen,
            expected: 0,
            in_a_row: 0,
            ahead_to: 0,
            swap_in_due: (read && write).then_some(releases),
        };
        let handle = self.state.handles.insert(handle);
        if read && write {
            // Who begins by writing over it all has no use for its bytes, and would wait for their transfer.
            self.state.later.push((handle, self.engine.now_ms().max(1)));
        } else if read {
            self.begin_swap_in(handle);
        }
        Ok(handle)
    }

    /// Starts what opening for reading starts.
    pub(crate) fn begin_swap_in(&mut self, number: HandleId) {
        let length = match self.engine.options.open_swap_in {
            OpenSwapIn::None => 0,
            OpenSwapIn::Ahead => self.engine.options.read_ahead,
            OpenSwapIn::All => u64::MAX,
        };
        let Some(handle) = self.state.handles.get_mut(number) else { return };
        let id = handle.partition;
        let reached = self.fetch(id, 0, length);
        if let Some(handle) = self.state.handles.get_mut(number) {
            handle.ahead_to = handle.ahead_to.max(reached);
        }
    }

    /// The same for one that was opened for both, unless its partition was released since.
    pub(crate) fn begin_due_swap_in(&mut self, number: HandleId) {
        let Some(handle) = self.state.handles.get_mut(number) else { return };
        let (due, id) = (handle.swap_in_due.take(), handle.partition);
        if due == Some(self.state.part(id).releases) && !self.state.stopping {
            self.begin_swap_in(number);
        }
    }

    /// The same for those opened for both a while ago, unless their partitions were written to since.
    pub(crate) fn begin_late_swap_ins(&mut self) {
        for (number, opened_ms) in std::mem::take(&mut self.state.later) {
            let Some(handle) = self.state.handles.get_mut(number) else { continue };
            let id = handle.partition;
            if self.state.part(id).written_ms >= opened_ms {
                self.state.handles.get_mut(number).expect("just looked at").swap_in_due = None;
            }
            self.begin_due_swap_in(number);
        }
    }
}

impl Engine {
    /// Ends a handle. Dirty blocks are queued for writing; what an unlinked partition still has is
    /// dropped with its last handle.
    pub fn release(&self, handle: HandleId) {
        self.with(|locked| {
            let Some(handle) = locked.state.handles.remove(handle) else {
                return;
            };
            let id = handle.partition;
            locked.state.part(id).handles -= 1;
            let share = locked.state.part(id).openers.leave(handle.user());
            if locked.state.part(id).handles == 0 {
                locked.state.idle_clock += 1;
                locked.state.part(id).idle_since = locked.state.idle_clock;
                locked.state.idle.insert(locked.state.idle_clock, id);
                if locked.state.idle.len() > self.options.idle_partitions_max {
                    // Its descriptors stay open beyond what there is for such: they are its last user's until then.
                    locked.state.part(id).lingering.extend(share);
                }
            }
            if locked.state.part(id).gone() {
                locked.discard_unlinked(id);
            } else if !(locked.state.part(id).handles == 0 && locked.state.part(id).unlinked) {
                locked.flush_partition(id);
                locked.settle_if_due(id);
                locked.pack(id);
            }
            locked.state.drop_if_unused(id, locked.actions);
            locked.state.trim(self.options.idle_partitions_max, locked.actions);
        });
    }

    /// Tells the engine that the last name of a file is gone: without handles, its buffers and its
    /// space are given up at once, or if it is still `known` when it is [forgotten](Engine::forgotten).
    pub fn unlinked(&self, key: FileKey, known: bool) {
        self.with(|locked| {
            let Some(id) = locked.state.keys.get(&key).copied() else {
                return locked.state.forget_resting_key(key);
            };
            let part = locked.state.part(id);
            (part.unlinked, part.known) = (true, known);
            locked.drop_if_gone(id);
        });
    }

    /// A file has a name, the first one perhaps.
    pub fn linked(&self, key: FileKey) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                let part = locked.state.part(id);
                (part.unlinked, part.known) = (false, false);
            }
        });
    }

    /// Nobody will open this file any more, if it has no name.
    pub fn forgotten(&self, key: FileKey) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                locked.state.part(id).known = false;
                locked.drop_if_gone(id);
            }
        });
    }

    /// The user set a partition's modification time: neither writing out nor giving space back must
    /// change it. Kept for a clean partition too: a transfer that ended just now, or the end of a
    /// settling under way, may have changed the backing file's after the user's call.
    /// `changed` is the backing file's change time since.
    pub fn set_modified(&self, key: FileKey, time: SystemTime, changed: SystemTime) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                let part = locked.state.part(id);
                part.modified = Some(time);
                part.changed = Some(ChangeTime { shown: changed, settled: None });
                locked.state.note_unsettled(id);
                locked.settle_if_due(id);
            }
        });
    }

    /// The user changed attributes of a partition, which gave its backing file this change time.
    pub fn attributes_changed(&self, key: FileKey, changed: SystemTime) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                locked.state.part(id).attributes_changed(changed);
            }
        });
    }
}

impl Locked<'_> {
    fn drop_if_gone(&mut self, id: PartitionId) {
        if self.state.part(id).gone() {
            self.discard_unlinked(id);
        }
        self.state.drop_if_unused(id, self.actions);
    }

    pub(crate) fn discard_unlinked(&mut self, id: PartitionId) {
        let buffers: Vec<_> = self.state.part(id).blocks.values().copied().collect();
        for block_id in buffers {
            self.discard_block(block_id);
        }
    }

    /// Drops one block of an unlinked partition as soon as nobody is busy with it.
    pub(crate) fn discard_block(&mut self, block_id: BlockId) {
        if self.state.blocks[block_id].idle() {
            // One handle's worth of reference keeps the partition while its blocks go.
            self.state.detach(block_id, self.actions);
        }
    }
}
