// SPDX-License-Identifier: Apache-2.0
//! SHA-256 while bytes pass by.

use std::io::{self, Read};

use model::id::Digest;
use sha2::{Digest as _, Sha256};

/// Digest of bytes at hand.
pub fn of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Sums up what it is fed.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Passes a blob on while counting and summing it up, and never lets more through than the blob may hold plus one
/// byte, so that a peer that sends too much is seen and not followed.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    taken: u64,
    limit: u64,
}

impl<R: Read> HashingReader<R> {
    /// `limit`: bytes the blob is said to have.
    pub fn new(inner: R, limit: u64) -> HashingReader<R> {
        HashingReader { inner, hasher: Hasher::default(), taken: 0, limit }
    }

    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Reads what is left, so that the digest speaks of the whole blob.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut scrap = vec![0; 64 * 1024];
        while self.read(&mut scrap)? > 0 {}
        Ok(())
    }

    /// The digest of all that passed, and how much that was.
    pub fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.taken)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.limit.saturating_add(1).saturating_sub(self.taken);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.inner.read(&mut buffer[..room])?;
        self.taken += got as u64;
        self.hasher.update(&buffer[..got]);
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_sends_too_much_is_cut_one_byte_behind_the_limit() {
        let mut reader = HashingReader::new(&b"0123456789"[..], 4);
        reader.drain().unwrap();
        assert_eq!(reader.taken(), 5);
        assert_eq!(reader.finish().0, of(b"01234"));
    }
}
