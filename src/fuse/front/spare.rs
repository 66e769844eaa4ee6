//! Reading threads beside the usual ones, for as long as all of these are held up.
//!
//! Requests that change names, and those that need space, call the swap folder's filesystem where they are
//! received. A device that hangs, or a frozen filesystem, keeps such a call; with one in each thread nobody would
//! be left to say where a partition is.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::device::HEADER_BYTES;
use super::reads::Reads;
use super::{Ending, Front, Payload, Reader, Room, spawn};
use crate::panics::outlive;

/// How often is looked whether somebody reads.
const LOOK: Duration = Duration::from_millis(500);

/// Threads beside the usual ones, at most: a request's worth of memory each.
const SPARE_MAX: usize = 16;

/// Who reads requests.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Threads that wait for a request.
    waiting: AtomicUsize,
    /// Requests received.
    received: AtomicU64,
    /// Threads beside the usual ones.
    spare: AtomicUsize,
}

impl Readers {
    /// Receives a request.
    pub(super) fn reading<T>(&self, receive: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = receive();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.received.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Whether others wait for requests, so that a spare thread can go.
    fn enough(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 1
    }
}

/// Starts the thread that looks after the others, `count` of them. It ends after them.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start(front: &Arc<Front>, left: &Arc<AtomicUsize>, count: usize) -> io::Result<()> {
    let (front, left) = (Arc::downgrade(front), left.clone());
    spawn("fuse-spare".to_owned(), move || outlive(|| look_after(&front, &left, count)))?;
    Ok(())
}

fn look_after(front: &Weak<Front>, left: &Arc<AtomicUsize>, count: usize) {
    let mut before = (0, 0);
    loop {
        std::thread::sleep(LOOK);
        let Some(front) = front.upgrade().filter(|_| left.load(Ordering::Acquire) > 0) else {
            return;
        };
        let readers = &front.readers;
        let load = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let now = (load(&readers.waiting), readers.received.load(Ordering::Relaxed));
        let held_up = now.0 == 0 && now == before && load(&readers.spare) < SPARE_MAX;
        before = now;
        if held_up && let Err(error) = start_spare(&front, left, count) {
            log::warn!("one more request thread cannot be started: {error}");
        }
    }
}

fn start_spare(front: &Arc<Front>, left: &Arc<AtomicUsize>, count: usize) -> io::Result<()> {
    let device = front.device.another()?;
    front.readers.spare.fetch_add(1, Ordering::Relaxed);
    left.fetch_add(1, Ordering::AcqRel);
    let ending = Ending { front: front.clone(), left: left.clone(), threads: count };
    let reader = move |front: Arc<Front>| Reader {
        patient: device.clone(),
        impatient: None,
        device,
        crew: None,
        leads: false,
        quick: 0,
        headers: [0; HEADER_BYTES],
        room: Some(Room::Own(Payload::new())),
        joined: Vec::new(),
        reads: Reads::default(),
        front,
    };
    let readers = front.clone();
    // A thread that cannot be started drops `ending`, and with it what was counted.
    let work = move || {
        let _ending = ending;
        let mut reader = reader(readers.clone());
        while reader.take_one().is_ok_and(|more| more) && !readers.readers.enough() {}
        readers.readers.spare.fetch_sub(1, Ordering::Relaxed);
    };
    log::warn!("all request threads are held up by the swap folder; one more is started");
    spawn("fuse-spare-n".to_owned(), work).map(drop).inspect_err(|_| {
        front.readers.spare.fetch_sub(1, Ordering::Relaxed);
    })
}
