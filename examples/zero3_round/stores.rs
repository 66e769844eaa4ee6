//! Where partitions are kept: files, moved by threads or by `aio::Handle`.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use swapfs::deepspeed::handle::Operation;
use swapfs::deepspeed::{Handle, HandleOptions, LockedTensor};

use super::Outcome;
use super::model::Partition;

/// The bytes of a partition while they are in memory, to read.
pub(crate) trait View {
    fn chunks(&self) -> Vec<&[u8]>;
}

/// The same, to change.
pub(crate) trait ViewMut: View {
    fn chunks_mut(&mut self) -> Vec<&mut [u8]>;
}

/// What a training run asks of its swap space.
pub(crate) trait Store {
    type View: View;
    type ViewMut: ViewMut;

    /// Begins to swap in, if there is room for it now; says whether.
    fn prefetch(&mut self, partition: &Partition) -> Outcome<bool>;
    /// Swaps in, or waits for what a prefetch began.
    fn swap_in(&mut self, partition: &Partition) -> Outcome<Self::View>;
    /// As [`swap_in`](Self::swap_in), for what is then changed.
    fn swap_in_to_update(&mut self, partition: &Partition) -> Outcome<Self::ViewMut>;
    /// Gives the memory back.
    fn release(&mut self, partition: &Partition, view: Self::View) -> Outcome<()>;
    /// Memory for a partition that is about to be written anew.
    fn get_buffer(&mut self, partition: &Partition) -> Outcome<Self::ViewMut>;
    /// Begins to write, and gives the memory back when that is done.
    fn swap_out(&mut self, partition: &Partition, view: Self::ViewMut) -> Outcome<()>;
    /// Waits for all writes.
    fn synchronize_writes(&mut self) -> Outcome<()>;
}

/// How whole files get into memory and back.
pub(crate) trait Mover {
    type Buffer: AsRef<[u8]> + AsMut<[u8]>;
    type Pending;

    fn buffer(&self, length: usize) -> Outcome<Self::Buffer>;
    fn begin(&self, path: PathBuf, buffer: Self::Buffer, write: bool) -> Outcome<Self::Pending>;
    fn finish(&self, pending: Self::Pending) -> Outcome<Self::Buffer>;
}

/// Memory in one piece.
pub(crate) struct Whole<B>(B);

impl<B: AsRef<[u8]>> View for Whole<B> {
    fn chunks(&self) -> Vec<&[u8]> {
        vec![self.0.as_ref()]
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> ViewMut for Whole<B> {
    fn chunks_mut(&mut self) -> Vec<&mut [u8]> {
        vec![self.0.as_mut()]
    }
}

/// Partitions as files below a folder, in buffers of the client's own, as DeepSpeed has them.
pub(crate) struct Files<M: Mover> {
    folder: PathBuf,
    mover: M,
    /// Bytes that may be read ahead, and as many that may be on their way out.
    ahead: usize,
    reads: HashMap<usize, M::Pending>,
    reading: usize,
    writes: VecDeque<(usize, M::Pending)>,
    writing: usize,
    /// By their length; a run has few different ones.
    free: HashMap<usize, Vec<M::Buffer>>,
}

impl<M: Mover> Files<M> {
    pub(crate) fn new(folder: &Path, ahead: usize, mover: M) -> Self {
        Self {
            folder: folder.to_owned(),
            mover,
            ahead,
            reads: HashMap::new(),
            reading: 0,
            writes: VecDeque::new(),
            writing: 0,
            free: HashMap::new(),
        }
    }

    fn buffer(&mut self, length: usize) -> Outcome<M::Buffer> {
        match self.free.get_mut(&length).and_then(Vec::pop) {
            Some(buffer) => Ok(buffer),
            None => self.mover.buffer(length),
        }
    }

    fn begin_read(&mut self, partition: &Partition) -> Outcome<M::Pending> {
        let path = self.folder.join(partition.path());
        // What DeepSpeed looks at before each read.
        let size = fs::metadata(&path)?.len();
        if size != partition.length as u64 {
            return Err(
                format!("{}: {size} bytes, not {}", path.display(), partition.length).into()
            );
        }
        let buffer = self.buffer(partition.length)?;
        self.mover.begin(path, buffer, false)
    }

    fn finish_write(&mut self) -> Outcome<()> {
        if let Some((length, pending)) = self.writes.pop_front() {
            let buffer = self.mover.finish(pending)?;
            self.writing -= length;
            self.free.entry(length).or_default().push(buffer);
        }
        Ok(())
    }
}

impl<M: Mover> Store for Files<M> {
    type View = Whole<M::Buffer>;
    type ViewMut = Whole<M::Buffer>;

    fn prefetch(&mut self, partition: &Partition) -> Outcome<bool> {
        let fits = self.reading == 0 || self.reading + partition.length <= self.ahead;
        if fits && !self.reads.contains_key(&partition.number) {
            let pending = self.begin_read(partition)?;
            self.reads.insert(partition.number, pending);
            self.reading += partition.length;
        }
        Ok(fits)
    }

    fn swap_in(&mut self, partition: &Partition) -> Outcome<Self::View> {
        let pending = match self.reads.remove(&partition.number) {
            Some(pending) => {
                self.reading -= partition.length;
                pending
            }
            None => self.begin_read(partition)?,
        };
        self.mover.finish(pending).map(Whole)
    }

    fn swap_in_to_update(&mut self, partition: &Partition) -> Outcome<Self::ViewMut> {
        self.swap_in(partition)
    }

    fn release(&mut self, partition: &Partition, view: Self::View) -> Outcome<()> {
        self.free.entry(partition.length).or_default().push(view.0);
        Ok(())
    }

    fn get_buffer(&mut self, partition: &Partition) -> Outcome<Self::ViewMut> {
        self.buffer(partition.length).map(Whole)
    }

    fn swap_out(&mut self, partition: &Partition, view: Self::ViewMut) -> Outcome<()> {
        while self.writing > 0 && self.writing + partition.length > self.ahead {
            self.finish_write()?;
        }
        let pending = self.mover.begin(self.folder.join(partition.path()), view.0, true)?;
        self.writes.push_back((partition.length, pending));
        self.writing += partition.length;
        Ok(())
    }

    fn synchronize_writes(&mut self) -> Outcome<()> {
        while self.writing > 0 {
            self.finish_write()?;
        }
        Ok(())
    }
}

const PAGE: usize = 4096;

/// Memory that begins at a page, as O_DIRECT wants it.
pub(crate) struct Pages {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..][..self.length]
    }
}

impl AsMut<[u8]> for Pages {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.length]
    }
}

struct Job {
    path: PathBuf,
    pages: Pages,
    write: bool,
    done: Sender<io::Result<Pages>>,
}

/// Threads with ordinary calls, one file each at a time.
pub(crate) struct Threads {
    jobs: Sender<Job>,
}

impl Threads {
    pub(crate) fn new(count: usize, direct: bool) -> Self {
        let (jobs, work) = unbounded::<Job>();
        let flags = if direct { libc::O_DIRECT } else { 0 };
        for _ in 0..count {
            let work = work.clone();
            std::thread::spawn(move || {
                for mut job in work {
                    let moved = move_file(&job.path, &mut job.pages, job.write, flags);
                    // Nobody waits for it after a failure elsewhere.
                    let _ = job.done.send(moved.map(|()| job.pages));
                }
            });
        }
        Self { jobs }
    }
}

fn move_file(path: &Path, pages: &mut Pages, write: bool, flags: i32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(!write).write(write).create(write).truncate(false).mode(0o600).custom_flags(flags);
    let file: File = options.open(path)?;
    match write {
        true => file.write_all_at(pages.as_ref(), 0),
        false => file.read_exact_at(pages.as_mut(), 0),
    }
}

impl Mover for Threads {
    type Buffer = Pages;
    type Pending = Receiver<io::Result<Pages>>;

    fn buffer(&self, length: usize) -> Outcome<Pages> {
        let memory = vec![0; length + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Ok(Pages { memory, start, length })
    }

    fn begin(&self, path: PathBuf, pages: Pages, write: bool) -> Outcome<Self::Pending> {
        let (done, pending) = bounded(1);
        self.jobs.send(Job { path, pages, write, done })?;
        Ok(pending)
    }

    fn finish(&self, pending: Self::Pending) -> Outcome<Pages> {
        Ok(pending.recv()??)
    }
}

/// `aio::Handle`, as DeepSpeed uses its own.
pub(crate) struct Aio(Handle);

impl Aio {
    pub(crate) fn new(queue_depth: u32) -> Outcome<Self> {
        let options =
            HandleOptions { queue_depth, overlap_events: true, ..HandleOptions::default() };
        Ok(Self(Handle::new(options)?))
    }
}

/// A locked tensor, as bytes.
pub(crate) struct Locked(LockedTensor);

impl AsRef<[u8]> for Locked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Locked {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Mover for Aio {
    type Buffer = Locked;
    type Pending = Operation<LockedTensor>;

    fn buffer(&self, length: usize) -> Outcome<Locked> {
        Ok(Locked(self.0.new_cpu_locked_tensor(length)?))
    }

    fn begin(&self, path: PathBuf, buffer: Locked, write: bool) -> Outcome<Self::Pending> {
        let begun = match write {
            true => self.0.async_pwrite(buffer.0, path, 0),
            false => self.0.async_pread(buffer.0, path, 0),
        };
        begun.map_err(|refused| refused.error.into())
    }

    fn finish(&self, pending: Self::Pending) -> Outcome<Locked> {
        let finished = pending.finish();
        finished.result?;
        Ok(Locked(finished.buffer))
    }
}
