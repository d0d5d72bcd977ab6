// SPDX-License-Identifier: Apache-2.0
//! Files that are whole or not there, also after a power cut.
//!
//! Written under another name, synced, renamed, and the directory synced. What a cut write left is overwritten by the next
//! one and never read; what a full disk left is taken away at once, since it would keep the disk full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces `dir/name`, readable by its owner alone. When it returns `Ok` the content survives a power cut; otherwise what
/// was there before still stands.
pub fn replace(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let fresh = dir.join(format!(".{name}.new"));
    let written = write_synced(&fresh, content).and_then(|()| fs::rename(&fresh, dir.join(name)));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&fresh);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The disk, or the share of it that this process may use, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes that a process keeps on its disk for nothing, to be given up for what it must be able to write when the disk is
/// full: the order that makes room is such a thing.
#[derive(Debug)]
pub struct Reserve {
    dir: PathBuf,
    bytes: usize,
}

impl Reserve {
    const FILE: &str = "reserve";

    pub fn new(dir: &Path, bytes: usize) -> Reserve {
        Reserve { dir: dir.to_owned(), bytes }
    }

    /// Makes it, where it is not there.
    pub fn keep(&self) -> io::Result<()> {
        let size = fs::metadata(self.dir.join(Self::FILE)).map_or(0, |meta| meta.len());
        // Zeros are written, since not every file system can only reserve.
        if size == self.bytes as u64 { Ok(()) } else { replace(&self.dir, Self::FILE, &vec![0; self.bytes]) }
    }

    /// Takes it away; false when it was not there.
    pub fn give_up(&self) -> bool {
        fs::remove_file(self.dir.join(Self::FILE)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_as_a_whole_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        replace(dir.path(), "a", b"first and longer").unwrap();
        replace(dir.path(), "a", b"second").unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"second");
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reserve_is_given_up_once_and_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path(), 5000);
        assert!(!reserve.give_up());
        reserve.keep().unwrap();
        reserve.keep().unwrap();
        assert_eq!(fs::metadata(dir.path().join("reserve")).unwrap().len(), 5000);
        assert!(reserve.give_up() && !reserve.give_up());
        reserve.keep().unwrap();
        assert!(reserve.give_up());
    }

    #[test]
    fn a_write_that_fails_leaves_what_stood_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        assert!(replace(dir.path(), "a", b"a file cannot replace a directory").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(is_full(&io::Error::from_raw_os_error(libc::ENOSPC)));
        assert!(!is_full(&io::Error::from_raw_os_error(libc::EIO)));
    }
}
