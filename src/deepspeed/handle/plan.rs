//! How an operation is cut into transfers.

/// The smallest run that direct transfers of an unaligned write own: a page, so that they never share one
/// with the edges, which go through the page cache.
const PAGE_BYTES: u64 = 4096;

/// What the cutting depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Byte offset of the operation in the file.
    pub(super) offset: u64,
    /// Bytes of the operation.
    pub(super) length: u64,
    /// Offsets and lengths of transfers are multiples of it; 1 for buffered files.
    pub(super) alignment: u64,
    /// Slices, as DeepSpeed gives each of its threads one.
    pub(super) slices: u64,
    /// Longest transfer.
    pub(super) block: u64,
    /// Longest transfer through a bounce buffer; a multiple of the alignment.
    pub(super) chunk: u64,
    /// Whether the memory of an aligned offset is aligned as well, so that it needs no bounce buffer.
    pub(super) congruent: bool,
}

/// A run of the file that one transfer moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First byte in the file.
    pub(super) start: u64,
    /// Byte behind the last.
    pub(super) end: u64,
    /// Aligned, memory too: no bounce buffer.
    pub(super) straight: bool,
}

impl Piece {
    /// Its place in memory whose first byte belongs at `offset` of the file.
    pub(super) fn range_from(&self, offset: u64) -> std::ops::Range<usize> {
        let fits = |bytes| usize::try_from(bytes).expect("within the memory");
        fits(self.start - offset)..fits(self.end - offset)
    }
}

/// What is left to cut.
#[derive(Debug)]
pub(super) struct Plan {
    shape: Shape,
    position: u64,
    end: u64,
    /// The slice that `position` is in, or the one before.
    slice: u64,
}

/// The part of a write for the device, between two edges that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Middle {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Shape {
    fn file_end(&self) -> u64 {
        self.offset + self.length
    }

    /// The part of a write that may go past the page cache: all of it when both ends are aligned, else
    /// the whole pages. Empty (at the end) when there is none.
    pub(super) fn middle(&self) -> Middle {
        let end = self.file_end();
        if self.offset.is_multiple_of(self.alignment) && end.is_multiple_of(self.alignment) {
            let start = self.offset;
            return Middle { start, end };
        }
        let grain = self.alignment.max(PAGE_BYTES);
        let (start, middle_end) = (self.offset.next_multiple_of(grain), end / grain * grain);
        if start < middle_end {
            let end = middle_end;
            Middle { start, end }
        } else {
            Middle { start: end, end }
        }
    }

    /// Whether a write's direct transfers may share a page with another operation's edges.
    pub(super) fn shares_pages(&self) -> bool {
        let middle = self.middle();
        self.alignment > 1
            && middle.start < middle.end
            && !(middle.start.is_multiple_of(PAGE_BYTES) && middle.end.is_multiple_of(PAGE_BYTES))
    }

    fn aligned_down(&self, offset: u64) -> u64 {
        offset / self.alignment * self.alignment
    }
}

impl Plan {
    /// A read of everything, or a write of the middle.
    pub(super) fn new(shape: Shape, middle: Middle) -> Self {
        Self { shape, position: middle.start, end: middle.end, slice: 0 }
    }

    /// The end of the slice that `position` is in. Ends of inner slices are moved down to the alignment,
    /// so that only an operation's own ends are unaligned; the last slice has the rest of the division.
    fn slice_end(&mut self) -> u64 {
        let shape = &self.shape;
        while self.slice + 1 < shape.slices {
            let share = u128::from(shape.length) * u128::from(self.slice + 1);
            let share = u64::try_from(share / u128::from(shape.slices)).expect("at most length");
            let end = shape.aligned_down(shape.offset + share);
            if end > self.position {
                return end.min(self.end);
            }
            self.slice += 1;
        }
        self.end
    }

    /// Whether `next` has no more.
    pub(super) fn is_over(&self) -> bool {
        self.position >= self.end
    }

    pub(super) fn next(&mut self) -> Option<Piece> {
        if self.is_over() {
            return None;
        }
        let (start, slice_end, shape) = (self.position, self.slice_end(), self.shape);
        let block = shape.block.next_multiple_of(shape.alignment);
        let limit = |block: u64| slice_end.min(shape.aligned_down(start).saturating_add(block));
        let aligned_end = shape.aligned_down(limit(block));
        let (end, straight) = if !shape.congruent {
            (limit(block.min(shape.chunk)), false)
        } else if !start.is_multiple_of(shape.alignment) {
            // Up to where the rest needs no bounce buffer.
            let end = start.next_multiple_of(shape.alignment);
            (end.min(slice_end), false)
        } else if aligned_end > start {
            (aligned_end, true)
        } else {
            (limit(block.min(shape.chunk)), false)
        };
        self.position = end;
        Some(Piece { start, end, straight })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(shape: Shape) -> Vec<(u64, u64, bool)> {
        let mut plan = Plan::new(shape, Middle { start: shape.offset, end: shape.file_end() });
        std::iter::from_fn(|| plan.next())
            .map(|piece| (piece.start, piece.end, piece.straight))
            .collect()
    }

    const SHAPE: Shape = Shape {
        offset: 0,
        length: 4096,
        alignment: 512,
        slices: 2,
        block: 1024,
        chunk: 4096,
        congruent: true,
    };

    #[test]
    fn slices_are_cut_as_in_deepspeed() {
        let pieces = cut(SHAPE);
        assert_eq!(pieces, [0, 1024, 2048, 3072].map(|start| (start, start + 1024, true)));
        let shape = Shape { offset: 512, length: 1024, ..SHAPE };
        assert_eq!(cut(shape), [(512, 1024, true), (1024, 1536, true)]);
        // No multiple of the threads: the last slice has the rest.
        let shape = Shape { length: 10, alignment: 1, slices: 3, ..SHAPE };
        assert_eq!(cut(shape), [(0, 3, true), (3, 6, true), (6, 10, true)]);
    }

    #[test]
    fn edges_bounce_and_the_middle_does_not() {
        let shape = Shape { offset: 1000, length: 2000, slices: 1, ..SHAPE };
        let expected =
            [(1000, 1024, false), (1024, 2048, true), (2048, 2560, true), (2560, 3000, false)];
        assert_eq!(cut(shape), expected);
        assert_eq!(shape.middle(), Middle { start: 3000, end: 3000 });
        let shape = Shape { length: 20_000, ..shape };
        assert_eq!(shape.middle(), Middle { start: 4096, end: 20_480 });
        assert!(!shape.shares_pages());
        assert!(Shape { offset: 512, ..SHAPE }.shares_pages());
        assert!(!SHAPE.shares_pages());
    }

    #[test]
    fn pieces_cover_everything_within_the_block() {
        for offset in [0, 1, 511, 512, 4095, 5_000_000_001] {
            for length in [1, 2, 511, 513, 4096, 100_001] {
                for slices in [1, 2, 3, 64] {
                    for (alignment, congruent) in [(1, true), (512, true), (512, false)] {
                        let shape = Shape {
                            offset,
                            length,
                            alignment,
                            slices,
                            congruent,
                            block: 1500,
                            chunk: 1024,
                        };
                        let mut position = offset;
                        for (start, end, straight) in cut(shape) {
                            assert_eq!(start, position);
                            assert!(end > start, "{shape:?}");
                            let aligned = |at: u64| at.is_multiple_of(alignment);
                            let span = end.next_multiple_of(alignment) - shape.aligned_down(start);
                            if straight {
                                assert!(aligned(start) && aligned(end) && span <= 1536);
                            } else {
                                assert!(span <= 1024, "{shape:?} {start}..{end}");
                            }
                            position = end;
                        }
                        assert_eq!(position, offset + length);
                    }
                }
            }
        }
    }
}
