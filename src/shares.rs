//! Shares: how much each user may have of what the daemon has only so much of.
//!
//! One daemon serves all users of a mount. Its descriptors, its memory and its threads are bounded, so one user could
//! take all of them and nobody else could open a file. Everything that a user can make grow is therefore counted by
//! user in [`Shares`]:
//!
//! - one user has at most `each`, and never more than is left for others: who comes later finds something too;
//! - all of them together have at most `all`, which is less than there is;
//! - root and the owner of the mount may go on beyond that: what is left is spared for them.
//!
//! Nothing here is done for a read or a write, unless it has to wait for a buffer. The locks are taken under any other
//! and take none themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::thread::CapabilitySet;

use crate::capabilities;
use crate::error::Errno;

/// How long it is believed that a thread of root's has root's capabilities.
const BELIEVED: Duration = Duration::from_millis(100);

/// Who takes a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    uid: u32,
    pid: u32,
    /// Whether the spares are open to this user, where that was looked up already.
    has_spares: Option<bool>,
}

impl User {
    /// The daemon itself and programs that use the library: nothing is counted for them.
    pub const OWN: User = User { uid: u32::MAX, pid: 0, has_spares: Some(true) };

    /// The user of a request, and the thread that waits for its answer; 0 for one that cannot be seen from here.
    #[must_use]
    pub fn new(uid: u32, pid: u32) -> User {
        let own = rustix::process::geteuid().as_raw();
        let has_spares = match uid {
            // The id alone is no proof: root of a container may have no capability.
            0 => None,
            uid => Some(uid == own),
        };
        User { uid, pid, has_spares }
    }

    /// The user id.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// The same user, looked up: taking a share then reads no file, and may be done under a lock.
    #[must_use]
    pub fn looked_up(self) -> User {
        User { has_spares: Some(self.has_spares()), ..self }
    }

    /// Whether there are no spares for this user.
    #[must_use]
    pub fn is_ordinary(self) -> bool {
        !self.has_spares()
    }

    fn has_spares(self) -> bool {
        self.has_spares.unwrap_or_else(|| is_superuser(self.pid))
    }
}

/// Whether a thread of uid 0 has the capabilities of root.
fn is_superuser(pid: u32) -> bool {
    static LAST: Mutex<Option<(u32, bool, Instant)>> = Mutex::new(None);
    if pid == 0 {
        return false;
    }
    let last = *LAST.lock();
    if let Some((_, is, _)) = last.filter(|last| last.0 == pid && last.2.elapsed() < BELIEVED) {
        return is;
    }
    // Who has it may open files beyond the system's `file-max`, too.
    let is = capabilities::of_thread(pid, 0).contains(CapabilitySet::SYS_ADMIN);
    *LAST.lock() = Some((pid, is, Instant::now()));
    is
}

/// Why there is no share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The user has as much as one may have.
    Own,
    /// The users together have as much as all may have.
    All,
}

impl Full {
    /// What open(2) calls it.
    #[must_use]
    pub fn of_files(self) -> Errno {
        match self {
            Full::Own => Errno::EMFILE,
            Full::All => Errno::ENFILE,
        }
    }
}

/// Descriptors that this process may have open.
#[must_use]
pub fn descriptor_limit() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current;
    limit.unwrap_or(u64::MAX).min(1 << 20) as usize
}

/// What there is of one thing, and who has how much of it.
#[derive(Debug)]
pub struct Shares {
    each: usize,
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by: HashMap<u32, usize>,
}

impl Shares {
    /// One user may have `each`, all together `all`.
    #[must_use]
    pub fn new(each: usize, all: usize) -> Arc<Shares> {
        Arc::new(Shares { each, all, taken: Mutex::default() })
    }

    /// Takes `count` for a user, until the result is dropped.
    ///
    /// # Errors
    /// What the bound is that leaves no more.
    pub fn take(self: &Arc<Self>, user: User, count: usize) -> Result<Share, Full> {
        if user == User::OWN {
            return Ok(Share::uncounted(user));
        }
        match self.count(user.uid, count) {
            Ok(()) => Ok(Share { of: Some(self.clone()), user, count }),
            // What root and the owner have of the spares is nobody's share.
            Err(_) if user.has_spares() => Ok(Share::uncounted(user)),
            Err(full) => Err(full),
        }
    }

    fn count(&self, uid: u32, count: usize) -> Result<(), Full> {
        let mut taken = self.taken.lock();
        let left = self.all.saturating_sub(taken.total);
        let mine = taken.by.get(&uid).copied().unwrap_or(0) + count;
        if mine > self.each.min(left) {
            return Err(if mine > count { Full::Own } else { Full::All });
        }
        taken.total += count;
        taken.by.insert(uid, mine);
        Ok(())
    }

    fn give_back(&self, uid: u32, count: usize) {
        let mut taken = self.taken.lock();
        taken.total -= count;
        if let Some(mine) = taken.by.get_mut(&uid) {
            *mine -= count;
            if *mine == 0 {
                taken.by.remove(&uid);
            }
        }
    }

    /// How much a user has.
    #[must_use]
    pub fn of(&self, uid: u32) -> usize {
        self.taken.lock().by.get(&uid).copied().unwrap_or(0)
    }
}

/// What a user has taken; given back when it is dropped.
#[derive(Debug)]
#[must_use = "given back when it is dropped"]
pub struct Share {
    /// `None` for one that is not counted.
    of: Option<Arc<Shares>>,
    user: User,
    count: usize,
}

impl Share {
    /// One that nothing is taken for.
    pub fn uncounted(user: User) -> Share {
        Share { of: None, user, count: 0 }
    }

    /// Whether anything was taken for it.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.of.is_some()
    }

    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> User {
        self.user
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(shares) = &self.of {
            shares.give_back(self.user.uid, self.count);
        }
    }
}

/// The users that have one thing open, by as many handles as they like: it takes a share of each of them once.
#[derive(Debug, Default)]
pub struct Openers(smallvec::SmallVec<[(Share, u32); 1]>);

impl Openers {
    /// One handle more of a user who has some already; false when there is none.
    pub fn join(&mut self, user: User) -> bool {
        let found = self.0.iter_mut().find(|(share, _)| share.user.uid == user.uid);
        found.map(|(_, handles)| *handles += 1).is_some()
    }

    /// The first handle of a user, or one more: then the share is given back.
    pub fn enter(&mut self, share: Share) {
        if !self.join(share.user) {
            self.0.push((share, 1));
        }
    }

    /// One handle less. With the user's last one, returns the share.
    pub fn leave(&mut self, user: User) -> Option<Share> {
        let at = self.0.iter().position(|(share, _)| share.user.uid == user.uid)?;
        self.0[at].1 -= 1;
        (self.0[at].1 == 0).then(|| self.0.swap_remove(at).0)
    }

    /// Whether nobody has it open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything of a mount that has shares. The table in swapfs(7), LIMITS, says what one beyond gets.
#[derive(Debug)]
pub struct Bounds {
    /// Descriptors of open files (two each with a ledger) and directories (one), whatever number of handles they have.
    pub descriptors: Arc<Shares>,
    /// Open handles of files and directories.
    pub handles: Arc<Shares>,
    /// Removed files and directories that somebody still refers to, and that have no other way back to them.
    pub nameless: Arc<Shares>,
    /// Directories of which the names that were read last are remembered.
    pub listings: Arc<Shares>,
    /// Open files of the control folder.
    pub snapshots: Arc<Shares>,
    /// Those who wait in `user.swap.wait`.
    pub waiters: Arc<Shares>,
    /// Blocks that stay because they were swapped in on request.
    pub kept: Arc<Shares>,
    /// Writes that wait for room, with their bytes.
    pub parked: Arc<Shares>,
    /// Those of them that wait in memory of the pool's kind.
    pub intakes: Arc<Shares>,
    /// Requests on directories under way.
    pub walks: Arc<Shares>,
}

impl Bounds {
    /// The bounds of a daemon that may have so many descriptors, and a pool of so many buffers.
    #[must_use]
    pub fn new(descriptors: usize, buffers: usize) -> Arc<Bounds> {
        Arc::new(Bounds {
            descriptors: Shares::new(descriptors / 4, descriptors / 2),
            handles: Shares::new(1 << 16, 1 << 17),
            nameless: Shares::new(descriptors / 32, descriptors / 16),
            listings: Shares::new(16, 64),
            snapshots: Shares::new(32, 128),
            waiters: Shares::new(1024, 4096),
            kept: Shares::new(buffers * 3 / 8, buffers * 3 / 4),
            parked: Shares::new(512, 2048),
            intakes: Shares::new(24, 48),
            walks: Shares::new(2, 8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordinary(uid: u32) -> User {
        User { uid, pid: 0, has_spares: Some(false) }
    }

    fn take_all(shares: &Arc<Shares>, user: User) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(user, 1).ok()).take(1000).collect()
    }

    #[test]
    fn whoever_comes_later_finds_something() {
        let shares = Shares::new(60, 100);
        let taken: Vec<Vec<Share>> = (1..=4).map(|uid| take_all(&shares, ordinary(uid))).collect();
        let counts: Vec<usize> = taken.iter().map(Vec::len).collect();
        assert_eq!(counts, [50, 25, 13, 6]);
        assert_eq!(shares.take(ordinary(1), 1).err(), Some(Full::Own));
        assert_eq!(shares.take(ordinary(9), 8).err(), Some(Full::All));
        assert_eq!(take_all(&Shares::new(30, 100), ordinary(1)).len(), 30);
        drop(taken);
        assert_eq!(shares.of(1), 0);
        assert_eq!(take_all(&shares, ordinary(1)).len(), 50, "all is given back");
    }

    #[test]
    fn spares_are_open_to_root_with_capabilities_and_to_the_owner() {
        let shares = Shares::new(2, 3);
        let _taken = take_all(&shares, ordinary(1));
        let own = rustix::process::geteuid().as_raw();
        let root = User::new(0, std::process::id());
        let has_all = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if own == 0 && has_all {
            assert_eq!(take_all(&shares, root).len(), 1000);
        }
        if own != 0 {
            assert_eq!(take_all(&shares, User::new(own, 0)).len(), 1000);
        }
        // Root that cannot be seen from here has an ordinary share.
        assert_eq!(take_all(&shares, User::new(0, 0)).len(), 1);
        assert_eq!(take_all(&shares, User::OWN).len(), 1000);
    }

    #[test]
    fn many_handles_take_one_share() {
        let shares = Shares::new(10, 100);
        let mut openers = Openers::default();
        for uid in [1, 2, 1, 1] {
            openers.enter(shares.take(ordinary(uid), 2).unwrap());
        }
        assert_eq!((shares.of(1), shares.of(2)), (2, 2));
        assert!(openers.join(ordinary(2)) && !openers.join(ordinary(3)));
        assert!(openers.leave(ordinary(1)).is_none() && openers.leave(ordinary(1)).is_none());
        assert!(openers.leave(ordinary(1)).is_some());
        assert_eq!(shares.of(1), 0);
        assert!(openers.leave(ordinary(1)).is_none() && !openers.is_empty());
        drop(openers);
        assert_eq!(shares.of(2), 0);
    }
}
