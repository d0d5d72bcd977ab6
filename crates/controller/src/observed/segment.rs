// SPDX-License-Identifier: Apache-2.0
//! Append-only files: one stream of records in at most two segments.
//!
//! ```text
//! NAME.seg       records are appended here
//! NAME.old.seg   the segment before; goes when the current one is full and takes its place
//! ```
//! A file begins with [`HEADER`]. Record: length of the rest (u32), CRC-32 of the rest (u32), kind (u8), sequence number
//! (u64), milliseconds since 1970 (i64), bytes. Numbers are little-endian. Sequence numbers rise over both
//! segments. A torn or damaged tail is cut off when the file is opened. Written without fsync: what a crash of the
//! machine loses is sent again by devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Start of every segment; the digit is the version of the format.
pub(super) const HEADER: &[u8; 9] = b"SELVSEG1\n";
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
pub(super) struct Quota {
    /// A segment is not full before it has this many records …
    pub min_records: u64,
    /// … and this many bytes …
    pub min_bytes: u64,
    /// … or this many bytes whatever the number.
    pub max_bytes: u64,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Stream {
    path: PathBuf,
    old_path: PathBuf,
    file: File,
    quota: Quota,
    bytes: u64,
    records: u64,
    next_sequence: u64,
}

impl Stream {
    /// Opens or makes the files. What is damaged at the end is dropped.
    pub(super) fn open(dir: &Path, name: &str, quota: Quota) -> io::Result<Stream> {
        let path = dir.join(format!("{name}.seg"));
        let old_path = dir.join(format!("{name}.old.seg"));
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let (records, good_bytes) = scan(&mut file)?;
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
        let mut last = records.last().map(|record| record.sequence);
        if last.is_none() {
            last = read_file(&old_path)?.last().map(|record| record.sequence);
        }
        file.seek(SeekFrom::End(0))?;
        Ok(Stream {
            path,
            old_path,
            quota,
            bytes: file.metadata()?.len(),
            file,
            records: records.iter().filter(|record| record.kind == Kind::Message).count() as u64,
            next_sequence: last.map_or(1, |last| last + 1),
        })
    }

    /// Whether the next record belongs into a new segment.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.quota.max_bytes
            || (self.records >= self.quota.min_records && self.bytes >= self.quota.min_bytes)
    }

    /// Begins a new segment; the one before the last goes.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.old_path)?;
        self.file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&self.path)?;
        self.file.write_all(HEADER)?;
        self.bytes = HEADER.len() as u64;
        self.records = 0;
        Ok(())
    }

    /// Appends a record. Too long ones are refused.
    pub(super) fn append(&mut self, kind: Kind, at_ms: i64, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let sequence = self.next_sequence;
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
        self.bytes += rest.len() as u64;
        self.records += u64::from(kind == Kind::Message);
        self.next_sequence += 1;
        Ok(sequence)
    }

    /// All records of both segments, oldest first.
    pub(super) fn read(&self) -> io::Result<Vec<Record>> {
        read(&self.path, &self.old_path)
    }
}

/// Reads a stream without opening it for writing.
fn read(path: &Path, old_path: &Path) -> io::Result<Vec<Record>> {
    let mut out = read_file(old_path)?;
    out.extend(read_file(path)?);
    Ok(out)
}

fn read_file(path: &Path) -> io::Result<Vec<Record>> {
    match File::open(path) {
        Ok(mut file) => Ok(scan(&mut file)?.0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The good records of a file, and where they end; 0 when not even the header is good.
fn scan(file: &mut File) -> io::Result<(Vec<Record>, u64)> {
    let mut untrusted = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut untrusted)?;
    if !untrusted.starts_with(HEADER) {
        return Ok((Vec::new(), 0));
    }
    let mut records = Vec::new();
    let mut at = HEADER.len();
    while let Some((record, length)) = parse(&untrusted[at..]) {
        records.push(record);
        at += length;
    }
    Ok((records, at as u64))
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

    fn texts(stream: &Stream) -> Vec<String> {
        stream.read().unwrap().into_iter().map(|r| String::from_utf8(r.bytes).unwrap()).collect()
    }

    #[test]
    fn a_torn_tail_is_dropped_and_writing_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = Stream::open(dir.path(), "info", QUOTA).unwrap();
        stream.append(Kind::Message, 1, b"one").unwrap();
        stream.append(Kind::Message, 2, b"two").unwrap();
        drop(stream);
        let path = dir.path().join("info.seg");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut stream = Stream::open(dir.path(), "info", QUOTA).unwrap();
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
        let mut stream = Stream::open(dir.path(), "info", QUOTA).unwrap();
        for text in ["a", "b", "c"] {
            assert!(!stream.is_full());
            stream.append(Kind::Message, 1, text.as_bytes()).unwrap();
        }
        assert!(stream.is_full());
        stream.rotate().unwrap();
        drop(stream);
        let mut stream = Stream::open(dir.path(), "info", QUOTA).unwrap();
        assert_eq!(stream.append(Kind::Message, 1, b"d").unwrap(), 4);
        assert_eq!(texts(&stream), ["a", "b", "c", "d"]);
        stream.rotate().unwrap();
        assert_eq!(texts(&stream), ["d"]);
    }

    #[test]
    fn a_flipped_bit_ends_the_reading_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = Stream::open(dir.path(), "info", QUOTA).unwrap();
        stream.append(Kind::Message, 1, b"one").unwrap();
        stream.append(Kind::Message, 1, b"two").unwrap();
        let path = dir.path().join("info.seg");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&Stream::open(dir.path(), "info", QUOTA).unwrap()), ["one"]);
    }
}
