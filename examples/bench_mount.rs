//! Sequential throughput of a mount beside that of the same folder without it.
//!
//! `cargo run --release --example bench_mount -- FOLDER [--json]`
//!
//! Mounts a swap folder made in FOLDER and compares, at 1 MiB a call: fio straight on the folder (O_DIRECT, io_uring, depth 8), a
//! program that reads and writes plainly through the mount, and fio through the mount (O_DIRECT, libaio, depth 8). Files are
//! rewritten, as partitions are; a write counts until its fsync has returned; every read is cold. The ways alternate.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use serde_json::Value;
use tempfile::TempDir;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bytes of one call.
const CALL_BYTES: usize = 1 << 20;
/// Set in the processes that are to be the swapfs command.
const AS_COMMAND: &str = "SWAPFS_BENCH_AS_COMMAND";

/// Sequential throughput of a mount and of its swap folder.
#[derive(Debug, Parser)]
struct Arguments {
    /// A folder on the device to measure; what is made there is removed.
    folder: PathBuf,
    /// MiB that each way reads and writes.
    #[arg(long, default_value_t = 1024)]
    mib: u32,
    /// Times that each way is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB of the mount's buffer pool.
    #[arg(long, default_value_t = 256)]
    pool_mib: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Direction {
    Write,
    Read,
}

/// A way to move the bytes.
#[derive(Debug, Clone, Copy)]
enum Way {
    Native,
    MountPlain,
    MountDirect,
}

const WAYS: [Way; 3] = [Way::Native, Way::MountPlain, Way::MountDirect];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "folder, fio io_uring direct, depth 8",
            Self::MountPlain => "mount, plain calls",
            Self::MountDirect => "mount, fio libaio direct, depth 8",
        }
    }
}

/// A mounted swap folder; unmounted at the end whatever happens.
struct Mount {
    place: TempDir,
    pool_mib: u32,
}

impl Mount {
    fn new(folder: &Path, pool_mib: u32) -> Outcome<Self> {
        let place = TempDir::with_prefix_in("swapfs-bench-", folder)?;
        for name in ["swap", "mnt", "native"] {
            fs::create_dir(place.path().join(name))?;
        }
        let mount = Self { place, pool_mib };
        mount.mount()?;
        Ok(mount)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn command(&self, arguments: &[&std::ffi::OsStr]) -> Outcome<()> {
        let status =
            Command::new(std::env::current_exe()?).env(AS_COMMAND, "1").args(arguments).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("swapfs {arguments:?}: {status}").into())
        }
    }

    fn mount(&self) -> Outcome<()> {
        let pool = format!("--pool-size={}m", self.pool_mib);
        self.command(&[
            "mount".as_ref(),
            pool.as_ref(),
            self.at("swap").as_os_str(),
            self.at("mnt").as_os_str(),
        ])
    }

    fn umount(&self) -> Outcome<()> {
        self.command(&["umount".as_ref(), self.at("mnt").as_os_str()])
    }

    /// Nothing of the files is left in memory: not in the pool, not in the page cache.
    fn cool(&self) -> Outcome<()> {
        self.umount()?;
        for entry in fs::read_dir(self.at("swap"))?.chain(fs::read_dir(self.at("native"))?) {
            let path = entry?.path();
            if path.is_file() {
                let file = File::open(path)?;
                file.sync_all()?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        self.mount()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.umount();
    }
}

/// Runs fio on one file; its bytes per second, the final fsync included.
fn fio(folder: &Path, engine: &str, direction: Direction, mib: u32) -> Outcome<f64> {
    let (rw, key) = match direction {
        Direction::Write => ("write", "write"),
        Direction::Read => ("read", "read"),
    };
    let output = Command::new("fio")
        .args(["--name=bench", "--direct=1", "--bs=1m"])
        .args(["--iodepth=8", "--overwrite=1", "--output-format=json"])
        .arg("--invalidate=0")
        .arg(format!("--end_fsync={}", u8::from(direction == Direction::Write)))
        .arg("--filename=fio")
        .current_dir(folder)
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--rw={rw}"))
        .arg(format!("--size={mib}m"))
        .output()
        .map_err(|error| format!("fio: {error}"))?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let length = fs::metadata(folder.join("fio"))?.len();
    assert_eq!(length, u64::from(mib) << 20, "fio used this folder's file");
    let text = String::from_utf8(output.stdout)?;
    let start = text.find('{').ok_or("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let rate = &report["jobs"][0][key]["bw_bytes"];
    Ok(rate.as_f64().ok_or("fio reported no bandwidth")?)
}

/// Plain read or write calls on one file; bytes per second, the final fsync included.
fn plain(folder: &Path, direction: Direction, mib: u32) -> Outcome<f64> {
    let path = folder.join("plain");
    let mut block = vec![0x5a_u8; CALL_BYTES];
    let started = Instant::now();
    let mut moved = 0_u32;
    match direction {
        Direction::Write => {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            while moved < mib {
                file.write_all(&block)?;
                moved += 1;
            }
            file.sync_all()?;
        }
        Direction::Read => {
            let mut file = File::open(path)?;
            while moved < mib {
                file.read_exact(&mut block)?;
                moved += 1;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(f64::from(mib) * 1_048_576.0 / seconds)
}

fn measure(mount: &Mount, way: Way, direction: Direction, mib: u32) -> Outcome<f64> {
    match way {
        Way::Native => fio(&mount.at("native"), "io_uring", direction, mib),
        Way::MountPlain => plain(&mount.at("mnt"), direction, mib),
        Way::MountDirect => fio(&mount.at("mnt"), "libaio", direction, mib),
    }
}

/// What one way reached in one direction, in order of size.
struct Row {
    way: Way,
    direction: Direction,
    rates: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        self.rates[self.rates.len() / 2]
    }
}

fn run(arguments: &Arguments) -> Outcome<Vec<Row>> {
    let mount = Mount::new(&arguments.folder, arguments.pool_mib)?;
    let mut rows = Vec::new();
    for direction in [Direction::Write, Direction::Read] {
        for way in WAYS {
            let rates = Vec::new();
            rows.push(Row { way, direction, rates });
        }
    }
    for way in WAYS {
        measure(&mount, way, Direction::Write, arguments.mib)?;
    }
    for _ in 0..arguments.rounds.max(1) {
        for row in &mut rows {
            if row.direction == Direction::Read {
                mount.cool()?;
            }
            let rate = measure(&mount, row.way, row.direction, arguments.mib)?;
            row.rates.push(rate / 1e6);
        }
    }
    for row in &mut rows {
        row.rates.sort_unstable_by(f64::total_cmp);
    }
    Ok(rows)
}

/// The first row of the direction is the folder's own.
fn ratio(rows: &[Row], row: &Row) -> f64 {
    let native = rows.iter().find(|other| other.direction == row.direction);
    row.median() / native.map_or(f64::NAN, Row::median)
}

fn print(arguments: &Arguments, rows: &[Row]) {
    let (mib, rounds) = (arguments.mib, arguments.rounds.max(1));
    if arguments.json {
        let list = rows.iter().map(|row| {
            serde_json::json!({
                "way": row.way.name(),
                "direction": if row.direction == Direction::Write { "write" } else { "read" },
                "mb_per_s": row.rates,
                "median": row.median(),
                "ratio": ratio(rows, row),
            })
        });
        let list: Vec<_> = list.collect();
        println!(
            "{:#}",
            serde_json::json!({"mib": mib, "rounds": rounds, "pool_mib": arguments.pool_mib, "rows": list})
        );
        return;
    }
    println!(
        "{mib} MiB sequentially, 1 MiB a call, pool of {} MiB, {rounds} rounds, MB/s",
        arguments.pool_mib
    );
    println!("{:<6} {:<38} {:>7} {:>7} {:>7} {:>6}", "", "", "median", "least", "most", "ratio");
    for row in rows {
        let direction = match row.direction {
            Direction::Write => "write",
            Direction::Read => "read",
        };
        println!(
            "{direction:<6} {:<38} {:>7.0} {:>7.0} {:>7.0} {:>6.2}",
            row.way.name(),
            row.median(),
            row.rates[0],
            row.rates[row.rates.len() - 1],
            ratio(rows, row)
        );
    }
}

fn main() -> ExitCode {
    if std::env::var_os(AS_COMMAND).is_some() {
        return swapfs::cli::run(std::env::args_os(), &swapfs::service::SwapFactory);
    }
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(rows) => {
            print(&arguments, &rows);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench_mount: {error}");
            ExitCode::FAILURE
        }
    }
}
