// SPDX-License-Identifier: Apache-2.0
//! The one pass over a layer's blob.
//!
//! ```text
//! blob ─▶ count, SHA-256 (digest) ─▶ decompress ─▶ SHA-256 (diff id) ═▶ unpack into a directory
//!         └──────────────── a thread of its own ────────────────┘       the caller's thread
//! ```
//!
//! Nothing unpacked may be used before [`unpack_layer`] said yes: the digests stand only at the end. When the archive
//! turns out to be broken, the rest of the blob is still read, to tell a blob that was spoiled on the way (try again)
//! from an image that was made wrong (trying again does not help).

use std::io::{self, BufRead, Read};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use model::id::Digest;
use model::reason::Reason;

use crate::digest::{Hasher, HashingReader};
use crate::manifest::Compression;
use crate::unpack::{Limits, Owners, Report, UnpackError, unpack};

/// Largest zstd window decoded: the default of the zstd program (`--long=27`).
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// How much larger than its blob an archive may be, behind the first [`FREE_BYTES`]: programs and data stay below 20, text
/// below 50, and only bombs come near what deflate can do (1:1032).
pub const MAX_RATIO: u64 = 100;
/// Decompressed bytes to which the ratio does not apply: files that were made large in advance.
pub const FREE_BYTES: u64 = 256 << 20;

/// Size and number of the buffers on the way to the unpacking thread.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 8;

/// What a layer's blob is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedLayer {
    pub compression: Compression,
    /// Of the blob.
    pub digest: Digest,
    pub size: u64,
    /// Digest of the archive inside.
    pub diff_id: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    #[error("blob has digest {got} instead of {expected}")]
    Digest { expected: Digest, got: Digest },
    #[error("blob has {got} bytes instead of {expected}")]
    Size { expected: u64, got: u64 },
    #[error("layer {digest} cannot be decompressed")]
    Decompress { digest: Digest, source: io::Error },
    #[error("layer {digest} is more than {MAX_RATIO} times larger than its blob")]
    Bomb { digest: Digest },
    #[error("layer {digest} has diff id {got} instead of {expected}")]
    DiffId { digest: Digest, expected: Digest, got: Digest },
    #[error("layer {digest}")]
    Unpack { digest: Digest, source: UnpackError },
}

impl LayerError {
    pub fn reason(&self) -> Reason {
        match self {
            LayerError::Read(_) => Reason::RegistryUnreachable,
            LayerError::Digest { .. } | LayerError::Size { .. } => Reason::DigestMismatch,
            LayerError::Decompress { .. } | LayerError::Bomb { .. } | LayerError::DiffId { .. } => {
                Reason::ImageInvalid
            }
            LayerError::Unpack { source, .. } if source.is_disk_full() => Reason::DiskFull,
            LayerError::Unpack { source, .. } if source.is_archive_at_fault() => Reason::ImageInvalid,
            LayerError::Unpack { .. } => Reason::StorageFailed,
        }
    }
}

/// Reads a blob to its end, verifies both digests and unpacks it below `root`, an empty directory. `read_bytes` is raised
/// as the blob comes in.
pub fn unpack_layer(
    untrusted_blob: impl Read + Send,
    expected: &ExpectedLayer,
    root: BorrowedFd<'_>,
    owners: Owners,
    limits: Limits,
    read_bytes: &AtomicU64,
) -> Result<Report, LayerError> {
    let (full, filled) = sync_channel(CHUNKS);
    let (empty, emptied) = channel();
    // Set when this machine is at fault: then nobody needs to know what the rest of the blob is.
    let given_up = AtomicBool::new(false);
    let (unpacked, verified) = thread::scope(|scope| {
        let blob = CountingReader { inner: untrusted_blob, read_bytes, given_up: &given_up };
        let source = scope.spawn(move || verify(blob, expected, &full, &emptied));
        let chunks = Chunks { filled, empty, present: Vec::new(), at: 0, is_whole: false };
        let unpacked = unpack(root, chunks, owners, limits);
        if let Err(error) = &unpacked
            && !error.is_archive_at_fault()
        {
            given_up.store(true, Ordering::Relaxed);
        }
        (unpacked, source.join())
    });
    let verified = match verified {
        Ok(verified) => verified,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    match (verified, unpacked) {
        // This machine's fault comes first: the blob was not read to its end then.
        (_, Err(source)) if !source.is_archive_at_fault() => {
            Err(LayerError::Unpack { digest: expected.digest, source })
        }
        (Err(error), _) => Err(error),
        (Ok(_), Err(source)) => Err(LayerError::Unpack { digest: expected.digest, source }),
        (Ok(Some(diff_id)), Ok(_)) if diff_id != expected.diff_id => {
            Err(LayerError::DiffId { digest: expected.digest, expected: expected.diff_id, got: diff_id })
        }
        (Ok(_), Ok(report)) => Ok(report),
    }
}

/// Passes the decompressed archive on. `None` in place of the diff id: nobody wanted the archive to its end.
fn verify(
    blob: impl Read,
    expected: &ExpectedLayer,
    full: &SyncSender<Option<Vec<u8>>>,
    emptied: &Receiver<Vec<u8>>,
) -> Result<Option<Digest>, LayerError> {
    let mut blob = HashingReader::new(blob, expected.size);
    let passed = match expected.compression {
        // The digest of the blob is that of the archive.
        Compression::None => pass(&mut blob, expected, None, full, emptied).map(|_| Some(expected.digest)),
        Compression::Gzip => {
            let buffered = io::BufReader::with_capacity(CHUNK_BYTES, &mut blob);
            let decoder = flate2::bufread::MultiGzDecoder::new(buffered);
            pass(decoder, expected, Some(Hasher::default()), full, emptied)
        }
        Compression::Zstd => {
            let buffered = io::BufReader::with_capacity(CHUNK_BYTES, &mut blob);
            let decoder = zstd::stream::read::Decoder::with_buffer(buffered).and_then(|mut decoder| {
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Ok(decoder)
            });
            match decoder {
                Ok(decoder) => pass(decoder, expected, Some(Hasher::default()), full, emptied),
                Err(source) => Err(LayerError::Decompress { digest: expected.digest, source }),
            }
        }
    };
    // A reader that failed fails again: its own error is better than the decoder's.
    blob.drain().map_err(LayerError::Read)?;
    let (digest, size) = blob.finish();
    if size != expected.size {
        return Err(LayerError::Size { expected: expected.size, got: size });
    }
    if digest != expected.digest {
        return Err(LayerError::Digest { expected: expected.digest, got: digest });
    }
    let diff_id = passed?;
    if diff_id.is_some() {
        // The archive is whole. Who waits for this may be gone already.
        let _ = full.send(None);
    }
    Ok(diff_id)
}

fn pass(
    mut archive: impl Read,
    expected: &ExpectedLayer,
    mut hasher: Option<Hasher>,
    full: &SyncSender<Option<Vec<u8>>>,
    emptied: &Receiver<Vec<u8>>,
) -> Result<Option<Digest>, LayerError> {
    let limit = expected.size.saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES);
    let mut passed = 0u64;
    loop {
        let mut chunk = emptied.try_recv().unwrap_or_default();
        chunk.resize(CHUNK_BYTES, 0);
        let mut len = 0;
        while len < CHUNK_BYTES {
            match archive.read(&mut chunk[len..]) {
                Ok(0) => break,
                Ok(got) => len += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LayerError::Decompress { digest: expected.digest, source }),
            }
        }
        chunk.truncate(len);
        if len == 0 {
            return Ok(Some(hasher.map_or(expected.digest, Hasher::finish)));
        }
        passed += len as u64;
        if passed > limit {
            return Err(LayerError::Bomb { digest: expected.digest });
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(&chunk);
        }
        if full.send(Some(chunk)).is_err() {
            return Ok(None);
        }
    }
}

/// Counts what came in, and ends the blob when nobody needs it any more.
struct CountingReader<'a, R> {
    inner: R,
    read_bytes: &'a AtomicU64,
    given_up: &'a AtomicBool,
}

impl<R: Read> Read for CountingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let got = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.read_bytes.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// The archive as it arrives in the unpacking thread.
struct Chunks {
    filled: Receiver<Option<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    present: Vec<u8>,
    at: usize,
    is_whole: bool,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.present.len() && !self.is_whole {
            let used = std::mem::take(&mut self.present);
            self.at = 0;
            // The other side may be done already and not take buffers back.
            let _ = self.empty.send(used);
            match self.filled.recv() {
                Ok(Some(chunk)) => self.present = chunk,
                Ok(None) => self.is_whole = true,
                // The other side knows why, and its error is the one that is reported.
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(&self.present[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at = self.present.len().min(self.at + len);
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let present = self.fill_buf()?;
        let len = present.len().min(buffer.len());
        buffer[..len].copy_from_slice(&present[..len]);
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
