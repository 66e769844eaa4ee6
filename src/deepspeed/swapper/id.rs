//! What partitions are called, and where their files are: DeepSpeed's folders and names.

use std::fmt;
use std::path::{Path, PathBuf};

/// The element type of a model's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 half precision.
    Float16,
    /// The upper half of a single-precision number.
    BFloat16,
    /// IEEE 754 single precision.
    Float32,
}

impl Dtype {
    /// Bytes of an element.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            Dtype::Float16 | Dtype::BFloat16 => 2,
            Dtype::Float32 => 4,
        }
    }

    /// torch's name of it, which DeepSpeed puts into the folder's.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Dtype::Float16 => "float16",
            Dtype::BFloat16 => "bfloat16",
            Dtype::Float32 => "float32",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which partition. A plain number is a parameter's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartitionId {
    /// A parameter's partition, by its `ds_id`; elements of the swapper's dtype.
    Param(u64),
    /// The master copy of a sub-group, by its id (`<first param>_<last param>`); float32, as all that follow.
    SubGroup(String),
    /// An optimizer state of a sub-group.
    State {
        /// Its name, such as `exp_avg`.
        state: String,
        /// The sub-group's id.
        id: String,
    },
    /// A piece of a sub-group's flat gradient.
    Gradient {
        /// The sub-group's id.
        id: String,
        /// Its first element.
        offset: u64,
        /// Its number of elements.
        length: u64,
    },
}

impl From<u64> for PartitionId {
    fn from(id: u64) -> Self {
        PartitionId::Param(id)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartitionId::Param(id) => write!(f, "{id}"),
            PartitionId::SubGroup(id) => f.write_str(id),
            PartitionId::State { state, id } => write!(f, "{state}-{id}"),
            PartitionId::Gradient { id, offset, length } => {
                write!(f, "{id}_gradient_{offset}_{length}")
            }
        }
    }
}

impl PartitionId {
    /// The file's name: `3_param.tensor.swp`, `0_7.tensor.swp`, `exp_avg-0_7.tensor.swp`,
    /// `0_7_gradient_0_4096.tensor.swp`.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self {
            PartitionId::Param(id) => format!("{id}_param.tensor.swp"),
            other => format!("{other}.tensor.swp"),
        }
    }

    /// Whether its name is one component of a path.
    pub(super) fn is_nameable(&self) -> bool {
        let name = self.file_name();
        name.len() <= 255 && !name.contains(['/', '\0'])
    }
}

/// Where the files are and how long.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) params: PathBuf,
    pub(super) optimizer: PathBuf,
    pub(super) dtype: Dtype,
    /// Every file's size is a multiple of this many bytes.
    pub(super) aligned_bytes: u64,
}

impl Layout {
    pub(super) fn new(folder: &Path, dtype: Dtype, rank: u32, aligned_bytes: u64) -> Layout {
        let stage = folder.join("zero_stage_3");
        Layout {
            params: stage.join(format!("{dtype}params")).join(format!("rank{rank}")),
            optimizer: stage.join("optimizer").join(format!("rank{rank}")),
            dtype,
            aligned_bytes,
        }
    }

    pub(super) fn folder(&self, id: &PartitionId) -> &Path {
        if matches!(id, PartitionId::Param(_)) { &self.params } else { &self.optimizer }
    }

    pub(super) fn path(&self, id: &PartitionId) -> PathBuf {
        self.folder(id).join(id.file_name())
    }

    pub(super) fn dtype(&self, id: &PartitionId) -> Dtype {
        if matches!(id, PartitionId::Param(_)) { self.dtype } else { Dtype::Float32 }
    }

    /// Elements of `dtype` that make up an alignment.
    pub(super) fn numel_alignment(&self, dtype: Dtype) -> u64 {
        self.aligned_bytes / dtype.size()
    }

    /// Bytes of `numel` elements, and of their file. `None` beyond what a file can hold.
    pub(super) fn bytes(&self, id: &PartitionId, numel: u64) -> Option<(u64, u64)> {
        let bytes = numel.checked_mul(self.dtype(id).size()).filter(|bytes| *bytes > 0)?;
        let aligned = bytes.checked_next_multiple_of(self.aligned_bytes)?;
        i64::try_from(aligned).is_ok().then_some((bytes, aligned))
    }
}
