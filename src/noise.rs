//! Numbers and bytes without a pattern, the same for the same seed: no device can compress what is measured with them.

/// A generator (xorshift with a multiplication).
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// Overwrites all bytes.
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut noise = Noise::new(seed);
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&noise.number().to_le_bytes()[..chunk.len()]);
    }
}
