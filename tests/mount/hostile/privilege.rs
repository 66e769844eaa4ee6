//! User 0 without root's capabilities, as in a container or a user namespace, and other users with some of them: what an
//! asker may do follows from its capabilities, not from its number.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::{ask, request, settled};
use crate::support::{MIB, errno, is_root, swap_xattr, user, wait_until, write_pattern};

/// Does `work` on a thread of user `uid` with these capabilities and no others.
fn with<T: Send>(uid: u32, has: CapabilitySet, work: impl FnOnce() -> T + Send) -> T {
    let joined = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let keep = rustix::thread::CapabilitiesSecureBits::NO_SETUID_FIXUP;
            rustix::thread::set_capabilities_secure_bits(keep).unwrap();
            let id = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(id, id, id).unwrap();
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: has, permitted: has, inheritable: none };
            rustix::thread::set_capabilities(None, sets).unwrap();
            work()
        });
        running.join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What `call` fails with in a child process that is root of a user namespace of its own, into which root is mapped.
fn as_mapped_root(call: impl Fn() -> std::io::Result<()> + Send + Sync + 'static) -> Option<Errno> {
    let prepared = move || {
        // SAFETY: the child has one thread, and shares nothing by this.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", "0 0 1")?;
        fs::write("/proc/self/gid_map", "0 0 1")?;
        call()
    };
    let mut child = Command::new("true");
    // SAFETY: the child only makes system calls, and the little that std does around them takes no lock of ours.
    unsafe { child.pre_exec(prepared) };
    match child.spawn() {
        Ok(mut child) => {
            child.wait().unwrap();
            None
        }
        Err(error) => Some(Errno::from_io_error(&error).unwrap()),
    }
}

/// A partition of `uid`'s that nobody else may write, wholly in the pool.
fn private(mount: &Mount, name: &str, uid: u32) -> std::path::PathBuf {
    let path = mount.at(name);
    let file = open(&path);
    write_pattern(&file, 2 * MIB, 1 << 20);
    file.sync_all().unwrap();
    chown(&path, Some(uid), None).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(settled(&path), "available");
    path
}

/// Takes buffers and gives them back: the owner's alone.
fn reserves(mnt: &Path) -> bool {
    match request(mnt, "reserve_buffers 1") {
        Ok(()) => {
            ask(mnt, "release_reserved_buffers");
            true
        }
        Err(errno) => {
            assert_eq!(errno, Errno::PERM);
            assert_eq!(request(mnt, "release_reserved_buffers"), Err(Errno::PERM));
            false
        }
    }
}

/// Opens the files that name partitions.
fn opens(mnt: &Path) -> bool {
    let opened =
        ["partitions.json", "accesslog"].map(|name| File::open(mnt.join(".swapfs").join(name)));
    let names = fs::read_to_string(mnt.join(".swapfs/metrics")).unwrap().contains("\"inner\"");
    let [partitions, log] = opened.map(|opened| match opened {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::ACCESS));
            false
        }
    });
    assert_eq!((partitions, names), (log, log), "partitions.json, metrics, accesslog");
    log
}

/// Who has what decides, whichever number it has.
#[test]
fn capabilities_decide_and_not_the_number_of_the_user() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=16m,allow_other,open_swap_in=none");
    fs::create_dir(mount.at("inner")).unwrap();
    fs::write(mount.at("inner/x"), "x").unwrap();
    // Whoever asks may write to the root, so that the request itself is the kernel's to allow.
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&mount.mnt, Permissions::from_mode(0o733)).unwrap();
    let path = private(&mount, "theirs", 4321);
    let searches = CapabilitySet::DAC_READ_SEARCH;
    let overrides = CapabilitySet::DAC_OVERRIDE;
    let admin = CapabilitySet::SYS_ADMIN;
    let all_but = CapabilitySet::all() - searches - overrides - admin;
    for uid in [0, 1234] {
        for (has, may_reserve, may_open, may_release) in [
            (CapabilitySet::empty(), false, false, false),
            (all_but & rustix::thread::capabilities(None).unwrap().permitted, false, false, false),
            (searches, false, true, false),
            (overrides, false, true, true),
            (admin, true, false, true),
        ] {
            ask(&path, "swap_in");
            assert_eq!(settled(&path), "available");
            let found = with(uid, has, || {
                ask(&mount.mnt, "release");
                (reserves(&mount.mnt), opens(&mount.mnt))
            });
            assert_eq!(found, (may_reserve, may_open), "user {uid} with {has:?}");
            match may_release {
                true => wait_until("the release", || settled(&path) == "not_available"),
                false => {
                    assert_eq!(settled(&mount.mnt), "idle");
                    assert_eq!(swap_xattr(&path, "status"), "available", "user {uid} with {has:?}");
                }
            }
        }
    }
    // The test's own: all of root's, by way of another process namespace as well.
    assert!(reserves(&mount.mnt) && opens(&mount.mnt));
    let list = mount.at(".swapfs/partitions.json");
    let cat = ["--pid", "--fork", "cat", list.to_str().unwrap()];
    assert!(Command::new("unshare").args(cat).stdout(Stdio::null()).status().unwrap().success());
}

/// Root that was mapped into a user namespace has all capabilities there, and none here.
#[test]
fn root_of_a_user_namespace_is_no_owner() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=16m,allow_other,open_swap_in=none");
    let theirs = private(&mount, "theirs", 4321);
    let own = private(&mount, "own", 0);
    for name in ["partitions.json", "accesslog"] {
        let path = mount.at(".swapfs").join(name);
        let refused = as_mapped_root(move || File::open(&path).map(drop));
        assert_eq!(refused, Some(Errno::ACCESS), "{name}");
    }
    for value in ["reserve_buffers 1", "release_reserved_buffers"] {
        let mnt = mount.mnt.clone();
        let refused = as_mapped_root(move || Ok(request(&mnt, value)?));
        assert_eq!(refused, Some(Errno::PERM), "{value}");
    }
    // What it may write it may release, as the kernel judges: its own, and not another user's.
    let mnt = mount.mnt.clone();
    assert_eq!(as_mapped_root(move || Ok(request(&mnt, "release")?)), None);
    wait_until("the release", || settled(&own) == "not_available");
    assert_eq!(settled(&mount.mnt), "idle");
    assert_eq!(swap_xattr(&theirs, "status"), "available");
}

/// The set-id bits of what is truncated or made are kept for those for whom a plain folder keeps them.
#[test]
fn set_id_bits_stay_for_those_who_may_keep_them() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=16m,allow_other");
    let plain = mount.scratch.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let free = CapabilitySet::DAC_OVERRIDE;
    for (round, has) in [free, free | CapabilitySet::FSETID].into_iter().enumerate() {
        let [through, beside] = [&mount.mnt, &plain].map(|folder| {
            let shared = folder.join(format!("shared{round}"));
            fs::create_dir(&shared).unwrap();
            chown(&shared, None, Some(4321)).unwrap();
            fs::set_permissions(&shared, Permissions::from_mode(0o2777)).unwrap();
            let program = shared.join("program");
            fs::write(&program, "program").unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o6755)).unwrap();
            with(0, has, || {
                let made = shared.join("made");
                let mut options = File::options();
                options.write(true).create_new(true).mode(0o2755);
                drop(options.open(&made).unwrap());
                File::options().write(true).open(&program).unwrap().set_len(3).unwrap();
                [&program, &made].map(|path| fs::metadata(path).unwrap().mode() & 0o7777)
            })
        });
        assert_eq!(through, beside, "with {has:?}");
        let kept = has.contains(CapabilitySet::FSETID);
        assert_eq!(through[0] & 0o6000 != 0, kept, "with {has:?}");
    }
    // An ordinary user without any is no different.
    let path = mount.at("program");
    fs::write(&path, "program").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o755)).unwrap();
    crate::support::as_user(&mount.mnt, user(1234), || {
        File::options().write(true).open("program").unwrap().set_len(3).unwrap();
        let denied = fs::set_permissions("program", Permissions::from_mode(0o777));
        assert_eq!(errno(denied), Errno::PERM);
    });
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}
