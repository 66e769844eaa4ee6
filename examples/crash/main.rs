//! Kills the daemon in the middle of clients' work, again and again, and checks after each remount what
//! swapfs promises: what was synchronized is whole and has its exact length, and everything else is old or new.
//!
//! ```sh
//! cargo build --release && cargo run --release --example crash -- --rounds 50
//! ```
//!
//! With `--power-cut` the machine's end is acted out instead: the swap folder lies on an ext4 of its own whose
//! image is cloned, in one moment, while all goes on; then the clone is mounted and checked. What the kernel had
//! not given to the device yet is lost there, names and lengths included. (What the device had accepted is
//! kept: a device that loses its own cache is not acted out.) Needs root, loop devices and mkfs.xfs.
//!
//! A failure prints its seed; `--seed N --rounds 1` begins with the same calls, though not with the same timing.

mod client;
mod history;
mod place;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use client::{Client, Owned, Random};
use history::{Contents, Found, History};
use place::{Image, Place};

/// Clients at work at once.
const CLIENTS: usize = 4;

/// Kills the daemon at random moments of its work and checks what is left.
#[derive(Debug, Parser)]
struct Args {
    /// How many times.
    #[arg(long, default_value_t = 50)]
    rounds: u64,
    /// Where chance begins; the clock by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the scratch folder is made, on a filesystem with O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// The program; by default the one that was built beside this.
    #[arg(long)]
    swapfs: Option<PathBuf>,
    /// Clone the disk instead of killing the daemon.
    #[arg(long)]
    power_cut: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = args.seed.unwrap_or_else(clock);
    match run(&args, seed) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("crash: FAILED: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, seed: u64) -> Result<String, String> {
    let program = match &args.swapfs {
        Some(program) => program.clone(),
        None => place::built_beside().map_err(|error| format!("which swapfs? {error}"))?,
    };
    println!("crash: seed {seed}, {} rounds", args.rounds);
    let (mut found, mut calls) = (Found::default(), 0);
    for round in 0..args.rounds {
        let seed = seed.wrapping_add(round);
        let outcome = if args.power_cut {
            cut_power(&program, &args.folder, seed)
        } else {
            kill_daemon(&program, &args.folder, seed)
        };
        let (counts, made) =
            outcome.map_err(|line| format!("round {round}, --seed {seed}: {line}"))?;
        found.add(counts);
        calls += made;
    }
    let Found { certain, old, new, refused } = found;
    Ok(format!(
        "crash: ok: {} rounds, {calls} calls; parts synchronized {certain}, else old {old}, new {new}, \
         refused {refused}",
        args.rounds
    ))
}

/// Mount options, by chance.
fn options(random: &mut Random) -> (String, u64) {
    let block_kib = random.pick(&[64, 256, 1024]);
    let small = random.pick(&["0", "64k", "1m", "4m"]);
    let depth = random.pick(&[1, 4, 8]);
    let pool_mib = random.pick(&[8, 16, 64]).max(block_kib * 8 / 1024);
    let options = format!(
        "pool_size={pool_mib}m,block_size={block_kib}k,min_swap_size={small},queue_depth={depth}"
    );
    (options, block_kib << 10)
}

/// Lets clients work for a while; `end` is what happens then.
fn work(
    clients: &mut [Client], mnt: &Path, time: Duration, end: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            clients.iter_mut().map(|client| scope.spawn(|| client.run(mnt, &stop))).collect();
        std::thread::sleep(time);
        let ended = end();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a client panicked".to_owned())??;
        }
        ended
    })
}

fn clients(seed: u64) -> Vec<Client> {
    (0..CLIENTS).map(|number| Client::new(number, seed ^ (number as u64) << 40)).collect()
}

/// One life of a swap folder: work, the end of its daemon in the middle of it, and a look at what is left.
fn kill_daemon(program: &Path, folder: &Path, seed: u64) -> Result<(Found, u64), String> {
    let mut random = Random::new(seed);
    let place = Place::new(program, folder)?;
    let mut clients = clients(seed);
    let (options, block_size) = options(&mut random);
    let mut found = Found::default();
    place.mount(&options)?;
    for client in &mut clients {
        client.prepare(&place.mnt).map_err(|error| format!("preparing: {error}"))?;
    }
    let time = Duration::from_millis(1 + random.below(600));
    work(&mut clients, &place.mnt, time, || place.kill())?;
    place.mount(&options)?;
    for file in clients.iter_mut().flat_map(|client| &mut client.files) {
        found.add(check(&place, file, block_size, false)?);
    }
    place.unmount()?;
    // Without the mount it is the same, and the daemon's end has added nothing.
    for file in clients.iter().flat_map(|client| &client.files) {
        let bytes =
            std::fs::read(place.swap.join(&file.name)).map_err(|error| error.to_string())?;
        if bytes != file.history.now() {
            return Err(format!("{} is another file in the swap folder", file.name));
        }
    }
    Ok((found, clients.iter().map(|client| client.calls).sum()))
}

/// One life of a disk, up to the moment when its image is cloned.
fn cut_power(program: &Path, folder: &Path, seed: u64) -> Result<(Found, u64), String> {
    let mut random = Random::new(seed);
    let image = Image::new(folder)?;
    let mut clients = clients(seed);
    let (options, block_size) = options(&mut random);
    let time = Duration::from_millis(1 + random.below(600));
    let before = {
        let place = Place::new(program, &image.disk)?;
        place.mount(&options)?;
        for client in &mut clients {
            client.prepare(&place.mnt).map_err(|error| format!("preparing: {error}"))?;
        }
        File::open(&place.mnt)
            .and_then(|root| root.sync_all())
            .map_err(|error| error.to_string())?;
        // The clients go on while the clone is made: what they then synchronize it need not have.
        let mut before = Vec::new();
        work_and_clone(&mut clients, &place, time, &image, &mut before)?;
        place.unmount()?;
        before
    };
    let mut found = Found::default();
    image.mount_clone()?;
    let place = Place::within_clone(program, &image)?;
    place.mount(&options)?;
    for mut file in before {
        found.add(check(&place, &mut file, block_size, true)?);
    }
    place.unmount()?;
    Ok((found, clients.iter().map(|client| client.calls).sum()))
}

/// Stops the clients between two calls, with everything still on its way, and clones the image.
fn work_and_clone(
    clients: &mut [Client], place: &Place, time: Duration, image: &Image, before: &mut Vec<Owned>,
) -> Result<(), String> {
    work(clients, &place.mnt, time, || Ok(()))?;
    image.clone_now()?;
    for file in clients.iter().flat_map(|client| &client.files) {
        let mut copy = Owned::new(file.name.clone());
        copy.history = file.history.clone();
        before.push(copy);
    }
    Ok(())
}

/// What a power cut may leave behind the end of a partition that grew and was not synchronized: its true length need
/// not have reached the disk.
const PADDING_MAX: u64 = 4095;

/// Reads a file of the mount in parts and checks each; what was found is what it is from now on. What was refused
/// is written again, and must be readable then.
fn check(place: &Place, file: &mut Owned, block_size: u64, sectors: bool) -> Result<Found, String> {
    let failed = |what: String| format!("{}: {what}", file.name);
    let opened = File::options().read(true).write(true).open(place.mnt.join(&file.name));
    let opened = opened.map_err(|error| failed(error.to_string()))?;
    let length = opened.metadata().map_err(|error| failed(error.to_string()))?.len();
    let part = History::part_length(block_size, sectors);
    let mut contents = Contents { length, parts: Vec::new() };
    let mut whole = Vec::new();
    let mut at = 0;
    while at < length {
        let mut bytes = vec![0; part.min(length - at) as usize];
        let read = opened.read_exact_at(&mut bytes, at);
        whole.extend_from_slice(&bytes);
        contents.parts.push(read.is_ok().then_some(bytes));
        at += part;
    }
    let found = file
        .history
        .check(&contents, part, if sectors { PADDING_MAX } else { 0 })
        .map_err(failed)?;
    let mend = |at: u64, bytes: &mut [u8]| {
        bytes.fill(0x5a);
        opened.write_all_at(bytes, at)?;
        opened.read_exact_at(bytes, at)
    };
    for (index, bytes) in contents.parts.iter().enumerate() {
        // A page is whole again when all of it was written.
        let at = index as u64 * part;
        if bytes.is_none() && at.is_multiple_of(History::PAGE) {
            let end = (at + part.max(History::PAGE)).min(length);
            mend(at, &mut whole[at as usize..end as usize])
                .map_err(|error| failed(format!("writing what was torn at {at}: {error}")))?;
        }
    }
    file.history.settle(whole);
    Ok(found)
}
