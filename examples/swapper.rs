//! A forward pass over partitions that do not fit into the pool, the next ones being swapped in while
//! one is worked on: `cargo run --release --example swapper [FOLDER]`.

use std::time::Instant;

use half::bf16;
use swapfs::deepspeed::swapper::{Dtype, Start};
use swapfs::deepspeed::{Swapper, SwapperOptions};

const LAYERS: u64 = 12;
const NUMEL: u64 = 16 << 20; // 32 MiB in bfloat16.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "swapper.tmp".to_owned());
    let swapper = Swapper::new(&SwapperOptions {
        dtype: Dtype::BFloat16,
        start: Start::Fresh, // As DeepSpeed: what a former run has left goes.
        pool_size: 128 << 20,
        queue_depth: 32,
        ..SwapperOptions::new(&folder)
    })?;
    let weights = vec![0.5_f32; NUMEL as usize];
    for layer in 0..LAYERS {
        swapper.swap_out_partitioned_params(&[layer], &[&weights[..]])?;
    }
    let (start, mut next, mut sum) = (Instant::now(), 0, 0.0);
    for layer in 0..LAYERS {
        // Prefetch as far as there are buffers.
        while next < LAYERS
            && swapper.available_swap_in_buffers() as u64 >= swapper.buffers_for(next, NUMEL)
        {
            swapper.swap_in(&[next], true, None)?;
            next += 1;
        }
        swapper.synchronize_reads()?;
        let view = swapper.view(layer)?;
        for elements in view.elements::<bf16>()? {
            sum += elements.iter().map(|element| f64::from(element.to_f32())).sum::<f64>();
        }
        drop(view);
        swapper.remove_partition_and_release_buffers(&[layer])?;
    }
    assert_eq!(sum, (LAYERS * NUMEL) as f64 * 0.5);
    let mib = (LAYERS * NUMEL * 2) >> 20;
    println!("{mib} MiB swapped in and summed: {:.2} s", start.elapsed().as_secs_f64());
    drop(swapper);
    Ok(std::fs::remove_dir_all(folder)?)
}
