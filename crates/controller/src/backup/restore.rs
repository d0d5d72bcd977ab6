// SPDX-License-Identifier: Apache-2.0
//! Brings a backup back into a data directory.
//!
//! ```text
//! lock ─▶ unpack into restore.new, every digest checked ─▶ mark ─▶ move what is replaced aside ─▶ move in ─▶ done
//! ```
//! Until everything is checked nothing of the directory changes. Cut off after that, `restore.new` is left and the
//! controller does not start; the same restore again, or moving things by hand, goes on from there.
//!
//! Marking: `controller_epoch` becomes the time of the restore, higher than any before, so that devices send all their
//! info again; and every ledger is marked, so that the first poll of a device shows whether it has a newer config than the
//! backup knows ([`crate::settle`]).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use controller_core::ledger::Ledger;
use controller_core::resource::DEFAULT_PROJECT;
use ring::digest::{Context, SHA256};

use super::{END, End, FILES, FORMAT, HEAD, Head, KEYS, Listed, MAX_END_BYTES, REGISTRY, RESTORING, STORE};
use crate::audit::Audit;
use crate::files::{self, FileError};
use crate::state::{EPOCH_KEY, Epoch, StateError, now_ms, to_bytes};
use crate::store::{SqliteStore, Store as _, StoreError, Txn};

/// What happens to a directory that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    /// What the backup brings takes the place of what is there, which is moved aside; the rest stays.
    Replace,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub created_ms: i64,
    pub has_images: bool,
    /// Where what was replaced is now.
    pub aside: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{} is in use by a controller: stop it first", .0.display())]
    InUse(PathBuf),
    #[error("{} is not empty: choose another directory, or give --replace", .0.display())]
    NotEmpty(PathBuf),
    #[error("{0}: this is no backup, or a damaged one")]
    Damaged(String),
    #[error("the backup has format {0}, this version reads {FORMAT}")]
    Format(u32),
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> RestoreError {
        RestoreError::State(error.into())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io { what, path, source }
}

fn damaged(why: impl Into<String>) -> RestoreError {
    RestoreError::Damaged(why.into())
}

/// Checks a backup from its first byte to its last without keeping anything.
pub fn verify(file: &Path) -> Result<(), RestoreError> {
    let open = File::open(file).map_err(failed("open", file))?;
    read(open, |_, reader| io::copy(reader, &mut io::sink()).map(drop)).map(drop)
}

/// Brings a backup back. Blocks.
pub fn restore(file: &Path, data: &Path, existing: Existing) -> Result<Restored, RestoreError> {
    let backup = File::open(file).map_err(failed("open", file))?;
    files::private_dir(data)?;
    let _lock = files::lock_dir(data)?.ok_or_else(|| RestoreError::InUse(data.into()))?;
    let fresh = data.join(RESTORING);
    if existing == Existing::Refuse && !is_empty(data)? {
        return Err(RestoreError::NotEmpty(data.into()));
    }
    remove(&fresh)?;
    files::private_dir(&fresh)?;
    let unpacked = read(backup, |path, reader| {
        let to = fresh.join(path);
        if let Some(parent) = to.parent() {
            files::private_dir(parent).map_err(io::Error::other)?;
        }
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to)?;
        io::copy(reader, &mut out)?;
        out.sync_all()
    });
    let done = unpacked.and_then(|head| mark(&fresh, &head, file).map(|()| head));
    let head = match done {
        Ok(head) => head,
        Err(error) => {
            // Nothing has changed so far; what cannot be removed is overwritten by the next one.
            let _ = remove(&fresh);
            return Err(error);
        }
    };
    let aside = swap(data, &fresh)?;
    Ok(Restored { created_ms: head.created_ms, has_images: head.has_images, aside })
}

/// Only the lock, and what an earlier restore left.
fn is_empty(data: &Path) -> Result<bool, RestoreError> {
    let entries = fs::read_dir(data).map_err(failed("read", data))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names: Vec<_> = names.collect::<io::Result<_>>().map_err(failed("read", data))?;
    Ok(names.iter().all(|name| name == files::LOCK || name == RESTORING))
}

fn remove(dir: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Where an entry of the archive may lie; nothing else is a backup of ours.
fn is_ours(path: &Path) -> bool {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let first = path.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let first = first.unwrap_or_default();
    let is_file = path.components().count() == 1;
    plain
        && match first.as_str() {
            KEYS | REGISTRY => !is_file,
            other => is_file && (other == STORE || FILES.contains(&other)),
        }
}

/// Reads an archive; each file goes to `take`. What was read is what its list says, to the byte.
fn read(
    untrusted: impl Read,
    mut take: impl FnMut(&Path, &mut dyn Read) -> io::Result<()>,
) -> Result<Head, RestoreError> {
    let mut archive = tar::Archive::new(io::BufReader::new(untrusted));
    let entries = archive.entries().map_err(|error| damaged(error.to_string()))?;
    let (mut head, mut end) = (None, None);
    let mut found: BTreeMap<String, Listed> = BTreeMap::new();
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged(error.to_string()))?;
        let path = entry.path().map_err(|error| damaged(error.to_string()))?.into_owned();
        let name = path.to_string_lossy().into_owned();
        if end.is_some() || !entry.header().entry_type().is_file() {
            return Err(damaged(format!("unexpected entry {name}")));
        }
        if head.is_none() || name == END {
            let mut text = Vec::new();
            let limited = entry.by_ref().take(MAX_END_BYTES).read_to_end(&mut text);
            limited.map_err(|error| damaged(error.to_string()))?;
            if name == END {
                end = Some(serde_json::from_slice::<End>(&text).map_err(|error| damaged(error.to_string()))?);
            } else if name == HEAD {
                let read: Head = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
                if read.format != FORMAT {
                    return Err(RestoreError::Format(read.format));
                }
                head = Some(read);
            } else {
                return Err(damaged(format!("{HEAD} does not come first")));
            }
            continue;
        }
        if !is_ours(&path) || found.contains_key(&name) {
            return Err(damaged(format!("unexpected entry {name}")));
        }
        let mut reader = Digesting { inner: &mut entry, digest: Context::new(&SHA256), bytes: 0 };
        take(&path, &mut reader).map_err(failed("unpack", &path))?;
        let listed =
            Listed { path: name.clone(), bytes: reader.bytes, sha256: hex::encode(reader.digest.finish()) };
        found.insert(name, listed);
    }
    let (Some(head), Some(end)) = (head, end) else {
        return Err(damaged(format!("{END} is missing: the file was cut off")));
    };
    let listed: BTreeMap<String, Listed> =
        end.files.into_iter().map(|file| (file.path.clone(), file)).collect();
    if listed != found {
        let differs = listed
            .iter()
            .chain(&found)
            .find(|(name, file)| listed.get(*name) != Some(*file) || found.get(*name) != Some(*file));
        let name = differs.map_or("?", |(name, _)| name);
        return Err(damaged(format!("{name} is not what was backed up")));
    }
    Ok(head)
}

struct Digesting<R> {
    inner: R,
    digest: Context,
    bytes: u64,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Raises the epoch and marks the ledgers of the unpacked store.
fn mark(fresh: &Path, head: &Head, file: &Path) -> Result<(), RestoreError> {
    let path = fresh.join(STORE);
    if !path.is_file() {
        return Err(damaged(format!("{STORE} is missing")));
    }
    let store = std::sync::Arc::new(SqliteStore::open(&path)?);
    let before: Epoch = match store.get(EPOCH_KEY)? {
        Some(entry) => {
            serde_json::from_slice(&entry.value).map_err(|_| StateError::Entry(EPOCH_KEY.into()))?
        }
        None => Epoch::default(),
    };
    let epoch = before.raised(now_ms());
    let mut txn = Txn { puts: vec![(EPOCH_KEY.into(), to_bytes(&epoch))], ..Txn::default() };
    for (key, entry) in store.range(&format!("{DEFAULT_PROJECT}/ledger/"))? {
        let mut ledger: Ledger =
            serde_json::from_slice(&entry.value).map_err(|_| StateError::Entry(key.clone()))?;
        ledger.is_restored = true;
        txn.puts.push((key, to_bytes(&ledger)));
    }
    let created =
        jiff::Timestamp::from_millisecond(head.created_ms).map_or_else(|_| "?".into(), |t| t.to_string());
    let entry = crate::audit::Entry::of_restore(format!("{} of {created}", file.display()));
    Audit::open(store.clone())?.commit(txn, entry)?;
    // Everything is in the one file when the last connection is closed.
    store.close()?;
    Ok(())
}

/// Moves what the backup brings to where it belongs.
fn swap(data: &Path, fresh: &Path) -> Result<Option<PathBuf>, RestoreError> {
    let aside = data.join(format!("before-restore-{}", now_ms()));
    let mut has_moved = false;
    let mut move_aside = |name: &str| -> Result<(), RestoreError> {
        let from = data.join(name);
        if from.symlink_metadata().is_ok() {
            files::private_dir(&aside)?;
            fs::rename(&from, aside.join(name)).map_err(failed("move aside", &from))?;
            has_moved = true;
        }
        Ok(())
    };
    let entries = fs::read_dir(fresh).map_err(failed("read", fresh))?;
    let names: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(failed("read", fresh))?;
    // Journals of the old store must not meet the new one.
    for journal in ["-wal", "-shm"] {
        move_aside(&format!("{STORE}{journal}"))?;
    }
    for name in &names {
        move_aside(name)?;
        let to = data.join(name);
        fs::rename(fresh.join(name), &to).map_err(failed("move in", &to))?;
    }
    let sync = |dir: &Path| File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir));
    sync(data)?;
    remove(fresh)?;
    sync(data)?;
    Ok(has_moved.then_some(aside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{Images, write};

    fn data() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("admin-token", "token");
        put("pull-password", "password");
        put("pki/root.key.pem", "key");
        put("registry/repositories/a/_tags/1", "tag");
        put("registry/uploads/x/data", "half");
        put("observed/x", "reported");
        dir
    }

    fn back_up(dir: &Path, images: Images) -> Vec<u8> {
        let store = SqliteStore::open(&dir.join(STORE)).unwrap();
        let txn = Txn { puts: vec![("default/x".into(), b"1".to_vec())], ..Txn::default() };
        store.commit(&txn).unwrap();
        let mut out = Vec::new();
        write(dir, &store, 1_000, images, &mut out).unwrap();
        out
    }

    #[test]
    fn a_backup_comes_back_whole_and_the_epoch_rises() {
        let from = data();
        let file = from.path().join("backup.tar");
        fs::write(&file, back_up(from.path(), Images::Included)).unwrap();
        verify(&file).unwrap();
        let to = tempfile::tempdir().unwrap();
        let restored = restore(&file, to.path(), Existing::Refuse).unwrap();
        assert_eq!((restored.created_ms, restored.has_images, restored.aside), (1_000, true, None));
        assert_eq!(fs::read(to.path().join("pki/root.key.pem")).unwrap(), b"key");
        assert_eq!(fs::read(to.path().join("registry/repositories/a/_tags/1")).unwrap(), b"tag");
        assert!(!to.path().join("registry/uploads").exists() && !to.path().join("observed").exists());
        let store = SqliteStore::open(&to.path().join(STORE)).unwrap();
        assert_eq!(store.get("default/x").unwrap().unwrap().value, b"1");
        let epoch: Epoch = serde_json::from_slice(&store.get(EPOCH_KEY).unwrap().unwrap().value).unwrap();
        assert!(epoch.epoch > Epoch::default().epoch);
    }

    #[test]
    fn a_backup_that_was_cut_or_changed_anywhere_changes_nothing() {
        let from = data();
        let whole = back_up(from.path(), Images::LeftOut);
        let file = from.path().join("backup.tar");
        let to = tempfile::tempdir().unwrap();
        let refused = |bytes: &[u8], what: &str| {
            fs::write(&file, bytes).unwrap();
            assert!(restore(&file, to.path(), Existing::Refuse).is_err(), "{what}");
            assert!(is_empty(to.path()).unwrap(), "{what}");
        };
        for cut in (0..whole.len() - 1024).step_by(whole.len() / 23) {
            refused(&whole[..cut], &format!("cut at {cut}"));
        }
        let at = whole.windows(3).position(|window| window == b"key").unwrap();
        let mut changed = whole.clone();
        // The first "key" is in a name, the content is the last one before the list.
        let content = whole.windows(4).position(|window| window == b"key\0").unwrap_or(at);
        changed[content] ^= 1;
        refused(&changed, "changed");
        refused(b"", "empty");
    }

    #[test]
    fn a_directory_that_is_used_or_full_is_refused_unless_told() {
        let from = data();
        let file = from.path().join("backup.tar");
        fs::write(&file, back_up(from.path(), Images::LeftOut)).unwrap();
        let to = data();
        let refused = restore(&file, to.path(), Existing::Refuse);
        assert!(matches!(refused, Err(RestoreError::NotEmpty(_))), "{refused:?}");
        let lock = files::lock_dir(to.path()).unwrap().unwrap();
        let refused = restore(&file, to.path(), Existing::Replace);
        assert!(matches!(refused, Err(RestoreError::InUse(_))), "{refused:?}");
        drop(lock);
        fs::write(to.path().join("admin-token"), "other").unwrap();
        let aside = restore(&file, to.path(), Existing::Replace).unwrap().aside.unwrap();
        assert_eq!(fs::read(aside.join("admin-token")).unwrap(), b"other");
        assert_eq!(fs::read(to.path().join("admin-token")).unwrap(), b"token");
        assert!(to.path().join("observed/x").exists() && to.path().join("registry").exists());
    }
}
