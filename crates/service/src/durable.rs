// SPDX-License-Identifier: Apache-2.0
//! Files that are whole or not there, also after a power cut.
//!
//! Written under another name, synced, renamed, and the directory synced. What a cut write left is overwritten by the next
//! one and never read; what a full disk left is taken away at once, since it would keep the disk full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
    fn a_write_that_fails_leaves_what_stood_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        assert!(replace(dir.path(), "a", b"a file cannot replace a directory").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(is_full(&io::Error::from_raw_os_error(libc::ENOSPC)));
        assert!(!is_full(&io::Error::from_raw_os_error(libc::EIO)));
    }
}
