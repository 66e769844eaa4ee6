//! A round of training: forward, backward, and the optimizer's step.

use std::time::{Duration, Instant};

use super::Outcome;
use super::model::{self, Group, Model, Partition, Pieces};
use super::stores::{Store, View, ViewMut};

/// What one phase took.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// Seconds spent waiting for the store, the rest being what stands for computing.
    pub(crate) waited: f64,
}

impl Phase {
    pub(crate) fn gb_per_s(&self) -> f64 {
        (self.read + self.written) as f64 / self.seconds / 1e9
    }
}

/// The run on one store: every partition that comes in has the bytes it went out with.
pub(crate) struct Round<'a, S> {
    model: &'a Model,
    store: S,
    /// By the partition's number; 0 before its first write.
    pub(crate) checksums: Vec<u64>,
    waited: Duration,
    read: u64,
    written: u64,
}

impl<'a, S: Store> Round<'a, S> {
    pub(crate) fn new(model: &'a Model, store: S) -> Self {
        let checksums = vec![0; model.count];
        Self { model, store, checksums, waited: Duration::ZERO, read: 0, written: 0 }
    }

    /// Runs and measures a phase; `settle` is part of it.
    pub(crate) fn measure(
        &mut self, name: &'static str, phase: fn(&mut Self) -> Outcome<()>,
        settle: impl FnOnce() -> Outcome<()>,
    ) -> Outcome<Phase> {
        (self.waited, self.read, self.written) = (Duration::ZERO, 0, 0);
        let started = Instant::now();
        phase(self)?;
        self.ask(S::synchronize_writes)?;
        let settling = Instant::now();
        settle()?;
        self.waited += settling.elapsed();
        let seconds = started.elapsed().as_secs_f64();
        let (read, written, waited) = (self.read, self.written, self.waited.as_secs_f64());
        Ok(Phase { name, seconds, read, written, waited })
    }

    /// Asks the store, on the clock.
    fn ask<T>(&mut self, ask: impl FnOnce(&mut S) -> Outcome<T>) -> Outcome<T> {
        let started = Instant::now();
        let answer = ask(&mut self.store);
        self.waited += started.elapsed();
        answer
    }

    /// Whether it is what was written.
    fn check(&mut self, partition: &Partition, view: &impl View) -> Outcome<()> {
        self.read += partition.length as u64;
        if model::checksum(view.chunks()) == self.checksums[partition.number] {
            return Ok(());
        }
        Err(format!("{}: other bytes came in", partition.path().display()).into())
    }

    fn swap_in(&mut self, partition: &Partition) -> Outcome<S::View> {
        let view = self.ask(|store| store.swap_in(partition))?;
        self.check(partition, &view)?;
        Ok(view)
    }

    fn swap_in_to_update(&mut self, partition: &Partition) -> Outcome<S::ViewMut> {
        let view = self.ask(|store| store.swap_in_to_update(partition))?;
        self.check(partition, &view)?;
        Ok(view)
    }

    fn swap_out(&mut self, partition: &Partition, view: S::ViewMut) -> Outcome<()> {
        let sum = model::checksum(view.chunks());
        if std::mem::replace(&mut self.checksums[partition.number], sum) == sum {
            return Err(format!("{}: nothing was changed", partition.path().display()).into());
        }
        self.written += partition.length as u64;
        self.ask(|store| store.swap_out(partition, view))
    }

    /// Prefetches from `order[next]` on as far as there is room, and returns where it stopped.
    fn prefetch(&mut self, order: &[&Partition], mut next: usize) -> Outcome<usize> {
        while let Some(partition) = order.get(next)
            && self.ask(|store| store.prefetch(partition))?
        {
            next += 1;
        }
        Ok(next)
    }

    /// The first write of everything but gradients.
    pub(crate) fn fill(&mut self) -> Outcome<()> {
        let model = self.model;
        for group in &model.groups {
            let halves = model.parameters[group.parameters.clone()].iter().map(|each| &each.half);
            for partition in halves.chain(&group.states) {
                let mut tensor = self.ask(|store| store.get_buffer(partition))?;
                model::fill(tensor.chunks_mut(), partition.number);
                self.swap_out(partition, tensor)?;
            }
        }
        Ok(())
    }

    /// Every parameter in order.
    pub(crate) fn forward(&mut self) -> Outcome<()> {
        let order: Vec<&Partition> = self.model.parameters.iter().map(|each| &each.half).collect();
        let mut next = 0;
        for (index, partition) in order.iter().enumerate() {
            next = self.prefetch(&order, next.max(index))?;
            let tensor = self.swap_in(partition)?;
            self.ask(|store| store.release(partition, tensor))?;
        }
        Ok(())
    }

    /// Every parameter from the last to the first; its gradient is swapped out.
    pub(crate) fn backward(&mut self) -> Outcome<()> {
        let model = self.model;
        let parameters: Vec<_> = model.parameters.iter().rev().collect();
        let order: Vec<&Partition> = parameters.iter().map(|each| &each.half).collect();
        let mut next = 0;
        for (index, parameter) in parameters.iter().enumerate() {
            next = self.prefetch(&order, next.max(index))?;
            let half = self.swap_in(&parameter.half)?;
            let mut gradient = self.ask(|store| store.get_buffer(&parameter.gradient))?;
            model::backward(half.chunks(), gradient.chunks_mut());
            self.ask(|store| store.release(&parameter.half, half))?;
            self.swap_out(&parameter.gradient, gradient)?;
        }
        Ok(())
    }

    /// Group after group: states and gradients in, states and parameters out, the next group coming in
    /// meanwhile.
    pub(crate) fn step(&mut self) -> Outcome<()> {
        let model = self.model;
        let needs = |group: &'a Group| {
            let parameters = &model.parameters[group.parameters.clone()];
            group.states.iter().chain(parameters.iter().map(|each| &each.gradient))
        };
        let order: Vec<&Partition> = model.groups.iter().flat_map(needs).collect();
        let (mut done, mut next) = (0, 0);
        for group in &model.groups {
            next = self.prefetch(&order, next.max(done))?;
            let [master, average, square] = &group.states;
            let states = [
                self.swap_in_to_update(master)?,
                self.swap_in_to_update(average)?,
                self.swap_in_to_update(square)?,
            ];
            done += needs(group).count();
            next = self.prefetch(&order, next.max(done))?;
            self.step_group(group, states)?;
        }
        Ok(())
    }

    fn step_group(&mut self, group: &Group, mut states: [S::ViewMut; 3]) -> Outcome<()> {
        let mut pieces = states.each_mut().map(|state| Pieces::new(state.chunks_mut()));
        for parameter in &self.model.parameters[group.parameters.clone()] {
            let gradient = self.swap_in(&parameter.gradient)?;
            let mut half = self.ask(|store| store.get_buffer(&parameter.half))?;
            model::step(&mut pieces, gradient.chunks(), half.chunks_mut());
            self.ask(|store| store.release(&parameter.gradient, gradient))?;
            self.swap_out(&parameter.half, half)?;
        }
        for (partition, state) in group.states.iter().zip(states) {
            self.swap_out(partition, state)?;
        }
        Ok(())
    }
}
