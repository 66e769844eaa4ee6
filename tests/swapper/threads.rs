//! Two threads and a set of partitions larger than the pool.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use swapfs::deepspeed::{SwapError, Swapper, SwapperOptions};
use swapfs::engine::PartitionStatus;

use super::support::{BLOCK, Random, options, pattern, place, seed};

const PARTITIONS: u64 = 24;

/// What a partition holds, and who works on it.
struct Known {
    numel: u64,
    version: u64,
}

impl Known {
    fn bytes(&self, id: u64) -> Vec<u8> {
        pattern(id << 32 | self.version, self.numel * 2)
    }
}

#[test]
fn two_threads_swap_more_than_the_pool_holds() {
    let seed = seed();
    println!("SWAPFS_SEED={seed}");
    let place = place();
    let swapper = Swapper::new(&options(&place)).unwrap();
    let mut random = Random(seed);
    let known: Vec<Mutex<Known>> = (0..PARTITIONS)
        .map(|_| Mutex::new(Known { numel: 1 + random.below(BLOCK * 3 / 2), version: 0 }))
        .collect();
    for (id, known) in known.iter().enumerate() {
        let (id, known) = (id as u64, known.lock().unwrap());
        swapper.get_buffer(id, known.numel).unwrap().copy_from(&known.bytes(id)).unwrap();
        swapper.swap_out_and_release(&[id], true, false).unwrap();
    }
    assert_eq!(swapper.synchronize_writes().unwrap(), PARTITIONS as usize);
    let end = Instant::now() + Duration::from_secs(4);
    let rounds: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=2)
            .map(|thread| {
                let (swapper, known) = (&swapper, &known);
                scope.spawn(move || {
                    let (mut random, mut rounds) = (Random(seed ^ (thread * 77)), 0);
                    while Instant::now() < end {
                        rounds += u64::from(round(swapper, known, &mut random));
                    }
                    rounds
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("rounds: {rounds:?}");
    assert!(rounds.iter().all(|rounds| *rounds > 0));
    swapper.synchronize_writes().unwrap();
    assert_eq!(swapper.available_swap_in_buffers(), 16);
    for (id, known) in known.iter().enumerate() {
        let file = std::fs::read(swapper.path(id as u64)).unwrap();
        let bytes = known.lock().unwrap().bytes(id as u64);
        assert!(file[..bytes.len()] == bytes, "partition {id}");
    }
}

/// Swaps a few partitions in, one way or the other, checks their bytes, maybe changes them, and swaps them
/// out. Two threads may want more buffers than there are.
fn round(swapper: &Swapper, known: &[Mutex<Known>], random: &mut Random) -> bool {
    let mut taken = Vec::new();
    for _ in 0..=random.below(4) {
        let id = random.below(PARTITIONS);
        if let Ok(known) = known[id as usize].try_lock() {
            taken.push((id, known));
        }
    }
    let ids: Vec<u64> = taken.iter().map(|(id, _)| *id).collect();
    if random.below(4) == 0 {
        taken.iter().for_each(|(id, known)| into_buffer(swapper, *id, known, random));
        return true;
    }
    let async_op = random.below(2) == 0;
    match swapper.swap_in(&ids, async_op, None) {
        Ok(_) if async_op => {
            let inflight = |id: &u64| swapper.status(*id).unwrap() == PartitionStatus::Inflight;
            while ids.iter().any(inflight) {
                swapper.synchronize_reads().unwrap();
            }
        }
        Ok(_) => {}
        // A write-out is under way, or the other thread has the buffers.
        Err(SwapError::Status { status: PartitionStatus::Inflight, .. }) => return false,
        Err(SwapError::NoBuffers { .. }) => return false,
        Err(error) => panic!("{error}"),
    }
    for (id, known) in &mut taken {
        assert!(swapper.view(*id).unwrap().to_vec() == known.bytes(*id), "partition {id}");
    }
    if random.below(2) == 0 {
        swapper.remove_partition_and_release_buffers(&ids).unwrap();
        return true;
    }
    for (id, known) in &mut taken {
        known.version += 1;
        swapper.view_mut(*id).unwrap().copy_from(&known.bytes(*id)).unwrap();
    }
    swapper.swap_out_and_release(&ids, random.below(2) == 0, false).unwrap();
    true
}

fn into_buffer(swapper: &Swapper, id: u64, known: &Known, random: &mut Random) {
    let mut memory = vec![0; known.numel as usize * 2 + 1];
    let from = random.below(2) as usize;
    let part = &mut memory[from..][..known.numel as usize * 2];
    match swapper.swap_into_buffer(id, part) {
        Ok(()) => assert!(*part == known.bytes(id), "partition {id} in a buffer"),
        // Its write-out is under way.
        Err(SwapError::Status { status: PartitionStatus::Inflight, .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn two_ranks_share_one_engine() {
    let place = place();
    let first = Swapper::new(&options(&place)).unwrap();
    let other = SwapperOptions { rank: 1, ..options(&place) };
    let second = Swapper::with_engine(&other, first.engine().clone()).unwrap();
    let (one, two) = (pattern(1, BLOCK * 9), pattern(2, BLOCK * 5));
    first.get_buffer(7, BLOCK * 9 / 2).unwrap().copy_from(&one).unwrap();
    second.get_buffer(7, BLOCK * 5 / 2).unwrap().copy_from(&two).unwrap();
    assert_eq!(first.available_swap_in_buffers(), 2);
    let error = second.get_buffer(8, BLOCK * 3 / 2).unwrap_err();
    assert!(matches!(error, SwapError::NoBuffers { needed: 3, available: 2, held: 14 }));
    // Waits for the other's write-out.
    first.swap_out_and_release(&[7], true, false).unwrap();
    drop(second.get_buffer(8, BLOCK * 5 / 2).unwrap());
    assert_eq!(first.synchronize_writes().unwrap(), 1);
    let (path, its_path) = (first.path(7), second.path(7));
    assert_ne!(path, its_path);
    drop(second); // Hands its partitions over to the engine, which writes them.
    drop(first);
    assert!(std::fs::read(path).unwrap() == one);
    assert!(std::fs::read(its_path).unwrap() == two);
}
