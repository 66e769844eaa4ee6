//! `swapfs debug`: one archive with what somebody who helps needs to know. No contents of files, and names of
//! partitions only where they are asked for.

mod redact;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use indicatif::ProgressBar;

use super::bar::bar;
use super::watch::{parse_seconds, read_control, read_json};
use super::{Failure, print};
use crate::daemon::{DaemonProcess, MountStats};
use crate::held::{Folder, Held};
use crate::metrics::today;
use crate::paths::plain;
use crate::streams::tell;
use crate::sys_process::{quoted, reason};
use redact::Redactor;

/// Lines of the log that are taken.
const LOG_LINES_MAX: usize = 1000;

/// Bytes at the log's end that they are looked for in.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What `check` may take before it is left out.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// Files of the daemon's process that tell about its limits, memory and threads.
const PROCESS_FILES: [&str; 4] = ["limits", "status", "io", "mountinfo"];

/// Files about the machine.
const MACHINE_FILES: [&str; 6] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/fs/aio-max-nr",
];

/// Arguments of `swapfs debug`.
#[derive(Debug, Args)]
pub struct DebugArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The archive, a new file [default: swapfs-debug-DATE-PID.tar.gz in this folder].
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep the names of partitions and folders in it.
    #[arg(long)]
    pub names: bool,
    /// Seconds between the two samples of the statistics.
    #[arg(long, value_name = "S", default_value = "2", value_parser = parse_seconds)]
    pub interval: Duration,
}

/// The archive as it grows.
struct Archive {
    tar: tar::Builder<GzEncoder<std::fs::File>>,
    folder: String,
    files: Vec<String>,
    bar: ProgressBar,
}

impl Archive {
    fn add(&mut self, name: &str, text: &str) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        header.set_mtime(now.as_secs());
        let path = format!("{}/{name}", self.folder);
        self.tar.append_data(&mut header, path, text.as_bytes())?;
        self.files.push(name.to_owned());
        self.bar.inc(1);
        Ok(())
    }
}

impl DebugArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let stats = read_json(&self.mountpoint, "stats.json")?;
        let daemon = Daemon::of(&stats);
        let name = format!("swapfs-debug-{}-{}", today(), daemon.pid);
        let path = self.output.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
        let failed = |error: std::io::Error| format!("{}: {}", plain(&path), reason(&error));
        // Others may write to the folder: a new file, for this user alone.
        let (folder, in_it) = Folder::of(&path).map_err(failed)?;
        let (file, made) = Held::create(&folder, &in_it).map_err(failed)?;
        let archive = Archive {
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            folder: name,
            files: Vec::new(),
            bar: progress(),
        };
        match self.fill(archive, &stats, &daemon) {
            Ok(files) => {
                if let Err(why) = &daemon.process {
                    tell!("{why}: its process and its log are left out");
                }
                print(&format!(
                    "{}: {}\nLook through it before it goes to anybody: tar -xzOf {} | less",
                    plain(&path),
                    files.join(", "),
                    quoted(&path)
                ))
            }
            Err(failure) => {
                // Half an archive is of no use.
                let _ = made.remove();
                Err(match failure {
                    Failed::Archive(error) => failed(error).into(),
                    Failed::Mount(failure) => failure,
                })
            }
        }
    }

    fn fill(
        &self, mut archive: Archive, stats: &serde_json::Value, daemon: &Daemon,
    ) -> Result<Vec<String>, Failed> {
        let swap_folder = stats.pointer("/mount/swap_folders/0").and_then(|path| path.as_str());
        let mountpoint = stats.pointer("/mount/mountpoint").and_then(|path| path.as_str());
        let mut redactor = match self.names {
            true => Redactor::none(),
            false => Redactor::new(swap_folder.into_iter().chain(mountpoint)),
        };
        archive.add("about.txt", &self.about(daemon))?;
        archive.add("machine.txt", &machine())?;
        archive.add("process.txt", &daemon.files(&redactor))?;
        archive.add("stats-1.json", &format!("{stats:#}\n"))?;
        std::thread::sleep(self.interval);
        archive.add("stats-2.json", &read_control(&self.mountpoint, "stats.json")?)?;
        let metrics = read_control(&self.mountpoint, "metrics")?;
        archive.add("metrics.txt", &redactor.metrics(&metrics))?;
        archive.add("config.json", &read_control(&self.mountpoint, "config.json")?)?;
        if self.names {
            archive.add("partitions.json", &read_control(&self.mountpoint, "partitions.json")?)?;
        }
        let log = match daemon.log_end(Path::new(swap_folder.unwrap_or_default())) {
            Ok(text) => redactor.log(&text),
            Err(why) => format!("the log cannot be read: {why}\n"),
        };
        archive.add("log.txt", &log)?;
        // Nothing is tried in a folder that only the mount names.
        let checked = swap_folder.filter(|_| daemon.process.is_ok());
        let check = redactor.text(&check(checked));
        archive.add("check.txt", &check)?;
        archive.bar.finish_and_clear();
        let Archive { tar, files, .. } = archive;
        tar.into_inner().and_then(GzEncoder::finish).and_then(|mut file| file.flush())?;
        Ok(files)
    }

    fn about(&self, daemon: &Daemon) -> String {
        let names = if self.names { "kept, as asked" } else { "left out" };
        let pid = daemon.pid;
        let running = match &daemon.process {
            Ok(process) => {
                process.executable().map_or_else(|error| reason(&error), |path| plain(&path))
            }
            Err(why) => why.clone(),
        };
        format!(
            "swapfs {}\ndate (UTC): {}\ndaemon: pid {pid}, {running}\n\
             names of partitions: {names}\ncontents of files: none\n",
            crate::VERSION,
            today(),
        )
    }
}

/// Why there is no archive.
enum Failed {
    Archive(std::io::Error),
    Mount(Failure),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Failed::Archive(error)
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Failed::Mount(failure)
    }
}

/// A bar on a terminal, one step a file.
fn progress() -> ProgressBar {
    let bar = bar("collecting {bar:30} {pos} files, {elapsed}");
    bar.set_length(10);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn machine() -> String {
    let system = rustix::system::uname();
    let mut text = format!(
        "{} {} {} {}\n",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.version().to_string_lossy(),
        system.machine().to_string_lossy(),
    );
    for path in MACHINE_FILES {
        text += &section(path, std::fs::read_to_string(path));
    }
    text
}

fn section(title: &str, content: std::io::Result<String>) -> String {
    let content = content.unwrap_or_else(|error| reason(&error));
    format!("\n== {title}\n{}\n", content.trim_end())
}

/// The process that the mount names as its daemon, or why it is left out.
struct Daemon {
    pid: i32,
    process: Result<DaemonProcess, String>,
}

impl Daemon {
    fn of(stats: &serde_json::Value) -> Self {
        let Some(pid) = MountStats::of(stats.clone()).pid() else {
            let process = Err("the daemon runs where process ids are others".to_owned());
            return Self { pid: 0, process };
        };
        let process = DaemonProcess::open(pid)
            .map_err(|why| format!("pid {pid} {}", why.unwrap_or_else(|| "is gone".to_owned())));
        Self { pid, process }
    }

    /// Its files in `/proc`. Of its mounts, the own one and the swap folder's filesystem say enough.
    fn files(&self, redactor: &Redactor) -> String {
        let process = match &self.process {
            Ok(process) => process,
            Err(why) => return format!("left out: {why}\n"),
        };
        let mut text = String::new();
        for name in PROCESS_FILES {
            let content = process.read(name).map(|content| match name {
                "mountinfo" => {
                    let kept = content.lines().filter(|line| redactor.concerns(line));
                    kept.collect::<Vec<_>>().join("\n")
                }
                _ => content,
            });
            text += &section(name, content);
        }
        text
    }

    /// The last lines of its log.
    fn log_end(&self, swap_folder: &Path) -> Result<String, String> {
        use std::os::unix::fs::FileExt;
        let shown = |error: std::io::Error| reason(&error);
        let process = self.process.as_ref().map_err(String::clone)?;
        let file = process.log(swap_folder).map_err(shown)?;
        let length = file.metadata().map_err(shown)?.len();
        let from = length.saturating_sub(LOG_BYTES_MAX);
        let mut bytes = vec![0; (length - from) as usize];
        file.read_exact_at(&mut bytes, from).map_err(shown)?;
        let text = String::from_utf8_lossy(&bytes);
        // The first line may have been cut.
        let lines: Vec<&str> = text.lines().skip(usize::from(from > 0)).collect();
        let last = lines.len().saturating_sub(LOG_LINES_MAX);
        Ok(lines[last..].join("\n") + "\n")
    }
}

/// What `swapfs check` says about the machine and the swap folder, by a process of its own that is ended when it
/// takes too long.
fn check(swap_folder: Option<&str>) -> String {
    let Ok(program) = std::env::current_exe() else {
        return "this program cannot be found\n".to_owned();
    };
    let mut command = Command::new(program);
    command.arg("check").args(swap_folder).stdin(Stdio::null());
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match run {
        Ok(child) => child,
        Err(error) => return format!("{}\n", reason(&error)),
    };
    // Both are short: they fit into their pipes.
    let deadline = std::time::Instant::now() + CHECK_TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(None) if std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(Some(_)) => break,
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return "check did not end in time\n".to_owned();
            }
        }
    }
    match child.wait_with_output() {
        Ok(output) => format!(
            "{}{}exit status {}\n",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            output.status.code().unwrap_or(-1)
        ),
        Err(error) => format!("{}\n", reason(&error)),
    }
}
