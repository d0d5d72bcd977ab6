// SPDX-License-Identifier: Apache-2.0
//! Writes a backup while everything runs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::{END, End, FILES, FORMAT, HEAD, Head, KEYS, Listed, REGISTRY, STORE};
use crate::store::{Store, StoreError};

/// Whether images come along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Images {
    Included,
    LeftOut,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("write the backup")]
    Write(#[from] io::Error),
}

/// A file that goes when its user is done.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a backup of a data directory. Blocks.
pub(crate) fn write(
    data: &Path,
    store: &dyn Store,
    now_ms: i64,
    images: Images,
    out: impl Write,
) -> Result<(), BackupError> {
    let snapshot = Temporary(data.join("backup.db.tmp"));
    match fs::remove_file(&snapshot.0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => store.snapshot(&snapshot.0)?,
    }
    let mut tar = Tar {
        tar: tar::Builder::new(out),
        now_s: now_ms.div_euclid(1000).unsigned_abs(),
        end: End::default(),
    };
    let head = Head { format: FORMAT, created_ms: now_ms, has_images: images == Images::Included };
    tar.text(HEAD, &serde_json::to_vec(&head).map_err(io::Error::from)?)?;
    tar.file(&snapshot.0, STORE)?;
    for name in FILES {
        tar.file(&data.join(name), name)?;
    }
    tar.directory(&data.join(KEYS), KEYS)?;
    if images == Images::Included {
        tar.directory(&data.join(REGISTRY), REGISTRY)?;
    }
    let end = serde_json::to_vec(&std::mem::take(&mut tar.end)).map_err(io::Error::from)?;
    tar.text(END, &end)?;
    tar.tar.into_inner()?.flush()?;
    Ok(())
}

struct Tar<W: Write> {
    tar: tar::Builder<W>,
    now_s: u64,
    end: End,
}

/// Notes what passes.
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

impl<W: Write> Tar<W> {
    fn header(&self, bytes: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(self.now_s);
        header
    }

    fn text(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        let mut header = self.header(text.len() as u64);
        self.tar.append_data(&mut header, name, text)
    }

    /// A file that went away meanwhile is left out.
    fn file(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let bytes = file.metadata()?.len();
        let mut header = self.header(bytes);
        let mut reader = Digesting { inner: file.take(bytes), digest: Context::new(&SHA256), bytes: 0 };
        self.tar.append_data(&mut header, name, &mut reader)?;
        if reader.bytes != bytes {
            return Err(io::Error::other(format!("{name} became shorter while it was read")));
        }
        let sha256 = hex::encode(reader.digest.finish());
        self.end.files.push(Listed { path: name.into(), bytes, sha256 });
        Ok(())
    }

    /// In falling order of names, so that a tag comes before the manifest it names, and that before its blobs.
    fn directory(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let mut entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed?.collect::<io::Result<Vec<_>>>()?,
        };
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        for entry in entries {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            // What is only half there.
            let is_passing = name == REGISTRY && matches!(file_name.as_str(), "tmp" | "uploads");
            if is_passing || file_name.ends_with(".new") {
                continue;
            }
            let below = format!("{name}/{file_name}");
            if entry.file_type()?.is_dir() {
                self.directory(&entry.path(), &below)?;
            } else {
                self.file(&entry.path(), &below)?;
            }
        }
        Ok(())
    }
}
