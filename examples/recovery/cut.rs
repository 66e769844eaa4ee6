//! One life of a disk: a session at work, and what mounts find on it after power cuts at chosen moments of it.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::Args;
use crate::chance::Random;
use crate::disk::{Copy, Disk, Rebooted};
use crate::model::{Failure, Mixture, Mode};
use crate::place::{Place, Stop, trouble};
use crate::round::{Session, Work, work};
use crate::tracer::Daemon;
use crate::world::{Counts, Reading, World};

/// Moments that are looked at in each life.
const MOMENTS: usize = 8;

/// Runs one round.
pub(crate) fn run(args: &Args, program: &Path, seed: u64) -> Result<Counts, Failure> {
    let mut random = Random::new(seed);
    let disk = Disk::new(&args.folder, &mut random)?;
    let mut counts = Counts::default();
    let mut worlds = vec![World::new('a')];
    let session = Session::by_chance(args.checksum, false, &mut random);
    let start = live(program, &disk, &session, &mut worlds, &mut random, &mut counts)?;
    let mut copy = Copy::new(&args.folder)?;
    for moment in disk.moments(start, MOMENTS, &mut random) {
        let cut = disk.cut(moment, &copy.image, &mut random);
        let what = cut.map_err(|error| trouble(format!("an image: {error}")))?;
        copy.mount()?;
        let mut then: Vec<World> = worlds.iter().map(|world| world.at(moment)).collect();
        then.iter_mut().for_each(|world| world.note_all(&what));
        let mode = session.mode;
        look(args, program, &copy, mode, &mut then, &mut random, &mut counts)?;
        copy.unmount();
        counts.cuts += 1;
    }
    Ok(counts)
}

/// Works on the disk; the moment from which on there is something to check.
fn live(
    program: &Path, disk: &Disk, session: &Session, worlds: &mut [World], random: &mut Random,
    counts: &mut Counts,
) -> Result<u64, Failure> {
    let place = Place::new(program, &disk.mounted, Some(disk.mounted.join("swap")))
        .map_err(|error| trouble(format!("a scratch folder: {error}")))?;
    let daemon = place.mount(&session.options, 0)?;
    let clock = &*disk.length;
    let lived = (|| {
        place.guarded(&daemon, || place.wait_mounted(&daemon))?;
        let begin = |steps| Work { steps, after: None, clock: Some(clock) };
        for world in worlds.iter_mut() {
            world.note_all(&format!("session: {}", session.options));
        }
        let seeds = [random.next(), random.next()];
        counts.calls += work(&place, worlds.iter_mut().zip(seeds), &daemon, session, &begin(0))?;
        let start = clock.load(Ordering::SeqCst);
        let steps = 20 + random.scaled(300);
        let seeds = [random.next(), random.next()];
        counts.calls +=
            work(&place, worlds.iter_mut().zip(seeds), &daemon, session, &begin(steps))?;
        if daemon.has_ended() {
            return Err(place.ended(&daemon));
        }
        Ok(start)
    })();
    counts.sessions += 1;
    let ended = end(&place, &daemon, random);
    let failed = |stop| match stop {
        Stop::Failed(failure) => failure,
        Stop::Gone => trouble("the daemon is gone, though nobody killed it"),
    };
    let start = lived.map_err(failed)?;
    if ended? {
        let now = clock.load(Ordering::SeqCst);
        worlds.iter_mut().for_each(|world| world.synchronize_at(now));
    }
    Ok(start)
}

/// Ends the session: whether by a clean unmount.
fn end(place: &Place, daemon: &Daemon, random: &mut Random) -> Result<bool, Failure> {
    match random.chance(40) {
        true => place.unmount(daemon, false),
        false => place.kill(daemon).map(|()| false),
    }
}

/// Mounts what a cut left, as the kernel does after a start, and compares it.
fn look(
    args: &Args, program: &Path, copy: &Copy, mode: Mode, worlds: &mut [World],
    random: &mut Random, counts: &mut Counts,
) -> Result<(), Failure> {
    let _rebooted = Rebooted::new(&args.folder, random)?;
    let place = Place::new(program, &args.folder, Some(copy.mounted.join("swap")))
        .map_err(|error| trouble(format!("a scratch folder: {error}")))?;
    let before = place.snapshot()?;
    if random.chance(15) {
        place.fsck(false)?;
        place.check_same(&before, "fsck")?;
    }
    let session = Session::by_chance(args.checksum, false, random);
    let daemon = place.mount(&session.options, 0)?;
    let mixture = if mode == Mode::Crc32c { Mixture::Never } else { Mixture::Anywhere };
    let looked = place.guarded(&daemon, || {
        place.wait_mounted(&daemon)?;
        place.check_same(&before, "the mount after a power cut")?;
        let reading = Reading { daemon: &daemon, mnt: &place.mnt, mixture };
        for world in worlds.iter_mut() {
            world.note_all(&format!("mounted: {}", session.options));
            world.verify(&reading, random, counts)?;
        }
        Ok(place.check_same(&before, "reading after a power cut")?)
    });
    match looked {
        Ok(()) => {
            place.unmount(&daemon, false)?;
            place.check_same(&before, "a mount without work after a power cut")
        }
        Err(Stop::Failed(failure)) => {
            let _ = place.kill(&daemon);
            let text = format!("{}\n  the daemon's last words:\n  {}", failure.text, place.said());
            Err(Failure { text, ..failure })
        }
        Err(Stop::Gone) => Err(trouble("the daemon is gone, though nobody killed it")),
    }
}
