//! The device that sums what it writes and verifies what it reads, around the one that moves the bytes.
//!
//! A write's sums are taken in the thread that submits it; the clerk records them and then hands the transfer
//! on, so that the submitter never waits for the filesystem. A read's are compared when it completes. A sync
//! puts the records on stable storage beside the data, at the same time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::Ledger;
use super::entry::PAGE_BYTES;
use super::file::LedgerFile;
use super::record::{Outcome, Record, Writing};
use crate::aio::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
    refused,
};
use crate::error::{Errno, Result};

/// Marks the tokens of our own syncs; the engine's are small numbers.
const OWN: u64 = 1 << 63;

/// A [`Device`] whose transfers are on record in a [`Ledger`].
#[derive(Debug)]
pub struct Checked {
    inner: Arc<dyn Device>,
    sink: Arc<Sink>,
}

/// The syncs that one of the engine's has become.
#[derive(Debug)]
struct Group {
    left: u32,
    result: Result<usize>,
    /// The engine's own, once it has completed.
    transfer: Option<Transfer>,
}

struct Sink {
    ledger: Arc<Ledger>,
    engine: OnceLock<Arc<dyn CompletionSink>>,
    /// Bytes: what is moved of a transfer counts in multiples of it.
    alignment: u64,
    /// By the engine's token. Locked for lookups only.
    groups: Mutex<HashMap<u64, Group>>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Checked {
    /// Puts `inner` behind `ledger`.
    #[must_use]
    pub fn new(inner: Arc<dyn Device>, ledger: Arc<Ledger>) -> Self {
        let sink = Sink {
            ledger,
            engine: OnceLock::new(),
            alignment: inner.geometry().alignment as u64,
            groups: Mutex::new(HashMap::new()),
        };
        Self { inner, sink: Arc::new(sink) }
    }
}

/// What has to be on record before it may begin, with what is to be recorded of a write.
type Ordered = (Transfer, Option<Writing>);

/// A transfer that the clerk has to see first.
fn ordered(transfer: &Transfer) -> Option<Option<Writing>> {
    assert_eq!(transfer.token & OWN, 0, "the engine's tokens are small");
    let file = LedgerFile::of(&*transfer.file)?;
    match &transfer.action {
        Action::Read(_) => None,
        Action::Write(lease) => Some(Some(file.record().prepare(transfer.offset, lease))),
        Action::Sync { .. } => file.record().has_news().then_some(None),
    }
}

impl Device for Checked {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.sink.engine.set(sink).is_ok(), "connected once");
        self.inner.connect(self.sink.clone());
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        let mut first: Vec<Ordered> = Vec::new();
        let mut at = 0;
        while at < batch.len() {
            match ordered(&batch[at]) {
                Some(writing) => first.push((batch.remove(at), writing)),
                None => at += 1,
            }
        }
        if !batch.is_empty() {
            self.inner.submit(batch);
        }
        if !first.is_empty() {
            let (inner, sink) = (self.inner.clone(), self.sink.clone());
            self.sink.ledger.later(move || sink.record_and_submit(first, &*inner));
        }
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }

    fn shutdown(&self) {
        self.sink.ledger.catch_up();
        self.inner.shutdown();
    }
}

impl CompletionSink for Sink {
    fn complete(&self, done: &mut Vec<Completion>) {
        let mut written = Vec::new();
        let mut at = 0;
        while at < done.len() {
            let completion = &mut done[at];
            match &completion.transfer.action {
                Action::Read(_) => verify(completion),
                Action::Write(_) => written.extend(self.written(completion)),
                Action::Sync { .. } => {
                    let completion = done.swap_remove(at);
                    if let Some(whole) = self.synced(completion) {
                        done.push(whole);
                        let last = done.len() - 1;
                        done.swap(at, last);
                        at += 1;
                    }
                    continue;
                }
            }
            at += 1;
        }
        // Before the engine knows: what it does next with these pages comes after.
        if !written.is_empty() {
            self.ledger.later(move || {
                for (record, bytes, outcome) in written {
                    record.end_write(&bytes, outcome);
                    record.done();
                }
            });
        }
        if !done.is_empty() {
            self.engine().complete(done);
        }
    }
}

impl Sink {
    fn engine(&self) -> &dyn CompletionSink {
        &**self.engine.get().expect("connected before anything is submitted")
    }

    /// Records what is about to be written, and hands it on. By the clerk.
    fn record_and_submit(&self, first: Vec<Ordered>, inner: &dyn Device) {
        let (mut batch, mut failed) = (Vec::with_capacity(first.len()), Vec::new());
        for (transfer, writing) in first {
            let begun = match (LedgerFile::of(&*transfer.file), writing) {
                (Some(file), Some(writing)) => file.record().begin_write(&writing),
                (Some(file), None) => {
                    self.add_syncs(&transfer, file, &mut batch);
                    Ok(())
                }
                (None, _) => Ok(()),
            };
            match begun {
                Ok(()) => batch.push(transfer),
                Err(errno) => failed.push(refused(transfer, errno)),
            }
        }
        if !batch.is_empty() {
            inner.submit(&mut batch);
        }
        if !failed.is_empty() {
            self.engine().complete(&mut failed);
        }
    }

    /// The syncs that have to end with this one.
    fn add_syncs(&self, transfer: &Transfer, file: &LedgerFile, batch: &mut Vec<Transfer>) {
        let record = file.record();
        if !record.unsynced.swap(false, Ordering::AcqRel) {
            return;
        }
        let table: Arc<dyn BackingFile> = self.ledger.table_file();
        let sidecar = record.sidecar().map(|file| file as Arc<dyn BackingFile>);
        let before = batch.len();
        for file in std::iter::once(table).chain(sidecar) {
            let action = Action::Sync { data_only: true };
            batch.push(Transfer { token: transfer.token | OWN, action, file, offset: 0 });
        }
        let group =
            Group { left: 1 + (batch.len() - before) as u32, result: Ok(0), transfer: None };
        self.groups.lock().insert(transfer.token, group);
    }

    /// A write has ended: what is to be recorded of that.
    fn written(&self, completion: &Completion) -> Option<(Arc<Record>, Range<u64>, Outcome)> {
        let Transfer { action: Action::Write(lease), file, offset, .. } = &completion.transfer
        else {
            return None;
        };
        let record = LedgerFile::of(&**file)?.record().clone();
        let moved = completion.result.map(|moved| moved as u64 / self.alignment * self.alignment);
        let outcome = match (completion.result, moved) {
            (Ok(moved), _) if moved >= lease.len() => Outcome::Stored,
            (_, Ok(moved)) if moved > 0 => Outcome::Part(moved),
            (Err(Errno::ENODEV), _) => Outcome::Gone,
            _ => Outcome::Failed,
        };
        record.expect();
        Some((record, *offset..*offset + lease.len() as u64, outcome))
    }

    /// One of a group's syncs has ended; with the last, the engine's completion.
    fn synced(&self, completion: Completion) -> Option<Completion> {
        let Completion { transfer, result } = completion;
        let token = transfer.token & !OWN;
        let own = transfer.token & OWN != 0;
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(&token) else {
            drop(groups);
            return Some(Completion { transfer, result });
        };
        group.left -= 1;
        if result.is_err() {
            group.result = result;
        }
        if !own {
            group.transfer = Some(transfer);
        }
        if group.left > 0 {
            return None;
        }
        let Group { result, transfer, .. } = groups.remove(&token)?;
        drop(groups);
        let transfer = transfer?;
        if let Some(file) = LedgerFile::of(&*transfer.file) {
            match result {
                Ok(_) => file.settle(),
                Err(_) => file.record().unsynced.store(true, Ordering::Release),
            }
        }
        Some(Completion { transfer, result })
    }
}

/// Cuts a read before the first page that is not what it should be; fails it when that is its first.
fn verify(completion: &mut Completion) {
    let Completion { transfer, result } = completion;
    let Transfer { action: Action::Read(lease), file, offset, .. } = transfer else { return };
    let (Some(file), Ok(moved)) = (LedgerFile::of(&**file), *result) else { return };
    if !offset.is_multiple_of(PAGE_BYTES) {
        *result = Err(Errno::EINVAL);
        return;
    }
    let ends = || file.status().is_ok_and(|status| status.size <= *offset + moved as u64);
    let checked = if moved >= lease.len() {
        lease.len()
    } else if ends() {
        // What lies beyond the end is zero, and is summed so.
        lease[moved..].fill(0);
        moved
    } else {
        // Pages that came in part are asked for again.
        moved / PAGE_BYTES as usize * PAGE_BYTES as usize
    };
    let (right, wrong) = file.record().verify(*offset, &lease[..checked]);
    *result = match wrong {
        None if checked == 0 && moved > 0 => Err(Errno::EIO),
        None => Ok(checked),
        Some(errno) if right == 0 => Err(errno),
        Some(_) => Ok(right as usize),
    };
}
