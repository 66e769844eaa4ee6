//! What a process has given up, as `/proc/PID/status` tells.

use serde::Serialize;

/// One of the things that are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// The way to more rights by running a program.
    NewPrivileges,
    /// Capabilities that serving does not take.
    Capabilities,
    /// System calls that serving does not take.
    SystemCalls,
    /// The sight of other files.
    OtherFiles,
}

impl Part {
    /// All, in the order in which they are told.
    pub(crate) const ALL: [Part; 4] =
        [Part::NewPrivileges, Part::Capabilities, Part::SystemCalls, Part::OtherFiles];

    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::NewPrivileges => "new privileges",
            Part::Capabilities => "capabilities",
            Part::SystemCalls => "system calls",
            Part::OtherFiles => "other files",
        }
    }
}

/// What a process has given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct State {
    /// Parts that it has given up.
    pub(crate) given_up: Vec<Part>,
    /// Those that it has not.
    pub(crate) kept: Vec<Part>,
    /// The capabilities that it has.
    pub(crate) capabilities: Vec<String>,
}

impl State {
    /// By the text of `/proc/PID/status`, and whether it has a mount namespace of its own; `None` when that is no such text.
    pub(crate) fn parse(status: &str, own_namespace: bool) -> Option<Self> {
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let effective = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
        let beyond = effective & !super::SERVING.bits() & !super::capabilities::LOW_PORTS.bits();
        let has = |part: &Part| match part {
            Part::NewPrivileges => field("NoNewPrivs:") == Some("1"),
            Part::Capabilities => beyond == 0,
            Part::SystemCalls => field("Seccomp:") == Some("2"),
            Part::OtherFiles => own_namespace,
        };
        let (given_up, kept) = Part::ALL.into_iter().partition(has);
        Some(Self { given_up, kept, capabilities: names(effective) })
    }

    /// This process's own.
    pub(crate) fn own() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        Self::parse(&status, super::namespace::is_entered())
    }
}

/// The capabilities in a mask, as capabilities(7) writes them.
fn names(mask: u64) -> Vec<String> {
    let known = rustix::thread::CapabilitySet::from_bits_truncate(mask);
    known.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_told() {
        let text = "Name:\tx\nCapEff:\t000000000000000a\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let state = State::parse(text, true).unwrap();
        assert!(state.kept.is_empty());
        assert_eq!(state.capabilities, ["CAP_DAC_OVERRIDE", "CAP_FOWNER"]);
        let text = "CapEff:\t0000000000200000\nNoNewPrivs:\t0\nSeccomp:\t0\n";
        let state = State::parse(text, false).unwrap();
        assert_eq!((state.kept.len(), state.given_up.len()), (4, 0));
        assert_eq!(state.capabilities, ["CAP_SYS_ADMIN"]);
        assert_eq!(State::parse("Name:\tx\n", true), None);
    }
}
