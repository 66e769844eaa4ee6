//! The numbers that the engine knows things by, each a type of its own, and tables that are looked up by them.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A number that is a place in a [`Table`] or in [`Places`].
pub(crate) trait Id: Copy {
    fn new(place: usize) -> Self;
    fn place(self) -> usize;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $vis:vis struct $name:ident($number:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name(pub $number);

        impl Id for $name {
            fn new(place: usize) -> $name {
                $name(place as $number)
            }

            fn place(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    /// A block that is in the pool. Where its bytes are is its `place`.
    pub(crate) struct BlockId(u32);

    /// A buffer of the pool: the room of one block, or of a tray.
    pub(crate) struct BufferId(u32);

    /// The memory of a buffer or of an intake, which exchange theirs.
    pub(crate) struct FrameId(u32);

    /// A partition that the engine knows.
    pub(crate) struct PartitionId(u32);

    /// A partition of which only the bytes are kept.
    pub(crate) struct RestingId(u32);

    /// An open handle of a partition, as [`Engine::open`](super::Engine::open) returned it.
    pub struct HandleId(u64);

    /// A transfer under way; the device knows it by the same number.
    pub(crate) struct TransferId(u64);
}

impl BlockId {
    /// No block.
    pub(crate) const NONE: BlockId = BlockId(u32::MAX);
}

impl PartitionId {
    /// No partition.
    pub(crate) const NONE: PartitionId = PartitionId(u32::MAX);
}

/// Things by number. The number of one that was removed is given out again.
#[derive(Debug)]
pub(crate) struct Table<K, T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
    keys: PhantomData<K>,
}

impl<K: Id, T> Table<K, T> {
    pub(crate) fn new() -> Table<K, T> {
        Table { items: Vec::new(), free: Vec::new(), keys: PhantomData }
    }

    pub(crate) fn insert(&mut self, item: T) -> K {
        let place = match self.free.pop() {
            Some(place) => {
                self.items[place] = Some(item);
                place
            }
            None => {
                self.items.push(Some(item));
                self.items.len() - 1
            }
        };
        K::new(place)
    }

    pub(crate) fn remove(&mut self, id: K) -> Option<T> {
        let item = self.items.get_mut(id.place())?.take()?;
        self.free.push(id.place());
        Some(item)
    }

    pub(crate) fn get(&self, id: K) -> Option<&T> {
        self.items.get(id.place())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: K) -> Option<&mut T> {
        self.items.get_mut(id.place())?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// How many numbers were given out; some may be free again.
    pub(crate) fn places(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.items.iter().enumerate().filter_map(|(at, item)| Some((K::new(at), item.as_ref()?)))
    }
}

/// Things that are there for every number.
#[derive(Debug)]
pub(crate) struct Places<K, T> {
    items: Vec<T>,
    keys: PhantomData<K>,
}

impl<K: Id, T> Places<K, T> {
    pub(crate) fn new(items: impl IntoIterator<Item = T>) -> Places<K, T> {
        Places { items: items.into_iter().collect(), keys: PhantomData }
    }

    pub(crate) fn push(&mut self, item: T) -> K {
        self.items.push(item);
        K::new(self.items.len() - 1)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = K> + use<K, T> {
        (0..self.items.len()).map(K::new)
    }

    #[cfg(any(test, feature = "shuttle", feature = "fuzz"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }
}

impl<K: Id, T> Index<K> for Places<K, T> {
    type Output = T;

    fn index(&self, id: K) -> &T {
        &self.items[id.place()]
    }
}

impl<K: Id, T> IndexMut<K> for Places<K, T> {
    fn index_mut(&mut self, id: K) -> &mut T {
        &mut self.items[id.place()]
    }
}
