//! Notes for the access log: who asks for what, decoded from the request itself while somebody reads the log.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::FromBytes;

use super::abi::{InHeader, ReadIn, SetAttrIn, WriteIn, fattr};
use super::channel::HEADER_BYTES;
use super::front::Front;
use crate::metrics::Note;
use crate::opcode::Opcode;
use crate::paths::shortened;

/// Bytes of a request that are decoded, at most: two names of 255 bytes and the structure before them.
const BYTES_MAX: usize = 1024;

/// Describes a request whose bytes are `headers` and then `rest`.
pub(super) fn note(
    front: &Front, header: &InHeader, headers: &[u8; HEADER_BYTES], rest: &[u8],
) -> Note {
    let own = size_of::<InHeader>()..(header.len as usize).min(HEADER_BYTES);
    let mut arguments = headers.get(own).unwrap_or_default().to_vec();
    arguments.extend_from_slice(&rest[..rest.len().min(BYTES_MAX)]);
    let arguments = text(front, Opcode::of(header.opcode), header.nodeid, &arguments);
    Note { uid: header.uid, gid: header.gid, pid: header.pid, arguments }
}

/// A path in quotes, with unprintable bytes escaped.
fn quoted(path: &OsStr) -> String {
    format!("\"{}\"", path.as_bytes().escape_ascii())
}

/// The names that follow a structure of `skip` bytes, each ended by a NUL.
fn names(arguments: &[u8], skip: usize) -> impl Iterator<Item = &OsStr> {
    let names = arguments.get(skip..).unwrap_or_default();
    names.split(|byte| *byte == 0).map(OsStr::from_bytes)
}

fn number(arguments: &[u8], at: usize) -> u64 {
    let bytes = arguments.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

fn word(arguments: &[u8], at: usize) -> u32 {
    let bytes = arguments.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

/// Describes the arguments of a request about node `id`: its path, or that of a name in it, and the numbers that matter.
fn text(front: &Front, opcode: Opcode, id: u64, arguments: &[u8]) -> String {
    let volume = &front.volume;
    let path = |name: Option<&OsStr>| {
        let mut path = volume.tree.path_of(id);
        if let Some(name) = name {
            path.push(name);
        }
        quoted(shortened(&path).as_os_str())
    };
    let child = |skip| path(Some(names(arguments, skip).next().unwrap_or_default()));
    let with_name = |skip| {
        let name = names(arguments, skip).next().unwrap_or_default();
        format!("{},{}", path(None), quoted(name))
    };
    // The path of a renamed file, and the path it gets.
    let moved = |skip| {
        let target = volume.tree.path_of(number(arguments, 0));
        let target = target.join(names(arguments, skip).nth(1).unwrap_or_default());
        format!("{},{}", child(skip), quoted(shortened(&target).as_os_str()))
    };
    match opcode {
        Opcode::Lookup | Opcode::Unlink | Opcode::RmDir => child(0),
        Opcode::SetAttr => format!("{}{}", path(None), changes(arguments)),
        Opcode::Symlink => {
            let target = names(arguments, 0).nth(1).unwrap_or_default();
            format!("{},{}", child(0), quoted(target))
        }
        Opcode::MkNod => format!("{},{:#o}", child(16), word(arguments, 0)),
        Opcode::MkDir => format!("{},{:#o}", child(8), word(arguments, 0)),
        Opcode::Rename => moved(8),
        Opcode::Rename2 => moved(16),
        Opcode::Link => {
            let source = volume.tree.path_of(number(arguments, 0));
            format!("{},{}", quoted(shortened(&source).as_os_str()), child(8))
        }
        Opcode::Open => format!("{},{:#x}", path(None), word(arguments, 0)),
        Opcode::Read => match ReadIn::read_from_prefix(arguments) {
            Ok((read, _)) => format!("{},{},{}", path(None), read.size, read.offset),
            Err(_) => path(None),
        },
        Opcode::Write => match WriteIn::read_from_prefix(arguments) {
            Ok((write, _)) => format!("{},{},{}", path(None), write.size, write.offset),
            Err(_) => path(None),
        },
        Opcode::SetXattr => with_name(front.xattr_head_bytes()),
        Opcode::GetXattr => with_name(8),
        Opcode::RemoveXattr => with_name(0),
        Opcode::Create => {
            format!("{},{:#x},{:#o}", child(16), word(arguments, 0), word(arguments, 4))
        }
        Opcode::TmpFile => {
            format!("{},{:#x},{:#o}", path(None), word(arguments, 0), word(arguments, 4))
        }
        Opcode::Fallocate => {
            let (offset, length) = (number(arguments, 8), number(arguments, 16));
            format!("{},{:#x},{length},{offset}", path(None), word(arguments, 24))
        }
        Opcode::Lseek => format!("{},{},{}", path(None), number(arguments, 8), word(arguments, 16)),
        Opcode::StatFs => String::new(),
        Opcode::Forget | Opcode::BatchForget => format!("{id}"),
        _ => path(None),
    }
}

/// Describes what a SETATTR changes.
fn changes(arguments: &[u8]) -> String {
    let Ok((asked, _)) = SetAttrIn::read_from_prefix(arguments) else {
        return String::new();
    };
    let mut text = String::new();
    let mut add = |bit, name: &str, value: String| {
        if asked.valid & bit != 0 {
            text += &format!(",{name}={value}");
        }
    };
    add(fattr::MODE, "mode", format!("{:#o}", asked.mode));
    add(fattr::UID, "uid", asked.uid.to_string());
    add(fattr::GID, "gid", asked.gid.to_string());
    add(fattr::SIZE, "size", asked.size.to_string());
    add(fattr::ATIME, "atime", asked.atime.to_string());
    add(fattr::MTIME, "mtime", asked.mtime.to_string());
    text
}
