// SPDX-License-Identifier: Apache-2.0
//! Files that are whole or not there, also after a power cut.
//!
//! Written under another name, synced, renamed, and the directory synced. A left-over of a cut write is overwritten by
//! the next one and never read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

/// Largest file read: PEM texts and certificate sets are far smaller.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Replaces `dir/name`. When it returns `Ok` the content survives a power cut.
pub fn write(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// The content of `dir/name`; `None` when there is no such file.
pub fn read(dir: &Path, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match File::open(dir.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("file larger than allowed"));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_as_a_whole_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path(), "a").unwrap().is_none());
        write(dir.path(), "a", b"first and longer").unwrap();
        write(dir.path(), "a", b"second").unwrap();
        assert_eq!(**read(dir.path(), "a").unwrap().unwrap(), *b"second");
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
