// SPDX-License-Identifier: Apache-2.0
//! One process's side of the bus, without its channel: what it published and what it sees of others.
//!
//! Both survive the bus: with a new channel everything published is said again, and what was seen stands until the
//! writer of the topic is synced with the new bus; then keys that were not said again go. Never: I/O, waiting.

use std::collections::{BTreeMap, BTreeSet};

use crate::broker::BusFrame;
use crate::limits::MAX_VALUE_BYTES;
use crate::outbox::Outbox;
use crate::topics::Topic;

/// Room for topic and key in the frame of the largest value.
const FRAME_HEAD_BYTES: usize = 1024;

/// Topics as a decision's shell reads and writes them: of a real process or of a simulated one.
pub trait Topics {
    fn subscribe<T: Topic>(&mut self);
    /// No-op when unchanged.
    fn publish<T: Topic>(&mut self, key: &str, value: &T::Value);
    fn remove<T: Topic>(&mut self, key: &str);
    /// All my keys stand: unseen keys of an older epoch go now.
    fn synced<T: Topic>(&mut self);
    fn get<T: Topic>(&self, key: &str) -> Option<T::Value>;
    fn all<T: Topic>(&self) -> BTreeMap<String, T::Value>;
    /// The writer has said synced in its present or an earlier epoch: absent is really absent.
    fn is_synced<T: Topic>(&self) -> bool;
}

/// A value of a topic that no frame can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value {key:?} of {topic} is too large: {bytes} bytes")]
pub struct TooLarge {
    pub topic: &'static str,
    pub key: String,
    pub bytes: usize,
}

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

/// Topics read and written by one process.
#[derive(Debug, Default)]
pub struct Client {
    outbox: Outbox<Item>,
    views: BTreeMap<&'static str, View>,
    published: BTreeMap<&'static str, Published>,
}

impl Client {
    /// There is a new bus, which knows nothing of this process.
    pub fn connected(&mut self) {
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
    }

    pub fn subscribe(&mut self, topic: &'static str) {
        if !self.views.contains_key(topic) {
            self.views.insert(topic, View::default());
            self.outbox.push(Item::Subscribe(topic));
        }
    }

    /// Whether this is news to the bus.
    pub fn publish(&mut self, topic: &'static str, key: &str, value: Vec<u8>) -> Result<bool, TooLarge> {
        if value.len() + FRAME_HEAD_BYTES > MAX_VALUE_BYTES {
            return Err(TooLarge { topic, key: key.into(), bytes: value.len() });
        }
        let published = self.published.entry(topic).or_default();
        let is_news = published.values.get(key) != Some(&value);
        if is_news {
            published.values.insert(key.to_string(), value);
            self.outbox.push(Item::Key(topic, key.to_string()));
        }
        Ok(is_news)
    }

    pub fn remove(&mut self, topic: &'static str, key: &str) -> bool {
        let published = self.published.entry(topic).or_default();
        // A key that this process never published may stand from an earlier epoch: say it all the same.
        let is_news = published.values.remove(key).is_some() || !published.is_synced;
        if is_news {
            self.outbox.push(Item::Key(topic, key.to_string()));
        }
        is_news
    }

    pub fn synced(&mut self, topic: &'static str) -> bool {
        let published = self.published.entry(topic).or_default();
        let is_news = !published.is_synced;
        if is_news {
            published.is_synced = true;
            self.outbox.push_last(Item::Synced(topic));
        }
        is_news
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

    /// Everything this process has published: topic, key, value, and whether the topic is complete. A topic without
    /// values is there with an empty key and value.
    pub fn published(&self) -> impl Iterator<Item = (&'static str, &str, &[u8], bool)> {
        self.published.iter().flat_map(|(topic, published)| {
            let values = published.values.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            let none = published.values.is_empty().then_some(("", [].as_slice()));
            values.chain(none).map(|(key, value)| (*topic, key, value, published.is_synced))
        })
    }

    /// Topics this process reads.
    pub fn subscribed(&self) -> impl Iterator<Item = &'static str> {
        self.views.keys().copied()
    }

    pub fn is_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// What to say to the bus next. Stays until [`Client::sent`].
    pub fn front(&self) -> Option<BusFrame<'_>> {
        Some(match self.outbox.front()? {
            Item::Subscribe(topic) => BusFrame::Subscribe { topic },
            Item::Synced(topic) => BusFrame::Synced { topic },
            Item::Key(topic, key) => match self.published.get(topic).and_then(|p| p.values.get(key)) {
                Some(value) => BusFrame::Put { topic, key, value },
                None => BusFrame::Remove { topic, key },
            },
        })
    }

    /// The front was sent.
    pub fn sent(&mut self) {
        self.outbox.pop();
    }

    /// Takes one frame of the bus; the topic, when something of it changed.
    pub fn see(&mut self, frame: &BusFrame<'_>) -> Option<&'static str> {
        match *frame {
            BusFrame::Subscribe { .. } => None,
            BusFrame::Put { topic, key, value } => {
                let (topic, view) = self.view(topic)?;
                view.unseen.remove(key);
                let is_news = view.values.get(key).map(Vec::as_slice) != Some(value);
                if is_news {
                    view.values.insert(key.to_string(), value.to_vec());
                }
                is_news.then_some(topic)
            }
            BusFrame::Remove { topic, key } => {
                let (topic, view) = self.view(topic)?;
                view.unseen.remove(key);
                view.values.remove(key).map(|_| topic)
            }
            BusFrame::Synced { topic } => {
                let (topic, view) = self.view(topic)?;
                let gone = std::mem::take(&mut view.unseen);
                for key in &gone {
                    view.values.remove(key);
                }
                let is_news = !view.is_synced || !gone.is_empty();
                view.is_synced = true;
                is_news.then_some(topic)
            }
        }
    }

    fn view(&mut self, topic: &str) -> Option<(&'static str, &mut View)> {
        let (name, _) = self.views.get_key_value(topic)?;
        let name = *name;
        self.views.get_mut(name).map(|view| (name, view))
    }
}

/// Values of the same build can always be read and written; what cannot is passed over.
impl Topics for Client {
    fn subscribe<T: Topic>(&mut self) {
        Client::subscribe(self, T::NAME);
    }
    fn publish<T: Topic>(&mut self, key: &str, value: &T::Value) {
        if let Ok(value) = postcard::to_allocvec(value) {
            // Passed over like a value that cannot be written.
            let _ = Client::publish(self, T::NAME, key, value);
        }
    }
    fn remove<T: Topic>(&mut self, key: &str) {
        Client::remove(self, T::NAME, key);
    }
    fn synced<T: Topic>(&mut self) {
        Client::synced(self, T::NAME);
    }
    fn get<T: Topic>(&self, key: &str) -> Option<T::Value> {
        self.value(T::NAME, key).and_then(|bytes| postcard::from_bytes(bytes).ok())
    }
    fn all<T: Topic>(&self) -> BTreeMap<String, T::Value> {
        let values = self.values(T::NAME);
        values.filter_map(|(key, bytes)| Some((key.clone(), postcard::from_bytes(bytes).ok()?))).collect()
    }
    fn is_synced<T: Topic>(&self) -> bool {
        Client::is_synced(self, T::NAME)
    }
}
