//! The small reads that a leader waits for itself: it receives all requests that are there, has the transfers of their
//! reads begun together, and waits for one of them before it looks for requests again.

use std::time::{Duration, Instant};

use super::crew::Crew;
use crate::aio::device::{PromptReads, Transfer, Wait};
use crate::engine::Engine;
use crate::opcode::Opcode;

/// Reads that are begun together at most; more would keep the device waiting.
const BATCH_MAX: usize = 16;

/// How long a request that may take long waits for reads that came before it.
const PATIENCE: Duration = Duration::from_millis(2);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Transfers to begin.
    batch: Vec<Transfer>,
    /// Of this thread; made when it is needed.
    prompt: Option<Box<dyn PromptReads>>,
    asked: bool,
}

impl Reads {
    /// Where to put the transfers of a read that was just received; `None` where reads cannot be waited for.
    pub(super) fn batch(&mut self, engine: &Engine) -> Option<&mut Vec<Transfer>> {
        if !self.asked {
            self.asked = true;
            self.prompt = engine.prompt();
        }
        self.prompt.is_some().then_some(&mut self.batch)
    }

    /// Whether nothing is under way, or to begin.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.under_way() == 0
    }

    fn under_way(&self) -> usize {
        self.prompt.as_ref().map_or(0, |prompt| prompt.under_way())
    }

    fn go_on(&mut self, engine: &Engine, wait: Wait) {
        if let Some(prompt) = &mut self.prompt {
            prompt.go_on(&mut self.batch, wait);
        }
        engine.submit(&mut self.batch);
    }

    /// Begins what is to begin, and waits for a read. Others are called when that takes long.
    pub(super) fn wait(&mut self, engine: &Engine, crew: &Crew) {
        crew.absent(|| self.go_on(engine, Wait::Ever));
    }

    /// Comes before a request is handled: nothing that has come before waits for one that takes long, unless it takes
    /// long itself.
    pub(super) fn make_way(&mut self, engine: &Engine, opcode: Opcode) {
        if self.is_empty() {
            return;
        }
        if (opcode != Opcode::Read && opcode.is_quick()) || self.batch.len() >= BATCH_MAX {
            self.go_on(engine, Wait::No);
        }
        let end = Instant::now() + PATIENCE;
        while !opcode.is_quick() && !self.is_empty() && Instant::now() < end {
            self.go_on(engine, Wait::For(PATIENCE));
        }
    }

    /// Waits for all, however long that takes.
    pub(super) fn finish(&mut self, engine: &Engine) {
        while !self.is_empty() {
            self.go_on(engine, Wait::Ever);
        }
    }
}
