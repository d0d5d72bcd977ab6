// SPDX-License-Identifier: Apache-2.0
//! The bus without its sockets: who may write and read what, the newest value per key, epochs, and what each reader
//! has still to be told.
//!
//! One writer per topic. A writer that connects again opens a new epoch of its topics: old values stand until it says
//! synced, then those it has not published again go. A reader that connects again gets a snapshot. A slow reader is
//! told the newest value of a key once, however often it changed, and nothing of a key that came and went while it was
//! slow: memory is bounded by the number of keys that stand or that it knows. Values are frames as the writer sent them
//! and are passed on unread. Never: I/O, clocks, persistence.
//!
//! ```text
//! topic  ─ put ─▶ standing ─ writer connects ─▶ standing, of an older epoch ─ put ─▶ standing
//!                                                         └── synced ─▶ gone, readers are told
//! ```
//!
//! Synced reaches a reader after every key that stood when it was said: a reader that has it has seen everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{KEY_COST_BYTES, MAX_KEY_BYTES, MAX_TOPIC_KEYS, MAX_WRITER_BYTES};
use crate::outbox::Outbox;

/// Frames between a process and the bus, the same in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BusFrame<'a> {
    /// To the bus only.
    Subscribe {
        topic: &'a str,
    },
    Put {
        topic: &'a str,
        key: &'a str,
        value: &'a [u8],
    },
    Remove {
        topic: &'a str,
        key: &'a str,
    },
    Synced {
        topic: &'a str,
    },
}

/// What the bus has to say to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice<V> {
    /// The writer's own frame.
    Put(V),
    Remove {
        topic: String,
        key: String,
    },
    Synced {
        topic: String,
    },
}

/// Why a frame of a client was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{client} is not connected")]
    NotConnected { client: String },
    #[error("there is no topic {topic:?}")]
    UnknownTopic { topic: String },
    #[error("{client} is not the writer of {topic}")]
    NotWriter { client: String, topic: String },
    #[error("the manifest of {client} does not let it read {topic}")]
    NotReader { client: String, topic: String },
    #[error("a key of {topic} is longer than {MAX_KEY_BYTES} bytes")]
    KeyTooLong { topic: String },
    #[error("{topic} has {MAX_TOPIC_KEYS} keys already")]
    TooManyKeys { topic: String },
    #[error("with this value of {topic} all that {client} keeps here is over {MAX_WRITER_BYTES} bytes")]
    TooManyBytes { client: String, topic: String },
}

/// The rules: who writes and reads a topic.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    writers: BTreeMap<String, String>,
    readers: BTreeMap<String, BTreeSet<String>>,
}

impl Rules {
    /// From (topic, writer) and, per service, the topics it may read.
    pub fn new(topics: &[(&str, &str)], readers: &BTreeMap<String, Vec<String>>) -> Rules {
        let mut rules = Rules::default();
        for (topic, writer) in topics {
            rules.writers.insert((*topic).into(), (*writer).into());
        }
        for (service, reads) in readers {
            for topic in reads {
                rules.readers.entry(topic.clone()).or_default().insert(service.clone());
            }
        }
        rules
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Key(Arc<str>, Arc<str>),
    Synced(Arc<str>),
}

#[derive(Debug, Default)]
struct Client {
    topics: BTreeSet<String>,
    outbox: Outbox<Item>,
    /// Keys it has been told of and not told the end of.
    known: BTreeSet<Item>,
}

#[derive(Debug)]
struct Standing<V> {
    value: V,
    bytes: usize,
    epoch: u64,
}

#[derive(Debug)]
struct TopicState<V> {
    name: Arc<str>,
    values: BTreeMap<Arc<str>, Standing<V>>,
    bytes: usize,
    epoch: u64,
    is_synced: bool,
}

impl<V> TopicState<V> {
    fn new(name: &str) -> Self {
        TopicState { name: name.into(), values: BTreeMap::new(), bytes: 0, epoch: 0, is_synced: false }
    }
}

/// The bus. `V` is a frame as it is stored and passed on.
#[derive(Debug)]
pub struct Broker<V> {
    rules: Rules,
    topics: BTreeMap<String, TopicState<V>>,
    clients: BTreeMap<String, Client>,
}

impl<V: Clone + PartialEq> Broker<V> {
    pub fn new(rules: Rules) -> Broker<V> {
        let topics = rules.writers.keys().map(|topic| (topic.clone(), TopicState::new(topic)));
        Broker { topics: topics.collect(), clients: BTreeMap::new(), rules }
    }

    /// A client has a new channel: it forgot what it was told, and as a writer begins anew.
    pub fn connect(&mut self, client: &str) {
        self.clients.insert(client.to_string(), Client::default());
        for (topic, writer) in &self.rules.writers {
            if writer == client
                && let Some(state) = self.topics.get_mut(topic)
            {
                state.epoch += 1;
            }
        }
    }

    /// Its channel is gone. What it wrote stands.
    pub fn disconnect(&mut self, client: &str) {
        self.clients.remove(client);
    }

    pub fn subscribe(&mut self, client: &str, topic: &str) -> Result<(), Refusal> {
        let state = self.topics.get(topic).ok_or_else(|| Refusal::UnknownTopic { topic: topic.into() })?;
        if !self.rules.readers.get(topic).is_some_and(|readers| readers.contains(client)) {
            return Err(Refusal::NotReader { client: client.into(), topic: topic.into() });
        }
        let reader =
            self.clients.get_mut(client).ok_or_else(|| Refusal::NotConnected { client: client.into() })?;
        reader.topics.insert(topic.to_string());
        for key in state.values.keys() {
            reader.outbox.push(Item::Key(state.name.clone(), key.clone()));
        }
        if state.is_synced {
            reader.outbox.push_last(Item::Synced(state.name.clone()));
        }
        Ok(())
    }

    /// `bytes` is what the value costs to keep; its key is added to that.
    pub fn put(
        &mut self,
        client: &str,
        topic: &str,
        key: &str,
        value: V,
        bytes: usize,
    ) -> Result<(), Refusal> {
        let kept = self.kept_bytes(client);
        let state = Self::writable(&self.rules, &mut self.topics, &self.clients, client, topic)?;
        if key.len() > MAX_KEY_BYTES {
            return Err(Refusal::KeyTooLong { topic: topic.into() });
        }
        let old = state.values.get_key_value(key);
        if old.is_none() && state.values.len() >= MAX_TOPIC_KEYS {
            return Err(Refusal::TooManyKeys { topic: topic.into() });
        }
        let bytes = bytes.saturating_add(key.len() + KEY_COST_BYTES);
        let old_bytes = old.map_or(0, |(_, old)| old.bytes);
        if (kept - old_bytes).saturating_add(bytes) > MAX_WRITER_BYTES {
            return Err(Refusal::TooManyBytes { client: client.into(), topic: topic.into() });
        }
        let is_news = old.is_none_or(|(_, old)| old.value != value);
        let key: Arc<str> = old.map_or_else(|| key.into(), |(key, _)| key.clone());
        state.bytes = state.bytes - old_bytes + bytes;
        state.values.insert(key.clone(), Standing { value, bytes, epoch: state.epoch });
        if is_news {
            let item = Item::Key(state.name.clone(), key);
            self.tell(topic, item);
        }
        Ok(())
    }

    pub fn remove(&mut self, client: &str, topic: &str, key: &str) -> Result<(), Refusal> {
        let state = Self::writable(&self.rules, &mut self.topics, &self.clients, client, topic)?;
        if let Some((key, old)) = state.values.remove_entry(key) {
            state.bytes -= old.bytes;
            let item = Item::Key(state.name.clone(), key);
            self.tell_gone(topic, item);
        }
        Ok(())
    }

    /// All keys of the writer stand; those of older epochs go.
    pub fn synced(&mut self, client: &str, topic: &str) -> Result<(), Refusal> {
        let state = Self::writable(&self.rules, &mut self.topics, &self.clients, client, topic)?;
        let (epoch, name) = (state.epoch, state.name.clone());
        let (stand, go) = std::mem::take(&mut state.values)
            .into_iter()
            .partition::<BTreeMap<_, Standing<V>>, _>(|(_, standing)| standing.epoch == epoch);
        state.bytes = stand.values().map(|standing| standing.bytes).sum();
        state.values = stand;
        state.is_synced = true;
        for (key, _) in go {
            self.tell_gone(topic, Item::Key(name.clone(), key));
        }
        for reader in self.clients.values_mut() {
            if reader.topics.contains(topic) {
                reader.outbox.push_last(Item::Synced(name.clone()));
            }
        }
        Ok(())
    }

    /// What to send to this client next. Stays until [`Broker::sent`].
    pub fn front(&self, client: &str) -> Option<Notice<V>> {
        Some(match self.clients.get(client)?.outbox.front()? {
            Item::Synced(topic) => Notice::Synced { topic: topic.to_string() },
            Item::Key(topic, key) => match self.value(topic, key) {
                Some(standing) => Notice::Put(standing.value.clone()),
                None => Notice::Remove { topic: topic.to_string(), key: key.to_string() },
            },
        })
    }

    fn value(&self, topic: &str, key: &str) -> Option<&Standing<V>> {
        self.topics.get(topic)?.values.get(key)
    }

    /// The front was sent.
    pub fn sent(&mut self, client: &str) {
        let Some(item) = self.clients.get_mut(client).and_then(|client| client.outbox.pop()) else { return };
        let stands = match &item {
            Item::Key(topic, key) => self.value(topic, key).is_some(),
            Item::Synced(_) => return,
        };
        let Some(client) = self.clients.get_mut(client) else { return };
        if stands {
            client.known.insert(item);
        } else {
            client.known.remove(&item);
        }
    }

    /// Notices that wait for this client.
    pub fn queued(&self, client: &str) -> usize {
        self.clients.get(client).map_or(0, |client| client.outbox.len())
    }

    /// What stands in a topic.
    pub fn standing(&self, topic: &str) -> impl Iterator<Item = (&str, &V)> {
        let values = self.topics.get(topic).into_iter().flat_map(|state| &state.values);
        values.map(|(key, standing)| (&**key, &standing.value))
    }

    /// What all topics of a writer cost.
    fn kept_bytes(&self, client: &str) -> usize {
        let own = self
            .topics
            .iter()
            .filter(|(topic, _)| self.rules.writers.get(*topic).is_some_and(|writer| writer == client));
        own.map(|(_, state)| state.bytes).sum()
    }

    /// Clients that something is to be sent to.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        let waiting = self.clients.iter().filter(|(_, client)| !client.outbox.is_empty());
        waiting.map(|(name, _)| name.as_str())
    }

    fn writable<'t>(
        rules: &Rules,
        topics: &'t mut BTreeMap<String, TopicState<V>>,
        clients: &BTreeMap<String, Client>,
        client: &str,
        topic: &str,
    ) -> Result<&'t mut TopicState<V>, Refusal> {
        let state = topics.get_mut(topic).ok_or_else(|| Refusal::UnknownTopic { topic: topic.into() })?;
        if rules.writers.get(topic).map(String::as_str) != Some(client) {
            return Err(Refusal::NotWriter { client: client.into(), topic: topic.into() });
        }
        if !clients.contains_key(client) {
            return Err(Refusal::NotConnected { client: client.into() });
        }
        Ok(state)
    }

    fn tell(&mut self, topic: &str, item: Item) {
        for reader in self.clients.values_mut() {
            if reader.topics.contains(topic) {
                reader.outbox.push(item.clone());
            }
        }
    }

    /// Who never heard of the key need not hear of its end.
    fn tell_gone(&mut self, topic: &str, item: Item) {
        for reader in self.clients.values_mut() {
            if !reader.topics.contains(topic) {
                continue;
            }
            if reader.known.contains(&item) {
                reader.outbox.push(item.clone());
            } else {
                reader.outbox.remove(&item);
            }
        }
    }
}

#[cfg(test)]
mod tests;
