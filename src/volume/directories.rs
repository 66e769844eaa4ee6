//! The directories in the root, as what their partitions' traffic is counted under.

use std::ffi::{OsStr, OsString};

use parking_lot::Mutex;

/// Directories that are counted apart; the others share one line.
const DIRECTORIES_MAX: usize = 64;

/// What partitions in the root itself, and those beyond [`DIRECTORIES_MAX`] directories, are shown under: names
/// that no directory can have.
const ROOT: &str = "/";
const OTHERS: &str = "/others";

/// Names by the numbers of the engine's groups.
#[derive(Debug)]
pub(super) struct Directories {
    names: Mutex<Vec<OsString>>,
}

impl Directories {
    pub(super) fn new() -> Self {
        Self { names: Mutex::new(vec![OTHERS.into(), ROOT.into()]) }
    }

    /// The group of a directory in the root; of none, the root's own.
    pub(super) fn group(&self, name: Option<&OsStr>) -> usize {
        let name = name.unwrap_or(OsStr::new(ROOT));
        let mut names = self.names.lock();
        let known = names.iter().position(|known| known == name);
        known.unwrap_or_else(|| match names.len() {
            count if count >= DIRECTORIES_MAX + 2 => 0,
            count => {
                names.push(name.to_owned());
                count
            }
        })
    }

    /// Names, in the order of their groups.
    pub(super) fn names(&self) -> Vec<String> {
        self.names.lock().iter().map(|name| name.to_string_lossy().into_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_directories_share_the_last_line() {
        let directories = Directories::new();
        let group = |name: &str| directories.group(Some(OsStr::new(name)));
        assert_eq!((directories.group(None), group("a"), group("b"), group("a")), (1, 2, 3, 2));
        for i in 0..2 * DIRECTORIES_MAX {
            group(&format!("{i}"));
        }
        assert_eq!((group("one too many"), group("b")), (0, 3));
        assert_eq!(directories.names().len(), DIRECTORIES_MAX + 2);
        assert_eq!(directories.names()[..3], [OTHERS, ROOT, "a"]);
    }
}
