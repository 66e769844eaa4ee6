//! How cost grows with files, clients, partitions and the pool.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use swapfs::bench::Cleanup;
use swapfs::memory::available;
use swapfs::turns::{Spread, Turns};
use swapfs::units::{GIB, MIB, format_short};

use crate::Outcome;
use crate::client::{Action, Task};
use crate::group::timed;
use crate::place::{Place, State, Way};
use crate::sample::{Daemon, Sample, Unit};
use crate::work::{Fio, client};

/// How far it goes.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    bytes: u64,
    runs: u32,
    files: Vec<u64>,
    clients: Vec<u64>,
    partitions: Vec<usize>,
    pools: Vec<u64>,
    calls: usize,
}

impl Scale {
    /// In full, or in an eighth of the time.
    pub(crate) fn new(quick: bool, bytes: u64, runs: u32) -> Self {
        let partitions = if quick { vec![10, 1000] } else { vec![10, 1000, 100_000] };
        let pools = if quick { vec![64, 256] } else { vec![64, 256, 1024, 4096, 8192] };
        Self {
            bytes,
            runs: runs.min(3),
            files: vec![1, 4, 16, 64],
            clients: vec![1, 4, 16],
            partitions,
            pools: pools.into_iter().map(|mib| mib * MIB).collect(),
            calls: if quick { 2000 } else { 10_000 },
        }
    }
}

/// Measures and prints all of it; each value is a line of the table.
pub(crate) fn measure(cleanup: &Cleanup, place: &mut Place, scale: Scale) -> Outcome<Vec<Value>> {
    let mut found = Vec::new();
    println!("{} throughput, fio direct 1 MiB, MB/s: mount / folder", place.name);
    for count in &scale.files {
        found.push(throughput(cleanup, place, &scale, *count, 1)?);
    }
    for count in scale.clients.iter().filter(|count| **count > 1) {
        found.push(throughput(cleanup, place, &scale, *count, *count)?);
    }
    println!(
        "{} partitions in the folder: microseconds of a call (p50, p99), mounting, the daemon's memory",
        place.name
    );
    let counts = match place.name {
        // Inodes are few on a small filesystem.
        'B' => scale.partitions.iter().copied().filter(|count| *count <= 10_000).collect(),
        _ => scale.partitions.clone(),
    };
    for count in counts {
        found.push(partitions(cleanup, place, &scale, count)?);
    }
    println!("{} pool: mounting, the daemon's memory beyond the pool, throughput", place.name);
    // Their cost is not the device's: the large ones, which take seconds to make, are made once.
    let most = if place.name == 'B' { GIB } else { u64::MAX };
    for pool in scale.pools.iter().filter(|pool| **pool <= most) {
        found.push(pool_of(cleanup, place, &scale, *pool)?);
    }
    place.remount(cleanup, &[])?;
    Ok(found)
}

/// Runs each contestant a few times in turns, and gives the middle of each, MB/s.
fn medians<C>(
    scale: &Scale, contestants: &mut [C], run: impl Fn(&C) -> Outcome<Sample>,
) -> Outcome<Vec<f64>> {
    let turns = Turns { warmup: 0, rounds: scale.runs };
    let taken = turns
        .take(contestants, |one, _| run(one).map(|sample| Some(Unit::Throughput.of(&sample))))?;
    Ok(taken.into_iter().map(|rates| Spread::of(rates).median).collect())
}

/// Writes over and reads cold: `files` files, together as large as always, by `clients` processes of depth 8 together.
fn throughput(
    cleanup: &Cleanup, place: &Place, scale: &Scale, files: u64, clients: u64,
) -> Outcome<Value> {
    // Whole blocks, so that no row has the cost of odd ends.
    let each = (scale.bytes / files).next_multiple_of(MIB);
    let list: Vec<_> = (0..files).map(|number| (format!("many-{number}"), each)).collect();
    let mut rates = Vec::new();
    for rw in ["write", "read"] {
        let depth = u32::try_from((8 / clients).max(1))?;
        let fio = Fio { jobs: usize::try_from(clients)?, ..Fio::direct(rw, depth, each) };
        let beside = if rw == "read" { Way::Behind } else { Way::Beside };
        rates.extend(medians(scale, &mut [Way::Mount, beside], |way| {
            timed(place, *way, &list, State::Cold, |paths| fio.run(cleanup, paths))
        })?);
    }
    place.empty(&[])?;
    println!(
        "  {files:>3} files, {clients:>2} clients: write {:>6.0} / {:>6.0} ({:.2}), read {:>6.0} / {:>6.0} ({:.2})",
        rates[0],
        rates[1],
        rates[0] / rates[1],
        rates[2],
        rates[3],
        rates[2] / rates[3]
    );
    Ok(json!({
        "place": place.name.to_string(), "files": files, "clients": clients,
        "write_mb_per_s": rates[0], "folder_write_mb_per_s": rates[1],
        "read_mb_per_s": rates[2], "folder_read_mb_per_s": rates[3],
    }))
}

/// Calls on some of `count` partitions, after the daemon was made to know all of them.
fn partitions(cleanup: &Cleanup, place: &mut Place, scale: &Scale, count: usize) -> Outcome<Value> {
    let behind = place.folder(Way::Behind);
    let names: Vec<String> = (0..count).map(|number| format!("partition-{number}")).collect();
    place.unmount();
    for name in &names {
        std::fs::write(behind.join(name), [7; 512])?;
    }
    // Mounting is not to wait for what was written here.
    rustix::fs::syncfs(File::open(&behind)?)?;
    let started = Instant::now();
    place.remount(cleanup, &[])?;
    let mounting = started.elapsed().as_secs_f64();
    let daemon = place.daemon()?;
    let idle = daemon.resident()?;
    let folder = place.folder(Way::Mount);
    // Spread over all of them.
    let asked: Vec<PathBuf> = (0..1000.min(count))
        .map(|number| folder.join(&names[number * count / 1000.min(count)]))
        .collect();
    for name in &names {
        std::fs::metadata(folder.join(name))?;
    }
    let looked_up = daemon.resident()?;
    for name in &names {
        File::open(folder.join(name))?;
    }
    let opened = daemon.resident()?;
    wait_until_idle(daemon)?;
    let per = |bytes: u64| bytes.saturating_sub(idle) as f64 / count as f64;
    let mut latencies = Vec::new();
    let status = "user.swap.status";
    for (what, action) in
        [("open", Action::Open), ("stat", Action::Stat), ("status", Action::Getxattr)]
    {
        let task = Task::calls(action, asked.clone(), scale.calls);
        let sample = client(cleanup, &Task { xattr: status.to_owned(), ..task })?;
        latencies.push((what, sample.p50.unwrap_or(f64::NAN), sample.p99.unwrap_or(f64::NAN)));
    }
    let shown = latencies.iter().map(|(what, p50, p99)| format!("{what} {p50:.1} {p99:.0}"));
    println!(
        "  {count:>6} partitions: {}; mounted in {mounting:.3} s; {} idle, and for each {:.0} bytes looked up, \
         {:.0} bytes opened",
        shown.collect::<Vec<_>>().join(", "),
        format_short(idle / MIB * MIB),
        per(looked_up),
        per(opened),
    );
    for name in &names {
        std::fs::remove_file(folder.join(name))?;
    }
    let calls: serde_json::Map<String, Value> = latencies
        .iter()
        .map(|(what, p50, p99)| ((*what).to_owned(), json!({"p50_us": p50, "p99_us": p99})))
        .collect();
    Ok(json!({
        "place": place.name.to_string(), "partitions": count, "mount_seconds": mounting, "idle_bytes": idle,
        "bytes_per_partition_looked_up": per(looked_up), "bytes_per_partition_opened": per(opened),
        "calls": calls,
    }))
}

/// What so many opens have left to be done is not part of the next call's time. Blocks for ten seconds at most.
fn wait_until_idle(daemon: Daemon) -> Outcome<()> {
    let end = Instant::now() + Duration::from_secs(10);
    let mut before = daemon.cpu()?;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
        let now = daemon.cpu()?;
        if now - before < Duration::from_millis(2) {
            break;
        }
        before = now;
    }
    Ok(())
}

/// A mount with a pool of that size: as it is made, and filled as far as the rows' file goes.
fn pool_of(cleanup: &Cleanup, place: &mut Place, scale: &Scale, pool: u64) -> Outcome<Value> {
    let shown = format_short(pool);
    let free = available().unwrap_or(0);
    if pool + GIB > free {
        println!("  {shown:>6}: left out, {} of memory are free", format_short(free / MIB * MIB));
        return Ok(json!({"place": place.name.to_string(), "pool_bytes": pool, "left_out": true}));
    }
    let started = Instant::now();
    place.remount(cleanup, &[format!("pool_size={pool}")])?;
    let mounting = started.elapsed().as_secs_f64();
    let daemon = place.daemon()?;
    let beyond = |bytes: u64| bytes as f64 - pool as f64;
    let idle = beyond(daemon.resident()?);
    let files = [("pool".to_owned(), scale.bytes)];
    let rates = medians(scale, &mut [Action::Write, Action::Read], |action| {
        timed(place, Way::Mount, &files, State::Cold, |paths| {
            client(cleanup, &Task::stream(*action, paths.to_vec(), scale.bytes, 1 << 20))
        })
    })?;
    let resident = beyond(daemon.resident()?);
    let held = scale.bytes.min(pool) as f64 / GIB as f64;
    let mib = MIB as f64;
    println!(
        "  {shown:>6}: mounted in {mounting:.3} s; {:+.1} MiB idle, {:+.1} MiB with {held:.2} GiB read; write {:.0}, \
         read {:.0} MB/s",
        idle / mib,
        resident / mib,
        rates[0],
        rates[1]
    );
    place.empty(&[])?;
    Ok(json!({
        "place": place.name.to_string(), "pool_bytes": pool, "mount_seconds": mounting,
        "idle_bytes_beyond_pool": idle, "resident_bytes_beyond_pool": resident,
        "bytes_per_resident_gib": (resident - idle) / held,
        "write_mb_per_s": rates[0], "read_mb_per_s": rates[1],
    }))
}
