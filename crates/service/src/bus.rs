// SPDX-License-Identifier: Apache-2.0
//! This process's side of the bus: what it published and what it sees of others.
//!
//! Both survive the bus: with a new channel everything published is sent again, and what was seen stands until the
//! writer of the topic is synced with the new bus; then keys that were not said again go. Never waits for the bus.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

use ipc::broker::BusFrame;
use ipc::frame::{Channel, FrameError, Payload};
use ipc::limits::MAX_VALUE_BYTES;
use ipc::outbox::Outbox;

use crate::log;

/// Frames taken in one go, so that changes of a topic are conflated and other channels get their turn.
const TAKE_FRAMES: usize = 256;
/// Room for topic and key in the frame of the largest value.
const FRAME_HEAD_BYTES: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Subscribe(&'static str),
    Key(&'static str, String),
    Synced(&'static str),
}

/// A topic this process reads.
#[derive(Debug, Default)]
struct View {
    values: BTreeMap<String, Vec<u8>>,
    /// Keys that the present bus has not confirmed.
    unseen: BTreeSet<String>,
    is_synced: bool,
}

/// A topic this process writes.
#[derive(Debug, Default)]
struct Published {
    values: BTreeMap<String, Vec<u8>>,
    is_synced: bool,
}

/// The client of the bus. [`crate::Service`] has one; init, which is no service, has its own.
#[derive(Debug, Default)]
pub struct Bus {
    channel: Option<Channel>,
    outbox: Outbox<Item>,
    views: BTreeMap<&'static str, View>,
    published: BTreeMap<&'static str, Published>,
}

impl Bus {
    pub fn install(&mut self, channel: Channel) {
        self.channel = Some(channel);
        self.outbox.clear();
        for (topic, view) in &mut self.views {
            self.outbox.push(Item::Subscribe(topic));
            view.unseen = view.values.keys().cloned().collect();
        }
        for (topic, published) in &self.published {
            for key in published.values.keys() {
                self.outbox.push(Item::Key(topic, key.clone()));
            }
            if published.is_synced {
                self.outbox.push(Item::Synced(topic));
            }
        }
        self.flush();
    }

    pub fn subscribe(&mut self, topic: &'static str) {
        if !self.views.contains_key(topic) {
            self.views.insert(topic, View::default());
            self.queue(Item::Subscribe(topic));
        }
    }

    pub fn publish(&mut self, topic: &'static str, key: &str, value: Vec<u8>) {
        if value.len() + FRAME_HEAD_BYTES > MAX_VALUE_BYTES {
            log::error(format_args!("value {key:?} of {topic} is too large: {}", value.len()));
            return;
        }
        let published = self.published.entry(topic).or_default();
        if published.values.get(key) != Some(&value) {
            published.values.insert(key.to_string(), value);
            self.queue(Item::Key(topic, key.to_string()));
        }
    }

    pub fn remove(&mut self, topic: &'static str, key: &str) {
        let published = self.published.entry(topic).or_default();
        // A key that this process never published may stand from an earlier epoch: say it all the same.
        if published.values.remove(key).is_some() || !published.is_synced {
            self.queue(Item::Key(topic, key.to_string()));
        }
    }

    pub fn synced(&mut self, topic: &'static str) {
        let published = self.published.entry(topic).or_default();
        if !published.is_synced {
            published.is_synced = true;
            self.queue(Item::Synced(topic));
        }
    }

    /// This process has published the key.
    pub fn has_published(&self, topic: &str, key: &str) -> bool {
        self.published.get(topic).is_some_and(|published| published.values.contains_key(key))
    }

    pub fn value(&self, topic: &str, key: &str) -> Option<&[u8]> {
        self.views.get(topic)?.values.get(key).map(Vec::as_slice)
    }

    pub fn values(&self, topic: &str) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.views.get(topic).into_iter().flat_map(|view| &view.values)
    }

    pub fn is_synced(&self, topic: &str) -> bool {
        self.views.get(topic).is_some_and(|view| view.is_synced)
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    pub fn is_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }

    fn queue(&mut self, item: Item) {
        match item {
            Item::Synced(_) => self.outbox.push_last(item),
            _ => self.outbox.push(item),
        }
        self.flush();
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) {
        while let (Some(channel), Some(item)) = (&self.channel, self.outbox.front()) {
            let frame = match item {
                Item::Subscribe(topic) => BusFrame::Subscribe { topic },
                Item::Synced(topic) => BusFrame::Synced { topic },
                Item::Key(topic, key) => match self.published.get(topic).and_then(|p| p.values.get(key)) {
                    Some(value) => BusFrame::Put { topic, key, value },
                    None => BusFrame::Remove { topic, key },
                },
            };
            match channel.try_send(&frame, &[]) {
                Ok(true) => {
                    self.outbox.pop();
                }
                Ok(false) => return,
                Err(FrameError::Closed) => self.channel = None,
                Err(error) => {
                    log::error(format_args!("cannot send to the bus: {error}"));
                    self.outbox.pop();
                }
            }
        }
    }

    /// Takes what came; names of topics that changed go into `changed`.
    pub fn take(&mut self, changed: &mut BTreeSet<&'static str>) {
        for _ in 0..TAKE_FRAMES {
            let Some(channel) = &self.channel else { return };
            match channel.try_recv_payload() {
                Ok(Some((payload, _))) => {
                    if let Err(error) = self.see(&payload, changed) {
                        log::error(format_args!("unreadable frame from the bus: {error}"));
                    }
                }
                Ok(None) => return,
                // init brings a new channel; until then the last view stands.
                Err(FrameError::Closed) => self.channel = None,
                Err(error) => {
                    log::error(format_args!("cannot receive from the bus: {error}"));
                    return;
                }
            }
        }
    }

    fn see(&mut self, payload: &Payload, changed: &mut BTreeSet<&'static str>) -> Result<(), FrameError> {
        let bytes = payload.bytes()?;
        match postcard::from_bytes(&bytes)? {
            BusFrame::Subscribe { .. } => {}
            BusFrame::Put { topic, key, value } => {
                if let Some((topic, view)) = view_of(&mut self.views, topic) {
                    view.unseen.remove(key);
                    if view.values.get(key).map(Vec::as_slice) != Some(value) {
                        view.values.insert(key.to_string(), value.to_vec());
                        changed.insert(topic);
                    }
                }
            }
            BusFrame::Remove { topic, key } => {
                if let Some((topic, view)) = view_of(&mut self.views, topic) {
                    view.unseen.remove(key);
                    if view.values.remove(key).is_some() {
                        changed.insert(topic);
                    }
                }
            }
            BusFrame::Synced { topic } => {
                if let Some((topic, view)) = view_of(&mut self.views, topic) {
                    let gone = std::mem::take(&mut view.unseen);
                    for key in &gone {
                        view.values.remove(key);
                    }
                    if !view.is_synced || !gone.is_empty() {
                        changed.insert(topic);
                    }
                    view.is_synced = true;
                }
            }
        }
        Ok(())
    }
}

fn view_of<'v>(
    views: &'v mut BTreeMap<&'static str, View>,
    topic: &str,
) -> Option<(&'static str, &'v mut View)> {
    let (name, _) = views.get_key_value(topic)?;
    let name = *name;
    views.get_mut(name).map(|view| (name, view))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "config";

    fn send(bus: &Channel, frame: &BusFrame<'_>) {
        assert!(bus.try_send(frame, &[]).unwrap());
    }

    fn received(bus: &Channel) -> Vec<String> {
        let mut all = Vec::new();
        while let Some((payload, _)) = bus.try_recv_payload().unwrap() {
            let bytes = payload.bytes().unwrap();
            all.push(match postcard::from_bytes(&bytes).unwrap() {
                BusFrame::Subscribe { topic } => format!("subscribe {topic}"),
                BusFrame::Put { key, value, .. } => format!("put {key}={value:?}"),
                BusFrame::Remove { key, .. } => format!("remove {key}"),
                BusFrame::Synced { topic } => format!("synced {topic}"),
            });
        }
        all
    }

    #[test]
    fn the_last_view_stands_until_the_new_bus_is_synced() {
        let mut bus = Bus::default();
        let mut changed = BTreeSet::new();
        bus.subscribe(T);
        let (own, other) = Channel::pair().unwrap();
        bus.install(own);
        assert_eq!(received(&other), ["subscribe config"]);
        send(&other, &BusFrame::Put { topic: T, key: "a", value: b"1" });
        send(&other, &BusFrame::Put { topic: T, key: "b", value: b"2" });
        bus.take(&mut changed);
        assert!(changed.contains(T) && !bus.is_synced(T));
        send(&other, &BusFrame::Synced { topic: T });
        bus.take(&mut changed);
        assert!(bus.is_synced(T));
        // The bus dies: nothing changes.
        drop(other);
        changed.clear();
        bus.take(&mut changed);
        assert!(changed.is_empty() && bus.is_synced(T));
        assert_eq!(bus.values(T).count(), 2);
        // A new bus knows only one key when its writer is synced.
        let (own, other) = Channel::pair().unwrap();
        bus.install(own);
        send(&other, &BusFrame::Put { topic: T, key: "b", value: b"2" });
        bus.take(&mut changed);
        assert!(changed.is_empty());
        assert_eq!(bus.values(T).count(), 2);
        send(&other, &BusFrame::Synced { topic: T });
        bus.take(&mut changed);
        assert!(changed.contains(T));
        assert_eq!(bus.value(T, "a"), None);
        assert_eq!(bus.value(T, "b"), Some(&b"2"[..]));
    }

    #[test]
    fn what_was_published_is_said_again_to_a_new_bus() {
        let mut bus = Bus::default();
        bus.publish(T, "a", vec![1]);
        bus.publish(T, "b", vec![2]);
        bus.synced(T);
        bus.remove(T, "b");
        bus.publish(T, "c", vec![3]);
        let expected = ["put a=[1]", "put c=[3]", "synced config"];
        for _ in 0..2 {
            let (own, other) = Channel::pair().unwrap();
            bus.install(own);
            assert_eq!(received(&other), expected);
            bus.publish(T, "a", vec![1]);
            assert_eq!(received(&other), [""; 0]);
        }
    }
}
