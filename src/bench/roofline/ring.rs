//! The device alone: the mount's own rings, from huge pages where there are any, with nothing above them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::aio::device::{Action, BackingFile, Completion, CompletionSink, Device, Transfer};
use crate::aio::file::DiskFile;
use crate::aio::probe::{Probe, probe};
use crate::aio::{AioSettings, open_device};
use crate::bench::case::Access;
use crate::bench::round::Round;
use crate::bench::settings::Settings;
use crate::bench::{BenchError, Result};
use crate::noise::fill;
use crate::pool::{ArenaOptions, SoleArena, WriteLease};
use crate::sys_process::reason;

/// What the arena is a multiple of.
const HUGE_PAGE_BYTES: usize = 2 << 20;

struct Sink(Sender<Completion>);

impl CompletionSink for Sink {
    fn complete(&self, done: &mut Vec<Completion>) {
        for completion in done.drain(..) {
            // Nobody listens any more after an error.
            let _ = self.0.send(completion);
        }
    }
}

/// A device and as many blocks as may be in flight.
pub(super) struct Ring {
    device: Arc<dyn Device>,
    completions: Receiver<Completion>,
    sole: SoleArena,
    idle: Vec<WriteLease>,
    block: u64,
    bytes: u64,
    direct: bool,
}

impl Ring {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let folder = settings.folders.first().map_or(Path::new("."), |folder| folder);
        let failed = |error: io::Error| BenchError::Failed(format!("the ring: {}", reason(&error)));
        let opened = File::open(folder).map_err(failed)?;
        let found: Probe = probe(opened.as_fd()).map_err(|errno| failed(errno.into()))?;
        let block = settings.block_size.max(found.alignment() as u64);
        let depth = settings.queue_depth as usize * settings.io_parallel as usize;
        let bytes = depth * usize::try_from(block).unwrap_or(usize::MAX);
        let options = ArenaOptions {
            size: bytes.next_multiple_of(HUGE_PAGE_BYTES),
            pin_memory: true,
            huge_pages: true,
        };
        let (sole, mut rest) = SoleArena::new(options).map_err(failed)?;
        fill(&mut rest, 1);
        let aio = AioSettings {
            queue_depth: settings.queue_depth,
            thread_count: settings.io_parallel,
            single_submit: settings.single_submit,
            overlap_events: settings.overlap_events,
            stripe: block,
            ..AioSettings::default()
        };
        let (device, _) = open_device(&aio, sole.arena(), found.alignment(), found.direct, &[])
            .map_err(failed)?;
        let (sender, completions) = unbounded();
        device.connect(Arc::new(Sink(sender)));
        let mut idle = Vec::with_capacity(depth);
        for _ in 0..depth {
            let (lease, tail) = rest.split_front(usize::try_from(block).unwrap_or(usize::MAX));
            idle.push(lease);
            rest = tail;
        }
        Ok(Self {
            device,
            completions,
            sole,
            idle,
            block,
            bytes: settings.io_size,
            direct: found.direct,
        })
    }

    /// Moves the whole blocks of a file that is there.
    pub(super) fn round(&mut self, path: &Path, access: Access, sync: bool) -> Result<Round> {
        let failed = |error: io::Error| {
            BenchError::Failed(format!("{}: {}", path.display(), reason(&error)))
        };
        let mut options = File::options();
        options.read(true).write(access == Access::Write);
        if self.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let opened = options.open(path).map_err(failed)?;
        let file = Arc::new(DiskFile::new(opened.into()).map_err(|errno| failed(errno.into()))?);
        let started = Instant::now();
        let mut offsets: VecDeque<u64> =
            (0..self.bytes / self.block).map(|n| n * self.block).collect();
        let mut under_way = 0;
        let mut moved = 0;
        while under_way > 0 || !offsets.is_empty() {
            let mut batch = Vec::new();
            while let (Some(offset), Some(lease)) = (offsets.front().copied(), self.idle.pop()) {
                offsets.pop_front();
                let action = match access {
                    Access::Write => Action::Write(lease.downgrade()),
                    Access::Read | Access::Mixed => Action::Read(lease),
                };
                batch.push(Transfer { token: 0, action, file: file.clone(), offset });
            }
            under_way += batch.len();
            self.device.submit(&mut batch);
            let gone = |_| failed(io::Error::other("the device went away"));
            let first = self.completions.recv().map_err(gone)?;
            for completion in std::iter::once(first).chain(self.completions.try_iter()) {
                under_way -= 1;
                moved += completion.result.map_err(|errno| failed(errno.into()))? as u64;
                self.idle.push(match completion.transfer.action {
                    Action::Read(lease) => lease,
                    Action::Write(lease) => self.sole.reclaim(lease),
                    Action::Sync { .. } => continue,
                });
            }
        }
        if sync && access == Access::Write {
            file.sync(true).map_err(|errno| failed(errno.into()))?;
        }
        let seconds = started.elapsed().as_secs_f64();
        if moved != self.bytes / self.block * self.block {
            return Err(failed(io::Error::other("transfers came back short")));
        }
        Ok(Round::single(seconds, moved))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.device.shutdown();
    }
}
