// SPDX-License-Identifier: Apache-2.0
//! `?watch=true`: changes as they come, one JSON document a line.
//!
//! ```text
//! {"type":"ADDED","object":{…}}                                 first what is there, when no version was given …
//! {"type":"BOOKMARK","object":{…},"resourceVersion":"17"}       … then: everything up to here was said
//! {"type":"MODIFIED","object":{…},"resourceVersion":"18"}       then changes; also of status
//! {"type":"DELETED","object":{…},"resourceVersion":"19"}        with metadata only
//! {"type":"ERROR","object":{problem}}                           and the end
//! ```
//! `resourceVersion` of the newest line seen, or of a list, is where a later watch resumes. An object is told in its newest
//! state: several changes in between are one line. A watcher reads at its own pace and holds at most one batch of entries
//! here; one that is too far behind, or comes with the version of an earlier run, is told 410 and has to list anew.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use controller_core::intent::is_chosen;
use controller_core::resource::{API_VERSION, Kind};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use uuid::Uuid;

use super::{Answered, Api, Problem, event_document, view};
use crate::access::Caller;
use crate::feed::{Entry, Labels, TooOld, What};
use crate::objects::Stored;
use crate::observed::{Behind, Event};
use crate::state::now_ms;

/// After this long without a change a bookmark says that the watch lives, and from where it can be resumed.
pub(super) const BOOKMARK: Duration = Duration::from_secs(15);
/// Changes taken from the feed at once.
const BATCH: usize = 128;
/// Seconds after which somebody who was refused may try again.
const RETRY_S: u64 = 5;
/// Status is compared at most this often …
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// … and takes at most one part in this many of a processor.
const STATUS_SHARE: u32 = 5;
/// How often devices are looked at that have become silent.
const SILENCE_SWEEP: Duration = Duration::from_secs(5);

const CONTENT_TYPE: &str = "application/jsonl";

/// What is watched.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Only this object.
    pub name: Option<String>,
    pub labels: Vec<(String, String)>,
}

impl Selection {
    fn is_named(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|only| only == name)
    }

    fn contains(&self, name: &str, labels: &Labels) -> bool {
        self.is_named(name) && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn too_old() -> Problem {
    let detail = "what changed since this resourceVersion is not known any more";
    Problem::new(StatusCode::GONE, "VersionTooOld", detail)
        .next("list again, or watch without resourceVersion; then go on from the resourceVersion given there")
}

pub(super) fn slot(api: &Api) -> Result<OwnedSemaphorePermit, Problem> {
    api.feed.slot().ok_or_else(|| {
        let problem =
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "TooManyWatchers", "too many watch already");
        problem.next("try again later, or watch a list instead of single objects").retry_after(RETRY_S)
    })
}

/// The number in `resourceVersion`.
pub(super) fn version(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "Malformed", format!("'{text}' is no resourceVersion"))
            .next("take it from metadata.resourceVersion of a list, or from a line of a watch")
    })
}

pub(super) fn line(kind: &str, object: &Value, version: Option<u64>) -> Bytes {
    let mut out = json!({ "type": kind, "object": object });
    if let Some(version) = version {
        out["resourceVersion"] = json!(version.to_string());
    }
    Bytes::from(format!("{out}\n"))
}

pub(super) fn bookmark(kind: &str, version: u64) -> Bytes {
    let metadata = json!({ "resourceVersion": version.to_string() });
    line("BOOKMARK", &json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata }), Some(version))
}

pub(super) fn error(problem: &Problem) -> Bytes {
    line("ERROR", &serde_json::to_value(problem).unwrap_or_default(), None)
}

/// Gives the lines of a watch, one at a time, until it ends.
pub(super) trait Lines: Send + 'static {
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

pub(super) fn respond(lines: impl Lines) -> Response {
    let stream = stream::unfold(lines, |mut lines| async move {
        let line = lines.next().await?;
        Some((Ok::<_, Infallible>(line), lines))
    });
    let mut response = Body::from_stream(stream).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

/// A watch ends when its token does.
pub(super) fn still_allowed(api: &Api, caller: &Caller) -> Result<(), Problem> {
    if api.tokens.is_current(caller) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNAUTHORIZED, "Unauthorized", "the token is over or was revoked")
        .next("watch again with a token that holds"))
}

enum Phase {
    /// Telling what is there; the name told last.
    Listing(Option<String>),
    Following,
    Ended,
}

struct Objects {
    api: Api,
    caller: Caller,
    kind: Kind,
    selection: Selection,
    phase: Phase,
    /// Everything up to here was told, or is about to be with the list.
    cursor: u64,
    entries: VecDeque<Entry>,
    changed: watch::Receiver<u64>,
    _slot: OwnedSemaphorePermit,
}

/// Watches objects of a kind, from a version on or from what is there.
pub(super) fn objects(
    api: &Api,
    caller: Caller,
    (kind, selection): (Kind, Selection),
    from: Option<&str>,
) -> Answered {
    let slot = slot(api)?;
    let changed = api.feed.subscribe();
    let (phase, cursor) = match from {
        Some(text) => (Phase::Following, version(text)?),
        None => (Phase::Listing(None), api.feed.version()),
    };
    api.feed.since(cursor, 0).map_err(|TooOld| too_old())?;
    let api = api.clone();
    let entries = VecDeque::new();
    let start = Objects { api, caller, kind, selection, phase, cursor, entries, changed, _slot: slot };
    Ok(respond(start))
}

impl Lines for Objects {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let step = match &self.phase {
                Phase::Ended => return None,
                Phase::Listing(last) => {
                    let last = last.clone();
                    self.list_on(last).await
                }
                Phase::Following => self.follow_on().await,
            };
            match step {
                Ok(Some(line)) => return Some(line),
                Ok(None) => {}
                Err(problem) => {
                    self.phase = Phase::Ended;
                    return Some(error(&problem));
                }
            }
        }
    }
}

impl Objects {
    async fn list_on(&mut self, last: Option<String>) -> Result<Option<Bytes>, Problem> {
        let (kind, selection) = (self.kind, &self.selection);
        let next = self.api.with_project(|project| {
            use std::ops::Bound::{Excluded, Included, Unbounded};
            let from = match last {
                Some(name) => Excluded((kind, name)),
                None => Included((kind, String::new())),
            };
            let mut objects = project.stored.range((from, Unbounded)).map(|(_, stored)| stored);
            objects
                .by_ref()
                .take_while(|stored| stored.kind() == kind)
                .find(|stored| selection.contains(&stored.name, &stored.labels))
                .cloned()
        });
        let Some(stored) = next else {
            self.phase = Phase::Following;
            return Ok(Some(bookmark(kind.name(), self.cursor)));
        };
        let document = view::document(&self.api, &stored).await?;
        self.phase = Phase::Listing(Some(stored.name));
        Ok(Some(line("ADDED", &document, None)))
    }

    async fn follow_on(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(entry) = self.entries.pop_front() else {
            still_allowed(&self.api, &self.caller)?;
            // Marks what is there as seen, so that a change after the look wakes.
            self.changed.borrow_and_update();
            let entries = self.api.feed.since(self.cursor, BATCH).map_err(|TooOld| too_old())?;
            if entries.is_empty() {
                return match tokio::time::timeout(BOOKMARK, self.changed.changed()).await {
                    Ok(_) => Ok(None),
                    Err(_) => Ok(Some(bookmark(self.kind.name(), self.cursor))),
                };
            }
            self.entries = entries.into();
            return Ok(None);
        };
        let since = std::mem::replace(&mut self.cursor, entry.version);
        if entry.kind != self.kind {
            return Ok(None);
        }
        let gone = |entry: &Entry| {
            let metadata = json!({ "name": &*entry.name, "uid": entry.uid, "labels": entry.last_labels() });
            let document =
                json!({ "apiVersion": API_VERSION, "kind": entry.kind.name(), "metadata": metadata });
            line("DELETED", &document, Some(entry.version))
        };
        let empty = Labels::new();
        let what = entry.what(since);
        if what == What::Deleted {
            let is_ours = entry.is_relabelled(since)
                || self.selection.contains(&entry.name, entry.last_labels().unwrap_or(&empty));
            return Ok(is_ours.then(|| gone(&entry)));
        }
        // Deleted meanwhile: its own entry follows.
        let Some(stored) = self.stored(&entry) else { return Ok(None) };
        if !self.selection.contains(&stored.name, &stored.labels) {
            let was_perhaps_ours =
                what == What::Modified && entry.is_relabelled(since) && self.selection.is_named(&stored.name);
            return Ok(was_perhaps_ours.then(|| gone(&entry)));
        }
        let document = view::document(&self.api, &stored).await?;
        let text = if what == What::Added { "ADDED" } else { "MODIFIED" };
        Ok(Some(line(text, &document, Some(entry.version))))
    }

    fn stored(&self, entry: &Entry) -> Option<Stored> {
        let key = (entry.kind, entry.name.to_string());
        let stored = self.api.with_project(|project| project.stored.get(&key).cloned());
        stored.filter(|stored| stored.uid == entry.uid)
    }
}

struct Events {
    api: Api,
    caller: Caller,
    object: Option<String>,
    cursor: u64,
    queue: VecDeque<Event>,
    has_told: bool,
    is_ended: bool,
    changed: watch::Receiver<u64>,
    _slot: OwnedSemaphorePermit,
}

/// Watches events, from a sequence number on or from the oldest that is kept.
pub(super) async fn events(
    api: &Api,
    caller: Caller,
    object: Option<String>,
    from: Option<&str>,
) -> Answered {
    let slot = slot(api)?;
    let changed = api.observed.recent().subscribe();
    let (cursor, queue) = match from {
        Some(text) => (version(text)?, VecDeque::new()),
        None => {
            let kept = api.observed.events().await.map_err(|_| Problem::internal())?;
            (kept.first().map_or(0, |event| event.sequence.saturating_sub(1)), kept.into())
        }
    };
    let mut start = Events {
        api: api.clone(),
        caller,
        object,
        cursor,
        queue,
        has_told: false,
        is_ended: false,
        changed,
        _slot: slot,
    };
    // Whether the version is known is said with the status of the answer, not later.
    if start.queue.is_empty() {
        start.fill().await?;
    }
    Ok(respond(start))
}

impl Events {
    /// Takes in what came after the cursor; from memory, or from disk when that is further back.
    async fn fill(&mut self) -> Result<(), Problem> {
        still_allowed(&self.api, &self.caller)?;
        self.changed.borrow_and_update();
        self.queue = match self.api.observed.recent().since(self.cursor) {
            Ok(events) => events.into(),
            Err(Behind::Future) => return Err(too_old()),
            Err(Behind::OnDisk) => {
                let kept = self.api.observed.events().await.map_err(|_| Problem::internal())?;
                if kept.first().is_some_and(|first| first.sequence > self.cursor + 1) {
                    return Err(too_old());
                }
                kept.into_iter().filter(|event| event.sequence > self.cursor).collect()
            }
        };
        Ok(())
    }
}

impl Lines for Events {
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_ended {
            return None;
        }
        loop {
            while let Some(event) = self.queue.pop_front() {
                self.cursor = event.sequence;
                if self.object.as_ref().is_none_or(|object| *object == event.object) {
                    return Some(line("ADDED", &event_document(&event), Some(event.sequence)));
                }
            }
            if let Err(problem) = self.fill().await {
                self.is_ended = true;
                return Some(error(&problem));
            }
            if self.queue.is_empty() {
                let is_first = !std::mem::replace(&mut self.has_told, true);
                if is_first || tokio::time::timeout(BOOKMARK, self.changed.changed()).await.is_err() {
                    return Some(bookmark("Event", self.cursor));
                }
            }
        }
    }
}

/// Enters changes of status into the feed, as long as the process runs.
pub(crate) async fn follow_statuses(api: Api) {
    let mut before = HashMap::new();
    let mut swept_ms = now_ms();
    let mut sweep = tokio::time::interval(SILENCE_SWEEP);
    loop {
        let touched = tokio::select! {
            touched = api.feed.take_touched() => touched,
            _ = sweep.tick() => {
                swept_ms = sweep_silent(&api, swept_ms);
                continue;
            }
        };
        let start = Instant::now();
        compare(&api, touched, &mut before).await;
        tokio::time::sleep(STATUS_PAUSE.max(start.elapsed() * (STATUS_SHARE - 1))).await;
    }
}

/// Touches devices whose silence became long enough to be shown since the last look.
fn sweep_silent(api: &Api, last_ms: i64) -> i64 {
    let now = now_ms();
    for node in api.all_nodes() {
        let silent_at = node.last_seen_ms() + view::SILENCE_MS;
        if (last_ms..=now).contains(&silent_at) {
            api.feed.touch(Kind::Device, node.id);
        }
    }
    now
}

type Statuses = HashMap<(Kind, Uuid), u64>;

async fn compare(api: &Api, touched: BTreeSet<(Kind, Uuid)>, before: &mut Statuses) {
    for stored in concerned(api, touched, before) {
        // A status that cannot be read was logged where it was tried.
        let Ok(document) = view::document(api, &stored).await else { continue };
        let status = fingerprint(document.get("status"));
        if before.insert((stored.kind(), stored.uid), status) != Some(status) {
            api.feed.modified(stored.kind(), stored.uid, &stored.name);
        }
    }
}

/// What was touched, and the apps and versions of the devices that were. What is there no more is forgotten.
fn concerned(api: &Api, touched: BTreeSet<(Kind, Uuid)>, before: &mut Statuses) -> Vec<Stored> {
    api.with_project(|project| {
        let mut names: BTreeSet<(Kind, &String)> = BTreeSet::new();
        for (kind, uid) in touched {
            let name = match kind {
                Kind::Device => project.device_names.get(&uid),
                _ => project.stored.values().find(|s| s.kind() == kind && s.uid == uid).map(|s| &s.name),
            };
            let Some(name) = name else {
                before.remove(&(kind, uid));
                continue;
            };
            names.insert((kind, name));
            let device = project.intent.devices.get(name).filter(|_| kind == Kind::Device);
            names.extend(device.into_iter().flat_map(|device| {
                let chosen = project.intent.apps.values().filter(|app| is_chosen(&app.spec, device));
                let os = project.intent.base_os_of(device).map(|os| (Kind::BaseOs, &os.name));
                chosen.map(|app| (Kind::App, &app.name)).chain(os)
            }));
        }
        let stored = |(kind, name): (Kind, &String)| project.stored.get(&(kind, name.clone())).cloned();
        names.into_iter().filter_map(stored).collect()
    })
}

/// Digest of a status without what changes with every request of a device.
fn fingerprint(status: Option<&Value>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let fields = status.and_then(Value::as_object).into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| *key != "lastSeen") {
        key.hash(&mut hasher);
        value.to_string().hash(&mut hasher);
    }
    hasher.finish()
}
