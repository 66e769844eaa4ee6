//! poll(2) on partitions, and io_uring, which polls before it writes.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::{IoUring, opcode, types};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::event::epoll;

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{MIB, Random, is_pattern, pattern, same, write_pattern};

/// What poll(2) reports within so many milliseconds.
fn poll(file: &File, events: PollFlags, time: u16) -> PollFlags {
    let mut set = [PollFd::new(file.as_fd(), events)];
    nix::poll::poll(&mut set, PollTimeout::from(time)).unwrap();
    set[0].revents().unwrap()
}

/// Requests of the kind that the kernel asks by poll(2), so far.
pub(crate) fn polls_asked(mount: &Mount) -> u64 {
    let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats["fuse"]["operations"]["poll"]["count"].as_u64().unwrap_or(0)
}

/// Always ready, whatever the partition's status, as the swap folder's file is.
#[test]
fn poll_reports_what_it_reports_of_any_file() {
    let mount = Mount::new("pool_size=32m,open_swap_in=none");
    let path = mount.at("file");
    write_pattern(&open(&path), 8 * MIB, 1 << 20);
    settled(&path);
    let (here, there) = (open(&path), open(&mount.backing("file")));
    let sets = [
        PollFlags::POLLIN,
        PollFlags::POLLOUT,
        PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI,
        PollFlags::POLLRDNORM | PollFlags::POLLWRNORM,
        PollFlags::POLLPRI,
        PollFlags::POLLRDBAND | PollFlags::POLLWRBAND,
        PollFlags::empty(),
    ];
    for request in ["swap_out", "release", "swap_in"] {
        ask(&path, request);
        for events in sets {
            assert_eq!(poll(&here, events, 20), poll(&there, events, 20), "{request} {events:?}");
        }
        settled(&path);
    }
    let control = File::open(mount.at(".swapfs/stats.json")).unwrap();
    assert_eq!(poll(&control, PollFlags::POLLIN, 1000), PollFlags::POLLIN);
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let both = epoll::EventFlags::IN | epoll::EventFlags::OUT;
    epoll::add(&set, &here, epoll::EventData::new_u64(7), both).unwrap();
    let mut events = Vec::with_capacity(1);
    epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None).unwrap();
    let flags = events[0].flags;
    assert_eq!(flags, both);
    assert!(polls_asked(&mount) <= 1, "asked again");
}

/// A ring of its own; `None` where the machine refuses one.
fn ring() -> Option<IoUring> {
    match IoUring::new(32) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("left out: io_uring: {error}");
            None
        }
    }
}

/// Moves pieces of the pattern at these offsets, `depth` at a time, and waits for all.
fn move_pieces(
    ring: &mut IoUring, file: &File, pieces: &mut [(u64, Vec<u8>)], depth: usize, write: bool,
) {
    let fd = types::Fd(file.as_raw_fd());
    for batch in pieces.chunks_mut(depth) {
        for (number, (at, bytes)) in batch.iter_mut().enumerate() {
            let length = u32::try_from(bytes.len()).unwrap();
            let entry = match write {
                true => opcode::Write::new(fd, bytes.as_ptr(), length).offset(*at).build(),
                false => opcode::Read::new(fd, bytes.as_mut_ptr(), length).offset(*at).build(),
            };
            // SAFETY: the batch keeps its memory until its completions are here, a few lines below.
            unsafe { ring.submission().push(&entry.user_data(number as u64)) }.unwrap();
        }
        ring.submit_and_wait(batch.len()).unwrap();
        for completion in ring.completion() {
            let (at, bytes) = &batch[completion.user_data() as usize];
            assert_eq!(completion.result(), bytes.len() as i32, "{write} at {at}");
        }
    }
}

/// Pieces of so many bytes that cover `length` bytes, in a random order.
fn cut(length: u64, piece: usize, seed: u64) -> Vec<(u64, Vec<u8>)> {
    let mut pieces: Vec<_> = (0..length)
        .step_by(piece)
        .map(|at| (at, pattern(at, piece.min((length - at) as usize))))
        .collect();
    let mut random = Random::new(seed);
    for last in (1..pieces.len()).rev() {
        pieces.swap(last, random.below(last as u64 + 1) as usize);
    }
    pieces
}

fn writes_and_reads(mount: &Mount, name: &str, flags: i32, piece: usize, depth: usize) {
    let Some(mut ring) = ring() else { return };
    let path = mount.at(name);
    let length = 2 * MIB;
    let options = |write: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).create(write).custom_flags(flags);
        options.open(&path).unwrap()
    };
    let mut pieces = cut(length, piece, depth as u64);
    move_pieces(&mut ring, &options(true), &mut pieces, depth, true);
    is_pattern(&path, length);
    ask(&path, "release");
    settled(&path);
    pieces.iter_mut().for_each(|(_, bytes)| bytes.fill(0));
    move_pieces(&mut ring, &options(false), &mut pieces, depth, false);
    pieces.iter().for_each(|(at, bytes)| same(bytes, &pattern(*at, bytes.len())));
}

/// The kernel asks once whether the daemon wants to be asked, and io_uring asks before each try.
#[test]
fn io_uring_clients_never_ask_the_daemon_whether_a_file_is_ready() {
    let mount = Mount::new("pool_size=32m,open_swap_in=none");
    for (name, flags, piece, depth) in [
        ("buffered", 0, 32 << 10, 1),
        ("deep", 0, 4096, 16),
        ("odd", 0, 10_007, 7),
        ("direct", libc::O_DIRECT, 65_537, 4),
        ("stable", libc::O_DSYNC, 512 << 10, 2),
    ] {
        writes_and_reads(&mount, name, flags, piece, depth);
        assert!(polls_asked(&mount) <= 1, "{name}: {} times", polls_asked(&mount));
    }
    appends(&mount.at("appended"));
    assert!(polls_asked(&mount) <= 1);
}

/// Appending by io_uring, one call after the other.
fn appends(path: &Path) {
    let Some(mut ring) = ring() else { return };
    let file = File::options().append(true).create(true).open(path).unwrap();
    for at in (0..100_000).step_by(5000) {
        move_pieces(&mut ring, &file, &mut [(u64::MAX, pattern(at, 5000))], 1, true);
    }
    is_pattern(path, 100_000);
}
