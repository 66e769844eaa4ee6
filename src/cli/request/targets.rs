//! Which paths a request is for: patterns expanded, mounts found, directories walked.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, glob_with};
use rustix::fs::{Mode, OFlags};

use crate::fuse::mount::{self, MountEntry};
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

/// The line about a path that cannot be looked at.
pub(super) fn line_about(path: &Path, error: &io::Error) -> String {
    match mount::is_dead(error) {
        true => mount::dead_mount_line(path),
        false => format!("{}: {}", plain(path), reason(error)),
    }
}

/// A partition.
#[derive(Debug)]
pub(super) struct FileBelow {
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
}

/// The file itself, or every regular file below a directory on the same mount; the error is the line
/// for the user. What vanishes meanwhile is left out.
pub(super) fn files_below(path: &Path) -> Result<Vec<FileBelow>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| line_about(path, &error))?;
    let mut files = Vec::new();
    if !metadata.is_dir() {
        files.push(FileBelow { path: path.to_owned(), size: metadata.len() });
        return Ok(files);
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| line_about(&folder, &error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| line_about(&folder, &error))?;
            match entry.metadata() {
                Ok(found) if found.dev() != metadata.dev() => {}
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) if found.is_file() => {
                    files.push(FileBelow { path: entry.path(), size: found.len() });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(line_about(&entry.path(), &error)),
            }
        }
    }
    Ok(files)
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

    #[test]
    fn all_regular_files_below_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        for (name, text) in [("one", "1"), ("a/two", "22"), ("a/b/three", "333")] {
            std::fs::write(at(name), text).unwrap();
        }
        std::os::unix::fs::symlink("/etc", at("a/link")).unwrap();
        let mut sizes: Vec<u64> =
            files_below(folder.path()).unwrap().iter().map(|file| file.size).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 2, 3]);
        assert_eq!(files_below(&at("a/two")).unwrap()[0].size, 2);
        assert!(files_below(&at("none")).is_err());
    }
}
