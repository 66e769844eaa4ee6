use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::{Access, Hold};
use crate::aio::memory::{MemoryDevice, MemoryFile, MemoryFolder, MemoryOptions};
use crate::engine::HandleId;
use crate::engine::{Engine, EngineOptions, FileKey, OpenSwapIn, Request};
use crate::error::{Errno, Result};
use crate::pool::{Arena, ArenaOptions};

const BLOCK: u64 = 64 * 1024;

/// Long enough for what must not happen to happen.
const AWHILE: Duration = Duration::from_millis(50);

struct Rig {
    engine: Arc<Engine>,
    file: MemoryFile,
    folder: MemoryFolder,
}

const KEY: FileKey = FileKey { dev: 1, ino: 2, generation: 0 };

impl Rig {
    /// An engine with `buffers` buffers, and a file of `bytes`.
    fn new(buffers: u64, bytes: &[u8]) -> Rig {
        Rig::start(buffers, bytes, 0)
    }

    /// One in which partitions smaller than a block share buffers.
    fn with_small(buffers: u64, bytes: &[u8]) -> Rig {
        Rig::start(buffers, bytes, BLOCK)
    }

    fn start(buffers: u64, bytes: &[u8], min_swap_size: u64) -> Rig {
        let folder = MemoryFolder::unbounded();
        let file = MemoryFile::new(&folder);
        file.write_at(0, bytes).unwrap();
        let options = EngineOptions {
            pool_size: buffers * BLOCK,
            block_size: BLOCK,
            read_ahead: 0,
            open_swap_in: OpenSwapIn::None,
            min_swap_size,
            linger: Duration::from_secs(1 << 20),
            writeback_batch: 4,
            idle_partitions_max: 4,
            intakes: 2,
        };
        let size = options.arena_size(512);
        let arena = ArenaOptions { size, pin_memory: false, huge_pages: false };
        let device = MemoryDevice::new(MemoryOptions::default()).unwrap();
        let engine = Engine::start(options, Arena::new(arena).unwrap(), device);
        Rig { engine, file, folder }
    }

    fn open(&self) -> HandleId {
        let file = self.file.reopen(true);
        self.engine.open(KEY, false, true, || Ok(Arc::new(file))).unwrap()
    }

    fn other(&self, ino: u64, bytes: &[u8]) -> HandleId {
        let file = MemoryFile::new(&self.folder);
        file.write_at(0, bytes).unwrap();
        let key = FileKey { ino, ..KEY };
        self.engine.open(key, false, true, || Ok(Arc::new(file))).unwrap()
    }

    fn read(&self, handle: HandleId, offset: u64, length: u64) -> Vec<u8> {
        let (sender, receiver) = mpsc::channel();
        let reply =
            Box::new(move |runs: Result<&[&[u8]]>| sender.send(runs.unwrap().concat()).unwrap());
        self.engine.read(handle, offset, length, reply);
        receiver.recv().unwrap()
    }

    fn write(&self, handle: HandleId, offset: u64, bytes: &[u8]) -> mpsc::Receiver<Result<usize>> {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
        self.engine.write(handle, offset, bytes, false, reply);
        receiver
    }

    fn close(&self, handle: HandleId) -> Result<()> {
        let (sender, receiver) = mpsc::channel();
        self.engine.close(handle, true, Box::new(move |outcome| sender.send(outcome).unwrap()));
        receiver.recv().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

fn bytes_of(hold: &Hold) -> Vec<u8> {
    hold.chunks().flatten().copied().collect()
}

#[test]
fn what_is_kept_is_not_evicted() {
    let content = pattern(3 * BLOCK);
    let rig = Rig::new(8, &content);
    let handle = rig.open();
    let keep = rig.engine.hold_now(handle, 0..3 * BLOCK, Access::Keep).unwrap();
    assert_eq!(keep.chunks().count(), 0, "others read and write it");
    let other = rig.other(9, &pattern(20 * BLOCK));
    for block in 0..20 {
        assert_eq!(rig.read(other, block * BLOCK, 100).len(), 100);
    }
    let reads = rig.engine.device_stats().reads;
    let view = rig.engine.hold_now(handle, 0..3 * BLOCK, Access::Read).unwrap();
    assert_eq!(bytes_of(&view), content);
    assert!(view.chunks().all(|chunk| chunk.len() as u64 == BLOCK));
    assert_eq!(rig.engine.device_stats().reads, reads, "nothing was read again");
    drop(view);
    let mut keep = keep;
    keep.release_after(true);
    drop(keep);
    assert_eq!(rig.engine.info(KEY).unwrap().resident, 0);
}

#[test]
fn changes_are_the_holders_alone_until_given_back() {
    let rig = Rig::new(8, &pattern(2 * BLOCK));
    let handle = rig.open();
    let mut hold = rig.engine.hold_now(handle, 0..2 * BLOCK, Access::Update).unwrap();
    let written = rig.write(handle, 10, b"later");
    assert!(written.recv_timeout(AWHILE).is_err(), "a writer waits for the holder");
    hold.chunks_mut().for_each(|chunk| chunk.fill(7));
    drop(hold);
    assert_eq!(written.recv().unwrap(), Ok(5));
    assert_eq!(rig.read(handle, 8, 9), [7, 7, b'l', b'a', b't', b'e', b'r', 7, 7]);
    // The first block is full, and goes out with the client's write; what the holder alone has changed stays.
    assert!(rig.file.bytes()[BLOCK as usize..] == pattern(2 * BLOCK)[BLOCK as usize..]);
    rig.close(handle).unwrap();
    assert_eq!(rig.file.bytes()[8..17], [7, 7, b'l', b'a', b't', b'e', b'r', 7, 7]);
}

#[test]
fn filling_reads_nothing_and_makes_the_partition_longer() {
    let rig = Rig::new(8, &[]);
    let handle = rig.open();
    let blank = rig.engine.hold_now(handle, 0..BLOCK + 1024, Access::Blank).unwrap();
    let mut hold = rig.engine.hold_now(handle, 0..BLOCK + 1024, Access::Fill).unwrap();
    assert_eq!(rig.engine.info(KEY).unwrap().size, 0);
    hold.chunks_mut().for_each(|chunk| chunk.fill(3));
    drop(hold);
    assert_eq!(rig.engine.info(KEY).unwrap().size, BLOCK + 1024);
    rig.close(handle).unwrap();
    assert_eq!(rig.file.bytes(), vec![3; BLOCK as usize + 1024]);
    assert_eq!(rig.engine.device_stats().reads, 0);
    drop(blank);
}

#[test]
fn what_a_holder_leaves_beyond_the_end_is_not_there_when_the_partition_grows() {
    let rig = Rig::new(8, &pattern(5000));
    let handle = rig.open();
    let mut hold = rig.engine.hold_now(handle, 0..5000, Access::Update).unwrap();
    hold.chunks_mut().for_each(|chunk| chunk.fill(7));
    // One grows it while it is held, in another page, and one after that.
    assert_eq!(rig.write(handle, 9000, b"more").recv().unwrap(), Ok(4));
    drop(hold);
    let grown = [&[7; 5000][..], &[0; 4000], b"more"].concat();
    assert!(rig.read(handle, 0, 10_000) == grown);
    rig.close(handle).unwrap();
    assert!(rig.file.bytes() == grown);
}

#[test]
fn a_hold_that_was_never_filled_leaves_nothing() {
    let rig = Rig::new(8, &[]);
    let handle = rig.open();
    let blank = rig.engine.hold_now(handle, 0..3 * BLOCK, Access::Blank).unwrap();
    assert_eq!(rig.engine.pool().available, 5);
    drop(blank);
    assert_eq!(rig.engine.pool().available, 8);
    assert_eq!(rig.engine.info(KEY).unwrap().size, 0);
}

#[test]
fn refusals_have_an_errno_and_keep_nothing() {
    let rig = Rig::new(8, &pattern(BLOCK));
    let handle = rig.open();
    let refused =
        |handle, bytes, access| rig.engine.hold_now(handle, bytes, access).map(drop).unwrap_err();
    assert_eq!(refused(handle, 0..2 * BLOCK, Access::Keep), Errno::ENODATA);
    assert_eq!(refused(handle, 0..0, Access::Keep), Errno::EINVAL);
    assert_eq!(refused(handle, 7..BLOCK, Access::Fill), Errno::EINVAL);
    assert_eq!(refused(HandleId(handle.0 + 77), 0..BLOCK, Access::Keep), Errno::EBADF);
    assert_eq!(rig.engine.pool().available, 8);
}

#[test]
fn held_buffers_do_not_look_like_moving_ones() {
    // All but what a request needs is held or lent: reads of others go on through the rest, and blocks
    // kept by request give way.
    let rig = Rig::new(24, &pattern(3 * BLOCK));
    let handle = rig.open();
    let keep = rig.engine.hold_now(handle, 0..3 * BLOCK, Access::Keep).unwrap();
    let pool = rig.engine.buffer_pool();
    assert_eq!(pool.total(), 24 - 17);
    let lent = pool.allocate(4).unwrap();
    assert!(lent.iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)));
    assert_eq!(rig.engine.pool().reserved, 4);
    let other = rig.other(9, &pattern(40 * BLOCK));
    rig.engine.swap_in(rig.other(10, &pattern(17 * BLOCK))).unwrap();
    rig.engine.reserve_buffers(20).unwrap();
    for block in (0..40).step_by(5) {
        let read = rig.read(other, block * BLOCK, 5 * BLOCK);
        assert!(read[..] == pattern(40 * BLOCK)[(block * BLOCK) as usize..][..5 * BLOCK as usize]);
    }
    drop((keep, lent));
    assert_eq!(rig.engine.pool().reserved, 20);
}

#[test]
fn a_discard_of_held_blocks_waits_for_views_only() {
    let content = pattern(2 * BLOCK);
    let rig = Rig::new(8, &content);
    let handle = rig.open();
    let keep = rig.engine.hold_now(handle, 0..2 * BLOCK, Access::Keep).unwrap();
    let mut hold = rig.engine.hold_now(handle, 0..BLOCK, Access::Update).unwrap();
    rig.engine.request(KEY, Request::Discard);
    hold.chunks_mut().for_each(|chunk| chunk.fill(1));
    drop(hold);
    // The discard has had its turn; what is kept is empty now and is swapped in anew.
    let view = rig.engine.hold_now(handle, 0..2 * BLOCK, Access::Read).unwrap();
    assert!(bytes_of(&view) == content);
    drop((view, keep));
}

#[test]
fn a_view_keeps_nobody_from_room() {
    let rig = Rig::new(24, &pattern(2 * BLOCK));
    let kept = rig.other(9, &pattern(22 * BLOCK));
    rig.engine.swap_in(kept).unwrap();
    while rig.engine.inflight() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let view = rig.engine.hold_now(rig.open(), 0..2 * BLOCK, Access::Read).unwrap();
    // Every buffer is in use, by the view and by what was kept on request; the latter gives way.
    let (sender, receiver) = mpsc::channel();
    let more = rig.other(10, &pattern(5 * BLOCK));
    let reply = Box::new(move |hold| sender.send(hold).unwrap());
    rig.engine.hold(more, 0..5 * BLOCK, Access::Read, reply);
    let hold: Result<Hold> = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(bytes_of(&hold.unwrap()) == pattern(5 * BLOCK));
    drop(view);
}

#[test]
fn what_is_held_goes_out_when_its_holder_says() {
    let content = pattern(2 * BLOCK);
    let rig = Rig::new(24, &content);
    let handle = rig.open();
    let keep = rig.engine.hold_now(handle, 0..2 * BLOCK, Access::Keep).unwrap();
    let mut hold = rig.engine.hold_now(handle, 0..2 * BLOCK, Access::Update).unwrap();
    hold.chunks_mut().for_each(|chunk| chunk.fill(1));
    drop(hold);
    // Others want room, which these blocks cannot give.
    let lent = rig.engine.buffer_pool().allocate_all();
    let other = rig.other(9, &pattern(40 * BLOCK));
    let reads: Vec<_> = (0..40)
        .map(|block| {
            let (sender, receiver) = mpsc::channel();
            let reply = Box::new(move |runs: Result<&[&[u8]]>| sender.send(runs.is_ok()).unwrap());
            rig.engine.read(other, block * BLOCK, BLOCK, reply);
            receiver
        })
        .collect();
    assert!(reads.iter().all(|read| read.recv().unwrap()));
    assert!(rig.file.bytes() == content, "the holder may still discard it");
    drop((keep, lent));
    rig.close(handle).unwrap();
    assert_eq!(rig.file.bytes(), vec![1; 2 * BLOCK as usize]);
}

mod slots;
