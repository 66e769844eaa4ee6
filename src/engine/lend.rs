//! Buffers of the pool as plain memory: out of circulation until they are given back.

use std::sync::Arc;

use super::actions::Answer;
use super::budget::Tokens;
use super::core::Engine;
use super::ids::BufferId;
use super::locked::Locked;
use super::op::{Granted, Op};
use crate::pool::{BufferPool, BufferSource, Loan, WriteLease};

pub(crate) type LendReply = Box<dyn FnOnce(Vec<(BufferId, WriteLease)>) + Send>;

/// Buffers being taken out of circulation.
pub(crate) struct LendOp {
    pub(crate) count: usize,
    pub(crate) granted: Granted,
    reply: LendReply,
}

impl Engine {
    /// The engine's buffers as a pool to allocate from. What is allocated counts as reserved, and comes
    /// out of the same budget as what is held.
    #[must_use]
    pub fn buffer_pool(self: &Arc<Self>) -> BufferPool {
        BufferPool::over(Arc::new(Lender { engine: self.clone() }))
    }

    /// Takes buffers out of circulation for as many tokens. Waits for those that a transfer or a copy still
    /// uses.
    fn lend(&self, tokens: &Tokens) -> Vec<(BufferId, WriteLease)> {
        let count = tokens.count();
        if count == 0 {
            return Vec::new();
        }
        let (sender, receiver) = crate::concurrent::bounded(1);
        let reply = Box::new(move |buffers| {
            // The receiver waits below.
            let _ = sender.send(buffers);
        });
        let op = Box::new(LendOp { count, granted: Granted::new(), reply });
        self.with(|locked| locked.lend_step(op));
        receiver.recv().unwrap_or_default()
    }

    /// Puts a lent buffer back into circulation; its lease is gone.
    fn take_back(&self, buffer: BufferId) {
        self.with(|locked| {
            let known = locked.state.lent.remove(&buffer);
            assert!(known, "a buffer is given back once");
            locked.state.free.push(buffer);
        });
    }

    /// Buffers that are lent out now.
    pub(crate) fn lent(&self) -> usize {
        self.with(|locked| locked.state.lent.len())
    }

    /// Buffers that requests have taken out of circulation.
    pub(crate) fn reserved_on_request(&self) -> usize {
        self.with(|locked| locked.state.reserved)
    }
}

impl Locked<'_> {
    pub(crate) fn lend_step(&mut self, mut op: Box<LendOp>) {
        if !self.state.acquire(&mut op.granted, op.count, self.actions) {
            let count = op.count;
            return self.wait_for_buffers(Op::Lend(op), count);
        }
        let mut lent = Vec::with_capacity(op.count);
        for buffer in op.granted.drain(..) {
            self.state.lent.insert(buffer);
            lent.push((buffer, self.engine.memory.for_lending(self.state, buffer)));
        }
        let reply = op.reply;
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(lent)), Ok(())));
    }

    /// Lends nothing.
    pub(crate) fn refuse_lend(&mut self, mut op: LendOp) {
        self.state.return_granted(&mut op.granted);
        let reply = op.reply;
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(Vec::new())), Ok(())));
    }
}

/// Gives out an engine's buffers.
#[derive(Debug)]
struct Lender {
    engine: Arc<Engine>,
}

impl Lender {
    fn lend(&self, mut tokens: Tokens) -> Vec<Loan> {
        let lent = self.engine.lend(&tokens);
        let loan = |(buffer, lease): (BufferId, WriteLease)| Loan {
            index: buffer.0,
            lease,
            token: Box::new(tokens.split(1)),
        };
        lent.into_iter().map(loan).collect()
    }
}

impl BufferSource for Lender {
    fn buffer_size(&self) -> usize {
        self.engine.shape.block_size as usize
    }

    fn total(&self) -> usize {
        self.engine.budget.total()
    }

    fn free(&self) -> usize {
        self.engine.budget.free(self.engine.reserved_on_request())
    }

    fn take(&self, count: usize) -> Option<Vec<Loan>> {
        let reserved = self.engine.reserved_on_request();
        let tokens = self.engine.budget.take_now(count, reserved)?;
        let loans = self.lend(tokens);
        // Fewer than tokens only from an engine that was stopped.
        (loans.len() == count).then_some(loans)
    }

    fn take_all(&self) -> Vec<Loan> {
        let reserved = self.engine.reserved_on_request();
        self.lend(self.engine.budget.take_free(usize::MAX, reserved))
    }

    fn give_back(&self, index: u32, lease: WriteLease) {
        drop(lease);
        self.engine.take_back(BufferId(index));
    }
}
