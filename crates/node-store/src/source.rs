// SPDX-License-Identifier: Apache-2.0
//! Where bytes come from: a trait that process fetch stands behind, and a reader that goes on after interruptions.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipc::calls::{FetchObject, FetchRequest, ImageRequest};
use model::desired::ContentSource;
use model::reason::{Fault, Reason};

/// Interruptions in a row without a single byte in between, after which a download has failed.
pub(crate) const MAX_DRY_RESUMES: u32 = 3;
/// Pause before the first resume without progress; doubles.
pub(crate) const RESUME_PAUSE: Duration = Duration::from_millis(250);

/// An answer whose bytes are still to come.
pub struct Opened {
    pub media_type: String,
    /// Bytes that follow, when the registry said so.
    pub size: Option<u64>,
    /// Offset of the first of them.
    pub offset: u64,
    pub body: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened({} from {})", self.media_type, self.offset)
    }
}

/// Whoever can ask registries and web servers.
pub trait Source: Send + Sync {
    fn open(&self, request: &FetchRequest, cancelled: &std::sync::Arc<AtomicBool>) -> Result<Opened, Fault>;
}

/// A fault on its way through a reader.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct FaultError(pub Fault);

impl FaultError {
    /// The fault inside a reader's error, or one made of it.
    pub fn of(error: &io::Error) -> Fault {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<FaultError>()) {
            Some(FaultError(fault)) => fault.clone(),
            None => Fault::new(Reason::RegistryUnreachable, format!("download: {error}")),
        }
    }
}

/// A blob that is asked for again from where it broke off.
pub struct BlobReader<'a> {
    source: &'a dyn Source,
    request: ImageRequest,
    size: u64,
    body: Option<Box<dyn Read + Send>>,
    dry: u32,
    cancelled: &'a std::sync::Arc<AtomicBool>,
}

impl std::fmt::Debug for BlobReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlobReader({}/{})", self.request.offset, self.size)
    }
}

impl<'a> BlobReader<'a> {
    pub fn new(
        source: &'a dyn Source,
        from: &ContentSource,
        object: FetchObject,
        size: u64,
        cancelled: &'a std::sync::Arc<AtomicBool>,
    ) -> BlobReader<'a> {
        let request = ImageRequest { source: from.clone(), object, offset: 0, length: None };
        BlobReader { source, request, size, body: None, dry: 0, cancelled }
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + Send>> {
        let request = FetchRequest::Image(self.request.clone());
        let opened =
            self.source.open(&request, self.cancelled).map_err(|f| io::Error::other(FaultError(f)))?;
        if opened.offset > self.request.offset {
            let fault = Fault::new(Reason::RegistryUnreachable, "the registry left out a part of the blob");
            return Err(io::Error::other(FaultError(fault)));
        }
        let mut body = opened.body;
        // A registry that cannot resume sends everything again.
        let known = self.request.offset - opened.offset;
        let skipped = io::copy(&mut (&mut body).take(known), &mut io::sink())?;
        if skipped < known { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(body) }
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.open()?,
        };
        let len = body.read(buffer)?;
        self.body = Some(body);
        Ok(len)
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            let failure = match self.read_once(buffer) {
                Ok(0) if self.request.offset < self.size => io::ErrorKind::UnexpectedEof.into(),
                Ok(len) => {
                    self.request.offset += len as u64;
                    if len > 0 {
                        self.dry = 0;
                    }
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.body = None;
            self.dry += 1;
            // A fault the registry named is not argued with; a connection that broke is.
            let is_named = failure.get_ref().is_some_and(|inner| inner.is::<FaultError>());
            if is_named || self.dry > MAX_DRY_RESUMES {
                return Err(failure);
            }
            if self.dry > 1 {
                thread::sleep(RESUME_PAUSE * (1 << (self.dry - 2)));
            }
        }
    }
}

pub(crate) fn cancelled() -> io::Error {
    io::Error::other(FaultError(Fault::new(Reason::ServiceUnavailable, "no longer wanted")))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use model::desired::RegistrySource;
    use model::id::Digest;

    use super::*;

    /// Sends a few bytes per connection, then breaks off.
    struct Flaky {
        data: Vec<u8>,
        per_connection: usize,
        can_resume: bool,
        asked: Mutex<Vec<u64>>,
    }

    impl Source for Flaky {
        fn open(&self, request: &FetchRequest, _: &Arc<AtomicBool>) -> Result<Opened, Fault> {
            let FetchRequest::Image(request) = request else { unreachable!("no file is asked for") };
            self.asked.lock().unwrap().push(request.offset);
            let offset = if self.can_resume { request.offset } else { 0 };
            let from = offset as usize;
            let until = self.data.len().min(request.offset as usize + self.per_connection);
            let body = io::Cursor::new(self.data[from..until].to_vec());
            Ok(Opened { media_type: String::new(), size: None, offset, body: Box::new(body) })
        }
    }

    fn read(source: &Flaky, size: u64) -> (io::Result<Vec<u8>>, Vec<u64>) {
        let from = ContentSource {
            registry: RegistrySource { base_url: String::new(), credentials: None, ca_pem: Vec::new() },
            repository: String::new(),
            reference: String::new(),
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let object = FetchObject::Blob { digest: Digest([0; 32]) };
        let mut out = Vec::new();
        let result = BlobReader::new(source, &from, object, size, &cancelled).read_to_end(&mut out);
        (result.map(|_| out), source.asked.lock().unwrap().clone())
    }

    #[test]
    fn a_broken_download_goes_on_where_it_was() {
        for can_resume in [true, false] {
            let source =
                Flaky { data: (0..10).collect(), per_connection: 4, can_resume, asked: Mutex::default() };
            let (bytes, asked) = read(&source, 10);
            assert_eq!(bytes.unwrap(), source.data);
            assert_eq!(asked, [0, 4, 8]);
        }
    }

    #[test]
    fn a_download_without_progress_fails() {
        let source = Flaky { data: vec![1], per_connection: 4, can_resume: true, asked: Mutex::default() };
        let (bytes, asked) = read(&source, 10);
        assert_eq!(FaultError::of(&bytes.unwrap_err()).reason, Reason::RegistryUnreachable);
        assert_eq!(asked.len(), 1 + MAX_DRY_RESUMES as usize);
    }
}
