//! What the adapter keeps between requests, and the answers that many of them share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use fuser::{
    FileHandle, Generation, INodeNo, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyXattr,
    Request,
};

use super::attr::{TTL, errno, file_attr};
use super::session::Agreed;
use crate::error::{Errno, Result};
use crate::fs::{Caller, Directory, Entry};
use crate::shares::{Share, User};
use crate::volume::{Asker, Volume};

/// What an open handle that is no partition's stands for.
#[derive(Debug, Clone)]
pub(super) enum Opened {
    Directory(Arc<Directory>),
    Control(Arc<Snapshot>),
    /// A reader of the access log.
    AccessLog(u64),
}

/// The handle of the control folder itself, which needs nothing kept for it. All others are greater.
pub(super) const CONTROL_FOLDER_HANDLE: FileHandle = FileHandle(0);

/// What a file of the control folder held when it was opened.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) content: Box<str>,
    pub(super) _share: Share,
}

/// The filesystem as fuser calls it.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) volume: Arc<Volume>,
    pub(super) opened: DashMap<u64, Opened>,
    next_handle: AtomicU64,
    pub(super) agreed: Arc<Agreed>,
}

pub(super) fn caller(
    volume: &Volume, req: &Request, parent: INodeNo, umask: u32, mode: u32,
) -> Caller {
    let keeps_set_group_id = keeps_set_group_id(volume, parent.0, mode, asker(req));
    Caller { uid: req.uid(), gid: req.gid(), umask, keeps_set_group_id }
}

/// Whether a file that is made with this mode in a folder keeps its set-group-id bit if it gets the folder's group. Looks
/// at the asker only when there is such a bit.
pub(super) fn keeps_set_group_id(volume: &Volume, parent: u64, mode: u32, asker: Asker) -> bool {
    mode & libc::S_ISGID != 0 && volume.keeps_set_group_id(asker, parent)
}

pub(super) fn user(req: &Request) -> User {
    User::new(req.uid(), req.pid())
}

pub(super) fn asker(req: &Request) -> Asker {
    Asker { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

pub(super) fn answer_entry(result: Result<Entry>, reply: ReplyEntry) {
    match result {
        Ok(entry) => {
            reply.entry(&TTL, &file_attr(&entry.attributes), Generation(entry.generation));
        }
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn answer_empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// Answers with a value, its length (`size` 0), or ERANGE.
pub(super) fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(errno(Errno::ERANGE));
    } else {
        reply.data(value);
    }
}

impl Adapter {
    pub(super) fn new(volume: Arc<Volume>, agreed: Arc<Agreed>) -> Adapter {
        let (opened, next_handle) = (DashMap::new(), AtomicU64::new(1));
        Adapter { volume, opened, next_handle, agreed }
    }

    pub(super) fn keep(&self, opened: Opened) -> u64 {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.opened.insert(handle, opened);
        handle
    }

    pub(super) fn directory(&self, fh: FileHandle) -> Result<Arc<Directory>> {
        match self.opened.get(&fh.0).as_deref() {
            Some(Opened::Directory(directory)) => Ok(directory.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Fills a listing with names, ids and attributes; every entry that fits has been looked up once.
    pub(super) fn list_with_attributes(
        &self, ino: INodeNo, fh: FileHandle, offset: u64, reply: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        let volume = &self.volume;
        self.directory(fh).and_then(|directory| {
            directory.read(offset, |listed| {
                let dots = listed.name == "." || listed.name == "..";
                // The kernel takes no lookup for the dots; a name that is gone again is left out.
                let found = if dots {
                    volume.attributes(ino.0).map(|attributes| (attributes, 0))
                } else {
                    volume
                        .lookup(ino.0, listed.name)
                        .map(|entry| (entry.attributes, entry.generation))
                };
                let Ok((attributes, generation)) = found else {
                    return true;
                };
                let (mut attr, generation) = (file_attr(&attributes), Generation(generation));
                let id = INodeNo(if dots { listed.ino } else { attributes.ino });
                // This is the number that the listing shows.
                attr.ino = id;
                let full = reply.add(id, listed.next_offset, listed.name, &TTL, &attr, generation);
                if full && !dots {
                    volume.forget(attributes.ino, 1);
                }
                !full
            })
        })
    }
}
