//! Crashes the daemon again and again, lets others change the swap folder between its mounts, flips bits, and
//! checks each promise of recovery after each mount.
//!
//! ```sh
//! cargo build --release && cargo run --release --example recovery -- --rounds 50 --checksum mixed
//! ```
//!
//! A round is one life of a swap folder: sessions of one or two clients, most of which end with a kill
//! exactly before a chosen system call of the daemon. It knows of swapfs what the manual says, and nothing else: it
//! keeps for each page of 4 KiB what that may hold. With `--power-cut` the swap folder lies on an ext4 whose device
//! logs every write and flush; images from moments of that log are mounted and checked. Needs root, and for the power cut
//! loop devices and mkfs.ext4. It mounts in a mount namespace of its own, so that nothing stays behind.
//!
//! A failure prints its seed, a line that repeats the round, and what happened to the file. The same seed makes the same
//! choices, though not with the same timing.

mod chance;
mod client;
mod cut;
mod disk;
mod model;
mod others;
mod place;
mod round;
mod tracer;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use model::{Failure, Kind};
use round::Policy;
use world::Counts;

/// Crashes a daemon in every way and checks what recovery promises.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// How many lives of a swap folder.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Where chance begins; the clock by default.
    #[arg(long)]
    seed: Option<u64>,
    /// What the sessions record; mixed: now this, now that.
    #[arg(long, value_enum, default_value_t = Policy::Mixed)]
    checksum: Policy,
    /// Cut the power of a disk instead of killing the daemon.
    #[arg(long)]
    power_cut: bool,
    /// Where the scratch folder is made, on a filesystem with O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// The program; by default the one that was built beside this.
    #[arg(long)]
    swapfs: Option<PathBuf>,
    /// Go on after a failure, with one line for each.
    #[arg(long)]
    keep_going: bool,
    /// Take padding behind files' ends for no failure, as programs had it before their records kept the sizes.
    #[arg(long)]
    loose_sizes: bool,
    /// Append everything that is known of each failure to this file.
    #[arg(long)]
    stories: Option<PathBuf>,
    /// Print a line before each round.
    #[arg(long)]
    each: bool,
    /// Leave out some of: kills, others, flips, fsck, modes, ro.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = args.seed.unwrap_or_else(clock);
    model::LOOSE_SIZES.store(args.loose_sizes, Ordering::Relaxed);
    match apart().and_then(|()| heed_signals()).and_then(|()| run(&args, seed)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(line) => {
            eprintln!("recovery: FAILED: {line}");
            ExitCode::FAILURE
        }
    }
}

/// Goes into a mount namespace of its own.
fn apart() -> Result<(), String> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&Path>, "/", None::<&Path>, flags, None::<&Path>)
        })
        .map(|()| {
            // What ends a daemon that waits for itself; it may be there already.
            let (none, flags) = (None::<&Path>, MsFlags::empty());
            let _ = nix::mount::mount(none, place::CONNECTIONS, Some("fusectl"), flags, none);
        })
        .map_err(|errno| format!("a mount namespace: {errno} (this needs root)"))
}

/// Somebody asked for the end.
static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

extern "C" fn ask_to_end(_: libc::c_int) {
    ASKED_TO_END.store(true, Ordering::SeqCst);
}

/// A signal ends the tester after the round that it is in, so that nothing stays behind.
fn heed_signals() -> Result<(), String> {
    let handler = SigHandler::Handler(ask_to_end);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let flags = SaFlags::SA_RESTART;
        let action = SigAction::new(handler, flags, SigSet::empty());
        // SAFETY: the handler only stores a flag.
        unsafe { sigaction(signal, &action) }.map_err(|errno| format!("signals: {errno}"))?;
    }
    Ok(())
}

/// The words that repeat a round.
fn again(args: &Args, seed: u64) -> String {
    let checksum = format!("{:?}", args.checksum).to_lowercase();
    let mut line = format!("--rounds 1 --seed {seed} --checksum {checksum}");
    if args.power_cut {
        line += " --power-cut";
    }
    if !args.without.is_empty() {
        line += &format!(" --without {}", args.without.join(","));
    }
    line
}

/// Whether every round went well.
fn run(args: &Args, seed: u64) -> Result<bool, String> {
    let program = match &args.swapfs {
        Some(program) => std::path::absolute(program),
        None => place::built_beside(),
    };
    let program = program.map_err(|error| format!("which swapfs? {error}"))?;
    println!("recovery: seed {seed}, {} rounds", args.rounds);
    let (mut counts, mut failures) = (Counts::default(), BTreeMap::<Kind, u64>::new());
    for round in 0..args.rounds {
        if ASKED_TO_END.load(Ordering::SeqCst) {
            return Err(format!("ended by a signal after {round} rounds"));
        }
        let seed = seed.wrapping_add(round);
        if args.each {
            println!("recovery: round {round}: {}", again(args, seed));
        }
        let failure = match life(args, &program, seed) {
            Ok(more) => {
                counts.add(&more);
                continue;
            }
            Err(failure) => failure,
        };
        *failures.entry(failure.kind).or_default() += 1;
        let (line, kind) = (again(args, seed), failure.kind);
        tell_story(args, &format!("round {round}: {kind:?}: {}\n  again: {line}\n", failure.text));
        if args.keep_going {
            let first = failure.text.lines().next().unwrap_or_default();
            println!("recovery: FAILED: round {round}: {kind:?}: {first} [{line}]");
            continue;
        }
        eprintln!("recovery: FAILED: round {round}: {kind:?}: {}\n  again: {line}", failure.text);
        return Ok(false);
    }
    println!("{}", summary(args, &counts, &failures));
    Ok(failures.is_empty())
}

fn life(args: &Args, program: &Path, seed: u64) -> Result<Counts, Failure> {
    match args.power_cut {
        true => cut::run(args, program, seed),
        false => round::run(args, program, seed),
    }
}

fn tell_story(args: &Args, story: &str) {
    use std::io::Write;
    let Some(path) = &args.stories else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(story.as_bytes())) {
        eprintln!("recovery: {}: {error}", path.display());
    }
}

fn summary(args: &Args, counts: &Counts, failures: &BTreeMap<Kind, u64>) -> String {
    let Counts { certain, old, new, refused, sessions, calls, kills, points, others, flips, cuts } =
        counts;
    let of = |kind| failures.get(&kind).copied().unwrap_or(0);
    format!(
        "recovery: {}: {} rounds, {sessions} sessions, {calls} calls, {kills} kills ({points} before a call of the daemon), \
         {cuts} power cuts; pages certain {certain}, old {old}, new {new}, refused {refused}; changes by others {others}, \
         flips {flips}; wrong bytes {}, wrong sizes {}, marks lost {}, files of others touched {}, else {}",
        if failures.is_empty() { "ok" } else { "FAILED" },
        args.rounds,
        of(Kind::Bytes),
        of(Kind::Size),
        of(Kind::Mark),
        of(Kind::Others),
        of(Kind::Other),
    )
}
