//! A device under test with its memory, its files and the completions it delivered.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use swapfs::aio::AioSettings;
use swapfs::aio::device::{
    Action, BackingFile, Completion, CompletionSink, Device, Geometry, Transfer,
};
use swapfs::aio::file::DiskFile;
use swapfs::aio::memory::{MemoryDevice, MemoryFile, MemoryFolder, MemoryOptions};
use swapfs::aio::threads::ThreadDevice;
use swapfs::aio::uring::UringDevice;
use swapfs::pool::{Arena, ArenaOptions, ReadLease, WriteLease};

pub(crate) const ALIGNMENT: usize = 4096;
pub(crate) const GEOMETRY: Geometry = Geometry { alignment: ALIGNMENT, direct: true };
/// Bytes of one buffer of the harness.
pub(crate) const BUFFER: usize = 64 << 10;
pub(crate) const BUFFERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps completions until a test asks for them.
#[derive(Default)]
pub(crate) struct Collector {
    done: Mutex<Vec<Completion>>,
    arrived: Condvar,
    other: OnceLock<Arc<dyn CompletionSink>>,
}

impl CompletionSink for Collector {
    fn complete(&self, done: &mut Vec<Completion>) {
        if let Some(other) = self.other.get() {
            other.complete(done);
            return;
        }
        self.done.lock().unwrap().append(done);
        self.arrived.notify_all();
    }
}

impl Collector {
    /// Takes all completions as soon as there are `count`.
    pub(crate) fn wait(&self, count: usize) -> Vec<Completion> {
        let end = Instant::now() + PATIENCE;
        let mut done = self.done.lock().unwrap();
        while done.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} completions in time", done.len());
            done = self.arrived.wait_timeout(done, left).unwrap().0;
        }
        std::mem::take(&mut *done)
    }

    /// Hands everything to another sink from now on.
    pub(crate) fn redirect(&self, other: Arc<dyn CompletionSink>) {
        assert!(self.other.set(other).is_ok(), "redirected once");
    }

    pub(crate) fn count(&self) -> usize {
        self.done.lock().unwrap().len()
    }
}

pub(crate) struct Harness {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) sink: Arc<Collector>,
    pub(crate) folder: tempfile::TempDir,
    memory: bool,
    /// The device has what is moved in parts: its counters tell of more transfers than were submitted.
    pub(crate) in_parts: bool,
}

pub(crate) fn arena() -> Arc<Arena> {
    let size = BUFFER * BUFFERS;
    Arena::new(ArenaOptions { size, pin_memory: false, huge_pages: true }).unwrap()
}

/// A folder on a real filesystem that does direct I/O.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

impl Harness {
    pub(crate) fn new(device: Arc<dyn Device>, arena: Arc<Arena>) -> Self {
        let sink = Arc::new(Collector::default());
        device.connect(Arc::clone(&sink) as Arc<dyn CompletionSink>);
        Self { device, arena, sink, folder: folder(), memory: false, in_parts: false }
    }

    pub(crate) fn uring(settings: &AioSettings) -> Self {
        let arena = arena();
        Self::new(UringDevice::new(settings, Some(arena.clone()), GEOMETRY, &[]).unwrap(), arena)
    }

    pub(crate) fn threads(settings: &AioSettings) -> Self {
        Self::new(ThreadDevice::new(settings, GEOMETRY).unwrap(), arena())
    }

    pub(crate) fn memory(options: MemoryOptions) -> Self {
        let device = MemoryDevice::new(options).unwrap();
        Self { memory: true, ..Self::new(device, arena()) }
    }

    /// For a device that decorates a memory device.
    pub(crate) fn over_memory(device: Arc<dyn Device>) -> Self {
        Self { memory: true, ..Self::new(device, arena()) }
    }

    /// A new empty file, for writing and for reading only.
    pub(crate) fn files(&self) -> (Arc<dyn BackingFile>, Arc<dyn BackingFile>) {
        if self.memory {
            let file = MemoryFile::new(&MemoryFolder::unbounded());
            let twin = file.reopen(false);
            return (Arc::new(file), Arc::new(twin));
        }
        let path = tempfile::Builder::new().tempfile_in(&self.folder).unwrap().into_temp_path();
        let open = |write: bool| -> File {
            let mut options = OpenOptions::new();
            options.read(true).write(write).custom_flags(libc::O_DIRECT);
            options.open(&path).unwrap()
        };
        let files = (open(true), open(false));
        (
            Arc::new(DiskFile::new(files.0.into()).unwrap()),
            Arc::new(DiskFile::new(files.1.into()).unwrap()),
        )
    }

    pub(crate) fn file(&self) -> Arc<dyn BackingFile> {
        self.files().0
    }

    /// The harness's buffer `index`, for writing. Each test uses a buffer once at a time.
    pub(crate) fn buffer(&self, index: usize, length: usize) -> WriteLease {
        assert!(length <= BUFFER);
        // SAFETY: the tests never hold two leases of one buffer at a time.
        unsafe { self.arena.write_lease(index * BUFFER, length) }
    }

    pub(crate) fn filled(&self, index: usize, length: usize, byte: u8) -> ReadLease {
        let mut lease = self.buffer(index, length);
        lease.fill(byte);
        lease.downgrade()
    }

    /// Submits one transfer and waits for it.
    pub(crate) fn perform(
        &self, file: &Arc<dyn BackingFile>, offset: u64, action: Action,
    ) -> Completion {
        self.device.submit(&mut vec![transfer(0, file, offset, action)]);
        let mut done = self.sink.wait(1);
        assert_eq!(done.len(), 1);
        done.pop().unwrap()
    }

    /// A batch of writes of whole buffers.
    pub(crate) fn writes(&self, file: &Arc<dyn BackingFile>, count: usize) -> Vec<Transfer> {
        let write = |index: usize| {
            let lease = self.filled(index, BUFFER, index as u8);
            transfer(index as u64, file, (index * BUFFER) as u64, Action::Write(lease))
        };
        (0..count).map(write).collect()
    }
}

pub(crate) fn transfer(
    token: u64, file: &Arc<dyn BackingFile>, offset: u64, action: Action,
) -> Transfer {
    Transfer { token, action, file: Arc::clone(file), offset }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A reproducible sequence.
pub(crate) struct Sequence(pub(crate) u64);

impl Sequence {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }
}
