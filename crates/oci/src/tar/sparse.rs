// SPDX-License-Identifier: Apache-2.0
//! Maps of sparse files: which parts of a file the archive holds.

use super::pax::decimal;
use super::{MAX_SEGMENTS, TarError};

/// A part of a file that holds content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub len: u64,
}

/// Offsets and lengths by turns.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, TarError> {
    if !numbers.len().is_multiple_of(2) {
        return Err(TarError::Sparse);
    }
    if numbers.len() > 2 * MAX_SEGMENTS {
        return Err(TarError::TooLarge { what: "sparse map", limit: MAX_SEGMENTS as u64 });
    }
    Ok(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], len: pair[1] }).collect())
}

/// Pieces rise, stay inside the file and together are as long as the content.
pub(super) fn check(segments: &[Segment], size: u64, content: u64) -> Result<(), TarError> {
    let mut end = 0u64;
    let mut total = 0u64;
    for segment in segments {
        if segment.offset < end {
            return Err(TarError::Sparse);
        }
        end = segment.offset.checked_add(segment.len).ok_or(TarError::Sparse)?;
        total = total.checked_add(segment.len).ok_or(TarError::Sparse)?;
    }
    if end > size || total != content || size > i64::MAX as u64 { Err(TarError::Sparse) } else { Ok(()) }
}

/// The map of format 1.0: a count, then as many pairs, one decimal number a line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    numbers: Vec<u64>,
}

impl Lines {
    /// Longest line: a 64-bit number has 20 digits.
    const MAX_LINE: usize = 20;

    pub(super) fn is_complete(&self) -> bool {
        self.numbers.first().is_some_and(|count| (self.numbers.len() as u64 - 1) / 2 >= *count)
    }

    pub(super) fn pairs(&self) -> &[u64] {
        self.numbers.get(1..).unwrap_or(&[])
    }

    pub(super) fn feed(&mut self, block: &[u8]) -> Result<(), TarError> {
        for byte in block {
            if self.is_complete() {
                break;
            }
            if *byte != b'\n' {
                if self.line.len() >= Lines::MAX_LINE {
                    return Err(TarError::Sparse);
                }
                self.line.push(*byte);
                continue;
            }
            let number = decimal(&self.line).ok_or(TarError::Sparse)?;
            self.line.clear();
            if self.numbers.is_empty() && number > MAX_SEGMENTS as u64 {
                return Err(TarError::TooLarge { what: "sparse map", limit: MAX_SEGMENTS as u64 });
            }
            self.numbers.push(number);
        }
        Ok(())
    }
}
