// SPDX-License-Identifier: Apache-2.0
//! What changed, in order of one number: what `?watch=true` is read from.
//!
//! The feed says which object changed, never what it is: a watcher reads the newest state when it gets there. So the feed
//! keeps one entry per object and its length is bounded by their number; of deleted objects it keeps the last
//! [`MAX_TOMBSTONES`]. Versions rise over the life of the process and begin with the time of its start, so that one of
//! another run is told from ours: it is too old, as is one from before a tombstone that was dropped.
//!
//! Status is computed from what devices report. Whoever takes in something that may change it calls [`Feed::touch`];
//! one task compares and enters what is another than before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use controller_core::resource::Kind;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use uuid::Uuid;

use crate::node::lock;

/// Deleted objects remembered: a watcher that was away while more were deleted has to list anew.
const MAX_TOMBSTONES: usize = 16_384;
/// Watchers at once. Each costs a connection and a few kilobytes.
const MAX_WATCHERS: usize = 512;

pub(crate) type Labels = BTreeMap<String, String>;

/// What happened to an object since a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Added,
    Modified,
    Deleted,
}

/// The newest change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub version: u64,
    pub kind: Kind,
    pub uid: Uuid,
    pub name: Arc<str>,
    /// When it was added, 0: before this run.
    added: u64,
    /// When its labels changed last.
    relabelled: u64,
    /// Labels it had when it was deleted.
    deleted: Option<Labels>,
}

impl Entry {
    /// What a watcher that has seen everything up to `since` is told.
    pub(crate) fn what(&self, since: u64) -> What {
        match self.deleted {
            Some(_) => What::Deleted,
            None if self.added > since => What::Added,
            None => What::Modified,
        }
    }

    /// Its labels are others than at `since`.
    pub(crate) fn is_relabelled(&self, since: u64) -> bool {
        self.relabelled > since
    }

    pub(crate) fn last_labels(&self) -> Option<&Labels> {
        self.deleted.as_ref()
    }
}

/// The version is older than what the feed still knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld;

#[derive(Debug)]
struct Log {
    newest: u64,
    /// Versions below this one are too old.
    oldest: u64,
    entries: BTreeMap<u64, Entry>,
    by_object: HashMap<(Kind, Uuid), u64>,
    tombstones: BTreeSet<u64>,
    max_tombstones: usize,
}

#[derive(Debug)]
pub struct Feed {
    log: Mutex<Log>,
    newest: watch::Sender<u64>,
    touched: Mutex<BTreeSet<(Kind, Uuid)>>,
    wake: Notify,
    slots: Arc<Semaphore>,
    max_watchers: usize,
}

impl Feed {
    /// `start`: a number higher than any version of an earlier run, like the microseconds since 1970.
    pub(crate) fn new(start: u64) -> Feed {
        Feed::with_limits(start, MAX_TOMBSTONES, MAX_WATCHERS)
    }

    fn with_limits(start: u64, max_tombstones: usize, max_watchers: usize) -> Feed {
        Feed {
            log: Mutex::new(Log {
                newest: start,
                oldest: start,
                entries: BTreeMap::new(),
                by_object: HashMap::new(),
                tombstones: BTreeSet::new(),
                max_tombstones,
            }),
            newest: watch::channel(start).0,
            touched: Mutex::default(),
            wake: Notify::new(),
            slots: Arc::new(Semaphore::new(max_watchers)),
            max_watchers,
        }
    }

    /// The version of now: what is read after this call contains every change up to it.
    pub(crate) fn version(&self) -> u64 {
        lock(&self.log).newest
    }

    pub(crate) fn added(&self, kind: Kind, uid: Uuid, name: &str) {
        self.enter(kind, uid, name, |entry| entry.added = entry.version);
    }

    pub(crate) fn modified(&self, kind: Kind, uid: Uuid, name: &str) {
        self.enter(kind, uid, name, |_| {});
    }

    /// Modified, labels too.
    pub(crate) fn relabelled(&self, kind: Kind, uid: Uuid, name: &str) {
        self.enter(kind, uid, name, |entry| entry.relabelled = entry.version);
    }

    pub(crate) fn deleted(&self, kind: Kind, uid: Uuid, name: &str, labels: &Labels) {
        self.enter(kind, uid, name, |entry| entry.deleted = Some(labels.clone()));
    }

    fn enter(&self, kind: Kind, uid: Uuid, name: &str, set: impl FnOnce(&mut Entry)) {
        let mut log = lock(&self.log);
        let log = &mut *log;
        log.newest += 1;
        let version = log.newest;
        let before = log.by_object.get(&(kind, uid)).and_then(|old| log.entries.remove(old));
        let mut entry = Entry {
            version,
            kind,
            uid,
            name: name.into(),
            added: before.as_ref().map_or(0, |entry| entry.added),
            relabelled: before.as_ref().map_or(0, |entry| entry.relabelled),
            deleted: None,
        };
        set(&mut entry);
        if entry.deleted.is_some() {
            log.tombstones.insert(version);
            log.by_object.remove(&(kind, uid));
        } else {
            log.by_object.insert((kind, uid), version);
        }
        log.entries.insert(version, entry);
        if log.tombstones.len() > log.max_tombstones
            && let Some(first) = log.tombstones.pop_first()
        {
            log.entries.remove(&first);
            log.oldest = first;
        }
        // Nobody watching is no error.
        self.newest.send_replace(version);
    }

    /// The next changes after a version, oldest first, at most `limit`.
    pub(crate) fn since(&self, version: u64, limit: usize) -> Result<Vec<Entry>, TooOld> {
        let log = lock(&self.log);
        if version < log.oldest || version > log.newest {
            return Err(TooOld);
        }
        Ok(log.entries.range(version + 1..).take(limit).map(|(_, entry)| entry.clone()).collect())
    }

    /// Wakes when the version rises.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The right to watch, as long as it is kept; `None` when too many do.
    pub(crate) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Watches that are open.
    pub(crate) fn watchers(&self) -> usize {
        self.max_watchers - self.slots.available_permits()
    }

    /// The status of an object may be another now.
    pub(crate) fn touch(&self, kind: Kind, uid: Uuid) {
        if lock(&self.touched).insert((kind, uid)) {
            self.wake.notify_one();
        }
    }

    /// Waits until something was touched, and takes it.
    pub(crate) async fn take_touched(&self) -> BTreeSet<(Kind, Uuid)> {
        loop {
            let touched = std::mem::take(&mut *lock(&self.touched));
            if !touched.is_empty() {
                return touched;
            }
            self.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: Kind = Kind::App;

    fn told(feed: &Feed, since: u64) -> Vec<(What, String)> {
        let entries = feed.since(since, 100).unwrap();
        entries.iter().map(|entry| (entry.what(since), entry.name.to_string())).collect()
    }

    #[test]
    fn a_watcher_that_was_away_is_told_the_newest_of_each_object_once() {
        let feed = Feed::new(100);
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        feed.added(APP, a, "a");
        let between = feed.version();
        feed.modified(APP, a, "a");
        feed.added(APP, b, "b");
        feed.modified(APP, a, "a");
        assert_eq!(told(&feed, 100), [(What::Added, "b".into()), (What::Added, "a".into())]);
        assert_eq!(told(&feed, between), [(What::Added, "b".into()), (What::Modified, "a".into())]);
        feed.deleted(APP, a, "a", &Labels::new());
        feed.added(APP, Uuid::from_u128(3), "a");
        assert_eq!(
            told(&feed, between),
            [(What::Added, "b".into()), (What::Deleted, "a".into()), (What::Added, "a".into())]
        );
        assert_eq!(told(&feed, feed.version()), []);
    }

    #[test]
    fn versions_of_another_run_and_from_before_forgotten_deletions_are_too_old() {
        let feed = Feed::with_limits(100, 2, 1);
        assert_eq!((feed.since(99, 1), feed.since(101, 1)), (Err(TooOld), Err(TooOld)));
        for number in 1..=4 {
            feed.deleted(APP, Uuid::from_u128(number), "x", &Labels::new());
        }
        assert_eq!(feed.since(101, 9), Err(TooOld), "the deletion at 102 is not known any more");
        assert_eq!(feed.since(102, 9).unwrap().len(), 2);
        assert_eq!(feed.since(103, 9).unwrap().len(), 1);
    }

    #[test]
    fn the_feed_is_as_long_as_there_are_objects() {
        let feed = Feed::new(0);
        for _ in 0..1000 {
            feed.modified(APP, Uuid::from_u128(1), "a");
        }
        let log = lock(&feed.log);
        assert_eq!((log.entries.len(), log.by_object.len(), log.newest), (1, 1, 1000));
    }

    #[test]
    fn watchers_are_counted() {
        let feed = Feed::with_limits(0, 1, 1);
        let slot = feed.slot();
        assert!(slot.is_some() && feed.slot().is_none());
        drop(slot);
        assert!(feed.slot().is_some());
    }
}
