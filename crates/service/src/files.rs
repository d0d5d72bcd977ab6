// SPDX-License-Identifier: Apache-2.0
//! Files of a service's own directory, by the few operations from which everything durable is made.
//!
//! Nothing is on the disk before it is synced: a file's bytes before [`Files::sync`], a name before [`Files::sync_dir`]
//! of its directory. [`replace`] does all of it in the right order. The simulated disk is the second implementation: it
//! loses and tears what was not synced.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One directory and what is below it. Names are relative; the directory itself is the empty name.
pub trait Files: fmt::Debug {
    /// The whole content; an error when it is larger than `max_bytes`.
    fn read(&self, name: &str, max_bytes: u64) -> io::Result<Vec<u8>>;
    /// Creates the file or empties it, and writes.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Returns when the file's bytes are on the disk.
    fn sync(&self, name: &str) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn make_dir(&self, name: &str) -> io::Result<()>;
    /// Names in a directory, in order.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Returns when the names of a directory are on the disk as they are now.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Time since the last write, when it can be told.
    fn age(&self, name: &str) -> Option<Duration>;
}

/// Puts content in place of a file: after a power cut there is either the old or the new, whole. `dir` may be empty.
pub fn replace(files: &dyn Files, dir: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = below(dir, &format!(".{name}.new"));
    let written = files
        .write(&fresh, bytes)
        .and_then(|()| files.sync(&fresh))
        .and_then(|()| files.rename(&fresh, &below(dir, name)));
    if written.is_err() {
        // It would keep a full disk full. The first error is the one to tell.
        let _ = files.remove(&fresh);
    }
    written?;
    files.sync_dir(dir)
}

/// Removes a file for good; no error when it is not there.
pub fn erase(files: &dyn Files, dir: &str, name: &str) -> io::Result<()> {
    match files.remove(&below(dir, name)) {
        Ok(()) => files.sync_dir(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Bytes that a process keeps on its disk for nothing, to be given up for what it must be able to write when the disk is
/// full: the order that makes room is such a thing.
#[derive(Debug)]
pub struct Reserve {
    bytes: usize,
    is_kept: Cell<bool>,
}

impl Reserve {
    const NAME: &str = "reserve";

    pub fn new(bytes: usize) -> Reserve {
        Reserve { bytes, is_kept: Cell::new(false) }
    }

    /// Makes it, where it is not there whole; on a disk that has less room, as large as a half, a quarter or an eighth of it:
    /// what was just saved took a little of the room, and the next order wants some too.
    pub fn keep(&self, files: &dyn Files) -> io::Result<()> {
        if self.is_kept.get() {
            return Ok(());
        }
        let kept = files.read(Self::NAME, self.bytes as u64).map_or(0, |kept| kept.len());
        let mut made = Ok(());
        for bytes in [1, 2, 4, 8].map(|part| self.bytes / part) {
            if kept >= bytes {
                self.is_kept.set(kept == self.bytes);
                return made;
            }
            // Zeros are written, since not every file system can only reserve.
            made = replace(files, "", Self::NAME, &vec![0; bytes]);
            if made.is_ok() {
                self.is_kept.set(bytes == self.bytes);
                return made;
            }
        }
        made
    }

    /// Takes it away; false when it was not there.
    pub fn give_up(&self, files: &dyn Files) -> bool {
        self.is_kept.set(false);
        files.remove(Self::NAME).is_ok()
    }
}

/// A name in a directory.
pub fn below(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.into() } else { format!("{dir}/{name}") }
}

/// A directory of the real disk.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    pub fn new(root: impl Into<PathBuf>) -> Directory {
        Directory { root: root.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }
}

impl Files for Directory {
    fn read(&self, name: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.path(name))?.take(max_bytes.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(content)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(self.path(name))?;
        file.write_all(bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        File::open(self.path(name))?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn make_dir(&self, name: &str) -> io::Result<()> {
        fs::create_dir(self.path(name))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(self.path(dir))?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn age(&self, name: &str) -> Option<Duration> {
        let written = fs::metadata(self.path(name)).and_then(|meta| meta.modified()).ok()?;
        SystemTime::now().duration_since(written).ok()
    }
}

impl AsRef<Path> for Directory {
    fn as_ref(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_given_up_once_and_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let (files, reserve) = (Directory::new(dir.path()), Reserve::new(5000));
        assert!(!reserve.give_up(&files));
        reserve.keep(&files).unwrap();
        reserve.keep(&files).unwrap();
        assert_eq!(fs::metadata(dir.path().join(Reserve::NAME)).unwrap().len(), 5000);
        assert!(reserve.give_up(&files) && !reserve.give_up(&files));
        reserve.keep(&files).unwrap();
        assert!(reserve.give_up(&files));
    }
}
