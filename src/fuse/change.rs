//! The frequent requests that change names and attributes: CREATE, UNLINK, SETATTR.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::IntoBytes;

use super::abi::{CreateIn, InHeader, OPEN_KILL_SUIDGID, OpenOut, SetAttrIn, fattr};
use super::answers::{decode, name};
use super::device::Reply;
use super::front::Front;
use super::handles::keeps_set_group_id;
use super::{kernel_attr, session};
use crate::error::Result;
use crate::fs::{Attributes, Caller, Entry, TimeChange};
use crate::volume::{Asker, Changes, Creation, Volume};

impl Front {
    pub(super) fn unlink(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let parent = header.nodeid;
        let removed =
            name(arguments).and_then(|name| self.volume.unlink(header.user(), parent, name));
        match removed {
            Ok(()) => reply.empty(),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn create(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let created = decode::<CreateIn>(arguments).and_then(|(create, rest)| {
            let name = name(rest)?;
            let flags = create.flags as i32;
            let exclusive = flags & libc::O_EXCL != 0;
            let read = flags & libc::O_ACCMODE != libc::O_WRONLY;
            let (caller, asker) = (creator(&self.volume, header, &create), header.asker());
            let how = Creation { mode: create.mode & 0o7777, exclusive, read };
            let made = self.volume.create(header.user(), header.nodeid, name, &caller, how)?;
            let drops = create.open_flags & OPEN_KILL_SUIDGID != 0;
            Ok((flags, made, drops.then_some(asker)))
        });
        let (flags, (mut entry, handle, is_new), drops) = match created {
            Ok(created) => created,
            Err(errno) => return reply.error(errno),
        };
        let volume = self.volume.clone();
        let finish = move |result: Result<()>| {
            let attributes = result.and_then(|()| {
                if is_new { Ok(entry.attributes) } else { volume.attributes(entry.id) }
            });
            let delivered = match attributes {
                Ok(attributes) => {
                    entry.attributes = attributes;
                    answer_created(&entry, handle, flags, reply)
                }
                Err(errno) => {
                    reply.error(errno);
                    false
                }
            };
            if !delivered {
                // The kernel knows neither the handle nor the lookup, and will give up neither.
                volume.engine.release(handle);
                volume.forget(entry.id, 1);
            }
        };
        // The kernel believed the name to be new; somebody else was faster.
        if !is_new && flags & libc::O_TRUNC != 0 {
            match drops.map_or(Ok(()), |asker| self.volume.drop_privileges(asker, entry.id)) {
                Ok(()) => self.volume.engine.truncate(handle, 0, Box::new(finish)),
                Err(errno) => finish(Err(errno)),
            }
        } else {
            finish(Ok(()));
        }
    }

    pub(super) fn set_attributes(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let (asked, _) = match decode::<SetAttrIn>(arguments) {
            Ok(asked) => asked,
            Err(errno) => return reply.error(errno),
        };
        let handle = (asked.valid & fattr::FH != 0).then_some(asked.fh);
        let answer = Box::new(move |result: Result<Attributes>| match result {
            Ok(attributes) => {
                reply.value(&kernel_attr::attributes(&attributes));
            }
            Err(errno) => reply.error(errno),
        });
        self.volume.change(
            header.user(),
            header.nodeid,
            handle,
            changes(&asked, header.asker()),
            answer,
        );
    }
}

/// On whose behalf a file is made.
pub(super) fn creator(volume: &Volume, header: &InHeader, create: &CreateIn) -> Caller {
    let mode = create.mode & 0o7777;
    Caller {
        uid: header.uid,
        gid: header.gid,
        umask: create.umask,
        keeps_set_group_id: keeps_set_group_id(volume, header.nodeid, mode, header.asker()),
    }
}

pub(super) fn answer_created(entry: &Entry, handle: u64, flags: i32, reply: Reply) -> bool {
    let open_flags = session::open_flags(flags).bits();
    let open = OpenOut { fh: handle, open_flags, backing_id: 0 };
    reply.values(&[kernel_attr::entry(entry).as_bytes(), open.as_bytes()])
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
