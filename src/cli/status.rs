//! `swapfs status`.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::below::{Below, Partition, files_below};
use super::columns::{Listing, terminal_width};
use super::watch::pool_count;
use super::{Failure, line_about, print, print_json};
use crate::daemon::MountStats;
use crate::mount::{self, MountEntry};
use crate::paths::plain;
use crate::streams::tell;
use crate::sys_process::reason;
use crate::units::format_short;

/// Arguments of `swapfs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Mountpoints, directories or partitions; without any, the mounts are shown.
    #[arg(value_name = "MOUNTPOINT|FILE")]
    pub paths: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl StatusArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.paths.is_empty() {
            return show_mounts(self.json);
        }
        let (mut mounts, mut left_out) = (Vec::new(), LeftOut::default());
        for path in &self.paths {
            collect(path, &mut mounts, &mut left_out)?;
        }
        match self.json {
            true => {
                let rows: Vec<_> = mounts.iter().flat_map(|mount| &mount.rows).collect();
                print_json(&rows)?;
            }
            false => show_partitions(mounts)?,
        }
        left_out.result()
    }
}

/// A row about a mount.
#[derive(Debug, Serialize)]
struct MountRow {
    #[serde(serialize_with = "crate::paths::shown")]
    mountpoint: PathBuf,
    #[serde(serialize_with = "crate::paths::shown")]
    swap_folder: PathBuf,
    pid: Option<i32>,
    /// False when its daemon is gone; another user's mount is not asked.
    alive: bool,
    /// What its daemon has not given up of its rights.
    kept: Vec<String>,
    pool: Option<PoolRow>,
}

/// Counts of buffers, and the bytes of each.
#[derive(Debug, Serialize)]
struct PoolRow {
    buffers: u64,
    available: u64,
    reserved: u64,
    dirty: u64,
    inflight: u64,
    buffer_size: u64,
}

impl PoolRow {
    fn read(root: &Path) -> Option<Self> {
        let count = |name: &str| pool_count(root, name);
        Some(Self {
            buffers: count("buffers")?,
            available: count("available")?,
            reserved: count("reserved")?,
            dirty: count("dirty")?,
            inflight: count("inflight")?,
            buffer_size: count("buffer_size")?,
        })
    }
}

impl MountRow {
    fn read(entry: &MountEntry) -> Self {
        let at = &entry.mountpoint;
        if let Err(refusal) = entry.check() {
            tell!("{refusal}");
            let (mountpoint, swap_folder) = (at.clone(), entry.source.clone());
            let kept = Vec::new();
            return Self { mountpoint, swap_folder, pid: None, alive: true, kept, pool: None };
        }
        let alive = !mount::probe(at).is_err_and(|error| mount::is_dead(&error));
        let stats = MountStats::read(at);
        let mut kept = stats.as_ref().map_or_else(Vec::new, MountStats::kept);
        // A user's daemon sees what the user sees.
        kept.retain(|part| entry.owner == Some(0) || part != "other files");
        let stated = stats.as_ref().and_then(MountStats::swap_folder);
        Self {
            mountpoint: at.clone(),
            swap_folder: stated.unwrap_or_else(|| entry.source.clone()),
            pid: stats.as_ref().and_then(MountStats::pid),
            alive,
            kept,
            pool: PoolRow::read(at),
        }
    }

    fn columns(&self) -> Vec<String> {
        let bytes = |field: fn(&PoolRow) -> u64| {
            let bytes = |pool: &PoolRow| field(pool).saturating_mul(pool.buffer_size);
            self.pool.as_ref().map_or_else(dash, |pool| format_short(bytes(pool)))
        };
        let pid = match self.alive {
            true => self.pid.map_or_else(dash, |pid| pid.to_string()),
            false => "dead".to_owned(),
        };
        vec![
            plain(&self.mountpoint),
            plain(&self.swap_folder),
            pid,
            bytes(|pool| pool.buffers),
            bytes(|pool| pool.available),
            bytes(|pool| pool.dirty),
            bytes(|pool| pool.inflight),
        ]
    }
}

fn dash() -> String {
    "-".to_owned()
}

fn show_mounts(json: bool) -> Result<(), Failure> {
    let mounts = mount::swapfs_mounts().map_err(|error| reason(&error))?;
    let rows: Vec<MountRow> = mounts.iter().map(MountRow::read).collect();
    if json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        return print("no swapfs mounts");
    }
    let header = ["MOUNTPOINT", "SWAP FOLDER", "PID", "POOL", "AVAILABLE", "DIRTY", "IN FLIGHT"];
    let shown = rows.iter().map(MountRow::columns).collect();
    print(&Listing { header: &header, names: 2, rows: shown }.layout(terminal_width()))?;
    for row in rows.iter().filter(|row| !row.kept.is_empty()) {
        let (at, kept) = (plain(&row.mountpoint), row.kept.join(", "));
        print(&format!("{at}: the daemon has not given up {kept}"))?;
    }
    Ok(())
}

/// A row about a partition; sizes in bytes.
#[derive(Debug, Serialize)]
struct PartitionRow {
    #[serde(serialize_with = "crate::paths::shown")]
    path: PathBuf,
    status: String,
    size: u64,
    resident: u64,
    dirty: u64,
    inflight: u64,
    error: Option<String>,
    /// Seconds for which the device has not answered; only when that is too long.
    stalled_s: Option<u64>,
}

impl PartitionRow {
    fn read(path: PathBuf, partition: &Partition) -> io::Result<Self> {
        let bytes = |name: &str| partition.number(&format!("user.swap.{name}"));
        Ok(Self {
            path,
            status: partition.text("user.swap.status")?.unwrap_or_else(dash),
            size: bytes("size")?.unwrap_or(0),
            resident: bytes("resident")?.unwrap_or(0),
            dirty: bytes("dirty")?.unwrap_or(0),
            inflight: bytes("inflight")?.unwrap_or(0),
            error: partition.text("user.swap.error")?,
            stalled_s: bytes("stalled")?,
        })
    }
}

impl PartitionRow {
    /// What is wrong with it, in a word or two.
    fn trouble(&self) -> String {
        let stalled = self.stalled_s.map(|s| format!("stalled {s} s"));
        let all: Vec<String> = self.error.clone().into_iter().chain(stalled).collect();
        if all.is_empty() { dash() } else { all.join(", ") }
    }

    /// Its line of the table.
    fn columns(&self, mountpoint: &Path) -> Vec<String> {
        vec![
            plain(self.below(mountpoint)),
            self.status.clone(),
            format_short(self.size),
            format_short(self.resident),
            format_short(self.dirty),
            format_short(self.inflight),
            self.trouble(),
        ]
    }

    /// The path from the mount's root; as it was given where that does not say.
    fn below(&self, mountpoint: &Path) -> &Path {
        self.path.strip_prefix(mountpoint).unwrap_or(&self.path)
    }
}

/// The partitions of one mount that were asked for.
#[derive(Debug)]
struct Partitions {
    mountpoint: PathBuf,
    rows: Vec<PartitionRow>,
}

/// What could not be looked at.
#[derive(Debug, Default)]
struct LeftOut {
    /// The line about the first.
    first: Option<String>,
    more: u64,
}

impl LeftOut {
    fn add(&mut self, path: &Path, error: &io::Error) {
        match &self.first {
            None => self.first = Some(line_about(path, error)),
            Some(_) => self.more += 1,
        }
    }

    fn result(self) -> Result<(), Failure> {
        match (self.first, self.more) {
            (None, _) => Ok(()),
            (Some(line), 0) => Err(Failure::Failed(line)),
            (Some(line), more) => Err(Failure::Failed(format!("{line}; {more} more are left out"))),
        }
    }
}

/// Adds the rows of a file, or of every regular file below a directory, to those of its mount.
fn collect(
    path: &Path, mounts: &mut Vec<Partitions>, left_out: &mut LeftOut,
) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Failed(line_about(path, &error));
    mount::refuse_foreign(path).map_err(|refusal| refusal.to_string())?;
    let Some(entry) = mount::entry_of_path(path).map_err(failed)? else {
        return Err(Failure::Failed(format!("{} is not on a swapfs mount", plain(path))));
    };
    entry.check().map_err(|refusal| refusal.to_string())?;
    let mut rows = Vec::new();
    let _ = files_below(path, &mut |found| {
        match found {
            Below::LeftOut(folder, error) => left_out.add(&folder, &error),
            Below::Partition(file) => {
                let row = file.open().and_then(|partition| {
                    partition
                        .map(|partition| PartitionRow::read(file.path(), &partition))
                        .transpose()
                });
                match row {
                    Ok(row) => rows.extend(row),
                    // Removed since its directory was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => left_out.add(&file.path(), &error),
                }
            }
        }
        ControlFlow::<()>::Continue(())
    })
    .map_err(failed)?;
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    let mountpoint = entry.mountpoint;
    match mounts.iter_mut().find(|mount| mount.mountpoint == mountpoint) {
        Some(mount) => mount.rows.extend(rows),
        None => mounts.push(Partitions { mountpoint, rows }),
    }
    Ok(())
}

/// A table for each mount, with paths from its root; its mountpoint above it where there are several.
fn show_partitions(mounts: Vec<Partitions>) -> Result<(), Failure> {
    let header = ["PARTITION", "STATUS", "SIZE", "RESIDENT", "DIRTY", "IN FLIGHT", "ERROR"];
    let several = mounts.len() > 1;
    for mount in mounts {
        if several {
            print(&format!("{}:", plain(&mount.mountpoint)))?;
        }
        let rows = mount.rows.iter().map(|row| row.columns(&mount.mountpoint)).collect();
        print(&Listing { header: &header, names: 1, rows }.layout(terminal_width()))?;
    }
    Ok(())
}
