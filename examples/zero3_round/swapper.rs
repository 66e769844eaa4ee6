//! `deepspeed::Swapper`: partitions are worked on where they lie, in its pool.

use std::path::Path;

use swapfs::deepspeed::swapper::{PartitionId, Swapper, SwapperOptions, View, ViewMut};
use swapfs::engine::PartitionStatus;

use super::Outcome;
use super::model::{Kind, Partition};
use super::stores::{self, Store};

/// A quarter of the pool stays out of prefetching: what is at work needs gradients and new parameters beside it.
const KEPT: usize = 4;

/// The swapper as a store.
pub(crate) struct Pool {
    swapper: Swapper,
    buffers: usize,
}

impl Pool {
    pub(crate) fn new(folder: &Path, pool_size: u64) -> Outcome<Self> {
        let swapper = Swapper::new(&SwapperOptions { pool_size, ..SwapperOptions::new(folder) })?;
        let buffers = swapper.available_swap_in_buffers();
        Ok(Self { swapper, buffers })
    }
}

fn id(partition: &Partition) -> PartitionId {
    match partition.kind.clone() {
        Kind::Parameter(number) => PartitionId::Param(number as u64),
        Kind::Master { group } => PartitionId::SubGroup(group),
        Kind::State { state, group } => PartitionId::State { state: state.into(), id: group },
        Kind::Gradient { group, offset, elements } => {
            PartitionId::Gradient { id: group, offset: offset as u64, length: elements as u64 }
        }
    }
}

fn elements(partition: &Partition) -> u64 {
    let size = if matches!(partition.kind, Kind::Parameter(_)) { 2 } else { 4 };
    partition.length as u64 / size
}

impl stores::View for View {
    fn chunks(&self) -> Vec<&[u8]> {
        self.chunks().collect()
    }
}

impl stores::View for ViewMut {
    fn chunks(&self) -> Vec<&[u8]> {
        self.chunks().collect()
    }
}

impl stores::ViewMut for ViewMut {
    fn chunks_mut(&mut self) -> Vec<&mut [u8]> {
        self.chunks_mut().collect()
    }
}

impl Pool {
    /// Swaps in what is not available yet.
    fn arrive(&self, partition: &Partition) -> Outcome<PartitionId> {
        let id = id(partition);
        match self.swapper.status(id.clone())? {
            PartitionStatus::Available => {}
            PartitionStatus::Inflight => drop(self.swapper.synchronize_reads()?),
            PartitionStatus::NotAvailable => {
                self.swapper.swap_in(std::slice::from_ref(&id), false, None)?;
            }
        }
        Ok(id)
    }
}

impl Store for Pool {
    type View = View;
    type ViewMut = ViewMut;

    fn prefetch(&mut self, partition: &Partition) -> Outcome<bool> {
        let id = id(partition);
        let needed = self.swapper.buffers_for(id.clone(), elements(partition)) as usize;
        let fits = self.swapper.available_swap_in_buffers() >= needed + self.buffers / KEPT;
        if fits && self.swapper.status(id.clone())? == PartitionStatus::NotAvailable {
            self.swapper.swap_in(&[id], true, None)?;
        }
        Ok(fits)
    }

    fn swap_in(&mut self, partition: &Partition) -> Outcome<View> {
        Ok(self.swapper.view(self.arrive(partition)?)?)
    }

    fn swap_in_to_update(&mut self, partition: &Partition) -> Outcome<ViewMut> {
        Ok(self.swapper.view_mut(self.arrive(partition)?)?)
    }

    fn release(&mut self, partition: &Partition, view: View) -> Outcome<()> {
        drop(view);
        Ok(self.swapper.remove_partition_and_release_buffers(&[id(partition)])?)
    }

    fn get_buffer(&mut self, partition: &Partition) -> Outcome<ViewMut> {
        Ok(self.swapper.get_buffer(id(partition), elements(partition))?)
    }

    fn swap_out(&mut self, partition: &Partition, view: ViewMut) -> Outcome<()> {
        drop(view);
        self.swapper.swap_out_and_release(&[id(partition)], true, false)?;
        Ok(())
    }

    fn synchronize_writes(&mut self) -> Outcome<()> {
        self.swapper.synchronize_writes()?;
        Ok(())
    }
}
