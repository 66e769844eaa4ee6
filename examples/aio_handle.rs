//! Swaps a tensor out to a file and in again: `cargo run --release --example aio_handle [FILE [MIB]]`.

use std::time::Instant;

use swapfs::deepspeed::{Handle, HandleOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "aio_handle.swp".to_owned());
    let mib: usize = arguments.next().as_deref().unwrap_or("256").parse()?;
    let handle = Handle::new(HandleOptions {
        queue_depth: 32,
        overlap_events: true,
        ..HandleOptions::default()
    })?;
    let mut tensor = handle.new_cpu_locked_tensor(mib << 20)?;
    tensor.fill(42);
    handle.sync_pwrite(&mut tensor, &path, 0)?; // The file has its blocks from here on.

    let start = Instant::now();
    let swap_out = handle.async_pwrite(tensor, &path, 0)?; // The memory is the device's,
    println!("{} operation written", handle.wait()?); // other work could be done here,
    let mut tensor = swap_out.into_buffer(); // and it comes back.
    report("out", mib, start);

    tensor.fill(0);
    let start = Instant::now();
    handle.sync_pread(&mut tensor, &path, 0)?;
    report("in", mib, start);
    assert!(tensor.iter().all(|byte| *byte == 42));
    std::fs::remove_file(&path)?;
    Ok(())
}

fn report(what: &str, mib: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("swap {what}: {:.0} MiB/s", mib as f64 / seconds);
}
