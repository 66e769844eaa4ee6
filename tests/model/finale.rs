//! What must hold at the end of a case, when nothing fails any more.

use swapfs::engine::HandleId;
use swapfs::error::{Errno, Result};

use super::driver::Driver;
use super::plain::compare;
use super::rig::{BLOCK, Pending};

/// Read at once at the end.
const PIECE: u64 = 2 * BLOCK;

impl Driver {
    /// Ends all operations, checks every file against the model and lets it go.
    pub(crate) fn finish(mut self) {
        self.drain();
        if let Some(fault) = &self.world.fault {
            fault.set_enabled(false);
        }
        let engine = self.world.engine.clone();
        engine.release_reserved_buffers();
        self.world.until("idle", || !engine.inflight());
        for slot in 0..self.slots.len() {
            self.check_reports(slot);
            self.check_file(slot);
        }
        if self.world.fault.is_none() {
            let (pending, reply) = Pending::new();
            engine.sync_all(Box::new(reply));
            assert_eq!(pending.wait(&self.world, "sync_all"), [""; 0]);
        }
        for slot in &mut self.slots {
            for handle in std::mem::take(&mut slot.handles) {
                engine.release(handle.id);
            }
        }
        if !self.world.fails() {
            self.check_space();
        }
    }

    fn close_now(&self, handle: HandleId) -> Result<()> {
        let (pending, reply) = Pending::new();
        self.world.engine.close(handle, false, Box::new(reply));
        pending.wait(&self.world, "close")
    }

    fn sync_now(&self, handle: HandleId) -> Result<()> {
        let (pending, reply) = Pending::new();
        self.world.engine.sync(handle, false, Box::new(reply));
        pending.wait(&self.world, "sync")
    }

    /// Every handle reports what has failed since it was opened, once.
    fn check_reports(&self, slot: usize) {
        let at = &self.slots[slot];
        let failures = self.world.failures(&at.file);
        for handle in &at.handles {
            let first = self.close_now(handle.id);
            if !handle.reported && !at.shared {
                let text = format!("slot {slot}, {handle:?}, {failures:?}, {first:?}");
                let stores = handle.failures_at_open.stores;
                assert!(first.is_err() || failures.stores == stores, "{text}");
                assert!(first.is_ok() || handle.failures_before != Some(failures), "{text}");
            }
            assert_eq!(self.close_now(handle.id), Ok(()), "slot {slot}: reported twice");
        }
        for handle in &at.handles {
            assert_eq!(self.sync_now(handle.id), Ok(()), "slot {slot}: nothing fails any more");
        }
    }

    /// All bytes are those of the model, in the pool and in the swap folder; those that were lost say
    /// so.
    fn check_file(&mut self, slot: usize) {
        let world = self.world.clone();
        let at = &self.slots[slot];
        let reader = at.file.open(&world, true, false);
        let (id, lost) = match reader {
            Ok(id) => (id, false),
            Err(errno) => {
                assert!(world.fails() && errno == Errno::EIO, "slot {slot}: {errno}");
                // A handle for writing can still be had, and reads what is not lost.
                (at.file.open(&world, false, true).expect("no reading"), true)
            }
        };
        // Without handles until now, it may still have something to write.
        assert_eq!(self.sync_now(id), Ok(()), "slot {slot}");
        let stored = at.stored();
        assert!(
            at.shared || stored.len() as u64 == at.plain.size(),
            "slot {slot}: {} bytes are stored, {} belong there",
            stored.len(),
            at.plain.size()
        );
        let step = if lost { 4096 } else { PIECE };
        let mut offset = 0;
        let mut missing = 0;
        while offset < at.plain.size() {
            let length = step.min(at.plain.size() - offset);
            let expected = at.plain.range(offset..offset + length);
            let pending = self.start_read(id, at.base + offset, length);
            let on_disk = stored.get(offset as usize..(offset + length) as usize);
            let found = match pending.wait(&world, "the last read") {
                Ok(found) => [Some(&found[..]), on_disk].map(|bytes| bytes.map(<[u8]>::to_vec)),
                Err(errno) => {
                    assert!(lost && errno == Errno::EIO, "slot {slot}: {errno} at {offset}");
                    missing += 1;
                    offset += length;
                    continue;
                }
            };
            for (bytes, place) in found.into_iter().zip(["pool", "swap folder"]) {
                let bytes = bytes.expect("the size was checked");
                if let Err(text) = compare(&bytes, &expected, offset, &at.plain.open) {
                    panic!("slot {slot}, {place} at the end: {text}\n{}", world.dump());
                }
            }
            offset += length;
        }
        assert_eq!(lost && !at.shared, missing > 0 && !at.shared, "slot {slot}");
        let info = world.engine.info(at.file.key).expect("it is open");
        if !at.shared {
            assert_eq!(info.error.is_some(), lost, "slot {slot}: {info:?}");
        }
        assert_eq!(info.dirty, 0, "slot {slot}: {info:?}");
        world.engine.release(id);
    }

    /// What was reserved ahead is given back.
    fn check_space(&self) {
        use swapfs::aio::device::BackingFile;
        for at in self.slots.iter().filter(|at| !at.kept && !at.shared) {
            let file = &at.file.file;
            let most = at.plain.size().next_multiple_of(8192.max(self.world.alignment as u64));
            let what = format!("space given back: {most}, {:?}", file.status());
            self.world.until(&what, || file.status().expect("in memory").allocated <= most);
        }
    }
}
