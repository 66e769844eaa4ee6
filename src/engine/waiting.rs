//! Operations that wait for buffers: in turns by user, and of one user first come first served. However many
//! writes one user has waiting, another one's comes next but one.

use std::collections::VecDeque;
use std::time::Instant;

use super::op::Op;

/// An operation, the buffers that it needs, and since when it waits.
pub(crate) struct Waiter {
    pub(crate) op: Op,
    pub(crate) count: usize,
    pub(crate) since: Instant,
}

/// All that wait.
#[derive(Default)]
pub(crate) struct Waiting {
    /// By user, in the order of their turns. Only the first may be empty, between [`Waiting::take`] and what follows.
    users: VecDeque<(u32, VecDeque<Waiter>)>,
    /// Room for the next user's.
    spare: VecDeque<Waiter>,
}

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.users.iter().all(|(_, waiters)| waiters.is_empty())
    }

    pub(crate) fn push(&mut self, uid: u32, waiter: Waiter) {
        match self.users.iter_mut().find(|(other, _)| *other == uid) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => {
                let mut waiters = std::mem::take(&mut self.spare);
                waiters.push_back(waiter);
                self.users.push_back((uid, waiters));
            }
        }
    }

    /// The one whose turn it is. To be followed by [`Waiting::put_back`] or [`Waiting::served`].
    pub(crate) fn take(&mut self) -> Option<Waiter> {
        self.users.front_mut()?.1.pop_front()
    }

    /// It has to wait on, and keeps its turn.
    pub(crate) fn put_back(&mut self, waiter: Waiter) {
        let first = self.users.front_mut().expect("it was taken from there");
        first.1.push_front(waiter);
    }

    /// It waits no more: the next user's turn.
    pub(crate) fn served(&mut self) {
        let (uid, waiters) = self.users.pop_front().expect("it was taken from there");
        match waiters.is_empty() {
            true => self.spare = waiters,
            false => self.users.push_back((uid, waiters)),
        }
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Op> {
        std::mem::take(&mut self.users)
            .into_iter()
            .flat_map(|(_, waiters)| waiters.into_iter().map(|waiter| waiter.op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::PartitionId;
    use crate::engine::op::{FetchOp, Granted};
    use crate::shares::User;

    fn waiter(number: u64) -> Waiter {
        let op = FetchOp {
            partition: PartitionId::NONE,
            next: number,
            user: User::OWN,
            releases: 0,
            granted: Granted::new(),
        };
        Waiter { op: Op::Fetch(Box::new(op)), count: 1, since: Instant::now() }
    }

    fn next(waiting: &mut Waiting) -> Option<u64> {
        let waiter = waiting.take()?;
        // Not yet, then at once.
        waiting.put_back(waiter);
        let waiter = waiting.take()?;
        waiting.served();
        match waiter.op {
            Op::Fetch(op) => Some(op.next),
            _ => None,
        }
    }

    #[test]
    fn users_take_turns_and_each_ones_stay_in_order() {
        let mut waiting = Waiting::default();
        (0..4).for_each(|number| waiting.push(1, waiter(number)));
        waiting.push(2, waiter(10));
        waiting.push(3, waiter(20));
        waiting.push(2, waiter(11));
        let order: Vec<u64> = std::iter::from_fn(|| next(&mut waiting)).collect();
        assert_eq!(order, [0, 10, 20, 1, 11, 2, 3]);
        assert!(waiting.is_empty() && waiting.take().is_none());
        waiting.push(1, waiter(5));
        assert_eq!(waiting.drain().count(), 1);
        assert!(waiting.is_empty());
    }
}
