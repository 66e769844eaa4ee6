//! What callers do at the edges: nothing to do, views and engines that end in another order, failures before.

use std::sync::mpsc;
use std::time::Duration;

use swapfs::aio::fault::FaultPlan;
use swapfs::deepspeed::swapper::{PartitionId, SwapInBuffer};
use swapfs::deepspeed::{SwapError, Swapper, SwapperOptions};
use swapfs::engine::PartitionStatus;

use super::faults::{Rig, failures};
use super::support::{BLOCK, options, place};
use super::{fill, numel};

/// Runs `work` on a thread of its own and fails when it hangs.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("it ends, and does not panic")
}

#[test]
fn padding_may_be_longer_than_the_last_block() {
    let place = place();
    // Files are multiples of 48 KiB: this one's second block is padding but for 2 bytes, the next one's all.
    let options = SwapperOptions {
        thread_count: 48,
        queue_depth: 1,
        block_size: 64 << 10,
        pool_size: 2 << 20,
        ..options(&place)
    };
    let swapper = Swapper::new(&options).unwrap();
    for numel in [24_577, 32_768, 32_769] {
        let source: Vec<f32> = (0..numel).map(|at| (at % 2048) as f32).collect();
        swapper.swap_out_partitioned_params(&[numel], &[&source[..]]).unwrap();
        let file = std::fs::read(swapper.path(numel)).unwrap();
        assert_eq!(file.len(), 96 << 10);
        let half = source.iter().flat_map(|value| half::f16::from_f32(*value).to_ne_bytes());
        assert!(file.iter().copied().eq(half.chain(std::iter::repeat(0)).take(file.len())));
        swapper.swap_in(&[numel], false, None).unwrap();
        let mut view = swapper.view_mut(numel).unwrap();
        assert_eq!(view.chunks().map(<[u8]>::len).sum::<usize>() as u64, 2 * numel);
        view.chunks_mut().for_each(|chunk| chunk.fill(1));
        drop(view);
        swapper.swap_out_and_release(&[numel], false, false).unwrap();
        let mut memory = vec![9; file.len()];
        swapper.swap_into_buffer(numel, &mut memory).unwrap();
        let (bytes, padding) = memory.split_at(2 * numel as usize);
        assert!(bytes.iter().all(|byte| *byte == 1) && padding.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn nothing_to_do_needs_no_buffer() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let all = swapper.reserve_available_buffers();
    assert_eq!(swapper.swap_out_partitioned_params::<u64>(&[], &[]).unwrap(), 0);
    assert_eq!(swapper.swap_in::<u64>(&[], false, None).unwrap(), 0);
    assert_eq!(swapper.swap_in::<u64>(&[], true, Some(Vec::new())).unwrap(), 0);
    swapper.remove_partition_and_release_buffers::<u64>(&[]).unwrap();
    assert_eq!(swapper.reserve_partitioned_swap_space(&[]).unwrap(), 0);
    drop(all);
    // A reservation of nothing is none.
    let source = vec![1.0; 1000];
    assert_eq!(swapper.swap_out_partitioned_params(&[1], &[&source[..]]).unwrap(), 1);
    assert_eq!(swapper.status(1).unwrap(), PartitionStatus::NotAvailable);
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}

#[test]
fn a_refused_rewrite_leaves_nothing_known() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    swapper.track(2, 77).unwrap();
    let (first, second) = (vec![1.0; 1000], vec![2.0; 1000]);
    let error = swapper.swap_out_partitioned_params(&[1, 2], &[&first, &second]).unwrap_err();
    assert!(matches!(error, SwapError::Numel { known: 77, given: 1000, .. }), "{error:?}");
    assert!(matches!(swapper.status(1), Err(SwapError::Unknown { .. })));
    let error = swapper.swap_out_partitioned_params(&[3, 3], &[&first, &second]).unwrap_err();
    assert!(matches!(error, SwapError::Twice { .. }), "{error:?}");
    assert!(matches!(swapper.status(3), Err(SwapError::Unknown { .. })));
    let all = swapper.reserve_available_buffers();
    let error = swapper.swap_out_partitioned_params(&[1], &[&first[..]]).unwrap_err();
    assert!(matches!(error, SwapError::NoBuffers { .. }), "{error:?}");
    assert!(matches!(swapper.status(1), Err(SwapError::Unknown { .. })));
    drop(all);
    swapper.swap_out_partitioned_params(&[1], &[&first[..]]).unwrap();
}

#[test]
fn a_view_may_outlive_its_swapper() {
    let place = place();
    let options = options(&place);
    let path = ends(move || {
        let swapper = Swapper::new(&options).unwrap();
        let path = swapper.path(1);
        fill(&swapper, 1, numel(1));
        fill(&swapper, 2, numel(0));
        let mut view = swapper.view_mut(1).unwrap();
        let read = swapper.view(2).unwrap();
        drop(swapper);
        let error = Swapper::new(&options).unwrap_err();
        assert!(matches!(error, SwapError::FolderInUse(_)), "its engine goes on: {error:?}");
        view.chunks_mut().for_each(|chunk| chunk.fill(7));
        drop(view);
        assert_eq!(read.len(), numel(0) * 2);
        drop(read);
        drop(Swapper::new(&options).unwrap());
        path
    });
    let file = std::fs::read(path).unwrap();
    assert!(file[..numel(1) as usize * 2].iter().all(|byte| *byte == 7), "nothing is lost");
}

#[test]
fn an_engine_that_was_stopped_is_told() {
    let place = place();
    let options = options(&place);
    ends(move || {
        let first = Swapper::new(&options).unwrap();
        let other = SwapperOptions { rank: 1, ..options };
        let second = Swapper::with_engine(&other, first.engine().clone()).unwrap();
        let bytes = fill(&second, 1, numel(2));
        fill(&second, 2, numel(1));
        second.swap_out_and_release(&[2], false, false).unwrap();
        let reserved = second.buffer_pool().allocate(2).unwrap();
        drop(first);
        let stopped = |error: SwapError| {
            assert!(matches!(error, SwapError::Stopped), "{error:?}");
            assert!(error.to_string().contains("another swapper"), "{error}");
        };
        stopped(second.swap_out(&[1], false).unwrap_err());
        stopped(second.swap_out_and_release(&[1], true, true).unwrap_err());
        stopped(second.get_buffer(9, 100).map(drop).unwrap_err());
        stopped(second.swap_in(&[2], false, None).unwrap_err());
        stopped(second.swap_in(&[2], true, Some(vec![reserved.into()])).unwrap_err());
        drop(second.take_buffer(2).unwrap());
        stopped(second.swap_into_buffer(2, &mut vec![0; numel(1) as usize * 2]).unwrap_err());
        stopped(second.swap_out_partitioned_params(&[5], &[&[1.0; 9][..]]).unwrap_err());
        stopped(second.reserve_partitioned_swap_space(&[9]).unwrap_err());
        assert_eq!(second.synchronize_reads().unwrap() + second.synchronize_writes().unwrap(), 0);
        assert!(second.view(1).unwrap().to_vec() == bytes, "what is in memory still is");
        assert_eq!(second.status(2).unwrap(), PartitionStatus::NotAvailable);
        drop(second.reserve_available_buffers());
    });
}

#[test]
fn an_engine_that_is_stopped_answers_what_is_under_way() {
    for async_op in [false, true] {
        let rig = Rig::new();
        ends(move || {
            let swapper = rig.swapper();
            let ids: Vec<u64> = (0..4).collect();
            for id in &ids {
                fill(swapper, *id, numel(1));
            }
            swapper.swap_out_and_release(&ids[..2], false, false).unwrap();
            rig.faults.set_plan(FaultPlan {
                late: 1.0,
                late_max: Duration::from_millis(40),
                ..FaultPlan::default()
            });
            std::thread::scope(|scope| {
                let stop = scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(10));
                    rig.engine.stop();
                });
                // Each is done, or failed; none is forgotten.
                for round in 0..50 {
                    let _ = swapper.swap_in(&ids[..2], async_op, None);
                    let _ = swapper.swap_out(&ids[2..], async_op);
                    let _ = (swapper.synchronize_reads(), swapper.synchronize_writes());
                    let mut memory = vec![0; numel(1) as usize * 2 + 1];
                    let _ = swapper.swap_into_buffer(round % 2, &mut memory[1..]);
                    let _ = swapper.remove_partition_and_release_buffers(&ids[..2]);
                    let source = vec![1.0; numel(1) as usize];
                    let _ = swapper.swap_out_partitioned_params(&[0], &[&source[..]]);
                }
                stop.join().unwrap();
            });
            for id in &ids {
                assert_ne!(swapper.status(*id).unwrap(), PartitionStatus::Inflight, "{id}");
            }
            assert!(swapper.view(2).is_ok(), "what is in memory still is");
        });
    }
}

#[test]
fn a_buffer_of_a_failed_swap_in_is_not_the_next_ones() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    let bytes = fill(swapper, 1, numel(1));
    swapper.swap_out_and_release(&[1], false, false).unwrap();
    let take = |count| SwapInBuffer::from(swapper.buffer_pool().allocate(count).unwrap());
    rig.faults.set_plan(FaultPlan { read_error: 1.0, ..FaultPlan::default() });
    for _ in 0..2 {
        failures(swapper.swap_in(&[1], false, Some(vec![take(2)])).unwrap_err());
    }
    rig.faults.set_plan(FaultPlan::default());
    swapper.swap_in(&[1], false, Some(vec![take(2)])).unwrap();
    let whole = |buffer: &SwapInBuffer| buffer.chunks().flatten().copied().collect::<Vec<_>>();
    let taken = swapper.take_buffer(1).unwrap();
    assert!(whole(&taken)[..bytes.len()] == bytes, "the one that holds the partition");
    assert_eq!(swapper.status(1).unwrap(), PartitionStatus::NotAvailable);
    assert_eq!(swapper.available_swap_in_buffers(), 10);
    // The others are to be had too.
    drop((taken, swapper.take_buffer(1).unwrap(), swapper.take_buffer(1).unwrap()));
    assert!(matches!(swapper.take_buffer(1), Err(SwapError::Status { .. })));
    assert_eq!(swapper.available_swap_in_buffers(), 16);

    let error = swapper.swap_in(&[1, 1], false, Some(vec![take(2), take(3)])).unwrap_err();
    assert!(matches!(error, SwapError::Twice { .. }), "{error:?}");
    let lengths = [(); 2].map(|()| swapper.take_buffer(1).unwrap().len() as u64);
    assert_eq!(lengths, [2 * BLOCK, 3 * BLOCK]);
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}

#[test]
fn what_is_available_does_not_go_out_by_itself() {
    // Or discard would not find what the swap folder had.
    let rig = Rig::lingering(Duration::from_millis(50));
    let swapper = rig.swapper();
    let bytes = fill(swapper, 1, numel(1));
    swapper.swap_out(&[1], false).unwrap();
    swapper.view_mut(1).unwrap().chunks_mut().for_each(|chunk| chunk.fill(0));
    std::thread::sleep(Duration::from_millis(300));
    assert!(std::fs::read(swapper.path(1)).unwrap()[..bytes.len()] == bytes);
    swapper.discard(&[1]).unwrap();
    swapper.swap_in(&[1], false, None).unwrap();
    assert!(swapper.view(1).unwrap().to_vec() == bytes);
}

#[test]
fn the_reserved_space_can_be_given_back_while_it_is_used() {
    let rig = Rig::new();
    let swapper = rig.swapper();
    let source = vec![1.5_f32; BLOCK as usize];
    rig.faults.set_plan(FaultPlan {
        late: 1.0,
        late_max: Duration::from_millis(300),
        ..FaultPlan::default()
    });
    let used = |then: &(dyn Fn() + Sync)| {
        swapper.reserve_partitioned_swap_space(&[BLOCK]).unwrap();
        std::thread::scope(|scope| {
            let rewrite =
                scope.spawn(|| swapper.swap_out_partitioned_params(&[1], &[&source[..]]).unwrap());
            while swapper.status(1).is_err()
                || swapper.status(1).unwrap() == PartitionStatus::NotAvailable
            {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(5));
            then();
            rewrite.join().unwrap();
        });
    };
    used(&|| swapper.release_partitioned_swap_space());
    assert_eq!(swapper.available_swap_in_buffers(), 16, "it stays given back");
    used(&|| {
        swapper.reserve_partitioned_swap_space(&[3 * BLOCK / 2]).unwrap();
    });
    assert_eq!(swapper.available_swap_in_buffers(), 13, "the later reservation is in force");
    swapper.release_partitioned_swap_space();
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let beyond = i64::MAX as u64 / 2 + 1;
    for numel in [0, beyond, u64::MAX / 2, u64::MAX] {
        let error = swapper.get_buffer(1, numel).map(drop).unwrap_err();
        assert!(matches!(error, SwapError::BadNumel { .. }), "{numel}: {error:?}");
        assert!(swapper.reserve_partitioned_swap_space(&[numel]).is_err());
        assert!(matches!(swapper.status(1), Err(SwapError::Unknown { .. })));
    }
    // Larger than 4 GiB, and than what can be addressed.
    for numel in [3_u64 << 31, 1 << 61] {
        let error = swapper.get_buffer(1, numel).map(drop).unwrap_err();
        assert!(matches!(error, SwapError::LargerThanPool { total: 16, .. }), "{error:?}");
        assert_eq!(swapper.buffers_for(1, numel), (numel * 2).div_ceil(BLOCK));
    }
    let one = swapper.path(PartitionId::SubGroup("1".to_owned()));
    for name in ["", ".", "..", "../x", "a\0b", &"x".repeat(250)] {
        let id = PartitionId::SubGroup(name.to_owned());
        let path = swapper.path(id.clone());
        match swapper.track(id, 1) {
            // With its ending it is one name, below the folder.
            Ok(()) => assert_eq!(path.parent(), one.parent()),
            Err(error) => assert!(matches!(error, SwapError::BadName { .. }), "{error:?}"),
        }
    }
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}

#[test]
fn a_configuration_says_what_the_pool_is_like() {
    let place = place();
    let file = place.path().join("ds.json");
    let text = r#"{"aio": {"block_size": 262144, "queue_depth": 3, "intra_op_parallelism": 2,
        "single_submit": "true", "overlap_events": false},
        "zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "PATH",
        "pin_memory": false}}, "swapfs": {"pool_size": "5 MiB"}}"#;
    std::fs::write(&file, text.replace("PATH", place.path().to_str().unwrap())).unwrap();
    let mut settings = swapfs::config::Settings::new();
    settings.read_file(&file).unwrap();
    let config = settings.build().unwrap();
    let folder = config.nvme_path().unwrap().unwrap();
    let from = SwapperOptions::from_config(&folder, &config);
    let expected = SwapperOptions {
        pool_size: 5 << 20,
        block_size: 262_144,
        queue_depth: 3,
        thread_count: 2,
        single_submit: true,
        overlap_events: false,
        pin_memory: false,
        ..SwapperOptions::new(place.path())
    };
    assert_eq!(from, expected);
    let swapper = Swapper::new(&from).unwrap();
    assert_eq!((swapper.available_swap_in_buffers(), swapper.io_aligned_numel(1)), (20, 1024));
    // What is built in is the same either way, but for what the machine decides.
    let built_in = SwapperOptions::from_config("/x", &swapfs::Config::default());
    assert_eq!(built_in, SwapperOptions::new("/x"));
}
