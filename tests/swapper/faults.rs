//! A device that fails on purpose: every failure is told, and nothing is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use swapfs::aio::AioSettings;
use swapfs::aio::device::Geometry;
use swapfs::aio::fault::{FaultDevice, FaultPlan};
use swapfs::aio::threads::ThreadDevice;
use swapfs::aio::whole::Whole;
use swapfs::deepspeed::swapper::{Direction, TransferFailure};
use swapfs::deepspeed::{SwapError, Swapper};
use swapfs::engine::{Engine, EngineOptions, OpenSwapIn, PartitionStatus};
use swapfs::error::Errno;
use swapfs::pool::{Arena, ArenaOptions};
use tempfile::TempDir;

use super::support::{BLOCK, Random, options, pattern, place, seed};
use super::{fill, numel};

pub(crate) struct Rig {
    place: TempDir,
    pub(crate) faults: Arc<FaultDevice>,
    pub(crate) engine: Arc<Engine>,
    swapper: Option<Swapper>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::lingering(Duration::from_secs(1 << 20))
    }

    /// One whose engine writes what is dirty after a while.
    pub(crate) fn lingering(linger: Duration) -> Rig {
        let place = place();
        let seed = seed();
        println!("SWAPFS_SEED={seed}");
        let engine_options = EngineOptions {
            // Five more keep requests moving.
            pool_size: 21 * BLOCK,
            block_size: BLOCK,
            read_ahead: BLOCK,
            open_swap_in: OpenSwapIn::None,
            min_swap_size: 1 << 20,
            linger,
            writeback_batch: 8,
            idle_partitions_max: 16,
            intakes: 0,
        };
        let size = engine_options.arena_size(4096);
        let arena = ArenaOptions { size, pin_memory: false, huge_pages: false };
        let arena = Arena::new(arena).unwrap();
        // The page cache: this is about failures, not about what the disk takes.
        let geometry = Geometry { alignment: 512, direct: false };
        let device = ThreadDevice::new(&AioSettings::default(), geometry).unwrap();
        let faults = FaultDevice::new(device, seed, FaultPlan::default()).unwrap();
        let engine = Engine::start(engine_options, arena, Whole::new(faults.clone()));
        let swapper = Some(Swapper::with_engine(&options(&place), engine.clone()).unwrap());
        Rig { place, faults, engine, swapper }
    }

    pub(crate) fn swapper(&self) -> &Swapper {
        self.swapper.as_ref().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.faults.set_plan(FaultPlan::default());
        drop(self.swapper.take());
        self.engine.stop();
        assert!(self.place.path().exists());
    }
}

pub(crate) fn failures(error: SwapError) -> Vec<TransferFailure> {
    match error {
        SwapError::Transfers(failures) => failures,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failed_read_is_told_and_can_be_tried_again() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    let bytes = fill(swapper, 1, numel(2));
    swapper.swap_out_and_release(&[1], false, false).unwrap();
    rig.faults.set_plan(FaultPlan { read_error: 1.0, ..FaultPlan::default() });
    for async_op in [true, false] {
        let outcome = swapper.swap_in(&[1], async_op, None);
        let error = if async_op {
            assert_eq!(outcome.unwrap(), 0);
            swapper.synchronize_reads().unwrap_err()
        } else {
            outcome.unwrap_err()
        };
        let text = error.to_string();
        let failed = failures(error);
        assert_eq!((failed.len(), failed[0].errno, failed[0].offset), (1, Errno::EIO, 0));
        assert_eq!((failed[0].direction, &failed[0].path), (Direction::SwapIn, &swapper.path(1)));
        assert!(text.contains("1_param.tensor.swp") && text.contains("EIO"), "{text}");
        assert_eq!(swapper.status(1).unwrap(), PartitionStatus::NotAvailable);
        assert_eq!(swapper.available_swap_in_buffers(), 16);
        assert_eq!(swapper.synchronize_reads().unwrap(), 0, "told once");
    }
    let mut memory = vec![0; bytes.len()];
    let failed = failures(swapper.swap_into_buffer(1, &mut memory).unwrap_err());
    assert_eq!(failed[0].errno, Errno::EIO);
    let reserved = swapper.reserve_available_buffers().into_iter().take(3).collect::<Vec<_>>();
    let failed = failures(swapper.swap_in(&[1], false, Some(vec![reserved.into()])).unwrap_err());
    assert_eq!(failed[0].errno, Errno::EIO);
    drop(swapper.take_buffer(1).unwrap());
    assert_eq!(swapper.available_swap_in_buffers(), 16);

    rig.faults.set_plan(FaultPlan::default());
    swapper.swap_into_buffer(1, &mut memory).unwrap();
    assert!(memory == bytes);
    swapper.swap_in(&[1], false, None).unwrap();
    assert!(swapper.view(1).unwrap().to_vec() == bytes);
}

#[test]
fn a_failed_write_keeps_the_bytes() {
    for errno in [Errno::EIO, Errno::ENOSPC] {
        let rig = Rig::new();
        let swapper = rig.swapper();
        let bytes = fill(swapper, 1, numel(2));
        rig.faults.set_plan(match errno {
            Errno::EIO => FaultPlan { write_error: 1.0, ..FaultPlan::default() },
            _ => FaultPlan { write_no_space: 1.0, ..FaultPlan::default() },
        });
        let failed = failures(swapper.swap_out_and_release(&[1], false, false).unwrap_err());
        assert_eq!((failed[0].errno, failed[0].offset), (errno, 0));
        assert_eq!(failed[0].direction, Direction::SwapOut);
        swapper.swap_out_and_release(&[1], true, false).unwrap();
        let failed = failures(swapper.synchronize_writes().unwrap_err());
        assert_eq!(failed[0].errno, errno);
        assert_eq!(swapper.status(1).unwrap(), PartitionStatus::Available);
        assert!(swapper.view(1).unwrap().to_vec() == bytes, "the bytes are there still");
        assert!(matches!(
            swapper.remove_partition_and_release_buffers(&[1]),
            Err(SwapError::Unwritten { .. })
        ));
        rig.faults.set_plan(FaultPlan::default());
        swapper.swap_out_and_release(&[1], false, false).unwrap();
        assert!(std::fs::read(swapper.path(1)).unwrap()[..bytes.len()] == bytes);
        assert_eq!(swapper.available_swap_in_buffers(), 16);
    }
}

#[test]
fn a_forced_release_gives_the_buffers_back_whatever_happens() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    let bytes = fill(swapper, 1, numel(2));
    swapper.swap_out(&[1], false).unwrap();
    swapper.view_mut(1).unwrap().chunks_mut().for_each(|chunk| chunk.fill(0));
    rig.faults.set_plan(FaultPlan { write_error: 1.0, ..FaultPlan::default() });
    swapper.swap_out_and_release(&[1], true, true).unwrap();
    assert_eq!(failures(swapper.synchronize_writes().unwrap_err())[0].errno, Errno::EIO);
    assert_eq!(swapper.status(1).unwrap(), PartitionStatus::NotAvailable);
    assert_eq!(swapper.available_swap_in_buffers(), 16);
    rig.faults.set_plan(FaultPlan::default());
    swapper.swap_in(&[1], false, None).unwrap();
    assert!(swapper.view(1).unwrap().to_vec() == bytes, "what the swap folder has");
}

#[test]
fn short_and_late_transfers_are_gone_on_with() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    rig.faults.set_plan(FaultPlan {
        short_read: 0.7,
        short_write: 0.7,
        late: 0.3,
        late_max: Duration::from_millis(3),
        ..FaultPlan::default()
    });
    let bytes: Vec<_> = (0..3).map(|id| fill(swapper, id, numel(id + 1))).collect();
    swapper.swap_out_and_release(&[0, 1, 2], true, false).unwrap();
    assert_eq!(swapper.synchronize_writes().unwrap(), 3);
    swapper.swap_in(&[0, 1, 2], true, None).unwrap();
    assert_eq!(swapper.synchronize_reads().unwrap(), 3);
    for (id, bytes) in bytes.iter().enumerate() {
        assert!(swapper.view(id as u64).unwrap().to_vec() == *bytes);
    }
    swapper.remove_partition_and_release_buffers(&[0, 1, 2]).unwrap();
    let mut memory = vec![0; bytes[2].len()];
    swapper.swap_into_buffer(2, &mut memory).unwrap();
    assert!(memory == bytes[2]);
    let counts = rig.faults.counts();
    assert!(counts.short_read > 0 && counts.short_write > 0, "{counts:?}");
}

#[test]
fn one_of_three_fails_and_the_others_are_done() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    for id in 0..3 {
        fill(swapper, id, numel(1));
    }
    swapper.swap_out_and_release(&[0, 1, 2], false, false).unwrap();
    // A file that has become shorter than when it was written.
    let file = std::fs::File::options().write(true).open(swapper.path(1)).unwrap();
    file.set_len(1024).unwrap();
    let error = swapper.swap_in(&[0, 1, 2], true, None).unwrap_err();
    assert!(matches!(error, SwapError::FileSize { found: 1024, .. }), "{error:?}");
    for id in 0..3 {
        assert_eq!(swapper.status(id).unwrap(), PartitionStatus::NotAvailable, "all or none");
    }
    swapper.swap_in(&[0, 2], true, None).unwrap();
    assert_eq!(swapper.synchronize_reads().unwrap(), 2);
}

#[test]
fn a_failed_rewrite_is_told() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    let source = vec![1.5_f32; BLOCK as usize * 2];
    rig.faults.set_plan(FaultPlan { write_no_space: 1.0, ..FaultPlan::default() });
    swapper.reserve_partitioned_swap_space(&[BLOCK]).unwrap();
    let error = swapper.swap_out_partitioned_params(&[1], &[&source[..]]).unwrap_err();
    assert_eq!(failures(error)[0].errno, Errno::ENOSPC);
    assert_eq!(swapper.available_swap_in_buffers(), 14);
    rig.faults.set_plan(FaultPlan::default());
    swapper.swap_out_partitioned_params(&[1], &[&source[..]]).unwrap();
    let file = std::fs::read(swapper.path(1)).unwrap();
    assert!(file.chunks_exact(2).all(|bytes| bytes == half::f16::from_f32(1.5).to_ne_bytes()));
}

/// Without the right to mount a small filesystem, nothing is tested.
#[test]
fn a_full_disk_refuses_the_buffer() {
    let place = place();
    let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
    let small = nix::mount::mount(none, place.path(), Some("tmpfs"), flags, Some("size=1m"));
    if let Err(error) = small {
        return eprintln!("not tested, no tmpfs: {error}");
    }
    let swapper = Swapper::new(&options(&place)).unwrap();
    let outcomes = (
        swapper.get_buffer(1, BLOCK / 2).map(drop),
        swapper.get_buffer(2, BLOCK * 5 / 2).map(drop),
        swapper.swap_out_and_release(&[1], false, false),
        swapper.status(2),
        swapper.available_swap_in_buffers(),
    );
    drop(swapper);
    nix::mount::umount(place.path()).unwrap();
    assert!(outcomes.0.is_ok(), "{outcomes:?}");
    let refused = matches!(outcomes.1, Err(SwapError::File { errno: Errno::ENOSPC, .. }));
    assert!(refused, "{outcomes:?}");
    assert!(matches!(outcomes.2, Ok(1)) && outcomes.4 == 16, "{outcomes:?}");
    assert!(matches!(outcomes.3, Err(SwapError::Unknown { .. })), "{outcomes:?}");
}

/// Nothing but the transfers' own failures, which are told.
fn told<T>(outcome: Result<T, SwapError>) -> Option<T> {
    match outcome {
        Ok(done) => Some(done),
        Err(SwapError::Transfers(failures)) => {
            assert!(failures.iter().all(|failure| failure.errno != Errno::ENODATA));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One thread's share: swaps its partitions in and out and changes them, whatever fails.
fn live_with_faults(swapper: &Swapper, ids: &[u64], seed: u64, end: Instant) -> Vec<u64> {
    let mut random = Random(seed);
    let mut versions = vec![0; ids.len()];
    let bytes = |id: u64, version: u64| pattern(id << 32 | version, numel(1) * 2);
    while Instant::now() < end {
        let at = random.below(ids.len() as u64) as usize;
        let id = ids[at];
        match swapper.status(id).unwrap() {
            PartitionStatus::Inflight => drop(told(swapper.synchronize_writes())),
            PartitionStatus::NotAvailable => match swapper.swap_in(&[id], false, None) {
                // Whoever holds some goes on with them.
                Err(SwapError::NoBuffers { .. }) => {}
                outcome => drop(told(outcome)),
            },
            PartitionStatus::Available => {
                assert!(swapper.view(id).unwrap().to_vec() == bytes(id, versions[at]), "{id}");
                if random.below(2) == 0 {
                    versions[at] += 1;
                    let mut view = swapper.view_mut(id).unwrap();
                    view.copy_from(&bytes(id, versions[at])).unwrap();
                }
                let async_op = random.below(2) == 0;
                told(swapper.swap_out_and_release(&[id], async_op, false));
            }
        }
    }
    versions
}

#[test]
fn two_threads_lose_nothing_on_a_faulty_device() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    let ids: Vec<u64> = (0..16).collect();
    for id in &ids {
        let bytes = pattern(id << 32, numel(1) * 2);
        swapper.get_buffer(*id, numel(1)).unwrap().copy_from(&bytes).unwrap();
        swapper.swap_out_and_release(&[*id], false, false).unwrap();
    }
    rig.faults.set_plan(FaultPlan {
        read_error: 0.05,
        write_error: 0.05,
        write_no_space: 0.05,
        short_read: 0.1,
        short_write: 0.1,
        late: 0.2,
        late_max: Duration::from_millis(2),
        ..FaultPlan::default()
    });
    let end = Instant::now() + Duration::from_secs(3);
    let versions: Vec<u64> = std::thread::scope(|scope| {
        let share = |ids| move || live_with_faults(swapper, ids, ids[0] + seed(), end);
        let threads: Vec<_> = ids.chunks(8).map(|ids| scope.spawn(share(ids))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    rig.faults.set_plan(FaultPlan::default());
    told(swapper.synchronize_writes());
    let counts = rig.faults.counts();
    assert!(counts.read_error > 0 && counts.write_error > 0, "{counts:?}");
    for (id, version) in ids.iter().zip(versions) {
        if swapper.status(*id).unwrap() == PartitionStatus::Available {
            swapper.swap_out_and_release(&[*id], false, false).unwrap();
        }
        let bytes = pattern(id << 32 | version, numel(1) * 2);
        assert!(std::fs::read(swapper.path(*id)).unwrap()[..bytes.len()] == bytes, "{id}");
    }
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}
