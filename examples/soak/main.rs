//! Mixed clients on one mount for as long as you like, every byte checked.
//!
//! ```sh
//! cargo build --release && cargo run --release --example soak -- --seconds 3600
//! ```
//!
//! It fails when a call fails, when a byte is wrong, when a call takes more than two seconds while the disk answers
//! others at once, when the daemon's memory exceeds the pool and 64 MiB, and when at the end anything is dirty, in
//! flight, held or reserved, or a transfer was not answered or failed.

mod clients;
mod mount;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;

use clients::{Client, KINDS};
use mount::Mount;
use watch::Control;

/// Mixed clients on a mount of its own.
#[derive(Debug, Parser)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Bytes of the pool, in MiB; the clients' files are several times that.
    #[arg(long, default_value_t = 64)]
    pool_mib: u64,
    /// Where chance begins; the clock by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the scratch folder is made, on a filesystem with O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// The program; by default the one that was built beside this.
    #[arg(long)]
    swapfs: Option<PathBuf>,
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Shared {
    stop: AtomicBool,
    calls: AtomicU64,
    bytes: AtomicU64,
    /// The longest call, in milliseconds.
    longest_ms: AtomicU64,
    /// Calls that were slow together with the disk itself.
    excused: AtomicU64,
    control: Control,
}

impl Shared {
    /// Makes a call and judges its time.
    pub(crate) fn timed<T>(
        &self, what: &str, bytes: u64, call: impl FnOnce() -> std::io::Result<T>,
    ) -> Result<T, String> {
        let begin = Instant::now();
        let result = call().map_err(|error| format!("{what}: {error}"))?;
        let time = begin.elapsed();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.longest_ms.fetch_max(time.as_millis() as u64, Ordering::Relaxed);
        if time > watch::CALL_MAX {
            match self.control.worst_since(begin) {
                disk if disk >= watch::DISK_SLOW => {
                    self.excused.fetch_add(1, Ordering::Relaxed);
                }
                disk => {
                    return Err(format!(
                        "{what} took {time:?}, and the disk no more than {disk:?}"
                    ));
                }
            }
        }
        Ok(result)
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = args.seed.unwrap_or_else(clock);
    println!("soak: seed {seed}, {} s", args.seconds);
    match run(&args, seed) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("soak: FAILED: --seed {seed}: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, seed: u64) -> Result<String, String> {
    let mount = Mount::new(args.swapfs.as_deref(), &args.folder, args.pool_mib)?;
    let shared = Shared {
        stop: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        longest_ms: AtomicU64::new(0),
        excused: AtomicU64::new(0),
        control: Control::new(mount.scratch())?,
    };
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut clients: Vec<Client> = KINDS
        .iter()
        .enumerate()
        .map(|(number, kind)| Client::new(number, *kind, seed, &mount.mnt, args.pool_mib))
        .collect();
    let peak_kib = std::thread::scope(|scope| {
        let control = scope.spawn(|| shared.control.run(&shared.stop));
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                let shared = &shared;
                scope.spawn(move || {
                    // One that failed ends the others.
                    client.run(shared).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed))
                })
            })
            .collect();
        let watched = mount.watch(|| Instant::now() >= end || shared.stopped());
        shared.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a client panicked".to_owned())??;
        }
        control.join().map_err(|_| "the control panicked".to_owned())??;
        watched
    })?;
    let transfers = mount.nothing_is_left()?;
    for client in &mut clients {
        client.check_all(&mount.mnt)?;
    }
    let log = mount.unmount()?;
    for client in &mut clients {
        client.check_all(&mount.swap)?;
    }
    if let Some(line) = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"))
    {
        return Err(format!("the daemon's log has: {line}"));
    }
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(format!(
        "soak: ok: {} s, {} clients, {} calls, {} MiB, {transfers} transfers; longest call {} ms, {} excused; peak memory \
         {} MiB of {}",
        args.seconds,
        clients.len(),
        load(&shared.calls),
        load(&shared.bytes) >> 20,
        load(&shared.longest_ms),
        load(&shared.excused),
        peak_kib / 1024,
        args.pool_mib + 64,
    ))
}
