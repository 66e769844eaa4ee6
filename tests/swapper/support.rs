//! A swap folder on a disk, and bytes that tell whose they are.

use swapfs::deepspeed::SwapperOptions;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) const BLOCK: u64 = 256 << 10;

pub(crate) fn place() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// 16 buffers of a quarter of a mebibyte.
pub(crate) fn options(place: &TempDir) -> SwapperOptions {
    SwapperOptions {
        pool_size: 16 * BLOCK,
        block_size: BLOCK,
        pin_memory: false,
        ..SwapperOptions::new(place.path())
    }
}

/// Bytes that differ from seed to seed and block to block.
pub(crate) fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut all = Vec::with_capacity(bytes as usize + 8);
    while (all.len() as u64) < bytes {
        all.extend_from_slice(&random.next().to_le_bytes());
    }
    all.truncate(bytes as usize);
    all
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A seed to print: given, or of the clock.
pub(crate) fn seed() -> u64 {
    match std::env::var("SWAPFS_SEED") {
        Ok(seed) => seed.parse().expect("SWAPFS_SEED is a number"),
        Err(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
                as u64
        }
    }
}
