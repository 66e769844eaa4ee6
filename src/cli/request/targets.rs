//! Which paths a request is for: patterns expanded, mounts found, directories walked.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, glob_with};
use rustix::fs::{Mode, OFlags};

use crate::cli::line_about;
use crate::mount::{self, MountEntry};
use crate::paths::plain;
use crate::sys_process::reason;

/// As a shell does it: names that begin with a dot want one in the pattern.
const LIKE_A_SHELL: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A path to ask for, or a path and the line about it.
pub(super) type Expanded = Result<PathBuf, (PathBuf, String)>;

/// The paths that an argument stands for. What exists under the very name is no pattern.
pub(super) fn expand(argument: &Path) -> Vec<Expanded> {
    let shown = plain(argument);
    let literal = || vec![Ok(argument.to_owned())];
    let failed = |line: String| vec![Err((argument.to_owned(), line))];
    if let Err(refusal) = mount::refuse_foreign(argument) {
        return failed(refusal.to_string());
    }
    let Some(pattern) = argument.to_str() else {
        return literal();
    };
    let is_missing = std::fs::symlink_metadata(argument)
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if !is_missing || !pattern.contains(['*', '?', '[']) {
        return literal();
    }
    let matches = match glob_with(pattern, LIKE_A_SHELL) {
        Ok(matches) => matches,
        Err(error) => return failed(format!("{shown}: {}", error.msg)),
    };
    let paths: Vec<Expanded> = matches
        .map(|found| {
            found.map_err(|error| {
                let line = format!("{}: {}", plain(error.path()), reason(error.error()));
                (error.path().to_owned(), line)
            })
        })
        .collect();
    match paths.is_empty() {
        true => failed(format!("{shown}: nothing matches")),
        false => paths,
    }
}

/// The paths that a file names, one a line; `-` is standard input. Lines may be any bytes; empty ones are skipped.
pub(super) fn listed(list: &Path) -> Result<Vec<PathBuf>, String> {
    let mut bytes = Vec::new();
    let read = match list == Path::new("-") {
        true => io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(list).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(|error| format!("{}: {}", plain(list), reason(&error)))?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let paths: Vec<_> = lines.map(|line| PathBuf::from(OsStr::from_bytes(line))).collect();
    match paths.is_empty() {
        true => Err(format!("{}: the list is empty; give one path a line", plain(list))),
        false => Ok(paths),
    }
}

/// The swapfs mounts at the start of the command.
#[derive(Debug)]
pub(super) struct Mounts(Vec<MountEntry>);

impl Mounts {
    pub(super) fn read() -> Result<Self, String> {
        mount::swapfs_mounts()
            .map(Self)
            .map_err(|error| format!("/proc/self/mountinfo: {}", reason(&error)))
    }

    /// Opens what a path leads to, with the root of the mount that it lies on; the error is the line for the user. On
    /// another filesystem the attribute would be set and mean nothing: so it is set on what was looked at here.
    pub(super) fn locate(&self, path: &Path) -> Result<(OwnedFd, PathBuf), String> {
        mount::refuse_foreign(path).map_err(|refusal| refusal.to_string())?;
        let failed = |error: rustix::io::Errno| line_about(path, &error.into());
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let device = rustix::fs::fstat(&file).map_err(failed)?.st_dev;
        match self.0.iter().rfind(|entry| entry.device == device) {
            Some(entry) => {
                entry.check().map_err(|refusal| refusal.to_string())?;
                Ok((file, entry.mountpoint.clone()))
            }
            None => Err(format!("{} is not on a swapfs mount", plain(path))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(argument: &Path) -> Vec<Result<String, String>> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        expand(argument)
            .into_iter()
            .map(|expanded| match expanded {
                Ok(path) => Ok(name(&path)),
                Err((_, line)) => Err(line),
            })
            .collect()
    }

    #[test]
    fn patterns_are_expanded_as_a_shell_does_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a1", "a2", "b1", ".hidden1", "x[1]"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::create_dir(at("deep")).unwrap();
        std::fs::write(at("deep/a3"), "").unwrap();
        let ok = |names: &[&str]| -> Vec<Result<String, String>> {
            names.iter().map(|name| Ok((*name).to_owned())).collect()
        };
        assert_eq!(names(&at("a?")), ok(&["a1", "a2"]));
        assert_eq!(names(&at("*1")), ok(&["a1", "b1"]));
        assert_eq!(names(&at("**/a*")), ok(&["a1", "a2", "a3"]));
        assert_eq!(names(&at("x[1]")), ok(&["x[1]"]), "it exists");
        assert_eq!(names(&at("missing")), ok(&["missing"]));
        let line = |name: &str, why: &str| vec![Err(format!("{}: {why}", plain(&at(name))))];
        assert_eq!(names(&at("z*")), line("z*", "nothing matches"));
        assert_eq!(names(&at("a[")), line("a[", "invalid range pattern"));
    }
}
