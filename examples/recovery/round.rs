//! One life of a swap folder: sessions, their ends, and what happens between them.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::Args;
use crate::chance::Random;
use crate::client::{Client, Scene, Watch};
use crate::model::{Failure, Mixture, Mode};
use crate::others;
use crate::place::{DYING, PATIENCE, Place, Snapshot, Stop, trouble};
use crate::tracer::Daemon;
use crate::world::{Counts, Reading, World};

/// How a session ends, if nothing goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    /// Before this call of the daemon's life.
    AtCall(u64),
    /// Before this call since the client's work began.
    AtWork(u64),
    /// So long after the client's work began.
    After(Duration),
}

/// Which modes a round's sessions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Policy {
    Writes,
    Crc32c,
    None,
    Mixed,
}

/// What a session is mounted with.
pub(crate) struct Session {
    pub(crate) mode: Mode,
    pub(crate) read_only: bool,
    pub(crate) options: String,
}

impl Session {
    pub(crate) fn by_chance(policy: Policy, read_only: bool, random: &mut Random) -> Session {
        let mode = match policy {
            Policy::Writes => Mode::Writes,
            Policy::Crc32c => Mode::Crc32c,
            Policy::None => Mode::None,
            Policy::Mixed => {
                random.pick(&[Mode::Writes, Mode::Writes, Mode::Crc32c, Mode::Crc32c, Mode::None])
            }
        };
        let block = random.pick(&["64k", "256k", "1m"]);
        let pool = random.pick(&["8m", "8m", "16m", "64m"]);
        let small = random.pick(&["0", "64k", "1m", "4m"]);
        let depth = random.pick(&[1, 4, 8]);
        let ro = if read_only { ",ro" } else { "" };
        let options = format!(
            "checksum={},pool_size={pool},block_size={block},min_swap_size={small},queue_depth={depth}{ro}",
            mode.name()
        );
        Session { mode, read_only, options }
    }
}

/// One round's state.
pub(crate) struct Round<'a> {
    args: &'a Args,
    place: Place,
    random: Random,
    worlds: Vec<World>,
    counts: Counts,
    /// Whether the client changed anything in this session.
    worked: bool,
    /// What happened to all of it.
    story: Vec<String>,
}

/// Runs one round.
pub(crate) fn run(args: &Args, program: &Path, seed: u64) -> Result<Counts, Failure> {
    let mut random = Random::new(seed);
    let place = Place::new(program, &args.folder, None)
        .map_err(|error| trouble(format!("a scratch folder: {error}")))?;
    let clients = if random.chance(25) { 2 } else { 1 };
    let worlds = ['a', 'b'].into_iter().take(clients).map(World::new).collect();
    let counts = Counts::default();
    let mut round = Round { args, place, random, worlds, counts, worked: false, story: Vec::new() };
    round.put_bystanders().map_err(|error| trouble(format!("the others' files: {error}")))?;
    let sessions = 2 + round.random.below(4);
    let mut result = Ok(());
    for number in 0..sessions {
        result = round.session(number).and_then(|()| round.between());
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| round.last_look());
    result.map(|()| round.counts).map_err(|failure| {
        let (story, said) = (round.story.join("\n  "), round.place.said());
        let text = format!(
            "{}\n  the sessions:\n  {story}\n  the daemon's last words:\n  {said}",
            failure.text
        );
        Failure { text, ..failure }
    })
}

impl Round<'_> {
    /// Notes something for every file.
    fn tell(&mut self, line: &str) {
        self.worlds.iter_mut().for_each(|world| world.note_all(line));
        self.story.push(line.to_owned());
    }

    fn without(&self, what: &str) -> bool {
        self.args.without.iter().any(|left_out| left_out == what)
    }

    /// Files that nobody touches.
    fn put_bystanders(&mut self) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = self.place.swap.join("folder");
        std::fs::create_dir(&folder)?;
        for (path, mode) in [(self.place.swap.join("untouched"), 0), (folder.join("inner"), 0o444)]
        {
            let length = self.random.below(20_000);
            std::fs::write(&path, self.random.bytes(length))?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        Ok(())
    }

    fn end_by_chance(&mut self) -> End {
        if self.without("kills") {
            return End::Clean;
        }
        match self.random.below(100) {
            0..15 => End::Clean,
            15..25 => End::After(Duration::from_millis(self.random.below(400))),
            25..50 => End::AtCall(self.random.scaled(2000)),
            _ => End::AtWork(self.random.scaled(3000)),
        }
    }

    fn session(&mut self, number: u64) -> Result<(), Failure> {
        let read_only = number > 0 && !self.without("ro") && self.random.chance(10);
        let session = Session::by_chance(self.args.checksum, read_only, &mut self.random);
        let end = self.end_by_chance();
        let steps = 1 + self.random.scaled(400);
        let before = self.place.snapshot()?;
        self.tell(&format!("session {number}: {}, {end:?}", session.options));
        self.worlds.iter().try_for_each(|world| world.check_names(&self.place.swap))?;
        let kill_at = if let End::AtCall(call) = end { call } else { 0 };
        let daemon = self.place.mount(&session.options, kill_at)?;
        self.worked = false;
        self.counts.sessions += 1;
        let outcome = self.live(&daemon, &session, end, steps, &before);
        match outcome {
            Ok(true) => self.after_clean(),
            Ok(false) | Err(Stop::Gone) => self.after_kill(&daemon, end, &before),
            Err(Stop::Failed(failure)) => {
                // What it is to tell is told.
                let _ = self.place.kill(&daemon);
                Err(failure)
            }
        }
    }

    /// From the mount to the end: whether that was clean.
    fn live(
        &mut self, daemon: &Daemon, session: &Session, end: End, steps: u64, before: &Snapshot,
    ) -> Result<bool, Stop> {
        self.look(daemon, before, true)?;
        if let End::AtWork(call) = end {
            daemon.kill_before(daemon.calls() + call);
        }
        let after = if let End::After(time) = end { Some(time) } else { None };
        self.worked = !session.read_only;
        self.work(daemon, session, steps, after)?;
        if daemon.has_ended() || daemon.is_killed() {
            return Err(self.place.ended(daemon));
        }
        match end {
            End::Clean => Ok(self.place.unmount(daemon, self.is_strained())?),
            _ if self.random.chance(50) => {
                daemon.kill_before(daemon.calls() + self.random.scaled(60));
                Ok(self.place.unmount(daemon, self.is_strained())?)
            }
            _ => Ok(false),
        }
    }

    fn is_strained(&self) -> bool {
        self.worlds.iter().any(World::is_strained)
    }

    /// Waits for the mount, and compares what it shows and what it left of the swap folder.
    fn look(&mut self, daemon: &Daemon, before: &Snapshot, all: bool) -> Result<(), Stop> {
        let Round { place, worlds, random, counts, .. } = self;
        place.guarded(daemon, || {
            place.wait_mounted(daemon)?;
            let same = place.check_same(before, "the mount");
            same.or_else(|failure| unless_killed(daemon, failure))?;
            let reading = Reading { daemon, mnt: &place.mnt, mixture: Mixture::Unrecorded };
            for world in worlds.iter_mut().filter(|_| all) {
                world.verify(&reading, random, counts)?;
            }
            let same = place.check_same(before, "reading");
            same.or_else(|failure| unless_killed(daemon, failure))
        })
    }

    fn work(
        &mut self, daemon: &Daemon, session: &Session, steps: u64, after: Option<Duration>,
    ) -> Result<(), Stop> {
        let seeds: Vec<u64> = self.worlds.iter().map(|_| self.random.next()).collect();
        let (place, worlds) = (&self.place, self.worlds.iter_mut().zip(seeds));
        let calls = work(place, worlds, daemon, session, &Work { steps, after, clock: None })?;
        self.counts.calls += calls;
        Ok(())
    }

    fn after_clean(&mut self) -> Result<(), Failure> {
        for world in &mut self.worlds {
            world.synchronize();
        }
        self.tell("clean umount");
        self.check_raw()
    }

    fn check_raw(&mut self) -> Result<(), Failure> {
        let raw = self.place.snapshot()?;
        self.worlds.iter().try_for_each(|world| {
            world.check_names(&self.place.swap)?;
            world.check_raw(&self.place.swap, &raw)
        })
    }

    fn after_kill(&mut self, daemon: &Daemon, end: End, before: &Snapshot) -> Result<(), Failure> {
        self.place.kill(daemon)?;
        self.counts.kills += 1;
        let at = matches!(end, End::AtCall(_) | End::AtWork(_));
        self.counts.points += u64::from(at);
        for world in &mut self.worlds {
            world.look_at_names(&self.place.swap);
            world.forget_nameless(&[]);
        }
        self.tell(&format!("killed before call {} of the daemon", daemon.calls()));
        if !self.worked {
            self.place.check_same(before, "a mount that was killed")?;
        }
        self.check_raw()
    }

    /// What happens while nobody has it mounted.
    fn between(&mut self) -> Result<(), Failure> {
        if !self.without("fsck") && self.random.chance(12) {
            self.fsck(false)?;
        }
        if !self.without("others") && self.random.chance(50) {
            for _ in 0..=self.random.below(3) {
                let at = self.random.below(self.worlds.len() as u64) as usize;
                others::change_one(&self.place.swap, &mut self.worlds[at], &mut self.random)?;
                self.counts.others += 1;
            }
        }
        if !self.without("flips") && self.random.chance(35) {
            self.flip()?;
        }
        if !self.without("fsck") && self.random.chance(8) {
            let repair = self.random.chance(40);
            self.fsck(repair)?;
        }
        if !self.without("modes") && self.random.chance(12) {
            self.pass_by()?;
        }
        Ok(())
    }

    fn flip(&mut self) -> Result<(), Failure> {
        let swap = self.place.swap.clone();
        if self.args.checksum == Policy::Crc32c && self.random.chance(60) {
            let at = self.random.below(self.worlds.len() as u64) as usize;
            let done = others::flip_data(&swap, &mut self.worlds[at], &mut self.random)?;
            self.counts.flips += u64::from(done);
        } else if self.random.chance(40)
            && let Some(what) = others::flip_record(&swap, &mut self.random)?
        {
            self.counts.flips += 1;
            self.tell(&what);
            for world in &mut self.worlds {
                world.files.values_mut().for_each(|file| file.model.doubt());
            }
        }
        Ok(())
    }

    fn fsck(&mut self, repair: bool) -> Result<(), Failure> {
        let before = self.place.snapshot()?;
        let status = self.place.fsck(repair)?;
        let by = if repair { "fsck --repair" } else { "fsck" };
        self.place.check_same(&before, by)?;
        self.tell(&format!("{by} gave {status}"));
        for world in &mut self.worlds {
            for (id, name) in world.one_name_each().into_iter().filter(|_| repair) {
                let raw = &before[&self.place.swap.join(name)];
                world.file(id).model.accepted(raw, status == 0);
            }
        }
        Ok(())
    }

    /// A mount in some mode, at which nobody does anything.
    fn pass_by(&mut self) -> Result<(), Failure> {
        let policy = match self.args.checksum {
            Policy::Crc32c => Policy::Crc32c,
            _ => Policy::Mixed,
        };
        let read_only = self.random.chance(30);
        let session = Session::by_chance(policy, read_only, &mut self.random);
        self.mount_and_look(&session, false)
    }

    fn mount_and_look(&mut self, session: &Session, verify: bool) -> Result<(), Failure> {
        let before = self.place.snapshot()?;
        self.tell(&format!("mounted without work: {}", session.options));
        let daemon = self.place.mount(&session.options, 0)?;
        let looked = self.look(&daemon, &before, verify);
        looked.map_err(|stop| match stop {
            Stop::Failed(failure) => failure,
            Stop::Gone => trouble("the daemon is gone, though nobody killed it"),
        })?;
        if !self.place.unmount(&daemon, false)? {
            return Err(trouble("a clean umount failed"));
        }
        self.place.check_same(&before, "a mount without work")
    }

    /// In the end everything is read once more, and is the same in the swap folder.
    fn last_look(&mut self) -> Result<(), Failure> {
        for world in &self.worlds {
            world.check_names(&self.place.swap)?;
        }
        let session = Session::by_chance(self.args.checksum, false, &mut self.random);
        self.mount_and_look(&session, true)?;
        self.check_raw()
    }
}

/// A failure means nothing when the daemon has been killed meanwhile, as to what it changed: it is looked at then.
fn unless_killed(daemon: &Daemon, failure: Failure) -> Result<(), Stop> {
    match daemon.is_killed() {
        true => Err(Stop::Gone),
        false => Err(failure.into()),
    }
}

/// What clients are to do.
pub(crate) struct Work<'a> {
    /// So many calls; with a clock and none, the files are made that stay.
    pub(crate) steps: u64,
    /// When the daemon is killed.
    pub(crate) after: Option<Duration>,
    pub(crate) clock: Option<&'a AtomicU64>,
}

/// Lets clients work and waits for all of them; calls that returned.
pub(crate) fn work<'a>(
    place: &Place, worlds: impl Iterator<Item = (&'a mut World, u64)>, daemon: &Daemon,
    session: &Session, wanted: &Work,
) -> Result<u64, Stop> {
    let Work { steps, after, clock } = *wanted;
    let worlds: Vec<_> = worlds.collect();
    let any_strained = worlds.iter().any(|(world, _)| world.is_strained());
    std::thread::scope(|scope| {
        let clients: Vec<_> = worlds
            .into_iter()
            .map(|(world, seed)| {
                let watch = std::sync::Arc::new(Watch::new());
                let seen = std::sync::Arc::clone(&watch);
                let mnt = &place.mnt;
                let thread = scope.spawn(move || {
                    let reading = Reading { daemon, mnt, mixture: Mixture::Never };
                    let (mode, read_only) = (session.mode, session.read_only);
                    let scene =
                        Scene { reading, mode, read_only, any_strained, watch: &seen, clock };
                    let mut random = Random::new(seed);
                    let mut client = Client::new(world, &mut random, scene)?;
                    let result = match steps {
                        0 => client.prepare_files(),
                        steps => client.run(steps),
                    };
                    result.map(|()| client.calls)
                });
                (thread, watch)
            })
            .collect();
        let working = || clients.iter().any(|(thread, _)| !thread.is_finished());
        let stuck = |time| clients.iter().find_map(|(_, watch)| watch.stuck(time));
        let mut failure = watch_over(place, daemon, after, &working, &stuck);
        let mut calls = 0;
        for (thread, _) in clients {
            calls += thread.join().map_err(|_| trouble("a client panicked"))??;
        }
        match failure.take() {
            Some(failure) => Err(failure.into()),
            None => Ok(calls),
        }
    })
}

/// Waits for the clients, kills the daemon when it is time, and ends what hangs.
fn watch_over(
    place: &Place, daemon: &Daemon, after: Option<Duration>, working: &dyn Fn() -> bool,
    stuck: &dyn Fn(Duration) -> Option<String>,
) -> Option<Failure> {
    let begin = Instant::now();
    let (mut failure, mut killed) = (None, None);
    while working() {
        if after.is_some_and(|after| begin.elapsed() > after) {
            daemon.kill();
        }
        if let (Some(what), None) = (stuck(PATIENCE), &failure) {
            failure = Some(trouble(format!("{what} hangs{}", daemon.whereabouts())));
            daemon.kill();
        }
        if daemon.is_killed() && killed.get_or_insert_with(Instant::now).elapsed() > DYING {
            let forced = place.force(daemon);
            failure.get_or_insert(forced);
            killed = Some(Instant::now());
        }
        if stuck(3 * PATIENCE).is_some() {
            let text = failure.map(|failure| failure.text).unwrap_or_default();
            eprintln!("recovery: FAILED: {text}; and nothing helps");
            std::process::exit(3);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    failure
}
