//! Going through everything below a folder, in little memory and with few descriptors however much that is: its
//! depth, and how many names lie where, are the users' choice.

use std::collections::VecDeque;
use std::ffi::OsString;

use super::Volume;
use super::rights::Rights;
use crate::fs::FileKind;
use crate::shares::User;

/// Names of a folder that are read at once.
const BATCH_NAMES: usize = 512;

/// Names that all folders on the way down may hold; beyond, those of the outer ones are read again later.
const HELD_NAMES_MAX: usize = 4096;

/// A folder on the way down. It takes no descriptor while nothing is read of it.
struct Level {
    /// Its node, to be forgotten at the end; `None` for the top, which is the caller's.
    node: Option<u64>,
    /// What was read of it and not visited yet, each with where the folder goes on behind it.
    names: VecDeque<(OsString, u64)>,
    /// Where to read on.
    next: u64,
    /// Nothing is behind `next`.
    is_read: bool,
}

impl Level {
    fn new(node: Option<u64>) -> Self {
        Self { node, names: VecDeque::new(), next: 0, is_read: false }
    }

    /// Gives the names up that were not visited yet; they are read again.
    fn shed(&mut self, visited: u64) {
        if !self.names.is_empty() {
            self.names = VecDeque::new();
            (self.next, self.is_read) = (visited, false);
        }
    }
}

impl Volume {
    /// Calls `visit` for every entry below `id`, with id and size where it is a partition that may be reached
    /// and written, until it returns false. Names that come or go meanwhile may be met or not.
    pub(super) fn walk(
        &self, id: u64, rights: &Rights, visit: &mut dyn FnMut(Option<(u64, u64)>) -> bool,
    ) {
        // With each level, where it goes on behind the name that was visited last.
        let mut levels = vec![(Level::new(None), 0)];
        let (mut go_on, mut held) = (true, 0);
        while let Some((level, visited)) = levels.last_mut() {
            let folder = level.node.unwrap_or(id);
            if level.names.is_empty() && !level.is_read && go_on {
                self.read_names(folder, level, rights);
                held += level.names.len();
            }
            let Some((name, behind)) = level.names.pop_front().filter(|_| go_on) else {
                if let Some(node) = level.node {
                    self.forget(node, 1);
                }
                levels.pop();
                continue;
            };
            (*visited, held) = (behind, held - 1);
            let Ok(entry) = self.lookup(folder, &name) else {
                continue;
            };
            let partition = entry.attributes.kind == FileKind::Regular
                && rights.may_write(&self.tree, &entry.attributes);
            go_on = visit(partition.then_some((entry.id, entry.attributes.size)));
            if entry.attributes.kind != FileKind::Directory {
                self.forget(entry.id, 1);
                continue;
            }
            if held > HELD_NAMES_MAX {
                held = 0;
                levels.iter_mut().for_each(|(level, visited)| level.shed(*visited));
            }
            levels.push((Level::new(Some(entry.id)), 0));
        }
    }

    /// Reads the next names of a folder; none where who asks could not find them.
    fn read_names(&self, id: u64, level: &mut Level, rights: &Rights) {
        let start = level.next;
        level.is_read = true;
        let attributes = self.tree.attributes(id);
        let listable = attributes.is_ok_and(|folder| rights.may_list(&self.tree, &folder));
        let Some(directory) = listable.then(|| self.tree.open_dir(User::OWN, id).ok()).flatten()
        else {
            return;
        };
        // What was listed before an error is asked all the same.
        let _ = directory.read(start, |entry| {
            level.next = entry.next_offset;
            if entry.name != "." && entry.name != ".." {
                level.names.push_back((entry.name.to_owned(), entry.next_offset));
            }
            // Filesystems whose places are hashes may give one twice: there would be no way on from the same one.
            level.is_read = level.names.len() < BATCH_NAMES || level.next == start;
            level.is_read
        });
    }
}
