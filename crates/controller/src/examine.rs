// SPDX-License-Identifier: Apache-2.0
//! Looks at a data directory from outside, while a controller runs on it or not; changes nothing. For `selvedge doctor`.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::ca;
pub use crate::registry::{Finding, examine as registry};

/// Rows of SQLite's own report that are shown.
const MAX_ROWS: usize = 5;

/// A certificate of the directory `pki`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub file: String,
    /// `None`: it cannot be read.
    pub days_left: Option<i64>,
    /// It is renewed by itself.
    pub is_renewed: bool,
}

/// The certificates of a controller.
pub fn lifetimes(data: &Path) -> Vec<Lifetime> {
    let certificates = [
        ("root-certificate.pem", false),
        ("signing.cert.pem", false),
        ("ecdh.cert.pem", false),
        ("tls.cert.pem", true),
    ];
    let read = |(name, is_renewed): (&str, bool)| Lifetime {
        file: format!("pki/{name}"),
        days_left: std::fs::read(data.join("pki").join(name)).ok().and_then(|pem| ca::days_left(&pem)),
        is_renewed,
    };
    certificates.into_iter().map(read).collect()
}

/// Days a certificate in DER still holds.
pub fn days_left_der(der: &[u8]) -> Option<i64> {
    let (_, end) = eve_api::certs::validity(der).ok()?;
    Some((end - jiff::Timestamp::now().as_second()) / 86_400)
}

/// Whether the intent database is whole; what is wrong otherwise.
pub fn database(file: &Path) -> Result<(), String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let check = || -> rusqlite::Result<Vec<String>> {
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        let mut query = connection.prepare(&format!("PRAGMA integrity_check({MAX_ROWS})"))?;
        let rows = query.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect()
    };
    match check() {
        Ok(rows) if rows == ["ok"] => Ok(()),
        Ok(rows) => Err(rows.join("; ")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SqliteStore, Store as _, Txn};

    #[test]
    fn a_damaged_database_is_told_from_a_whole_one_that_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent.db");
        let store = SqliteStore::open(&path).unwrap();
        for number in 0..200 {
            let puts = vec![(format!("p/{number}"), vec![7; 1000])];
            store.commit(&Txn { puts, ..Txn::default() }).unwrap();
        }
        assert_eq!(database(&path), Ok(()));
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0x55);
        std::fs::write(&path, bytes).unwrap();
        assert!(database(&path).is_err());
        assert!(database(&dir.path().join("missing.db")).is_err());
    }
}
