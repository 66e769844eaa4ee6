//! The device of production: one io_uring per aio thread, with the pool's memory and the backing
//! files registered.
//!
//! Submitters push into a lane and wake its thread only when that sleeps; everything else happens
//! on the thread, which is the only one to touch its ring.

mod entry;
mod files;
mod inline;
mod lane;
mod ring;
mod setup;
mod survey;
mod table;
#[cfg(test)]
mod tests;
mod wake;

pub use survey::{Survey, survey};

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::device::{
    Completion, CompletionSink, Device, DeviceStats, Geometry, InlineReader, Transfer, refused,
};
use super::settings::AioSettings;
use super::worker::join;
use crate::concurrent::thread;
use crate::error::Errno;
use crate::pool::Arena;
use crate::sys_process::touch_stack;
use inline::{RingReader, RingReaders};
use lane::Lane;
use ring::Ring;

/// Moves bytes with io_uring: `thread_count` rings with at most `queue_depth` transfers in flight
/// each, and a few syncs beside them. A file's stripes go to the rings in turn. Files that are not
/// [`DiskFile`](super::file::DiskFile)s go by descriptor; those without one fail with EBADF.
pub struct UringDevice {
    lanes: Vec<Arc<Lane>>,
    readers: Arc<RingReaders>,
    single_submit: bool,
    sink: Arc<OnceLock<Arc<dyn CompletionSink>>>,
    /// Held while the threads are joined, so that a second `shutdown` waits for the first.
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    geometry: Geometry,
    stripe: u64,
    registered_buffers: bool,
    registered_files: bool,
}

impl std::fmt::Debug for UringDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("UringDevice")
            .field("lanes", &self.lanes)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

impl UringDevice {
    /// Makes the rings, registers `arena` with them (a refusal is a warning in the log and visible
    /// in the statistics) and starts their threads. The files `kept` stay open until the last transfer has
    /// ended: those under way when a process is killed go on without it, and a lock on such a file says so.
    ///
    /// # Errors
    ///
    /// EINVAL for settings out of range; ENOSYS, EPERM and the like where io_uring is not to be had; those
    /// of creating threads.
    pub fn new(
        settings: &AioSettings, arena: Option<Arc<Arena>>, geometry: Geometry,
        kept: &[BorrowedFd<'_>],
    ) -> io::Result<Arc<Self>> {
        if !settings.valid() || !geometry.alignment.is_power_of_two() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let rings =
            setup::make_rings(settings.thread_count, settings.queue_depth, arena.as_ref(), kept)?;
        let lanes =
            rings.iter().map(|_| Lane::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        // Made before the threads: dropping it ends those that started when a later one cannot.
        let device = Arc::new(Self {
            lanes,
            single_submit: settings.single_submit,
            readers: Arc::new(RingReaders::new(rings.first())),
            sink: Arc::new(OnceLock::new()),
            threads: Mutex::new(Vec::new()),
            geometry,
            stripe: settings.stripe,
            registered_buffers: rings.iter().all(|new| new.arena.is_some()),
            registered_files: rings.iter().all(|new| new.files > 0),
        });
        for (index, new) in rings.into_iter().enumerate() {
            let lane = Arc::clone(&device.lanes[index]);
            let ring = Ring::new(new, settings, lane, Arc::clone(&device.sink), geometry);
            let thread =
                thread::Builder::new().name(format!("swapfs-aio-{index}")).spawn(move || {
                    touch_stack();
                    ring.run();
                })?;
            device.threads.lock().push(thread);
        }
        Ok(device)
    }

    /// The lane of a transfer. The file's id spreads files of one stripe over the rings; a sync may
    /// go anywhere, because the writes it covers have completed.
    fn lane_index(&self, transfer: &Transfer) -> usize {
        let turn = (transfer.offset / self.stripe).wrapping_add(transfer.file.id());
        usize::try_from(turn % self.lanes.len() as u64).expect("less than the number of lanes")
    }
}

impl Device for UringDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.sink.set(sink).is_ok(), "connect is called once");
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        if batch.is_empty() {
            return;
        }
        assert!(self.sink.get().is_some(), "connect comes before the first submission");
        for transfer in batch.iter() {
            transfer.check(self.geometry);
        }
        // Bit n: something was pushed into lane n. There are at most 64.
        let mut touched = 0_u64;
        let mut closed: Vec<Completion> = Vec::new();
        for transfer in batch.drain(..) {
            let index = self.lane_index(&transfer);
            match self.lanes[index].push(transfer) {
                Ok(()) => touched |= 1 << index,
                Err(transfer) => closed.push(refused(transfer, Errno::ENODEV)),
            }
        }
        for (index, lane) in self.lanes.iter().enumerate() {
            if touched & (1 << index) != 0 {
                lane.rouse();
            }
        }
        if !closed.is_empty() {
            self.sink.get().expect("asserted above").complete(&mut closed);
        }
    }

    fn inline_reader(&self) -> Option<Box<dyn InlineReader>> {
        let sink = self.sink.get().expect("connect comes before the first submission");
        let reader =
            RingReader::new(self.readers.clone(), sink.clone(), self.geometry, self.single_submit)?;
        Some(Box::new(reader))
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = DeviceStats {
            engine: "io_uring",
            registered_buffers: self.registered_buffers,
            registered_files: self.registered_files,
            ..DeviceStats::default()
        };
        self.lanes.iter().for_each(|lane| lane.counters.add_to(&mut stats));
        self.readers.counters.add_to(&mut stats);
        stats
    }

    fn shutdown(&self) {
        let mut threads = self.threads.lock();
        self.readers.close();
        self.lanes.iter().for_each(|lane| lane.drain());
        join(threads.drain(..));
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.shutdown();
    }
}
