//! What a daemon could give up here, and what that of a folder in use has given up.

use serde_json::json;

use super::Finding;
use crate::config::{Config, Sandbox};
use crate::daemon::DaemonProcess;
use crate::sandbox::{Part, State};

/// Tries, on a thread that ends with it, what a mount would do.
pub(super) fn look(config: &Config) -> Finding {
    let item = "sandbox";
    if config.sandbox == Sandbox::None {
        let found = "the daemon would keep all rights that it is started with";
        return Finding::slow(item, found, "leave sandbox=none out");
    }
    match crate::sandbox::trial() {
        Ok(state) => shown(item, "a daemon gives up", &state, mend()),
        Err(why) => Finding::slow(item, format!("cannot be tried: {why}"), mend()),
    }
}

/// What the daemon `pid` has given up; `None` where it cannot be looked at.
pub(super) fn of_daemon(pid: i32) -> Option<Finding> {
    let process = DaemonProcess::open(pid).ok()?;
    let state = State::parse(&process.read("status").ok()?, process.has_own_mounts()?)?;
    let mend = "see its log for the reason, and swapfs config show for sandbox; then mount again";
    Some(shown("daemon-sandbox", &format!("swapfs pid {pid} has given up"), &state, mend))
}

fn shown(item: &'static str, what: &str, state: &State, mend: &str) -> Finding {
    let names =
        |parts: &[Part]| parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ");
    let given_up = match state.given_up.is_empty() {
        true => "nothing".to_owned(),
        false => names(&state.given_up),
    };
    let has = match state.capabilities.len() {
        0 => "no capabilities".to_owned(),
        1 => "1 capability".to_owned(),
        count => format!("{count} capabilities"),
    };
    // Another user's daemon sees what that user sees.
    let is_enough = state.kept.iter().all(|part| *part == Part::OtherFiles) && !is_root();
    let finding = match state.kept.is_empty() || is_enough {
        true => Finding::ok(item, format!("{what} {given_up}; it has {has}")),
        false => {
            let kept = names(&state.kept);
            Finding::slow(item, format!("{what} {given_up}, but not {kept}; it has {has}"), mend)
        }
    };
    finding
        .value("given_up", json!(state.given_up))
        .value("kept", json!(state.kept))
        .value("capabilities", json!(state.capabilities))
}

fn mend() -> &'static str {
    "mount as root, with CAP_SYS_ADMIN, on Linux 5.8 or newer; in a container, its seccomp profile has to allow unshare, \
     mount and seccomp"
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
