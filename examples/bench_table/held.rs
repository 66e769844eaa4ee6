//! What holds a stream: whole seconds of it through the mount, past it, and through a mount whose device moves nothing, each
//! with the time that processors and device were busy. What the folder and FUSE take apart is what both must take together.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use swapfs::bench::{Cleanup, Made};
use swapfs::turns::{Spread, Turns};
use swapfs::units::{GIB, MIB};

use crate::Outcome;
use crate::place::{PROGRAM, Place, State, Way};
use crate::sample::{Daemon, Unit};
use crate::work::{Calls, Fio, Pace};

/// Until fio has begun and the pool is full.
const RUN_UP: Duration = Duration::from_millis(1500);
const LOOKED_AT: Duration = Duration::from_secs(2);
/// fio's own time: both, and some to spare.
const SECONDS: u32 = 4;
/// A tick of the kernel's accounts.
const TICKS_PER_SECOND: f64 = 100.0;

/// A row of the table as it goes on and on.
pub(crate) struct Stream {
    pub(crate) id: &'static str,
    ours: Fio,
    theirs: Fio,
    files: u64,
    state: State,
}

/// All that are bounded by what moves bytes.
pub(crate) fn streams(bytes: u64, pool: u64) -> Vec<Stream> {
    let fio = |rw, depth, bytes| Fio { pace: Pace::For(SECONDS), ..Fio::direct(rw, depth, bytes) };
    let plain = |rw, block, bytes| Fio { block, calls: Calls::Plain, ..fio(rw, 1, bytes) };
    let both =
        |id, one: Fio| Stream { id, theirs: one.clone(), ours: one, files: 1, state: State::Cold };
    let warm = (bytes / 4).min(pool / 2);
    let each = bytes / 4;
    vec![
        both("direct-8-read", fio("read", 8, bytes)),
        both("direct-8-write", fio("write", 8, bytes)),
        both("direct-16m-write", Fio { block: 16 * MIB, ..fio("write", 1, bytes) }),
        Stream { ours: plain("read", 16 * MIB, bytes), ..both("read", fio("read", 8, bytes)) },
        Stream { ours: plain("write", 16 * MIB, bytes), ..both("write", fio("write", 8, bytes)) },
        Stream { state: State::Warm, ..both("warm-read", plain("read", MIB, warm)) },
        Stream { files: 8, ..both("processes-write", Fio { jobs: 8, ..fio("write", 4, each) }) },
        Stream { files: 8, ..both("processes-read", Fio { jobs: 8, ..fio("read", 4, each) }) },
    ]
}

/// What was busy while a contestant was looked at.
#[derive(Debug, Clone, Copy)]
struct Busy {
    /// 10^6 bytes a second.
    rate: f64,
    /// Processors that worked, of all.
    processors: f64,
    /// Of that, the daemon.
    daemon: f64,
    /// Share of the time in which the device had something to do.
    device: f64,
}

impl Busy {
    /// Processor seconds for a GiB, everybody's.
    fn per_gib(self) -> f64 {
        self.processors / (self.rate * 1e6 / GIB as f64)
    }

    fn line(self) -> String {
        let Self { rate, processors, daemon, device } = self;
        format!(
            "{rate:>6.0} MB/s; {:.2} s/GiB; busy: {processors:.2} processors ({daemon:.2} by the daemon), device {:.0} %",
            self.per_gib(),
            100.0 * device
        )
    }

    fn to_json(self) -> Value {
        json!({
            "mb_per_s": self.rate, "cpu_s_per_gib": self.per_gib(), "busy_processors": self.processors,
            "busy_processors_daemon": self.daemon, "device_busy": self.device,
        })
    }

    fn middle(all: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| Spread::of(all.iter().map(figure)).median;
        Self {
            rate: of(|one| one.rate),
            processors: of(|one| one.processors),
            daemon: of(|one| one.daemon),
            device: of(|one| one.device),
        }
    }
}

/// The kernel's accounts at one moment.
struct Accounts {
    at: Instant,
    worked: f64,
    device: f64,
    daemon: Duration,
}

impl Accounts {
    fn now(device: (u32, u32), daemon: Option<Daemon>) -> Outcome<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let figures = |line: &str| -> Vec<f64> {
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        let all = figures(stat.lines().next().ok_or("/proc/stat is empty")?);
        // user, nice, system, (idle, iowait,) irq, softirq
        let worked = [0, 1, 2, 5, 6].iter().filter_map(|index| all.get(*index)).sum::<f64>();
        let disks = fs::read_to_string("/proc/diskstats")?;
        let of_device = disks.lines().map(figures_after_name).find(|(number, _)| *number == device);
        let milliseconds = of_device.and_then(|(_, figures)| figures.get(9).copied());
        Ok(Self {
            at: Instant::now(),
            worked: worked / TICKS_PER_SECOND,
            device: milliseconds.unwrap_or(0.0) / 1e3,
            daemon: daemon.map_or(Ok(Duration::ZERO), Daemon::cpu)?,
        })
    }
}

/// Number and figures of a line of `/proc/diskstats`.
fn figures_after_name(line: &str) -> ((u32, u32), Vec<f64>) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse().ok()).unwrap_or(0);
    let figures = words.iter().skip(3).filter_map(|word| word.parse().ok()).collect();
    ((number(0), number(1)), figures)
}

/// A mount whose device moves nothing.
pub(crate) struct Unbacked {
    daemon: Daemon,
    folder: PathBuf,
    _mount: Made,
}

impl Unbacked {
    pub(crate) fn new(cleanup: &Cleanup, place: &Place, options: &[String]) -> Outcome<Self> {
        let (swap, folder) = (place.root.join("null-swap"), place.root.join("null-mnt"));
        fs::create_dir_all(&swap)?;
        fs::create_dir_all(&folder)?;
        let program = Path::new(PROGRAM);
        let made = cleanup.mount(program, "bench-null-mount", &swap, &folder, options)?;
        Ok(Self { daemon: Daemon::of(&folder)?, folder, _mount: made })
    }
}

/// Runs fio on files in the right state, and looks at the middle of it.
fn look(
    cleanup: &Cleanup, fio: &Fio, files: &[PathBuf], device: (u32, u32), daemon: Option<Daemon>,
) -> Outcome<Busy> {
    let accounts = move || Accounts::now(device, daemon).map_err(|error| error.to_string());
    let looking = thread::spawn(move || -> Result<_, String> {
        thread::sleep(RUN_UP);
        let before = accounts()?;
        thread::sleep(LOOKED_AT);
        Ok((before, accounts()?))
    });
    let sample = fio.run(cleanup, files)?;
    let (before, after) = looking.join().map_err(|_| "the thread that looks has ended")??;
    let seconds = (after.at - before.at).as_secs_f64();
    Ok(Busy {
        rate: Unit::Throughput.of(&sample),
        processors: (after.worked - before.worked) / seconds,
        daemon: (after.daemon - before.daemon).as_secs_f64() / seconds,
        device: (after.device - before.device) / seconds,
    })
}

/// Measures and prints streams of one place in turns.
pub(crate) fn measure(
    cleanup: &Cleanup, place: &Place, unbacked: &Unbacked, runs: u32,
    streams: impl Iterator<Item = Stream>, found: &mut Vec<Value>,
) -> Outcome<()> {
    let processors = thread::available_parallelism()?.get() as f64;
    println!("{} streams of {SECONDS} seconds: what was busy in two of them", place.name);
    for stream in streams {
        let id = stream.id;
        eprintln!("bench_table: {}, {id}", place.name);
        let busy = turns(cleanup, place, unbacked, runs, stream)?;
        let (mount, folder, fuse) = (busy[0], busy[1], busy[2]);
        let most = processors / (folder.per_gib() + fuse.per_gib()) * GIB as f64 / 1e6;
        println!("  {id}");
        for (name, busy) in [("mount", mount), ("folder", folder), ("FUSE over nothing", fuse)] {
            println!("    {name:<18} {}", busy.line());
        }
        println!(
            "    both would take all of {processors} processors at {most:.0} MB/s; the mount gives {:.2} of that, and \
             {:.2} of the folder",
            mount.rate / most,
            mount.rate / folder.rate
        );
        found.push(json!({
            "place": place.name.to_string(), "row": id, "mount": mount.to_json(), "folder": folder.to_json(),
            "fuse_over_nothing": fuse.to_json(), "mb_per_s_of_all_processors": most,
        }));
    }
    Ok(())
}

/// What was busy during one stream through the mount, on the folder, and through the mount over nothing.
fn turns(
    cleanup: &Cleanup, place: &Place, unbacked: &Unbacked, runs: u32, stream: Stream,
) -> Outcome<Vec<Busy>> {
    let Stream { id: _, ours, theirs, files, state } = stream;
    let number = fs::metadata(&place.root)?.dev();
    let device = (rustix::fs::major(number), rustix::fs::minor(number));
    let names: Vec<String> = (0..files).map(|number| format!("held-{number}")).collect();
    let turns = Turns { warmup: 0, rounds: runs };
    let mut ways = [Some(Way::Mount), Some(Way::Beside), None];
    let taken = turns.take(&mut ways, |way, _| -> Outcome<_> {
        let (fio, folder, daemon) = match way {
            Some(Way::Mount) => (&ours, place.folder(Way::Mount), Some(place.daemon()?)),
            Some(way) => (&theirs, place.folder(*way), None),
            None => (&ours, unbacked.folder.clone(), Some(unbacked.daemon)),
        };
        let paths: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
        for (name, path) in names.iter().zip(&paths) {
            match way {
                Some(way) => place.prepare(*way, name, fio.bytes, state)?,
                None => fs::File::create(path)?.set_len(fio.bytes)?,
            }
        }
        look(cleanup, fio, &paths, device, daemon).map(Some)
    })?;
    place.empty(&[])?;
    for path in &names {
        fs::remove_file(unbacked.folder.join(path))?;
    }
    Ok(taken.iter().map(|all| Busy::middle(all)).collect())
}
