// SPDX-License-Identifier: Apache-2.0
//! Files of the data directory: private, and written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::SecureRandom as _;

#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct FileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { what, path, source }
}

/// Makes a directory of mode 0700 with its parents.
pub(crate) fn private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error("make directory", path))
}

/// File in a data directory that its one user keeps locked.
pub(crate) const LOCK: &str = "lock";

/// The right to use a data directory, as long as it is kept.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

/// Takes the lock of a data directory; `None` when somebody has it. It goes with the process, however that ends.
pub(crate) fn lock_dir(dir: &Path) -> Result<Option<DirLock>, FileError> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(error("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(DirLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(error("lock", &path)(errno.into())),
    }
}

/// Makes a file of mode 0600, or gives it that mode.
pub(crate) fn make_private(path: &Path) -> Result<(), FileError> {
    let make = || -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
    };
    make().map_err(error("close to others", path))
}

/// The content of a file; `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error("read", path)(e)),
    }
}

/// Writes a file of mode 0600 so that it is there whole after a power cut, or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = path.with_extension("new");
    let put = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    put().map_err(error("write", path))
}

/// The content of a file, made and written when missing.
pub(crate) fn read_or_make(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, FileError> {
    if let Some(bytes) = read(path)? {
        return Ok(bytes);
    }
    let bytes = make();
    write(path, &bytes)?;
    Ok(bytes)
}

/// Bytes from the system's random source.
pub(crate) fn random_bytes(count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    // The system call behind it fails only where there is no random source at all.
    ring::rand::SystemRandom::new().fill(&mut out).expect("the system has a random source");
    out
}

/// Random text of `count` bytes in hex.
pub(crate) fn random_hex(count: usize) -> String {
    hex::encode(random_bytes(count))
}
