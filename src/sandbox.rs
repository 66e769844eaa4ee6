//! What a daemon gives up once it is mounted, so that a mistake in it is worth little to who finds it: rights, sights and
//! system calls that serving does not take. What cannot be given up is said, and the daemon goes on.
//!
//! Privileges, capabilities and the mount namespace belong to a thread and to those that it starts: they are given up while
//! there is one. The filter of system calls comes when all have been started, and is put on every one.

mod calls;
mod capabilities;
mod namespace;
mod state;

use std::path::PathBuf;

pub(crate) use calls::filter_calls;
pub(crate) use capabilities::{LOW_PORTS, SERVING, give_up_capabilities, give_up_new_privileges};
pub(crate) use namespace::{Shown, Source, enter_namespace, entered};
pub(crate) use state::{Part, State};

/// What a daemon started by this process could give up: tried on a thread, which ends with it.
///
/// # Errors
/// In words.
pub(crate) fn trial() -> Result<State, String> {
    let attempt = || {
        let shown = [Shown { at: PathBuf::from("/dev/null"), source: Source::SameName }];
        let has_left = enter_namespace(&shown).is_ok();
        let _ = give_up_capabilities(SERVING);
        let _ = give_up_new_privileges();
        let _ = calls::filter_this_thread();
        let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
        State::parse(&status, has_left)
    };
    let thread = std::thread::Builder::new().name("swapfs-trial".to_owned());
    let started = thread.spawn(attempt).map_err(|error| crate::sys_process::reason(&error))?;
    started.join().ok().flatten().ok_or_else(|| "/proc is not mounted".to_owned())
}
