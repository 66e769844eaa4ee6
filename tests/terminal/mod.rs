//! A command on a terminal of its own, and what it shows there.

// Each test uses a part of it.
#![allow(dead_code)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A terminal of so many columns: our end, and the one for a command.
pub(crate) fn pair(columns: u16) -> (File, OwnedFd) {
    // Both ends are closed in processes that other tests start meanwhile, from their first moment.
    let ours = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let unlocked = 0;
    // SAFETY: TIOCSPTLCK reads a number.
    let done = unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a size.
    let done = unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value.
    let theirs = unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    assert!(theirs >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    (ours, unsafe { OwnedFd::from_raw_fd(theirs) })
}

/// A running command whose output is a terminal of 100 columns.
pub(crate) struct Terminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    pub(crate) fn new(command: &mut Command) -> Self {
        let (ours, theirs) = pair(100);
        command.stdin(Stdio::null());
        Self::on(ours, theirs, command)
    }

    /// On this terminal, whose command has its input already.
    pub(crate) fn on(mut ours: File, theirs: OwnedFd, command: &mut Command) -> Self {
        command.env("TERM", "xterm");
        command.stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let child = command.spawn().unwrap();
        // The command holds the terminal's other end, which is to close with the process.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let shown = Arc::new(Mutex::new(Vec::new()));
        let taken = shown.clone();
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO is the end: nobody has the other side open.
            while let Ok(count @ 1..) = ours.read(&mut bytes) {
                taken.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, shown, reader }
    }

    /// What it has shown so far.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        let shown = String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
        (status, shown)
    }
}
