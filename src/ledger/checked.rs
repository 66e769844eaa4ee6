//! The device that sums what it writes and verifies what it reads, around the one that moves the bytes.
//!
//! A write's sums are recorded before the transfer is handed on, in the thread that submits it; a read's are
//! compared when it completes. A sync puts the records on stable storage beside the data, at the same time.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::Ledger;
use super::entry::PAGE_BYTES;
use super::file::LedgerFile;
use crate::aio::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
    refused,
};
use crate::error::{Errno, Result};
use std::sync::atomic::Ordering;

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
        let sink = Sink { ledger, engine: OnceLock::new(), groups: Mutex::new(HashMap::new()) };
        Self { inner, sink: Arc::new(sink) }
    }

    /// The syncs that have to end with this one.
    fn add_syncs(&self, transfer: &Transfer, more: &mut Vec<Transfer>) {
        let Some(file) = LedgerFile::of(&*transfer.file) else { return };
        let record = file.record();
        if !record.unsynced.swap(false, Ordering::AcqRel) {
            return;
        }
        let table: Arc<dyn BackingFile> = self.sink.ledger.table_file();
        let sidecar = record.sidecar().map(|file| file as Arc<dyn BackingFile>);
        let before = more.len();
        for file in std::iter::once(table).chain(sidecar) {
            let action = Action::Sync { data_only: true };
            more.push(Transfer { token: transfer.token | OWN, action, file, offset: 0 });
        }
        let group = Group { left: 1 + (more.len() - before) as u32, result: Ok(0), transfer: None };
        self.sink.groups.lock().insert(transfer.token, group);
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
        let mut more = Vec::new();
        let mut failed = Vec::new();
        let mut at = 0;
        while at < batch.len() {
            let transfer = &batch[at];
            assert_eq!(transfer.token & OWN, 0, "the engine's tokens are small");
            let begun = match (&transfer.action, LedgerFile::of(&*transfer.file)) {
                (Action::Write(lease), Some(file)) => {
                    file.record().begin_write(transfer.offset, lease)
                }
                (Action::Sync { .. }, Some(_)) => {
                    self.add_syncs(transfer, &mut more);
                    Ok(())
                }
                _ => Ok(()),
            };
            match begun {
                Ok(()) => at += 1,
                Err(errno) => failed.push(refused(batch.swap_remove(at), errno)),
            }
        }
        batch.append(&mut more);
        if !batch.is_empty() {
            self.inner.submit(batch);
        }
        if !failed.is_empty() {
            self.sink.engine.get().expect("connected first").complete(&mut failed);
        }
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl CompletionSink for Sink {
    fn complete(&self, done: &mut Vec<Completion>) {
        let mut at = 0;
        while at < done.len() {
            let completion = &mut done[at];
            match &completion.transfer.action {
                Action::Read(_) => verify(completion),
                Action::Write(_) => note_written(completion),
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
        if !done.is_empty() {
            self.engine.get().expect("connected before anything is submitted").complete(done);
        }
    }
}

impl Sink {
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

/// A write has ended.
fn note_written(completion: &Completion) {
    let Transfer { action: Action::Write(lease), file, offset, .. } = &completion.transfer else {
        return;
    };
    if let Some(file) = LedgerFile::of(&**file) {
        let stored = completion.result.is_ok_and(|moved| moved >= lease.len());
        file.record().end_write(*offset, lease.len() as u64, stored);
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
