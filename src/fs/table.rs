//! The inodes known now: how often each was looked up, where it was last seen, whose descriptor is
//! open.
//!
//! Pure memory. What a call displaces is returned, for the caller to drop after the lock.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use indexmap::IndexMap;
use lru::LruCache;

use super::ROOT_ID;
use super::types::{FileKey, FileKind};
use crate::shares::{Share, User};
use crate::sys::FileHandle;

/// What stays the same about an inode as long as it lives.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) key: FileKey,
    pub(super) kind: FileKind,
    /// `None` where the filesystem has no handles.
    pub(super) handle: Option<FileHandle>,
}

impl Node {
    /// Whether both describe one inode, not two that had the same number one after the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.key == other.key && self.kind == other.kind
    }
}

/// A name under which an inode was seen: a way back to it, to be verified when taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Hint {
    pub(super) parent: u64,
    pub(super) name: OsString,
}

impl Hint {
    pub(super) fn new(parent: u64, name: &OsStr) -> Self {
        Self { parent, name: name.to_owned() }
    }
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    lookups: u64,
    /// The latest of its names.
    hint: Option<Hint>,
    /// Set while the inode could not be opened again; outside the limit on descriptors.
    pinned: Option<Pinned>,
    /// It has lost its last name, and nobody had a share left to keep it.
    abandoned: bool,
}

#[derive(Debug)]
struct Pinned {
    descriptor: Arc<OwnedFd>,
    _share: Share,
}

/// What a call took out of the table. Dropping it may close descriptors, so it is dropped after the
/// lock.
#[derive(Debug, Default)]
#[must_use = "to be dropped after the lock"]
pub(super) struct Displaced(Vec<Arc<OwnedFd>>);

impl Displaced {
    pub(super) fn of(descriptor: OwnedFd) -> Self {
        Self(vec![Arc::new(descriptor)])
    }
}

/// An inode that nobody knows any longer. Dropping it may close its descriptor.
#[derive(Debug)]
#[must_use = "to be dropped after the lock"]
pub struct Forgotten {
    pub(super) node: Arc<Node>,
    was_pinned: bool,
    _displaced: Displaced,
}

impl Forgotten {
    /// The inode's identity, if it had lost the name that it was known by.
    #[must_use]
    pub fn nameless(&self) -> Option<FileKey> {
        let is_file = self.node.kind == FileKind::Regular;
        (self.was_pinned && is_file).then_some(self.node.key)
    }
}

/// How [`Table::reach`] answers.
#[derive(Debug)]
pub(super) enum Reach {
    /// Its descriptor is open.
    Open(Arc<Node>, Arc<OwnedFd>),
    /// It must be opened again.
    Closed(Arc<Node>),
}

/// The known inodes, and the descriptors of those used last.
#[derive(Debug)]
pub(super) struct Table {
    /// By position, too: what is looked through in small steps.
    nodes: IndexMap<u64, Known>,
    /// Where [`Table::some`] goes on.
    next: usize,
    /// Of known nodes that are not pinned; at most `descriptors_max`.
    descriptors: LruCache<u64, Arc<OwnedFd>>,
    descriptors_max: usize,
    /// See [`Tree`](super::Tree).
    spare_from: RawFd,
}

impl Table {
    pub(super) fn new(descriptors_max: usize, spare_from: RawFd) -> Self {
        // Unbounded, because a bounded cache drops what it evicts itself: the limit is kept in
        // `open`.
        let descriptors = LruCache::unbounded();
        Self { nodes: IndexMap::new(), next: 0, descriptors, descriptors_max, spare_from }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Some nodes, at most `count`: each time the next ones, and those that are there come again and again.
    pub(super) fn some(&mut self, count: usize) -> Vec<u64> {
        let length = self.nodes.len();
        let places = (0..count.min(length)).map(|step| (self.next + step) % length);
        let ids = places.filter_map(|place| self.nodes.get_index(place)).map(|(id, _)| *id);
        let some = ids.filter(|id| *id != ROOT_ID).collect();
        self.next = (self.next + count) % length.max(1);
        some
    }

    #[cfg(test)]
    pub(super) fn descriptor_count(&self) -> usize {
        self.descriptors.len()
    }

    #[cfg(test)]
    pub(super) fn lookups(&self, id: u64) -> u64 {
        self.nodes.get(&id).map_or(0, |known| known.lookups)
    }

    pub(super) fn node(&self, id: u64) -> Option<&Arc<Node>> {
        self.nodes.get(&id).map(|known| &known.node)
    }

    pub(super) fn hint(&self, id: u64) -> Option<&Hint> {
        self.nodes.get(&id)?.hint.as_ref()
    }

    pub(super) fn install_root(&mut self, node: Arc<Node>, descriptor: Arc<OwnedFd>) {
        assert_eq!(node.id, ROOT_ID, "the root's inode number is mapped to 1");
        let known = Known {
            node,
            lookups: 1,
            hint: None,
            pinned: Some(Pinned { descriptor, _share: Share::uncounted(User::OWN) }),
            abandoned: false,
        };
        self.nodes.insert(ROOT_ID, known);
    }

    /// How to reach `id` now. A use: its descriptor is the last to be closed.
    pub(super) fn reach(&mut self, id: u64) -> Option<Reach> {
        let known = self.nodes.get(&id)?;
        let node = known.node.clone();
        let pinned = known.pinned.as_ref().map(|pinned| &pinned.descriptor);
        let open = pinned.or_else(|| self.descriptors.get(&id));
        Some(match open {
            Some(descriptor) => Reach::Open(node, descriptor.clone()),
            None => Reach::Closed(node),
        })
    }

    /// The way to `id` by names: the nearest directory above it that is open, and the names from
    /// there.
    pub(super) fn way_to(&self, id: u64) -> Option<(Arc<OwnedFd>, Vec<OsString>)> {
        let mut names = Vec::new();
        let mut hint = self.nodes.get(&id)?.hint.as_ref()?;
        // Names seen at different times may form a ring: no way is longer than the number of nodes.
        for _ in 0..self.nodes.len() {
            names.push(hint.name.clone());
            let parent = self.nodes.get(&hint.parent)?;
            let pinned = parent.pinned.as_ref().map(|pinned| &pinned.descriptor);
            let open = pinned.or_else(|| self.descriptors.peek(&hint.parent));
            if let Some(descriptor) = open {
                names.reverse();
                return Some((descriptor.clone(), names));
            }
            hint = parent.hint.as_ref()?;
        }
        None
    }

    /// The names from the root to `id`, as far as they are known; `None` for what has no name.
    pub(super) fn names_to(&self, id: u64) -> Option<Vec<OsString>> {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT_ID {
            let hint = self.hint(at)?;
            // As above: a ring leads nowhere.
            if names.len() > self.nodes.len() {
                return None;
            }
            names.push(hint.name.clone());
            at = hint.parent;
        }
        names.reverse();
        Some(names)
    }

    /// The first of [`Table::names_to`] of a node that has more than one.
    pub(super) fn top_of(&self, id: u64) -> Option<OsString> {
        let mut below = self.hint(id)?;
        for _ in 0..self.nodes.len() {
            if below.parent == ROOT_ID {
                return None;
            }
            let above = self.hint(below.parent)?;
            if above.parent == ROOT_ID {
                return Some(above.name.clone());
            }
            below = above;
        }
        None
    }

    /// One lookup more of what a name was found to be. Without a descriptor it counts as closed.
    pub(super) fn adopt(
        &mut self, node: Node, descriptor: Option<Arc<OwnedFd>>, hint: Hint, links: u32,
    ) -> Displaced {
        let id = node.id;
        let mut displaced = Displaced::default();
        match self.nodes.get_mut(&id) {
            None => {
                let (node, hint) = (Arc::new(node), Some(hint));
                let known = Known { node, lookups: 1, hint, pinned: None, abandoned: false };
                self.nodes.insert(id, known);
            }
            Some(known) if id == ROOT_ID || (known.node.is_same(&node) && links == 0) => {
                // The root has no name, and an unlinked inode keeps its pinned descriptor.
                known.lookups += 1;
                displaced.0.extend(descriptor);
                return displaced;
            }
            Some(known) => {
                known.lookups += 1;
                known.hint = Some(hint);
                // It has a name, so it need not stay pinned.
                displaced.0.extend(known.pinned.take().map(|pinned| pinned.descriptor));
                if !known.node.is_same(&node) {
                    // The number was reused. Who knows the old inode by this id will give as many
                    // lookups back as it took, so the count covers both.
                    known.node = Arc::new(node);
                    known.abandoned = false;
                }
            }
        }
        match descriptor {
            Some(descriptor) => self.open(id, descriptor, &mut displaced),
            // One that is there may be of an inode that had the same number before.
            None => displaced.0.extend(self.descriptors.pop(&id)),
        }
        displaced
    }

    /// Remembers the descriptor that `node` was opened again with, unless it is no longer known.
    pub(super) fn reopened(&mut self, node: &Arc<Node>, descriptor: Arc<OwnedFd>) -> Displaced {
        let mut displaced = Displaced::default();
        match self.nodes.get(&node.id) {
            Some(known) if Arc::ptr_eq(&known.node, node) && known.pinned.is_none() => {
                self.open(node.id, descriptor, &mut displaced);
            }
            _ => displaced.0.push(descriptor),
        }
        displaced
    }

    /// Puts a descriptor first among those used last, and closes what exceeds the limit. A spare one is not kept.
    fn open(&mut self, id: u64, descriptor: Arc<OwnedFd>, displaced: &mut Displaced) {
        if descriptor.as_raw_fd() >= self.spare_from {
            displaced.0.push(descriptor);
            displaced.0.extend(self.descriptors.pop(&id));
            return;
        }
        displaced.0.extend(self.descriptors.put(id, descriptor));
        while self.descriptors.len() > self.descriptors_max {
            displaced.0.extend(self.descriptors.pop_lru().map(|(_, descriptor)| descriptor));
        }
    }

    /// Keeps `descriptor` as long as the inode is known: it has no name to come back by.
    pub(super) fn pin(&mut self, node: &Node, descriptor: Arc<OwnedFd>, share: Share) -> Displaced {
        let mut displaced = Displaced::default();
        match self.nodes.get_mut(&node.id) {
            Some(known) if known.node.is_same(node) && node.id != ROOT_ID => {
                known.hint = None;
                let before = known.pinned.replace(Pinned { descriptor, _share: share });
                displaced.0.extend(before.map(|pinned| pinned.descriptor));
                displaced.0.extend(self.descriptors.pop(&node.id));
            }
            _ => displaced.0.push(descriptor),
        }
        displaced
    }

    /// The inode has no name any more and is not kept.
    pub(super) fn abandon(&mut self, node: &Node) {
        if let Some(known) = self.nodes.get_mut(&node.id).filter(|known| known.node.is_same(node)) {
            known.abandoned = true;
        }
    }

    pub(super) fn is_abandoned(&self, id: u64) -> bool {
        self.nodes.get(&id).is_none_or(|known| known.abandoned)
    }

    /// The inode is reached by another name from now on.
    pub(super) fn renamed(&mut self, node: &Node, hint: Hint) {
        if let Some(known) = self.nodes.get_mut(&node.id)
            && known.node.is_same(node)
            && known.pinned.is_none()
        {
            known.hint = Some(hint);
        }
    }

    /// `hint` no longer leads to the inode. Returns whether it is now known by no name at all.
    pub(super) fn unnamed(&mut self, node: &Node, hint: &Hint) -> bool {
        match self.nodes.get_mut(&node.id) {
            Some(known) if known.node.is_same(node) => {
                known.hint.take_if(|known_hint| known_hint == hint);
                known.hint.is_none()
            }
            _ => false,
        }
    }

    /// Whether this very inode is known.
    pub(super) fn knows(&self, node: &Node) -> bool {
        self.nodes.get(&node.id).is_some_and(|known| known.node.is_same(node))
    }

    /// `count` lookups less; the node is taken out with the last one.
    pub(super) fn forget(&mut self, id: u64, count: u64) -> Option<Forgotten> {
        let known = self.nodes.get_mut(&id)?;
        debug_assert!(known.lookups >= count || id == ROOT_ID, "more forgotten than looked up");
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 || id == ROOT_ID {
            return None;
        }
        let known = self.nodes.swap_remove(&id)?;
        let (mut displaced, was_pinned) = (Displaced::default(), known.pinned.is_some());
        displaced.0.extend(known.pinned.map(|pinned| pinned.descriptor));
        displaced.0.extend(self.descriptors.pop(&id));
        Some(Forgotten { node: known.node, was_pinned, _displaced: displaced })
    }
}
