// SPDX-License-Identifier: Apache-2.0
//! One ring of lines on disk: segments that are written once, read from the oldest, and deleted whole.
//!
//! ```text
//! DIR/00000007.seg   FORMAT LF, then records: length u32, CRC-32 u32 (both little endian), postcard of a record
//! DIR/taken          postcard: format, position up to which lines were taken
//! ```
//!
//! The first record of a segment holds the counters of its sources, so that numbers go on after older segments went.
//! A torn or damaged tail is dropped when it is met, and said. Nothing here waits for the disk but [`Ring::sync`].

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use model::log::LogEntry;
use serde::{Deserialize, Serialize};

/// First line of a segment.
const MAGIC: &[u8] = b"selvedge-log format 1\n";
/// Version of the file `taken`.
const TAKEN_FORMAT: u32 = 1;
/// A segment is closed when it is this large.
pub(crate) const SEGMENT_BYTES: u64 = 256 * 1024;
/// Length and checksum.
const HEAD_BYTES: usize = 8;
/// No record is longer: a line is limited where it is made.
const MAX_RECORD_BYTES: usize = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    /// Next number of each source.
    Counters(BTreeMap<String, u64>),
    Line {
        /// Name of the app, empty for services.
        app_name: String,
        entry: LogEntry,
    },
}

/// A place between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    segment: u64,
    offset: u64,
}

#[derive(Debug)]
pub(crate) struct Ring {
    dir: PathBuf,
    /// Number → bytes; the last one is written to.
    segments: BTreeMap<u64, u64>,
    active: Option<File>,
    counters: BTreeMap<String, u64>,
    taken: Position,
    is_dirty: bool,
}

/// What was read of a ring.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) app_name: String,
    pub(crate) entries: Vec<LogEntry>,
    pub(crate) end: Position,
    /// What could not be read, for the log itself.
    pub(crate) damage: Vec<String>,
}

impl Ring {
    /// Opens or makes the ring. Says what had to be dropped.
    pub(crate) fn open(dir: &Path) -> io::Result<(Ring, Vec<String>)> {
        fs::create_dir_all(dir)?;
        let mut segments = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse().ok());
            if let Some(number) = number {
                segments.insert(number, entry.metadata()?.len());
            }
        }
        let taken = fs::read(dir.join("taken")).ok().and_then(|bytes| {
            let (format, taken) = postcard::from_bytes::<(u32, Position)>(&bytes).ok()?;
            (format == TAKEN_FORMAT).then_some(taken)
        });
        let mut ring = Ring {
            dir: dir.to_path_buf(),
            segments,
            active: None,
            counters: BTreeMap::new(),
            taken: taken.unwrap_or_default(),
            is_dirty: false,
        };
        let damage = ring.recover()?;
        Ok((ring, damage))
    }

    /// Reads the newest segment: counters, and where its sound part ends.
    fn recover(&mut self) -> io::Result<Vec<String>> {
        let Some((&number, &bytes)) = self.segments.last_key_value() else {
            return Ok(Vec::new());
        };
        let path = self.path(number);
        let content = fs::read(&path)?;
        let mut counters = BTreeMap::new();
        let taken = self.taken;
        let mut before_taken = MAGIC.len() as u64;
        let (end, damage) = walk(&content, 0, |at, record| {
            if at <= taken.offset {
                before_taken = at;
            }
            match record {
                Record::Counters(all) => counters = all,
                Record::Line { entry, .. } => {
                    counters.insert(entry.source, entry.number.saturating_add(1));
                }
            }
            true
        });
        self.counters = counters;
        // A power cut may leave more of `taken` than of the lines it speaks of: what is written there next is not taken.
        let newest = Position { segment: number, offset: end };
        if taken >= newest {
            self.taken = newest;
        } else if taken.segment == number {
            self.taken.offset = before_taken.min(taken.offset);
        }
        if let Some(what) = damage {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(end)?;
            file.sync_data()?;
            self.segments.insert(number, end);
            let lost = bytes.saturating_sub(end);
            return Ok(vec![format!("{}: {what}, {lost} bytes dropped", path.display())]);
        }
        Ok(Vec::new())
    }

    /// Writes one line and gives it its number.
    pub(crate) fn push(&mut self, app_name: &str, mut entry: LogEntry) -> io::Result<()> {
        entry.number = self.counters.get(&entry.source).copied().unwrap_or(1);
        let (source, next) = (entry.source.clone(), entry.number.saturating_add(1));
        let record = encode(&Record::Line { app_name: app_name.into(), entry })?;
        self.make_room(record.len() as u64)?;
        self.append(&record)?;
        self.counters.insert(source, next);
        Ok(())
    }

    /// Makes sure that there is a segment to write to.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let last = self.segments.last_key_value().map(|(number, bytes)| (*number, *bytes));
        let has_room =
            last.is_some_and(|(_, used)| used >= MAGIC.len() as u64 && used + bytes <= SEGMENT_BYTES);
        if has_room {
            if self.active.is_none()
                && let Some((number, _)) = last
            {
                self.active = Some(OpenOptions::new().append(true).open(self.path(number))?);
            }
            return Ok(());
        }
        self.sync()?;
        let number = last.map_or(self.taken.segment, |(number, _)| number) + 1;
        let file = OpenOptions::new().append(true).create_new(true).open(self.path(number))?;
        self.active = Some(file);
        self.segments.insert(number, 0);
        let mut head = MAGIC.to_vec();
        head.extend(encode(&Record::Counters(self.counters.clone()))?);
        self.append(&head).inspect_err(|_| {
            // Tried again for each line: on a full disk there would soon be thousands of empty ones.
            self.active = None;
            self.segments.remove(&number);
            let _ = fs::remove_file(self.path(number));
        })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(file), Some(mut last)) = (&mut self.active, self.segments.last_entry()) else {
            return Err(io::Error::other("no segment to write to"));
        };
        if let Err(error) = file.write_all(bytes) {
            // Half a record must not stand before the next one.
            let _ = file.set_len(*last.get());
            return Err(error);
        }
        *last.get_mut() += bytes.len() as u64;
        self.is_dirty = true;
        Ok(())
    }

    /// The oldest lines that were not taken, of one app name, up to `limit_bytes`; at least one line if there is one.
    pub(crate) fn oldest(&self, limit_bytes: usize) -> io::Result<Chunk> {
        let mut chunk = Chunk { end: self.taken, ..Chunk::default() };
        let mut bytes = 0;
        for (&number, &size) in self.segments.range(self.taken.segment..) {
            let from = if number == self.taken.segment { self.taken.offset } else { 0 };
            if from >= size {
                continue;
            }
            let mut content = Vec::new();
            File::open(self.path(number))?.take(size).read_to_end(&mut content)?;
            let mut is_full = false;
            let (end, damage) = walk(&content, from, |_, record| {
                let Record::Line { app_name, entry } = record else { return true };
                let cost = entry.content.len() + entry.source.len() + 32;
                let other_app = !chunk.entries.is_empty() && app_name != chunk.app_name;
                if !chunk.entries.is_empty() && bytes + cost > limit_bytes || other_app {
                    is_full = true;
                    return false;
                }
                bytes += cost;
                chunk.app_name = app_name;
                chunk.entries.push(entry);
                true
            });
            chunk.end = Position { segment: number, offset: end };
            if let Some(what) = damage {
                chunk.damage.push(format!("{}: {what}", self.path(number).display()));
                chunk.end.offset = size;
            }
            if is_full {
                break;
            }
        }
        Ok(chunk)
    }

    /// Everything before the position is not needed any more.
    pub(crate) fn take(&mut self, to: Position) -> io::Result<()> {
        if to <= self.taken {
            return Ok(());
        }
        self.taken = to;
        let bytes = postcard::to_allocvec(&(TAKEN_FORMAT, to)).map_err(io::Error::other)?;
        // Not synced: after a power cut lines may be sent twice, none is lost.
        let path = self.dir.join("taken.new");
        fs::write(&path, bytes)?;
        fs::rename(&path, self.dir.join("taken"))?;
        let last = self.segments.last_key_value().map_or(0, |(number, _)| *number);
        let done: Vec<u64> = self.segments.range(..to.segment.min(last)).map(|(n, _)| *n).collect();
        done.into_iter().try_for_each(|number| self.delete(number))
    }

    /// Gives up the oldest segment; says how many bytes were not taken of it.
    pub(crate) fn drop_oldest(&mut self) -> io::Result<u64> {
        let Some((&number, &bytes)) = self.segments.first_key_value() else { return Ok(0) };
        if self.segments.len() == 1 {
            self.active = None;
        }
        self.delete(number)?;
        let taken = match self.taken.segment.cmp(&number) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => self.taken.offset,
            std::cmp::Ordering::Greater => bytes,
        };
        if self.taken.segment <= number {
            self.taken = Position { segment: number, offset: bytes };
        }
        Ok(bytes.saturating_sub(taken))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().sum()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty
            && let Some(file) = &self.active
        {
            file.sync_data()?;
        }
        self.is_dirty = false;
        Ok(())
    }

    /// Removes the ring from the disk.
    pub(crate) fn destroy(self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        fs::remove_file(self.path(number))?;
        self.segments.remove(&number);
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08}.seg"))
    }
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let body = postcard::to_allocvec(record).map_err(io::Error::other)?;
    if body.len() > MAX_RECORD_BYTES {
        return Err(io::Error::other("the record is too long"));
    }
    let mut out = (body.len() as u32).to_le_bytes().to_vec();
    out.extend(crc32(&body).to_le_bytes());
    out.extend(body);
    Ok(out)
}

/// Calls `each` with the records from an offset on until it says no. The end of the last record it wanted, and what
/// is wrong there.
fn walk(content: &[u8], from: u64, mut each: impl FnMut(u64, Record) -> bool) -> (u64, Option<&'static str>) {
    let mut at = from as usize;
    if !content.starts_with(MAGIC) {
        return (0, Some("no segment of this format"));
    }
    at = at.max(MAGIC.len());
    loop {
        let Some(rest) = content.get(at..) else { return (at as u64, Some("it ends early")) };
        if rest.is_empty() {
            return (at as u64, None);
        }
        let Some((head, body)) = rest.split_at_checked(HEAD_BYTES) else {
            return (at as u64, Some("a torn record"));
        };
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |n, b| n << 8 | u32::from(*b));
        let length = number(&head[..4]) as usize;
        let Some(body) = body.get(..length).filter(|_| length <= MAX_RECORD_BYTES) else {
            return (at as u64, Some("a torn record"));
        };
        if crc32(body) != number(&head[4..]) {
            return (at as u64, Some("a damaged record"));
        }
        let Ok(record) = postcard::from_bytes(body) else {
            return (at as u64, Some("an unreadable record"));
        };
        if !each(at as u64, record) {
            return (at as u64, None);
        }
        at += HEAD_BYTES + length;
    }
}

/// CRC-32 as of IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut value = at as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| TABLE[((crc ^ u32::from(*byte)) & 255) as usize] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::log::LogSeverity;
    use model::time::WallTime;

    fn entry(source: &str, content: &str) -> LogEntry {
        LogEntry {
            number: 0,
            severity: LogSeverity::Info,
            source: source.into(),
            content: content.into(),
            at: WallTime::default(),
        }
    }

    fn open(dir: &Path) -> Ring {
        let (ring, damage) = Ring::open(dir).unwrap();
        assert_eq!(damage, [""; 0]);
        ring
    }

    fn lines(chunk: &Chunk) -> Vec<(u64, &str)> {
        chunk.entries.iter().map(|entry| (entry.number, entry.content.as_str())).collect()
    }

    #[test]
    fn what_is_written_after_a_power_cut_is_not_taken_yet() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path());
        ring.push("", entry("a", "kept")).unwrap();
        let segment = dir.path().join("00000001.seg");
        let sound = fs::metadata(&segment).unwrap().len();
        ring.push("", entry("a", "lost in the cut")).unwrap();
        let end = ring.oldest(1 << 20).unwrap().end;
        ring.take(end).unwrap();
        drop(ring);
        OpenOptions::new().write(true).open(&segment).unwrap().set_len(sound).unwrap();
        let mut ring = open(dir.path());
        ring.push("", entry("a", "after")).unwrap();
        assert_eq!(lines(&ring.oldest(1 << 20).unwrap()), [(2, "after")]);
    }

    #[test]
    fn crc_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn lines_come_back_in_order_until_they_are_taken_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path());
        for text in ["one", "two", "three"] {
            ring.push("", entry("net", text)).unwrap();
        }
        let mut ring = open(dir.path());
        let chunk = ring.oldest(80).unwrap();
        assert_eq!(lines(&chunk), [(1, "one"), (2, "two")]);
        assert_eq!(ring.oldest(80).unwrap().entries, chunk.entries);
        ring.take(chunk.end).unwrap();
        let mut ring = open(dir.path());
        ring.push("", entry("net", "four")).unwrap();
        let chunk = ring.oldest(1000).unwrap();
        assert_eq!(lines(&chunk), [(3, "three"), (4, "four")]);
        ring.take(chunk.end).unwrap();
        assert!(ring.oldest(1000).unwrap().entries.is_empty());
    }

    #[test]
    fn a_torn_tail_is_dropped_at_every_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path());
        ring.push("", entry("net", "kept")).unwrap();
        let kept = ring.bytes();
        ring.push("", entry("net", "torn")).unwrap();
        let path = dir.path().join("00000001.seg");
        let whole = fs::read(&path).unwrap();
        for cut in kept + 1..whole.len() as u64 {
            fs::write(&path, &whole[..cut as usize]).unwrap();
            let (mut ring, damage) = Ring::open(dir.path()).unwrap();
            assert!(damage[0].contains("torn record"), "{damage:?}");
            ring.push("", entry("net", "new")).unwrap();
            assert_eq!(lines(&ring.oldest(1000).unwrap()), [(1, "kept"), (2, "new")]);
        }
        let mut damaged = whole.clone();
        damaged[kept as usize + 12] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let (_, damage) = Ring::open(dir.path()).unwrap();
        assert!(damage[0].contains("damaged record"), "{damage:?}");
    }

    #[test]
    fn an_empty_or_foreign_segment_does_not_stop_the_ring() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("00000003.seg"), b"").unwrap();
        let (mut ring, _) = Ring::open(dir.path()).unwrap();
        ring.push("", entry("net", "one")).unwrap();
        assert_eq!(lines(&ring.oldest(1000).unwrap()), [(1, "one")]);
    }

    #[test]
    fn the_oldest_segment_goes_first_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path());
        let text = "x".repeat(8000);
        for _ in 0..70 {
            ring.push("", entry("net", &text)).unwrap();
        }
        assert_eq!(ring.segments.len(), 3);
        assert!(ring.drop_oldest().unwrap() > 200_000);
        let first = ring.oldest(1).unwrap().entries[0].number;
        assert!((20..40).contains(&first), "{first}");
        while ring.bytes() > 0 {
            ring.drop_oldest().unwrap();
        }
        ring.push("", entry("net", "next")).unwrap();
        assert_eq!(lines(&ring.oldest(1000).unwrap()), [(71, "next")]);
        let ring = open(dir.path());
        assert_eq!(lines(&ring.oldest(1000).unwrap()), [(71, "next")]);
    }

    #[test]
    fn a_batch_speaks_of_one_app_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = open(dir.path());
        for name in ["a", "a", "b"] {
            ring.push(name, entry("id", name)).unwrap();
        }
        let chunk = ring.oldest(1000).unwrap();
        assert_eq!((chunk.app_name.as_str(), chunk.entries.len()), ("a", 2));
        ring.take(chunk.end).unwrap();
        assert_eq!(ring.oldest(1000).unwrap().app_name, "b");
    }
}
