//! A mount with partitions that answer requests as swapfs(7), Requests, says, some of them in trouble:
//! one folder `layers` of many, and a few in the root whose names tell what they do.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, ReplyAttr,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyXattr, Request,
};

/// The behaviour of a fake mount that holds partitions; the number in `layers` follows.
pub(crate) const PARTITIONS: &str = "partitions:";

/// Bytes of each.
pub(crate) const SIZE: u64 = 1 << 20;

const LAYERS: u64 = 2;
const FIRST_SPECIAL: u64 = 3;
const FIRST_LAYER: u64 = 100;

/// Partitions of the root: how often `user.swap.wait` says what before a request is done.
const SPECIALS: [(&str, Special); 7] = [
    ("good", Special::Waits(2)),
    // As a partition that a request on a directory has not come to yet.
    ("late", Special::Idles(5)),
    ("slow", Special::Waits(u32::MAX)),
    ("evicted", Special::Idles(u32::MAX)),
    ("broken", Special::Breaks),
    ("noroom", Special::Refuses(Errno::ENOBUFS)),
    ("denied", Special::Refuses(Errno::EACCES)),
];

#[derive(Clone, Copy)]
enum Special {
    Waits(u32),
    Idles(u32),
    Breaks,
    Refuses(Errno),
}

#[derive(Default)]
struct State {
    request: String,
    waits: u32,
}

pub(crate) struct Partitions {
    count: u64,
    states: Mutex<HashMap<u64, State>>,
}

impl Partitions {
    pub(crate) fn new(count: &str) -> Self {
        Self { count: count.parse().unwrap(), states: Mutex::new(HashMap::new()) }
    }

    fn special(ino: u64) -> Special {
        let index = usize::try_from(ino - FIRST_SPECIAL).unwrap();
        SPECIALS.get(index).map_or(Special::Waits(1), |entry| entry.1)
    }

    fn entries(&self, folder: u64) -> Vec<(u64, FileType, String)> {
        if folder == LAYERS {
            let names = (0..self.count).map(|index| format!("p{index:05}"));
            let inos = FIRST_LAYER..;
            let files = inos.zip(names);
            return files.map(|(ino, name)| (ino, FileType::RegularFile, name)).collect();
        }
        let specials = (FIRST_SPECIAL..).zip(SPECIALS);
        let files = specials.map(|(ino, (name, _))| (ino, FileType::RegularFile, name.to_owned()));
        std::iter::once((LAYERS, FileType::Directory, "layers".to_owned())).chain(files).collect()
    }

    fn attributes(ino: u64) -> FileAttr {
        let is_folder = ino <= LAYERS;
        FileAttr {
            ino: INodeNo(ino),
            size: if is_folder { 0 } else { SIZE },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: match is_folder {
                true => FileType::Directory,
                false => FileType::RegularFile,
            },
            perm: if is_folder { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    /// Status, resident and dirty bytes of a partition; `looks` is a read of `user.swap.wait`.
    fn condition(&self, ino: u64, looks: bool) -> (&'static str, u64, u64) {
        let mut states = self.states.lock().unwrap();
        let of_folder = states.get(&LAYERS).map(|state| state.request.clone());
        let state = states.entry(ino).or_default();
        if let (true, true, Some(request)) =
            (ino >= FIRST_LAYER, state.request.is_empty(), of_folder)
        {
            state.request = request;
        }
        state.waits += u32::from(looks);
        let (waiting, done) = match Self::special(ino) {
            Special::Waits(waits) => ("inflight", state.waits > waits),
            Special::Idles(waits) => ("", state.waits > waits),
            Special::Breaks | Special::Refuses(_) => ("", false),
        };
        let (status, resident, dirty) = match (state.request.as_str(), done) {
            ("swap_in", false) | ("" | "release", true) | ("", false) => ("not_available", 0, 0),
            ("swap_in", true) | ("swap_out", true) => ("available", SIZE, 0),
            _ => ("available", SIZE, SIZE),
        };
        let asked = !state.request.is_empty() && !done && !waiting.is_empty();
        (if asked { waiting } else { status }, resident, dirty)
    }

    fn value(&self, ino: u64, name: &str) -> Option<String> {
        if ino <= LAYERS {
            let value = match name {
                "wait" => "idle",
                "pool.buffers" => "16",
                "pool.reserved" => "4",
                "pool.buffer_size" => "1048576",
                _ => return None,
            };
            return (ino == INodeNo::ROOT.0).then(|| value.to_owned());
        }
        let (status, resident, dirty) = self.condition(ino, name == "wait");
        Some(match name {
            "wait" => {
                if status == "inflight" && ino < FIRST_LAYER {
                    std::thread::sleep(Duration::from_millis(10));
                }
                status.to_owned()
            }
            "status" => status.to_owned(),
            "size" => SIZE.to_string(),
            "resident" => resident.to_string(),
            "dirty" => dirty.to_string(),
            "error" if matches!(Self::special(ino), Special::Breaks) => "EIO".to_owned(),
            _ => return None,
        })
    }

    fn ask(&self, ino: u64, value: &[u8]) -> Result<(), Errno> {
        let request = String::from_utf8_lossy(value).into_owned();
        if !["swap_in", "swap_out", "release"].contains(&request.as_str()) {
            return Err(Errno::EINVAL);
        }
        if let (true, Special::Refuses(errno)) =
            (ino > LAYERS, Self::special(ino.max(FIRST_SPECIAL)))
        {
            return Err(errno);
        }
        self.states.lock().unwrap().insert(ino, State { request, waits: 0 });
        Ok(())
    }
}

const TTL: Duration = Duration::from_secs(1);

impl Filesystem for Partitions {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = match parent.0 {
            LAYERS => {
                let index = name.to_str().and_then(|name| name.strip_prefix('p'));
                let index = index.and_then(|digits| digits.parse::<u64>().ok());
                index.filter(|index| *index < self.count).map(|index| FIRST_LAYER + index)
            }
            folder => {
                let mut entries = self.entries(folder).into_iter();
                entries.find(|entry| name == entry.2.as_str()).map(|entry| entry.0)
            }
        };
        match found {
            Some(ino) => reply.entry(&TTL, &Self::attributes(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &Self::attributes(ino.0));
    }

    fn readdir(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let skipped = usize::try_from(offset).unwrap();
        for (at, (ino, kind, name)) in (1..).zip(self.entries(ino.0)).skip(skipped) {
            if reply.add(INodeNo(ino), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let own = name.to_str().and_then(|name| name.strip_prefix("user.swap."));
        match own.and_then(|name| self.value(ino.0, name)) {
            None => reply.error(Errno::ENODATA),
            Some(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap()),
            Some(value) => reply.data(value.as_bytes()),
        }
    }

    fn setxattr(
        &self, _req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], _flags: i32,
        _position: u32, reply: ReplyEmpty,
    ) {
        match name.to_str() {
            Some("user.swap.request") => match self.ask(ino.0, value) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            },
            _ => reply.error(Errno::EPERM),
        }
    }
}
