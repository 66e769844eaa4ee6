//! How long `getxattr user.swap.status` takes while 2 GiB are being written through the same mount.
//!
//! `cargo run --release --example status_latency -- MOUNTPOINT [--json]`
//!
//! Beside it stands the same question asked of the swap folder's own filesystem: a user xattr of a file there, while the same
//! write streams into the folder without swapfs.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::fs::XattrFlags;

/// Bytes of one write call.
const WRITE_BYTES: usize = 1 << 20;
/// Write calls of one stream: 2 GiB.
const WRITES: usize = 2048;
/// Questions asked while a stream runs.
const QUESTIONS: usize = 1000;
/// Pause between two questions, so that they are spread over the stream.
const PAUSE: Duration = Duration::from_micros(300);

/// Latency of getxattr during a sequential write.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where a swap folder is mounted.
    mountpoint: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Two files, removed at the end: one is asked, one is written.
struct Files {
    asked: PathBuf,
    written: PathBuf,
}

impl Files {
    fn new(folder: &Path, tag: &str) -> io::Result<Self> {
        let name = |part: &str| folder.join(format!("status-latency-{tag}-{part}"));
        let files = Self { asked: name("asked"), written: name("written") };
        let mut asked = File::create(&files.asked)?;
        asked.write_all(&vec![7; 4 * WRITE_BYTES])?;
        asked.sync_all()?;
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.asked, &self.written] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Latencies in order, and the rate of the stream beside them.
struct Measured {
    latencies: Vec<Duration>,
    stream: Duration,
}

impl Measured {
    fn microseconds(&self, percent: usize) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[last * percent / 100].as_secs_f64() * 1e6
    }

    fn megabytes_per_second(&self) -> f64 {
        let bytes = u32::try_from(WRITE_BYTES * (WRITES / 1024)).expect("2 MiB fit");
        f64::from(bytes) * 1024.0 / self.stream.as_secs_f64() / 1e6
    }
}

/// Writes the stream, and synchronizes it.
fn stream(path: &Path) -> io::Result<Duration> {
    let block = vec![0x5a; WRITE_BYTES];
    let started = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..WRITES {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(started.elapsed())
}

/// Asks for `name` until it has been asked often enough; an error if the stream ended before.
fn ask(path: &Path, name: &str, ended: &AtomicBool) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut latencies = Vec::with_capacity(QUESTIONS);
    let mut value = [0_u8; 64];
    while latencies.len() < QUESTIONS {
        let started = Instant::now();
        rustix::fs::getxattr(path, name, &mut value)?;
        latencies.push(started.elapsed());
        if ended.load(Ordering::Acquire) {
            return Err(format!("the write ended after {} questions", latencies.len()).into());
        }
        std::thread::sleep(PAUSE);
    }
    latencies.sort_unstable();
    Ok(latencies)
}

fn measure(files: &Files, name: &str) -> Result<Measured, Box<dyn Error>> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let stream = stream(&files.written);
            ended.store(true, Ordering::Release);
            stream
        });
        let latencies = ask(&files.asked, name, &ended);
        let stream = writer.join().expect("the writer does not panic")?;
        Ok(Measured { latencies: latencies?, stream })
    })
}

/// The folder behind the mount, as the mount tells it of `file`.
fn folder_behind(file: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut value = [0_u8; 4096];
    let length = rustix::fs::getxattr(file, "user.swap.path", &mut value)?;
    let path = PathBuf::from(std::str::from_utf8(&value[..length])?);
    Ok(path.parent().ok_or("the swap folder is hidden beneath the mount")?.to_owned())
}

fn print(rows: &[(&str, Measured)], json: bool) {
    if json {
        let rows = rows.iter().map(|(name, measured)| {
            serde_json::json!({
                "place": name,
                "p50_us": measured.microseconds(50),
                "p99_us": measured.microseconds(99),
                "max_us": measured.microseconds(100),
                "write_mb_per_s": measured.megabytes_per_second(),
            })
        });
        println!(
            "{:#}",
            serde_json::json!({"questions": QUESTIONS, "rows": rows.collect::<Vec<_>>()})
        );
        return;
    }
    println!("{QUESTIONS} getxattr calls during a sequential write of 2 GiB, in microseconds");
    println!("{:<12} {:>8} {:>8} {:>8} {:>12}", "", "p50", "p99", "max", "write MB/s");
    for (name, measured) in rows {
        let [p50, p99, max] = [50, 99, 100].map(|percent| measured.microseconds(percent));
        let rate = measured.megabytes_per_second();
        println!("{name:<12} {p50:>8.0} {p99:>8.0} {max:>8.0} {rate:>12.0}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let through = Files::new(&arguments.mountpoint, "mount")?;
    let behind = Files::new(&folder_behind(&through.asked)?, "folder")?;
    rustix::fs::setxattr(&behind.asked, "user.note", b"available", XattrFlags::empty())?;
    let mount = measure(&through, "user.swap.status")?;
    let folder = measure(&behind, "user.note")?;
    print(&[("mount", mount), ("swap folder", folder)], arguments.json);
    Ok(())
}
