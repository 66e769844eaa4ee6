//! The way from submitters to one ring's thread: a queue under a small mutex, and a wake.
//!
//! The thread says under the mutex that it goes to sleep, and only when it has nothing to take; a
//! submitter that finds it asleep, under the same mutex, wakes it. So no wake is lost, and a busy
//! ring costs its submitters no system call. The mutex is of the lowest level: nothing else is locked,
//! waited for or called back while it is held.

use std::io;

use parking_lot::Mutex;

use super::super::counters::Counters;
use super::super::device::Transfer;
use super::super::file::Registrar;
use super::super::waiting::Waiting;
use super::super::worker;
use super::table::Room;
use super::wake::Wake;

/// Waiting transfers of a kind before the queue has to grow.
const WAITING_CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Lane {
    queue: Mutex<Queue>,
    pub(super) wake: Wake,
    pub(super) counters: Counters,
    /// Makes the ring's next submission fail for good.
    #[cfg(test)]
    pub(super) broken: std::sync::atomic::AtomicBool,
    /// With it, no completion comes any more.
    #[cfg(test)]
    pub(super) silent: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct Queue {
    transfers: worker::Queue<Waiting>,
    /// Ids of dropped files.
    forgotten: Vec<u64>,
    rest: Rest,
}

/// What the thread, which is about to wait for completions, is to be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It looks by itself, or can take nothing before something completes.
    Awake,
    /// The queue is full of transfers.
    ForSyncs,
    ForAll,
}

/// What the thread takes out of its lane at once. Kept and reused.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) transfers: Vec<Transfer>,
    pub(super) forgotten: Vec<u64>,
    pub(super) late: Vec<Transfer>,
}

impl Inbox {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            transfers: Vec::with_capacity(capacity),
            forgotten: Vec::with_capacity(capacity),
            late: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.transfers.is_empty() && self.forgotten.is_empty() && self.late.is_empty()
    }
}

impl Lane {
    pub(super) fn new() -> io::Result<Self> {
        let queue = Queue {
            transfers: worker::Queue::new(Waiting::with_capacity(WAITING_CAPACITY)),
            forgotten: Vec::with_capacity(WAITING_CAPACITY),
            rest: Rest::Awake,
        };
        Ok(Self {
            queue: Mutex::new(queue),
            wake: Wake::new()?,
            counters: Counters::default(),
            #[cfg(test)]
            broken: std::sync::atomic::AtomicBool::new(false),
            #[cfg(test)]
            silent: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Queues a transfer; the submitter calls [`rouse`](Self::rouse) after the last one. Gives it
    /// back when no thread is there to answer it.
    pub(super) fn push(&self, transfer: Transfer) -> Result<(), Transfer> {
        self.queue.lock().transfers.push(transfer)
    }

    /// Wakes the thread if it sleeps and there is something for it.
    pub(super) fn rouse(&self) {
        let mut queue = self.queue.lock();
        let wanted = match queue.rest {
            Rest::Awake => false,
            Rest::ForSyncs => queue.transfers.waiting.has_syncs(),
            Rest::ForAll => true,
        };
        if wanted {
            queue.rest = Rest::Awake;
            drop(queue);
            self.wake.ring();
        }
    }

    /// Begins the shutdown.
    pub(super) fn drain(&self) {
        self.queue.lock().transfers.drain();
        self.rouse();
    }

    /// For the thread: moves what it should do now into `inbox`, as much as there is room for.
    /// `rest` tells, from the room that is left and whether anything was taken, what the thread is to
    /// be woken for. Returns whether shutdown began and nothing waits.
    pub(super) fn take(
        &self, mut room: Room, rest: impl FnOnce(Room, bool) -> Rest, inbox: &mut Inbox,
    ) -> bool {
        assert!(inbox.is_empty(), "the inbox was emptied");
        let mut queue = self.queue.lock();
        std::mem::swap(&mut queue.forgotten, &mut inbox.forgotten);
        std::mem::swap(&mut queue.transfers.late, &mut inbox.late);
        let waiting = &mut queue.transfers.waiting;
        while room.slots > 0
            && let Some(sync) = waiting.pop_sync()
        {
            room.slots -= 1;
            inbox.transfers.push(sync);
        }
        while room.transfers.min(room.slots) > 0
            && let Some(transfer) = waiting.pop_data()
        {
            room = Room { transfers: room.transfers - 1, slots: room.slots - 1 };
            inbox.transfers.push(transfer);
        }
        queue.rest = rest(room, !inbox.transfers.is_empty());
        queue.transfers.is_drained()
    }

    /// For the thread, with nothing in flight: ends the lane if shutdown began and nothing came in
    /// since. From then on `push` gives transfers back.
    pub(super) fn close(&self) -> bool {
        let mut queue = self.queue.lock();
        let has_late = !(queue.transfers.late.is_empty() && queue.forgotten.is_empty());
        let ends = queue.transfers.is_drained() && !has_late;
        if ends {
            queue.transfers.close();
        }
        ends
    }
}

impl Registrar for Lane {
    fn forget(&self, id: u64) {
        {
            let mut queue = self.queue.lock();
            if queue.transfers.is_closed() {
                return;
            }
            queue.forgotten.push(id);
        }
        self.rouse();
    }
}
