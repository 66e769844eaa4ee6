//! The library's aio handle beside fio: the same file, block size, depth and fsync, taking turns.
//!
//! `cargo run --release --example bench_handle -- FOLDER [MIB] [ROUNDS]`
//!
//! Reads are cold, writes go to a file that is there. The handle's locked tensors are in huge pages where the
//! kernel has them, fio's buffers by default are not, and some devices are faster with huge ones: so fio is
//! measured with both where enough are free (`sysctl vm.nr_hugepages=64`). Exit status 1 when a median
//! of the handle is more than a tenth below that of fio with the like memory (or with the only one
//! measured): on an idle machine that is a finding.

use std::error::Error;
use std::process::ExitCode;

use swapfs::bench::{BenchError, Case, Cleanup, Engine, Report, Settings, measure};
use swapfs::units::MIB;

/// The least that the handle must reach of fio's median.
const RATIO_MIN: f64 = 0.9;

fn run() -> Result<bool, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: bench_handle FOLDER [MIB] [ROUNDS]")?;
    let mib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let loops: u32 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let mut settings = Settings {
        folders: vec![folder.into()],
        io_size: mib * MIB,
        queue_depth: 8,
        engines: vec![Engine::Fio, Engine::Handle, Engine::FioHuge],
        cases: vec![Case::Overwrite, Case::ColdRead],
        loops,
        ..Settings::default()
    };
    let cleanup = Cleanup::new();
    cleanup.watch_signals()?;
    let report = match measure(&settings, &cleanup, |_| {}) {
        Err(BenchError::Failed(line)) if line.starts_with("engine fio-huge") => {
            eprintln!("bench_handle: {line}; going on without");
            settings.engines.pop();
            measure(&settings, &cleanup, |_| {})?
        }
        other => other?,
    };
    print(&report);
    Ok(settings.cases.iter().all(|case| ratio(&report, *case) >= RATIO_MIN))
}

/// The handle's median in parts of fio's, of the last fio that was measured.
fn ratio(report: &Report, case: Case) -> f64 {
    let rows = report.rows.iter().filter(|row| row.case == case);
    let (mut ours, mut theirs) = (f64::NAN, f64::NAN);
    for row in rows {
        match row.engine {
            Engine::Handle => ours = row.series.spread().median,
            _ => theirs = row.series.spread().median,
        }
    }
    ours / theirs
}

fn print(report: &Report) {
    println!("{}", report.heading());
    report.notes.iter().for_each(|note| println!("note: {note}"));
    println!("{:<10} {:<9} {:>6} {:>6} {:>6} {:>6}", "", "", "median", "least", "most", "ratio");
    for row in &report.rows {
        let spread = row.series.spread();
        println!(
            "{:<10} {:<9} {:>6.2} {:>6.2} {:>6.2} {:>6.2}",
            row.case.name(),
            row.engine.name(),
            spread.median,
            spread.min,
            spread.max,
            report.ratio(row)
        );
    }
}

fn main() -> ExitCode {
    // The benchmark's processes are this program again.
    if std::env::args().nth(1).as_deref() == Some("bench-worker") {
        return swapfs::cli::run(std::env::args_os(), &swapfs::service::SwapFactory);
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench_handle: the handle is more than a tenth below fio");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench_handle: {error}");
            ExitCode::FAILURE
        }
    }
}
