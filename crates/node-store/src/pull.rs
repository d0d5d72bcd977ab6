// SPDX-License-Identifier: Apache-2.0
//! Bringing the content of one tree into the catalog: an image, or a file (see [`crate::file`]).
//!
//! ```text
//! tag or digest ─▶ index? ─▶ manifest ─▶ config ─▶ layers, several at a time ─▶ sync ─▶ names ─▶ record
//! ```
//!
//! Every blob has its digest checked before a byte of it counts; the platform is checked before a layer is downloaded.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ipc::calls::{FetchObject, FetchRequest, ImageRequest};
use model::desired::{ContentDesired, ContentSource, ContentSources};
use model::id::Digest;
use model::observed::{Blob, Image};
use model::reason::{Fault, Reason};
use oci::config::{Config, MAX_CONFIG_BYTES};
use oci::digest;
use oci::layer::{ExpectedLayer, LayerError, unpack_layer};
use oci::manifest::{Descriptor, Document, MAX_MANIFEST_BYTES, Manifest, OCI_INDEX, OCI_MANIFEST};
use oci::platform::Platform;
use oci::unpack::{Limits, Report, UnpackError, adopt_attributes};

use crate::catalog::{Catalog, Held, LayerInfo, Order, StorageError};
use crate::source::{BlobReader, FaultError, Source};

/// Layers of one image fetched and unpacked at one time. Each has two threads.
const LAYERS_AT_ONCE: usize = 3;
/// Indexes within indexes.
const MAX_INDEX_DEPTH: usize = 2;
/// How often progress is told.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Room on the disk that a pull leaves to others.
pub(crate) const RESERVED_BYTES: u64 = 256 << 20;

/// How far a pull is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Downloading {
        digest: Digest,
        done_bytes: u64,
        total_bytes: u64,
    },
    /// All digests were right.
    Verified {
        digest: Digest,
        total_bytes: u64,
    },
    /// Worth a line in the log.
    Note(String),
}

/// One order to be carried out.
pub struct Pull<'a> {
    pub catalog: &'a Catalog,
    pub source: &'a dyn Source,
    pub platform: &'a Platform,
    pub desired: &'a ContentDesired,
    pub cancelled: &'a Arc<AtomicBool>,
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

impl std::fmt::Debug for Pull<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pull({})", self.desired.name)
    }
}

impl Pull<'_> {
    /// Tries the sources in order and records what is held. The fault is that of the last source.
    pub fn run(&self) -> Result<Held, Fault> {
        let held = match &self.desired.sources {
            ContentSources::Registries(sources) => self.any(sources, |from| self.from(from).map(Held::Image)),
            ContentSources::Servers(sources) => self.any(sources, |from| self.file(from).map(Held::File)),
        }?;
        self.catalog
            .put_content(self.desired.id, Order::of(self.desired), held.clone())
            .map_err(|error| error.fault())?;
        Ok(held)
    }

    fn any<S>(&self, sources: &[S], from: impl Fn(&S) -> Result<Held, Fault>) -> Result<Held, Fault> {
        let mut fault =
            Fault::new(Reason::InvalidConfig, format!("content tree {} names no source", self.desired.name));
        for source in sources {
            match from(source) {
                Ok(held) => return Ok(held),
                Err(next) => fault = next,
            }
            if self.cancelled.load(Ordering::Relaxed) {
                break;
            }
        }
        Err(fault)
    }

    fn from(&self, from: &ContentSource) -> Result<Image, Fault> {
        let mut blobs = Vec::new();
        let (top, bytes, media_type) = self.top(from)?;
        let manifest = self.manifest(from, top, bytes, media_type, &mut blobs)?;
        let config = self.config(from, &manifest, &mut blobs)?;
        for (layer, _) in &manifest.layers {
            blobs.push(blob_of(layer));
        }
        let total_bytes = blobs.iter().map(|blob| blob.size_bytes).fold(0, u64::saturating_add);
        if self.desired.max_size_bytes > 0 && total_bytes > self.desired.max_size_bytes {
            let message = format!(
                "{} has {total_bytes} bytes, more than the {} allowed",
                self.name(from),
                self.desired.max_size_bytes
            );
            return Err(Fault::new(Reason::ImageInvalid, message));
        }
        let layers = Layers::of(&manifest, &config);
        let names = self.layers(from, top, total_bytes, &layers)?;
        Ok(Image { digest: top, total_bytes, config: config.run, layers: names, blobs })
    }

    /// The document that was ordered, its digest and media type.
    fn top(&self, from: &ContentSource) -> Result<(Digest, Vec<u8>, String), Fault> {
        let ordered = match (self.desired.digest, from.reference.starts_with("sha256:")) {
            (Some(digest), _) => Some(digest),
            (None, true) => {
                let digest = from.reference.parse().map_err(|_| {
                    Fault::new(Reason::InvalidConfig, format!("{:?} is no digest", from.reference))
                })?;
                Some(digest)
            }
            (None, false) => None,
        };
        if let Some(digest) = ordered
            && let Some(bytes) = self.catalog.blob(&digest)
        {
            return Ok((digest, bytes, String::new()));
        }
        let reference = ordered.map_or_else(|| from.reference.clone(), |digest| digest.to_string());
        let object = FetchObject::Manifest { reference };
        let (bytes, media_type) = self.read_small(from, object, None, MAX_MANIFEST_BYTES as u64)?;
        let digest = digest::of(&bytes);
        if let Some(ordered) = ordered
            && ordered != digest
        {
            return Err(self.mismatch(from, &ordered, &digest));
        }
        Ok((digest, bytes, media_type))
    }

    /// The manifest for this machine.
    fn manifest(
        &self,
        from: &ContentSource,
        mut digest: Digest,
        mut bytes: Vec<u8>,
        mut media_type: String,
        blobs: &mut Vec<Blob>,
    ) -> Result<Manifest, Fault> {
        for _ in 0..=MAX_INDEX_DEPTH {
            let document = Document::parse(&bytes).map_err(|error| self.invalid(from, &error))?;
            self.catalog.put_blob(&digest, &bytes).map_err(|error| error.fault())?;
            if media_type.is_empty() {
                // From the catalog, which keeps bytes only.
                let is_index = matches!(document, Document::Index(_));
                media_type = if is_index { OCI_INDEX } else { OCI_MANIFEST }.into();
            }
            blobs.push(Blob { digest, size_bytes: bytes.len() as u64, media_type });
            let index = match document {
                Document::Manifest(manifest) => return Ok(manifest),
                Document::Index(index) => index,
            };
            let chosen = self.platform.choose(&index).map_err(|error| self.other_machine(from, &error))?;
            let object = FetchObject::Manifest { reference: chosen.digest.to_string() };
            bytes = self.described(from, object, chosen, MAX_MANIFEST_BYTES as u64)?;
            (digest, media_type) = (chosen.digest, chosen.media_type.clone());
        }
        Err(Fault::new(
            Reason::ImageInvalid,
            format!("{}: too many indexes within one another", self.name(from)),
        ))
    }

    fn config(
        &self,
        from: &ContentSource,
        manifest: &Manifest,
        blobs: &mut Vec<Blob>,
    ) -> Result<Config, Fault> {
        let object = FetchObject::Blob { digest: manifest.config.digest };
        let bytes = self.described(from, object, &manifest.config, MAX_CONFIG_BYTES as u64)?;
        let config = Config::parse(&bytes).map_err(|error| self.invalid(from, &error))?;
        if !self.platform.runs(&config.platform) {
            let error = self.platform.mismatch(std::iter::once(&config.platform));
            return Err(self.other_machine(from, &error));
        }
        if config.diff_ids.len() != manifest.layers.len() {
            let message = format!(
                "{}: the config names {} layers, the manifest {}",
                self.name(from),
                config.diff_ids.len(),
                manifest.layers.len()
            );
            return Err(Fault::new(Reason::ImageInvalid, message));
        }
        self.catalog.put_blob(&manifest.config.digest, &bytes).map_err(|error| error.fault())?;
        blobs.push(blob_of(&manifest.config));
        Ok(config)
    }

    /// A small blob that a descriptor speaks of, from the catalog or the registry.
    fn described(
        &self,
        from: &ContentSource,
        object: FetchObject,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Fault> {
        if let Some(bytes) = self.catalog.blob(&descriptor.digest) {
            return Ok(bytes);
        }
        if descriptor.size > limit {
            let message = format!("{}: {} has {} bytes", self.name(from), descriptor.digest, descriptor.size);
            return Err(Fault::new(Reason::ImageInvalid, message));
        }
        let (bytes, _) = self.read_small(from, object, Some(descriptor.size), limit)?;
        let got = digest::of(&bytes);
        if got != descriptor.digest {
            return Err(self.mismatch(from, &descriptor.digest, &got));
        }
        Ok(bytes)
    }

    /// `size`: when known, the download is resumed until it is reached.
    fn read_small(
        &self,
        from: &ContentSource,
        object: FetchObject,
        size: Option<u64>,
        limit: u64,
    ) -> Result<(Vec<u8>, String), Fault> {
        let mut bytes = Vec::new();
        let fault = |error: std::io::Error| self.named(from, FaultError::of(&error));
        if let Some(size) = size {
            let reader = BlobReader::new(self.source, from, object, size, self.cancelled);
            reader.take(limit + 1).read_to_end(&mut bytes).map_err(fault)?;
            return Ok((bytes, String::new()));
        }
        let request =
            FetchRequest::Image(ImageRequest { source: from.clone(), object, offset: 0, length: None });
        let opened = self.source.open(&request, self.cancelled)?;
        opened.body.take(limit + 1).read_to_end(&mut bytes).map_err(fault)?;
        if opened.size.is_some_and(|size| (bytes.len() as u64) < size.min(limit)) {
            let message = format!("{}: the download broke off", self.name(from));
            return Err(Fault::new(Reason::RegistryUnreachable, message));
        }
        Ok((bytes, opened.media_type))
    }

    /// Brings all layers into the catalog; returns their names there.
    fn layers(
        &self,
        from: &ContentSource,
        top: Digest,
        total_bytes: u64,
        layers: &Layers,
    ) -> Result<Vec<Digest>, Fault> {
        let work = Work {
            queue: Mutex::new((0..layers.0.len()).collect()),
            results: Mutex::new((0..layers.0.len()).map(|_| None).collect()),
            failed: AtomicBool::new(false),
            idle: Condvar::new(),
            read_bytes: AtomicU64::new(0),
            known_bytes: AtomicU64::new(0),
        };
        let limits = Limits { bytes: self.room()?, ..Limits::default() };
        let workers = LAYERS_AT_ONCE.min(layers.0.len());
        thread::scope(|scope| {
            let running = Arc::new(Mutex::new(workers));
            for _ in 0..workers {
                let (running, work) = (running.clone(), &work);
                scope.spawn(move || {
                    let _done = Done { running, idle: &work.idle };
                    self.work(from, layers, work, limits);
                });
            }
            let mut left = running.lock().unwrap_or_else(PoisonError::into_inner);
            while *left > 0 {
                self.tell(top, total_bytes, &work);
                (left, _) =
                    work.idle.wait_timeout(left, PROGRESS_INTERVAL).unwrap_or_else(PoisonError::into_inner);
            }
        });
        let results = work.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let is_whole = results.iter().all(|result| matches!(result, Some(Ok(_))));
        if !is_whole {
            let mut fault =
                Fault::new(Reason::Internal, format!("{}: not all layers were unpacked", self.name(from)));
            for result in results.into_iter().flatten() {
                match result {
                    Ok(Got::New { temporary, .. }) => self.catalog.discard(&temporary),
                    Ok(Got::Here(_)) => {}
                    // The first cause: later ones follow from it.
                    Err(next) if fault.reason == Reason::Internal => fault = next,
                    Err(_) => {}
                }
            }
            return Err(fault);
        }
        (self.progress)(Progress::Verified { digest: top, total_bytes });
        let got: Vec<Got> = results.into_iter().flatten().flatten().collect();
        let names = self.settle(layers, &got);
        // Those that have their names are not there any more.
        for got in &got {
            if let Got::New { temporary, .. } = got {
                self.catalog.discard(temporary);
            }
        }
        names.map_err(|error| error.fault())
    }

    fn tell(&self, digest: Digest, total_bytes: u64, work: &Work) {
        let done = work.read_bytes.load(Ordering::Relaxed) + work.known_bytes.load(Ordering::Relaxed);
        (self.progress)(Progress::Downloading { digest, done_bytes: done.min(total_bytes), total_bytes });
    }

    /// Takes layers from the queue until it is empty or one failed.
    fn work(&self, from: &ContentSource, layers: &Layers, work: &Work, limits: Limits) {
        loop {
            let next = work.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(number) = next else { return };
            if work.failed.load(Ordering::Relaxed) {
                return;
            }
            let result = self.layer(from, &layers.0[number], work, limits);
            if result.is_err() {
                work.failed.store(true, Ordering::Relaxed);
            }
            work.results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(result);
        }
    }

    fn layer(&self, from: &ContentSource, layer: &Layer, work: &Work, limits: Limits) -> Result<Got, Fault> {
        let expected = &layer.expected;
        for name in [expected.diff_id, layer.completed_name] {
            if self.catalog.layer(&name).is_some() {
                work.known_bytes.fetch_add(expected.size, Ordering::Relaxed);
                return Ok(Got::Here(name));
            }
        }
        let temporary = self.catalog.temporary().map_err(|error| error.fault())?;
        let unpacked = File::open(&temporary).map_err(|error| LayerError::Unpack {
            digest: expected.digest,
            source: oci::unpack::UnpackError::Disk {
                what: "open",
                path: temporary.display().to_string(),
                source: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
            },
        });
        let unpacked = unpacked.and_then(|root| {
            let object = FetchObject::Blob { digest: expected.digest };
            let blob = BlobReader::new(self.source, from, object, expected.size, self.cancelled);
            unpack_layer(blob, expected, root.as_fd(), self.catalog.owners(), limits, &work.read_bytes)
        });
        match unpacked {
            Ok(report) => {
                for skipped in &report.skipped {
                    (self.progress)(Progress::Note(format!(
                        "{}: left out {}: {}",
                        self.name(from),
                        skipped.path,
                        skipped.why
                    )));
                }
                Ok(Got::New { temporary, report })
            }
            Err(error) => {
                self.catalog.discard(&temporary);
                Err(match &error {
                    LayerError::Read(source) => self.named(from, FaultError::of(source)),
                    // The limit was the room there is.
                    LayerError::Unpack { source: UnpackError::Limit { limit, unit: "bytes" }, .. }
                        if *limit == limits.bytes =>
                    {
                        let message = format!(
                            "{}: layer {} needs more than the {limit} bytes free",
                            self.name(from),
                            expected.digest
                        );
                        Fault::new(Reason::DiskFull, message)
                    }
                    error => Fault::new(error.reason(), format!("{}: {}", self.name(from), chain(error))),
                })
            }
        }
    }

    /// Lets implied directories look like those below them, syncs once, and gives the new layers their names.
    fn settle(&self, layers: &Layers, got: &[Got]) -> Result<Vec<Digest>, StorageError> {
        let mut names = Vec::with_capacity(got.len());
        let mut below: Vec<File> = Vec::new();
        let mut finished: Vec<(PathBuf, Digest, LayerInfo)> = Vec::new();
        for (layer, got) in layers.0.iter().zip(got) {
            let (name, path) = match got {
                Got::Here(name) => (*name, self.catalog.layer_path(name)),
                Got::New { temporary, report } => {
                    let name =
                        if report.implied.is_empty() { layer.expected.diff_id } else { layer.completed_name };
                    let info = LayerInfo::new(report.bytes, report.has_root);
                    if !finished.iter().any(|(_, known, _)| *known == name) {
                        finished.push((temporary.clone(), name, info));
                    }
                    (name, temporary.clone())
                }
            };
            let open_failed = |source| StorageError::new("open", &path, source);
            let root = File::open(&path).map_err(open_failed)?;
            if let Got::New { report, .. } = got
                && !report.implied.is_empty()
            {
                let nearest_first: Vec<BorrowedFd<'_>> = below.iter().rev().map(AsFd::as_fd).collect();
                adopt_attributes(root.as_fd(), &report.implied, &nearest_first)
                    .map_err(|error| StorageError::new("complete", &path, std::io::Error::other(error)))?;
            }
            below.push(root);
            names.push(name);
        }
        self.catalog.put_layers(&finished)?;
        Ok(names)
    }

    /// Bytes a layer may have: what the disk has free.
    pub(crate) fn room(&self) -> Result<u64, Fault> {
        let stat = rustix::fs::statvfs(self.catalog.root())
            .map_err(|error| StorageError::new("look at", self.catalog.root(), error.into()).fault())?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        match free.checked_sub(RESERVED_BYTES) {
            Some(room) if room > 0 => Ok(room),
            _ => Err(Fault::new(
                Reason::DiskFull,
                format!("only {free} bytes are free for {}", self.desired.name),
            )),
        }
    }

    fn name(&self, from: &ContentSource) -> String {
        format!("{}:{}", from.repository, from.reference)
    }

    fn named(&self, from: &ContentSource, fault: Fault) -> Fault {
        Fault::new(fault.reason, format!("{}: {}", self.name(from), fault.message))
    }

    fn invalid(&self, from: &ContentSource, error: &dyn std::error::Error) -> Fault {
        Fault::new(Reason::ImageInvalid, format!("{}: {}", self.name(from), chain(error)))
    }

    fn other_machine(&self, from: &ContentSource, error: &oci::platform::ArchitectureMismatch) -> Fault {
        Fault::new(Reason::ArchitectureMismatch, format!("{}: {error}", self.name(from)))
    }

    fn mismatch(&self, from: &ContentSource, expected: &Digest, got: &Digest) -> Fault {
        let message = format!("{}: expected {expected}, got {got}", self.name(from));
        Fault::new(Reason::DigestMismatch, message)
    }
}

/// What the workers of one pull share.
struct Work {
    queue: Mutex<VecDeque<usize>>,
    results: Mutex<Vec<Option<Result<Got, Fault>>>>,
    failed: AtomicBool,
    idle: Condvar,
    /// Of blobs that come in now, and of layers that were here.
    read_bytes: AtomicU64,
    known_bytes: AtomicU64,
}

/// Counts a worker out, however it ends.
struct Done<'a> {
    running: Arc<Mutex<usize>>,
    idle: &'a Condvar,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.idle.notify_all();
    }
}

enum Got {
    Here(Digest),
    New { temporary: PathBuf, report: Report },
}

struct Layer {
    expected: ExpectedLayer,
    /// Its name when it took over attributes from the layers below: in another image it may look different.
    completed_name: Digest,
}

struct Layers(Vec<Layer>);

impl Layers {
    /// The config has been checked to name as many layers as the manifest.
    fn of(manifest: &Manifest, config: &Config) -> Layers {
        let mut chain: Option<Digest> = None;
        let layers = manifest.layers.iter().zip(&config.diff_ids).map(|((blob, compression), diff_id)| {
            // OCI image spec: ChainID(L₀|…|Lₙ) = SHA-256(ChainID(L₀|…|Lₙ₋₁) + " " + DiffID(Lₙ)). The lowest layer has
            // nothing below, and its chain id is its diff id.
            let chain_id = match chain {
                None => *diff_id,
                Some(below) => digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            chain = Some(chain_id);
            let expected = ExpectedLayer {
                compression: *compression,
                digest: blob.digest,
                size: blob.size,
                diff_id: *diff_id,
            };
            Layer { expected, completed_name: digest::of(format!("{chain_id} completed").as_bytes()) }
        });
        Layers(layers.collect())
    }
}

fn blob_of(descriptor: &Descriptor) -> Blob {
    Blob { digest: descriptor.digest, size_bytes: descriptor.size, media_type: descriptor.media_type.clone() }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
