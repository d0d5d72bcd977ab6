// SPDX-License-Identifier: Apache-2.0
//! An update file far away, read in parts. Where a server sends parts, only those are asked for; where it cannot, one stream is
//! read from the front and what is not wanted of it is passed over, so whoever reads goes from the front to the end.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ipc::calls::{FetchObject, FetchRequest, FileRequest, ImageRequest};
use model::desired::{ContentSource, FileSource};
use model::id::Digest;
use model::reason::{Fault, Reason};

use crate::source::{FaultError, MAX_DRY_RESUMES, RESUME_PAUSE, Source};

/// Bytes taken at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the file lies.
#[derive(Clone, Debug)]
pub enum Place {
    File(FileSource),
    Blob(ContentSource, Digest),
}

pub struct Remote<'a> {
    source: &'a dyn Source,
    place: Place,
    cancelled: &'a Arc<AtomicBool>,
    /// What came over the network.
    fetched: &'a AtomicU64,
    /// Of a server that sends everything, and where it stands.
    whole: Option<(Box<dyn Read + Send>, u64)>,
}

impl std::fmt::Debug for Remote<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.name())
    }
}

impl<'a> Remote<'a> {
    pub fn new(
        source: &'a dyn Source,
        place: Place,
        cancelled: &'a Arc<AtomicBool>,
        fetched: &'a AtomicU64,
    ) -> Remote<'a> {
        Remote { source, place, cancelled, fetched, whole: None }
    }

    pub fn name(&self) -> String {
        match &self.place {
            Place::File(source) => source.url.clone(),
            Place::Blob(source, digest) => {
                format!("{}/{}@{digest}", source.registry.base_url, source.repository)
            }
        }
    }

    /// A part that fits into memory.
    pub fn part(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::with_capacity(length);
        self.read(offset, length as u64, &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(out)
    }

    /// Gives the bytes of a part in pieces. Asks again for the rest when a connection breaks.
    pub fn read(
        &mut self,
        offset: u64,
        length: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (mut at, end) = (offset, offset + length);
        let mut dry = 0;
        while at < end {
            let before = at;
            match self.some(&mut at, end, take) {
                Ok(()) => {}
                Err(Broken::Final(fault)) => return Err(fault),
                Err(Broken::Connection(text)) => {
                    self.whole = None;
                    dry = if at > before { 1 } else { dry + 1 };
                    if dry > MAX_DRY_RESUMES {
                        let text = format!("{}: the download broke off: {text}", self.name());
                        return Err(Fault::new(self.unreachable(), text));
                    }
                    if dry > 1 {
                        thread::sleep(RESUME_PAUSE * (1 << (dry - 2)));
                    }
                }
            }
        }
        Ok(())
    }

    fn some(
        &mut self,
        at: &mut u64,
        end: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Broken> {
        let (mut body, mut position, is_whole) = match self.whole.take() {
            Some((body, position)) if position <= *at => (body, position, true),
            _ => {
                let request = self.request(*at, end - *at);
                let opened = self.source.open(&request, self.cancelled).map_err(Broken::Final)?;
                if opened.offset > *at {
                    let text = format!("{}: the server left out a part of the file", self.name());
                    return Err(Broken::Final(Fault::new(self.unreachable(), text)));
                }
                let is_whole = opened.offset < *at || opened.size != Some(end - *at);
                (opened.body, opened.offset, is_whole)
            }
        };
        let mut chunk = vec![0; CHUNK_BYTES];
        while *at < end {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Broken::Final(FaultError::of(&crate::source::cancelled())));
            }
            // what nobody wants on the way there
            let wanted = if position < *at { *at - position } else { end - *at };
            let length = chunk.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
            let count = match body.read(&mut chunk[..length]) {
                Ok(0) => return Err(Broken::Connection("it ended early".into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(match error.get_ref().is_some_and(|inner| inner.is::<FaultError>()) {
                        true => Broken::Final(FaultError::of(&error)),
                        false => Broken::Connection(error.to_string()),
                    });
                }
            };
            self.fetched.fetch_add(count as u64, Ordering::Relaxed);
            if position >= *at {
                take(&chunk[..count]).map_err(Broken::Final)?;
                *at += count as u64;
            }
            position += count as u64;
        }
        if is_whole {
            self.whole = Some((body, position));
        }
        Ok(())
    }

    fn request(&self, offset: u64, length: u64) -> FetchRequest {
        let length = Some(length);
        match &self.place {
            Place::File(source) => FetchRequest::File(FileRequest { source: source.clone(), offset, length }),
            Place::Blob(source, digest) => {
                let object = FetchObject::Blob { digest: *digest };
                FetchRequest::Image(ImageRequest { source: source.clone(), object, offset, length })
            }
        }
    }

    fn unreachable(&self) -> Reason {
        match self.place {
            Place::File(_) => Reason::DatastoreUnreachable,
            Place::Blob(..) => Reason::RegistryUnreachable,
        }
    }
}

enum Broken {
    /// The connection; what is missing is asked for again.
    Connection(String),
    Final(Fault),
}
