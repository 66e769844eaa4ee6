//! Requests on folders under way: one or two for each user, and one for all who ask the same.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Answer;
use super::request::Each;
use super::rights::Member;
use crate::error::{Errno, Result};
use crate::shares::{Bounds, Share, User};

/// How much nicer the threads of these requests are than those that serve reads and writes.
const NICENESS: i32 = 10;

/// How long a walk of an ordinary user works before it rests for as long: others' requests need the same locks.
const WORK: Duration = Duration::from_micros(500);

/// What a request on a folder is: two equal ones do the same to the same partitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub(super) folder: u64,
    pub(super) each: Each,
    pub(super) member: Member,
}

/// What others who ask the same have to wait for.
enum Phase {
    /// Whether it can be done at all is not known yet: those who get the same answer.
    Looking(Vec<Answer<()>>),
    /// It is being done. Whoever asks now may mean partitions that were passed already: then all of it is done `again`.
    Going { again: bool },
}

/// All requests on folders under way.
#[derive(Default)]
pub(super) struct Walks(Mutex<HashMap<Asked, Phase>>);

impl std::fmt::Debug for Walks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walks").field("count", &self.0.lock().len()).finish()
    }
}

/// One request under way.
pub(super) struct Walk {
    walks: Arc<Walks>,
    pub(super) asked: Asked,
    /// Nobody can join any more, and another one may be like it.
    has_ended: Cell<bool>,
    _share: Share,
}

impl Walks {
    /// Begins a request, to be answered by [`Walk::answer`]; or joins an equal one, which answers for it.
    ///
    /// # Errors
    /// Answers EBUSY when the user, or all, have as many under way as they may have.
    pub(super) fn begin(
        self: &Arc<Self>, bounds: &Bounds, user: User, asked: Asked, answer: Answer<()>,
    ) -> Option<Walk> {
        let share = bounds.walks.take(user, 1);
        let mut all = self.0.lock();
        let phase = all.get_mut(&asked);
        let (answer, outcome) = match (phase, share) {
            (Some(Phase::Looking(others)), _) => {
                others.push(answer);
                return None;
            }
            (Some(Phase::Going { again }), _) => {
                *again = true;
                (answer, Ok(()))
            }
            (None, Err(_)) => (answer, Err(Errno::EBUSY)),
            (None, Ok(share)) => {
                all.insert(asked.clone(), Phase::Looking(vec![answer]));
                return Some(Walk {
                    walks: self.clone(),
                    asked,
                    has_ended: Cell::new(false),
                    _share: share,
                });
            }
        };
        drop(all);
        answer(outcome);
        None
    }
}

impl Walk {
    /// Answers all who have asked, unless they were answered already. After an error the request ends.
    pub(super) fn answer(&self, outcome: Result<()>) {
        let before = {
            let mut all = self.walks.0.lock();
            match (all.get_mut(&self.asked), outcome) {
                (Some(phase @ Phase::Looking(_)), Ok(())) => {
                    std::mem::replace(phase, Phase::Going { again: false })
                }
                (Some(_), Err(_)) => {
                    self.has_ended.set(true);
                    all.remove(&self.asked).expect("just looked at")
                }
                _ => return,
            }
        };
        if let Phase::Looking(answers) = before {
            answers.into_iter().for_each(|answer| answer(outcome));
        }
    }

    /// Whether somebody has asked the same meanwhile, so that all is to be done once more. Otherwise it has ended.
    pub(super) fn goes_on(&self) -> bool {
        let mut all = self.walks.0.lock();
        match all.get_mut(&self.asked) {
            Some(Phase::Going { again }) if *again => {
                *again = false;
                true
            }
            _ => {
                self.has_ended.set(true);
                all.remove(&self.asked);
                false
            }
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        if self.has_ended.get() {
            return;
        }
        // It could not be begun, or ended by a panic.
        let left = self.walks.0.lock().remove(&self.asked);
        if let Some(Phase::Looking(answers)) = left {
            answers.into_iter().for_each(|answer| answer(Err(Errno::EIO)));
        }
    }
}

/// Keeps a walk from holding up others.
pub(super) struct Pace {
    since: Option<Instant>,
}

impl Pace {
    /// Of this thread, which is one made for the walk. Walks of ordinary users rest half of the time.
    pub(super) fn new(is_ordinary: bool) -> Pace {
        // To be nicer is allowed to everybody.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        Pace { since: is_ordinary.then(Instant::now) }
    }

    /// To be called after each small piece of work.
    pub(super) fn step(&mut self) {
        let Some(since) = &mut self.since else { return };
        let worked = since.elapsed();
        if worked >= WORK {
            // However long it took: it may have been waiting for others that it held up.
            std::thread::sleep(worked.min(10 * WORK));
            *since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::engine::Request;
    use crate::volume::Asker;

    fn asked(uid: u32, folder: u64, request: Request) -> Asked {
        let member = Asker { uid, gid: uid, pid: 0 }.member();
        Asked { folder, each: Each::Ask(request), member }
    }

    fn begin(
        walks: &Arc<Walks>, bounds: &Bounds, asked: &Asked,
    ) -> (Option<Walk>, mpsc::Receiver<Result<()>>) {
        let (sender, receiver) = mpsc::channel();
        let answer = Box::new(move |outcome| {
            let _ = sender.send(outcome);
        });
        let user = User::new(asked.member.uid, 0);
        (walks.begin(bounds, user, asked.clone(), answer), receiver)
    }

    #[test]
    fn a_user_has_two_and_others_theirs() {
        let (walks, bounds) = (Arc::new(Walks::default()), Bounds::new(1000, 8));
        let mut going = Vec::new();
        for folder in [1, 2] {
            going.push(begin(&walks, &bounds, &asked(77, folder, Request::SwapOut)).0.unwrap());
        }
        let (none, answered) = begin(&walks, &bounds, &asked(77, 3, Request::SwapOut));
        assert!(none.is_none());
        assert_eq!(answered.recv(), Ok(Err(Errno::EBUSY)));
        assert!(begin(&walks, &bounds, &asked(78, 3, Request::SwapOut)).0.is_some());
        drop(going);
        assert!(begin(&walks, &bounds, &asked(77, 3, Request::SwapOut)).0.is_some());
        assert!(walks.0.lock().is_empty());
    }

    #[test]
    fn equal_requests_are_one_and_what_comes_late_is_done_again() {
        let (walks, bounds) = (Arc::new(Walks::default()), Bounds::new(1000, 8));
        let equal = asked(77, 1, Request::Release);
        let (walk, first) = begin(&walks, &bounds, &equal);
        let walk = walk.unwrap();
        let (none, second) = begin(&walks, &bounds, &equal);
        assert!(none.is_none() && second.try_recv().is_err(), "as the first one is answered");
        walk.answer(Ok(()));
        assert_eq!((first.recv(), second.recv()), (Ok(Ok(())), Ok(Ok(()))));
        for _ in 0..100 {
            let (none, late) = begin(&walks, &bounds, &equal);
            assert!(none.is_none());
            assert_eq!(late.recv(), Ok(Ok(())));
        }
        assert!(walk.goes_on() && !walk.goes_on(), "a hundred are one");
        // Not equal: other rights, folder or request.
        for other in [
            asked(78, 1, Request::Release),
            asked(77, 1, Request::SwapOut),
            asked(77, 2, Request::Release),
        ] {
            assert!(begin(&walks, &bounds, &other).0.is_some(), "{other:?}");
        }
    }

    #[test]
    fn one_that_ends_early_is_answered() {
        let (walks, bounds) = (Arc::new(Walks::default()), Bounds::new(1000, 8));
        let (walk, answered) = begin(&walks, &bounds, &asked(77, 1, Request::Release));
        drop(walk);
        assert_eq!(answered.recv(), Ok(Err(Errno::EIO)));
        let (walk, answered) = begin(&walks, &bounds, &asked(77, 1, Request::Release));
        walk.unwrap().answer(Err(Errno::ENOBUFS));
        assert_eq!(answered.recv(), Ok(Err(Errno::ENOBUFS)));
        assert!(walks.0.lock().is_empty());
    }
}
