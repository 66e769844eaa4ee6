//! Small cases of what the random ones have found.

use std::sync::Arc;
use std::time::Duration;
use swapfs::engine::HandleId;

use swapfs::aio::device::BackingFile;
use swapfs::aio::fault::FaultPlan;
use swapfs::aio::memory::{MemoryFolder, MemoryOptions};
use swapfs::engine::{EngineOptions, Manner, OpenSwapIn, Request};
use swapfs::error::{Errno, Result};

use super::rig::{BLOCK, Kind, Pending, Rng, TestFile, World, receive};

/// A pool of four blocks in which nothing happens unasked.
fn world(kind: Kind, alignment: usize, folder: MemoryFolder, read_ahead: u64) -> Arc<World> {
    let options = EngineOptions {
        pool_size: 4 * BLOCK,
        block_size: BLOCK,
        read_ahead,
        open_swap_in: OpenSwapIn::None,
        linger: Duration::from_secs(60),
        writeback_batch: 1,
        min_swap_size: 0,
        idle_partitions_max: 8,
        intakes: 2,
    };
    let memory = MemoryOptions { alignment, ..MemoryOptions::default() };
    let plan = matches!(kind, Kind::Faulty | Kind::Awkward).then(FaultPlan::default);
    World::new(kind, options, memory, folder, plan)
}

fn plan(world: &World, plan: FaultPlan) {
    world.fault.as_ref().expect("with faults").set_plan(plan);
}

fn file(world: &World, blocks: u64) -> (TestFile, HandleId, Vec<u8>) {
    let file = TestFile::new(world);
    let bytes = Rng::new(blocks).bytes(blocks * BLOCK);
    file.fill(&bytes);
    let handle = file.open(world, true, true).expect("it is there");
    (file, handle, bytes)
}

fn read(world: &World, handle: HandleId, offset: u64, length: u64) -> Result<Vec<u8>> {
    let (pending, reply) = Pending::new();
    let reply = move |result: Result<&[&[u8]]>| reply(result.map(<[&[u8]]>::concat));
    world.engine.read(handle, offset, length, Box::new(reply));
    pending.wait(world, "read")
}

fn write(world: &World, handle: HandleId, offset: u64, data: &[u8]) -> Result<usize> {
    let (pending, reply) = Pending::new();
    world.engine.write(handle, offset, data, false, Box::new(reply));
    pending.wait(world, "write")
}

fn sync(world: &World, handle: HandleId, data_only: bool) -> Result<()> {
    let (pending, reply) = Pending::new();
    world.engine.sync(handle, data_only, Box::new(reply));
    pending.wait(world, "sync")
}

fn allocate(world: &World, handle: HandleId, mode: i32, offset: u64, length: u64) -> Result<()> {
    let (pending, reply) = Pending::new();
    world.engine.allocate(handle, mode, offset, length, Box::new(reply));
    pending.wait(world, "allocate")
}

#[test]
fn a_read_makes_no_room_with_its_own_blocks() {
    let world = world(Kind::Sound, 4096, MemoryFolder::unbounded(), 0);
    let (_a, a, bytes) = file(&world, 4);
    let (_b, b, _) = file(&world, 3);
    read(&world, a, 0, 100).expect("block 0, the oldest then");
    read(&world, b, 0, 3 * BLOCK).expect("the other buffers");
    let found = read(&world, a, 0, 2 * BLOCK);
    assert!(found == Ok(bytes[..2 * BLOCK as usize].to_vec()));
    world.engine.release(a);
    world.engine.release(b);
    world.end();
}

#[test]
fn reading_ahead_leaves_alone_what_is_about_to_be_copied() {
    let world = world(Kind::Sound, 4096, MemoryFolder::unbounded(), BLOCK);
    let (_a, a, bytes) = file(&world, 8);
    let all = 4 * BLOCK as usize;
    for block in 0..4 {
        read(&world, a, block * BLOCK, BLOCK).expect("resident");
    }
    for _ in 0..3 {
        assert!(read(&world, a, 0, 4 * BLOCK) == Ok(bytes[..all].to_vec()));
    }
    world.engine.release(a);
    world.end();
}

#[test]
fn a_punched_tail_still_counts_for_the_size() {
    for data_only in [false, true] {
        let world = world(Kind::Sound, 4096, MemoryFolder::unbounded(), 0);
        let test = TestFile::new(&world);
        let handle = test.open(&world, true, true).expect("new");
        assert_eq!(write(&world, handle, 100_000, &[7; 5000]), Ok(5000));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(allocate(&world, handle, punch, 0, 200_000), Ok(()));
        assert_eq!(sync(&world, handle, data_only), Ok(()));
        assert!(test.file.bytes() == [0; 105_000]);
        world.engine.release(handle);
        world.end();
    }
}

#[test]
fn a_partial_write_over_lost_bytes_fails_even_when_old_ones_are_resident() {
    let world = world(Kind::Faulty, 4096, MemoryFolder::unbounded(), 0);
    let (a, handle, bytes) = file(&world, 2);
    let (_b, other, _) = file(&world, 4);
    plan(&world, FaultPlan { write_error: 1.0, ..FaultPlan::default() });
    assert_eq!(write(&world, handle, 3 * 4096, &[9; 4096]), Ok(4096));
    assert_eq!(sync(&world, handle, false), Err(Errno::EIO));
    assert_eq!(world.engine.info(a.key).expect("open").error, Some(Errno::EIO));
    assert_eq!(read(&world, handle, 3 * 4096, 3), Ok(vec![9; 3]));
    plan(&world, FaultPlan::default());
    read(&world, other, 0, 4 * BLOCK).expect("needs every buffer");
    assert_eq!(read(&world, handle, 0, 100), Ok(bytes[..100].to_vec()));
    // Goes on from there, which reads the rest of the block too.
    let found = read(&world, handle, 100, 4096);
    assert!(found == Ok(bytes[100..4196].to_vec()));
    assert_eq!(read(&world, handle, 3 * 4096, 1), Err(Errno::EIO));
    assert_eq!(write(&world, handle, 3 * 4096 + 5, b"part"), Err(Errno::EIO));
    assert_eq!(write(&world, handle, 3 * 4096, &[8; 4096]), Ok(4096));
    assert_eq!(read(&world, handle, 3 * 4096, 4096), Ok(vec![8; 4096]));
    assert_eq!(sync(&world, handle, false), Ok(()));
    assert_eq!(world.engine.info(a.key).expect("open").error, None);
    world.engine.release(handle);
    world.engine.release(other);
    world.end();
}

#[test]
fn a_page_is_completed_in_steps_by_short_transfers() {
    let world = world(Kind::Awkward, 512, MemoryFolder::unbounded(), 0);
    let (a, handle, mut bytes) = file(&world, 1);
    plan(&world, FaultPlan { short_read: 1.0, ..FaultPlan::default() });
    assert_eq!(write(&world, handle, 5000, &[7; 100]), Ok(100));
    bytes[5000..5100].fill(7);
    assert_eq!(sync(&world, handle, false), Ok(()));
    assert!(a.file.bytes() == bytes);
    world.engine.release(handle);
    world.end();
}

#[test]
fn a_write_whose_page_cannot_be_completed_fails() {
    let world = world(Kind::Faulty, 4096, MemoryFolder::unbounded(), 0);
    let (a, handle, mut bytes) = file(&world, 1);
    plan(&world, FaultPlan { read_error: 1.0, ..FaultPlan::default() });
    assert_eq!(write(&world, handle, 100, &[7; 10]), Ok(10));
    assert_eq!(write(&world, handle, 1000, &[7; 10]), Err(Errno::EIO));
    plan(&world, FaultPlan::default());
    assert_eq!(write(&world, handle, 2000, &[7; 10]), Ok(10));
    bytes[100..110].fill(7);
    bytes[2000..2010].fill(7);
    assert_eq!(sync(&world, handle, false), Err(Errno::EIO));
    assert_eq!(sync(&world, handle, false), Ok(()));
    assert!(a.file.bytes() == bytes);
    assert_eq!(world.engine.info(a.key).expect("open").error, None);
    world.engine.release(handle);
    world.end();
}

#[test]
fn an_error_is_cleared_when_what_failed_succeeds() {
    let world = world(Kind::Faulty, 4096, MemoryFolder::unbounded(), 0);
    let (a, handle, bytes) = file(&world, 1);
    let error = || world.engine.info(a.key).expect("open").error;
    plan(&world, FaultPlan { read_error: 1.0, sync_error: 1.0, ..FaultPlan::default() });
    assert_eq!(read(&world, handle, 0, 10), Err(Errno::EIO));
    assert_eq!(sync(&world, handle, false), Err(Errno::EIO));
    assert_eq!(error(), Some(Errno::EIO));
    plan(&world, FaultPlan::default());
    assert_eq!(sync(&world, handle, false), Ok(()));
    assert_eq!(error(), Some(Errno::EIO), "not read yet");
    assert!(read(&world, handle, 0, BLOCK) == Ok(bytes));
    assert_eq!(error(), None);
    world.engine.release(handle);
    world.end();
}

#[test]
fn a_truncate_to_the_same_size_gives_back_reserved_space() {
    let folder = MemoryFolder::new(64 * 1024);
    let world = world(Kind::Full, 4096, folder.clone(), 0);
    let (a, b) = (TestFile::new(&world), TestFile::new(&world));
    let open = |test: &TestFile| test.open(&world, true, true).expect("new");
    let handles = [open(&a), open(&b)];
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(allocate(&world, handles[0], keep, 0, 64 * 1024), Ok(()));
    let (pending, reply) = Pending::new();
    world.engine.truncate(handles[0], 0, Box::new(reply));
    assert_eq!(pending.wait(&world, "truncate"), Ok(()));
    assert_eq!(folder.used(), 0);
    b.file.reserve(0, 64 * 1024).expect("it is free");
    assert_eq!(write(&world, handles[0], 0, &[1; 100]), Err(Errno::ENOSPC));
    for handle in handles {
        world.engine.release(handle);
    }
    world.end();
}

#[test]
fn what_lies_as_in_its_block_is_taken_in_by_exchange() {
    let world = world(Kind::Sound, 4096, MemoryFolder::unbounded(), 0);
    let (a, handle, mut bytes) = file(&world, 3);
    let mut intake = world.engine.intake().expect("two there are");
    let whole = BLOCK as usize;
    for (fill, offset, length, start, exchanged) in [
        // Into an absent block, over what has just been written, over all but the last byte of an absent block and
        // of one that is here.
        (1, whole, whole, 0, true),
        (2, whole, whole, 0, true),
        (3, 0, whole - 1, 0, true),
        (4, whole, whole - 1, 0, true),
        // Across two, received elsewhere and where it will lie; then with most of it in the first.
        (5, 2 * whole - 4095, whole, 0, false),
        (6, 2 * whole - 4095, whole, whole - 4095, true),
        (7, whole + 48, whole, 48, false),
        // The first bytes of a block whose others are here, and less than half of one.
        (8, 0, whole - 8192, 0, false),
        (9, 2 * whole, whole / 2 - 1, 0, false),
        (10, 2 * whole, whole, 4096, false),
        (11, 2 * whole, whole, 0, true),
    ] {
        receive(&mut intake, start, &vec![fill; length]);
        bytes[offset..][..length].fill(fill);
        let before = intake.as_ptr();
        let (pending, reply) = Pending::new();
        let reply = Box::new(reply);
        intake = world.engine.write_from(
            handle,
            offset as u64,
            intake,
            length,
            Manner::default(),
            reply,
        );
        assert_eq!(pending.wait(&world, "write"), Ok(length));
        assert_eq!(intake.as_ptr() != before, exchanged, "{fill}");
        intake.fill(0xEE);
        assert!(read(&world, handle, 0, 3 * BLOCK).as_ref() == Ok(&bytes), "{fill}");
        assert_eq!(sync(&world, handle, false), Ok(()));
        assert!(a.file.bytes() == bytes, "{fill}");
    }
    assert_eq!(world.engine.pool().buffers, 4);
    world.engine.return_intake(intake);
    world.engine.release(handle);
    world.end();
}

#[test]
fn a_transfer_without_an_answer_is_told_until_it_has_one() {
    let world = world(Kind::Awkward, 4096, MemoryFolder::unbounded(), 0);
    let (a, slow, _) = file(&world, 2);
    let (b, quick, bytes) = file(&world, 1);
    let stalled = |test: &TestFile| world.engine.info(test.key).expect("open").stalled;
    world.engine.watch_for_stalls(std::time::Duration::from_millis(100));
    let late_max = std::time::Duration::from_secs(4);
    // Both blocks by chance after less than the timeout: not with this seed.
    plan(&world, FaultPlan { late: 1.0, late_max, ..FaultPlan::default() });
    assert_eq!(write(&world, slow, 0, &[7; 2 * BLOCK as usize]), Ok(2 * BLOCK as usize));
    world.until("late", || world.fault.as_ref().expect("with faults").counts().late >= 2);
    plan(&world, FaultPlan::default());
    world.until("stalled", || stalled(&a).is_some());
    assert!(world.engine.unanswered() > std::time::Duration::ZERO);
    assert_eq!(world.engine.partitions().stalled, 1);
    assert_eq!(world.engine.not_stored().len(), 1);
    assert!(read(&world, quick, 0, BLOCK) == Ok(bytes));
    assert_eq!(stalled(&b), None);
    assert_eq!(sync(&world, slow, false), Ok(()));
    world.until("answered", || stalled(&a).is_none());
    assert_eq!(world.engine.unanswered(), std::time::Duration::ZERO);
    assert_eq!(world.engine.not_stored(), [""; 0]);
    world.engine.release(slow);
    world.engine.release(quick);
    world.end();
}

/// The first bytes of a write that failed may be in the file. A discard leaves the file as long as it is then: these
/// bytes do not come back in a hole.
#[test]
fn a_discarded_write_that_failed_leaves_nothing_in_a_hole() {
    let model = world(Kind::Sound, 4096, MemoryFolder::unbounded(), 0);
    let mut cases = 0;
    for seed in 0..20 {
        let memory = MemoryOptions { seed, ..MemoryOptions::default() };
        let faults = FaultPlan { short_write: 1.0, write_error: 0.5, ..FaultPlan::default() };
        let folder = MemoryFolder::unbounded();
        let world = World::new(Kind::Faulty, model.options, memory, folder, Some(faults));
        let (file, handle, _) = file(&world, 0);
        write(&world, handle, 0, &Rng::new(seed).bytes(BLOCK - 4096)).expect("there is room");
        let failed = sync(&world, handle, true).is_err();
        plan(&world, FaultPlan::default());
        if failed && file.file.status().unwrap().size > 0 {
            cases += 1;
            let (pending, reply) = Pending::new();
            world.engine.discard(file.key, Box::new(reply));
            pending.wait(&world, "discard").expect("it is there");
            let size = world.engine.info(file.key).expect("it is open").size;
            assert_eq!(size, file.file.status().unwrap().size, "seed {seed}");
            write(&world, handle, 2 * BLOCK, b"end").expect("there is room");
            sync(&world, handle, true).expect("no faults any more");
            world.engine.request(file.key, Request::Release);
            let found = read(&world, handle, 0, 2 * BLOCK).expect("a hole");
            assert!(found[size as usize..].iter().all(|byte| *byte == 0), "seed {seed}");
        }
        sync(&world, handle, true).expect("no faults any more");
        world.engine.release(handle);
        world.end();
    }
    assert!(cases > 0);
    model.end();
}
