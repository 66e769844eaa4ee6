//! What is fuzzed: each target takes any bytes and panics when something does not hold that must.

mod http;
mod kept;
mod session;
mod text;
mod world;

/// Takes an input.
pub(crate) type Target = fn(&[u8]);

/// By name, which is also the name of its corpus's folder.
pub(crate) const TARGETS: [(&str, Target); 15] = [
    ("request", world::request),
    ("xattr", world::xattr),
    ("name", world::name),
    ("config", text::config),
    ("options", text::options),
    ("size", text::size),
    ("mounts", text::mounts),
    ("control", session::control),
    ("session", session::any),
    ("http", http::http),
    ("ledger", kept::ledger),
    ("sessions", kept::sessions),
    ("state", kept::state),
    ("wear", kept::wear),
    ("pretended", kept::pretended),
];
