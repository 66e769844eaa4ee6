//! Memory of the caller's: reserved buffers, locked tensors, slices.

use swapfs::deepspeed::swapper::SwapInBuffer;
use swapfs::deepspeed::{Handle, HandleOptions};
use swapfs::deepspeed::{SwapError, Swapper};
use swapfs::engine::PartitionStatus;
use swapfs::pool::PoolBuffer;

use super::support::{BLOCK, options, place};
use super::{fill, numel};

fn out(swapper: &Swapper, id: u64, numel: u64) -> Vec<u8> {
    let bytes = fill(swapper, id, numel);
    swapper.swap_out_and_release(&[id], false, false).unwrap();
    bytes
}

#[test]
fn reserved_buffers_are_plain_memory_and_counted() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    fill(&swapper, 1, numel(1));
    let mut buffers = swapper.reserve_available_buffers();
    assert_eq!((buffers.len(), swapper.available_swap_in_buffers()), (14, 0));
    assert_eq!(swapper.engine().pool().reserved, 14);
    assert!(swapper.reserve_available_buffers().is_empty());
    for buffer in &mut buffers {
        assert_eq!((buffer.len() as u64, buffer.as_ptr().addr() % 4096), (BLOCK, 0));
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer.fill(9);
    }
    let error = swapper.get_buffer(2, 1).unwrap_err();
    assert!(matches!(error, SwapError::NoBuffers { needed: 1, available: 0, held: 16 }));
    let kept = buffers.split_off(10);
    let error = swapper.release_reserved_buffers(buffers).unwrap_err();
    assert!(matches!(error, SwapError::ReservedOut { count: 4 }), "{error:?}");
    assert_eq!(swapper.available_swap_in_buffers(), 10);
    swapper.release_reserved_buffers(kept).unwrap();
    assert_eq!(swapper.engine().pool().reserved, 0);
    assert_eq!(swapper.available_swap_in_buffers(), 14);
    let pool = swapper.buffer_pool();
    assert_eq!((pool.total(), pool.available(), pool.buffer_size() as u64), (16, 14, BLOCK));
    assert!(pool.allocate(15).is_none());
    assert_eq!(pool.allocate(14).unwrap().len(), 14);
    swapper.swap_out(&[1], false).unwrap();
}

#[test]
fn swap_in_to_reserved_buffers_is_direct() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let first = out(&swapper, 1, numel(2));
    let second = out(&swapper, 2, BLOCK / 2);
    let mut buffers = swapper.reserve_available_buffers();
    let rest: Vec<PoolBuffer> = buffers.split_off(4);
    let tail = vec![buffers.pop().unwrap()];
    let given = vec![SwapInBuffer::from(buffers), tail.into()];
    assert_eq!(swapper.swap_in(&[1, 2], true, Some(given)).unwrap(), 0);
    assert_eq!(swapper.status(1).unwrap(), PartitionStatus::Inflight);
    assert_eq!(swapper.synchronize_reads().unwrap(), 2);
    assert_eq!(swapper.engine().cache_stats().read_misses, 0, "nothing went by way of the pool");
    assert_eq!(swapper.status(1).unwrap(), PartitionStatus::Available);
    assert!(swapper.view(1).unwrap().to_vec() == first);
    assert!(matches!(swapper.view_mut(1), Err(SwapError::Status { .. })));
    assert!(matches!(swapper.swap_out(&[1], false), Err(SwapError::Status { .. })));
    let view = swapper.view(2).unwrap();
    assert!(matches!(swapper.take_buffer(2), Err(SwapError::InUse { .. })));
    drop(view);
    let buffer = swapper.take_buffer(2).unwrap();
    assert!(buffer.chunks().collect::<Vec<_>>().concat() == second);
    assert_eq!(swapper.status(2).unwrap(), PartitionStatus::NotAvailable);
    assert!(matches!(swapper.take_buffer(2), Err(SwapError::Status { .. })));
    swapper.remove_partition_and_release_buffers(&[1]).unwrap();
    drop((rest, buffer));
    assert_eq!(swapper.available_swap_in_buffers(), 16);
    assert_eq!(swapper.engine().pool().reserved, 0);
}

#[test]
fn swap_in_to_a_tensor() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let bytes = out(&swapper, 1, numel(3));
    let handle = Handle::new(HandleOptions::default()).unwrap();
    let size = numel(3) as usize * 2;
    let aligned = size.next_multiple_of(1024);
    let short = handle.new_cpu_locked_tensor(aligned - 1024).unwrap();
    let error = swapper.swap_in(&[1], true, Some(vec![short.into()])).unwrap_err();
    assert!(matches!(error, SwapError::BufferLength { .. }), "{error:?}");
    assert!(swapper.take_buffer(1).is_ok(), "it comes back");
    let mut tensor = handle.new_cpu_locked_tensor(aligned + 5000).unwrap();
    tensor.fill(1);
    assert_eq!(swapper.swap_in(&[1], false, Some(vec![tensor.into()])).unwrap(), 1);
    let SwapInBuffer::Tensor(tensor) = swapper.take_buffer(1).unwrap() else {
        panic!("a tensor was given")
    };
    assert!(tensor[..size] == bytes);
    assert_eq!(tensor.len(), aligned + 5000);
    assert!(tensor[aligned..].iter().all(|byte| *byte == 1), "what is behind stays");
    // One that begins at an odd address comes by way of the pool.
    let (_, odd) = handle.new_cpu_locked_tensor(aligned + 7).unwrap().split_at(7);
    swapper.swap_in(&[1], false, Some(vec![odd.into()])).unwrap();
    assert!(swapper.view(1).unwrap().to_vec() == bytes);
    let error = swapper.swap_in(&[1], false, Some(Vec::new())).unwrap_err();
    assert!(matches!(error, SwapError::Count { partitions: 1, buffers: 0, .. }), "{error:?}");
}

#[test]
fn swap_into_a_slice_of_any_alignment() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let bytes = out(&swapper, 1, numel(5));
    let size = bytes.len();
    let aligned = size.next_multiple_of(1024);
    let mut memory = vec![0xEE_u8; aligned + 4096 + 16];
    let start = memory.as_ptr().addr().next_multiple_of(4096) - memory.as_ptr().addr();
    // Whatever else is going on in the pool: it needs no buffer of the budget.
    let reserved = swapper.reserve_available_buffers();
    for (offset, length) in [(0, aligned), (0, size), (1, size), (8, aligned)] {
        let (from, to) = (start + offset, start + offset + length);
        memory.fill(0xEE);
        let before = swapper.engine().cache_stats().read_misses;
        swapper.swap_into_buffer(1, &mut memory[from..to]).unwrap();
        let bounced = swapper.engine().cache_stats().read_misses - before;
        assert_eq!(bounced == 0, (offset, length) == (0, aligned), "{bounced} by way of the pool");
        assert!(memory[from..from + size] == bytes, "offset {offset}, {length} bytes");
        assert!(memory[..from].iter().chain(&memory[to..]).all(|byte| *byte == 0xEE));
        assert_eq!(swapper.status(1).unwrap(), PartitionStatus::NotAvailable);
    }
    drop(reserved);
    let error = swapper.swap_into_buffer(1, &mut memory[..size - 1]).unwrap_err();
    assert!(matches!(error, SwapError::BufferLength { .. }), "{error:?}");
    // What is newer in the pool counts.
    swapper.swap_in(&[1], false, None).unwrap();
    swapper.view_mut(1).unwrap().chunks_mut().for_each(|chunk| chunk.fill(5));
    swapper.swap_into_buffer(1, &mut memory[..size]).unwrap();
    assert!(memory[..size].iter().all(|byte| *byte == 5));
    swapper.discard(&[1]).unwrap();
}

#[test]
fn swap_into_a_slice_larger_than_the_pool() {
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let numel = 40 * BLOCK / 2 + 77;
    let source: Vec<f32> = (0..numel).map(|at| (at % 1000) as f32).collect();
    swapper.swap_out_partitioned_params(&[1], &[&source[..]]).unwrap();
    assert!(matches!(swapper.swap_in(&[1], false, None), Err(SwapError::LargerThanPool { .. })));
    let mut memory = vec![0_u8; numel as usize * 2 + 1];
    for offset in [0, 1] {
        let part = &mut memory[offset..][..numel as usize * 2];
        part.fill(0);
        swapper.swap_into_buffer(1, part).unwrap();
        let expected = source.iter().flat_map(|value| half::f16::from_f32(*value).to_ne_bytes());
        assert!(part.iter().copied().eq(expected));
    }
    assert_eq!(swapper.available_swap_in_buffers(), 16);
}
