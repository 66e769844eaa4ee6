//! `user.swap.request`: text to requests, on partitions, folders and the root.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rights::{Asker, Rights};
use super::walks::{Asked, Pace, Walk};
use super::{Answer, ControlNode, Stale, Volume};
use crate::engine::Request;
use crate::error::{Errno, Result};
use crate::fs::{FileKind, ROOT_ID};
use crate::shares::User;
use crate::units::parse_size;

/// Entries below a folder that are looked at before a swap-in of it is answered.
const PREVIEW_ENTRIES: usize = 2000;

/// How long a request on a folder may go through its partitions before it is answered and goes on alone:
/// the kernel holds the folder's lock until then.
const ANSWER_AFTER: Duration = Duration::from_millis(50);

/// How long is looked before a swap-in of a folder is answered: the kernel holds the folder's lock until then, too.
const LOOK_TIME_MAX: Duration = Duration::from_millis(200);

/// How often, and after which pause each time, a swap-in of a folder tries again to open a partition while too many
/// of the user's are coming in: half a minute in all.
const SWAP_IN_TRIES_MAX: u32 = 3000;
/// See [`SWAP_IN_TRIES_MAX`].
const SWAP_IN_PAUSE: Duration = Duration::from_millis(10);

/// First words of the requests that a partition takes.
pub const PARTITION_REQUESTS: [&str; 5] = ["swap_in", "swap_out", "release", "discard", "reserve"];

/// Those of a folder, the root included.
pub const FOLDER_REQUESTS: [&str; 3] = ["swap_in", "swap_out", "release"];

/// Those of the root alone.
pub const ROOT_REQUESTS: [&str; 3] =
    ["synchronize_writes", "reserve_buffers", "release_reserved_buffers"];

/// Whether the tables above have it. What is in none of them is no request, so that they cannot fall behind.
fn is_known(kind: FileKind, is_root: bool, verb: &str) -> bool {
    match kind {
        FileKind::Regular => PARTITION_REQUESTS.contains(&verb),
        FileKind::Directory => {
            FOLDER_REQUESTS.contains(&verb) || (is_root && ROOT_REQUESTS.contains(&verb))
        }
        _ => false,
    }
}

/// What a request on a folder does with each partition below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Each {
    SwapIn,
    Ask(Request),
}

impl Volume {
    /// Does what the value of `user.swap.request` asks for; the answer does not wait for transfers.
    ///
    /// EINVAL for an unknown request, ENOBUFS for a swap-in larger than the pool less its reservations,
    /// EPERM for reservations by others than the mount's owner; nothing changes then.
    pub fn request(self: &Arc<Self>, id: u64, value: &[u8], asker: Asker, answer: Answer<()>) {
        if let Err(errno) = ControlNode::refuse(id) {
            return answer(Err(errno));
        }
        let text = std::str::from_utf8(value).map(|text| text.trim_end_matches('\0'));
        let Ok(text) = text else {
            return answer(Err(Errno::EINVAL));
        };
        let kind = match self.tree.attributes(id) {
            Ok(attributes) => attributes.kind,
            Err(errno) => return answer(Err(errno)),
        };
        let (verb, operand) = text.split_once(' ').map_or((text, None), |(a, b)| (a, Some(b)));
        if !is_known(kind, id == ROOT_ID, verb) {
            return answer(Err(Errno::EINVAL));
        }
        let user = asker.user();
        // Both change what the file is, as a write and fallocate(2) do.
        let changes = match (verb, operand) {
            ("reserve", Some(size)) => parse_size(size).is_some(),
            ("discard", None) => true,
            _ => false,
        };
        if kind == FileKind::Regular
            && changes
            && let Err(errno) = self.drop_privileges_unless_exempt(asker, id)
        {
            return answer(Err(errno));
        }
        match (kind, verb, operand) {
            (FileKind::Regular, "reserve", Some(size)) => self.reserve(user, id, size, answer),
            (FileKind::Regular, "swap_in", None) => answer(self.swap_in(user, id)),
            (FileKind::Regular, "discard", None) => answer(self.discard(id)),
            (FileKind::Regular, "swap_out", None) => answer(self.ask(id, Request::SwapOut)),
            (FileKind::Regular, "release", None) => answer(self.ask(id, Request::Release)),
            (FileKind::Directory, "synchronize_writes", None) if id == ROOT_ID => {
                self.everything(Request::SwapOut, answer);
            }
            (FileKind::Directory, "release", None) if id == ROOT_ID && asker.owns_mount() => {
                self.everything(Request::Release, answer);
            }
            (FileKind::Directory, "reserve_buffers" | "release_reserved_buffers", _)
                if id == ROOT_ID =>
            {
                answer(self.reservation(verb, operand, asker));
            }
            (FileKind::Directory, "swap_in", None) => self.below(id, Each::SwapIn, asker, answer),
            (FileKind::Directory, "swap_out", None) => {
                self.below(id, Each::Ask(Request::SwapOut), asker, answer);
            }
            (FileKind::Directory, "release", None) => {
                self.below(id, Each::Ask(Request::Release), asker, answer);
            }
            _ => answer(Err(Errno::EINVAL)),
        }
    }

    fn reservation(&self, verb: &str, operand: Option<&str>, asker: Asker) -> Result<()> {
        let count = match (verb, operand) {
            ("reserve_buffers", Some(count)) => Some(count.parse().map_err(|_| Errno::EINVAL)?),
            ("release_reserved_buffers", None) => None,
            _ => return Err(Errno::EINVAL),
        };
        if !asker.owns_mount() {
            return Err(Errno::EPERM);
        }
        match count {
            Some(count) => self.engine.reserve_buffers(count),
            None => {
                self.engine.release_reserved_buffers();
                Ok(())
            }
        }
    }

    fn ask(&self, id: u64, request: Request) -> Result<()> {
        self.engine.request(self.tree.key(id)?, request);
        Ok(())
    }

    /// Drops what only the pool has; then the kernel's pages and attributes of it, from a thread on which
    /// no request waits: the kernel takes the inode's lock for that.
    fn discard(self: &Arc<Self>, id: u64) -> Result<()> {
        let (volume, key) = (self.clone(), self.tree.key(id)?);
        let done = move |_| {
            let engine = volume.engine.clone();
            engine.run_blocking(Box::new(move || {
                volume.invalidate(id, Stale::Everything);
            }));
        };
        self.engine.discard(key, Box::new(done));
        Ok(())
    }

    fn swap_in(&self, user: User, id: u64) -> Result<()> {
        // Neither reading nor writing: no read-ahead of its own, no refusal of lost bytes.
        let handle = self.open(user, id, false, false)?;
        let result = self.engine.swap_in_for(user, handle);
        self.engine.release(handle);
        result
    }

    fn reserve(self: &Arc<Self>, user: User, id: u64, size: &str, answer: Answer<()>) {
        let opened = parse_size(size).ok_or(Errno::EINVAL).and_then(|size| {
            // Asked before: ext4 gives a file all it has before it refuses.
            let space = self.tree.space()?;
            let free = space.blocks_free.saturating_mul(u64::from(space.fragment_size));
            let has = self.tree.attributes(id)?.blocks.saturating_mul(512);
            if size > free.saturating_add(has) {
                return Err(Errno::ENOSPC);
            }
            let handle = self.open(user, id, false, true)?;
            Ok((size, handle))
        });
        match opened {
            Ok((size, handle)) => {
                let engine = self.engine.clone();
                let reply = move |result| {
                    engine.release(handle);
                    answer(result);
                };
                self.engine.reserve_space(handle, size, Box::new(reply));
            }
            Err(errno) => answer(Err(errno)),
        }
    }

    fn everything(self: &Arc<Self>, request: Request, answer: Answer<()>) {
        let engine = self.engine.clone();
        // Until all are asked, who waits for the root is not told that it is idle.
        let asking = engine.asking();
        self.engine.run_blocking(Box::new(move || {
            engine.request_all(request);
            drop(asking);
        }));
        answer(Ok(()));
    }

    /// Asks for all partitions below a folder, on a thread of its own. The answer comes when the first
    /// ones, as many as can be asked at once, have been; only a swap-in looks before whether they can fit.
    fn below(self: &Arc<Self>, id: u64, each: Each, asker: Asker, answer: Answer<()>) {
        let user = asker.user().looked_up();
        let asked = Asked { folder: id, each, member: asker.member() };
        let Some(walk) = self.walks.begin(self.engine.bounds(), user, asked, answer) else {
            return;
        };
        let volume = self.clone();
        let work = move || volume.go_through(&walk, user);
        let spawned = std::thread::Builder::new().name("swap-walk".into()).spawn(work);
        if let Err(error) = spawned {
            // The walk went with the thread's closure, and was answered with EIO.
            log::error!("a request on a folder was not started: {error}");
        }
    }

    fn go_through(self: &Arc<Self>, walk: &Walk, user: User) {
        let Asked { folder: id, each, ref member } = walk.asked;
        let mut pace = Pace::new(user.is_ordinary());
        let rights = Rights::of(member.clone());
        if each == Each::SwapIn && self.exceeds_pool(id, &rights, &mut pace) {
            return walk.answer(Err(Errno::ENOBUFS));
        }
        let _asking = self.engine.asking();
        let started = Instant::now();
        loop {
            self.walk(id, &rights, &mut |partition| {
                if let Some((id, _)) = partition {
                    self.ask_one(user, id, each);
                }
                if started.elapsed() > ANSWER_AFTER {
                    walk.answer(Ok(()));
                }
                pace.step();
                true
            });
            walk.answer(Ok(()));
            if !walk.goes_on() {
                return;
            }
        }
    }

    /// One partition's part of a request on a folder. Gone or refused meanwhile: the others go on, and this one's
    /// status tells.
    fn ask_one(self: &Arc<Self>, user: User, id: u64, each: Each) {
        match each {
            Each::SwapIn => {
                let mut tries = 0;
                // They come in more slowly than they are found: until some have, the user has no descriptors left.
                while matches!(self.swap_in(user, id), Err(Errno::EMFILE | Errno::ENFILE)) {
                    tries += 1;
                    if tries == SWAP_IN_TRIES_MAX {
                        break;
                    }
                    std::thread::sleep(SWAP_IN_PAUSE);
                }
            }
            Each::Ask(request) => {
                let _ = self.ask(id, request);
            }
        }
    }

    fn exceeds_pool(&self, id: u64, rights: &Rights, pace: &mut Pace) -> bool {
        let limit = self.engine.swap_in_bytes_max();
        let (mut bytes, mut entries) = (0_u64, 0);
        let started = Instant::now();
        self.walk(id, rights, &mut |partition| {
            let footprint = partition.map_or(0, |(_, size)| self.engine.footprint(size));
            bytes = bytes.saturating_add(footprint);
            entries += 1;
            pace.step();
            let has_time = started.elapsed() < LOOK_TIME_MAX;
            bytes <= limit && entries < PREVIEW_ENTRIES && has_time
        });
        bytes > limit
    }
}
