//! From the mount to the exit: readiness, signals, the end of the session.

use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use nix::sys::signal::{SigSet, Signal};

use super::folder::Phase;
use super::manager::Manager;
use super::report::Reporter;
use super::unmounter::Unmounter;
use super::{MountRequest, Service, SwapFolder};
use crate::mount::{Detach, UnmountError};
use crate::panics::outlive;
use crate::sys_process::reason;

/// A mount that does not answer its first call within this time never will.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a session that stopped answering may take to say why.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// A session whose mount is gone ends within this time, when its start failed.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Partitions named in one line of the log; the others are counted.
const NAMES_MAX: usize = 100;

enum Event {
    /// The first call on the mount returned, with the mount's `st_dev`.
    Answered(io::Result<u64>),
    /// The session is over.
    Ended(io::Result<()>),
    /// Somebody wants the daemon to go.
    Signal(Signal),
}

/// A mounted, not yet answering session.
pub(super) struct Session<'a> {
    service: Arc<dyn Service>,
    swap: &'a mut SwapFolder,
    request: &'a MountRequest,
    sender: Sender<Event>,
    events: Receiver<Event>,
    shell: Shell,
    /// `st_dev` of the mount once it answers.
    device: Option<u64>,
    /// The session is over.
    has_ended: bool,
}

/// What a session has around it.
pub(super) struct Shell {
    pub(super) unmounter: Unmounter,
    pub(super) signals: SigSet,
    pub(super) manager: Manager,
    /// `st_dev` of the mountpoint before the mount.
    pub(super) device_before: u64,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        service: Arc<dyn Service>, swap: &'a mut SwapFolder, request: &'a MountRequest,
        shell: Shell,
    ) -> Self {
        let (sender, events) = unbounded();
        Self { service, swap, request, sender, events, shell, device: None, has_ended: false }
    }

    fn mountpoint(&self) -> &'a Path {
        &self.request.mountpoint
    }

    /// Runs to the end. The error is the daemon's last line.
    pub(super) fn run(mut self, reporter: &mut Reporter) -> Result<(), String> {
        if let Err(error) = self.spawn_threads() {
            self.detach();
            return Err(format!("cannot start a thread: {}", reason(&error)));
        }
        if let Err(line) = self.wait_for_answer() {
            self.give_up();
            return Err(line);
        }
        super::confine::filter_calls(&self.request.config);
        self.enter(Phase::Mounted);
        log::info!(
            "{} mounted at {}, pid {}",
            self.swap.path().display(),
            self.mountpoint().display(),
            std::process::id()
        );
        reporter.ready();
        self.shell.manager.ready(self.swap.path(), self.mountpoint());
        let ended = outlive(|| self.wait_for_end());
        self.finish(ended)
    }

    fn spawn_threads(&mut self) -> io::Result<()> {
        let (service, sender) = (self.service.clone(), self.sender.clone());
        spawn("serve", move || {
            let served = std::panic::catch_unwind(AssertUnwindSafe(|| service.serve()));
            let served = served.unwrap_or_else(|_| Err(io::Error::other("panicked")));
            let _ = sender.send(Event::Ended(served));
        })?;
        let (signals, sender) = (self.shell.signals, self.sender.clone());
        spawn("signals", move || {
            outlive(|| {
                while let Ok(signal) = signals.wait() {
                    log::info!("{signal} received");
                    if sender.send(Event::Signal(signal)).is_err() {
                        return;
                    }
                }
            });
        })?;
        let answered = self.shell.unmounter.first_call(self.shell.device_before)?;
        let sender = self.sender.clone();
        spawn("readiness", move || {
            let _ = sender.send(Event::Answered(answered()));
        })
    }

    /// Ends a start that failed: the mount goes, and the service stops when its session has ended.
    fn give_up(&mut self) {
        self.detach();
        let deadline = Instant::now() + GIVE_UP_TIMEOUT;
        while !self.has_ended {
            match self.events.recv_deadline(deadline) {
                Ok(Event::Ended(_)) => self.has_ended = true,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        if let Err(names) = self.service.finish() {
            log::error!("{}", not_stored(&names));
        }
    }

    fn wait_for_answer(&mut self) -> Result<(), String> {
        let shown = self.mountpoint().display();
        match self.events.recv_timeout(START_TIMEOUT) {
            Ok(Event::Answered(Ok(device))) => {
                self.device = Some(device);
                Ok(())
            }
            Ok(Event::Answered(Err(error))) => {
                // A session that has failed takes the mount's answer with it: its own word says why.
                if let Ok(Event::Ended(ended)) = self.events.recv_timeout(LAST_WORD_TIMEOUT) {
                    return Err(self.ended_early(ended));
                }
                Err(format!("the mount at {shown} does not answer: {}", reason(&error)))
            }
            Ok(Event::Ended(ended)) => Err(self.ended_early(ended)),
            Ok(Event::Signal(signal)) => Err(format!("stopped by {signal} while starting")),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(format!(
                "the mount at {shown} did not answer within {} s",
                START_TIMEOUT.as_secs()
            )),
        }
    }

    fn ended_early(&mut self, ended: io::Result<()>) -> String {
        self.has_ended = true;
        let shown = self.mountpoint().display();
        match ended {
            Ok(()) => format!("{shown} was unmounted while starting"),
            Err(error) => format!("the session of {shown} failed: {}", reason(&error)),
        }
    }

    /// Serves until the session ends; a signal makes it end.
    fn wait_for_end(&mut self) -> io::Result<()> {
        let mut stopping = false;
        // Only what is stuck in the kernel is waited for with a limit.
        let mut given_up_at = None;
        loop {
            let event = match given_up_at {
                Some(deadline) => self.events.recv_deadline(deadline),
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Ended(result)) => return result,
                Ok(Event::Signal(_)) if !stopping => {
                    stopping = self.stop();
                    if stopping && self.service.is_stuck() {
                        given_up_at = Some(Instant::now() + GIVE_UP_TIMEOUT);
                    }
                }
                Ok(Event::Signal(signal)) => {
                    log::info!("{signal}: stopping already, waiting for the mount's last user");
                }
                Ok(Event::Answered(_)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(io::Error::other(
                        "a request waits for a device that does not answer",
                    ));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the session holds a sender itself")
                }
            }
        }
    }

    /// Synchronizes and unmounts; false when the mount cannot be taken away.
    fn stop(&self) -> bool {
        self.shell.manager.stopping();
        if let Err(names) = self.service.synchronize() {
            log::error!("before the unmount: {}", not_stored(&names));
        }
        let shown = self.mountpoint().display();
        if self.service.is_stuck() {
            log::error!("the device does not answer: clients of {shown} get errors now");
            self.shell.unmounter.abort(self.device);
        }
        match self.shell.unmounter.unmount() {
            Ok(Detach::WhenIdle) => log::info!("{shown} unmounted"),
            Ok(Detach::Lazily) => {
                log::warn!("{shown} was busy: gone for new users, serving the others to their end");
            }
            // Somebody was faster; the session ends by itself.
            Err(UnmountError::NotMounted) => {}
            Err(error) => {
                log::error!("cannot unmount {shown}: {error}; still serving it");
                return false;
            }
        }
        true
    }

    /// After the session: the rest goes to stable storage, and the lock file says how it went.
    fn finish(mut self, ended: io::Result<()>) -> Result<(), String> {
        self.enter(Phase::Finishing);
        self.shell.manager.stopping();
        self.say(self.shell.unmounter.tidy(self.device));
        let stored = self.service.finish();
        let failed = stored.as_ref().err().map_or(&[][..], Vec::as_slice);
        if let Err(error) = self.swap.finished(failed) {
            log::warn!("lock file: {error}");
        }
        stored.map_err(|names| not_stored(&names))?;
        ended.map_err(|error| format!("the session failed: {}", reason(&error)))?;
        log::info!("everything is on stable storage; done");
        Ok(())
    }

    fn enter(&mut self, phase: Phase) {
        if let Err(error) = self.swap.enter(phase) {
            log::warn!("lock file: {error}");
        }
    }

    fn detach(&self) {
        self.say(self.shell.unmounter.detach());
    }

    /// A mount that is gone is as it should be.
    fn say(&self, unmounted: Result<(), UnmountError>) {
        match unmounted {
            Ok(()) | Err(UnmountError::NotMounted) => {}
            Err(error) => log::warn!("cannot unmount {}: {error}", self.mountpoint().display()),
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(format!("swapfs-{name}")).spawn(work).map(drop)
}

/// The line about partitions that are lost if the machine stops now.
fn not_stored(names: &[String]) -> String {
    let listed = names.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => format!("not on stable storage: {listed}"),
        more => format!("not on stable storage: {listed} and {more} more"),
    }
}
