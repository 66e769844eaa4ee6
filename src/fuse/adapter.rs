//! fuser's trait, request by request: a few lines of decoding, a call and a reply each.
//!
//! Only rare requests get here; see [`crate::opcode`]. OPEN, READ, FLUSH, RELEASE and FSYNC are about the control
//! folder's files: partitions are the front's.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use fuser::{
    FileHandle, Filesystem, INodeNo, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use super::attr::{errno, file_type};
use super::handles::{
    Adapter, CONTROL_FOLDER_HANDLE, Opened, Snapshot, answer_empty, answer_entry, answer_xattr,
    asker, caller, user,
};
use super::{control, data, session};
use crate::error::Errno;
use crate::fs::{FileKind, ROOT_ID, RenameKind};
use crate::volume::{ControlNode, outcome};

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        session::negotiate(config, &self.agreed);
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
        let caller = caller(&self.volume, req, parent, umask, mode);
        let made = self.volume.mknod(parent.0, name, &caller, kind, mode & 0o7777, rdev);
        answer_entry(made, reply);
    }

    fn mkdir(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = caller(&self.volume, req, parent, umask, 0);
        let made = self.volume.mkdir(parent.0, name, &caller, mode & 0o7777);
        answer_entry(made, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.volume.rmdir(user(req), parent.0, name), reply);
    }

    fn symlink(
        &self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let caller = caller(&self.volume, req, parent, 0, 0);
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
        let answer = data::empty(reply);
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

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.volume.list_xattrs(ino.0, asker(req)) {
            Ok(names) => answer_xattr(&names, size, reply),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.volume.remove_xattr(ino.0, name), reply);
    }

    fn fallocate(
        &self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let reply = data::empty(reply);
        // The kernel leaves this to the filesystem here, without a word of its own.
        if let Err(errno) = self.volume.drop_privileges_unless_exempt(asker(req), ino.0) {
            return reply(Err(errno));
        }
        self.volume.engine.allocate(fh.0, mode, offset, length, reply);
    }

    fn lseek(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        // The handle is none of the engine's.
        if ControlNode::of_id(ino.0).is_some() {
            return reply.error(errno(Errno::EINVAL));
        }
        data::lseek(&self.volume, fh.0, offset, whence, reply);
    }
}
