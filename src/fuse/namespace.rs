//! Names and attributes: LOOKUP, FORGET, CREATE, TMPFILE, UNLINK, SETATTR.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::IntoBytes;

use super::abi::{
    BatchForgetIn, CreateIn, ForgetIn, ForgetOne, InHeader, OPEN_KILL_SUIDGID, OpenOut, SetAttrIn,
    decode, fattr, name,
};
use super::front::Front;
use super::reply::Reply;
use super::{attr, session};
use crate::engine::HandleId;
use crate::error::Result;
use crate::fs::{Attributes, Caller, Entry, TimeChange};
use crate::opcode::Opcode;
use crate::volume::{Asker, Changes, Creation, Volume};

/// Forgotten inodes that may wait to be closed.
const FORGOTTEN_MAX: usize = 64;

impl Front {
    pub(super) fn lookup(&self, parent: u64, arguments: &[u8], reply: Reply) {
        match name(arguments).and_then(|name| self.volume.lookup(parent, name)) {
            Ok(entry) => {
                if !reply.result(Ok(attr::entry_out(&entry))) {
                    // The kernel has not counted this lookup and will not forget it.
                    self.volume.forget(entry.id, 1);
                }
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Handles FORGET or BATCH_FORGET, which get no answer.
    pub(super) fn forget_all(&self, opcode: Opcode, id: u64, arguments: &[u8]) {
        self.forget(opcode, id, arguments);
        if self.forgotten.lock().len() > FORGOTTEN_MAX {
            self.close_forgotten();
        }
    }

    fn forget(&self, opcode: Opcode, id: u64, arguments: &[u8]) {
        let forget = |id, lookups| {
            let forgotten = self.volume.forget(id, lookups);
            self.forgotten.lock().extend(forgotten);
        };
        if opcode == Opcode::Forget {
            if let Ok((node, _)) = decode::<ForgetIn>(arguments) {
                forget(id, node.lookups);
            }
            return;
        }
        let Ok((batch, mut rest)) = decode::<BatchForgetIn>(arguments) else {
            return;
        };
        for _ in 0..batch.count {
            let Ok((node, others)) = decode::<ForgetOne>(rest) else {
                return;
            };
            forget(node.nodeid, node.lookups);
            rest = others;
        }
    }

    /// Closes forgotten inodes. Called while no request is there, so that none waits for it.
    pub(super) fn close_forgotten(&self) {
        let forgotten = std::mem::take(&mut *self.forgotten.lock());
        drop(forgotten);
    }

    pub(super) fn unlink(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let removed =
            name(arguments).and_then(|name| self.volume.unlink(header.user(), header.nodeid, name));
        reply.done(removed);
    }

    /// On whose behalf a CREATE or TMPFILE makes a file.
    fn creator(&self, header: &InHeader, create: &CreateIn) -> Caller {
        let (asker, mode) = (header.asker(), create.mode);
        Caller {
            uid: header.uid,
            gid: header.gid,
            umask: create.umask,
            keeps_set_group_id: self.volume.keeps_set_group_id(asker, header.nodeid, mode),
        }
    }

    pub(super) fn create(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let created = decode::<CreateIn>(arguments).and_then(|(create, rest)| {
            let (name, caller) = (name(rest)?, self.creator(header, &create));
            let how = creation(&create);
            let made = self.volume.create(header.user(), header.nodeid, name, &caller, how)?;
            let drops = create.open_flags & OPEN_KILL_SUIDGID != 0;
            Ok((create.flags as i32, made, drops.then_some(header.asker())))
        });
        let (flags, (entry, handle, is_new), drops) = match created {
            Ok(created) => created,
            Err(errno) => return reply.error(errno),
        };
        let volume = self.volume.clone();
        let finish = move |result: Result<()>| {
            let attributes = result.and_then(|()| {
                if is_new { Ok(entry.attributes) } else { volume.attributes(entry.id) }
            });
            answer_created(&volume, (entry, handle), attributes, flags, reply);
        };
        // The kernel took the name to be new, and so sends no truncation; somebody else has made the file.
        if !is_new && flags & libc::O_TRUNC != 0 {
            match drops.map_or(Ok(()), |asker| self.volume.drop_privileges(asker, entry.id)) {
                Ok(()) => self.volume.engine.truncate(handle, 0, Box::new(finish)),
                Err(errno) => finish(Err(errno)),
            }
        } else {
            finish(Ok(()));
        }
    }

    /// Answers TMPFILE: makes a file without a name, which linkat(2) may give one.
    pub(super) fn create_unnamed(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let made = decode::<CreateIn>(arguments).and_then(|(create, _)| {
            let caller = self.creator(header, &create);
            let how = creation(&create);
            let made = self.volume.create_unnamed(header.user(), header.nodeid, &caller, how)?;
            Ok((create.flags as i32, made))
        });
        match made {
            Ok((flags, made)) => {
                answer_created(&self.volume, made, Ok(made.0.attributes), flags, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn set_attributes(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let (asked, _) = match decode::<SetAttrIn>(arguments) {
            Ok(asked) => asked,
            Err(errno) => return reply.error(errno),
        };
        let handle = (asked.valid & fattr::FH != 0).then_some(HandleId(asked.fh));
        let answer = Box::new(move |result: Result<Attributes>| {
            reply.result(result.map(|attributes| attr::attr_out(&attributes)));
        });
        let changes = changes(&asked, header.asker());
        self.volume.change(header.user(), header.nodeid, handle, changes, answer);
    }
}

/// How a CREATE or TMPFILE wants its file.
fn creation(create: &CreateIn) -> Creation {
    let flags = create.flags as i32;
    Creation {
        mode: create.mode & 0o7777,
        exclusive: flags & libc::O_EXCL != 0,
        read: flags & libc::O_ACCMODE != libc::O_WRONLY,
    }
}

/// Answers a CREATE or TMPFILE that has made an entry and opened it.
fn answer_created(
    volume: &Volume, (mut entry, handle): (Entry, HandleId), attributes: Result<Attributes>,
    flags: i32, reply: Reply,
) {
    let is_known = match attributes {
        Ok(attributes) => {
            entry.attributes = attributes;
            let open_flags = session::open_flags(flags).bits();
            let open = OpenOut { fh: handle.0, open_flags, backing_id: 0 };
            reply.values(&[attr::entry_out(&entry).as_bytes(), open.as_bytes()])
        }
        Err(errno) => {
            reply.error(errno);
            false
        }
    };
    if !is_known {
        // The kernel knows neither the handle nor the lookup, and will give up neither.
        volume.engine.release(handle);
        volume.forget(entry.id, 1);
    }
}

fn changes(asked: &SetAttrIn, asker: Asker) -> Changes {
    let has = |bit: u32| asked.valid & bit != 0;
    let time = |set, now, seconds, nanoseconds| match (has(set), has(now)) {
        (false, _) => None,
        (true, true) => Some(TimeChange::Now),
        (true, false) => Some(TimeChange::At(time(seconds, nanoseconds))),
    };
    Changes {
        mode: has(fattr::MODE).then_some(asked.mode),
        uid: has(fattr::UID).then_some(asked.uid),
        gid: has(fattr::GID).then_some(asked.gid),
        size: has(fattr::SIZE).then_some(asked.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, asked.atime, asked.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, asked.mtime, asked.mtimensec),
        drop_privileges: has(fattr::KILL_SUIDGID).then_some(asker),
    }
}

/// Seconds since 1970, which may be negative, and the nanoseconds above them.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let time = base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into())));
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_understood() {
        assert_eq!(time(-2, 500_000_000), UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(time(1, 5), UNIX_EPOCH + Duration::new(1, 5));
    }

    #[test]
    fn only_what_is_marked_changes() {
        let asker = Asker { uid: 0, gid: 0, pid: 0 };
        let mut asked: SetAttrIn = zerocopy::FromZeros::new_zeroed();
        (asked.mode, asked.size, asked.mtime) = (0o600, 7, 9);
        assert_eq!(changes(&asked, asker).mode, None);
        asked.valid = fattr::MODE | fattr::MTIME | fattr::ATIME | fattr::ATIME_NOW;
        let found = changes(&asked, asker);
        assert_eq!((found.mode, found.size, found.uid), (Some(0o600), None, None));
        assert_eq!(found.atime, Some(TimeChange::Now));
        assert_eq!(found.mtime, Some(TimeChange::At(UNIX_EPOCH + Duration::from_secs(9))));
    }
}
