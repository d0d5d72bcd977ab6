// SPDX-License-Identifier: Apache-2.0
//! When each device was heard last, in one small file that is written again and again.
//!
//! [`HEADER`], then for each device its id (16 bytes), the time in milliseconds since 1970 (i64, little-endian). The file
//! is replaced as a whole, so it is never torn by the end of the process.

use std::io;
use std::path::Path;

use uuid::Uuid;

const HEADER: &[u8] = b"SELVBEAT1\n";
const RECORD_BYTES: usize = 24;
const NAME: &str = "heartbeats";

/// Writes all of them.
pub(crate) fn write(dir: &Path, beats: impl Iterator<Item = (Uuid, i64)>) -> io::Result<()> {
    let mut out = HEADER.to_vec();
    for (device, at_ms) in beats {
        out.extend_from_slice(device.as_bytes());
        out.extend_from_slice(&at_ms.to_le_bytes());
    }
    let fresh = dir.join("heartbeats.new");
    std::fs::write(&fresh, out)?;
    std::fs::rename(fresh, dir.join(NAME))
}

/// What was written last; nothing when there is none, or it cannot be read.
pub(crate) fn read(dir: &Path) -> Vec<(Uuid, i64)> {
    let untrusted = std::fs::read(dir.join(NAME)).unwrap_or_default();
    let Some(records) = untrusted.strip_prefix(HEADER) else { return Vec::new() };
    let record = |bytes: &[u8]| {
        let device = Uuid::from_slice(bytes.get(..16)?).ok()?;
        Some((device, i64::from_le_bytes(bytes.get(16..RECORD_BYTES)?.try_into().ok()?)))
    };
    records.chunks_exact(RECORD_BYTES).filter_map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_are_read_as_written_and_damage_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), []);
        let beats = [(Uuid::from_u128(1), 5), (Uuid::from_u128(2), -7)];
        write(dir.path(), beats.into_iter()).unwrap();
        assert_eq!(read(dir.path()), beats);
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read(dir.path()).len() < 2);
        }
    }
}
