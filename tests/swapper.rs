//! The swapper's methods, one test for each row of the table in `src/deepspeed/METHODS.md`, on real files.

#[path = "swapper/edges.rs"]
mod edges;
#[path = "swapper/faults.rs"]
mod faults;
#[path = "swapper/given.rs"]
mod given;
#[path = "swapper/params.rs"]
mod params;
#[path = "swapper/support.rs"]
mod support;
#[path = "swapper/threads.rs"]
mod threads;

use support::{BLOCK, MIB, options, pattern, place};
use swapfs::deepspeed::swapper::{Dtype, PartitionId, Start};
use swapfs::deepspeed::{SwapError, Swapper, SwapperOptions};
use swapfs::engine::PartitionStatus;

use PartitionStatus::{Available, Inflight, NotAvailable};

/// Elements of a float16 partition of `blocks` blocks and a bit.
fn numel(blocks: u64) -> u64 {
    blocks * BLOCK / 2 + 300
}

fn fill(swapper: &Swapper, id: u64, numel: u64) -> Vec<u8> {
    let bytes = pattern(id, numel * 2);
    swapper.get_buffer(id, numel).unwrap().copy_from(&bytes).unwrap();
    bytes
}

#[test]
fn partitions_go_out_and_come_back() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let bytes: Vec<_> = (0..3).map(|id| fill(&swapper, id, numel(id))).collect();
    assert_eq!(swapper.status(1).unwrap(), Available);
    assert_eq!(swapper.available_swap_in_buffers(), 16 - 1 - 2 - 3);
    assert_eq!(swapper.swap_out_and_release(&[0, 1, 2], false, false).unwrap(), 3);
    assert_eq!(swapper.status(1).unwrap(), NotAvailable);
    assert_eq!(swapper.available_swap_in_buffers(), 16);
    assert_eq!(swapper.engine().pool().available, swapper.engine().pool().buffers);

    assert_eq!(swapper.swap_in(&[0, 1, 2], true, None).unwrap(), 0);
    assert_eq!(swapper.status(2).unwrap(), Inflight);
    assert_eq!(swapper.synchronize_reads().unwrap(), 3);
    assert_eq!(swapper.synchronize_reads().unwrap(), 0);
    for (id, bytes) in bytes.iter().enumerate() {
        assert_eq!(swapper.status(id as u64).unwrap(), Available);
        assert!(swapper.view(id as u64).unwrap().to_vec() == *bytes);
    }
}

#[test]
fn swap_in_without_async_is_available_at_once() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let bytes = fill(&swapper, 5, numel(2));
    swapper.swap_out_and_release(&[5], false, false).unwrap();
    assert_eq!(swapper.swap_in(&[5], false, None).unwrap(), 1);
    let view = swapper.view(5).unwrap();
    assert!(view.chunks().flatten().copied().eq(bytes.iter().copied()));
    assert_eq!(view.chunks().next().unwrap().len() as u64, BLOCK);
    assert_eq!(view.elements::<u16>().unwrap().concat().len() as u64, numel(2));
    assert!(matches!(view.elements::<[u8; 3]>(), Err(SwapError::Elements { size: 3 })));
    assert!(matches!(view.copy_to(&mut [0; 9]), Err(SwapError::BufferLength { found: 9, .. })));
}

#[test]
fn swap_out_keeps_the_partition() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let bytes = fill(&swapper, 1, numel(1));
    assert_eq!(std::fs::metadata(swapper.path(1)).unwrap().len(), 0, "nothing goes out unasked");
    assert_eq!(swapper.swap_out(&[1], true).unwrap(), 0);
    assert_eq!(swapper.synchronize_writes().unwrap(), 1);
    assert_eq!(swapper.status(1).unwrap(), Available);
    assert!(std::fs::read(swapper.path(1)).unwrap()[..bytes.len()] == bytes);

    let mut view = swapper.view_mut(1).unwrap();
    view.elements_mut::<u16>().unwrap()[0][0] = 0x1234;
    drop(view);
    let before = swapper.engine().device_stats().written_bytes;
    assert_eq!(swapper.swap_out(&[1], false).unwrap(), 1);
    let written = std::fs::read(swapper.path(1)).unwrap();
    assert_eq!(written[..2], 0x1234_u16.to_ne_bytes());
    assert!(written[2..bytes.len()] == bytes[2..]);
    assert!(swapper.engine().device_stats().written_bytes > before);
    assert_eq!(swapper.swap_out::<u64>(&[], false).unwrap(), 0);
}

#[test]
fn asynchronous_write_outs_release_by_themselves() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    // A whole pool goes out; the next call waits for it instead of failing.
    let bytes: Vec<_> = (0..8).map(|id| fill(&swapper, id, BLOCK)).collect();
    assert_eq!(swapper.available_swap_in_buffers(), 0);
    let ids: Vec<u64> = (0..8).collect();
    assert_eq!(swapper.swap_out_and_release(&ids, true, false).unwrap(), 0);
    let more = fill(&swapper, 8, BLOCK);
    assert_eq!(swapper.synchronize_writes().unwrap(), 8);
    assert_eq!(swapper.synchronize_writes().unwrap(), 0);
    swapper.remove_partition_and_release_buffers(&ids).unwrap();
    for id in &ids {
        assert_eq!(swapper.status(*id).unwrap(), NotAvailable);
        assert!(std::fs::read(swapper.path(*id)).unwrap() == bytes[*id as usize]);
    }
    assert!(swapper.view(8).unwrap().to_vec() == more);
}

#[test]
fn too_few_buffers_is_said_with_numbers() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    fill(&swapper, 1, 6 * BLOCK);
    fill(&swapper, 2, BLOCK);
    let error = swapper.get_buffer(3, 2 * BLOCK).unwrap_err();
    assert!(
        matches!(error, SwapError::NoBuffers { needed: 4, available: 2, held: 14 }),
        "{error:?}"
    );
    assert!(error.to_string().contains("swap_out_and_release"), "{error}");
    assert!(matches!(swapper.status(3), Err(SwapError::Unknown { .. })), "nothing is left of it");
    let error = swapper.get_buffer(3, 9 * BLOCK).unwrap_err();
    assert!(matches!(error, SwapError::LargerThanPool { needed: 18, total: 16 }), "{error:?}");
    assert!(error.to_string().contains("swap_into_buffer"), "{error}");
}

#[test]
fn removing_writes_nothing() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let bytes = fill(&swapper, 1, numel(1));
    let error = swapper.remove_partition_and_release_buffers(&[1]).unwrap_err();
    assert!(matches!(error, SwapError::Unwritten { .. }), "{error:?}");
    swapper.swap_out(&[1], false).unwrap();
    let before = swapper.engine().device_stats().writes;
    swapper.remove_partition_and_release_buffers(&[1]).unwrap();
    assert_eq!(swapper.status(1).unwrap(), NotAvailable);
    assert_eq!(swapper.available_swap_in_buffers(), 16);
    swapper.remove_partition_and_release_buffers(&[1]).unwrap();

    swapper.swap_in(&[1], false, None).unwrap();
    swapper.view_mut(1).unwrap().chunks_mut().for_each(|chunk| chunk.fill(0));
    swapper.discard(&[1]).unwrap();
    swapper.swap_in(&[1], false, None).unwrap();
    assert!(swapper.view(1).unwrap().to_vec() == bytes, "the change is gone");
    assert_eq!(swapper.engine().device_stats().writes, before);
}

#[test]
fn names_and_sizes_are_deepspeeds() {
    let place = place();
    let options = SwapperOptions { rank: 3, dtype: Dtype::BFloat16, ..options(&place) };
    let swapper = Swapper::new(&options).unwrap();
    let stage = place.path().join("zero_stage_3");
    let sub = |id: &str| id.to_owned();
    let named = [
        (PartitionId::Param(17), "bfloat16params/rank3/17_param.tensor.swp", 2),
        (PartitionId::SubGroup(sub("0_7")), "optimizer/rank3/0_7.tensor.swp", 4),
        (
            PartitionId::State { state: sub("exp_avg"), id: sub("0_7") },
            "optimizer/rank3/exp_avg-0_7.tensor.swp",
            4,
        ),
        (
            PartitionId::Gradient { id: sub("0_7"), offset: 512, length: 1000 },
            "optimizer/rank3/0_7_gradient_512_1000.tensor.swp",
            4,
        ),
    ];
    for (id, name, size) in &named {
        let path = stage.join(name);
        assert_eq!(swapper.path(id.clone()), path);
        let error = swapper.swap_paths(std::slice::from_ref(id), true).unwrap_err();
        assert!(matches!(error, SwapError::Unknown { .. }), "{error:?}");
        assert_eq!(
            swapper.swap_paths(std::slice::from_ref(id), false).unwrap(),
            std::slice::from_ref(&path)
        );
        let bytes = pattern(1, 1000 * size);
        swapper.get_buffer(id.clone(), 1000).unwrap().copy_from(&bytes).unwrap();
        swapper.swap_out_and_release(std::slice::from_ref(id), false, false).unwrap();
        assert_eq!(
            swapper.swap_paths(std::slice::from_ref(id), true).unwrap(),
            std::slice::from_ref(&path)
        );
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len() as u64, (1000 * size).next_multiple_of(1024), "{name}");
        assert!(file[..bytes.len()] == bytes);
        assert!(file[bytes.len()..].iter().all(|byte| *byte == 0), "the padding is zero");
    }
    let bad = PartitionId::SubGroup(sub("a/b"));
    assert!(matches!(swapper.track(bad, 1), Err(SwapError::BadName { .. })));
    assert!(matches!(swapper.track(1, 0), Err(SwapError::BadNumel { numel: 0, .. })));
    assert!(matches!(swapper.track(1, u64::MAX), Err(SwapError::BadNumel { .. })));
}

#[test]
fn alignment_is_deepspeeds() {
    // 1024 bytes for each thread, in elements.
    for (dtype, thread_count, elements) in [
        (Dtype::Float16, 1, 512),
        (Dtype::BFloat16, 4, 2048),
        (Dtype::Float16, 8, 4096),
        (Dtype::Float32, 1, 256),
    ] {
        let place = place();
        let options = SwapperOptions { dtype, thread_count, ..options(&place) };
        let swapper = Swapper::new(&options).unwrap();
        assert_eq!(swapper.io_aligned_numel(1), elements);
        assert_eq!(swapper.io_aligned_numel(elements), elements);
        assert_eq!(swapper.io_aligned_numel(elements + 1), 2 * elements);
        assert!(swapper.is_io_aligned(3 * elements));
        assert!(!swapper.is_io_aligned(3 * elements + 1));
        swapper.get_buffer(1, elements + 1).unwrap();
        swapper.swap_out(&[1], false).unwrap();
        let size = std::fs::metadata(swapper.path(1)).unwrap().len();
        assert_eq!(size, 2 * elements * dtype.size());
    }
}

#[test]
fn swappable_is_a_mebibyte_and_a_block() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    assert!(swapper.swappable_tensor(MIB / 2));
    assert!(!swapper.swappable_tensor(MIB / 2 - 1));
    assert!(swapper.swappable_tensor(u64::MAX));
    assert_eq!(swapper.buffers_for(1, BLOCK / 2), 1);
    assert_eq!(swapper.buffers_for(1, BLOCK / 2 + 1), 2);
    drop(swapper);
    let options = SwapperOptions { block_size: 4 * MIB, pool_size: 8 * MIB, ..options(&place) };
    let swapper = Swapper::new(&options).unwrap();
    assert!(!swapper.swappable_tensor(MIB));
    assert!(swapper.swappable_tensor(2 * MIB));
    assert_eq!(swapper.available_swap_in_buffers(), 2);
}

#[test]
fn a_folder_of_deepspeeds_is_read() {
    let place = place();
    let folder = place.path().join("zero_stage_3/float16params/rank0");
    std::fs::create_dir_all(&folder).unwrap();
    // As DeepSpeed leaves it: padded with whatever its buffer held.
    let file = pattern(9, (numel(3) * 2).next_multiple_of(1024));
    std::fs::write(folder.join("42_param.tensor.swp"), &file).unwrap();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let error = swapper.swap_in(&[42], false, None).unwrap_err();
    assert!(matches!(error, SwapError::Unknown { .. }), "{error:?}");
    swapper.track(42, numel(3)).unwrap();
    swapper.swap_in(&[42], false, None).unwrap();
    assert!(swapper.view(42).unwrap().to_vec() == file[..numel(3) as usize * 2]);
    drop(swapper.view_mut(42).unwrap());
    swapper.swap_out_and_release(&[42], false, false).unwrap();
    let written = std::fs::read(folder.join("42_param.tensor.swp")).unwrap();
    assert_eq!(written.len(), file.len());
    assert!(written[numel(3) as usize * 2..].iter().all(|byte| *byte == 0));

    let error = swapper.track(42, 7).unwrap_err();
    assert!(matches!(error, SwapError::Numel { given: 7, .. }), "{error:?}");
    swapper.forget(42).unwrap();
    swapper.track(42, 7).unwrap();
    let error = swapper.swap_in(&[42], false, None).unwrap_err();
    assert!(matches!(error, SwapError::FileSize { expected: 1024, .. }), "{error:?}");
    assert_eq!(swapper.status(42).unwrap(), NotAvailable);
    swapper.get_buffer(42, 7).unwrap();
    assert_eq!(std::fs::metadata(swapper.path(42)).unwrap().len(), 1024, "cut to its new size");
}

#[test]
fn deleting_files_is_a_choice() {
    let place = place();
    let options = options(&place);
    assert_eq!(options.start, Start::Keep);
    let swapper = Swapper::new(&options).unwrap();
    let bytes = fill(&swapper, 1, numel(0));
    let second = Swapper::new(&SwapperOptions { start: Start::Fresh, ..options.clone() });
    assert!(matches!(second, Err(SwapError::FolderInUse(_))), "{second:?}");
    let group = PartitionId::SubGroup("0_1".to_owned());
    swapper.get_buffer(group.clone(), 10).unwrap();
    let (param, master) = (swapper.path(1), swapper.path(group));
    drop(swapper); // Writes what is dirty.
    assert!(std::fs::read(&param).unwrap()[..bytes.len()] == bytes);

    drop(Swapper::new(&options).unwrap());
    assert!(param.exists());
    drop(
        Swapper::new(&SwapperOptions { rank: 1, start: Start::Fresh, ..options.clone() }).unwrap(),
    );
    assert!(param.exists(), "another rank's");
    drop(Swapper::new(&SwapperOptions { start: Start::Fresh, ..options.clone() }).unwrap());
    assert!(!param.exists());
    assert!(master.exists(), "the optimizer's folder is never emptied");
    for wrong in [
        SwapperOptions { block_size: 100_000, ..options.clone() },
        SwapperOptions { pool_size: 0, ..options.clone() },
        SwapperOptions { queue_depth: 0, ..options.clone() },
        SwapperOptions { thread_count: 65, ..options.clone() },
    ] {
        assert!(matches!(Swapper::new(&wrong), Err(SwapError::Option { .. })));
    }
    let file = SwapperOptions { folder: param.join("below/a/file"), ..options };
    std::fs::write(&param, "").unwrap();
    let error = Swapper::new(&file).unwrap_err();
    assert!(matches!(error, SwapError::File { .. }), "{error:?}");
}

#[test]
fn wrong_statuses_are_named() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    fill(&swapper, 3, numel(1));
    let said = |error: SwapError| error.to_string();
    assert_eq!(
        said(swapper.swap_in(&[3], false, None).unwrap_err()),
        "swap_in of 3: it is available; it can be used as it is"
    );
    assert_eq!(
        said(swapper.swap_out(&[4], false).unwrap_err()),
        "partition 4 is unknown: call get_buffer or track with its number of elements first"
    );
    assert_eq!(said(swapper.swap_out(&[3, 3], false).unwrap_err()), "swap_out: 3 is named twice");
    let view = swapper.view(3).unwrap();
    assert!(matches!(swapper.swap_out(&[3], false), Err(SwapError::InUse { .. })));
    assert!(matches!(swapper.view_mut(3), Err(SwapError::InUse { .. })));
    drop((view, swapper.view(3).unwrap()));
    let view = swapper.view_mut(3).unwrap();
    assert!(matches!(swapper.view(3), Err(SwapError::InUse { .. })));
    drop(view);
    swapper.swap_out_and_release(&[3], false, false).unwrap();
    assert_eq!(
        said(swapper.view(3).unwrap_err()),
        "view of 3: it is not_available; call swap_in first"
    );
    swapper.swap_in(&[3], true, None).unwrap();
    assert_eq!(
        said(swapper.swap_in(&[3], true, None).unwrap_err()),
        "swap_in of 3: it is inflight; call synchronize_reads or synchronize_writes first"
    );
    assert_eq!(swapper.synchronize_reads().unwrap(), 1);
    std::fs::remove_file(swapper.path(3)).unwrap();
    swapper.remove_partition_and_release_buffers(&[3]).unwrap();
    let error = swapper.swap_in(&[3], false, None).unwrap_err();
    assert!(matches!(error, SwapError::File { operation: "open", .. }), "{error:?}");
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}
