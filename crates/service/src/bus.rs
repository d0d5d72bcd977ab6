// SPDX-License-Identifier: Apache-2.0
//! This process's side of the bus: [`ipc::client`] with a channel. Never waits for the bus.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};

use ipc::broker::BusFrame;
use ipc::client::Client;
use ipc::frame::{Channel, FrameError};
use model::time::Now;

use crate::flight::Recorder;
use crate::log;

/// Frames taken in one go, so that changes of a topic are conflated and other channels get their turn.
const TAKE_FRAMES: usize = 256;

/// The client of the bus. [`crate::Service`] has one; init, which is no service, has its own.
#[derive(Debug, Default)]
pub struct Bus {
    channel: Option<Channel>,
    client: Client,
    pub(crate) recorder: Recorder,
}

impl Deref for Bus {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// What is said through it waits until [`Bus::flush`].
impl DerefMut for Bus {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Bus {
    pub fn install(&mut self, channel: Channel) {
        self.channel = Some(channel);
        self.client.connected();
        self.flush();
    }

    pub fn subscribe(&mut self, topic: &'static str) {
        self.client.subscribe(topic);
        self.flush();
    }

    pub fn publish(&mut self, topic: &'static str, key: &str, value: Vec<u8>) {
        match self.client.publish(topic, key, value.clone()) {
            Ok(false) => {}
            Ok(true) => {
                self.recorder.said(&BusFrame::Put { topic, key, value: &value });
                self.flush();
            }
            Err(error) => log::error(format_args!("{error}")),
        }
    }

    pub fn remove(&mut self, topic: &'static str, key: &str) {
        if self.client.remove(topic, key) {
            self.recorder.said(&BusFrame::Remove { topic, key });
        }
        self.flush();
    }

    pub fn synced(&mut self, topic: &'static str) {
        if self.client.synced(topic) {
            self.recorder.said(&BusFrame::Synced { topic });
        }
        self.flush();
    }

    /// Writes a keyframe when one is due, with a state of the service's own.
    pub(crate) fn keyframe(&mut self, now: Now, state: impl FnOnce() -> Option<Vec<u8>>) {
        if self.recorder.wants_keyframe() {
            self.recorder.keyframe(now, &self.client, state());
        }
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) {
        while let (Some(channel), Some(frame)) = (&self.channel, self.client.front()) {
            match channel.try_send(&frame, &[]) {
                Ok(true) => self.client.sent(),
                Ok(false) => return,
                Err(FrameError::Closed) => self.channel = None,
                Err(error) => {
                    log::error(format_args!("cannot send to the bus: {error}"));
                    self.client.sent();
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
                    let seen = payload.bytes().and_then(|bytes| {
                        let frame = postcard::from_bytes(&bytes)?;
                        self.recorder.seen(&frame);
                        Ok(self.client.see(&frame))
                    });
                    match seen {
                        Ok(topic) => changed.extend(topic),
                        Err(error) => log::error(format_args!("unreadable frame from the bus: {error}")),
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
