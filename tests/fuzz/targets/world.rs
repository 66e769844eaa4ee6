//! A volume over a folder of its own, and what can be asked of it by bytes alone.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use swapfs::aio::device::Geometry;
use swapfs::aio::threads::ThreadDevice;
use swapfs::aio::whole::Whole;
use swapfs::aio::{AioSettings, Engine as AioEngine};
use swapfs::engine::{Engine, EngineOptions, OpenSwapIn};
use swapfs::error::Errno;
use swapfs::fs::{Caller, Options, ROOT_ID, RenameKind, Tree, XattrMode};
use swapfs::pool::{Arena, ArenaOptions};
use swapfs::shares::User;
use swapfs::units::parse_size;
use swapfs::volume::{Asker, Creation, Volume, VolumeOptions, XattrAnswer};

/// An answer that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(20);

const BLOCK: u64 = 64 << 10;

pub(crate) struct World {
    pub(crate) volume: Arc<Volume>,
    /// Of the swap folder, beside which the file `sentinel` stays as it is.
    pub(crate) folder: PathBuf,
}

/// In memory where there is a place for it: fsync costs nothing there.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let scratch = parent.join(format!("swapfs-fuzz-{}", std::process::id()));
    fs::create_dir_all(&scratch).unwrap();
    scratch
}

/// Removes it when the process ends in order.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

extern "C" fn clean_up() {
    drop(Remove(scratch()));
}

/// An empty folder, gone when the process ends in order.
pub(crate) fn scratch_folder(name: &str) -> PathBuf {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: a function without arguments that touches nothing but files.
    ONCE.call_once(|| assert_eq!(unsafe { libc::atexit(clean_up) }, 0));
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

impl World {
    fn new(name: &str) -> World {
        let scratch = scratch_folder(name);
        let folder = scratch.join("swap");
        fs::create_dir_all(folder.join("d")).unwrap();
        fs::write(scratch.join("sentinel"), "sentinel").unwrap();
        fs::write(folder.join("a"), vec![b'a'; 100_000]).unwrap();
        fs::write(folder.join("d/c"), "c").unwrap();
        std::os::unix::fs::symlink("../sentinel", folder.join("link")).unwrap();
        let options = EngineOptions {
            pool_size: 32 * BLOCK,
            block_size: BLOCK,
            read_ahead: 2 * BLOCK,
            open_swap_in: OpenSwapIn::Ahead,
            linger: Duration::from_millis(20),
            writeback_batch: 4,
            min_swap_size: 20_000,
            idle_partitions_max: 3,
            intakes: 0,
        };
        let size = options.arena_size(4096);
        let arena =
            Arena::new(ArenaOptions { size, pin_memory: false, huge_pages: false }).unwrap();
        let settings = AioSettings {
            queue_depth: 2,
            thread_count: 1,
            single_submit: false,
            overlap_events: true,
            stripe: BLOCK,
            engine: AioEngine::Threads,
        };
        let geometry = Geometry { alignment: 4096, direct: false };
        let device = Whole::new(ThreadDevice::new(&settings, geometry).unwrap());
        let engine = Engine::start(options, arena, device);
        let root: OwnedFd = fs::File::open(&folder).unwrap().into();
        let tree = Tree::new(root, Options { descriptors_max: 16, ..Options::default() }).unwrap();
        let options = VolumeOptions {
            swap_folder: folder.clone(),
            mountpoint: scratch.join("mnt"),
            direct: false,
            min_swap_size: 20_000,
            list_xattr: true,
            close_wait: false,
            config: serde_json::json!({}),
        };
        World { volume: Volume::new(tree, engine, None, options), folder }
    }

    /// One of a kind, made once.
    pub(crate) fn get(name: &'static str, cell: &'static OnceLock<World>) -> &'static World {
        // The process's umask must be 0 while a tree is in use.
        cell.get_or_init(|| {
            rustix::process::umask(rustix::fs::Mode::empty());
            World::new(name)
        })
    }

    pub(crate) fn check_sentinel(&self) {
        let beside = self.folder.parent().unwrap();
        assert_eq!(fs::read(beside.join("sentinel")).unwrap(), b"sentinel");
        assert_eq!(fs::read_dir(beside).unwrap().count(), 2, "something was made outside");
    }
}

/// Whether it asks for more space than a test should take; a full disk is another test's.
pub(crate) fn is_greedy(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    let size = text.trim_end_matches('\0').strip_prefix("reserve ").and_then(parse_size);
    size.is_some_and(|size| size > 1 << 20)
}

const NEW: Creation = Creation { mode: 0o644, exclusive: true, read: true };

const ASKER: Asker = Asker { uid: 0, gid: 0, pid: 0 };

fn asker(byte: u8) -> Asker {
    Asker { uid: u32::from(byte / 4 % 2) * 1000, gid: u32::from(byte / 8 % 2) * 1000, ..ASKER }
}

/// `user.swap.request` with any value: answered once, by one of the errnos that are documented, and text that is
/// no request by EINVAL.
pub(crate) fn request(input: &[u8]) {
    static WORLD: OnceLock<World> = OnceLock::new();
    let world = World::get("request", &WORLD);
    let Some((selector, value)) = input.split_first() else { return };
    if is_greedy(value) {
        return;
    }
    let names = [None, Some("a"), Some("d"), Some("link")];
    let id = match names[usize::from(selector % 4)] {
        None => ROOT_ID,
        Some(name) => world.volume.lookup(ROOT_ID, OsStr::new(name)).unwrap().id,
    };
    let (sender, receiver) = mpsc::channel();
    world.volume.request(
        id,
        value,
        asker(*selector),
        Box::new(move |answer| sender.send(answer).unwrap()),
    );
    let answer = receiver.recv_timeout(PATIENCE).expect("every request is answered");
    assert!(receiver.recv_timeout(Duration::ZERO).is_err(), "answered once");
    let verb = value.split(|byte| *byte == b' ' || *byte == 0).next().unwrap_or_default();
    let known: [&[u8]; 8] = [
        b"swap_in",
        b"swap_out",
        b"release",
        b"discard",
        b"reserve",
        b"synchronize_writes",
        b"reserve_buffers",
        b"release_reserved_buffers",
    ];
    match answer {
        Ok(()) => assert!(known.contains(&verb), "{value:?} was done"),
        Err(errno) => {
            let documented =
                [Errno::EINVAL, Errno::ENOBUFS, Errno::ENOSPC, Errno::EPERM, Errno::EBUSY];
            assert!(documented.contains(&errno), "{value:?}: {errno:?}");
            assert!(known.contains(&verb) || errno == Errno::EINVAL, "{value:?}: {errno:?}");
        }
    }
    let pool = world.volume.engine.pool();
    assert!(pool.available + pool.reserved <= pool.buffers, "{pool:?}");
    assert!(pool.free <= pool.available, "{pool:?}");
    world.volume.engine.release_reserved_buffers();
    if id != ROOT_ID {
        world.volume.forget(id, 1);
    }
}

/// Attributes of any name: those below `user.swap.` are read-only, and the others the swap folder's.
pub(crate) fn xattr(input: &[u8]) {
    static WORLD: OnceLock<World> = OnceLock::new();
    let world = World::get("xattr", &WORLD);
    let Some((selector, rest)) = input.split_first() else { return };
    let length = rest.iter().position(|byte| *byte == b'=').unwrap_or(rest.len());
    let (name, value) = (&rest[..length], rest.get(length + 1..).unwrap_or_default());
    // The kernel sends no other names.
    if name.is_empty() || name.len() > 255 || name.contains(&0) || name.starts_with(b"system.") {
        return;
    }
    let volume = &world.volume;
    let (id, name) = match selector % 3 {
        0 => (ROOT_ID, OsStr::from_bytes(name)),
        1 => (volume.lookup(ROOT_ID, OsStr::new("a")).unwrap().id, OsStr::from_bytes(name)),
        _ => (volume.lookup(ROOT_ID, OsStr::new("link")).unwrap().id, OsStr::from_bytes(name)),
    };
    let own = name.as_bytes().starts_with(b"user.swap.");
    let set = volume.set_xattr(id, name, value, XattrMode::Any);
    let found = volume.xattr(id, name, selector & 64 != 0);
    let listed = volume.list_xattrs(id, asker(*selector)).unwrap();
    assert!(listed.is_empty() || listed.ends_with(&[0]));
    if own {
        // What a copy brings of a listing is ignored; all else is refused.
        assert!(matches!(set, Ok(()) | Err(Errno::EPERM)), "{name:?}: {set:?}");
        assert_eq!(volume.remove_xattr(id, name), set);
        if let Ok(XattrAnswer::Value(value)) = &found {
            assert!(!value.contains(&0) && value.len() < 4096);
        }
    } else if set.is_ok() && name == "security.capability" {
        // The kernel takes an empty one, and reads only what makes sense.
        assert!(matches!(found, Ok(XattrAnswer::Value(_)) | Err(Errno::EINVAL)), "{found:?}");
    } else if set.is_ok() {
        let Ok(XattrAnswer::Value(found)) = found else {
            panic!("{name:?} is not found: {found:?}")
        };
        assert_eq!(found, value);
        volume.remove_xattr(id, name).unwrap();
    }
    if id != ROOT_ID {
        volume.forget(id, 1);
    }
}

/// Names of any bytes: made, found, moved, linked and removed within the folder, or refused; nothing happens
/// outside of it.
pub(crate) fn name(input: &[u8]) {
    static WORLD: OnceLock<World> = OnceLock::new();
    let world = World::get("name", &WORLD);
    let Some((selector, rest)) = input.split_first() else { return };
    let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (first, second) = (&rest[..length], rest.get(length + 1..).unwrap_or_default());
    let (first, second) = (OsStr::from_bytes(first), OsStr::from_bytes(second));
    let (volume, tree) = (&world.volume, &world.volume.tree);
    let caller = Caller { uid: 0, gid: 0, umask: 0o022, keeps_set_group_id: true };
    let folder = match selector % 2 {
        0 => ROOT_ID,
        _ => volume.lookup(ROOT_ID, OsStr::new("d")).unwrap().id,
    };
    let base = ["a", "d", "c", "link"].map(OsStr::new);
    if !base.contains(&first) && !base.contains(&second) {
        let made = match selector / 2 % 4 {
            0 => volume.create(User::OWN, folder, first, &caller, NEW).map(|(entry, handle, _)| {
                volume.engine.release(handle);
                entry
            }),
            1 => tree.mkdir(folder, first, &caller, 0o755),
            2 => tree.symlink(folder, first, &caller, second),
            _ => tree.link(ROOT_ID, folder, first),
        };
        if let Ok(entry) = made {
            assert!(!matches!(first.as_bytes(), b"" | b"." | b".."));
            assert!(first.len() <= 255 && !first.as_bytes().contains(&b'/'));
            assert!(folder != ROOT_ID || first != ".swapfs");
            assert_eq!(volume.lookup(folder, first).unwrap().id, entry.id);
            tree.forget(entry.id, 2);
            let moved = volume
                .rename(User::OWN, (folder, first), (folder, second), RenameKind::NoReplace)
                .is_ok();
            let name = if moved { second } else { first };
            let removed = volume
                .unlink(User::OWN, folder, name)
                .or_else(|_| tree.rmdir(User::OWN, folder, name));
            removed.unwrap();
        }
    }
    if let Ok(entry) = volume.lookup(folder, second) {
        tree.forget(entry.id, 1);
    }
    if folder != ROOT_ID {
        tree.forget(folder, 1);
    }
    world.check_sentinel();
}
