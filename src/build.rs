//! The build script: tells the program from which revision it is built.

use std::path::Path;
use std::process::Command;

/// Letters of a revision that are shown.
const SHOWN: usize = 12;

fn main() {
    // Only with the sources, which build everything anew anyway: a commit alone builds nothing.
    for path in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    sources(Path::new("src"));
    println!("cargo:rerun-if-env-changed=SWAPFS_REVISION");
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match given().or_else(packaged).or_else(checked_out) {
        Some(revision) => format!("{version} ({revision})"),
        None => version,
    };
    println!("cargo:rustc-env=SWAPFS_VERSION={version}");
}

/// Names the sources of the program below a folder; those of its tests alone build nothing else.
fn sources(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "tests" {
            sources(&path);
        } else if path.is_file() && name != "tests.rs" {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
}

/// Whoever builds from something else than a checkout may say it.
fn given() -> Option<String> {
    std::env::var("SWAPFS_REVISION").ok().filter(|revision| is_plain(revision))
}

/// What `cargo package` notes beside the sources.
fn packaged() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let revision = rest.split('"').nth(1)?;
    is_plain(revision).then(|| revision.chars().take(SHOWN).collect())
}

/// The commit of a checkout of this very package, and whether the sources are others by now.
fn checked_out() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(".").canonicalize().ok()? {
        return None;
    }
    let revision = git(&["rev-parse", &format!("--short={SHOWN}"), "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock"])?;
    Some(if changes.is_empty() { revision } else { format!("{revision}, changed") })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn is_plain(revision: &str) -> bool {
    !revision.is_empty()
        && revision.chars().all(|letter| letter.is_ascii_alphanumeric() || "-._+".contains(letter))
}
