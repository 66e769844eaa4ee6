//! The session: what is negotiated with the kernel, and how long requests are served.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Config, FopenFlags, InitFlags, KernelConfig, Session, SessionACL};

use super::adapter::Adapter;
use super::front::Front;
use super::readers;
use crate::volume::Volume;

/// Bytes of the largest request. Larger ones cost more in the kernel than they save.
pub(super) const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Asynchronous requests that the kernel keeps under way. Its default of 12 would cap clients' queue depths. While a
/// mapping is written back all may be writes that wait, and those without an intake are copied: with 64 the daemon used
/// more memory beside the pool than it may.
const BACKGROUND_MAX: u16 = 48;

/// Abilities asked of the kernel, and what is lost where it refuses one.
pub(super) const WANTED: [(InitFlags, &str); 10] = [
    (InitFlags::FUSE_ASYNC_DIO, "asynchronous direct I/O runs one request at a time"),
    (InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP, "shared mmap fails with ENODEV"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "lookups in one directory wait for each other"),
    (InitFlags::FUSE_DO_READDIRPLUS, "listing a directory with attributes asks for each name"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "every listing reads attributes too"),
    (InitFlags::FUSE_POSIX_ACL, "POSIX ACLs are not honoured"),
    // The daemon applies the umask, because a default ACL replaces it.
    (InitFlags::FUSE_DONT_MASK, "the umask applies in folders with a default ACL too"),
    // Spares a getxattr of security.capability before every cached write.
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "cached writes ask for security.capability each time"),
    (EXTENDED_SETXATTR, "an owner outside the group keeps set-group-id when setting an ACL"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "symlinks are read anew each time"),
];

/// A longer `fuse_setxattr_in`, which says when set-group-id must be dropped.
const EXTENDED_SETXATTR: InitFlags = InitFlags::FUSE_SETXATTR_EXT;

/// Negotiated abilities that change the form of requests. Known before the first request but INIT.
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    extended_setxattr: AtomicBool,
}

impl Negotiated {
    pub(super) fn extended_setxattr(&self) -> bool {
        self.extended_setxattr.load(Ordering::Acquire)
    }
}

/// Asks the kernel for the abilities that this filesystem needs.
pub(super) fn negotiate(config: &mut KernelConfig, negotiated: &Negotiated) {
    for (flag, loss) in WANTED {
        match config.add_capabilities(flag) {
            Ok(_) if flag == EXTENDED_SETXATTR => {
                negotiated.extended_setxattr.store(true, Ordering::Release);
            }
            Ok(_) => {}
            Err(_) => log::warn!("this kernel has no {flag:?}: {loss}"),
        }
    }
    let _ = config.set_max_write(REQUEST_BYTES_MAX);
    let _ = config.set_max_background(BACKGROUND_MAX);
}

/// How the kernel treats an open file. Without FOPEN_DIRECT_IO it sends the pieces of a large O_DIRECT call in parallel.
/// Files opened otherwise bypass the page cache by that flag.
pub(super) fn open_flags(flags: i32) -> FopenFlags {
    if flags & libc::O_DIRECT != 0 {
        FopenFlags::empty()
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    }
}

/// A session ready to run.
pub struct Serving {
    session: Session<Adapter>,
    front: Front,
    threads: usize,
    keep_awake: bool,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// Answers the kernel's first request on a mounted FUSE device. With `keep_awake` processors may be kept awake while
/// a client makes one small call after the other.
///
/// # Errors
/// When the kernel's protocol is too old, or the mount is gone already.
pub fn serve(
    volume: Arc<Volume>, device: OwnedFd, threads: usize, keep_awake: bool,
) -> io::Result<Serving> {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    let negotiated = Arc::new(Negotiated::default());
    let (front, descriptor) = Front::begin(volume.clone(), device, negotiated.clone())?;
    volume.set_invalidate(front.invalidator());
    let session =
        Session::from_fd(Adapter::new(volume, negotiated), descriptor, SessionACL::All, config);
    // The kernel is told of a refusal, too.
    let answered = front.answer_init();
    let session = session?;
    answered?;
    Ok(Serving { session, front, threads, keep_awake })
}

impl Serving {
    /// Serves until the filesystem is unmounted.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(self) -> io::Result<()> {
        let readers = readers::start(self.front, self.threads, self.keep_awake)?;
        self.session.run()?;
        // fuser's threads end after the readers, unless they have failed.
        let panicked = |_| Err(io::Error::other("a request thread panicked"));
        let ends: Vec<_> =
            readers.into_iter().map(|reader| reader.join().unwrap_or_else(panicked)).collect();
        ends.into_iter().collect()
    }
}
