// SPDX-License-Identifier: Apache-2.0
//! The intent store on SQLite in WAL mode: one file, one connection behind a lock.
//!
//! A commit is on the disk when it returns (`synchronous=FULL`). One connection is enough: intent is read into memory at
//! the start, and written at the pace of people and registrations.

use std::path::Path;
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::broadcast;

use super::{Commit, Entry, Store, StoreError, Txn, WATCH_BACKLOG};

/// Version of the tables.
const FORMAT: u32 = 1;

pub(crate) struct SqliteStore {
    connection: Mutex<Connection>,
    commits: broadcast::Sender<Commit>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens or makes the file.
    pub(crate) fn open(path: &Path) -> Result<SqliteStore, StoreError> {
        // What SQLite puts beside the file has the file's mode.
        if let Err(error) = crate::files::make_private(path) {
            tracing::warn!(%error, "cannot close the intent store to others");
        }
        SqliteStore::set_up(Connection::open(path)?)
    }

    #[cfg(test)]
    /// A store that is gone with the process.
    pub(crate) fn in_memory() -> Result<SqliteStore, StoreError> {
        SqliteStore::set_up(Connection::open_in_memory()?)
    }

    fn set_up(connection: Connection) -> Result<SqliteStore, StoreError> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS store (format INTEGER NOT NULL, revision INTEGER NOT NULL);
             INSERT INTO store SELECT 1, 0 WHERE NOT EXISTS (SELECT 1 FROM store);
             CREATE TABLE IF NOT EXISTS entry
                 (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;",
        )?;
        let format: u32 = connection.query_row("SELECT format FROM store", [], |row| row.get(0))?;
        if format != FORMAT {
            return Err(StoreError::Format(format));
        }
        Ok(SqliteStore { connection: Mutex::new(connection), commits: broadcast::channel(WATCH_BACKLOG).0 })
    }

    /// Puts everything into the one file, so that it can be moved; nobody may write after that.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        self.with(|connection| Ok(connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?))
    }

    fn with<T>(&self, run: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        run(&mut *self.connection.lock().map_err(|_| StoreError::Poisoned)?)
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { value: row.get("value")?, revision: row.get::<_, i64>("revision")?.cast_unsigned() })
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.with(|connection| {
            let mut query = connection.prepare_cached("SELECT value, revision FROM entry WHERE key = ?1")?;
            Ok(query.query_row([key], entry).optional()?)
        })
    }

    fn range(&self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError> {
        // The first key that is greater than all that begin with the prefix; U+10FFFF never stands in a key.
        let end = format!("{prefix}\u{10ffff}");
        self.with(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT key, value, revision FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key",
            )?;
            let rows = query.query_map([prefix, &end], |row| Ok((row.get("key")?, entry(row)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<(String, Entry)>, StoreError> {
        let end = format!("{prefix}\u{10ffff}");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.with(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT key, value, revision FROM entry WHERE key >= ?1 AND key > ?2 AND key < ?3 ORDER BY key LIMIT ?4",
            )?;
            let rows =
                query.query_map(params![prefix, after, end, limit], |row| Ok((row.get("key")?, entry(row)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn snapshot(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_string_lossy();
        self.with(|connection| Ok(connection.execute("VACUUM INTO ?1", [to]).map(drop)?))
    }

    fn commit(&self, txn: &Txn) -> Result<u64, StoreError> {
        let revision = self.with(|connection| {
            let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            for (key, expected) in &txn.compares {
                let found: Option<i64> = tx
                    .prepare_cached("SELECT revision FROM entry WHERE key = ?1")?
                    .query_row([key], |row| row.get(0))
                    .optional()?;
                let found = found.unwrap_or(0).cast_unsigned();
                if found != *expected {
                    return Err(StoreError::Conflict { key: key.clone(), expected: *expected, found });
                }
            }
            let revision: i64 =
                tx.query_row("UPDATE store SET revision = revision + 1 RETURNING revision", [], |row| {
                    row.get(0)
                })?;
            for (key, value) in &txn.puts {
                tx.prepare_cached("INSERT OR REPLACE INTO entry (key, value, revision) VALUES (?1, ?2, ?3)")?
                    .execute(params![key, value, revision])?;
            }
            for key in &txn.deletes {
                tx.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])?;
            }
            tx.commit()?;
            Ok(revision.cast_unsigned())
        })?;
        let keys = txn.puts.iter().map(|(key, _)| key).chain(&txn.deletes).cloned().collect();
        // Nobody watching is no error.
        let _ = self.commits.send(Commit { revision, keys });
        Ok(revision)
    }

    fn watch(&self) -> broadcast::Receiver<Commit> {
        self.commits.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Txn {
        Txn { puts: vec![(key.into(), value.into())], ..Txn::default() }
    }

    #[test]
    fn a_commit_whose_compare_fails_changes_nothing() {
        let store = SqliteStore::in_memory().unwrap();
        let mut watch = store.watch();
        let first = store.commit(&put("p/a", "1")).unwrap();
        let stale = Txn { compares: vec![("p/a".into(), first + 1)], ..put("p/a", "2") };
        assert!(matches!(store.commit(&stale), Err(StoreError::Conflict { found, .. }) if found == first));
        let fresh = Txn { compares: vec![("p/new".into(), 0), ("p/a".into(), first)], ..put("p/a", "2") };
        let second = store.commit(&fresh).unwrap();
        assert!(second > first);
        assert_eq!(store.get("p/a").unwrap(), Some(Entry { value: b"2".to_vec(), revision: second }));
        assert_eq!(watch.try_recv().unwrap(), Commit { revision: first, keys: vec!["p/a".into()] });
        assert_eq!(watch.try_recv().unwrap().revision, second);
        assert!(watch.try_recv().is_err());
    }

    #[test]
    fn a_range_is_ordered_and_keeps_to_its_prefix() {
        let store = SqliteStore::in_memory().unwrap();
        for key in ["p/b", "p/a", "p/aé", "q/a", "p"] {
            store.commit(&put(key, key)).unwrap();
        }
        store.commit(&Txn { deletes: vec!["p/b".into()], ..Txn::default() }).unwrap();
        let names =
            |entries: Vec<(String, Entry)>| entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(names(store.range("p/").unwrap()), ["p/a", "p/aé"]);
        assert_eq!(names(store.page("p/", "", 1).unwrap()), ["p/a"]);
        assert_eq!(names(store.page("p/", "p/a", 9).unwrap()), ["p/aé"]);
    }

    #[test]
    fn a_snapshot_is_a_store_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("intent.db")).unwrap();
        let revision = store.commit(&put("p/a", "1")).unwrap();
        store.snapshot(&dir.path().join("copy.db")).unwrap();
        store.commit(&put("p/a", "2")).unwrap();
        let copy = SqliteStore::open(&dir.path().join("copy.db")).unwrap();
        assert_eq!(copy.get("p/a").unwrap(), Some(Entry { value: b"1".to_vec(), revision }));
    }

    #[test]
    fn a_store_is_there_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent.db");
        let revision = SqliteStore::open(&path).unwrap().commit(&put("p/a", "1")).unwrap();
        let again = SqliteStore::open(&path).unwrap();
        assert_eq!(again.get("p/a").unwrap().map(|e| e.revision), Some(revision));
        assert!(again.commit(&put("p/b", "1")).unwrap() > revision);
    }
}
