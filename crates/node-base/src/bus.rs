// SPDX-License-Identifier: Apache-2.0
//! The process bus: [`ipc::broker`] over the channels init hands in, one per service, kind `client`.
//!
//! Values pass through unread and uncopied: a large one stays in the memfd its writer sealed. A client that breaks the
//! rules is logged and not heard; it cannot harm another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipc::broker::{Broker, BusFrame, Notice, Refusal, Rules};
use ipc::frame::{Channel, FrameError, Payload};
use ipc::topics;
use service::{ChannelEvent, Event, Service, log};

/// Frames taken from one client in one go.
const TAKE_FRAMES: usize = 128;

/// Why a frame was not taken.
#[derive(Debug, thiserror::Error)]
enum Reject {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Unreadable(#[from] FrameError),
}

struct Bus {
    broker: Broker<Payload>,
    clients: BTreeMap<String, Arc<Channel>>,
}

/// Serves until init asks to stop.
pub fn run(mut service: Service) {
    let rules = Rules::new(topics::ALL, &service.launched().launch.readers);
    let mut bus = Bus { broker: Broker::new(rules), clients: BTreeMap::new() };
    loop {
        match service.next(None) {
            Event::Channel(ChannelEvent::Opened { key, channel, .. }) => {
                bus.broker.connect(&key);
                bus.clients.insert(key, channel);
            }
            Event::Channel(ChannelEvent::Readable { key, .. }) => bus.take(&key),
            Event::Channel(ChannelEvent::Writable { .. }) => {}
            Event::Channel(ChannelEvent::Closed { key, .. }) => {
                bus.broker.disconnect(&key);
                bus.clients.remove(&key);
            }
            Event::Stop => return,
            Event::Topics(_) | Event::Call(_) | Event::Worker(()) | Event::Readable(_) | Event::Deadline => {}
        }
        for key in bus.deliver() {
            service.want_write("client", &key);
        }
    }
}

impl Bus {
    fn take(&mut self, client: &str) {
        let Some(channel) = self.clients.get(client).cloned() else { return };
        for _ in 0..TAKE_FRAMES {
            let result = match channel.try_recv_payload() {
                Ok(Some((payload, _))) => self.apply(client, payload),
                // The end is told by the loop.
                Ok(None) | Err(FrameError::Closed) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                log::error(format_args!("frame of {client} refused: {error}"));
            }
        }
    }

    fn apply(&mut self, client: &str, payload: Payload) -> Result<(), Reject> {
        let bytes = payload.bytes()?;
        match postcard::from_bytes(&bytes).map_err(FrameError::from)? {
            BusFrame::Subscribe { topic } => self.broker.subscribe(client, topic)?,
            BusFrame::Put { topic, key, .. } => {
                self.broker.put(client, topic, key, payload.clone(), payload.cost_bytes())?;
            }
            BusFrame::Remove { topic, key } => self.broker.remove(client, topic, key)?,
            BusFrame::Synced { topic } => self.broker.synced(client, topic)?,
        }
        Ok(())
    }

    /// Sends what readers have not been told; names those whose channel is full.
    fn deliver(&mut self) -> Vec<String> {
        let mut full = Vec::new();
        let waiting: Vec<String> = self.broker.waiting().map(str::to_string).collect();
        for client in waiting {
            let Some(channel) = self.clients.get(&client) else { continue };
            while let Some(notice) = self.broker.front(&client) {
                let sent = match &notice {
                    Notice::Put(payload) => channel.try_send_payload(payload, &[]),
                    Notice::Remove { topic, key } => channel.try_send(&BusFrame::Remove { topic, key }, &[]),
                    Notice::Synced { topic } => channel.try_send(&BusFrame::Synced { topic }, &[]),
                };
                match sent {
                    Ok(true) => self.broker.sent(&client),
                    Ok(false) => {
                        full.push(client.clone());
                        break;
                    }
                    // The end is told by the loop.
                    Err(FrameError::Closed) => break,
                    Err(error) => {
                        log::error(format_args!("cannot tell {client}: {error}"));
                        self.broker.sent(&client);
                    }
                }
            }
        }
        full
    }
}
