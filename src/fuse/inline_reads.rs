//! Small reads that the leader begins and waits for itself, which spares two wake-ups.
//!
//! The leader receives all requests that are there, begins the transfers of their reads together, and waits for one of
//! them before it looks for requests again.

use std::time::{Duration, Instant};

use super::readers::Turns;
use crate::aio::device::{InlineReader, Transfer, Wait};
use crate::engine::Engine;
use crate::opcode::Opcode;

/// Reads begun together at most: while more are received the device would be idle.
const BATCH_MAX: usize = 16;

/// How long a slow request waits for reads that came before it.
const SLOW_REQUEST_WAITS: Duration = Duration::from_millis(2);

/// A thread's reads under way.
#[derive(Debug, Default)]
pub(super) struct InlineReads {
    /// Transfers to begin.
    batch: Vec<Transfer>,
    /// The thread's own ring, made with its first small read; `None` where the device has none.
    reader: Option<Box<dyn InlineReader>>,
    is_asked: bool,
}

impl InlineReads {
    /// Where the transfers of a read are put that was just received; `None` where the device cannot read inline.
    pub(super) fn batch(&mut self, engine: &Engine) -> Option<&mut Vec<Transfer>> {
        if !self.is_asked {
            self.is_asked = true;
            self.reader = engine.inline_reader();
        }
        self.reader.is_some().then_some(&mut self.batch)
    }

    /// Returns true when no read is under way, and none to begin.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.under_way() == 0
    }

    fn under_way(&self) -> usize {
        self.reader.as_ref().map_or(0, |reader| reader.under_way())
    }

    /// Begins what is to begin, and takes completions.
    fn advance(&mut self, engine: &Engine, wait: Wait) {
        if let Some(reader) = &mut self.reader {
            reader.advance(&mut self.batch, wait);
        }
        engine.submit(&mut self.batch);
    }

    /// Begins what is to begin, and waits for a read. The watchdog calls other threads when that takes long.
    pub(super) fn wait(&mut self, engine: &Engine, turns: &Turns) {
        turns.while_not_counted(|| self.advance(engine, Wait::Ever));
    }

    /// Called before a request is handled: reads never wait behind a slow request, unless they are slow themselves.
    pub(super) fn drain_before(&mut self, engine: &Engine, opcode: Opcode) {
        if self.is_empty() {
            return;
        }
        if (opcode != Opcode::Read && opcode.is_quick()) || self.batch.len() >= BATCH_MAX {
            self.advance(engine, Wait::No);
        }
        let end = Instant::now() + SLOW_REQUEST_WAITS;
        while !opcode.is_quick() && !self.is_empty() && Instant::now() < end {
            self.advance(engine, Wait::For(SLOW_REQUEST_WAITS));
        }
    }

    /// Waits for all reads, however long that takes.
    pub(super) fn drain(&mut self, engine: &Engine) {
        while !self.is_empty() {
            self.advance(engine, Wait::Ever);
        }
    }
}
