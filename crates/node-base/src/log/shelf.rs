// SPDX-License-Identifier: Apache-2.0
//! All rings: which one a line goes to, who pays for the quota, and batches in turn.
//!
//! One batch is out at a time. Numbers of batches begin at the wall clock's milliseconds of the start, so that an
//! answer to a batch of an earlier life is not taken for one of this life; its lines are then sent twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use ipc::calls::LogReply;
use model::id::AppId;
use model::log::{LogEntry, LogSeverity};
use model::time::WallTime;
use service::durable;

use super::ring::{Position, Ring, SEGMENT_BYTES};

/// Bytes of the lines of one batch.
const BATCH_BYTES: usize = 50_000;
/// Directory of the ring of services.
const DEVICE_DIR: &str = "device";

/// Where a line belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Device,
    App { app: AppId, name: String },
}

/// A line without its number.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) severity: LogSeverity,
    pub(super) at: WallTime,
    pub(super) source: String,
    pub(super) content: String,
}

#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    quota_bytes: u64,
    /// Nothing: the ring of services.
    rings: BTreeMap<Option<AppId>, Ring>,
    next_batch: u64,
    out: Option<Out>,
    /// Ring of the last batch: the next one in order comes next.
    last: Option<Option<AppId>>,
    ended: BTreeSet<AppId>,
    failures: u64,
    now: WallTime,
}

#[derive(Debug)]
struct Out {
    ring: Option<AppId>,
    end: Position,
    reply: LogReply,
    batch: u64,
}

impl Shelf {
    pub(super) fn open(dir: &Path, quota_bytes: u64, now: WallTime) -> io::Result<Shelf> {
        let mut shelf = Shelf {
            dir: dir.to_path_buf(),
            quota_bytes: quota_bytes.max(2 * SEGMENT_BYTES),
            rings: BTreeMap::new(),
            next_batch: now.seconds.max(0) as u64 * 1000 + u64::from(now.nanos / 1_000_000) + 1,
            out: None,
            last: None,
            ended: BTreeSet::new(),
            failures: 0,
            now,
        };
        let mut damage = Vec::new();
        let (device, dropped) = Ring::open(&dir.join(DEVICE_DIR))?;
        damage.extend(dropped);
        shelf.rings.insert(None, device);
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name();
            let Some(app) = name.to_str().and_then(|name| name.parse::<AppId>().ok()) else {
                continue;
            };
            let (ring, dropped) = Ring::open(&dir.join(&name))?;
            damage.extend(dropped);
            shelf.rings.insert(Some(app), ring);
            // Its shim, when it lives, comes with its first line.
            shelf.ended.insert(app);
        }
        for what in damage {
            shelf.note(what);
        }
        Ok(shelf)
    }

    pub(super) fn push(&mut self, stream: &Stream, line: Line) {
        self.now = line.at;
        let (id, name) = match stream {
            Stream::Device => (None, ""),
            Stream::App { app, name } => (Some(*app), name.as_str()),
        };
        if let Some(app) = id {
            self.ended.remove(&app);
        }
        let entry = LogEntry {
            number: 0,
            severity: line.severity,
            source: line.source,
            content: line.content,
            at: line.at,
        };
        let mut written = self.write(id, name, entry.clone());
        // On a full disk the oldest line gives way, as it does when the quota is used up.
        if written.as_ref().is_err_and(durable::is_full) && self.give_up_oldest().is_ok_and(|bytes| bytes > 0)
        {
            written = self.write(id, name, entry);
        }
        match written {
            Ok(()) if self.failures > 0 => {
                let lost = std::mem::take(&mut self.failures);
                self.note(format!("{lost} lines could not be written"));
            }
            Ok(()) => {}
            Err(_) => self.failures += 1,
        }
        self.keep_quota();
    }

    pub(super) fn next_batch(&mut self) -> LogReply {
        if let Some(out) = &self.out {
            return out.reply.clone();
        }
        // After the ring that had its turn; then from the beginning.
        let all: Vec<Option<AppId>> = self.rings.keys().copied().collect();
        let first = all.iter().position(|id| Some(*id) > self.last).unwrap_or(0);
        for id in all[first..].iter().chain(&all[..first]) {
            let Some(ring) = self.rings.get(id) else { continue };
            let chunk = match ring.oldest(BATCH_BYTES) {
                Ok(chunk) => chunk,
                Err(error) => {
                    self.note(format!("a ring cannot be read: {error}"));
                    continue;
                }
            };
            if chunk.entries.is_empty() {
                continue;
            }
            for what in chunk.damage {
                self.note(what);
            }
            let batch = self.next_batch;
            self.next_batch += 1;
            let app = id.map(|app| (app, chunk.app_name));
            let reply = LogReply::Batch { batch, app, entries: chunk.entries };
            self.last = Some(*id);
            self.out = Some(Out { ring: *id, end: chunk.end, reply: reply.clone(), batch });
            return reply;
        }
        LogReply::Nothing
    }

    pub(super) fn taken(&mut self, batch: u64) -> LogReply {
        if let Some(out) = self.out.take_if(|out| out.batch == batch)
            && let Some(ring) = self.rings.get_mut(&out.ring)
            && let Err(error) = ring.take(out.end)
        {
            self.note(format!("what was taken cannot be written: {error}"));
        }
        self.sweep();
        LogReply::Done
    }

    /// The app writes no more; its ring goes when all of it was taken.
    pub(super) fn app_ended(&mut self, app: AppId) {
        self.ended.insert(app);
        self.sweep();
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.rings.values().any(Ring::is_dirty)
    }

    pub(super) fn sync(&mut self) {
        let failed = self.rings.values_mut().filter_map(|ring| ring.sync().err()).last();
        if let Some(error) = failed {
            self.note(format!("lines cannot be synced: {error}"));
        }
    }

    fn sweep(&mut self) {
        let out = self.out.as_ref().map(|out| out.ring);
        let done: Vec<AppId> = self
            .ended
            .iter()
            .copied()
            .filter(|app| out != Some(Some(*app)))
            .filter(|app| {
                let ring = self.rings.get(&Some(*app));
                ring.is_none_or(|ring| ring.oldest(1).is_ok_and(|c| c.entries.is_empty()))
            })
            .collect();
        for app in done {
            self.ended.remove(&app);
            if let Some(ring) = self.rings.remove(&Some(app))
                && let Err(error) = ring.destroy()
            {
                self.note(format!("the ring of app {app} cannot be removed: {error}"));
            }
        }
    }

    /// The largest ring pays, oldest first.
    fn keep_quota(&mut self) {
        while self.rings.values().map(Ring::bytes).sum::<u64>() > self.quota_bytes {
            if self.give_up_oldest().is_err() {
                self.failures += 1;
                return;
            }
        }
    }

    /// Says whose lines went, if they were still wanted; how many bytes the disk got back.
    fn give_up_oldest(&mut self) -> io::Result<u64> {
        let Some((id, ring)) = self.rings.iter_mut().max_by_key(|(_, ring)| ring.bytes()) else {
            return Ok(0);
        };
        let whose = id.map_or("services".to_string(), |app| format!("app {app}"));
        let before = ring.bytes();
        let dropped = ring.drop_oldest()?;
        let freed = before - ring.bytes();
        if dropped > 0 {
            self.note(format!("log quota: {dropped} bytes of lines of {whose} dropped"));
        }
        Ok(freed)
    }

    fn write(&mut self, id: Option<AppId>, name: &str, entry: LogEntry) -> io::Result<()> {
        self.ring(id)?.push(name, entry)
    }

    fn ring(&mut self, id: Option<AppId>) -> io::Result<&mut Ring> {
        let entry = match self.rings.entry(id) {
            std::collections::btree_map::Entry::Occupied(ring) => return Ok(ring.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => entry,
        };
        let name = id.map_or(DEVICE_DIR.to_string(), |app| app.to_string());
        let (ring, _) = Ring::open(&self.dir.join(name))?;
        Ok(entry.insert(ring))
    }

    /// A line of log itself.
    fn note(&mut self, content: String) {
        let entry = LogEntry {
            number: 0,
            severity: LogSeverity::Warning,
            source: "log".into(),
            content,
            at: self.now,
        };
        if self.ring(None).and_then(|ring| ring.push("", entry)).is_err() {
            self.failures += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "11111111-2222-4333-8444-555555555555";

    fn shelf(dir: &Path, quota: u64) -> Shelf {
        Shelf::open(dir, quota, WallTime { seconds: 1000, nanos: 0 }).unwrap()
    }

    fn line(source: &str, content: &str) -> Line {
        let (source, content) = (source.into(), content.into());
        Line { severity: LogSeverity::Info, at: WallTime::default(), source, content }
    }

    fn app() -> Stream {
        Stream::App { app: APP.parse().unwrap(), name: "web".into() }
    }

    fn batch(reply: LogReply) -> (u64, Option<String>, Vec<String>) {
        let LogReply::Batch { batch, app, entries } = reply else { panic!("{reply:?}") };
        let lines = entries.into_iter().map(|entry| entry.content).collect();
        (batch, app.map(|(_, name)| name), lines)
    }

    #[test]
    fn batches_take_turns_and_come_again_until_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), 1 << 20);
        assert_eq!(shelf.next_batch(), LogReply::Nothing);
        shelf.push(&Stream::Device, line("net", "a"));
        shelf.push(&app(), line(APP, "b"));
        let (first, name, lines) = batch(shelf.next_batch());
        assert_eq!((name, lines), (None, vec!["a".into()]));
        shelf.push(&Stream::Device, line("net", "c"));
        assert_eq!(batch(shelf.next_batch()).0, first);
        shelf.taken(first - 1);
        assert_eq!(batch(shelf.next_batch()).0, first);
        shelf.taken(first);
        let (second, name, lines) = batch(shelf.next_batch());
        assert_eq!((name.as_deref(), lines), (Some("web"), vec!["b".into()]));
        shelf.taken(second);
        let (third, name, lines) = batch(shelf.next_batch());
        assert_eq!((name, lines), (None, vec!["c".into()]));
        shelf.taken(third);
        assert_eq!(shelf.next_batch(), LogReply::Nothing);
    }

    #[test]
    fn a_large_backlog_comes_in_batches_below_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), 1 << 24);
        for _ in 0..100 {
            shelf.push(&Stream::Device, line("net", &"x".repeat(4000)));
        }
        let mut count = 0;
        while let LogReply::Batch { batch, entries, .. } = shelf.next_batch() {
            assert!(entries.iter().map(|e| e.content.len()).sum::<usize>() <= BATCH_BYTES);
            count += entries.len();
            shelf.taken(batch);
        }
        assert_eq!(count, 100);
    }

    #[test]
    fn a_noisy_app_pays_for_the_quota_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), 3 * SEGMENT_BYTES);
        shelf.push(&Stream::Device, line("net", "important"));
        for _ in 0..300 {
            shelf.push(&app(), line(APP, &"x".repeat(4000)));
        }
        let total: u64 = shelf.rings.values().map(Ring::bytes).sum();
        assert!(total <= 3 * SEGMENT_BYTES);
        let (_, _, lines) = batch(shelf.next_batch());
        assert_eq!(lines[0], "important");
        assert!(lines[1].contains("log quota"), "{lines:?}");
    }

    #[test]
    fn the_ring_of_an_app_goes_when_it_ended_and_all_was_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(APP);
        let mut shelf = shelf(dir.path(), 1 << 20);
        shelf.push(&app(), line(APP, "last words"));
        shelf.app_ended(APP.parse().unwrap());
        assert!(path.exists());
        let (id, _, _) = batch(shelf.next_batch());
        shelf.taken(id);
        assert!(!path.exists());
    }
}
