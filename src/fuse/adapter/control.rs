//! The control folder's listing and its files.

use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyOpen,
};

use super::super::attr::{TTL, file_attr, file_type};
use crate::fs::{FileKind, ROOT_ID};
use crate::volume::{ControlNode, Volume};

/// Answers OPEN of a control file.
pub(super) fn open(handle: u64, node: ControlNode, reply: ReplyOpen) {
    let stream = match node {
        // The access log has no positions, and two reads of it do not wait for each other.
        ControlNode::AccessLog => FopenFlags::FOPEN_STREAM,
        _ => FopenFlags::empty(),
    };
    reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO | stream);
}

pub(super) fn read(content: &str, offset: u64, size: u32, reply: ReplyData) {
    let bytes = content.as_bytes();
    let start = (offset as usize).min(bytes.len());
    let end = (start + size as usize).min(bytes.len());
    reply.data(&bytes[start..end]);
}

/// The entries of the folder: offset of the next one, id, kind, name.
fn entries() -> impl Iterator<Item = (u64, u64, FileKind, &'static str)> {
    let dots = [
        (ControlNode::Folder.id(), FileKind::Directory, "."),
        (ROOT_ID, FileKind::Directory, ".."),
    ];
    let files = ControlNode::FILES.map(|node| (node.id(), FileKind::Regular, node.name()));
    dots.into_iter()
        .chain(files)
        .enumerate()
        .map(|(i, (id, kind, name))| (i as u64 + 1, id, kind, name))
}

pub(super) fn readdir(offset: u64, mut reply: ReplyDirectory) {
    for (next, id, kind, name) in entries().filter(|entry| entry.0 > offset) {
        if reply.add(INodeNo(id), next, file_type(kind), name) {
            break;
        }
    }
    reply.ok();
}

pub(super) fn readdirplus(volume: &Volume, offset: u64, mut reply: ReplyDirectoryPlus) {
    for (next, id, _, name) in entries().filter(|entry| entry.0 > offset) {
        let Ok(attributes) = volume.attributes(id) else { continue };
        let mut attr = file_attr(&attributes);
        // The listing shows this number.
        attr.ino = INodeNo(id);
        if reply.add(INodeNo(id), next, name, &TTL, &attr, Generation(0)) {
            break;
        }
    }
    reply.ok();
}
