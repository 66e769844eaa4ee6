//! The engine's end. Whoever asks it for something afterwards, or still waits for something, gets an answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::actions::Answer;
use super::core::{Engine, JOB_THREADS, OP_THREADS};
use super::ids::PartitionId;
use super::locked::Locked;
use super::op::{BarrierOp, Change, HoldOp, Op};
use crate::error::Errno;

impl Engine {
    /// Ends the engine's threads; what is to be kept was synchronized before. Waits for the transfers under way.
    /// Operations that wait for anything else, and later ones that would have to, fail with ENODEV; what the pool
    /// holds can be read still. Idempotent.
    pub fn stop(self: &Arc<Self>) {
        self.with(|locked| locked.state.stopping = true);
        self.tick.notify_all();
        self.device().shutdown();
        for _ in 0..OP_THREADS {
            let _ = self.ops.0.send(None);
        }
        for _ in 0..JOB_THREADS {
            let _ = self.jobs.0.send(None);
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.thread().id() != crate::concurrent::thread::current().id() {
                let _ = thread.join();
            }
        }
        self.with(|_| self.ended.store(true, Ordering::SeqCst));
        self.refuse_queued();
    }

    /// Whether [`Engine::stop`] was called.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.with(|locked| locked.state.stopping)
    }

    /// Refuses what is queued for threads that are gone.
    pub(crate) fn refuse_queued(&self) {
        while self.ended.load(Ordering::SeqCst)
            && let Ok(op) = self.ops.1.try_recv()
        {
            if let Some(op) = op {
                self.with(|locked| locked.refuse(op));
            }
        }
        while self.ended.load(Ordering::SeqCst)
            && let Ok(job) = self.jobs.1.try_recv()
        {
            // Whoever waits for its answer sees that it is gone.
            drop(job);
        }
    }
}

impl Locked<'_> {
    /// Refuses everything that is parked: nothing happens any more that could let it go on.
    pub(crate) fn refuse_parked(&mut self) {
        let mut ops: Vec<Op> = self.state.waiting.drain().collect();
        ops.append(&mut self.state.space.waiters);
        for block_id in self.state.blocks.ids() {
            if !self.state.blocks[block_id].waiters.is_empty() {
                ops.extend(self.state.edit(block_id, |block| std::mem::take(&mut block.waiters)));
            }
        }
        for waiter in self.state.idle_waiters.drain(..) {
            self.actions.answer(Some(waiter.reply), Ok(()));
        }
        let ids: Vec<PartitionId> = self.state.partitions.iter().map(|(id, _)| id).collect();
        for id in ids {
            let part = self.state.part(id);
            ops.extend(part.gate_queue.drain(..));
            ops.extend(part.barrier.take().map(Op::Barrier));
            // Its job went with the threads.
            part.barrier_running = false;
            let waiters = std::mem::take(&mut part.status_waiters);
            for op in std::mem::take(&mut part.sync_ops) {
                self.actions.answer(Some(op.reply), Err(Errno::ENODEV));
            }
            for waiter in waiters {
                self.actions.answer(Some(waiter.reply), Ok(()));
            }
        }
        for op in ops {
            self.refuse(op);
        }
    }

    /// Fails one operation. Counters and claims of it that only others would have to wait for stay.
    fn refuse(&mut self, op: Op) {
        let errno = Errno::ENODEV;
        match op {
            Op::Read(op) => self.actions.answers.push(Answer::Read(op.reply, errno)),
            Op::Write(op) => self.actions.answers.push(Answer::Write(op.reply, Err(errno))),
            Op::Barrier(op) => {
                let BarrierOp { change, reply, .. } = *op;
                self.actions.answer(reply, Err(errno));
                if let Change::Settle { then, .. } = change {
                    for op in then {
                        self.actions.answer(Some(op.reply), Err(errno));
                    }
                }
            }
            Op::Fetch(mut op) => self.state.return_granted(&mut op.granted),
            Op::Hold(op) => self.refuse_hold(*op, errno),
            Op::Direct(op) => op.refuse(errno, self.actions),
            Op::Lend(op) => self.refuse_lend(*op),
        }
    }

    /// Fails a hold that is not made yet.
    pub(crate) fn refuse_hold(&mut self, op: HoldOp, errno: Errno) {
        if op.entered {
            return self.fail_hold(op, errno);
        }
        let reply = op.reply;
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(Err(errno))), Ok(())));
    }
}
