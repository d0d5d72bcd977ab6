// SPDX-License-Identifier: Apache-2.0
//! The flight recorder: what a service decided upon, so that a decision can be made again elsewhere.
//!
//! Two files, `flight.0` and `flight.1`, in the service's own directory, each bounded; the newer one is written, and when
//! it is full the older is begun anew. Every file begins with a *keyframe*: all topics as the service saw them, what it
//! had published, and a state of its own if it gives one. After that come inputs and outputs in order. An input is
//! written before it is handed over, with one system call and without a sync: it survives the death of the process, not
//! that of the box.
//!
//! ```text
//! keyframe ─ seen … input ─ said … input ─ said … │ full: keyframe in the other file
//! ```
//!
//! Topics carry secrets only as handles, so records do too. Of calls and of what worker threads bring only the kind is
//! recorded, since those may carry clear text.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipc::broker::BusFrame;
use ipc::client::Client;
use model::time::Now;
use serde::{Deserialize, Serialize};

/// Bytes of one file: half an hour of a busy planner, and with all services of a node less than 16 MiB on disk.
pub const MAX_FILE_BYTES: u64 = 512 * 1024;
/// A larger value is left out, and its decision cannot be made again.
pub const MAX_VALUE_BYTES: usize = 128 * 1024;
const MAGIC: &[u8; 8] = b"SELVFLT\x01";
/// A longer record is no record.
const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// One thing that was seen, asked or said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A keyframe begins: a process of this service, of this version, with a state of its own.
    Keyframe {
        service: String,
        version: String,
        now: Now,
        state: Option<Vec<u8>>,
    },
    /// Part of a keyframe: this process has published the value.
    Stands {
        topic: String,
        key: String,
        value: Vec<u8>,
        is_synced: bool,
    },
    /// The keyframe is complete.
    KeyframeEnd,
    Put {
        topic: String,
        key: String,
        value: Vec<u8>,
    },
    Removed {
        topic: String,
        key: String,
    },
    Synced {
        topic: String,
    },
    /// A value that was too large to be kept.
    LeftOut {
        topic: String,
        key: String,
        bytes: u64,
    },
    /// What the main loop was woken with. Decisions follow.
    Woken {
        now: Now,
        by: Wake,
    },
    /// An input of a machine, as the service encodes it.
    Input {
        now: Now,
        input: Vec<u8>,
    },
    /// An order of a machine.
    Order {
        order: Vec<u8>,
    },
    SaidPut {
        topic: String,
        key: String,
        value: Vec<u8>,
    },
    SaidRemoved {
        topic: String,
        key: String,
    },
    SaidSynced {
        topic: String,
    },
}

/// What woke a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wake {
    Topic(String),
    Call { from: String },
    Channel { kind: String, key: String },
    Worker,
    Readable(u64),
    Deadline,
    Stop,
}

/// The writing end. Does nothing when there is no directory or the disk refuses: a recorder must not stop a service.
#[derive(Debug, Default)]
pub struct Recorder {
    service: String,
    dir: Option<PathBuf>,
    file: Option<File>,
    /// Which of the two is written.
    number: usize,
    written: u64,
    buffer: Vec<u8>,
    has_keyframe: bool,
}

fn path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("flight.{number}"))
}

impl Recorder {
    /// Goes on in the newer file while that has room, so that a service that dies again and again does not lose what
    /// its first death looked like.
    pub fn open(dir: Option<&Path>, service: &str) -> Recorder {
        let mut recorder = Recorder { service: service.into(), ..Recorder::default() };
        let Some(dir) = dir else { return recorder };
        let newest = [0, 1].into_iter().filter_map(|number| {
            let meta = std::fs::metadata(path(dir, number)).ok()?;
            Some((meta.modified().ok()?, meta.len(), number))
        });
        if let Some((_, bytes, number)) = newest.max() {
            recorder.number = if bytes < MAX_FILE_BYTES / 2 { number } else { 1 - number };
        }
        recorder.dir = Some(dir.to_owned());
        let is_appended =
            std::fs::metadata(path(dir, recorder.number)).is_ok_and(|m| m.len() < MAX_FILE_BYTES / 2);
        recorder.begin(is_appended);
        recorder
    }

    fn begin(&mut self, is_appended: bool) {
        let Some(dir) = &self.dir else { return };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(!is_appended).mode(0o600);
        self.file = options.open(path(dir, self.number)).ok();
        self.written = self.file.as_mut().and_then(|file| file.seek(SeekFrom::End(0)).ok()).unwrap_or(0);
        self.has_keyframe = false;
        self.buffer.clear();
        if self.written == 0 {
            self.buffer.extend_from_slice(MAGIC);
        }
    }

    /// A keyframe is due: call [`Recorder::keyframe`] before the next input.
    pub fn wants_keyframe(&self) -> bool {
        self.file.is_some() && (!self.has_keyframe || self.written >= MAX_FILE_BYTES)
    }

    /// Begins the other file when this one is full, and writes everything a decision depends on.
    pub fn keyframe(&mut self, now: Now, client: &Client, state: Option<Vec<u8>>) {
        self.flush();
        if self.has_keyframe {
            self.number = 1 - self.number;
            self.begin(false);
        }
        self.has_keyframe = true;
        let version = env!("CARGO_PKG_VERSION").into();
        self.record(&Record::Keyframe { service: self.service.clone(), version, now, state });
        for topic in client.subscribed().collect::<Vec<_>>() {
            for (key, value) in client.values(topic) {
                self.seen(&BusFrame::Put { topic, key, value });
            }
            if client.is_synced(topic) {
                self.seen(&BusFrame::Synced { topic });
            }
        }
        for (topic, key, value, is_synced) in client.published() {
            let (topic, key, value) = (topic.into(), key.into(), value.to_vec());
            self.record(&Record::Stands { topic, key, value, is_synced });
        }
        self.record(&Record::KeyframeEnd);
        self.flush();
    }

    /// A frame of the bus.
    pub fn seen(&mut self, frame: &BusFrame<'_>) {
        if self.file.is_none() {
            return;
        }
        self.record(&match *frame {
            BusFrame::Put { topic, key, value } if value.len() > MAX_VALUE_BYTES => {
                Record::LeftOut { topic: topic.into(), key: key.into(), bytes: value.len() as u64 }
            }
            BusFrame::Put { topic, key, value } => {
                Record::Put { topic: topic.into(), key: key.into(), value: value.to_vec() }
            }
            BusFrame::Remove { topic, key } => Record::Removed { topic: topic.into(), key: key.into() },
            BusFrame::Synced { topic } => Record::Synced { topic: topic.into() },
            BusFrame::Subscribe { .. } => return,
        });
    }

    /// A frame to the bus.
    pub fn said(&mut self, frame: &BusFrame<'_>) {
        if self.file.is_none() {
            return;
        }
        self.record(&match *frame {
            BusFrame::Put { topic, key, value } => {
                let value = if value.len() > MAX_VALUE_BYTES { Vec::new() } else { value.to_vec() };
                Record::SaidPut { topic: topic.into(), key: key.into(), value }
            }
            BusFrame::Remove { topic, key } => Record::SaidRemoved { topic: topic.into(), key: key.into() },
            BusFrame::Synced { topic } => Record::SaidSynced { topic: topic.into() },
            BusFrame::Subscribe { .. } => return,
        });
    }

    pub fn record(&mut self, record: &Record) {
        if self.file.is_none() {
            return;
        }
        let Ok(bytes) = postcard::to_allocvec(record) else { return };
        self.buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&checksum(&bytes).to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
    }

    /// Writes what waits. A disk that refuses ends the recording.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if let Some(file) = &mut self.file {
            self.written += self.buffer.len() as u64;
            if file.write_all(&self.buffer).is_err() {
                self.file = None;
            }
        }
        self.buffer.clear();
    }
}

/// FNV-1a, 32 bit: finds the torn end of a file.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Reads one file of records, up to where it ends or is torn.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let mut untrusted = Vec::new();
    File::open(path)?.take(4 * MAX_FILE_BYTES).read_to_end(&mut untrusted)?;
    parse(&untrusted).ok_or_else(|| io::Error::other("not a flight record of this version"))
}

/// As [`read`], of bytes; `None` when they are no record.
pub fn parse(untrusted: &[u8]) -> Option<Vec<Record>> {
    let mut rest = untrusted.strip_prefix(MAGIC)?;
    let mut records = Vec::new();
    while let Some((head, body)) = rest.split_at_checked(8) {
        let (length, sum) = head.split_at(4);
        let length = length.try_into().map(u32::from_le_bytes).ok()? as usize;
        let sum = sum.try_into().map(u32::from_le_bytes).ok()?;
        let Some((bytes, after)) =
            (length <= MAX_RECORD_BYTES).then(|| body.split_at_checked(length)).flatten()
        else {
            break;
        };
        let record = (checksum(bytes) == sum).then(|| postcard::from_bytes(bytes).ok()).flatten();
        let Some(record) = record else { break };
        records.push(record);
        rest = after;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::time::{MonoMs, Wall};

    fn woken(ms: u64) -> Record {
        Record::Woken { now: Now { mono: MonoMs(ms), wall: Wall::Unset }, by: Wake::Deadline }
    }

    fn now() -> Now {
        Now { mono: MonoMs(0), wall: Wall::Unset }
    }

    #[test]
    fn what_was_written_before_the_death_is_read_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::open(Some(dir.path()), "planner");
        assert!(recorder.wants_keyframe());
        recorder.keyframe(now(), &Client::default(), Some(vec![7]));
        recorder.record(&woken(1));
        recorder.flush();
        // Dies with this one still unwritten.
        recorder.record(&woken(2));
        drop(recorder);
        let records = read(&path(dir.path(), 0)).unwrap();
        assert!(matches!(&records[0], Record::Keyframe { state: Some(state), .. } if *state == [7]));
        assert_eq!(records[1..], [Record::KeyframeEnd, woken(1)]);
        // The next process goes on in the same file.
        let mut recorder = Recorder::open(Some(dir.path()), "planner");
        recorder.keyframe(now(), &Client::default(), None);
        drop(recorder);
        assert_eq!(read(&path(dir.path(), 0)).unwrap().len(), 5);
    }

    #[test]
    fn two_files_hold_the_newest_and_stay_within_their_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::open(Some(dir.path()), "planner");
        for ms in 0..60_000 {
            if recorder.wants_keyframe() {
                recorder.keyframe(now(), &Client::default(), Some(vec![0; 100]));
            }
            recorder.record(&woken(ms));
            recorder.flush();
        }
        let mut all = Vec::new();
        for number in [0, 1] {
            let bytes = std::fs::metadata(path(dir.path(), number)).unwrap().len();
            assert!(bytes <= MAX_FILE_BYTES + 1_000, "{bytes}");
            all.extend(read(&path(dir.path(), number)).unwrap());
        }
        assert!(all.contains(&woken(59_999)));
    }

    #[test]
    fn a_torn_end_is_left_out_and_nonsense_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::open(Some(dir.path()), "run");
        recorder.keyframe(now(), &Client::default(), None);
        recorder.record(&woken(1));
        recorder.flush();
        let whole = std::fs::read(path(dir.path(), 0)).unwrap();
        for cut in 8..whole.len() {
            assert!(parse(&whole[..cut]).unwrap().len() < 3);
        }
        assert_eq!(parse(b"SELVFLT\x02"), None);
    }
}
