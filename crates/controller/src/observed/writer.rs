// SPDX-License-Identifier: Apache-2.0
//! The one thread that writes and reads segments, so that a reader sees what was accepted before it asked.
//!
//! Appends are queued; whoever needs to know waits for the [`Receipt`]. A full queue refuses: a device that is told so
//! keeps what it has and comes again. A report that is the same as the one before it of its object is not stored twice:
//! its sender did not get the answer to the first.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::segment::{Kind, Position, Quota, Record, Stream};
use super::{Event, Recent};
use crate::files;

/// Appends waiting at most, and their bytes.
const QUEUE: usize = 4096;
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Files kept open at most.
const MAX_OPEN: usize = 512;
/// Files of one device: apps come and go, and a device names them itself.
const MAX_FILES: usize = 256;
const MIB: u64 = 1024 * 1024;

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamName {
    /// Info messages. With the segment before, 1,000 messages at least.
    Info,
    /// Log lines of the device's own services.
    DeviceLog,
    /// Log lines of one app.
    AppLog(Uuid),
    /// What one app talked to.
    Flows(Uuid),
    /// What happened, for the operator; of no device.
    Events,
}

impl StreamName {
    fn file(self) -> String {
        match self {
            StreamName::Info => "info".into(),
            StreamName::DeviceLog => "log".into(),
            StreamName::AppLog(app) => format!("app-{app}"),
            StreamName::Flows(app) => format!("flows-{app}"),
            StreamName::Events => "events".into(),
        }
    }

    const fn quota(self) -> Quota {
        match self {
            StreamName::Info => Quota { min_records: 1000, min_bytes: MIB, max_bytes: 64 * MIB },
            StreamName::DeviceLog => Quota { min_records: 0, min_bytes: 8 * MIB, max_bytes: 8 * MIB },
            StreamName::AppLog(_) | StreamName::Flows(_) => {
                Quota { min_records: 0, min_bytes: 4 * MIB, max_bytes: 4 * MIB }
            }
            StreamName::Events => Quota { min_records: 10_000, min_bytes: 4 * MIB, max_bytes: 64 * MIB },
        }
    }
}

enum Job {
    Append {
        device: Uuid,
        stream: StreamName,
        at_ms: i64,
        records: Vec<Record0>,
        bytes: usize,
        done: Option<oneshot::Sender<bool>>,
    },
    Read {
        device: Uuid,
        stream: StreamName,
        reply: oneshot::Sender<io::Result<Vec<Record>>>,
    },
    Forget {
        device: Uuid,
    },
    /// A disk that does not go on, until the other end is dropped.
    #[cfg(test)]
    Hold(Receiver<()>),
}

/// Object the bytes speak of (empty: none), and the bytes.
pub(super) type Record0 = (String, Vec<u8>);

/// More waits to be written than is good: come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Tells when what was appended is written, and so outlives this process.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<bool>);

impl Receipt {
    /// False: it could not be written.
    pub async fn written(self) -> bool {
        self.0.await.unwrap_or(false)
    }
}

/// Sends to the thread. Dropping it waits until everything queued is written.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends when its last sender is gone.
        self.jobs = sync_channel(0).0;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the segment writer panicked");
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(dir: PathBuf, recent: Arc<Recent>) -> io::Result<Writer> {
        let (jobs, queue) = sync_channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut files = Files::new(dir, recent, waiting.clone());
        files.remember_events()?;
        let thread = std::thread::Builder::new().name("segments".into()).spawn(move || files.run(&queue))?;
        Ok(Writer { jobs, waiting, thread: Some(thread) })
    }

    /// Appends to a stream. `object`: when segments change, the newest record of each object is carried over.
    pub(super) fn append(
        &self,
        device: Uuid,
        stream: StreamName,
        at_ms: i64,
        records: Vec<Record0>,
    ) -> Result<Receipt, Busy> {
        let bytes = size(&records);
        if self.waiting.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return Err(Busy);
        }
        let (done, receipt) = oneshot::channel();
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let job = Job::Append { device, stream, at_ms, records, bytes, done: Some(done) };
        match self.jobs.try_send(job) {
            Ok(()) => Ok(Receipt(receipt)),
            Err(error) => {
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                if let TrySendError::Disconnected(_) = error {
                    tracing::error!("the segment writer is gone");
                }
                Err(Busy)
            }
        }
    }

    /// Appends what has no sender that could come again; waits for room.
    pub(super) fn append_own(&self, stream: StreamName, at_ms: i64, records: Vec<Record0>) {
        let bytes = size(&records);
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let job = Job::Append { device: Uuid::nil(), stream, at_ms, records, bytes, done: None };
        if self.jobs.send(job).is_err() {
            tracing::error!("the segment writer is gone");
        }
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// All records of a stream, oldest first.
    pub(super) async fn read(&self, device: Uuid, stream: StreamName) -> io::Result<Vec<Record>> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the segment writer is gone");
        let job = Job::Read { device, stream, reply };
        let jobs = self.jobs.clone();
        tokio::task::spawn_blocking(move || jobs.send(job)).await.map_err(|_| gone())?.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Nothing is written until what this gives back is dropped.
    #[cfg(test)]
    pub(super) fn hold(&self) -> SyncSender<()> {
        let (held, until) = sync_channel(0);
        self.jobs.send(Job::Hold(until)).expect("the thread runs");
        held
    }

    /// Deletes all streams of a device.
    pub(super) fn forget(&self, device: Uuid) {
        if self.jobs.send(Job::Forget { device }).is_err() {
            tracing::error!("the segment writer is gone");
        }
    }
}

fn size(records: &[Record0]) -> usize {
    records.iter().map(|(object, bytes)| object.len() + bytes.len()).sum()
}

type Key = (Uuid, StreamName);

/// What is remembered of a stream as long as the process runs.
struct Known {
    at: Position,
    /// Digest of the newest record of each object.
    newest: BTreeMap<Box<str>, u64>,
}

struct Open {
    stream: Stream,
    used: u64,
}

struct Files {
    dir: PathBuf,
    known: HashMap<Key, Known>,
    open: HashMap<Key, Open>,
    clock: u64,
    recent: Arc<Recent>,
    waiting: Arc<AtomicUsize>,
}

/// Tells records of one object apart.
fn digest(bytes: &[u8]) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_le_bytes(first)
}

impl Files {
    fn new(dir: PathBuf, recent: Arc<Recent>, waiting: Arc<AtomicUsize>) -> Files {
        Files { dir, known: HashMap::new(), open: HashMap::new(), clock: 0, recent, waiting }
    }

    /// Reads back the events of earlier runs.
    fn remember_events(&mut self) -> io::Result<()> {
        let records = self.opened((Uuid::nil(), StreamName::Events))?.read()?;
        records.iter().filter_map(Event::read).for_each(|event| self.recent.push(event));
        Ok(())
    }

    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(job) = queue.recv() {
            match job {
                Job::Append { device, stream, at_ms, records, bytes, done } => {
                    let key = (device, stream);
                    let written = self.append(key, at_ms, records);
                    if let Err(error) = &written {
                        tracing::error!(%device, ?stream, %error, "cannot store what a device reported");
                        // Where it ends is to be looked up anew.
                        self.open.remove(&key);
                        self.known.remove(&key);
                    }
                    self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                    // A sender that went away is no error.
                    let _ = done.map(|done| done.send(written.is_ok()));
                }
                Job::Read { device, stream, reply } => {
                    let records = self.opened((device, stream)).and_then(|stream| stream.read());
                    // A reader that went away is no error.
                    let _ = reply.send(records);
                }
                #[cfg(test)]
                Job::Hold(until) => drop(until.recv()),
                Job::Forget { device } => {
                    self.open.retain(|(id, _), _| *id != device);
                    self.known.retain(|(id, _), _| *id != device);
                    if let Err(error) = std::fs::remove_dir_all(self.device_dir(device))
                        && error.kind() != io::ErrorKind::NotFound
                    {
                        tracing::error!(%device, %error, "cannot delete what a device reported");
                    }
                }
            }
        }
    }

    fn device_dir(&self, device: Uuid) -> PathBuf {
        let id = device.to_string();
        // Two levels, so that no directory gets too many entries.
        self.dir.join(&id[..2]).join(id)
    }

    fn append(&mut self, key: Key, at_ms: i64, records: Vec<Record0>) -> io::Result<()> {
        let stream = self.opened(key)?;
        if stream.is_full() {
            let mut newest = BTreeMap::new();
            if key.1 == StreamName::Info {
                for record in stream.read_current()? {
                    newest.insert(super::object_of(&record.bytes), record);
                }
            }
            stream.rotate()?;
            for record in newest.values() {
                stream.append(Kind::Carried, record.at_ms, &record.bytes)?;
            }
        }
        for (object, bytes) in records {
            let digest = digest(&bytes);
            let known = self.known.get(&key).and_then(|known| known.newest.get(object.as_str()));
            if !object.is_empty() && known == Some(&digest) {
                continue;
            }
            let stream = self.opened(key)?;
            let sequence = stream.append(Kind::Message, at_ms, &bytes)?;
            let at = stream.position();
            if key.1 == StreamName::Events {
                let record = Record { kind: Kind::Message, sequence, at_ms, bytes };
                Event::read(&record).into_iter().for_each(|event| self.recent.push(event));
            }
            if let Some(known) = self.known.get_mut(&key) {
                known.at = at;
                if !object.is_empty() {
                    known.newest.insert(object.into(), digest);
                }
            }
        }
        Ok(())
    }

    /// The stream, opened when it is not.
    fn opened(&mut self, key: Key) -> io::Result<&mut Stream> {
        self.clock += 1;
        let clock = self.clock;
        if !self.open.contains_key(&key) {
            if self.open.len() >= MAX_OPEN
                && let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.used).map(|(key, _)| *key)
            {
                self.close(oldest);
            }
            let stream = self.open_anew(key)?;
            self.open.insert(key, Open { stream, used: clock });
        }
        let open = self.open.get_mut(&key).ok_or(io::ErrorKind::NotFound)?;
        open.used = clock;
        Ok(&mut open.stream)
    }

    fn close(&mut self, key: Key) {
        if let (Some(open), Some(known)) = (self.open.remove(&key), self.known.get_mut(&key)) {
            known.at = open.stream.position();
        }
    }

    fn open_anew(&mut self, key: Key) -> io::Result<Stream> {
        let dir = self.device_dir(key.0);
        let (name, quota) = (key.1.file(), key.1.quota());
        if let Some(known) = self.known.get(&key) {
            return Stream::reopen(&dir, &name, quota, known.at);
        }
        files::private_dir(&dir).map_err(io::Error::other)?;
        if matches!(key.1, StreamName::AppLog(_))
            && !dir.join(format!("{name}.seg")).exists()
            && std::fs::read_dir(&dir)?.count() >= MAX_FILES
        {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut newest = BTreeMap::new();
        let stream = Stream::open(&dir, &name, quota, |record| {
            if key.1 == StreamName::Info {
                newest.insert(super::object_of(&record.bytes).into(), digest(&record.bytes));
            }
        })?;
        self.known.insert(key, Known { at: stream.position(), newest });
        Ok(stream)
    }
}
