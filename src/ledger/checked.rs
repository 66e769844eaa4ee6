//! The device that sums what it writes and verifies what it reads, around the one that moves the bytes.
//!
//! A write's sums are taken in the thread that submits it; the record writer records them and then hands the transfer
//! on, so that the submitter never waits for the filesystem. A read's are compared when it completes. A sync
//! puts the records on stable storage beside the data, at the same time.
//!
//! The device inside moves whole transfers ([`Whole`](crate::aio::whole::Whole)). Reads alone come out of this device with
//! fewer bytes than the file has: one that finds a bad page is cut before it, so that the engine takes the good pages,
//! asks again from the bad one on, and gets the error for that page and no other.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::Ledger;
use super::entry::PAGE_BYTES;
use super::file::LedgerFile;
use super::record::{Outcome, Record, Writing};
use crate::aio::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, InlineReader,
    Transfer, refused,
};
use crate::error::{Errno, Result};

/// Marks the tokens of our own syncs; the engine's are small numbers.
const OWN: u64 = 1 << 63;

/// How often a read that ends within its first page is begun.
const TRIES: u32 = 100;

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

/// A write that has ended.
struct Written {
    file: Arc<dyn BackingFile>,
    record: Arc<Record>,
    bytes: Range<u64>,
    outcome: Outcome,
}

struct Sink {
    ledger: Arc<Ledger>,
    engine: OnceLock<Arc<dyn CompletionSink>>,
    /// Itself, for the record writer.
    me: Weak<Sink>,
    /// It knows the sink.
    inner: Weak<dyn Device>,
    /// How often reads that ended within their first page were begun, by their tokens, and how many such there are.
    again: Mutex<HashMap<u64, u32>>,
    agains: AtomicUsize,
    /// By the engine's token.
    groups: DashMap<u64, Group>,
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
        let sink = Arc::new_cyclic(|me| Sink {
            me: me.clone(),
            ledger,
            engine: OnceLock::new(),
            inner: Arc::downgrade(&inner),
            again: Mutex::default(),
            agains: AtomicUsize::new(0),
            groups: DashMap::new(),
        });
        Self { inner, sink }
    }
}

/// What has to be on record before it may begin, with what is to be recorded of a write.
type Ordered = (Transfer, Option<Writing>);

/// A transfer that the record writer has to see first.
fn ordered(transfer: &Transfer) -> Option<Option<Writing>> {
    assert_eq!(transfer.token & OWN, 0, "the engine's tokens are small");
    let file = LedgerFile::of(&*transfer.file)?;
    match &transfer.action {
        Action::Read(_) => None,
        Action::Write(_) if !file.record().is_kept() => None,
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

    fn inline_reader(&self) -> Option<Box<dyn InlineReader>> {
        // Reads alone, which are compared when they complete.
        self.inner.inline_reader()
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
        let (mut written, mut unsettled) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < done.len() {
            match &done[at].transfer.action {
                // How a write of these pages has ended is not on record yet: whether they may still be the
                // old ones is known when it is.
                Action::Read(_) if is_unsettled(&done[at]) => unsettled.push(done.swap_remove(at)),
                Action::Read(_) => at += 1,
                Action::Write(_) => {
                    written.extend(self.written(&done[at]));
                    at += 1;
                }
                Action::Sync { .. } => {
                    if let Some(whole) = self.synced(done.swap_remove(at)) {
                        done.push(whole);
                        let last = done.len() - 1;
                        done.swap(at, last);
                        at += 1;
                    }
                }
            }
        }
        // Before the engine knows: what it does next with these pages comes after.
        if !written.is_empty() {
            self.ledger.later(move || {
                for Written { file, record, bytes, outcome } in written {
                    record.end_write(&bytes, outcome, || LedgerFile::of(&*file)?.look());
                    record.done();
                }
            });
        }
        if let (false, Some(sink)) = (unsettled.is_empty(), self.me.upgrade()) {
            self.ledger.later(move || sink.pass_on(&mut unsettled));
        }
        self.pass_on(done);
    }
}

/// Whether the record writer has to record something first of the partition that was read.
fn is_unsettled(completion: &Completion) -> bool {
    LedgerFile::of(&*completion.transfer.file).is_some_and(|file| file.record().is_unsettled())
}

impl Sink {
    fn engine(&self) -> &dyn CompletionSink {
        &**self.engine.get().expect("connected before anything is submitted")
    }

    /// Counts the attempts of a read that ended within its first page.
    fn may_try_again(&self, token: u64) -> bool {
        let more = {
            let mut again = self.again.lock();
            let tries = again.entry(token).or_default();
            *tries += 1;
            let more = *tries < TRIES;
            self.agains.store(again.len(), Ordering::Release);
            more
        };
        if !more {
            self.forget_attempts(token);
        }
        more
    }

    /// The read has an answer.
    fn forget_attempts(&self, token: u64) {
        if self.agains.load(Ordering::Acquire) > 0 {
            let mut again = self.again.lock();
            again.remove(&token);
            self.agains.store(again.len(), Ordering::Release);
        }
    }

    /// Verifies what was read, and tells the engine.
    fn pass_on(&self, done: &mut Vec<Completion>) {
        let mut again = Vec::new();
        let mut at = 0;
        while at < done.len() {
            let completion = &mut done[at];
            let token = completion.transfer.token;
            match verify(completion) {
                Verified::Answered => self.forget_attempts(token),
                Verified::Within if self.may_try_again(token) => {
                    again.push(done.swap_remove(at).transfer);
                    continue;
                }
                Verified::Within => completion.result = Err(Errno::EIO),
            }
            at += 1;
        }
        if !again.is_empty() {
            match self.inner.upgrade() {
                Some(inner) => inner.submit(&mut again),
                None => done.extend(again.drain(..).map(|it| refused(it, Errno::ENODEV))),
            }
        }
        if !done.is_empty() {
            self.engine().complete(done);
        }
    }

    /// Records what is about to be written, and hands it on. By the record writer.
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
        if !record.begin_sync() {
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
        self.groups.insert(transfer.token, group);
    }

    /// A write has ended: what is to be recorded of that.
    fn written(&self, completion: &Completion) -> Option<Written> {
        let Transfer { action: Action::Write(lease), file, offset, .. } = &completion.transfer
        else {
            return None;
        };
        let record = LedgerFile::of(&**file)?.record().clone();
        if !record.is_kept() {
            return None;
        }
        let outcome = match completion.result {
            Ok(moved) if moved >= lease.len() => Outcome::Stored,
            Err(Errno::ENODEV) => Outcome::Gone,
            Ok(_) | Err(_) => Outcome::Failed,
        };
        record.expect();
        let bytes = *offset..*offset + lease.len() as u64;
        Some(Written { file: file.clone(), record, bytes, outcome })
    }

    /// One of a group's syncs has ended; with the last, the engine's completion.
    fn synced(&self, completion: Completion) -> Option<Completion> {
        let Completion { transfer, result } = completion;
        let token = transfer.token & !OWN;
        let own = transfer.token & OWN != 0;
        let Some(mut group) = self.groups.get_mut(&token) else {
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
        drop(group);
        let (_, Group { result, transfer, .. }) = self.groups.remove(&token)?;
        let transfer = transfer?;
        if let Some(file) = LedgerFile::of(&*transfer.file) {
            file.record().end_sync(result.is_ok());
            if result.is_ok() {
                let (record, file) = (file.record().clone(), transfer.file.clone());
                self.ledger.note(&record, move |_| {
                    if let Some(file) = LedgerFile::of(&*file) {
                        file.settle();
                    }
                });
            }
        }
        Some(Completion { transfer, result })
    }
}

/// What is to become of a read.
enum Verified {
    /// The completion says.
    Answered,
    /// It ended within its first page, and the file does not: the page has to be read whole.
    Within,
}

/// Cuts a read before the first page that is not what it should be; fails it when that is its first.
fn verify(completion: &mut Completion) -> Verified {
    let Completion { transfer, result } = completion;
    let Transfer { action: Action::Read(lease), file, offset, .. } = transfer else {
        return Verified::Answered;
    };
    let (Some(file), Ok(moved)) = (LedgerFile::of(&**file), *result) else {
        return Verified::Answered;
    };
    if !offset.is_multiple_of(PAGE_BYTES) {
        *result = Err(Errno::EINVAL);
        return Verified::Answered;
    }
    let ends = || file.status().is_ok_and(|status| status.size <= *offset + moved as u64);
    let checked = if moved >= lease.len() {
        lease.len()
    } else if ends() {
        // What lies beyond the end is zero, and is summed so.
        lease[moved..].fill(0);
        moved
    } else {
        // Pages that came in part are asked for again: the file may have grown since.
        moved / PAGE_BYTES as usize * PAGE_BYTES as usize
    };
    if checked == 0 && moved > 0 {
        return Verified::Within;
    }
    let (right, wrong) = file.record().verify(*offset, &lease[..checked]);
    *result = match wrong {
        None => Ok(checked),
        Some(errno) if right == 0 => Err(errno),
        Some(_) => Ok(right as usize),
    };
    Verified::Answered
}
