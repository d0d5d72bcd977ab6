// SPDX-License-Identifier: Apache-2.0
//! Append-only files: one stream of records in at most two segments.
//!
//! ```text
//! NAME.seg       records are appended here
//! NAME.old.seg   the segment before; goes when the current one is full and takes its place
//! ```
//! A file begins with [`HEADER`]. Record: length of the rest (u32), CRC-32 of the rest (u32), kind (u8), sequence number
//! (u64), milliseconds since 1970 (i64), bytes. Numbers are little-endian. Sequence numbers rise over both
//! segments. A torn or damaged tail is cut off when the file is opened. Written without fsync: what was acknowledged
//! survives any end of the process; after a crash of the whole machine devices are asked to send all again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Start of every segment; the digit is the version of the format.
pub(crate) const HEADER: &[u8; 9] = b"SELVSEG1\n";
/// Length and checksum.
const PREFIX_BYTES: usize = 8;
/// Kind, sequence number, time.
const META_BYTES: usize = 17;
/// Longest record: a request of 1 MiB, and log files unpack to records far below.
const MAX_RECORD_BYTES: usize = 2 * 1024 * 1024;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it came.
    Message,
    /// A copy of an older message that is still the newest of its object; carried over into a new segment.
    Carried,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub sequence: u64,
    pub at_ms: i64,
    pub bytes: Vec<u8>,
}

/// When a segment is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// A segment is not full before it has this many records …
    pub min_records: u64,
    /// … and this many bytes …
    pub min_bytes: u64,
    /// … or this many bytes whatever the number.
    pub max_bytes: u64,
}

/// Where a stream ends: enough to go on writing without reading it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    bytes: u64,
    records: u64,
    next_sequence: u64,
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Stream {
    path: PathBuf,
    old_path: PathBuf,
    file: File,
    quota: Quota,
    at: Position,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

impl Stream {
    /// Opens or makes the files; every good record goes to `look`. What is damaged at the end is dropped.
    pub(crate) fn open(
        dir: &Path,
        name: &str,
        quota: Quota,
        mut look: impl FnMut(&Record),
    ) -> io::Result<Stream> {
        let path = dir.join(format!("{name}.seg"));
        let old_path = dir.join(format!("{name}.old.seg"));
        let mut file = open(&path)?;
        let (mut last, mut records) = (None, 0);
        let good_bytes = scan(&mut file, |record| {
            records += u64::from(record.kind == Kind::Message);
            last = Some(record.sequence);
            look(&record);
        })?;
        let found = file.metadata()?.len();
        if good_bytes < found {
            tracing::warn!(path = %path.display(), dropped = found - good_bytes, "dropped a torn tail");
            file.set_len(good_bytes)?;
        }
        if good_bytes == 0 {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(HEADER)?;
        }
        if last.is_none() {
            scan_path(&old_path, |record| last = Some(record.sequence))?;
        }
        let bytes = file.seek(SeekFrom::End(0))?;
        let at = Position { bytes, records, next_sequence: last.map_or(1, |last| last.saturating_add(1)) };
        Ok(Stream { path, old_path, quota, file, at })
    }

    /// Opens files that were open before in this run and end at `at`; nobody else writes them.
    pub(crate) fn reopen(dir: &Path, name: &str, quota: Quota, at: Position) -> io::Result<Stream> {
        let path = dir.join(format!("{name}.seg"));
        let old_path = dir.join(format!("{name}.old.seg"));
        let mut file = open(&path)?;
        // What stands behind is of a write that failed.
        file.set_len(at.bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Stream { path, old_path, quota, file, at })
    }

    pub(crate) fn position(&self) -> Position {
        self.at
    }

    /// Whether the next record belongs into a new segment.
    pub(crate) fn is_full(&self) -> bool {
        self.at.bytes >= self.quota.max_bytes
            || (self.at.records >= self.quota.min_records && self.at.bytes >= self.quota.min_bytes)
    }

    /// Begins a new segment; the one before the last goes.
    pub(crate) fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.old_path)?;
        self.file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&self.path)?;
        self.file.write_all(HEADER)?;
        self.at.bytes = HEADER.len() as u64;
        self.at.records = 0;
        Ok(())
    }

    /// Appends a record. Too long ones are refused. After an error the stream is to be opened anew.
    pub(crate) fn append(&mut self, kind: Kind, at_ms: i64, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let sequence = self.at.next_sequence;
        let mut rest = Vec::with_capacity(PREFIX_BYTES + META_BYTES + bytes.len());
        rest.extend_from_slice(&[0; PREFIX_BYTES]);
        rest.push(match kind {
            Kind::Message => 1,
            Kind::Carried => 2,
        });
        rest.extend_from_slice(&sequence.to_le_bytes());
        rest.extend_from_slice(&at_ms.to_le_bytes());
        rest.extend_from_slice(bytes);
        let length = (rest.len() - PREFIX_BYTES) as u32;
        let crc = crc32(&rest[PREFIX_BYTES..]);
        rest[..4].copy_from_slice(&length.to_le_bytes());
        rest[4..PREFIX_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all(&rest)?;
        self.at.bytes += rest.len() as u64;
        self.at.records += u64::from(kind == Kind::Message);
        self.at.next_sequence = self.at.next_sequence.saturating_add(1);
        Ok(sequence)
    }

    /// All records of both segments, oldest first.
    pub(crate) fn read(&self) -> io::Result<Vec<Record>> {
        let mut out = Vec::new();
        scan_path(&self.old_path, |record| out.push(record))?;
        scan_path(&self.path, |record| out.push(record))?;
        Ok(out)
    }

    /// The records of the segment that is written.
    pub(crate) fn read_current(&self) -> io::Result<Vec<Record>> {
        let mut out = Vec::new();
        scan_path(&self.path, |record| out.push(record))?;
        Ok(out)
    }
}

fn scan_path(path: &Path, look: impl FnMut(Record)) -> io::Result<()> {
    match File::open(path) {
        Ok(mut file) => scan(&mut file, look).map(drop),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The good records of a file go to `look`. Gives where they end; 0 when not even the header is good.
fn scan(file: &mut File, mut look: impl FnMut(Record)) -> io::Result<u64> {
    let mut untrusted = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut untrusted)?;
    if !untrusted.starts_with(HEADER) {
        return Ok(0);
    }
    let mut at = HEADER.len();
    while let Some((record, length)) = parse(&untrusted[at..]) {
        look(record);
        at += length;
    }
    Ok(at as u64)
}

fn parse(untrusted: &[u8]) -> Option<(Record, usize)> {
    let length = u32::from_le_bytes(untrusted.get(..4)?.try_into().ok()?) as usize;
    if !(META_BYTES..=META_BYTES + MAX_RECORD_BYTES).contains(&length) {
        return None;
    }
    let crc = u32::from_le_bytes(untrusted.get(4..PREFIX_BYTES)?.try_into().ok()?);
    let rest = untrusted.get(PREFIX_BYTES..PREFIX_BYTES + length)?;
    if crc32(rest) != crc {
        return None;
    }
    let kind = match rest[0] {
        1 => Kind::Message,
        2 => Kind::Carried,
        _ => return None,
    };
    let sequence = u64::from_le_bytes(rest[1..9].try_into().ok()?);
    let at_ms = i64::from_le_bytes(rest[9..META_BYTES].try_into().ok()?);
    Some((Record { kind, sequence, at_ms, bytes: rest[META_BYTES..].to_vec() }, PREFIX_BYTES + length))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { min_records: 3, min_bytes: 10, max_bytes: 100_000 };

    fn open(dir: &Path) -> io::Result<Stream> {
        Stream::open(dir, "info", QUOTA, |_| {})
    }

    fn texts(stream: &Stream) -> Vec<String> {
        stream.read().unwrap().into_iter().map(|r| String::from_utf8(r.bytes).unwrap()).collect()
    }

    #[test]
    fn a_torn_tail_is_dropped_and_writing_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = open(dir.path()).unwrap();
        stream.append(Kind::Message, 1, b"one").unwrap();
        stream.append(Kind::Message, 2, b"two").unwrap();
        drop(stream);
        let path = dir.path().join("info.seg");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut stream = open(dir.path()).unwrap();
            stream.append(Kind::Message, 3, b"three").unwrap();
            let texts = texts(&stream);
            assert_eq!(texts.last().map(String::as_str), Some("three"), "cut at {cut}");
            assert!(["one", "three"].contains(&texts[0].as_str()));
            drop(stream);
            let _ = std::fs::remove_file(&path);
        }
    }

    #[test]
    fn sequence_goes_on_over_rotation_and_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = open(dir.path()).unwrap();
        for text in ["a", "b", "c"] {
            assert!(!stream.is_full());
            stream.append(Kind::Message, 1, text.as_bytes()).unwrap();
        }
        assert!(stream.is_full());
        stream.rotate().unwrap();
        drop(stream);
        let mut stream = open(dir.path()).unwrap();
        assert_eq!(stream.append(Kind::Message, 1, b"d").unwrap(), 4);
        assert_eq!(texts(&stream), ["a", "b", "c", "d"]);
        stream.rotate().unwrap();
        assert_eq!(texts(&stream), ["d"]);
    }

    #[test]
    fn a_write_that_failed_half_way_is_cut_off_when_the_stream_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = open(dir.path()).unwrap();
        stream.append(Kind::Message, 1, b"one").unwrap();
        let at = stream.position();
        stream.file.write_all(b"half a rec").unwrap();
        drop(stream);
        let mut stream = Stream::reopen(dir.path(), "info", QUOTA, at).unwrap();
        assert_eq!(stream.append(Kind::Message, 1, b"two").unwrap(), 2);
        assert_eq!(texts(&stream), ["one", "two"]);
    }

    #[test]
    fn a_flipped_bit_ends_the_reading_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = open(dir.path()).unwrap();
        stream.append(Kind::Message, 1, b"one").unwrap();
        stream.append(Kind::Message, 1, b"two").unwrap();
        let path = dir.path().join("info.seg");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&open(dir.path()).unwrap()), ["one"]);
    }
}
