//! The memory of operations: what callers may pass, and what an operation holds of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::router::Event;
use super::tensor::{LockedTensor, Narrow, Region};
use crate::pool::WriteLease;

/// Memory for asynchronous operations: moved in, and back out of
/// [`Operation::finish`](super::Operation::finish). A [`LockedTensor`] is transferred directly, a
/// `Vec<u8>` (its `len()` bytes) by way of bounce buffers.
pub trait Buffer: Sized + Send + 'static + sealed::Sealed {}

impl Buffer for LockedTensor {}
impl Buffer for Vec<u8> {}

pub(super) mod sealed {
    use super::Owned;

    pub trait Sealed {
        #[doc(hidden)]
        fn into_owned(self) -> Owned;
        #[doc(hidden)]
        fn from_owned(owned: Owned) -> Option<Self>
        where
            Self: Sized;
    }
}

/// A [`Buffer`] of any kind.
#[derive(Debug)]
pub enum Owned {
    #[doc(hidden)]
    Tensor(LockedTensor),
    #[doc(hidden)]
    Plain(Vec<u8>),
}

impl sealed::Sealed for LockedTensor {
    fn into_owned(self) -> Owned {
        Owned::Tensor(self)
    }

    fn from_owned(owned: Owned) -> Option<Self> {
        match owned {
            Owned::Tensor(tensor) => Some(tensor),
            Owned::Plain(_) => None,
        }
    }
}

impl sealed::Sealed for Vec<u8> {
    fn into_owned(self) -> Owned {
        Owned::Plain(self)
    }

    fn from_owned(owned: Owned) -> Option<Self> {
        match owned {
            Owned::Plain(bytes) => Some(bytes),
            Owned::Tensor(_) => None,
        }
    }
}

/// What a synchronous write takes its bytes from. Made by `Into` from a `&mut` [`LockedTensor`] or a
/// [`Narrow`] of one, which is transferred directly (the device has the memory to itself until the call
/// returns, hence `&mut`), and from any `&[u8]`, which goes by way of bounce buffers.
#[derive(Debug)]
pub enum Source<'a> {
    /// Transferred directly.
    Tensor(Narrow<'a>),
    /// Copied to bounce buffers.
    Bytes(&'a [u8]),
}

/// What a synchronous read fills: a `&mut` [`LockedTensor`] or a [`Narrow`] of one directly, any
/// `&mut [u8]` by way of bounce buffers.
#[derive(Debug)]
pub enum Target<'a> {
    /// Transferred directly.
    Tensor(Narrow<'a>),
    /// Copied from bounce buffers.
    Bytes(&'a mut [u8]),
}

macro_rules! tensor_conversions {
    ($name:ident) => {
        impl<'a> From<&'a mut LockedTensor> for $name<'a> {
            fn from(tensor: &'a mut LockedTensor) -> Self {
                Self::Tensor(tensor.narrow(..))
            }
        }

        impl<'a> From<Narrow<'a>> for $name<'a> {
            fn from(narrow: Narrow<'a>) -> Self {
                Self::Tensor(narrow)
            }
        }
    };
}

tensor_conversions!(Source);
tensor_conversions!(Target);

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Source<'a> {
    fn from(bytes: &'a T) -> Self {
        Self::Bytes(bytes.as_ref())
    }
}

impl<'a> From<&'a mut [u8]> for Target<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a mut Vec<u8>> for Target<'a> {
    fn from(bytes: &'a mut Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a, const N: usize> From<&'a mut [u8; N]> for Target<'a> {
    fn from(bytes: &'a mut [u8; N]) -> Self {
        Self::Bytes(bytes)
    }
}

/// The memory of an operation under way.
#[derive(Debug)]
pub(super) enum Memory {
    /// Taken away, or never there.
    None,
    Tensor(Parts),
    Plain(Vec<u8>),
    /// A slice borrowed by the thread that waits for the operation; it copies.
    Caller(Sender<Event>),
}

impl Memory {
    pub(super) fn of(owned: Owned) -> Self {
        match owned {
            Owned::Tensor(tensor) => Self::Tensor(Parts::new(tensor)),
            Owned::Plain(bytes) => Self::Plain(bytes),
        }
    }
}

impl Owned {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Tensor(tensor) => tensor,
            Self::Plain(bytes) => bytes,
        }
    }
}

/// A tensor of which transfers hold parts.
#[derive(Debug)]
pub(super) struct Parts {
    region: Arc<Region>,
    /// Offset of the tensor in its region.
    start: usize,
    /// What no transfer holds, by offset in the region; neighbours are joined.
    here: BTreeMap<usize, WriteLease>,
}

impl Parts {
    fn new(tensor: LockedTensor) -> Self {
        let (lease, region) = tensor.into_parts();
        Self { region, start: lease.offset(), here: BTreeMap::from([(lease.offset(), lease)]) }
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// `length` bytes from `offset` of the tensor on, more than none. Each byte is taken once.
    pub(super) fn take(&mut self, offset: usize, length: usize) -> WriteLease {
        let offset = self.start + offset;
        let (_, lease) = self
            .here
            .range(..=offset)
            .next_back()
            .map(|(key, _)| *key)
            .and_then(|key| self.here.remove_entry(&key))
            .expect("no transfer has these bytes");
        let skipped = offset - lease.offset();
        let (front, rest) = lease.split_front(skipped);
        let (part, back) = rest.split_front(length);
        for rest in [front, back] {
            if !rest.is_empty() {
                self.here.insert(rest.offset(), rest);
            }
        }
        part
    }

    pub(super) fn put(&mut self, mut lease: WriteLease) {
        let neighbour = self.here.range(..lease.offset()).next_back();
        if let Some((key, front)) = neighbour
            && front.offset() + front.len() == lease.offset()
        {
            let key = *key;
            let front = self.here.remove(&key).expect("found above");
            lease = front.join(lease);
        }
        if let Some(back) = self.here.remove(&(lease.offset() + lease.len())) {
            lease = lease.join(back);
        }
        self.here.insert(lease.offset(), lease);
    }

    /// The tensor again, when no transfer holds a part.
    pub(super) fn whole(mut self) -> LockedTensor {
        let (_, lease) = self.here.pop_first().expect("all parts came back");
        assert!(self.here.is_empty(), "all parts came back");
        LockedTensor::from_parts(lease, self.region)
    }

    /// All bytes, when no transfer holds a part.
    pub(super) fn bytes(&self) -> &[u8] {
        assert!(self.here.len() <= 1, "all parts came back");
        self.here.values().next().map_or(&[], |lease| lease)
    }
}
