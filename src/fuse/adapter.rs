//! The adapter to fuser: answers the rare requests through its trait, see [`crate::opcode`].
//!
//! OPEN, READ, FLUSH, RELEASE and FSYNC here are about the control folder's files. The front answers them for partitions.

mod control;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use fuser::{
    FileHandle, Filesystem, Generation, INodeNo, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    RenameFlags, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, Request,
};

use super::attr::{TTL, errno, file_attr, file_type};
use super::session::{self, Negotiated};
use crate::engine::HandleId;
use crate::error::{Errno, Result};
use crate::fs::{Caller, Directory, Entry, FileKind, ROOT_ID, RenameKind};
use crate::shares::{Share, User};
use crate::volume::{Asker, ControlNode, Volume, outcome};

/// What a handle stands for that is not a partition's.
#[derive(Debug, Clone)]
enum Opened {
    Directory(Arc<Directory>),
    Control(Arc<Snapshot>),
    /// A reader of the access log.
    AccessLog(u64),
}

/// The handle of the control folder itself, for which nothing is kept. All other handles are greater.
const CONTROL_FOLDER_HANDLE: FileHandle = FileHandle(0);

/// The content of a control file as it was when the file was opened.
#[derive(Debug)]
struct Snapshot {
    content: Box<str>,
    _share: Share,
}

/// The filesystem as fuser calls it.
#[derive(Debug)]
pub(super) struct Adapter {
    volume: Arc<Volume>,
    opened: DashMap<u64, Opened>,
    next_handle: AtomicU64,
    negotiated: Arc<Negotiated>,
}

impl Adapter {
    pub(super) fn new(volume: Arc<Volume>, negotiated: Arc<Negotiated>) -> Adapter {
        let (opened, next_handle) = (DashMap::new(), AtomicU64::new(1));
        Adapter { volume, opened, next_handle, negotiated }
    }

    fn caller(&self, req: &Request, parent: INodeNo, umask: u32, mode: u32) -> Caller {
        let keeps_set_group_id = self.volume.keeps_set_group_id(asker(req), parent.0, mode);
        Caller { uid: req.uid(), gid: req.gid(), umask, keeps_set_group_id }
    }

    fn keep(&self, opened: Opened) -> u64 {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.opened.insert(handle, opened);
        handle
    }

    fn directory(&self, fh: FileHandle) -> Result<Arc<Directory>> {
        match self.opened.get(&fh.0).as_deref() {
            Some(Opened::Directory(directory)) => Ok(directory.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Fills a listing with names, ids and attributes. Each entry that fits counts as looked up once.
    fn list_with_attributes(
        &self, ino: INodeNo, fh: FileHandle, offset: u64, reply: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        let volume = &self.volume;
        self.directory(fh).and_then(|directory| {
            directory.read(offset, |listed| {
                let dots = listed.name == "." || listed.name == "..";
                // The kernel counts no lookup of the dots. A name that is gone again is left out.
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
                // The listing shows this number.
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

fn user(req: &Request) -> User {
    User::new(req.uid(), req.pid())
}

fn asker(req: &Request) -> Asker {
    Asker { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn answer_entry(result: Result<Entry>, reply: ReplyEntry) {
    match result {
        Ok(entry) => {
            reply.entry(&TTL, &file_attr(&entry.attributes), Generation(entry.generation));
        }
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// A closure that answers with success or an error.
fn when_done(reply: ReplyEmpty) -> crate::engine::Reply {
    Box::new(move |result| answer_empty(result, reply))
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        session::negotiate(config, &self.negotiated);
        Ok(())
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.volume.tree.readlink(ino.0) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = FileKind::of_mode(mode) else {
            return reply.error(errno(Errno::EINVAL));
        };
        let caller = self.caller(req, parent, umask, mode);
        let made = self.volume.mknod(parent.0, name, &caller, kind, mode & 0o7777, rdev);
        answer_entry(made, reply);
    }

    fn mkdir(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = self.caller(req, parent, umask, 0);
        let made = self.volume.mkdir(parent.0, name, &caller, mode & 0o7777);
        answer_entry(made, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.volume.rmdir(user(req), parent.0, name), reply);
    }

    fn symlink(
        &self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let caller = self.caller(req, parent, 0, 0);
        answer_entry(self.volume.symlink(parent.0, link_name, &caller, target.as_os_str()), reply);
    }

    fn rename(
        &self, req: &Request, parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        let moved = RenameKind::from_flags(flags.bits()).and_then(|kind| {
            self.volume.rename(user(req), (parent.0, name), (newparent.0, newname), kind)
        });
        answer_empty(moved, reply);
    }

    fn link(
        &self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry,
    ) {
        answer_entry(self.volume.link(ino.0, newparent.0, newname), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(node) = ControlNode::of_id(ino.0) else {
            return reply.error(fuser::Errno::EIO);
        };
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(errno(Errno::EACCES));
        }
        if node.is_private() && !asker(req).may_open_private() {
            return reply.error(errno(Errno::EACCES));
        }
        let opened = match node {
            ControlNode::AccessLog => match self.volume.watch.access.open() {
                Some(reader) => Opened::AccessLog(reader),
                None => return reply.error(errno(Errno::EBUSY)),
            },
            _ => match self.volume.engine.bounds().snapshots.take(user(req), 1) {
                Ok(share) => {
                    let content = self.volume.control_content(node, asker(req)).into();
                    Opened::Control(Arc::new(Snapshot { content, _share: share }))
                }
                Err(full) => return reply.error(errno(full.of_files())),
            },
        };
        control::open(self.keep(opened), node, reply);
    }

    fn read(
        &self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, size: u32,
        _flags: OpenFlags, _lock_owner: Option<LockOwner>, reply: ReplyData,
    ) {
        let opened = self.opened.get(&fh.0).map(|opened| opened.clone());
        match opened {
            Some(Opened::Control(snapshot)) => {
                control::read(&snapshot.content, offset, size, reply);
            }
            Some(Opened::AccessLog(reader)) => {
                let answer = Box::new(move |bytes: &[u8]| reply.data(bytes));
                self.volume.watch.access.read(reader, size as usize, answer);
            }
            _ => reply.error(errno(Errno::EBADF)),
        }
    }

    fn flush(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags,
        _lock_owner: Option<LockOwner>, _flush: bool, reply: ReplyEmpty,
    ) {
        if let Some((_, Opened::AccessLog(reader))) = self.opened.remove(&fh.0) {
            self.volume.watch.access.close(reader);
        }
        reply.ok();
    }

    fn fsync(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ControlNode::of_id(ino.0).is_some() {
            return reply.opened(CONTROL_FOLDER_HANDLE, fuser::FopenFlags::empty());
        }
        match self.volume.tree.open_dir(user(req), ino.0) {
            Ok(directory) => {
                let handle = self.keep(Opened::Directory(Arc::new(directory)));
                reply.opened(FileHandle(handle), fuser::FopenFlags::empty());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if fh == CONTROL_FOLDER_HANDLE {
            return control::readdir(offset, reply);
        }
        let listed = self.directory(fh).and_then(|directory| {
            directory.read(offset, |entry| {
                !reply.add(INodeNo(entry.ino), entry.next_offset, file_type(entry.kind), entry.name)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        if fh == CONTROL_FOLDER_HANDLE {
            return control::readdirplus(&self.volume, offset, reply);
        }
        let listed = self.list_with_attributes(ino, fh, offset, &mut reply);
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(
        &self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty,
    ) {
        self.opened.remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty,
    ) {
        let answer = when_done(reply);
        if ino.0 == ROOT_ID {
            return self.volume.synchronize(Box::new(move |failed| answer(outcome(&failed))));
        }
        match self.directory(fh) {
            Ok(directory) => {
                self.volume.engine.run_blocking(Box::new(move || answer(directory.synchronize())));
            }
            Err(_) if fh == CONTROL_FOLDER_HANDLE => answer(Ok(())),
            Err(error) => answer(Err(error)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.volume.tree.space() {
            Ok(space) => reply.statfs(
                space.blocks,
                space.blocks_free,
                space.blocks_available,
                space.files,
                space.files_free,
                space.block_size,
                space.name_bytes_max,
                space.fragment_size,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let reply = when_done(reply);
        // For fallocate the kernel leaves dropping the set-id bits to the filesystem, and has no flag that says so.
        if let Err(errno) = self.volume.drop_privileges_unless_exempt(asker(req), ino.0) {
            return reply(Err(errno));
        }
        self.volume.engine.allocate(HandleId(fh.0), mode, offset, length, reply);
    }

    fn lseek(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        // A control file's handle means nothing to the engine, or another file.
        if ControlNode::of_id(ino.0).is_some() {
            return reply.error(errno(Errno::EINVAL));
        }
        let (volume, engine) = (self.volume.clone(), self.volume.engine.clone());
        // Seeking in the backing file may wait for its filesystem's lock.
        engine.run_blocking(Box::new(move || {
            let found = match (u64::try_from(offset), whence) {
                (Ok(offset), libc::SEEK_DATA) => volume.engine.seek(HandleId(fh.0), offset, false),
                (Ok(offset), libc::SEEK_HOLE) => volume.engine.seek(HandleId(fh.0), offset, true),
                (Err(_), libc::SEEK_DATA | libc::SEEK_HOLE) => Err(Errno::ENXIO),
                _ => Err(Errno::EINVAL),
            };
            match found {
                Ok(offset) => reply.offset(offset as i64),
                Err(error) => reply.error(errno(error)),
            }
        }));
    }
}
