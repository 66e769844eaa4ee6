//! A whole session without a kernel: a socket in the device's place. Requests of any kind with any arguments get
//! exactly one answer each, of the form that the kernel accepts, and the session goes on.

use std::ffi::OsStr;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::uio::{readv, writev};

use super::world::{World, is_greedy};

/// An answer that takes longer never comes: milliseconds.
const PATIENCE: u16 = 20_000;

/// Operations of one input.
const STEPS_MAX: usize = 24;

/// The control folder and its files have the last ids.
const CONTROL: [u64; 4] = [u64::MAX - 16, u64::MAX - 15, u64::MAX - 14, u64::MAX - 13];

mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const CREATE: u32 = 35;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const POLL: u32 = 40;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
}
use opcode::*;

/// The kernel's end.
struct Kernel {
    device: OwnedFd,
    unique: u64,
    received: Vec<u8>,
    /// Ids from answers, with a lookup each to be given back.
    nodes: Vec<u64>,
    /// File handles and directory handles from answers.
    handles: Vec<u64>,
    folders: Vec<u64>,
}

impl Kernel {
    fn start(world: &World) -> Kernel {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        for end in [&ours, &theirs] {
            let room = 4 << 20;
            // Without the privilege longer answers are refused, and errors sent in their place.
            let _ = setsockopt(end, sockopt::SndBufForce, &room);
        }
        let mut kernel = Kernel {
            device: ours,
            unique: 2,
            received: vec![0; 2 << 20],
            nodes: Vec::new(),
            handles: Vec::new(),
            folders: Vec::new(),
        };
        let mut arguments = Vec::new();
        for word in [7_u32, 41, 1 << 17, u32::MAX, 0xFF] {
            arguments.extend(word.to_ne_bytes());
        }
        arguments.resize(64, 0);
        kernel.send(INIT, 0, 0, &arguments);
        let serving = swapfs::fuse::serve(world.volume.clone(), theirs, 1, false).unwrap();
        assert_eq!(kernel.answer().0, 0);
        std::thread::spawn(move || {
            // Ends with the process; before, it was broken by an input.
            let ended = serving.run();
            eprintln!("the session ended: {ended:?}");
            std::process::abort();
        });
        kernel
    }

    fn send(&mut self, opcode: u32, node: u64, user: u32, arguments: &[u8]) {
        self.unique += 2;
        let mut header = Vec::with_capacity(40);
        header.extend((40 + arguments.len() as u32).to_ne_bytes());
        header.extend(opcode.to_ne_bytes());
        header.extend(self.unique.to_ne_bytes());
        header.extend(node.to_ne_bytes());
        header.extend(user.to_ne_bytes());
        header.extend(user.to_ne_bytes());
        header.extend([0; 8]);
        let parts = [IoSlice::new(&header), IoSlice::new(arguments)];
        let sent = loop {
            match writev(&self.device, &parts) {
                Err(Errno::EINTR) => {}
                sent => break sent,
            }
        };
        assert_eq!(sent, Ok(40 + arguments.len()));
    }

    /// The next message, which must come: an answer's errno and payload. Notifications are passed over.
    fn answer(&mut self) -> (i32, &[u8]) {
        loop {
            let mut set = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            match poll(&mut set, PollTimeout::from(PATIENCE)) {
                Ok(came) => assert_eq!(came, 1, "no answer to request {}", self.unique),
                // The fuzzer's own timer.
                Err(Errno::EINTR) => continue,
                Err(errno) => panic!("{errno}"),
            }
            let mut parts = [IoSliceMut::new(&mut self.received)];
            let length = match readv(&self.device, &mut parts) {
                Err(Errno::EINTR) => continue,
                length => length.unwrap(),
            };
            assert!(length >= 16, "{length} bytes are no answer");
            let number =
                |at: usize| u32::from_ne_bytes(self.received[at..at + 4].try_into().unwrap());
            let (says, error) = (number(0) as usize, number(4).cast_signed());
            let unique = u64::from_ne_bytes(self.received[8..16].try_into().unwrap());
            assert_eq!(says, length, "its length");
            if unique == 0 {
                continue;
            }
            assert_eq!(unique, self.unique, "one answer to each request");
            assert!(error <= 0 && error > -512, "no errno: {error}");
            assert!(error == 0 || length == 16, "an error with a payload");
            return (error, &self.received[16..length]);
        }
    }

    fn ask(&mut self, opcode: u32, node: u64, user: u32, arguments: &[u8]) -> (i32, &[u8]) {
        self.send(opcode, node, user, arguments);
        self.answer()
    }

    /// A request, and what its answer tells of ids and handles.
    fn step(&mut self, opcode: u32, node: u64, user: u32, arguments: &[u8]) {
        if opcode == FORGET || opcode == BATCH_FORGET {
            // Has no answer: the next one shows that the session goes on.
            return self.send(opcode, node, user, arguments);
        }
        let (error, payload) = self.ask(opcode, node, user, arguments);
        if error != 0 {
            return;
        }
        let number = |at: usize| {
            payload.get(at..at + 8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
        };
        let (first, handle) = (number(0), number(128));
        match opcode {
            LOOKUP | MKNOD | MKDIR | SYMLINK | LINK => self.nodes.extend(first),
            CREATE => {
                self.nodes.extend(first);
                self.handles.extend(handle);
            }
            OPEN => self.handles.extend(first),
            OPENDIR => self.folders.extend(first),
            _ => {}
        }
    }

    /// Gives back what the input took, and removes what it made.
    fn tidy(&mut self, world: &World) {
        for handle in std::mem::take(&mut self.handles) {
            self.ask(RELEASE, 1, 0, &padded(handle, 24));
        }
        for handle in std::mem::take(&mut self.folders) {
            self.ask(RELEASEDIR, 1, 0, &padded(handle, 24));
        }
        for node in std::mem::take(&mut self.nodes) {
            self.send(FORGET, node, 0, &1_u64.to_ne_bytes());
        }
        self.empty(1, &world.folder);
        let volume = &world.volume;
        volume.engine.release_reserved_buffers();
        // A request on a folder may still be going through it.
        let end = Instant::now() + Duration::from_millis(PATIENCE.into());
        while volume.engine.partitions().handles > 0 {
            assert!(Instant::now() < end, "handles are left: {:?}", volume.engine.partitions());
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn empty(&mut self, folder: u64, beneath: &std::path::Path) {
        let keep = ["a", "d", "c", "link"].map(OsStr::new);
        for entry in fs::read_dir(beneath).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let mut found = [name.as_bytes(), &[0]].concat();
                let (error, payload) = self.ask(LOOKUP, folder, 0, &found);
                if error == 0 {
                    let id = u64::from_ne_bytes(payload[..8].try_into().unwrap());
                    self.empty(id, &entry.path());
                    self.send(FORGET, id, 0, &1_u64.to_ne_bytes());
                    found = [name.as_bytes(), &[0]].concat();
                    if !keep.contains(&name.as_os_str()) {
                        self.ask(RMDIR, folder, 0, &found);
                    }
                }
            } else if !keep.contains(&name.as_os_str()) {
                self.ask(UNLINK, folder, 0, &[name.as_bytes(), &[0]].concat());
            }
        }
    }
}

/// A handle, and zeroes up to a structure's length.
fn padded(handle: u64, length: usize) -> Vec<u8> {
    let mut bytes = handle.to_ne_bytes().to_vec();
    bytes.resize(length, 0);
    bytes
}

/// Requests that begin with a handle.
fn takes_handle(opcode: u32) -> bool {
    let all = [
        READ,
        WRITE,
        RELEASE,
        FSYNC,
        FLUSH,
        READDIR,
        RELEASEDIR,
        FSYNCDIR,
        POLL,
        FALLOCATE,
        READDIRPLUS,
        LSEEK,
    ];
    all.contains(&opcode)
}

fn is_of_folders(opcode: u32) -> bool {
    [READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR].contains(&opcode)
}

/// Keeps an input from filling the disk.
fn moderate(opcode: u32, arguments: &mut [u8]) {
    if opcode == FALLOCATE && arguments.len() >= 24 {
        for at in [8, 16] {
            arguments[at + 3..at + 8].fill(0);
        }
    }
}

fn is_left_out(opcode: u32, arguments: &[u8]) -> bool {
    // Ends the session, which no client can ask for.
    opcode == DESTROY
        || opcode == INIT
        // Wherever the value begins.
        || (opcode == SETXATTR && (8..arguments.len()).any(|at| is_greedy(&arguments[at..])))
        // Old forms of no kernel that has the rest.
        || (opcode == RENAME && arguments.len() < 8)
        || (opcode == RENAME2 && arguments.len() < 16)
}

/// `opcode, flags, node, handle, length, arguments…`, again and again.
fn run(kernel: &mut Kernel, world: &World, input: &[u8], only_control: bool) {
    let mut rest = input;
    for _ in 0..STEPS_MAX {
        let [op, flags, node, handle, length, tail @ ..] = rest else { break };
        let length = usize::from(*length).min(tail.len());
        let (arguments, after) = tail.split_at(length);
        rest = after;
        let (opcode, mut arguments) = (u32::from(*op), arguments.to_vec());
        // Mostly what is there: any id only where the flags say so.
        let known: &[u64] = if only_control { &CONTROL } else { &kernel.nodes };
        let node = match (flags & 1, usize::from(*node)) {
            (0, 0) => 1,
            (0, number) if !known.is_empty() => known[number % known.len()],
            (_, number) => number as u64 | u64::from(*flags) << 56,
        };
        let handles = if is_of_folders(opcode) { &kernel.folders } else { &kernel.handles };
        if flags & 2 == 0 && takes_handle(opcode) && arguments.len() >= 8 && !handles.is_empty() {
            let known = handles[usize::from(*handle) % handles.len()];
            arguments[..8].copy_from_slice(&known.to_ne_bytes());
        }
        if flags & 4 == 0 && opcode == WRITE && arguments.len() >= 40 {
            let length = arguments.len() as u32 - 40;
            arguments[16..20].copy_from_slice(&length.to_ne_bytes());
        }
        if flags & 2 == 0 && opcode == SETATTR && arguments.len() >= 16 && !handles.is_empty() {
            let known = handles[usize::from(*handle) % handles.len()];
            arguments[8..16].copy_from_slice(&known.to_ne_bytes());
        }
        moderate(opcode, &mut arguments);
        if is_left_out(opcode, &arguments) {
            continue;
        }
        // Lookups are given back at the end; a handle that was released once is no handle the second time.
        if opcode == FORGET || opcode == BATCH_FORGET {
            continue;
        }
        kernel.step(opcode, node, u32::from(flags & 8) * 125, &arguments);
    }
    kernel.tidy(world);
    world.check_sentinel();
}

/// One session for all inputs.
fn with_session(
    world: &'static OnceLock<World>, kernel: &'static OnceLock<Mutex<Kernel>>, name: &'static str,
    work: impl FnOnce(&mut Kernel, &World),
) {
    let world = World::get(name, world);
    let kernel = kernel.get_or_init(|| Mutex::new(Kernel::start(world)));
    work(&mut kernel.lock().unwrap(), world);
}

/// Requests of any kind.
pub(crate) fn any(input: &[u8]) {
    static WORLD: OnceLock<World> = OnceLock::new();
    static KERNEL: OnceLock<Mutex<Kernel>> = OnceLock::new();
    with_session(&WORLD, &KERNEL, "session", |kernel, world| run(kernel, world, input, false));
}

/// The same about the control folder and its files, where nothing can be changed.
pub(crate) fn control(input: &[u8]) {
    static WORLD: OnceLock<World> = OnceLock::new();
    static KERNEL: OnceLock<Mutex<Kernel>> = OnceLock::new();
    with_session(&WORLD, &KERNEL, "control", |kernel, world| {
        run(kernel, world, input, true);
        let (error, stats) = kernel.ask(LOOKUP, CONTROL[0], 0, b"stats.json\0");
        assert!(error == 0 && stats.len() == 128, "{error}, {} bytes", stats.len());
    });
}
