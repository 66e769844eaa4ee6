//! Starts the daemon under ptrace, and kills it exactly before a chosen system call.
//!
//! A seccomp filter stops the daemon at each call that may change something. One thread makes all calls
//! of ptrace. While it waits and counts it allocates nothing and opens nothing: a client of the same process
//! may wait for the daemon with the process's memory map held.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork};

/// Calls that may change the swap folder. (write is how requests are answered.)
const CALLS: &[i64] = &[
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_msync,
    libc::SYS_utimensat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[i64] = &[
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_link,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[i64] = &[];

/// AUDIT_ARCH_ of this machine.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Where struct seccomp_data has the number, the architecture and the arguments.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// What the tracing thread and the others know of each other.
#[derive(Debug, Default)]
struct Shared {
    /// Calls at which the daemon was stopped.
    count: AtomicU64,
    /// It is killed before this one; 0: before none.
    kill_at: AtomicU64,
    /// Somebody kills it; told before it is done.
    killed: AtomicBool,
    ended: AtomicBool,
    status: AtomicI32,
}

/// A daemon in the foreground.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) pid: Pid,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn load(offset: u32) -> libc::sock_filter {
    let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    libc::sock_filter { code, jt: 0, jf: 0, k: offset }
}

fn jump(kind: u32, k: u32, yes: usize, no: usize) -> libc::sock_filter {
    let code = (libc::BPF_JMP | kind | libc::BPF_K) as u16;
    libc::sock_filter { code, jt: yes as u8, jf: no as u8, k }
}

fn give(k: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k }
}

/// The filter: stop at the calls above, at io_uring_enter that submits and at openat that creates.
fn filter() -> Vec<libc::sock_filter> {
    let calls: Vec<i64> = CALLS.iter().chain(OLD_CALLS).copied().collect();
    // Behind the comparisons: allow, stop, four of io_uring_enter and four of openat.
    let rest = calls.len();
    let mut program = vec![
        load(ARCHITECTURE_AT),
        jump(libc::BPF_JEQ, ARCHITECTURE, 0, rest + 3),
        load(NUMBER_AT),
        jump(libc::BPF_JEQ, libc::SYS_io_uring_enter as u32, rest + 3, 0),
        jump(libc::BPF_JEQ, libc::SYS_openat as u32, rest + 6, 0),
    ];
    for (index, call) in calls.iter().enumerate() {
        program.push(jump(libc::BPF_JEQ, *call as u32, rest - index, 0));
    }
    program.extend([
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_TRACE),
        load(ARGUMENTS_AT + 8),
        jump(libc::BPF_JEQ, 0, 0, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_TRACE),
        load(ARGUMENTS_AT + 16),
        jump(libc::BPF_JSET, libc::O_CREAT as u32, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_TRACE),
    ]);
    program
}

/// What the child does between fork and exec, with everything it needs made before.
struct Start {
    arguments: Vec<CString>,
    log: File,
    filter: Vec<libc::sock_filter>,
    go: OwnedFd,
}

impl Start {
    /// Only calls that are safe after a fork of a process with threads; never returns.
    fn run(&self, pointers: &[*const libc::c_char]) -> ! {
        let program = libc::sock_fprog {
            len: self.filter.len() as u16,
            filter: self.filter.as_ptr().cast_mut(),
        };
        let mut byte = 0u8;
        // SAFETY: a group of its own, so that a signal from the terminal leaves the daemon to the tester.
        unsafe { libc::setpgid(0, 0) };
        for to in [1, 2] {
            // SAFETY: both descriptors are this process's own.
            unsafe { libc::dup2(self.log.as_raw_fd(), to) };
        }
        // SAFETY: reads one byte into a byte that lives here.
        let read = unsafe { libc::read(self.go.as_raw_fd(), (&raw mut byte).cast(), 1) };
        if read == 1 {
            let mode = libc::SECCOMP_MODE_FILTER;
            // SAFETY: the program points to instructions that live as long as this.
            let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
            if set == 0 {
                // SAFETY: the pointers are to strings that live here, and end with a null.
                unsafe { libc::execv(pointers[0], pointers.as_ptr()) };
            }
        }
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(127) }
    }
}

/// Forks, seizes the child, and lets it go on to its program.
fn start(program: &Path, arguments: &[&OsStr], log: File) -> io::Result<Pid> {
    let (go, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().copied());
    let arguments =
        words.map(|word| Ok(CString::new(word.as_bytes())?)).collect::<io::Result<Vec<_>>>()?;
    let start = Start { arguments, log, filter: filter(), go };
    let mut pointers: Vec<_> = start.arguments.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: the child makes only calls that are safe after a fork.
    let child = match unsafe { fork() }? {
        ForkResult::Child => start.run(&pointers),
        ForkResult::Parent { child } => child,
    };
    let options = Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    if let Err(errno) = ptrace::seize(child, options) {
        let _ = kill(child, Signal::SIGKILL);
        return Err(errno.into());
    }
    nix::unistd::write(&tell, b"g")?;
    Ok(child)
}

/// Lets a stopped thread go on.
fn go_on(pid: libc::pid_t, event: i32, signal: i32) {
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let (request, deliver) = match event {
        0 => (libc::PTRACE_CONT, signal),
        libc::PTRACE_EVENT_STOP if stops.contains(&signal) => (libc::PTRACE_LISTEN, 0),
        _ => (libc::PTRACE_CONT, 0),
    };
    // SAFETY: no memory is passed; a thread that died meanwhile is an error that tells nothing new.
    unsafe { libc::ptrace(request, pid, 0, libc::c_long::from(deliver)) };
}

/// Follows the daemon to its end, and what it leaves behind to theirs: the process that notes when the daemon ended. (Whoever
/// is not followed any more can make none of the calls.) Allocates nothing.
fn follow(pid: Pid, shared: &Shared) {
    loop {
        let mut status = 0;
        // SAFETY: the status is written to a number that lives here.
        let got = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if got < 0 {
            match nix::errno::Errno::last() {
                nix::errno::Errno::EINTR => continue,
                _ => break,
            }
        }
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if got == pid.as_raw() {
                shared.status.store(status, Ordering::SeqCst);
                shared.ended.store(true, Ordering::SeqCst);
            }
            continue;
        }
        let event = status >> 16;
        if event == libc::PTRACE_EVENT_SECCOMP && !shared.ended.load(Ordering::SeqCst) {
            let count = shared.count.fetch_add(1, Ordering::SeqCst) + 1;
            let at = shared.kill_at.load(Ordering::SeqCst);
            if at != 0 && count >= at {
                // It goes no further; another process of its does.
                shared.killed.store(true, Ordering::SeqCst);
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        go_on(got, event, libc::WSTOPSIG(status));
    }
    shared.ended.store(true, Ordering::SeqCst);
}

impl Daemon {
    /// Starts `program`, to be killed before the call number `kill_at`.
    pub(crate) fn start(
        program: &Path, arguments: &[&OsStr], log: File, kill_at: u64,
    ) -> io::Result<Daemon> {
        let shared = Arc::new(Shared::default());
        shared.kill_at.store(kill_at, Ordering::SeqCst);
        let (sender, receiver) = mpsc::channel();
        let (program, seen) = (program.to_owned(), Arc::clone(&shared));
        let arguments: Vec<_> = arguments.iter().map(|&word| word.to_owned()).collect();
        let thread = std::thread::Builder::new().name("tracer".to_owned()).spawn(move || {
            let words: Vec<&OsStr> = arguments.iter().map(|word| word.as_os_str()).collect();
            let started = start(&program, &words, log);
            let pid = started.as_ref().ok().copied();
            let _ = sender.send(started);
            if let Some(pid) = pid {
                follow(pid, &seen);
            }
        })?;
        let pid = receiver.recv().map_err(io::Error::other)??;
        Ok(Daemon { pid, shared, thread: Some(thread) })
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }

    pub(crate) fn kill_before(&self, call: u64) {
        self.shared.kill_at.store(call, Ordering::SeqCst);
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.shared.killed.load(Ordering::SeqCst)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn kill(&self) {
        self.shared.killed.store(true, Ordering::SeqCst);
        if !self.has_ended() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// Waits for its end; the exit status, as waitpid gives it.
    pub(crate) fn wait(&self, patience: Duration) -> Option<i32> {
        let begin = Instant::now();
        while !self.has_ended() {
            if begin.elapsed() > patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(self.shared.status.load(Ordering::SeqCst))
    }

    /// Where its threads are in the kernel.
    pub(crate) fn whereabouts(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        let mut lines = String::new();
        for task in tasks.into_iter().flatten().flatten() {
            let read =
                |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let stack = read("stack");
            let top: Vec<&str> = stack.lines().take(3).collect();
            lines += &format!("\n  {} {} {}", read("comm").trim(), read("wchan"), top.join(" "));
        }
        lines
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if let Some(thread) = self.thread.take()
            && self.wait(Duration::from_secs(60)).is_some()
        {
            let _ = thread.join();
        }
    }
}
