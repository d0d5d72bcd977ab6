// SPDX-License-Identifier: Apache-2.0
//! Makes the decisions of a flight record again and compares: of the planner (topics in, topics out) and of run (inputs
//! of its machine in, orders out). Of other services the record is told, not replayed.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use ipc::broker::BusFrame;
use ipc::client::{Client, Topics};
use ipc::topics::Topic;
use model::time::Now;
use node_base::planner::Planner;
use node_core::run::{Apps, Input as RunInput, Order};
use reconcile::{Machine as _, Outbox};
use service::files::Files;
use service::flight::{Record, Wake};

/// What came of it.
#[derive(Debug, Default)]
pub struct Replayed {
    pub service: String,
    /// Processes, or parts of their lives, the record tells of.
    pub keyframes: usize,
    /// Decisions that were made again.
    pub decisions: usize,
    /// Those that came out otherwise.
    pub differences: Vec<String>,
    /// The record in words.
    pub story: Vec<String>,
}

/// Goes through a record.
pub fn replay(records: &[Record]) -> Replayed {
    let mut out = Replayed::default();
    let mut life = Life::Unknown;
    for record in records {
        if let Some(line) = line(record) {
            out.story.push(line);
        }
        if let Record::Keyframe { service, state, .. } = record {
            life.end(&mut out);
            out.service.clone_from(service);
            out.keyframes += 1;
            life = match (service.as_str(), state) {
                ("planner", Some(state)) => PlannerLife::begin(state).map_or(Life::Unknown, Life::Planner),
                ("run", Some(state)) => RunLife::begin(state).map_or(Life::Unknown, Life::Run),
                _ => Life::Unknown,
            };
            continue;
        }
        match &mut life {
            Life::Planner(planner) => planner.take(record, &mut out),
            Life::Run(run) => run.take(record, &mut out),
            Life::Unknown => {}
        }
    }
    life.end(&mut out);
    out
}

enum Life {
    Planner(Box<PlannerLife>),
    Run(Box<RunLife>),
    Unknown,
}

impl Life {
    /// The last decision may have been cut short by the death of the process.
    fn end(&mut self, out: &mut Replayed) {
        match self {
            Life::Planner(planner) => planner.compare(true, out),
            Life::Run(run) => run.compare(true, out),
            Life::Unknown => {}
        }
    }
}

/// What one decision is compared by.
struct Decision<T> {
    at: Now,
    made: Vec<T>,
    recorded: Vec<T>,
}

fn compare<T: PartialEq + std::fmt::Debug>(
    decision: Option<Decision<T>>,
    is_cut_short: bool,
    out: &mut Replayed,
) {
    let Some(Decision { at, made, recorded }) = decision else { return };
    out.decisions += 1;
    let is_same = if is_cut_short { made.starts_with(&recorded) } else { made == recorded };
    if !is_same {
        let ms = at.mono.0;
        out.differences.push(format!("at {ms} ms: recorded {recorded:?}, made again {made:?}"));
    }
}

// ---- planner

#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Put(String, String, Vec<u8>),
    Removed(String, String),
    Synced(String),
}

struct PlannerLife {
    planner: Planner,
    topics: Spy,
    decision: Option<Decision<Said>>,
    /// A value was too large for the record.
    is_blind: bool,
}

impl PlannerLife {
    fn begin(state: &[u8]) -> Option<Box<PlannerLife>> {
        let mut topics = Spy::default();
        Planner::subscribe(&mut topics);
        Planner::subscribe_for_versions(&mut topics);
        let planner = Planner::restore(Box::new(Nowhere), Box::new(Nowhere), state)?;
        Some(Box::new(PlannerLife { planner, topics, decision: None, is_blind: false }))
    }

    fn take(&mut self, record: &Record, out: &mut Replayed) {
        let client = &mut self.topics.client;
        match record {
            Record::Put { topic, key, value } => {
                client.see(&BusFrame::Put { topic, key, value });
            }
            Record::Removed { topic, key } => {
                client.see(&BusFrame::Remove { topic, key });
            }
            Record::Synced { topic } => {
                client.see(&BusFrame::Synced { topic });
            }
            Record::Stands { topic, key, value, is_synced } => {
                if let Some((name, _)) = ipc::topics::ALL.iter().find(|(name, _)| name == topic) {
                    let is_empty = key.is_empty() && value.is_empty();
                    if !is_empty {
                        // What once was published is not too large.
                        let _ = client.publish(name, key, value.clone());
                    }
                    if *is_synced {
                        client.synced(name);
                    }
                }
            }
            Record::LeftOut { .. } => self.is_blind = true,
            Record::Woken { now, by } => {
                self.compare(false, out);
                if matches!(by, Wake::Topic(_) | Wake::Deadline) && !self.is_blind {
                    self.topics.said.clear();
                    self.planner.round(&mut self.topics, now.mono);
                    let made = std::mem::take(&mut self.topics.said);
                    self.decision = Some(Decision { at: *now, made, recorded: Vec::new() });
                }
            }
            Record::SaidPut { topic, key, value } => {
                self.said(Said::Put(topic.clone(), key.clone(), value.clone()));
            }
            Record::SaidRemoved { topic, key } => self.said(Said::Removed(topic.clone(), key.clone())),
            Record::SaidSynced { topic } => self.said(Said::Synced(topic.clone())),
            Record::Keyframe { .. } | Record::KeyframeEnd | Record::Input { .. } | Record::Order { .. } => {}
        }
    }

    fn said(&mut self, said: Said) {
        if let Some(decision) = &mut self.decision {
            decision.recorded.push(said);
        }
    }

    fn compare(&mut self, is_cut_short: bool, out: &mut Replayed) {
        compare(self.decision.take(), is_cut_short, out);
    }
}

/// Topics that note what is said.
#[derive(Default)]
struct Spy {
    client: Client,
    said: Vec<Said>,
}

impl Topics for Spy {
    fn subscribe<T: Topic>(&mut self) {
        self.client.subscribe(T::NAME);
    }
    fn publish<T: Topic>(&mut self, key: &str, value: &T::Value) {
        let Ok(value) = postcard::to_allocvec(value) else { return };
        if self.client.publish(T::NAME, key, value.clone()) == Ok(true) {
            self.said.push(Said::Put(T::NAME.into(), key.into(), value));
        }
    }
    fn remove<T: Topic>(&mut self, key: &str) {
        if self.client.remove(T::NAME, key) {
            self.said.push(Said::Removed(T::NAME.into(), key.into()));
        }
    }
    fn synced<T: Topic>(&mut self) {
        if self.client.synced(T::NAME) {
            self.said.push(Said::Synced(T::NAME.into()));
        }
    }
    fn get<T: Topic>(&self, key: &str) -> Option<T::Value> {
        Topics::get::<T>(&self.client, key)
    }
    fn all<T: Topic>(&self) -> BTreeMap<String, T::Value> {
        Topics::all::<T>(&self.client)
    }
    fn is_synced<T: Topic>(&self) -> bool {
        Topics::is_synced::<T>(&self.client)
    }
}

/// A disk that takes everything and has nothing.
#[derive(Debug)]
struct Nowhere;

impl Files for Nowhere {
    fn read(&self, _: &str, _: u64) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn write(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn make_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn age(&self, _: &str) -> Option<Duration> {
        None
    }
}

// ---- run

struct RunLife {
    apps: Apps,
    decision: Option<Decision<Order>>,
}

impl RunLife {
    fn begin(state: &[u8]) -> Option<Box<RunLife>> {
        let apps = postcard::from_bytes(state).ok()?;
        Some(Box::new(RunLife { apps, decision: None }))
    }

    fn take(&mut self, record: &Record, out: &mut Replayed) {
        match record {
            Record::Input { now, input } => {
                self.compare(false, out);
                let mut outbox = Outbox::new();
                match postcard::from_bytes::<Option<RunInput>>(input) {
                    Ok(Some(input)) => self.apps.handle(*now, input, &mut outbox),
                    Ok(None) => self.apps.wake(*now, &mut outbox),
                    Err(error) => out.differences.push(format!("an input cannot be read: {error}")),
                }
                let made = outbox.drain().collect();
                self.decision = Some(Decision { at: *now, made, recorded: Vec::new() });
            }
            Record::Order { order } => {
                if let (Some(decision), Ok(order)) = (&mut self.decision, postcard::from_bytes(order)) {
                    decision.recorded.push(order);
                }
            }
            _ => {}
        }
    }

    fn compare(&mut self, is_cut_short: bool, out: &mut Replayed) {
        compare(self.decision.take(), is_cut_short, out);
    }
}

// ---- words

fn line(record: &Record) -> Option<String> {
    Some(match record {
        Record::Keyframe { service, version, now, .. } => {
            format!("{:>10} {service} {version}, keyframe", now.mono.0)
        }
        Record::Woken { now, by } => format!("{:>10} woken by {by:?}", now.mono.0),
        Record::Input { now, input } => match postcard::from_bytes::<Option<RunInput>>(input) {
            Ok(Some(input)) => format!("{:>10} input {input:?}", now.mono.0),
            Ok(None) => format!("{:>10} input: time", now.mono.0),
            Err(_) => format!("{:>10} input of {} bytes", now.mono.0, input.len()),
        },
        Record::Order { order } => match postcard::from_bytes::<Order>(order) {
            Ok(order) => format!("           order {order:?}"),
            Err(_) => format!("           order of {} bytes", order.len()),
        },
        Record::Put { topic, key, value } => {
            format!("           sees {topic} {key:?}, {} bytes", value.len())
        }
        Record::Removed { topic, key } => format!("           sees {topic} {key:?} go"),
        Record::Synced { topic } => format!("           sees {topic} complete"),
        Record::LeftOut { topic, key, bytes } => {
            format!("           sees {topic} {key:?}, {bytes} bytes, too large for the record")
        }
        Record::SaidPut { topic, key, value } => {
            format!("           says {topic} {key:?}, {} bytes", value.len())
        }
        Record::SaidRemoved { topic, key } => format!("           says {topic} {key:?} goes"),
        Record::SaidSynced { topic } => format!("           says {topic} is complete"),
        Record::Stands { .. } | Record::KeyframeEnd => return None,
    })
}
