// SPDX-License-Identifier: Apache-2.0
//! The process around [`crate::plan`]: topics in, topics out, threads for what takes long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipc::calls::{Fetch, FetchReply, FetchRequest, Init};
use ipc::limits::APP_UID_COUNT;
use ipc::topics::{
    ContentDesired as ContentDesiredTopic, ContentObserved as ContentObservedTopic,
    StorageObserved as StorageObservedTopic, UpdateDesired as UpdateDesiredTopic,
    UpdateObserved as UpdateObservedTopic, VolumeDesired as VolumeDesiredTopic,
    VolumeObserved as VolumeObservedTopic,
};
use model::config::VolumeOrigin;
use model::desired::{ContentDesired, ContentSources, VolumeDesired};
use model::id::{ContentTreeId, Digest, VolumeKey};
use model::observed::{ContentObserved, ContentState, MadeVolume, StorageObserved, VolumeObserved};
use model::reason::{Fault, Reason, Retry};
use model::time::MonoMs;
use oci::platform::Platform;
use oci::unpack::Owners;
use reconcile::Backoff;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use service::{Caller, Event, Poster, Service, log};

use crate::catalog::{Catalog, Held, Order, StorageError};
use crate::plan::{Inputs, Step, plan};
use crate::pull::{Progress, Pull};
use crate::room::{Disk, Judge, Size};
use crate::source::{Opened, Source, cancelled};
use crate::update::drive::Updater;
use crate::update::{ReleaseKey, Told};

/// Waits between tries: from the first to the longest. Where only a change of image or config is known to help, the
/// registry is asked rarely.
const RETRY_MS: (u64, u64) = (2_000, 300_000);
const RARE_RETRY_MS: (u64, u64) = (60_000, 1_800_000);
/// Fetch looks a name up, connects, gets a token and waits for storage before it answers.
const FETCH_TIMEOUT: Duration = Duration::from_secs(240);
/// Silence in the pipe after which fetch is taken for dead; fetch itself gives up earlier.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(120);
/// How soon a waiting pull sees that it is cancelled.
const CANCEL_LATENCY: Duration = Duration::from_millis(500);
/// Before a volume that could not be made is tried again.
const VOLUME_RETRY_MS: u64 = 10_000;
/// How often volumes are measured when nothing says that they grow.
const MEASURE_INTERVAL_MS: u64 = 60_000;
/// The same when some have a limit: what one writes another may delete, and the disk's fill shows nothing.
const MEASURE_LIMITED_INTERVAL_MS: u64 = 10_000;
/// Part of a processor that measuring may take: one in so many.
const MEASURE_PART: u64 = 20;
/// Sizes of volumes are published so often at most: every one becomes a message to the controller.
const SIZES_TOLD_MS: u64 = 30_000;
/// The disk's fill differs by so much: volumes may have grown.
const GROWTH_BYTES: u64 = 1 << 20;
/// Where the store's disk is mounted on the node.
const MOUNT_POINT: &str = "/persist";

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the manifest gives the store no directory")]
    NoDirectory,
    #[error("cannot open the store")]
    Storage(#[from] StorageError),
}

/// What threads tell the main loop.
#[derive(Debug)]
pub enum Posted {
    Progress(ContentTreeId, Progress),
    Ended(ContentTreeId, Result<Held, Fault>),
    Made(VolumeKey, Result<(), Fault>),
    /// Sizes of volumes.
    Measured(BTreeMap<VolumeKey, u64>),
    /// What was put aside is gone.
    Emptied,
    /// A version of the operating system.
    Update(Told),
}

/// The process's life.
pub fn run(service: Service<Posted>) -> Result<(), RunError> {
    let directory = service.dirs().state.clone().ok_or(RunError::NoDirectory)?;
    let (catalog, dropped) = Catalog::open(&directory, Owners::AsIs { limit: APP_UID_COUNT })?;
    for what in dropped {
        log::warn(format_args!("dropped {what}"));
    }
    // Where the image that runs has one, it is part of what the kernel checks.
    let key = service.dirs().path("release-key").and_then(|path| std::fs::read_to_string(path).ok());
    let key = key.map(|text| ReleaseKey::parse(&text));
    let mut store = Store {
        catalog: Arc::new(catalog),
        updater: Updater::new(service.caller::<Fetch>(), service.caller::<Init>(), service.poster(), key),
        fetch: service.caller::<Fetch>(),
        poster: service.poster(),
        service,
        pulls: BTreeMap::new(),
        failed: BTreeMap::new(),
        making: BTreeSet::new(),
        volume_faults: BTreeMap::new(),
        volume_bytes: BTreeMap::new(),
        bytes_before: BTreeMap::new(),
        judge: Judge::default(),
        told_bytes: BTreeMap::new(),
        said_content: BTreeSet::new(),
        said_volumes: BTreeSet::new(),
        may_have_garbage: true,
        measuring: None,
        measure_at: (MonoMs(0), MonoMs(0)),
        used_at_measure: 0,
        is_emptying: false,
        empty_again: false,
        look_at: MonoMs(0),
    };
    store.live();
    Ok(())
}

struct Store {
    service: Service<Posted>,
    catalog: Arc<Catalog>,
    updater: Updater,
    fetch: Caller<Fetch>,
    poster: Poster<Posted>,
    pulls: BTreeMap<ContentTreeId, Running>,
    failed: BTreeMap<ContentTreeId, Failed>,
    making: BTreeSet<VolumeKey>,
    /// Why it is not made, and when that is tried again.
    volume_faults: BTreeMap<VolumeKey, (Fault, MonoMs)>,
    /// As measured last, and before that.
    volume_bytes: BTreeMap<VolumeKey, u64>,
    bytes_before: BTreeMap<VolumeKey, u64>,
    judge: Judge,
    /// Sizes as published, and when they were measured.
    told_bytes: BTreeMap<VolumeKey, (u64, MonoMs)>,
    /// Keys published, so that those without meaning are removed.
    said_content: BTreeSet<ContentTreeId>,
    said_volumes: BTreeSet<VolumeKey>,
    may_have_garbage: bool,
    /// Since when.
    measuring: Option<MonoMs>,
    /// Not before, and at the latest.
    measure_at: (MonoMs, MonoMs),
    used_at_measure: u64,
    is_emptying: bool,
    empty_again: bool,
    look_at: MonoMs,
}

/// A pull under way.
struct Running {
    order: Order,
    cancelled: Arc<AtomicBool>,
    state: ContentState,
}

/// An order that could not be carried out.
struct Failed {
    order: Order,
    backoff: Backoff,
    retry_at: MonoMs,
    fault: Fault,
}

impl Store {
    fn live(&mut self) {
        self.service.subscribe::<ContentDesiredTopic>();
        self.service.subscribe::<VolumeDesiredTopic>();
        self.service.subscribe::<UpdateDesiredTopic>();
        let mut deadline = self.turn();
        // What lies on the disk has been said: nothing else is held.
        self.service.synced::<ContentObservedTopic>();
        self.service.synced::<VolumeObservedTopic>();
        self.service.synced::<StorageObservedTopic>();
        self.service.synced::<UpdateObservedTopic>();
        loop {
            match self.service.next(Some(deadline)) {
                Event::Worker(posted) => self.take(posted),
                Event::Topics(_) | Event::Deadline => {}
                Event::Stop => {
                    for running in self.pulls.values() {
                        running.cancelled.store(true, Ordering::Relaxed);
                    }
                    return;
                }
                Event::Call(call) => {
                    log::warn(format_args!("{} asks, but the store answers no calls", call.from()))
                }
                _ => {}
            }
            deadline = self.turn();
        }
    }

    /// Plans and carries out until there is nothing left to do, then tells what is.
    fn turn(&mut self) -> MonoMs {
        let content: BTreeMap<ContentTreeId, ContentDesired> = self
            .service
            .all::<ContentDesiredTopic>()
            .into_values()
            .map(|desired| (desired.id, desired))
            .collect();
        let volumes: BTreeMap<VolumeKey, VolumeDesired> = self
            .service
            .all::<VolumeDesiredTopic>()
            .into_values()
            .map(|desired| (desired.key, desired))
            .collect();
        self.failed
            .retain(|id, failed| content.get(id).is_some_and(|desired| Order::of(desired) == failed.order));
        let now = self.service.now().mono;
        let mut deadline = None;
        let mut done = Vec::new();
        // Each round drops or makes what the last one allowed; a step that failed is not tried again in this turn.
        for _ in 0..4 {
            let pulling = self.pulls.iter().map(|(id, running)| (*id, running.order.clone())).collect();
            let waiting = self
                .failed
                .iter()
                .map(|(id, failed)| (*id, (failed.order.clone(), failed.retry_at)))
                .collect();
            let (held, made) = (self.catalog.contents(), self.catalog.volumes());
            let delayed = self.volume_faults.iter().filter(|(_, (_, retry_at))| *retry_at > now);
            let making = self.making.iter().chain(delayed.map(|(key, _)| key)).copied().collect();
            let (steps, next) = plan(&Inputs {
                now,
                content: &content,
                is_content_synced: self.service.is_synced::<ContentDesiredTopic>(),
                volumes: &volumes,
                is_volumes_synced: self.service.is_synced::<VolumeDesiredTopic>(),
                held: &held,
                made: &made,
                making: &making,
                pulling: &pulling,
                waiting: &waiting,
                may_have_garbage: self.may_have_garbage,
            });
            deadline = next;
            let steps: Vec<Step> = steps.into_iter().filter(|step| !done.contains(step)).collect();
            if steps.is_empty() {
                break;
            }
            for step in &steps {
                self.carry_out(*step, &content, &volumes);
            }
            done.extend(steps);
        }
        self.look(now, &volumes);
        self.tell_content(&content);
        self.tell_volumes(&volumes);
        let again = self.turn_update(now);
        [deadline, again].into_iter().flatten().fold(self.look_at, MonoMs::min)
    }

    fn turn_update(&mut self, now: MonoMs) -> Option<MonoMs> {
        // until the planner has said what it wants, what is under way goes on
        if !self.service.is_synced::<UpdateDesiredTopic>() {
            return None;
        }
        let desired = self.service.get::<UpdateDesiredTopic>("");
        let (observed, again) = self.updater.turn(desired.as_ref(), now);
        match observed {
            Some(observed) => self.service.publish::<UpdateObservedTopic>("", &observed),
            None => self.service.remove::<UpdateObservedTopic>(""),
        }
        again
    }

    fn carry_out(
        &mut self,
        step: Step,
        content: &BTreeMap<ContentTreeId, ContentDesired>,
        volumes: &BTreeMap<VolumeKey, VolumeDesired>,
    ) {
        match step {
            Step::Pull(id) => {
                if let Some(desired) = content.get(&id) {
                    self.pull(desired.clone());
                }
            }
            Step::Cancel(id) => {
                if let Some(running) = self.pulls.get(&id) {
                    running.cancelled.store(true, Ordering::Relaxed);
                }
            }
            Step::MakeVolume(key) => self.make_volume(key, volumes),
            Step::DropContent(id) => {
                log::info(format_args!("content {id} is no longer wanted"));
                self.may_have_garbage = true;
                warn_of(self.catalog.drop_content(id));
            }
            Step::DropVolume(key) => {
                log::info(format_args!("volume {key} is no longer wanted"));
                self.may_have_garbage = true;
                warn_of(self.catalog.drop_volume(key));
            }
            Step::Sweep => {
                self.may_have_garbage = false;
                match self.catalog.sweep(&awaited(content)) {
                    Ok(0) => {}
                    Ok(count) => {
                        log::info(format_args!("{count} layers, files and blobs were no longer needed"))
                    }
                    Err(error) => log::warn(format_args!("{}", error.fault())),
                }
                self.empty_trash();
            }
        }
    }

    fn pull(&mut self, desired: ContentDesired) {
        let id = desired.id;
        let cancelled = Arc::new(AtomicBool::new(false));
        let order = Order::of(&desired);
        let (catalog, fetch, poster) = (self.catalog.clone(), self.fetch.clone(), self.poster.clone());
        let flag = cancelled.clone();
        log::info(format_args!("pulling {} ({id})", desired.name));
        let started = thread::Builder::new().name("pull".into()).spawn(move || {
            let source = FetchSource(fetch);
            let progress = |progress| {
                poster.post(Posted::Progress(id, progress));
            };
            let pull = Pull {
                catalog: &catalog,
                source: &source,
                platform: &Platform::this_machine(),
                desired: &desired,
                cancelled: &flag,
                progress: &progress,
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pull.run()));
            let result =
                result.unwrap_or_else(|_| Err(Fault::new(Reason::Internal, "the pull ended in a panic")));
            poster.post(Posted::Ended(id, result));
        });
        match started {
            Ok(_) => {
                self.pulls.insert(id, Running { order, cancelled, state: ContentState::ResolvingTag });
            }
            Err(error) => {
                let fault = Fault::new(Reason::Internal, format!("cannot start a thread: {error}"));
                self.fail(id, order, fault);
            }
        }
    }

    fn make_volume(&mut self, key: VolumeKey, volumes: &BTreeMap<VolumeKey, VolumeDesired>) {
        let contents = self.catalog.contents();
        let Some(desired) = volumes.get(&key) else { return };
        let made = match desired.origin {
            VolumeOrigin::Blank => MadeVolume::Directory,
            VolumeOrigin::Content(tree) => match contents.get(&tree).map(|record| &record.held) {
                Some(Held::Image(image)) => MadeVolume::Image(image.clone()),
                Some(Held::File(file)) if desired.is_read_only => MadeVolume::StoredFile(file.digest),
                Some(Held::File(file)) => MadeVolume::File(file.digest),
                None => return,
            },
        };
        let MadeVolume::File(_) = made else {
            let result = self.catalog.make_volume(key, made).map_err(|error| error.fault());
            return self.volume_made(key, result);
        };
        // A copy takes its time.
        let (catalog, poster) = (self.catalog.clone(), self.poster.clone());
        let started = thread::Builder::new().name("copy".into()).spawn(move || {
            poster.post(Posted::Made(key, catalog.make_volume(key, made).map_err(|error| error.fault())));
        });
        match started {
            Ok(_) => {
                self.making.insert(key);
            }
            Err(error) => {
                let fault = Fault::new(Reason::Internal, format!("cannot start a thread: {error}"));
                self.volume_made(key, Err(fault));
            }
        }
    }

    fn volume_made(&mut self, key: VolumeKey, result: Result<(), Fault>) {
        self.making.remove(&key);
        match result {
            Ok(()) => {
                log::info(format_args!("volume {key} is made"));
                self.volume_faults.remove(&key);
            }
            Err(fault) => {
                log::error(format_args!("volume {key}: {fault}"));
                let retry_at = self.service.now().mono.plus_ms(VOLUME_RETRY_MS);
                self.volume_faults.insert(key, (fault, retry_at));
            }
        }
    }

    fn take(&mut self, posted: Posted) {
        match posted {
            Posted::Progress(_, Progress::Note(text)) => log::warn(format_args!("{text}")),
            Posted::Progress(id, progress) => {
                if let Some(running) = self.pulls.get_mut(&id) {
                    running.state = match progress {
                        Progress::Downloading { digest, done_bytes, total_bytes } => {
                            ContentState::Downloading { digest, done_bytes, total_bytes }
                        }
                        Progress::Verified { digest, total_bytes } => {
                            ContentState::Verified { digest, total_bytes }
                        }
                        Progress::Note(_) => return,
                    };
                }
            }
            Posted::Ended(id, result) => {
                let Some(running) = self.pulls.remove(&id) else { return };
                // Layers of a pull that failed, or of the image before, may be needed no longer.
                self.may_have_garbage = true;
                match result {
                    Ok(held) => {
                        let (digest, bytes) = match &held {
                            Held::Image(image) => (image.digest, image.total_bytes),
                            Held::File(file) => (file.digest, file.size_bytes),
                        };
                        log::info(format_args!("content {id} is loaded: {digest}, {bytes} bytes"));
                        self.failed.remove(&id);
                    }
                    Err(_) if running.cancelled.load(Ordering::Relaxed) => {}
                    Err(fault) => self.fail(id, running.order, fault),
                }
            }
            Posted::Made(key, result) => self.volume_made(key, result),
            Posted::Measured(bytes) => self.measured(bytes),
            Posted::Update(told) => self.updater.take(told, self.service.now().mono),
            Posted::Emptied => {
                self.is_emptying = false;
                if self.empty_again {
                    self.empty_trash();
                }
            }
        }
    }

    fn fail(&mut self, id: ContentTreeId, order: Order, fault: Fault) {
        log::warn(format_args!("content {id}: {fault}"));
        let (first, longest) = match fault.reason.retry() {
            Retry::Automatic => RETRY_MS,
            Retry::AfterChange => RARE_RETRY_MS,
        };
        // Another kind of failure starts its own row of waits.
        let old =
            self.failed.remove(&id).filter(|old| old.order == order && old.fault.reason == fault.reason);
        let mut backoff = old.map_or_else(|| Backoff::new(first, longest), |old| old.backoff);
        let retry_at = backoff.fail(self.service.now().mono);
        self.failed.insert(id, Failed { order, backoff, retry_at, fault });
    }

    /// Looks how full the disk is, has volumes measured when that may matter, and judges them.
    fn look(&mut self, now: MonoMs, volumes: &BTreeMap<VolumeKey, VolumeDesired>) {
        let Some(disk) = self.tell_storage() else { return };
        let made = self.catalog.volumes();
        let writable = made.keys().filter_map(|key| {
            let desired = volumes.get(key).filter(|desired| !desired.is_read_only)?;
            let used_bytes = self.volume_bytes.get(key).copied().unwrap_or(0);
            let before_bytes = self.bytes_before.get(key).copied().unwrap_or(used_bytes);
            Some((*key, Size { used_bytes, before_bytes, max_bytes: desired.max_size_bytes }))
        });
        let sizes: BTreeMap<VolumeKey, Size> = writable.collect();
        self.judge.judge(now, disk, &sizes);
        let is_due = now >= self.look_at;
        if is_due {
            let used = disk.total_bytes.saturating_sub(disk.free_bytes);
            let may_have_grown = used.abs_diff(self.used_at_measure) >= GROWTH_BYTES && !sizes.is_empty();
            let (earliest, latest) = self.measure_at;
            if now >= latest || (may_have_grown && now >= earliest) {
                self.used_at_measure = used;
                self.measure(now);
            }
        }
        let next = now.plus_ms(self.judge.next_look_ms(disk, &sizes));
        self.look_at = if is_due { next } else { next.min(self.look_at) };
    }

    fn measure(&mut self, now: MonoMs) {
        if self.measuring.is_some() {
            return;
        }
        let (catalog, poster) = (self.catalog.clone(), self.poster.clone());
        let started = thread::Builder::new().name("measure".into()).spawn(move || {
            let bytes = catalog.volumes().into_keys().map(|key| (key, catalog.volume_bytes(key))).collect();
            poster.post(Posted::Measured(bytes));
        });
        self.measuring = started.is_ok().then_some(now);
    }

    fn measured(&mut self, bytes: BTreeMap<VolumeKey, u64>) {
        let now = self.service.now().mono;
        let took_ms = self.measuring.take().map_or(0, |since| now.since_ms(since));
        let has_limits =
            self.service.all::<VolumeDesiredTopic>().values().any(|desired| desired.max_size_bytes > 0);
        let interval_ms = if has_limits { MEASURE_LIMITED_INTERVAL_MS } else { MEASURE_INTERVAL_MS };
        let pause_ms = took_ms * MEASURE_PART;
        self.measure_at = (now.plus_ms(pause_ms), now.plus_ms(interval_ms.max(pause_ms)));
        self.bytes_before = std::mem::replace(&mut self.volume_bytes, bytes);
    }

    /// Deletes what was put aside, in a thread.
    fn empty_trash(&mut self) {
        // The thread may be past what was put aside now.
        self.empty_again = self.is_emptying;
        if self.is_emptying {
            return;
        }
        let (catalog, poster) = (self.catalog.clone(), self.poster.clone());
        let started = thread::Builder::new().name("trash".into()).spawn(move || {
            if let Err(error) = catalog.empty_trash() {
                log::warn(format_args!("{}", error.fault()));
            }
            poster.post(Posted::Emptied);
        });
        self.is_emptying = started.is_ok();
    }

    fn tell_content(&mut self, desired: &BTreeMap<ContentTreeId, ContentDesired>) {
        let held = self.catalog.contents();
        let mut said = BTreeSet::new();
        for (id, desired) in desired {
            let order = Order::of(desired);
            let failed = self.failed.get(id);
            let observed = match held.get(id) {
                Some(record) if record.order.serves(&order) => ContentObserved {
                    id: *id,
                    generation: desired.generation,
                    state: loaded(&record.held),
                    fault: None,
                },
                _ => {
                    let running = self.pulls.get(id).filter(|running| running.order == order);
                    let state = running.map_or(ContentState::ResolvingTag, |running| running.state.clone());
                    // The old fault stands until something moves again.
                    let fault = failed
                        .filter(|_| state == ContentState::ResolvingTag)
                        .map(|failed| failed.fault.clone());
                    ContentObserved { id: *id, generation: desired.generation, state, fault }
                }
            };
            self.service.publish::<ContentObservedTopic>(&id.to_string(), &observed);
            said.insert(*id);
        }
        // Held, and not yet known whether still wanted.
        for (id, record) in held.iter().filter(|(id, _)| !desired.contains_key(id)) {
            let state = loaded(&record.held);
            let observed =
                ContentObserved { id: *id, generation: record.order.generation, state, fault: None };
            self.service.publish::<ContentObservedTopic>(&id.to_string(), &observed);
            said.insert(*id);
        }
        for id in std::mem::replace(&mut self.said_content, said).difference(&self.said_content) {
            self.service.remove::<ContentObservedTopic>(&id.to_string());
        }
    }

    fn tell_volumes(&mut self, desired: &BTreeMap<VolumeKey, VolumeDesired>) {
        let made = self.catalog.volumes();
        self.volume_faults.retain(|key, _| desired.contains_key(key) && !made.contains_key(key));
        let now = self.service.now().mono;
        let mut said = BTreeSet::new();
        for key in desired.keys().chain(made.keys()) {
            if !said.insert(*key) {
                continue;
            }
            let unmade = self.volume_faults.get(key).map(|(fault, _)| fault);
            let fault = unmade.or(self.judge.fault(*key)).cloned();
            let used_bytes = self.volume_bytes.get(key).copied().unwrap_or(0);
            let told = self.told_bytes.entry(*key).or_insert((used_bytes, now));
            if now.since_ms(told.1) >= SIZES_TOLD_MS || fault.is_some() {
                *told = (used_bytes, now);
            }
            let observed =
                VolumeObserved { key: *key, made: made.get(key).cloned(), used_bytes: told.0, fault };
            self.service.publish::<VolumeObservedTopic>(&key.to_string(), &observed);
        }
        for key in std::mem::replace(&mut self.said_volumes, said).difference(&self.said_volumes) {
            self.service.remove::<VolumeObservedTopic>(&key.to_string());
            self.told_bytes.remove(key);
        }
    }

    fn tell_storage(&mut self) -> Option<Disk> {
        let stat = match rustix::fs::statvfs(self.catalog.root()) {
            Ok(stat) => stat,
            Err(error) => {
                log::warn(format_args!("cannot look at the disk: {error}"));
                return None;
            }
        };
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let total_bytes = bytes(stat.f_blocks);
        let rounded = |bytes: u64| bytes / GROWTH_BYTES * GROWTH_BYTES;
        let observed = StorageObserved {
            path: MOUNT_POINT.into(),
            total_bytes,
            // Not every log line is news.
            used_bytes: rounded(bytes(stat.f_blocks.saturating_sub(stat.f_bfree))),
            content_bytes: self.catalog.content_bytes() + self.volume_bytes.values().sum::<u64>(),
        };
        self.service.publish::<StorageObservedTopic>(MOUNT_POINT, &observed);
        Some(Disk { total_bytes, free_bytes: bytes(stat.f_bavail) })
    }
}

/// Files that are still to come.
fn awaited(content: &BTreeMap<ContentTreeId, ContentDesired>) -> BTreeSet<Digest> {
    let files = content.values().filter(|desired| matches!(desired.sources, ContentSources::Servers(_)));
    files.filter_map(|desired| desired.digest).collect()
}

fn loaded(held: &Held) -> ContentState {
    match held {
        Held::Image(image) => ContentState::Loaded(image.clone()),
        Held::File(file) => ContentState::LoadedFile(file.clone()),
    }
}

fn warn_of(result: Result<(), StorageError>) {
    if let Err(error) = result {
        log::warn(format_args!("{}", error.fault()));
    }
}

/// Process fetch as a source of bytes.
pub(crate) struct FetchSource(pub(crate) Caller<Fetch>);

impl Source for FetchSource {
    fn open(&self, request: &FetchRequest, cancelled: &Arc<AtomicBool>) -> Result<Opened, Fault> {
        let unavailable = |text: String| Fault::new(Reason::ServiceUnavailable, format!("fetch: {text}"));
        let (reply, fds) =
            self.0.call(request, &[], FETCH_TIMEOUT).map_err(|error| unavailable(error.to_string()))?;
        let FetchReply::Stream { media_type, size, offset } = reply?;
        let pipe = fds.into_iter().next().ok_or_else(|| unavailable("an answer without a pipe".into()))?;
        let body = PipeReader { pipe: File::from(pipe), cancelled: cancelled.clone() };
        Ok(Opened { media_type, size, offset, body: Box::new(body) })
    }
}

/// The reading end of fetch's pipe, with an end to waiting.
struct PipeReader {
    pipe: File,
    cancelled: Arc<AtomicBool>,
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let started = Instant::now();
        let slice = Timespec { tv_sec: 0, tv_nsec: CANCEL_LATENCY.as_nanos() as _ };
        loop {
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut fds, Some(&slice)) {
                Ok(0) => {}
                Ok(_) => return self.pipe.read(buffer),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            if started.elapsed() > SILENCE_TIMEOUT {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
