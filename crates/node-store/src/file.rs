// SPDX-License-Identifier: Apache-2.0
//! Bringing a file of a web server into the catalog.
//!
//! What came so far lies beside the finished files under its digest, so that a download goes on where it was after any
//! interruption, also one of the node. It counts for nothing until the digest of the whole is right; if that is wrong it
//! is thrown away and begun anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use ipc::calls::{FetchRequest, FileRequest};
use model::desired::FileSource;
use model::id::Digest;
use model::observed::Blob;
use model::reason::{Fault, Reason};
use oci::digest::Hasher;

use crate::catalog::StorageError;
use crate::pull::{PROGRESS_INTERVAL, Progress, Pull};
use crate::source::{FaultError, MAX_DRY_RESUMES, RESUME_PAUSE, cancelled};

/// Bytes taken at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A download under way.
struct Partial {
    file: File,
    hasher: Hasher,
    len: u64,
}

impl Partial {
    /// Takes up what lies there, summed up anew: it may be torn.
    fn take_up(mut file: File) -> io::Result<Partial> {
        let (mut hasher, mut len, mut chunk) = (Hasher::default(), 0, vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(Partial { file, hasher, len }),
                count => {
                    hasher.update(&chunk[..count]);
                    len += count as u64;
                }
            }
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Hasher::default();
        self.len = 0;
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl Pull<'_> {
    pub(crate) fn file(&self, from: &FileSource) -> Result<Blob, Fault> {
        let Some(digest) = self.desired.digest else {
            let message = format!("{}: a file needs its sha256", self.desired.name);
            return Err(Fault::new(Reason::InvalidConfig, message));
        };
        if let Some(size_bytes) = self.catalog.file_bytes(&digest) {
            return Ok(blob(digest, size_bytes, String::new()));
        }
        let path = self.catalog.partial_path(&digest);
        let disk = |what: &'static str| {
            let path = path.clone();
            move |source: io::Error| StorageError::new(what, &path, source).fault()
        };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut partial = file.and_then(Partial::take_up).map_err(disk("open"))?;
        let mut media_type = String::new();
        // All of it may have been here before the node went down.
        if partial.len == 0 || partial.hasher.clone().finish() != digest {
            media_type = self.download(from, digest, &mut partial, &disk)?;
        }
        let got = partial.hasher.clone().finish();
        if got != digest {
            self.catalog.discard_partial(&digest);
            let message = format!("{}: expected {digest}, got {got}", from.url);
            return Err(Fault::new(Reason::DigestMismatch, message));
        }
        self.catalog.put_file(&digest, &partial.file).map_err(|error| error.fault())?;
        (self.progress)(Progress::Verified { digest, total_bytes: partial.len });
        Ok(blob(digest, partial.len, media_type))
    }

    /// Until the server has sent all; asked again from where it broke off.
    fn download<D: FnOnce(io::Error) -> Fault>(
        &self,
        from: &FileSource,
        digest: Digest,
        partial: &mut Partial,
        disk: &impl Fn(&'static str) -> D,
    ) -> Result<String, Fault> {
        let mut dry = 0;
        let mut told: Option<Instant> = None;
        loop {
            let request =
                FetchRequest::File(FileRequest { source: from.clone(), offset: partial.len, length: None });
            let mut opened = self.source.open(&request, self.cancelled)?;
            if opened.offset > partial.len {
                let message = format!("{}: the server left out a part of the file", from.url);
                return Err(Fault::new(Reason::DatastoreUnreachable, message));
            }
            if opened.offset < partial.len {
                // A server that cannot resume sends everything again.
                partial.begin_anew().map_err(disk("write"))?;
                if opened.offset > 0 {
                    continue;
                }
            }
            let total = opened.size.map(|size| opened.offset.saturating_add(size));
            let room = partial.len.saturating_add(self.room()?);
            let limit = match self.desired.max_size_bytes {
                0 => u64::MAX,
                limit => limit,
            };
            let started_at = partial.len;
            let mut chunk = vec![0; CHUNK_BYTES];
            let failure = loop {
                if self.cancelled.load(Ordering::Relaxed) {
                    return Err(FaultError::of(&cancelled()));
                }
                if told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL) {
                    told = Some(Instant::now());
                    let total_bytes = total.unwrap_or(partial.len);
                    (self.progress)(Progress::Downloading { digest, done_bytes: partial.len, total_bytes });
                }
                let size = partial.len.max(total.unwrap_or(0));
                if size > limit {
                    let message = format!("{} has {size} bytes, more than the {limit} allowed", from.url);
                    return Err(Fault::new(Reason::ImageInvalid, message));
                }
                if size > room {
                    let message = format!("{} has {size} bytes, there is room for {room}", from.url);
                    return Err(Fault::new(Reason::DiskFull, message));
                }
                match opened.body.read(&mut chunk) {
                    Ok(0) if total.is_none_or(|total| partial.len >= total) => return Ok(opened.media_type),
                    Ok(0) => break io::ErrorKind::UnexpectedEof.into(),
                    Ok(count) => partial.add(&chunk[..count]).map_err(disk("write"))?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break error,
                }
            };
            if partial.len > started_at {
                dry = 0;
            }
            dry += 1;
            if dry > MAX_DRY_RESUMES || failure.get_ref().is_some_and(|inner| inner.is::<FaultError>()) {
                let message = format!("{}: the download broke off: {failure}", from.url);
                return Err(Fault::new(Reason::DatastoreUnreachable, message));
            }
            if dry > 1 {
                thread::sleep(RESUME_PAUSE * (1 << (dry - 2)));
            }
        }
    }
}

fn blob(digest: Digest, size_bytes: u64, media_type: String) -> Blob {
    Blob { digest, size_bytes, media_type }
}
