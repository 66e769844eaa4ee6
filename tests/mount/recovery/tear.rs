//! How a page gets torn: the daemon is stopped while it rewrites files, and then killed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::seen::Seen;
use super::{LENGTH, PAGE, PART, kill, options, rot, start, store};
use crate::place::Mount;
use crate::support::{Random, pattern};

/// So often it is tried to tear something.
const TRIES: usize = 40;

/// A part of a file: where the pattern is, and where it is written again.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) range: Range<u64>,
}

impl Part {
    /// The midst of a file of [`LENGTH`] bytes, which is made.
    pub(super) fn usual(mount: &Mount, name: &str) -> Self {
        store(mount, name, 0, LENGTH);
        Self { name: name.to_owned(), range: PART }
    }

    fn length(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }
}

/// The bytes of a part that its writer writes in this round; those of round 0 are the pattern.
pub(super) fn version(part: &Range<u64>, round: u64) -> Vec<u8> {
    pattern(part.start + round * 4099, (part.end - part.start) as usize)
}

/// Rewrites a part until the daemon is gone; returns the rounds that were begun.
fn rewrite(file: &File, part: &Part, piece: usize) -> u64 {
    for round in 1.. {
        let bytes = version(&part.range, round);
        for (index, bytes) in bytes.chunks(piece).enumerate() {
            let at = part.range.start + (index * piece) as u64;
            if file.write_all_at(bytes, at).is_err() {
                return round;
            }
        }
        // What is less than a block does not go out by itself.
        if part.length() < 200_000 && file.sync_data().is_err() {
            return round;
        }
    }
    unreachable!("it goes on until the daemon is gone")
}

/// Rewrites parts of files in pieces and stops the daemon in the midst of it; returns the rounds of each. It is killed
/// after `meanwhile`, which starts no program: that would have the files' descriptors, and wait where it closes them.
pub(super) fn stop_amid(
    mount: &Mount, parts: &[Part], piece: usize, meanwhile: impl FnOnce(),
) -> Vec<u64> {
    let mut random = Random::new(u64::from(std::process::id()));
    let files: Vec<File> = parts
        .iter()
        .map(|part| File::options().write(true).open(mount.at(&part.name)).unwrap())
        .collect();
    std::thread::scope(|scope| {
        let writers: Vec<_> = parts
            .iter()
            .zip(&files)
            .map(|(part, file)| scope.spawn(move || rewrite(file, part, piece)))
            .collect();
        std::thread::sleep(Duration::from_millis(20 + random.below(20)));
        assert!(mount.daemon().as_raw() > 0, "the mount has been taken away");
        mount.signal(Signal::SIGSTOP);
        // What the device has been given still lands.
        std::thread::sleep(Duration::from_millis(20));
        meanwhile();
        kill(mount);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    })
}

/// The daemon ends while these parts are rewritten. With checksums, a page that was being written is torn only when it
/// is a mixture: two of three pages are made one, as a device would that stopped amid a page.
pub(super) fn interrupt(mount: &Mount, mode: &str, parts: &[Part]) {
    stop_amid(mount, parts, 100_000, || {
        if mode != "crc32c" {
            return;
        }
        for part in parts {
            let path = mount.backing(&part.name);
            let mix = |bytes: &mut [u8]| {
                for (_, page) in
                    (0..).zip(bytes.chunks_mut(PAGE as usize)).filter(|(n, _)| n % 3 < 2)
                {
                    let half = page.len() / 2;
                    page[half..].iter_mut().for_each(|byte| *byte ^= 0x55);
                }
            };
            rot(&path, part.range.start, mix, part.length());
        }
    });
}

/// Tears each of these parts and mounts again; returns how each part is read.
pub(super) fn torn_parts(mount: &Mount, mode: &str, parts: &[Part]) -> Vec<Seen> {
    let mut seen: Vec<Option<Seen>> = vec![None; parts.len()];
    for _ in 0..TRIES {
        let whole = |seen: &[Option<Seen>]| -> Vec<usize> {
            (0..parts.len()).filter(|index| seen[*index].is_none()).collect()
        };
        let missing = whole(&seen);
        if missing.is_empty() {
            return seen.into_iter().flatten().collect();
        }
        let torn: Vec<Part> = missing.iter().map(|index| parts[*index].clone()).collect();
        interrupt(mount, mode, &torn);
        start(mount, &options(mode));
        for index in missing {
            let part = &parts[index];
            let found = Seen::look(&mount.at(&part.name), part.range.clone());
            if found.torn().is_empty() {
                store(mount, &part.name, part.range.start, part.length() as u64);
            } else {
                seen[index] = Some(found);
            }
        }
    }
    panic!("in {TRIES} tries not each of {parts:?} was torn");
}

/// Makes files of the usual kind and tears them.
pub(super) fn torn_files(mount: &Mount, mode: &str, names: &[String]) -> Vec<Seen> {
    let parts: Vec<Part> = names.iter().map(|name| Part::usual(mount, name)).collect();
    torn_parts(mount, mode, &parts)
}

/// Makes one of the usual kind and tears it.
pub(super) fn torn(mount: &Mount, mode: &str, name: &str) -> Seen {
    torn_files(mount, mode, &[name.to_owned()]).remove(0)
}

/// Whether each page of a part of a usual file that was rewritten is of one of these rounds, or refused as torn, and the
/// rest of the file is the pattern.
pub(super) fn is_of_one_moment(mount: &Mount, part: &Part, rounds: u64) -> Result<(), String> {
    let seen = Seen::look(&mount.at(&part.name), 0..LENGTH);
    let torn = seen.torn();
    let versions: Vec<Vec<u8>> = (0..=rounds).map(|round| version(&part.range, round)).collect();
    for page in 0..LENGTH / PAGE {
        let at = page * PAGE;
        let within = part.range.contains(&at);
        let fits = match seen.page(page) {
            None => within && torn.contains(&page),
            Some(found) if within => {
                let from = (at - part.range.start) as usize;
                versions.iter().any(|version| version[from..from + PAGE as usize] == *found)
            }
            Some(found) => *found == pattern(at, PAGE as usize),
        };
        if !fits {
            let how = if seen.page(page).is_none() { "refused" } else { "of no moment" };
            return Err(format!("page {page} of {} is {how}", part.name));
        }
    }
    Ok(())
}
