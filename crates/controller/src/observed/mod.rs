// SPDX-License-Identifier: Apache-2.0
//! What devices reported: the newest info of each object and the newest metrics in memory, everything else in segments
//! on disk with quotas.
//!
//! Never in the intent store. After a restart the newest info is read back when first looked at.

mod crash;
mod heartbeat;
mod recent;
pub(crate) mod segment;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use eve_api::Message as _;
use eve_api::wire::info::ZInfoMsg;
use eve_api::wire::info::z_info_msg::InfoContent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use crash::{Ended, begin, end};
pub(crate) use heartbeat::{read as read_heartbeats, write as write_heartbeats};
pub(crate) use recent::{Behind, Recent};
pub(crate) use segment::{Kind, Record};
use writer::Writer;
pub(crate) use writer::{Busy, Receipt, StreamName};

use crate::files;
use crate::node::lock;

/// Locks over which devices are spread.
const SHARDS: usize = 64;
/// Objects remembered per device; a device that reports more is broken.
const MAX_OBJECTS: usize = 4096;

/// The newest message about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    pub at_ms: i64,
    pub bytes: Arc<[u8]>,
}

/// The newest of everything of one device.
#[derive(Clone, Debug, Default)]
pub struct DeviceView {
    /// By object, see [`object_of`].
    pub info: BTreeMap<String, Latest>,
    pub metrics: Option<Latest>,
    /// The segments were read.
    is_loaded: bool,
}

/// Something that happened, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    #[serde(default)]
    pub sequence: u64,
    pub at_ms: i64,
    /// `device/x`, `app/y`.
    pub object: String,
    /// Stable CamelCase word.
    pub reason: String,
    pub message: String,
}

impl Event {
    fn read(record: &Record) -> Option<Event> {
        let event: Event = serde_json::from_slice(&record.bytes).ok()?;
        Some(Event { sequence: record.sequence, ..event })
    }
}

#[derive(Debug)]
pub struct Observed {
    shards: Vec<Mutex<HashMap<Uuid, DeviceView>>>,
    writer: Writer,
    recent: Arc<Recent>,
}

impl Observed {
    pub fn open(dir: &Path) -> io::Result<Observed> {
        files::private_dir(dir).map_err(io::Error::other)?;
        let recent = Arc::new(Recent::new());
        Ok(Observed {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            writer: Writer::start(dir.to_owned(), recent.clone())?,
            recent,
        })
    }

    fn shard(&self, device: Uuid) -> &Mutex<HashMap<Uuid, DeviceView>> {
        &self.shards[usize::from(device.as_bytes()[15]) % SHARDS]
    }

    /// Takes in an info message; gives the one it replaces, and what tells when it is stored.
    pub fn info(
        &self,
        device: Uuid,
        at_ms: i64,
        message: &ZInfoMsg,
        bytes: &[u8],
    ) -> Result<(Option<Latest>, Receipt), Busy> {
        let object = object_key(message);
        let receipt =
            self.writer.append(device, StreamName::Info, at_ms, vec![(object.clone(), bytes.to_vec())])?;
        let mut shard = lock(self.shard(device));
        let view = shard.entry(device).or_default();
        let before = view.info.get(&object).cloned();
        if before.is_some() || view.info.len() < MAX_OBJECTS {
            view.info.insert(object, Latest { at_ms, bytes: bytes.into() });
        }
        Ok((before, receipt))
    }

    pub fn metrics(&self, device: Uuid, at_ms: i64, bytes: &[u8]) {
        lock(self.shard(device)).entry(device).or_default().metrics =
            Some(Latest { at_ms, bytes: bytes.into() });
    }

    /// Appends log lines, each a JSON document.
    pub fn logs(
        &self,
        device: Uuid,
        stream: StreamName,
        at_ms: i64,
        lines: Vec<Vec<u8>>,
    ) -> Result<Receipt, Busy> {
        let records = lines.into_iter().map(|line| (String::new(), line)).collect();
        self.writer.append(device, stream, at_ms, records)
    }

    /// Bytes that wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.writer.waiting_bytes()
    }

    /// Enters an event.
    pub fn event(&self, at_ms: i64, object: String, reason: &str, message: String) {
        self.enter_events(vec![Event { sequence: 0, at_ms, object, reason: reason.into(), message }]);
    }

    /// Enters events that happened together.
    pub fn enter_events(&self, events: Vec<Event>) {
        let at_ms = events.first().map_or(0, |event| event.at_ms);
        let read = |event: &Event| {
            tracing::info!(object = event.object, reason = event.reason, message = event.message, "event");
            Some((String::new(), serde_json::to_vec(event).ok()?))
        };
        let records: Vec<_> = events.iter().filter_map(read).collect();
        if !records.is_empty() {
            self.writer.append_own(StreamName::Events, at_ms, records);
        }
    }

    /// Nothing is written until what this gives back is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> std::sync::mpsc::SyncSender<()> {
        self.writer.hold()
    }

    /// The newest events in memory.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// All events that are kept, oldest first.
    pub async fn events(&self) -> io::Result<Vec<Event>> {
        let records = self.writer.read(Uuid::nil(), StreamName::Events).await?;
        Ok(records.iter().filter_map(Event::read).collect())
    }

    /// Records of a stream as they came, oldest first.
    pub async fn history(&self, device: Uuid, stream: StreamName) -> io::Result<Vec<Record>> {
        let mut records = self.writer.read(device, stream).await?;
        records.retain(|record| record.kind == Kind::Message);
        Ok(records)
    }

    /// The newest of everything that came since the start.
    pub fn peek(&self, device: Uuid) -> Option<DeviceView> {
        lock(self.shard(device)).get(&device).cloned()
    }

    /// The newest of everything.
    pub async fn view(&self, device: Uuid) -> io::Result<DeviceView> {
        let loaded = |view: &DeviceView| view.is_loaded.then(|| view.clone());
        if let Some(view) = lock(self.shard(device)).get(&device).and_then(loaded) {
            return Ok(view);
        }
        let records = self.writer.read(device, StreamName::Info).await?;
        let mut shard = lock(self.shard(device));
        let view = shard.entry(device).or_default();
        let mut stored: BTreeMap<String, Latest> = BTreeMap::new();
        for record in records {
            let latest = Latest { at_ms: record.at_ms, bytes: record.bytes.into() };
            stored.insert(object_of(&latest.bytes), latest);
        }
        // What came since the start is newer than what was read.
        for (object, latest) in stored {
            view.info.entry(object).or_insert(latest);
        }
        view.is_loaded = true;
        Ok(view.clone())
    }

    /// Drops everything of a device.
    pub fn forget(&self, device: Uuid) {
        lock(self.shard(device)).remove(&device);
        self.writer.forget(device);
    }
}

/// The object a stored message speaks of.
pub(crate) fn object_of(bytes: &[u8]) -> String {
    ZInfoMsg::decode(bytes).map_or_else(|_| "unreadable".into(), |message| object_key(&message))
}

/// The object an info message speaks of: its type, and an id where the type has several objects.
pub(crate) fn object_key(message: &ZInfoMsg) -> String {
    match &message.info_content {
        Some(InfoContent::Dinfo(_)) => "device".into(),
        Some(InfoContent::Ainfo(app)) => format!("app/{}", app.app_id),
        Some(InfoContent::Niinfo(network)) => format!("network/{}", network.network_id),
        Some(InfoContent::Vinfo(volume)) => format!("volume/{}#{}", volume.uuid, volume.generation_count),
        Some(InfoContent::Cinfo(tree)) => format!("content/{}", tree.uuid),
        Some(InfoContent::Amdinfo(data)) => format!("metadata/{}/{}", data.uuid, data.r#type),
        _ => format!("type/{}", message.ztype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eve_api::wire::info::ZInfoApp;

    fn message(app: &str, name: &str) -> (ZInfoMsg, Vec<u8>) {
        let app = ZInfoApp { app_id: app.into(), app_name: name.into(), ..ZInfoApp::default() };
        let message =
            ZInfoMsg { ztype: 3, info_content: Some(InfoContent::Ainfo(app)), ..ZInfoMsg::default() };
        let bytes = message.encode_to_vec();
        (message, bytes)
    }

    #[tokio::test]
    async fn the_newest_of_each_object_and_a_thousand_messages_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let device = Uuid::from_u128(7);
        let observed = Observed::open(dir.path()).unwrap();
        let (quiet, bytes) = message("quiet", "only once");
        let first = observed.info(device, 1, &quiet, &bytes).unwrap().1;
        assert!(first.written().await);
        // Long names, so that segments change several times.
        for index in 0..5000 {
            let (noisy, bytes) = message("noisy", &format!("{index} {}", "x".repeat(1500)));
            while observed.info(device, 2 + index, &noisy, &bytes).is_err() {
                tokio::task::yield_now().await;
            }
        }
        observed.view(device).await.unwrap();
        drop(observed);

        let observed = Observed::open(dir.path()).unwrap();
        let history = observed.history(device, StreamName::Info).await.unwrap();
        assert!(history.len() >= 1000, "{}", history.len());
        assert!(history.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
        assert_eq!(history.last().map(|record| record.at_ms), Some(5001));
        let view = observed.view(device).await.unwrap();
        assert_eq!(view.info["app/quiet"].at_ms, 1);
        assert_eq!(view.info["app/noisy"].at_ms, 5001);
        // Sent again after the answer got lost: once is enough.
        let bytes = view.info["app/noisy"].bytes.clone();
        let again = ZInfoMsg::decode(&*bytes).unwrap();
        assert!(observed.info(device, 6000, &again, &bytes).unwrap().1.written().await);
        assert_eq!(observed.history(device, StreamName::Info).await.unwrap(), history);
        observed.forget(device);
        assert!(observed.view(device).await.unwrap().info.is_empty());
    }
}
