//! What a file must hold: the model.

use std::ops::Range;

/// One file's bytes, or those of one range of it.
#[derive(Default)]
pub(crate) struct Plain {
    pub(crate) bytes: Vec<u8>,
    /// Of these a failed call has left open whether they are the old or the new ones.
    pub(crate) open: Vec<Range<u64>>,
}

impl Plain {
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        if end > self.size() {
            self.bytes.resize(end as usize, 0);
        }
        self.bytes[offset as usize..end as usize].copy_from_slice(data);
        self.settle(offset..end);
    }

    pub(crate) fn zero(&mut self, range: Range<u64>) {
        let end = range.end.min(self.size());
        if range.start < end {
            self.bytes[range.start as usize..end as usize].fill(0);
        }
        self.settle(range);
    }

    pub(crate) fn resize(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.settle(size..u64::MAX);
    }

    pub(crate) fn range(&self, range: Range<u64>) -> Vec<u8> {
        let end = range.end.min(self.size());
        let start = range.start.min(end);
        self.bytes[start as usize..end as usize].to_vec()
    }

    fn settle(&mut self, range: Range<u64>) {
        let open = std::mem::take(&mut self.open);
        for part in open {
            for rest in [part.start..part.end.min(range.start), part.start.max(range.end)..part.end]
            {
                if rest.start < rest.end {
                    self.open.push(rest);
                }
            }
        }
    }
}

/// Compares what was read at `offset` with what must be there, but for the open ranges.
pub(crate) fn compare(
    found: &[u8], expected: &[u8], offset: u64, open: &[Range<u64>],
) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} bytes at {offset} where {} belong", found.len(), expected.len()));
    }
    if found == expected {
        return Ok(());
    }
    let free = |at: u64| open.iter().any(|range| range.contains(&at));
    let wrong = |i: &usize| found[*i] != expected[*i] && !free(offset + *i as u64);
    let Some(first) = (0..found.len()).find(wrong) else {
        return Ok(());
    };
    let last = (0..found.len()).rfind(wrong).expect("there is a first");
    Err(format!(
        "wrong bytes from {} to {}: {:?} where {:?} belong",
        offset + first as u64,
        offset + last as u64,
        &found[first..found.len().min(first + 8)],
        &expected[first..expected.len().min(first + 8)],
    ))
}
