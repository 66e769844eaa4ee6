//! `swapfs profile`: what an access log comes to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::watch::{control_failure, parse_seconds};
use super::{Failure, print, print_json, table};
use crate::mount;
use crate::paths::plain;
use crate::sys_process::reason;
use crate::units::format_short;

/// The control file that is read.
const ACCESS_LOG: &str = "accesslog";

/// Bytes of a line at most; what is beyond counts as a line of its own. The longest has two names of 4096 bytes.
const LINE_BYTES_MAX: u64 = 256 << 10;

/// Arguments of `swapfs profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// A file that an access log was copied to, `-` for standard input, or a mountpoint, whose access log is read
    /// for a while.
    #[arg(value_name = "LOG|MOUNTPOINT")]
    pub log: PathBuf,
    /// What to sum up by.
    #[arg(long, value_enum, default_value_t = By::Operation)]
    pub by: By,
    /// Lines of the table, the longest times first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = super::whole::<usize>)]
    pub lines: usize,
    /// Seconds for which a mountpoint's log is read.
    #[arg(long, value_name = "S", default_value = "10", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What the lines are summed up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// What was asked for.
    Operation,
    /// The partition or folder, with the operation.
    Path,
    /// The process that asked.
    Process,
    /// The user who asked.
    User,
}

/// What is read of a line.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    uid: &'a str,
    pid: &'a str,
    operation: &'a str,
    path: &'a str,
    /// Bytes moved, of reads and writes.
    bytes: u64,
    failed: bool,
    seconds: f64,
}

/// What lines came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    count: u64,
    errors: u64,
    bytes: u64,
    seconds: f64,
    longest: f64,
}

/// Reads one line; `None` for comments and for what is no line of an access log.
fn parse(line: &str) -> Option<Entry<'_>> {
    let (who, rest) = line.split_once('[')?.1.split_once("] ")?;
    let mut who = who.split(',');
    let uid = who.next()?.strip_prefix("uid:")?;
    who.next()?.strip_prefix("gid:")?;
    let pid = who.next()?.strip_prefix("pid:")?;
    let (operation, rest) = rest.split_once(" (")?;
    // What stands between the parentheses may have such in a name; what follows has not.
    let (arguments, result) = rest.rsplit_once("): ")?;
    let (result, time) = result.rsplit_once(" <")?;
    let seconds: f64 = time.strip_suffix('>')?.parse().ok().filter(|time| *time >= 0.0)?;
    // Quotes within a name are escaped.
    let path = arguments.strip_prefix('"').map_or(arguments, |rest| {
        let mut escaped = false;
        let end = rest.find(|letter| {
            let ends = letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            ends
        });
        &rest[..end.unwrap_or(rest.len())]
    });
    let returned = result.strip_prefix("OK (").and_then(|text| text.strip_suffix(')'));
    let failed = !result.starts_with("OK");
    let bytes = match (operation, returned) {
        (_, Some(bytes)) => bytes.parse().ok()?,
        ("write", None) if !failed => arguments.rsplit(',').nth(1)?.parse().ok()?,
        _ => 0,
    };
    Some(Entry { uid, pid, operation, path, bytes, failed, seconds })
}

#[derive(Default)]
struct Profile {
    sums: BTreeMap<String, Sum>,
    /// Lines that were left out by the mount, or make no sense.
    lost: u64,
    strange: u64,
}

impl Profile {
    fn add(&mut self, line: &str, by: By) {
        let line = line.trim_end();
        if let Some(comment) = line.strip_prefix('#') {
            let lost = comment.split_once(" lines were left out").map(|(count, _)| count.trim());
            self.lost += lost.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            return;
        }
        let Some(entry) = parse(line) else {
            self.strange += u64::from(!line.is_empty());
            return;
        };
        let key = match by {
            By::Operation => entry.operation.to_owned(),
            By::Path => format!("{} {}", entry.operation, entry.path),
            By::Process => entry.pid.to_owned(),
            By::User => entry.uid.to_owned(),
        };
        let sum = self.sums.entry(key).or_default();
        sum.count += 1;
        sum.errors += u64::from(entry.failed);
        sum.bytes += entry.bytes;
        sum.seconds += entry.seconds;
        sum.longest = sum.longest.max(entry.seconds);
    }
}

impl ProfileArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| format!("{}: {}", self.log.display(), reason(&error));
        mount::refuse_foreign(&self.log).map_err(|refusal| refusal.to_string())?;
        let mut profile = Profile::default();
        if self.log.as_os_str() == "-" {
            for line in std::io::stdin().lock().lines() {
                profile.add(&line.map_err(failed)?, self.by);
            }
        } else if self.log.is_dir() {
            let log = mount::open_control(&self.log, ACCESS_LOG)
                .map_err(|refusal| control_failure(&self.log, ACCESS_LOG, &refusal))?;
            self.watch(log, &mut profile).map_err(failed)?;
        } else {
            let mut file = BufReader::new(self.open_file()?);
            let mut line = Vec::new();
            while file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?
                > 0
            {
                profile.add(&String::from_utf8_lossy(&line), self.by);
                line.clear();
            }
        }
        if profile.sums.is_empty() && profile.strange > 0 {
            return Err(format!("{}: no access log of swapfs", self.log.display()).into());
        }
        self.report(&profile)
    }

    /// Opens a copy of a log. What is no regular file may never answer, or never end.
    fn open_file(&self) -> Result<File, String> {
        let shown = plain(&self.log);
        let failed = |error: std::io::Error| format!("{shown}: {}", reason(&error));
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(&self.log).map_err(failed)?;
        match file.metadata().map_err(failed)?.is_file() {
            true => Ok(file),
            false => Err(format!("{shown}: not a regular file; give - to read standard input")),
        }
    }

    /// Reads the access log of a mount until the time is up.
    fn watch(&self, mut log: File, profile: &mut Profile) -> std::io::Result<()> {
        let end = Instant::now() + self.seconds;
        let mut bytes = vec![0; 64 << 10];
        let mut rest = Vec::new();
        while Instant::now() < end {
            // Returns within a second, with a comment when there is nothing.
            let count = log.read(&mut bytes)?;
            rest.extend_from_slice(&bytes[..count]);
            let Some(last) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            for line in rest[..last].split(|byte| *byte == b'\n') {
                profile.add(&String::from_utf8_lossy(line), self.by);
            }
            rest.drain(..=last);
        }
        Ok(())
    }

    fn report(&self, profile: &Profile) -> Result<(), Failure> {
        let mut sums: Vec<_> = profile.sums.iter().collect();
        sums.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        let more = sums.len().saturating_sub(self.lines);
        sums.truncate(self.lines);
        if self.json {
            let rows: Vec<_> = sums.iter().map(|(key, sum)| as_json(key, sum)).collect();
            let all = json!({"rows": rows, "lost": profile.lost, "strange": profile.strange});
            return print_json(&all);
        }
        let title = match self.by {
            By::Operation => "OPERATION",
            By::Path => "OPERATION PATH",
            By::Process => "PID",
            By::User => "UID",
        };
        let header = [title, "COUNT", "ERRORS", "BYTES", "TOTAL s", "MEAN ms", "LONGEST ms"];
        let mut table = table(&header);
        table.add_rows(sums.iter().map(|(key, sum)| {
            [
                (*key).clone(),
                sum.count.to_string(),
                sum.errors.to_string(),
                format_short(sum.bytes),
                format!("{:.3}", sum.seconds),
                format!("{:.3}", sum.seconds * 1e3 / sum.count as f64),
                format!("{:.3}", sum.longest * 1e3),
            ]
        }));
        let mut text = table.trim_fmt();
        for (count, what) in [
            (more as u64, "more lines: see --lines"),
            (profile.lost, "requests are missing: the reader of the log was too slow"),
            (profile.strange, "lines were none of an access log"),
        ] {
            if count > 0 {
                text += &format!("\n{count} {what}");
            }
        }
        print(&text)
    }
}

fn as_json(key: &str, sum: &Sum) -> serde_json::Value {
    json!({
        "key": key,
        "count": sum.count,
        "errors": sum.errors,
        "bytes": sum.bytes,
        "seconds": sum.seconds,
        "longest": sum.longest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "2026-11-21T10:18:23.344162Z [uid:0,gid:7,pid:74] read (\"a/f \\\"): x\",\
                        1048576,0): OK (4096) <0.000107>";

    #[test]
    fn lines_are_read_whatever_the_names() {
        let entry = parse(READ).unwrap();
        assert_eq!((entry.uid, entry.pid, entry.operation), ("0", "74", "read"));
        assert_eq!((entry.path, entry.bytes), ("a/f \\\"): x", 4096));
        assert!(!entry.failed && (entry.seconds - 0.000_107).abs() < 1e-9);
        let write = READ.replace("read", "write").replace("OK (4096)", "OK");
        assert_eq!(parse(&write).unwrap().bytes, 1_048_576);
        let refused = write.replace("OK", "ENOSPC");
        assert!(parse(&refused).is_some_and(|entry| entry.failed && entry.bytes == 0));
        for bad in ["", "# 3 lines were left out: x", "x", "[uid:0] read", &READ[..90]] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn sums_are_by_what_was_asked_for() {
        let mut profile = Profile::default();
        let lines = [READ, READ, "#", "# 3 lines were left out: the reader is too slow", "odd", ""];
        lines.iter().for_each(|line| profile.add(line, By::Process));
        assert_eq!((profile.lost, profile.strange), (3, 1));
        let sum = profile.sums["74"];
        assert_eq!((sum.count, sum.bytes, sum.errors), (2, 8192, 0));
        assert!((sum.seconds - 2.0 * sum.longest).abs() < 1e-9);
    }
}
