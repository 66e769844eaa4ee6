//! A ring for one read at a time, which the submitter waits for itself.
//!
//! A small read that nothing else is under way beside is over sooner than another thread would have been woken
//! twice. Whoever asks for it waits for [`PATIENCE`] at most; a device that takes longer is waited for by a
//! thread of its own, which then delivers the completion.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use parking_lot::{Condvar, Mutex};

use super::super::device::{Action, Completion, CompletionSink, Transfer};
use super::lane::Lane;
use crate::error::Errno;

/// How long a submitter waits.
const PATIENCE: Duration = Duration::from_millis(2);

/// How long nobody waits after that was not enough.
const TIRED: Duration = Duration::from_secs(1);

/// How often is looked after a read for which the kernel does not let us wait.
const LOOK: Duration = Duration::from_millis(1);

/// The ring, and whether it is to be had.
#[derive(Debug)]
pub(super) struct Prompt {
    /// A lock of the lowest level.
    place: Mutex<Place>,
    /// The ring has come back.
    back: Condvar,
}

enum Place {
    /// Nobody has it; not to be used before the time.
    Here(Box<IoUring>, Option<Instant>),
    /// Somebody has it.
    Out,
    /// There is none, or no more.
    Closed,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Place::Here(..) => "Here",
            Place::Out => "Out",
            Place::Closed => "Closed",
        })
    }
}

/// A read that the kernel has, and the ring through which it was given it. Dropped, both are leaked: the kernel may
/// still fill the memory.
struct Underway {
    ring: ManuallyDrop<Box<IoUring>>,
    transfer: ManuallyDrop<Transfer>,
}

impl Prompt {
    /// Where there is no ring to be had it refuses everything.
    pub(super) fn new() -> Self {
        // None of the other rings' flags: completions arrive whether somebody waits for them or not.
        let place = match IoUring::builder().dontfork().build(1) {
            Ok(ring) if ring.params().is_feature_ext_arg() => Place::Here(Box::new(ring), None),
            _ => Place::Closed,
        };
        Self { place: Mutex::new(place), back: Condvar::new() }
    }

    /// Does a read and delivers it: here, or later on another thread. Gives the transfer back when it is no
    /// read, when the ring is in use, and when the kernel does not take it.
    pub(super) fn read(
        self: &Arc<Self>, transfer: Transfer, lane: &Arc<Lane>, sink: &Arc<dyn CompletionSink>,
    ) -> Result<(), Transfer> {
        let Some((descriptor, address, length)) = arguments(&transfer) else {
            return Err(transfer);
        };
        let Some(mut ring) = self.take() else { return Err(transfer) };
        let entry = opcode::Read::new(types::Fd(descriptor), address, length)
            .offset(transfer.offset)
            .build();
        // SAFETY: push needs the entry's memory and descriptor to stay valid until its completion. Both belong to
        // `transfer`. Either `Underway` keeps it until the completion is reaped, and leaks it otherwise, or the
        // kernel has not taken the entry and never will, because the ring is closed before the transfer is given back.
        unsafe { ring.submission().push(&entry) }.expect("nothing else is in the ring");
        let time = types::Timespec::from(PATIENCE);
        let arguments = types::SubmitArgs::new().timespec(&time);
        // Whatever it says about waiting: what counts is whether the entry was taken, and whether it is done.
        let _ = ring.submitter().submit_with_args(1, &arguments);
        if !ring.submission().is_empty() {
            drop(ring);
            self.put_back(Place::Closed);
            return Err(transfer);
        }
        let mut underway =
            Underway { ring: ManuallyDrop::new(ring), transfer: ManuallyDrop::new(transfer) };
        match underway.result() {
            // Not counted: it is given back, and goes another way.
            Some(result) if is_put_off(result) => self.finish(underway, result, None, lane, sink),
            Some(result) => {
                lane.counters.submitted(1, 1);
                self.finish(underway, result, None, lane, sink)
            }
            None => {
                lane.counters.submitted(1, 1);
                self.wait_elsewhere(underway, lane, sink);
                Ok(())
            }
        }
    }

    fn take(&self) -> Option<Box<IoUring>> {
        let mut place = self.place.try_lock()?;
        match std::mem::replace(&mut *place, Place::Out) {
            Place::Here(ring, rest) if rest.is_none_or(|end| Instant::now() >= end) => Some(ring),
            other => {
                *place = other;
                None
            }
        }
    }

    fn put_back(&self, new: Place) {
        *self.place.lock() = new;
        self.back.notify_all();
    }

    /// Takes a read back from the kernel, which is done with it, and delivers it.
    fn finish(
        &self, underway: Underway, result: i32, rest: Option<Instant>, lane: &Lane,
        sink: &Arc<dyn CompletionSink>,
    ) -> Result<(), Transfer> {
        let Underway { ring, transfer } = underway;
        let transfer = ManuallyDrop::into_inner(transfer);
        // Before the completion is taken, which may take a while.
        self.put_back(Place::Here(ManuallyDrop::into_inner(ring), rest));
        if is_put_off(result) {
            return Err(transfer);
        }
        let result = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
        let completion = Completion { transfer, result };
        lane.counters.completed(&completion);
        sink.complete(&mut vec![completion]);
        Ok(())
    }

    /// The device takes its time: somebody else waits for it.
    fn wait_elsewhere(
        self: &Arc<Self>, underway: Underway, lane: &Arc<Lane>, sink: &Arc<dyn CompletionSink>,
    ) {
        let (prompt, lane, sink) = (self.clone(), lane.clone(), sink.clone());
        // A thread that cannot be started takes what it was given with it.
        let given = Arc::new(Mutex::new(Some(underway)));
        let wait = move || {
            let Some(mut underway) = given.lock().take() else { return };
            let result = underway.wait();
            let rest = Some(Instant::now() + TIRED);
            if let Err(transfer) = prompt.finish(underway, result, rest, &lane, &sink) {
                let completion = Completion { transfer, result: Err(Errno::EIO) };
                lane.counters.completed(&completion);
                sink.complete(&mut vec![completion]);
            }
        };
        let name = "swapfs-aio-late".to_owned();
        let here = wait.clone();
        if let Err(error) = std::thread::Builder::new().name(name).spawn(wait) {
            log::warn!("no thread for a slow read can be started: {error}");
            here();
        }
    }

    /// Waits for the read under way, and takes no more.
    pub(super) fn close(&self) {
        let mut place = self.place.lock();
        while matches!(*place, Place::Out) {
            self.back.wait(&mut place);
        }
        *place = Place::Closed;
    }
}

/// Whether the kernel wants to be asked again.
fn is_put_off(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}

/// What the kernel needs to know of a read; `None` of everything else.
fn arguments(transfer: &Transfer) -> Option<(i32, *mut u8, u32)> {
    let Action::Read(lease) = &transfer.action else { return None };
    Some((transfer.file.descriptor()?, lease.address(), u32::try_from(lease.len()).ok()?))
}

impl Underway {
    fn result(&mut self) -> Option<i32> {
        self.ring.completion().next().map(|entry| entry.result())
    }

    fn wait(&mut self) -> i32 {
        loop {
            if let Some(result) = self.result() {
                return result;
            }
            if self.ring.submit_and_wait(1).is_err() {
                std::thread::sleep(LOOK);
            }
        }
    }
}
