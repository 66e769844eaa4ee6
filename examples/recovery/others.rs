//! What others do to the swap folder while it is not mounted, and what its device does to bits.

use std::fs::{File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::chance::Random;
use crate::model::{Failure, FileModel, PAGE};
use crate::place::trouble;
use crate::world::{NameOp, World};

/// No file becomes longer, in bytes.
const LENGTH_MAX: u64 = 3 << 20;

/// One change of one file. What was done, for the trace.
pub(crate) fn change_one(
    swap: &Path, world: &mut World, random: &mut Random,
) -> Result<(), Failure> {
    if world.names.is_empty() {
        return Ok(());
    }
    let at = random.below(world.names.len() as u64) as usize;
    let (name, id) = world.names.iter().nth(at).map(|(name, id)| (name.clone(), *id)).expect("one");
    let done = match random.below(12) {
        0..7 => change_bytes(swap, world, random, &name, id),
        7..9 => replace(swap, world, random, &name),
        9 => {
            metadata(&swap.join(&name), random).map(|what| world.note(id, format!("others {what}")))
        }
        _ => change_names(swap, world, random, &name, id),
    };
    done.map_err(|error| trouble(format!("others at {name}: {error}")))
}

/// An old time, as a copy that keeps times has.
fn old_time(random: &mut Random) -> SystemTime {
    let ago = Duration::new(86_400 + random.below(100_000_000), random.below(1_000_000_000) as u32);
    SystemTime::now() - ago
}

fn change_bytes(
    swap: &Path, world: &mut World, random: &mut Random, name: &str, id: usize,
) -> io::Result<()> {
    let path = swap.join(name);
    let before = std::fs::read(&path)?;
    let length = before.len() as u64;
    let file = File::options().write(true).open(&path)?;
    let (what, replaced) = match random.below(6) {
        0 | 1 => {
            let length = if random.chance(50) { length } else { random.below(LENGTH_MAX) };
            let bytes = random.bytes(length);
            file.set_len(0)?;
            file.write_all_at(&bytes, 0)?;
            ("rewrite", 0..length)
        }
        2 => {
            let start = random.below(length.max(1));
            let count = (1 + random.below(100_000)).min(length - start.min(length));
            let bytes = random.bytes(count);
            file.write_all_at(&bytes, start)?;
            ("write", start..start + bytes.len() as u64)
        }
        3 => {
            let count = 1 + random.below(50_000);
            let bytes = random.bytes(count);
            file.write_all_at(&bytes, length)?;
            ("append", length..length + bytes.len() as u64)
        }
        4 => {
            file.set_len(random.below(length * 5 / 4 + 2))?;
            ("truncate", 0..0)
        }
        _ => {
            file.set_modified(SystemTime::now())?;
            ("touch", 0..0)
        }
    };
    let old = random.chance(40);
    if old {
        file.set_modified(old_time(random))?;
    }
    let after = std::fs::read(&path)?;
    let time = if old { ", with an old time" } else { "" };
    world.note(id, format!("others {what} {replaced:?} of {length}, now {}{time}", after.len()));
    // Writing nothing may leave even the times as they were.
    if what != "write" || !replaced.is_empty() || old {
        world.file(id).model.changed_by_others(&before, &after, replaced);
    }
    Ok(())
}

/// A new file in a name's place, by rename, or after the old one is removed, whose inode number it may get.
fn replace(swap: &Path, world: &mut World, random: &mut Random, name: &str) -> io::Result<()> {
    let (path, length) = (swap.join(name), random.below(LENGTH_MAX));
    let bytes = random.bytes(length);
    if random.chance(50) {
        std::fs::remove_file(&path)?;
        std::fs::write(&path, &bytes)?;
    } else {
        let new = swap.join("others-new");
        std::fs::write(&new, &bytes)?;
        std::fs::rename(&new, &path)?;
    }
    if random.chance(30) {
        File::options().write(true).open(&path)?.set_modified(old_time(random))?;
    }
    world.done(&NameOp::Unlink(name.to_owned()));
    world.forget_nameless(&[]);
    let ino = std::fs::metadata(&path)?.ino();
    let id = world.adopt(name, ino, FileModel::holding(&bytes));
    world.note(id, format!("others put it there, {length} bytes"));
    Ok(())
}

fn metadata(path: &Path, random: &mut Random) -> io::Result<&'static str> {
    if random.chance(60) {
        let mode = random.pick(&[0o644, 0o600, 0o444, 0]);
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        return Ok("chmod");
    }
    std::os::unix::fs::chown(path, Some(random.below(4) as u32), None)?;
    Ok("chown")
}

fn change_names(
    swap: &Path, world: &mut World, random: &mut Random, name: &str, id: usize,
) -> io::Result<()> {
    let fresh = world.fresh_name();
    let other = world.names.iter().find(|(_, other)| **other != id).map(|(other, _)| other.clone());
    let operation = match (random.below(3), other) {
        (0, Some(other)) => NameOp::Rename(name.to_owned(), other),
        (1, _) => NameOp::Link(name.to_owned(), fresh),
        _ => NameOp::Rename(name.to_owned(), fresh),
    };
    match &operation {
        NameOp::Rename(from, to) => std::fs::rename(swap.join(from), swap.join(to))?,
        NameOp::Link(from, to) => std::fs::hard_link(swap.join(from), swap.join(to))?,
        _ => {}
    }
    world.note(id, format!("others: {operation:?}"));
    world.done(&operation);
    world.forget_nameless(&[]);
    Ok(())
}

/// Flips one bit of a file and leaves its times.
fn flip(path: &Path, at: u64, random: &mut Random) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let metadata = file.metadata()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << random.below(8);
    file.write_all_at(&byte, at)?;
    let times =
        FileTimes::new().set_accessed(metadata.accessed()?).set_modified(metadata.modified()?);
    file.set_times(times)
}

/// A device changes a bit of a page that has a checksum. Whether there was one.
pub(crate) fn flip_data(
    swap: &Path, world: &mut World, random: &mut Random,
) -> Result<bool, Failure> {
    let names: Vec<(usize, String)> = world.one_name_each().into_iter().collect();
    let Some((id, name)) =
        (!names.is_empty()).then(|| names[random.below(names.len() as u64) as usize].clone())
    else {
        return Ok(false);
    };
    let model = &mut world.file(id).model;
    let pages = model.flippable();
    if pages.is_empty() {
        return Ok(false);
    }
    let index = random.pick(&pages);
    let start = (index * PAGE) as u64;
    let at = start + random.below((model.size - start).min(PAGE as u64));
    flip(&swap.join(&name), at, random).map_err(|error| trouble(format!("a flip: {error}")))?;
    model.flipped(index);
    world.note(id, format!("a bit of the byte at {at} flips"));
    Ok(true)
}

fn records(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            records(&entry.path(), found)?;
        } else if entry.file_name() != "lock" && entry.file_name() != "log" {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// A device changes a bit of a record. Where, if there was one.
pub(crate) fn flip_record(swap: &Path, random: &mut Random) -> Result<Option<String>, Failure> {
    let failed = |error: io::Error| trouble(format!("a flip in a record: {error}"));
    let mut found = Vec::new();
    let folder = swap.join(".swapfs");
    // A daemon that was killed early may not have made it.
    if folder.exists() {
        records(&folder, &mut found).map_err(failed)?;
    }
    found.retain(|path| {
        let name = path.strip_prefix(&folder).unwrap_or(path);
        ["ledger", "session", "sums"].iter().any(|record| name.starts_with(record))
            && std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
    });
    found.sort();
    if found.is_empty() {
        return Ok(None);
    }
    let path = &found[random.below(found.len() as u64) as usize];
    let bytes = std::fs::read(path).map_err(failed)?;
    // Rather where there is something.
    let mut at = random.below(bytes.len() as u64);
    for _ in 0..100 {
        if bytes[at as usize] != 0 {
            break;
        }
        at = random.below(bytes.len() as u64);
    }
    flip(path, at, random).map_err(failed)?;
    let name = path.strip_prefix(swap).unwrap_or(path).display();
    Ok(Some(format!("a bit of the byte at {at} of {name} flips")))
}
