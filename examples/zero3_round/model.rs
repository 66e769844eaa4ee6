//! What is trained: partitions in DeepSpeed's folders and proportions, and what becomes of their bytes.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;

/// Elements that a partition's length is a multiple of: 1024 bytes of fp16.
const ALIGNMENT: usize = 512;
/// A transformer layer's tensors, in units of the square of its width: queries, keys and values, output, up, down.
const LAYER: [usize; 4] = [3, 1, 4, 4];
/// Elements of the smallest partition, which DeepSpeed would keep in memory if it had fewer.
const UNIT_LEAST: usize = 512 << 10;
const LAYERS_MOST: usize = 24;
/// Bytes for each element: fp16 parameter, fp32 master, exp_avg, exp_avg_sq.
const BYTES_PER_ELEMENT: usize = 2 + 3 * 4;

/// What a partition is; sub-groups are named by their first and last parameter.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// fp16; all others are fp32.
    Parameter(usize),
    Master {
        group: String,
    },
    State {
        state: &'static str,
        group: String,
    },
    Gradient {
        group: String,
        offset: usize,
        elements: usize,
    },
}

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct Partition {
    /// Its place among all of the model's.
    pub(crate) number: usize,
    pub(crate) kind: Kind,
    /// Bytes.
    pub(crate) length: usize,
}

impl Partition {
    /// Its file, below the folder that DeepSpeed calls nvme_path.
    pub(crate) fn path(&self) -> PathBuf {
        let (folder, name) = match &self.kind {
            Kind::Parameter(number) => ("float16params", format!("{number}_param")),
            Kind::Master { group } => ("optimizer", group.clone()),
            Kind::State { state, group } => ("optimizer", format!("{state}-{group}")),
            Kind::Gradient { group, offset, elements } => {
                ("optimizer", format!("{group}_gradient_{offset}_{elements}"))
            }
        };
        format!("zero_stage_3/{folder}/rank0/{name}.tensor.swp").into()
    }
}

/// A parameter's partition, and the gradient's, which has twice the bytes.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) half: Partition,
    pub(crate) gradient: Partition,
}

/// Parameters whose optimizer states lie in one file of each kind.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) parameters: Range<usize>,
    /// Master, exp_avg, exp_avg_sq.
    pub(crate) states: [Partition; 3],
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) groups: Vec<Group>,
    /// Partitions of all kinds.
    pub(crate) count: usize,
}

impl Model {
    /// A model whose parameters and states have about so many bytes (gradients come on top), in groups of
    /// which two at a time, gradients included, fit into the pool.
    pub(crate) fn new(bytes: usize, pool: usize) -> Self {
        let elements = bytes / BYTES_PER_ELEMENT;
        let weight: usize = LAYER.iter().sum();
        let layers = (elements / weight / UNIT_LEAST).clamp(1, LAYERS_MOST);
        let unit = (elements / weight / layers).next_multiple_of(ALIGNMENT);
        let lengths: Vec<usize> =
            (0..layers).flat_map(|_| LAYER.map(|weight| weight * unit)).collect();
        let group_elements = pool / (2 * 4 * size_of::<f32>());
        let mut model = Self { parameters: Vec::new(), groups: Vec::new(), count: 0 };
        let mut start = 0;
        while start < lengths.len() {
            let mut end = start + 1;
            let mut total = lengths[start];
            while end < lengths.len() && total + lengths[end] <= group_elements {
                total += lengths[end];
                end += 1;
            }
            model.add_group(start..end, &lengths[start..end], total);
            start = end;
        }
        model
    }

    fn add_group(&mut self, parameters: Range<usize>, lengths: &[usize], total: usize) {
        let group = format!("{}_{}", parameters.start, parameters.end - 1);
        let mut offset = 0;
        for (number, &elements) in parameters.clone().zip(lengths) {
            let gradient = Kind::Gradient { group: group.clone(), offset, elements };
            let parameter = Parameter {
                half: self.partition(Kind::Parameter(number), elements * 2),
                gradient: self.partition(gradient, elements * 4),
            };
            self.parameters.push(parameter);
            offset += elements;
        }
        let state = |state| Kind::State { state, group: group.clone() };
        let states = [Kind::Master { group: group.clone() }, state("exp_avg"), state("exp_avg_sq")];
        let states = states.map(|kind| self.partition(kind, total * 4));
        self.groups.push(Group { parameters, states });
    }

    fn partition(&mut self, kind: Kind, length: usize) -> Partition {
        self.count += 1;
        Partition { number: self.count - 1, kind, length }
    }

    /// All files, gradients included.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = &Partition> {
        let parameters = self.parameters.iter().flat_map(|each| [&each.half, &each.gradient]);
        parameters.chain(self.groups.iter().flat_map(|group| &group.states))
    }

    /// Bytes of parameters and states.
    pub(crate) fn bytes(&self) -> u64 {
        let states = self.groups.iter().flat_map(|group| &group.states);
        let all = self.parameters.iter().map(|each| &each.half).chain(states);
        all.map(|partition| partition.length as u64).sum()
    }
}

/// Bytes that can be cut in two: `&[u8]` and `&mut [u8]`.
pub(crate) trait Cut: Default + AsRef<[u8]> {
    fn cut(self, at: usize) -> (Self, Self);
}

impl Cut for &[u8] {
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at(at)
    }
}

impl Cut for &mut [u8] {
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

/// Bytes of one partition in pieces, to be worked through beside others cut elsewhere.
pub(crate) struct Pieces<T>(VecDeque<T>);

impl<T: Cut> Pieces<T> {
    pub(crate) fn new(chunks: Vec<T>) -> Self {
        Self(chunks.into())
    }

    /// Bytes up to the next cut; 0 at the end.
    fn run(&self) -> usize {
        self.0.front().map_or(0, |chunk| chunk.as_ref().len())
    }

    /// The next bytes, no more than [`run`](Self::run).
    fn take(&mut self, length: usize) -> T {
        let (taken, rest) = self.0.pop_front().unwrap_or_default().cut(length);
        if !rest.as_ref().is_empty() {
            self.0.push_front(rest);
        }
        taken
    }
}

/// The first bytes of a partition: noise that depends on its number and the offset alone.
pub(crate) fn fill(chunks: Vec<&mut [u8]>, number: usize) {
    let mut word = (number as u64 + 1) << 40;
    for chunk in chunks {
        for bytes in chunk.chunks_exact_mut(8) {
            word += 1;
            let noise = (word ^ (word >> 13)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bytes.copy_from_slice(&(noise ^ (noise >> 29)).to_le_bytes());
        }
    }
}

/// The gradient of a parameter: four bytes of every two.
pub(crate) fn backward(half: Vec<&[u8]>, gradient: Vec<&mut [u8]>) {
    let (mut half, mut gradient) = (Pieces::new(half), Pieces::new(gradient));
    loop {
        let run = half.run().min(gradient.run() / 2);
        if run == 0 {
            return;
        }
        let (half, gradient) = (half.take(run), gradient.take(run * 2));
        for (from, to) in half.chunks_exact(2).zip(gradient.chunks_exact_mut(4)) {
            let (low, high) = (from[0], from[1]);
            to.copy_from_slice(&[low ^ 0x5a, high, low.wrapping_add(high), high ^ low]);
        }
    }
}

/// The optimizer's step for one parameter, which takes the next bytes of its group's states: each byte
/// of the states and of the parameter becomes another one.
pub(crate) fn step(
    states: &mut [Pieces<&mut [u8]>; 3], gradient: Vec<&[u8]>, half: Vec<&mut [u8]>,
) {
    let (mut gradient, mut half) = (Pieces::new(gradient), Pieces::new(half));
    loop {
        let [master, average, square] = &mut *states;
        let states_run = master.run().min(average.run()).min(square.run());
        let run = states_run.min(gradient.run()).min(half.run() * 2);
        if run == 0 {
            return;
        }
        let (master, average, square) = (master.take(run), average.take(run), square.take(run));
        let (gradient, half) = (gradient.take(run), half.take(run / 2));
        for index in 0..run {
            average[index] = average[index].wrapping_mul(3).wrapping_add(gradient[index]) ^ 0x11;
            square[index] = square[index].wrapping_mul(5).wrapping_add(!gradient[index]);
            let moved = average[index] ^ square[index];
            master[index] = master[index].wrapping_add(moved | 1);
        }
        for (from, to) in master.chunks_exact(4).zip(half.chunks_exact_mut(2)) {
            to.copy_from_slice(&from[2..]);
        }
    }
}

/// A number that differs when any byte or its place does.
pub(crate) fn checksum<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    const LANES: usize = 8;
    let mut lanes = [0x243F_6A88_85A3_08D3_u64; LANES];
    for chunk in chunks {
        for words in chunk.chunks_exact(8 * LANES) {
            for (lane, word) in lanes.iter_mut().zip(words.chunks_exact(8)) {
                let word = u64::from_le_bytes([
                    word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
                ]);
                *lane = (*lane ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            }
        }
        assert!(chunk.len() % (8 * LANES) == 0, "partitions and blocks are multiples of 64 bytes");
    }
    lanes.iter().fold(0, |sum, lane| (sum ^ lane).wrapping_mul(0xFF51_AFD7_ED55_8CCD) >> 1)
}
