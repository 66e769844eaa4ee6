//! Short transfers are continued: where each rest begins, and when there is none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use swapfs::aio::device::{
    Action, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
};
use swapfs::aio::null::NullFile;
use swapfs::aio::whole::Whole;
use swapfs::error::{Errno, Result};
use swapfs::pool::{Arena, ArenaOptions};

/// A device that ends each transfer as it is told, and remembers where each began and how long it was.
#[derive(Default)]
struct Script {
    results: Mutex<VecDeque<Result<usize>>>,
    seen: Mutex<Vec<(u64, usize)>>,
    held: Mutex<Vec<Transfer>>,
    sink: OnceLock<Arc<dyn CompletionSink>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Script")
    }
}

impl Device for Script {
    fn geometry(&self) -> Geometry {
        Geometry { alignment: 512, direct: true }
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.sink.set(sink).is_ok());
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        for transfer in batch.iter() {
            assert!(transfer.offset.is_multiple_of(512));
            self.seen.lock().unwrap().push((transfer.offset, transfer.action.length()));
        }
        self.held.lock().unwrap().append(batch);
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }

    fn shutdown(&self) {}
}

impl Script {
    /// Ends what is under way, until nothing is.
    fn play(&self) {
        loop {
            let held = std::mem::take(&mut *self.held.lock().unwrap());
            if held.is_empty() {
                return;
            }
            let end = |transfer| {
                let result =
                    self.results.lock().unwrap().pop_front().expect("one for each transfer");
                Completion { transfer, result }
            };
            self.sink.get().unwrap().complete(&mut held.into_iter().map(end).collect());
        }
    }
}

#[derive(Default)]
struct Collector(Mutex<Vec<Completion>>);

impl CompletionSink for Collector {
    fn complete(&self, done: &mut Vec<Completion>) {
        self.0.lock().unwrap().append(done);
    }
}

fn arena() -> Arc<Arena> {
    Arena::new(ArenaOptions { size: 65536, pin_memory: false, huge_pages: false }).unwrap()
}

fn read(arena: &Arc<Arena>, index: usize) -> Action {
    // SAFETY: each test uses each 8 KiB of its arena once at a time.
    Action::Read(unsafe { arena.write_lease(index * 8192, 8192) })
}

fn write(arena: &Arc<Arena>, index: usize) -> Action {
    // SAFETY: as above.
    Action::Write(unsafe { arena.read_lease(index * 8192, 8192) })
}

/// What becomes of transfers at offset 4096 of a file of `size` bytes, all with the same token, and what the device
/// saw of them.
fn outcome(
    size: u64, actions: Vec<Action>, results: &[Result<usize>],
) -> (Vec<Result<usize>>, Vec<(u64, usize)>) {
    let (script, collector) = (Arc::new(Script::default()), Arc::new(Collector::default()));
    script.results.lock().unwrap().extend(results);
    let device = Whole::new(script.clone());
    device.connect(collector.clone());
    let file = Arc::new(NullFile::new(size));
    let transfer = |action| Transfer { token: 0, action, file: file.clone(), offset: 4096 };
    device.submit(&mut actions.into_iter().map(transfer).collect());
    script.play();
    assert!(script.results.lock().unwrap().is_empty(), "more was asked for");
    let done = std::mem::take(&mut *collector.0.lock().unwrap());
    for Completion { transfer, .. } in &done {
        let lease = match &transfer.action {
            Action::Read(lease) => (lease.offset() % 8192, lease.len()),
            Action::Write(lease) => (lease.offset() % 8192, lease.len()),
            Action::Sync { .. } => (0, 8192),
        };
        assert_eq!((transfer.token, transfer.offset, lease), (0, 4096, (0, 8192)));
    }
    let seen = std::mem::take(&mut *script.seen.lock().unwrap());
    (done.into_iter().map(|done| done.result).collect(), seen)
}

const LARGE: u64 = 1 << 20;

#[test]
fn a_rest_begins_at_the_boundary_before() {
    let arena = arena();
    for action in [read, write] {
        let results = [Ok(1024), Ok(4100), Ok(3072)];
        let (done, seen) = outcome(LARGE, vec![action(&arena, 0)], &results);
        assert_eq!(done, [Ok(8192)]);
        assert_eq!(seen, [(4096, 8192), (5120, 7168), (9216, 3072)]);
    }
}

#[test]
fn an_error_ends_a_transfer_that_was_short_before() {
    let arena = arena();
    for action in [read, write] {
        let results = [Ok(1024), Err(Errno::ENOSPC)];
        let (done, _) = outcome(LARGE, vec![action(&arena, 0)], &results);
        assert_eq!(done, [Err(Errno::ENOSPC)]);
    }
}

#[test]
fn a_read_ends_with_its_file_and_is_asked_for_once() {
    let arena = arena();
    assert_eq!(outcome(4096 + 5000, vec![read(&arena, 0)], &[Ok(5000)]).0, [Ok(5000)]);
    assert_eq!(outcome(100, vec![read(&arena, 0)], &[Ok(0)]).0, [Ok(0)]);
    // It has grown since; less than a step more came.
    assert_eq!(outcome(LARGE, vec![read(&arena, 0)], &[Ok(100)]).0, [Ok(100)]);
    // A file without a size.
    assert_eq!(outcome(0, vec![read(&arena, 0)], &[Ok(1024), Ok(0)]).0, [Ok(1024)]);
}

#[test]
fn a_write_that_gets_no_further_is_eio() {
    let arena = arena();
    for results in [&[Ok(0)][..], &[Ok(511)], &[Ok(1024), Ok(0)], &[Ok(1024), Ok(100)]] {
        assert_eq!(outcome(0, vec![write(&arena, 0)], results).0, [Err(Errno::EIO)]);
    }
}

#[test]
fn transfers_with_one_token_are_told_apart() {
    let arena = arena();
    let actions = vec![read(&arena, 0), write(&arena, 1), read(&arena, 2), write(&arena, 3)];
    let results = [Ok(512), Ok(8192), Ok(512), Ok(512), Ok(7680), Err(Errno::EIO), Ok(7680)];
    let (mut done, seen) = outcome(LARGE, actions, &results);
    done.sort_by_key(|result| result.is_err());
    assert_eq!(done, [Ok(8192), Ok(8192), Ok(8192), Err(Errno::EIO)]);
    assert_eq!(seen.len(), 7);
    let actions = vec![Action::Sync { data_only: true }, read(&arena, 0)];
    let (done, _) = outcome(LARGE, actions, &[Ok(0), Ok(512), Ok(7680)]);
    assert_eq!(done, [Ok(0), Ok(8192)]);
}
