// SPDX-License-Identifier: Apache-2.0
//! The one thread that writes and reads segments, so that a reader sees what was accepted before it asked.
//!
//! Appends are queued and not waited for. A full queue makes the sender wait: better slow than lost.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::segment::{Kind, Quota, Record, Stream};
use super::{Event, Recent};
use crate::files;

/// Appends waiting at most.
const QUEUE: usize = 4096;
/// Streams kept open at most.
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
    /// What happened, for the operator; of no device.
    Events,
}

impl StreamName {
    fn file(self) -> String {
        match self {
            StreamName::Info => "info".into(),
            StreamName::DeviceLog => "log".into(),
            StreamName::AppLog(app) => format!("app-{app}"),
            StreamName::Events => "events".into(),
        }
    }

    const fn quota(self) -> Quota {
        match self {
            StreamName::Info => Quota { min_records: 1000, min_bytes: MIB, max_bytes: 64 * MIB },
            StreamName::DeviceLog => Quota { min_records: 0, min_bytes: 8 * MIB, max_bytes: 8 * MIB },
            StreamName::AppLog(_) => Quota { min_records: 0, min_bytes: 4 * MIB, max_bytes: 4 * MIB },
            StreamName::Events => Quota { min_records: 10_000, min_bytes: 4 * MIB, max_bytes: 64 * MIB },
        }
    }
}

enum Job {
    Append { device: Uuid, stream: StreamName, at_ms: i64, records: Vec<Record0> },
    Read { device: Uuid, stream: StreamName, reply: oneshot::Sender<io::Result<Vec<Record>>> },
    Forget { device: Uuid },
}

/// Object the bytes speak of (empty: none), and the bytes.
pub(super) type Record0 = (String, Vec<u8>);

/// Sends to the thread. Dropping it waits until everything queued is written.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
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
        let mut files = Files::new(dir, recent);
        files.remember_events()?;
        let thread = std::thread::Builder::new().name("segments".into()).spawn(move || files.run(&queue))?;
        Ok(Writer { jobs, thread: Some(thread) })
    }

    /// Appends to a stream. `object`: when segments change, the newest record of each object is carried over.
    pub(super) fn append(&self, device: Uuid, stream: StreamName, at_ms: i64, records: Vec<Record0>) {
        if self.jobs.send(Job::Append { device, stream, at_ms, records }).is_err() {
            tracing::error!("the segment writer is gone");
        }
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

    /// Deletes all streams of a device.
    pub(super) fn forget(&self, device: Uuid) {
        if self.jobs.send(Job::Forget { device }).is_err() {
            tracing::error!("the segment writer is gone");
        }
    }
}

type Key = (Uuid, StreamName);

struct Open {
    stream: Stream,
    used: u64,
    /// Newest record of each object in this stream.
    newest: BTreeMap<String, (i64, Vec<u8>)>,
}

struct Files {
    dir: PathBuf,
    open: HashMap<Key, Open>,
    clock: u64,
    recent: Arc<Recent>,
}

impl Files {
    fn new(dir: PathBuf, recent: Arc<Recent>) -> Files {
        Files { dir, open: HashMap::new(), clock: 0, recent }
    }

    /// Reads back the events of earlier runs.
    fn remember_events(&mut self) -> io::Result<()> {
        let records = self.opened((Uuid::nil(), StreamName::Events))?.stream.read()?;
        records.iter().filter_map(Event::read).for_each(|event| self.recent.push(event));
        Ok(())
    }

    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(job) = queue.recv() {
            match job {
                Job::Append { device, stream, at_ms, records } => {
                    if let Err(error) = self.append((device, stream), at_ms, records) {
                        tracing::error!(%device, ?stream, %error, "cannot store what a device reported");
                        self.open.remove(&(device, stream));
                    }
                }
                Job::Read { device, stream, reply } => {
                    let records = self.opened((device, stream)).and_then(|open| open.stream.read());
                    // A reader that went away is no error.
                    let _ = reply.send(records);
                }
                Job::Forget { device } => {
                    self.open.retain(|(id, _), _| *id != device);
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
        let recent = self.recent.clone();
        let open = self.opened(key)?;
        if open.stream.is_full() {
            open.stream.rotate()?;
            for (at_ms, bytes) in open.newest.values() {
                open.stream.append(Kind::Carried, *at_ms, bytes)?;
            }
        }
        for (object, bytes) in records {
            let sequence = open.stream.append(Kind::Message, at_ms, &bytes)?;
            if key.1 == StreamName::Events {
                let record = Record { kind: Kind::Message, sequence, at_ms, bytes };
                Event::read(&record).into_iter().for_each(|event| recent.push(event));
                continue;
            }
            if !object.is_empty() {
                open.newest.insert(object, (at_ms, bytes));
            }
        }
        Ok(())
    }

    fn opened(&mut self, key: Key) -> io::Result<&mut Open> {
        self.clock += 1;
        let clock = self.clock;
        if !self.open.contains_key(&key) {
            if self.open.len() >= MAX_OPEN
                && let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.used).map(|(key, _)| *key)
            {
                self.open.remove(&oldest);
            }
            let dir = self.device_dir(key.0);
            files::private_dir(&dir).map_err(io::Error::other)?;
            if matches!(key.1, StreamName::AppLog(_))
                && !dir.join(format!("{}.seg", key.1.file())).exists()
                && std::fs::read_dir(&dir)?.count() >= MAX_FILES
            {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            let stream = Stream::open(&dir, &key.1.file(), key.1.quota())?;
            let mut newest = BTreeMap::new();
            if key.1 == StreamName::Info {
                for record in stream.read()? {
                    newest.insert(super::object_of(&record.bytes), (record.at_ms, record.bytes));
                }
            }
            self.open.insert(key, Open { stream, used: clock, newest });
        }
        let open = self.open.get_mut(&key).ok_or(io::ErrorKind::NotFound)?;
        open.used = clock;
        Ok(open)
    }
}
