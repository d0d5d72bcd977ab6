// SPDX-License-Identifier: Apache-2.0
//! The intent store: a small ordered key-value store with compare-and-swap and watch.
//!
//! Every commit has a revision that rises by one; an entry carries the revision of the commit that wrote it. Keys are
//! paths that begin with a project. Values are bytes; what is in them is the caller's. Calls block and are short.

mod sqlite;

pub(crate) use sqlite::SqliteStore;

use std::path::Path;

use tokio::sync::broadcast;

/// How many commits a watcher may lag behind before it must read everything anew.
pub(crate) const WATCH_BACKLOG: usize = 1024;

/// A value and the revision of its last write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Vec<u8>,
    pub revision: u64,
}

/// What a commit does, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Key and the revision it must have; 0: it must not exist.
    pub compares: Vec<(String, u64)>,
    pub puts: Vec<(String, Vec<u8>)>,
    pub deletes: Vec<String>,
}

/// Tells watchers of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub revision: u64,
    /// Keys written or deleted.
    pub keys: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote in between.
    #[error("{key} has revision {found}, not {expected}")]
    Conflict { key: String, expected: u64, found: u64 },
    #[error("store format {0} is not one this version reads")]
    Format(u32),
    #[error("intent store")]
    Sqlite(#[from] rusqlite::Error),
    #[error("intent store: a writer failed half way")]
    Poisoned,
}

/// See the head of this module.
pub trait Store: Send + Sync + std::fmt::Debug {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// All entries whose key begins with `prefix`, in order of keys.
    fn range(&self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError>;
    /// The first entries whose key begins with `prefix` and is greater than `after`, at most `limit`, in order of keys.
    fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<(String, Entry)>, StoreError>;
    /// Writes a copy of everything, as it is at one moment, to a file that does not exist yet.
    fn snapshot(&self, to: &Path) -> Result<(), StoreError>;
    /// Returns the revision of the commit.
    fn commit(&self, txn: &Txn) -> Result<u64, StoreError>;
    /// Commits from now on.
    fn watch(&self) -> broadcast::Receiver<Commit>;
}
