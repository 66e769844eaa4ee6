//! The speed of a mount beside fio, plain files and DeepSpeed's handle on the same device, a row for each way to move tensors.
//!
//! `cargo run --release --example bench_table -- [--folder FOLDER] [--rows read,write] [--json FILE] [--svg FILE]`
//!
//! Ours and the references take turns, five times each; medians count. Files are in the same state before each run:
//! reads are cold (pool released, page cache dropped), a write counts until its fsync has returned. Measured is in
//! FOLDER (A) and, as root, on ext4 on a loop device over memory (B). `--growth` shows how cost grows with files,
//! clients, partitions and the pool, `--held` what holds the streams. Whatever it makes is taken away again, on signals too.

mod client;
mod group;
mod growth;
mod held;
mod lock;
mod peers;
mod place;
mod plot;
mod report;
mod rows;
mod sample;
mod work;
#[path = "../zero3_round/main.rs"]
mod zero3_round;

use std::error::Error;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use swapfs::bench::{Cleanup, Settings, fio, roofline};
use swapfs::turns::Turns;
use swapfs::units::MIB;

use group::Measured;
use place::{Place, Way};
use report::Machine;
use rows::Plan;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The name under which this program is the example of that name.
const ZERO3: &str = "zero3_round";
/// Huge pages of 2 MiB for fio's deepest row: four jobs of depth 8, with some to spare.
const HUGE_PAGES: u64 = 4 * 6;
/// The folder over memory is that many times the file that most rows move, and room for its own records.
const MEMORY_FILES: u64 = 9;

/// The speed of a swapfs mount, row by row, beside other ways to move the same bytes.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// A folder on the device to measure (A); what is made there is removed
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Where to measure: A is the folder, B a filesystem on a loop device over memory (needs root)
    #[arg(long, value_delimiter = ',', default_value = "A,B")]
    places: Vec<char>,
    /// Rows to measure, by their names or the beginnings of several; all by default
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Times that each contestant is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// MiB of the file that most rows move
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=640))]
    mib: u64,
    /// MiB of the mounts' buffer pools
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..))]
    pool_mib: u64,
    /// MiB of parameters and states in the ZeRO-3 round
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(256..))]
    round_mib: u64,
    /// Further options of the mounts, as `swapfs mount -o` takes them
    #[arg(short = 'o', long)]
    options: Vec<String>,
    /// How cost grows, instead of the rows
    #[arg(long)]
    growth: bool,
    /// What holds the streams, instead of the rows: processors and device, with the mount, without, and without a device
    #[arg(long, conflicts_with = "growth")]
    held: bool,
    /// Smaller files, two runs: a first look in three minutes
    #[arg(long)]
    quick: bool,
    /// Write everything measured to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the ratios into this file
    #[arg(long)]
    svg: Option<PathBuf>,
}

impl Arguments {
    fn quicken(&mut self) {
        if self.quick {
            self.runs = self.runs.min(2);
            self.mib = self.mib.min(128);
            self.pool_mib = self.pool_mib.min(64);
            self.round_mib = self.round_mib.min(512);
        }
    }

    /// By the whole name, or by the beginning of several.
    fn wants(&self, id: &str) -> bool {
        let is_wanted = |row: &String| match rows::NAMES.contains(&row.as_str()) {
            true => id == row,
            false => id.starts_with(row.as_str()),
        };
        self.rows.is_empty() || self.rows.iter().any(is_wanted)
    }

    /// Those of the mounts.
    fn mount_options(&self) -> Vec<String> {
        let pool = format!("pool_size={}m", self.pool_mib);
        [pool].into_iter().chain(self.options.iter().cloned()).collect()
    }

    fn turns(&self) -> Turns {
        Turns { warmup: u32::from(!self.quick), rounds: self.runs }
    }

    fn check(&self) -> Outcome<()> {
        for place in &self.places {
            if !['A', 'B'].contains(place) {
                return Err(format!("--places: {place} is not accepted; give A, B, or both").into());
            }
        }
        let known = rows::NAMES;
        for row in &self.rows {
            if !known.iter().any(|name| name.starts_with(row.as_str())) {
                return Err(
                    format!("--rows: there is no {row}; there are {}", known.join(", ")).into()
                );
            }
        }
        Ok(())
    }
}

/// What was measured so far.
#[derive(Default)]
struct Findings {
    rows: Vec<Measured>,
    layers: Vec<Value>,
    devices: Vec<Value>,
    growth: Vec<Value>,
    held: Vec<Value>,
    /// What was left out, and why.
    notes: Vec<String>,
    failed: bool,
}

impl Findings {
    fn note(&mut self, line: String) {
        println!("{line}");
        self.notes.push(line);
    }

    fn fail(&mut self, line: String) {
        eprintln!("bench_table: {line}");
        self.notes.push(line);
        self.failed = true;
    }

    fn add(&mut self, measured: Measured) {
        for note in &measured.notes {
            self.note(note.clone());
        }
        for line in report::lines(&measured) {
            println!("{line}");
        }
        self.rows.push(measured);
    }
}

fn open(arguments: &Arguments, cleanup: &Cleanup, name: char) -> Outcome<Option<Place>> {
    let (folder, options) = (&arguments.folder, arguments.mount_options());
    if name == 'A' {
        return Ok(Some(Place::on_disk(cleanup, folder, &options)?));
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let bytes = MEMORY_FILES * arguments.mib * MIB + 256 * MIB;
    eprintln!("bench_table: making a filesystem over {} MiB of memory", bytes / MIB);
    Ok(Some(Place::on_memory(cleanup, folder, bytes, &options)?))
}

/// The rows of one place.
fn table(
    arguments: &Arguments, cleanup: &Cleanup, place: &Place, found: &mut Findings,
) -> Outcome<()> {
    let huge = work::huge_pages(cleanup, HUGE_PAGES).is_some();
    if !huge {
        println!(
            "{}: no huge pages to be had for fio, its rows with them are left out",
            place.name
        );
    }
    let python = work::python_has("numpy");
    if !python {
        found
            .note(format!("{}: python3 has no numpy, the rows in Python are left out", place.name));
    }
    let plan = Plan {
        cleanup,
        place,
        bytes: arguments.mib * MIB,
        pool_bytes: arguments.pool_mib * MIB,
        calls: if arguments.quick { 2000 } else { 10_000 },
        round_mib: arguments.round_mib,
        huge,
        python,
    };
    let turns = arguments.turns();
    for group in plan.groups() {
        if !arguments.wants(group.id) {
            continue;
        }
        eprintln!("bench_table: {}, {}", place.name, group.title);
        work::drop_caches();
        let turns = rows::turns_of(group.id, turns);
        match group.measure(place.name, turns) {
            Ok(measured) => found.add(measured),
            // The others are worth having without it.
            Err(error) => found.fail(error.to_string()),
        }
        place.empty(&["read", "write"])?;
    }
    place.empty(&[])?;
    if arguments.wants("handle-read") || arguments.wants("handle-write") {
        let pages = work::huge_pages(cleanup, HUGE_PAGES);
        let plan = Plan { huge: pages.is_some(), ..plan };
        peers::handle(plan, turns, |id| arguments.wants(id), |row| found.add(row))?;
    }
    if arguments.wants("deepspeed-read") || arguments.wants("deepspeed-write") {
        if work::python_has("deepspeed") {
            peers::deepspeed(plan, turns, |id| arguments.wants(id), |row| found.add(row))?;
        } else {
            let what = "python3 has no deepspeed, the rows of its aio handle are left out";
            found.note(format!("{}: {what}", place.name));
        }
    }
    if arguments.wants("layers") {
        found.layers.push(layers(arguments, cleanup, place)?);
    }
    Ok(())
}

/// The layers of a place apart.
fn layers(arguments: &Arguments, cleanup: &Cleanup, place: &Place) -> Outcome<Value> {
    eprintln!("bench_table: {}, layers apart", place.name);
    let settings = Settings {
        folders: vec![place.folder(Way::Beside)],
        io_size: arguments.mib * MIB,
        queue_depth: 8,
        loops: arguments.runs,
        mount_options: arguments.mount_options(),
        ..Settings::default()
    };
    let roofline = roofline::roofline(&settings, cleanup, || {})?;
    println!("{} layers apart, plain calls of 1 MiB, GiB/s", place.name);
    let (header, lines) = roofline.table();
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:<18}")).collect();
        println!("  {}", cells.concat().trim_end());
    };
    line(&header.iter().map(ToString::to_string).collect::<Vec<_>>());
    lines.iter().for_each(|cells| line(cells));
    println!("  {}", roofline.limits());
    let mut report = roofline.to_json();
    report["place"] = json!(place.name.to_string());
    Ok(report)
}

/// What was asked for, in one place.
fn measure(
    arguments: &Arguments, cleanup: &Cleanup, name: char, found: &mut Findings,
) -> Outcome<()> {
    let Some(mut place) = open(arguments, cleanup, name)? else {
        found.note("B: left out, mounting a filesystem over memory needs root".to_owned());
        return Ok(());
    };
    println!("{} = {}", place.name, place.device);
    found.devices.push(json!({"place": place.name.to_string(), "device": place.device}));
    if arguments.growth {
        let scale = growth::Scale::new(arguments.quick, arguments.mib * MIB, arguments.runs);
        found.growth.extend(growth::measure(cleanup, &mut place, scale)?);
        found.growth.extend(lock::measure(cleanup, &mut place, arguments.quick)?);
    } else if arguments.held {
        let options = arguments.mount_options();
        let unbacked = held::Unbacked::new(cleanup, &place, &options)?;
        let streams = held::streams(arguments.mib * MIB, arguments.pool_mib * MIB);
        let wanted = streams.into_iter().filter(|stream| arguments.wants(stream.id));
        let found = &mut found.held;
        held::measure(cleanup, &place, &unbacked, arguments.runs, wanted, found)?;
    } else {
        table(arguments, cleanup, &place, found)?;
    }
    Ok(())
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let cleanup = Cleanup::new();
    cleanup.watch_signals()?;
    if !fio::is_installed() {
        return Err("fio is not installed (the package is called fio)".into());
    }
    let before = Machine::now();
    println!("{}", before.line());
    let mode = match (arguments.growth, arguments.quick) {
        (true, _) => "at most 3 runs each",
        (_, true) => "runs in turns",
        _ => "runs in turns after one that does not count",
    };
    println!(
        "{} MiB a file, pools of {} MiB, --runs {}: {mode}; medians",
        arguments.mib, arguments.pool_mib, arguments.runs
    );
    let mut found = Findings::default();
    if !arguments.growth && !arguments.held {
        println!("{}", report::header());
    }
    for name in &arguments.places {
        measure(arguments, &cleanup, *name, &mut found)?;
    }
    let limits = report::limits(&found.rows, arguments.pool_mib * MIB);
    limits.iter().for_each(|limit| println!("{}", limit.line()));
    let goals = found.rows.iter().flat_map(Measured::verdicts).filter_map(|verdict| verdict.met);
    let goals: Vec<bool> = goals.chain(limits.iter().map(|limit| limit.met)).collect();
    if !goals.is_empty() {
        let met = goals.iter().filter(|met| **met).count();
        println!("{met} of {} goals met", goals.len());
    }
    let after = Machine::now();
    println!("{}", after.line());
    if let Some(path) = &arguments.json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": {"before": before, "after": after},
            "settings": {"mib": arguments.mib, "pool_mib": arguments.pool_mib, "runs": arguments.runs,
                "options": arguments.options, "quick": arguments.quick},
            "places": found.devices,
            "left_out": found.notes,
            "rows": found.rows.iter().map(Measured::to_json).collect::<Vec<_>>(),
            "limits": limits,
            "layers": found.layers,
            "growth": found.growth,
            "held": found.held,
        });
        write(path, &format!("{report:#}\n"))?;
    }
    if let Some(path) = &arguments.svg {
        let title = format!("swapfs {}; {}", env!("CARGO_PKG_VERSION"), before.line());
        write(path, &plot::draw(&found.rows, &title)?)?;
    }
    if found.failed {
        return Err("some rows have failed and are left out".into());
    }
    Ok(())
}

/// Puts a new file in the place of whatever has the name: a link there is replaced, not followed.
fn write(path: &Path, text: &str) -> Outcome<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let written =
        tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
            Ok(file.persist(path)?)
        });
    written.map(drop).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn main() -> ExitCode {
    // Mounts, the benchmark's processes and the other example are this program again.
    match std::env::args().next().as_deref() {
        Some("swapfs") => {
            return swapfs::cli::run(std::env::args_os(), &swapfs::service::SwapFactory);
        }
        Some(client::NAME) => return client::main(),
        Some(ZERO3) => return zero3_round::main(),
        _ => {}
    }
    let mut arguments = Arguments::parse();
    arguments.quicken();
    if let Err(error) = arguments.check() {
        eprintln!("bench_table: {error}");
        return ExitCode::from(2);
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_table: {error}");
            ExitCode::FAILURE
        }
    }
}
