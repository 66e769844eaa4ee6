//! The namespace on a real folder. What needs root says so and is skipped with a message without
//! it.

mod contents;
mod directories;
mod names;
mod owners;
mod races;
mod reach;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{Attributes, Caller, Entry, FileKind, Options, ROOT_ID, RenameKind, Tree};
use crate::error::{Errno, Result};
use crate::shares::User;

/// A swap folder and its tree.
struct Swap {
    folder: TempDir,
    tree: Tree,
}

impl Swap {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), options)
    }

    fn in_folder(folder: TempDir, options: Options) -> Self {
        rustix::process::umask(rustix::fs::Mode::empty());
        let root = File::open(folder.path()).unwrap().into();
        let tree = Tree::new(root, options).unwrap();
        Self { folder, tree }
    }

    fn path(&self, name: impl AsRef<std::path::Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file made in the swap folder by other means.
    fn plant(&self, name: &str) {
        std::fs::write(self.path(name), name).unwrap();
    }

    fn look(&self, name: &str) -> Result<Entry> {
        self.tree.lookup(ROOT_ID, OsStr::new(name))
    }

    fn make(&self, parent: u64, name: &str) -> Entry {
        let created = self.tree.create(parent, OsStr::new(name), &own(), 0o644, true, false);
        created.unwrap().entry
    }

    fn mkdir(&self, parent: u64, name: &str) -> Entry {
        self.tree.mkdir(parent, OsStr::new(name), &own(), 0o755).unwrap()
    }

    fn rename(&self, from: (u64, &str), to: (u64, &str)) {
        let gone = self.tree.rename(
            User::OWN,
            (from.0, OsStr::new(from.1)),
            (to.0, OsStr::new(to.1)),
            RenameKind::Replace,
        );
        assert_eq!(gone, Ok(None));
    }

    fn lookups(&self, id: u64) -> u64 {
        self.tree.table.lock().lookups(id)
    }
}

/// The tests' own user, with nothing taken out of modes.
fn own() -> Caller {
    caller(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw(), 0)
}

fn caller(uid: u32, gid: u32, umask: u32) -> Caller {
    Caller { uid, gid, umask, keeps_set_group_id: uid == 0 }
}

/// Whether this is root with everything that takes; prints the skip otherwise.
fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root() && crate::sys::keep_capabilities().is_ok();
    if !is_root {
        eprintln!("skipped {test}: needs root with CAP_SETPCAP");
    }
    is_root
}
