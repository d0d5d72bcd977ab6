// SPDX-License-Identifier: Apache-2.0
//! Doors to the private parsers of this crate for whoever attacks them (package `fuzz`). No product uses them.

use std::path::Path;

use model::log::{LogEntry, LogSeverity};
use model::time::WallTime;

use crate::log::ring::{Position, Ring};
use crate::planner::state::{StateError, StateFile};

/// Opens a damaged ring, goes on writing, and reads all of it; ends at the line written last.
pub fn log_ring(dir: &Path) {
    let (mut ring, _) = Ring::open(dir).expect("damage is no reason to refuse");
    let entry = LogEntry {
        number: 0,
        severity: LogSeverity::Info,
        source: "after".into(),
        content: "after".into(),
        at: WallTime { seconds: 1, nanos: 2 },
    };
    let is_written = ring.push("app", entry).is_ok();
    let mut before = Position::default();
    let mut last = String::new();
    loop {
        let chunk = ring.oldest(50_000).expect("what was opened can be read");
        if let Some(entry) = chunk.entries.last() {
            last = entry.content.clone();
        }
        if chunk.end <= before {
            break;
        }
        before = chunk.end;
        ring.take(chunk.end).expect("what was read can be taken");
    }
    if is_written {
        assert_eq!(last, "after", "the newest line is not reached");
    }
}

/// Reads the planner's file. Whether it was sound.
pub fn planner_state(dir: &Path) -> bool {
    let file = StateFile::new(Box::new(service::files::Directory::new(dir)));
    match file.load() {
        Ok((memory, desired)) => {
            file.save(&memory, &desired).expect("what was read can be written");
            assert_eq!(file.load().expect("and read again"), (memory, desired));
            true
        }
        Err(StateError::Torn | StateError::Format(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The bytes of a planner's file with this body and the right checksum.
pub fn planner_file(body: &[u8]) -> Vec<u8> {
    crate::planner::state::framed(body)
}
