// SPDX-License-Identifier: Apache-2.0
//! Upload sessions: how a blob arrives. Owns `uploads/` of the directory. A session lives on disk, so a
//! client may go on after a restart of the controller.
//!
//! ```text
//!  POST → open ──PATCH──▶ open ──PUT, digest right──▶ blob (the session is gone)
//!           │               ├────PUT, digest wrong──▶ gone
//!           └───────────────┴────DELETE, or idle for Limits::upload_idle──▶ gone
//! ```
//!
//! The bytes of a request travel over a channel to one blocking task, which alone holds the session and
//! alone touches its file. When a client vanishes, the web server drops our half; the task sees the
//! channel end without [`Part::End`] and leaves the session at the last byte it got, hash included.
//! A `POST` with the whole blob has no session and leaves nothing.

use super::disk::{FORMAT, Temporary, found, read_record};
use super::error::RegistryError;
use super::name::{RepositoryName, finished_digest};
use super::{Limits, Registry, blocking};
use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use model::id::Digest;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc};
use uuid::Uuid;

/// Pieces of a body between the network and the disk; the network waits when the disk is slower.
const PARTS_IN_FLIGHT: usize = 16;
/// How often the free space is looked at while a blob arrives.
const SPACE_CHECK_BYTES: u64 = 64 * 1024 * 1024;
/// Read size when a blob must be hashed again after a restart.
const REHASH_CHUNK_BYTES: usize = 1024 * 1024;

/// The chunk a request says it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// `Range` of a session: the bytes it holds. There is no way to say "none", clients expect `0-0`.
pub(super) fn received_range(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

/// `Location` of a session.
pub(super) fn location(repository: &RepositoryName, id: Uuid) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

/// All open sessions.
#[derive(Debug)]
pub(super) struct Uploads {
    root: PathBuf,
    sessions: Mutex<BTreeMap<Uuid, Arc<Session>>>,
}

#[derive(Debug)]
struct Session {
    id: Uuid,
    repository: RepositoryName,
    directory: PathBuf,
    /// Held by the one request that works on the session.
    progress: Arc<tokio::sync::Mutex<Progress>>,
}

#[derive(Debug)]
struct Progress {
    state: State,
    offset: u64,
    /// The hash of the bytes so far; `None` when they came before a restart.
    hash: Option<Hash>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Finished or cancelled while another request waited for it.
    Gone,
}

#[derive(Clone)]
struct Hash(Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash(..)")
    }
}

#[derive(Serialize, Deserialize)]
struct SessionRecord {
    format: u32,
    repository: String,
}

enum Part {
    Data(Bytes),
    End,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Whole,
    Aborted,
}

impl Progress {
    fn empty() -> Self {
        Self { state: State::Open, offset: 0, hash: Some(Hash(Context::new(&SHA256))) }
    }

    /// Forgets everything behind `offset`.
    fn roll_back(&mut self, file: &File, offset: u64) -> io::Result<()> {
        file.set_len(offset)?;
        if self.offset != offset {
            self.hash = None;
        }
        self.offset = offset;
        Ok(())
    }
}

impl Uploads {
    /// Finds the sessions of the last run; what is torn is dropped.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        let mut sessions = BTreeMap::new();
        for entry in fs::read_dir(&root)? {
            let directory = entry?.path();
            let id = directory.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let record: Option<SessionRecord> = read_record(&directory.join("session.json"))?;
            let repository = record.and_then(|record| RepositoryName::parse(&record.repository).ok());
            let data = found(fs::metadata(directory.join("data")))?;
            let (Some(id), Some(repository), Some(data)) = (id, repository, data) else {
                tracing::warn!(path = %directory.display(), "dropped a torn upload");
                fs::remove_dir_all(&directory)?;
                continue;
            };
            let progress = Progress { state: State::Open, offset: data.len(), hash: None };
            let progress = Arc::new(tokio::sync::Mutex::new(progress));
            sessions.insert(id, Arc::new(Session { id, repository, directory, progress }));
        }
        Ok(Self { root, sessions: Mutex::new(sessions) })
    }

    /// Starts a session.
    pub(super) fn begin(&self, repository: RepositoryName, limits: &Limits) -> Result<Uuid, RegistryError> {
        if self.sessions().len() >= limits.uploads {
            self.sweep(SystemTime::now(), limits.upload_idle)?;
        }
        let id = Uuid::new_v4();
        let directory = self.root.join(id.to_string());
        let record = SessionRecord { format: FORMAT, repository: repository.as_str().to_owned() };
        let record = serde_json::to_vec(&record).map_err(io::Error::other)?;
        let progress = Arc::new(tokio::sync::Mutex::new(Progress::empty()));
        let session = Arc::new(Session { id, repository, directory, progress });
        {
            let mut sessions = self.sessions();
            if sessions.len() >= limits.uploads {
                return Err(RegistryError::TooMany("uploads"));
            }
            sessions.insert(id, session.clone());
        }
        let made = fs::create_dir(&session.directory)
            .and_then(|()| fs::write(session.directory.join("session.json"), record))
            .and_then(|()| File::create_new(session.directory.join("data")).map(drop));
        if let Err(error) = made {
            self.remove(&session)?;
            return Err(error.into());
        }
        Ok(id)
    }

    /// Drops the sessions nobody has added to for `idle`.
    pub(super) fn sweep(&self, now: SystemTime, idle: Duration) -> io::Result<usize> {
        let all: Vec<_> = self.sessions().values().cloned().collect();
        let mut swept = 0;
        for session in all {
            let Ok(mut progress) = session.progress.clone().try_lock_owned() else { continue };
            let Some(data) = found(fs::metadata(session.directory.join("data")))? else { continue };
            if now.duration_since(data.modified()?).is_ok_and(|age| age >= idle) {
                progress.state = State::Gone;
                self.remove(&session)?;
                swept += 1;
                tracing::info!(repository = %session.repository, upload = %session.id, "upload expired");
            }
        }
        Ok(swept)
    }

    fn find(&self, repository: &RepositoryName, id: Option<Uuid>) -> Result<Arc<Session>, RegistryError> {
        let session = id.and_then(|id| self.sessions().get(&id).cloned());
        session.filter(|session| session.repository == *repository).ok_or(RegistryError::UploadUnknown)
    }

    fn remove(&self, session: &Session) -> io::Result<()> {
        self.sessions().remove(&session.id);
        found(fs::remove_dir_all(&session.directory)).map(drop)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, Arc<Session>>> {
        // Single map operations cannot leave it half changed.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until no other request works on the session, but not for ever.
async fn lock(session: &Session, limits: &Limits) -> Result<OwnedMutexGuard<Progress>, RegistryError> {
    let locked = tokio::time::timeout(limits.body_idle, session.progress.clone().lock_owned()).await;
    let progress = locked.map_err(|_| RegistryError::TooMany("requests for this upload"))?;
    if progress.state == State::Gone { Err(RegistryError::UploadUnknown) } else { Ok(progress) }
}

/// Bytes a session holds.
pub(super) async fn status(
    registry: &Registry,
    repository: &RepositoryName,
    id: Option<Uuid>,
) -> Result<u64, RegistryError> {
    let session = registry.uploads.find(repository, id)?;
    Ok(lock(&session, &registry.limits).await?.offset)
}

/// Ends a session and forgets its bytes.
pub(super) async fn cancel(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    id: Option<Uuid>,
) -> Result<(), RegistryError> {
    let session = registry.uploads.find(repository, id)?;
    let mut progress = lock(&session, &registry.limits).await?;
    let registry = registry.clone();
    blocking(move || {
        progress.state = State::Gone;
        Ok(registry.uploads.remove(&session)?)
    })
    .await
}

/// Appends a body to a session and returns the bytes it then holds.
pub(super) async fn append(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    id: Option<Uuid>,
    chunk: Option<Chunk>,
    body: &mut Option<Body>,
) -> Result<u64, RegistryError> {
    let (session, mut progress, permit) = claim(registry, repository, id, chunk).await?;
    let intake = Intake::new(registry, chunk, permit);
    let job = move |parts: &mut mpsc::Receiver<Part>| {
        let mut file = OpenOptions::new().append(true).open(session.directory.join("data"))?;
        intake.append(&mut file, &mut progress, parts)?;
        Ok(progress.offset)
    };
    feed(body.take(), registry.limits.body_idle, job).await
}

/// Appends the last body, if any, and makes the session the blob `digest`.
pub(super) async fn finish(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    id: Option<Uuid>,
    chunk: Option<Chunk>,
    digest: Digest,
    body: &mut Option<Body>,
) -> Result<(), RegistryError> {
    let (session, mut progress, permit) = claim(registry, repository, id, chunk).await?;
    let intake = Intake::new(registry, chunk, permit);
    let job = move |parts: &mut mpsc::Receiver<Part>| {
        let registry = intake.registry.clone();
        let path = session.directory.join("data");
        let mut file = OpenOptions::new().read(true).append(true).open(&path)?;
        if intake.append(&mut file, &mut progress, parts)? == Ended::Aborted {
            return Err(RegistryError::AbortedBody);
        }
        progress.state = State::Gone;
        let stored =
            verify(&mut file, &mut progress, digest).and_then(|()| Ok(file.sync_all()?)).and_then(|()| {
                let adding = registry.disk.adding();
                registry.disk.commit_blob(&adding, &path, digest)?;
                Ok(registry.disk.link_blob(&adding, &session.repository, digest)?)
            });
        registry.uploads.remove(&session)?;
        stored?;
        tracing::info!(repository = %session.repository, %digest, bytes = progress.offset, "blob stored");
        Ok(())
    };
    feed(body.take(), registry.limits.body_idle, job).await
}

/// Takes a whole blob in one request, without a session.
pub(super) async fn store(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    digest: Digest,
    body: &mut Option<Body>,
) -> Result<(), RegistryError> {
    let intake = Intake::new(registry, None, permit(registry)?);
    let job = move |parts: &mut mpsc::Receiver<Part>| {
        let registry = intake.registry.clone();
        let mut temporary: Temporary = registry.disk.temporary()?;
        let mut progress = Progress::empty();
        if intake.append(&mut temporary.file, &mut progress, parts)? == Ended::Aborted {
            return Err(RegistryError::AbortedBody);
        }
        verify(&mut temporary.file, &mut progress, digest)?;
        temporary.file.sync_all()?;
        let adding = registry.disk.adding();
        temporary.commit_blob(&registry.disk, &adding, digest)?;
        registry.disk.link_blob(&adding, &repository, digest)?;
        tracing::info!(%repository, %digest, bytes = progress.offset, "blob stored");
        Ok(())
    };
    feed(body.take(), registry.limits.body_idle, job).await
}

fn permit(registry: &Registry) -> Result<OwnedSemaphorePermit, RegistryError> {
    registry.transfers.clone().try_acquire_owned().map_err(|_| RegistryError::TooMany("transfers"))
}

type Claim = (Arc<Session>, OwnedMutexGuard<Progress>, OwnedSemaphorePermit);

async fn claim(
    registry: &Registry,
    repository: &RepositoryName,
    id: Option<Uuid>,
    chunk: Option<Chunk>,
) -> Result<Claim, RegistryError> {
    let session = registry.uploads.find(repository, id)?;
    let progress = lock(&session, &registry.limits).await?;
    let offset = progress.offset;
    if chunk.is_some_and(|chunk| chunk.start != offset) {
        return Err(RegistryError::ChunkOutOfOrder { offset, location: location(repository, session.id) });
    }
    Ok((session, progress, permit(registry)?))
}

/// Compares what arrived with what the client says it sent.
fn verify(file: &mut File, progress: &mut Progress, claimed: Digest) -> Result<(), RegistryError> {
    let hash = match progress.hash.take() {
        Some(hash) => hash,
        None => rehash(file)?,
    };
    let actual = finished_digest(&hash.0.finish());
    if actual == claimed {
        Ok(())
    } else {
        Err(RegistryError::DigestInvalid(format!("content is {actual}, not {claimed}")))
    }
}

fn rehash(file: &mut File) -> io::Result<Hash> {
    use std::io::Seek as _;
    file.rewind()?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; REHASH_CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Hash(context)),
            length => context.update(&chunk[..length]),
        }
    }
}

/// The writing half of a request.
struct Intake {
    registry: Arc<Registry>,
    chunk: Option<Chunk>,
    /// Released when the blocking task ends, not when the client goes.
    _permit: OwnedSemaphorePermit,
}

impl Intake {
    fn new(registry: &Arc<Registry>, chunk: Option<Chunk>, permit: OwnedSemaphorePermit) -> Self {
        Self { registry: registry.clone(), chunk, _permit: permit }
    }

    /// Writes what arrives behind what is there. On an error the session is as before; after an abort
    /// it keeps what arrived.
    fn append(
        &self,
        file: &mut File,
        progress: &mut Progress,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<Ended, RegistryError> {
        let start = progress.offset;
        let received = self.write(file, progress, parts);
        if received.is_err() {
            progress.roll_back(file, start)?;
        }
        received
    }

    fn write(
        &self,
        file: &mut File,
        progress: &mut Progress,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<Ended, RegistryError> {
        let start = progress.offset;
        let limits = &self.registry.limits;
        let mut next_space_check = start;
        loop {
            let data = match parts.blocking_recv() {
                Some(Part::Data(data)) => data,
                Some(Part::End) => break,
                None => return Ok(Ended::Aborted),
            };
            let end = progress.offset + data.len() as u64;
            if end > limits.blob_bytes {
                return Err(RegistryError::TooLarge { limit_bytes: limits.blob_bytes });
            }
            if self.chunk.is_some_and(|chunk| end - start > chunk.length) {
                return Err(RegistryError::SizeInvalid("more bytes than Content-Range says".into()));
            }
            if end > next_space_check {
                if self.registry.disk.free_bytes()? < limits.free_bytes {
                    return Err(RegistryError::NoSpace);
                }
                next_space_check = end + SPACE_CHECK_BYTES;
            }
            file.write_all(&data)?;
            if let Some(Hash(context)) = &mut progress.hash {
                context.update(&data);
            }
            progress.offset = end;
        }
        if self.chunk.is_some_and(|chunk| progress.offset - start != chunk.length) {
            return Err(RegistryError::SizeInvalid("fewer bytes than Content-Range says".into()));
        }
        Ok(Ended::Whole)
    }
}

/// Sends a body to `job`, which runs on a thread of its own and ends in order even if we are dropped.
async fn feed<T: Send + 'static>(
    body: Option<Body>,
    idle: Duration,
    job: impl FnOnce(&mut mpsc::Receiver<Part>) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let (sender, mut receiver) = mpsc::channel(PARTS_IN_FLIGHT);
    let written = blocking(move || job(&mut receiver));
    let (pumped, written) = tokio::join!(pump(body.unwrap_or_default(), sender, idle), written);
    match (pumped, written) {
        // The writer only knows that the body stopped, the reader knows why.
        (Err(why), Ok(_) | Err(RegistryError::AbortedBody)) => Err(why),
        (_, written) => written,
    }
}

async fn pump(mut body: Body, sender: mpsc::Sender<Part>, idle: Duration) -> Result<(), RegistryError> {
    loop {
        let part = match tokio::time::timeout(idle, body.frame()).await {
            Err(_) => return Err(RegistryError::IdleBody),
            Ok(Some(Err(_))) => return Err(RegistryError::AbortedBody),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Part::Data(data),
                Err(_trailers) => continue,
            },
            Ok(None) => Part::End,
        };
        let end = matches!(part, Part::End);
        // The writer hangs up when it has failed; its error is the one that counts.
        if sender.send(part).await.is_err() || end {
            return Ok(());
        }
    }
}
