// SPDX-License-Identifier: Apache-2.0
//! What processes of the node send each other, when one of them has been taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::boot::{CallFrame, FromInit, LogFrame, ToInit};
use ipc::broker::{Broker, BusFrame, Notice, Rules};
use ipc::calls;
use ipc::frame::{Channel, FrameError};
use ipc::limits::MAX_VALUE_BYTES;
use ipc::manifest::Manifest;
use ipc::shim::{ShimEvent, ShimRequest};
use ipc::topics::{self, Topic};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Numbers;

/// One packet as it is sent, with descriptors of all kinds; the receiver may refuse it, and nothing else.
pub(crate) fn frame(data: &[u8]) {
    let mut numbers = Numbers(data);
    let kinds = numbers.byte();
    let length = usize::from(numbers.byte()) * 8;
    let in_memory = numbers.take(length);
    let packet = numbers.0;
    let fds: Vec<OwnedFd> = (0..kinds & 3).map(|n| descriptor(kinds >> (2 * n + 2), in_memory)).collect();
    let (sender, receiver) = Channel::pair().expect("a pair can be made");
    let all: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !all.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&all)));
    }
    let slices = [std::io::IoSlice::new(packet)];
    let sent =
        rustix::net::sendmsg(&sender, &slices, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    if sent.is_err() {
        return;
    }
    match receiver.try_recv_payload() {
        Ok(Some((payload, fds))) => {
            assert!(payload.len() <= MAX_VALUE_BYTES && fds.len() <= all.len());
            let bytes = payload.bytes().expect("a checked value can be read");
            assert_eq!(bytes.len(), payload.len());
            value(&bytes);
        }
        Ok(None) => panic!("a packet was there"),
        Err(FrameError::Os { call, source }) => panic!("{call}: {source}"),
        Err(_) => {}
    }
}

/// Sealed memory as it should be, memory that can still change, or a pipe.
fn descriptor(kind: u8, content: &[u8]) -> OwnedFd {
    if kind & 3 == 3 {
        return rustix::pipe::pipe().expect("a pipe can be made").0;
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("fuzz", flags).expect("memory can be had");
    rustix::io::write(&fd, content).expect("memory takes all");
    let seals = match kind & 3 {
        0 => SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
        1 => SealFlags::GROW,
        _ => SealFlags::empty(),
    };
    rustix::fs::fcntl_add_seals(&fd, seals).expect("memory can be sealed");
    fd
}

fn read<T: Serialize + DeserializeOwned>(data: &[u8]) {
    if let Ok(value) = postcard::from_bytes::<T>(data) {
        let bytes = postcard::to_allocvec(&value).expect("what was read can be written");
        assert!(postcard::from_bytes::<T>(&bytes).is_ok());
    }
}

fn topic<T: Topic>(data: &[u8]) {
    read::<T::Value>(data);
}

/// The bytes as a value of every kind.
pub(crate) fn value(data: &[u8]) {
    read::<FromInit>(data);
    read::<ToInit>(data);
    read::<LogFrame>(data);
    read::<ShimRequest>(data);
    read::<ShimEvent>(data);
    read::<calls::VaultRequest>(data);
    read::<calls::VaultReply>(data);
    read::<calls::FetchRequest>(data);
    read::<calls::FetchReply>(data);
    read::<calls::LogRequest>(data);
    read::<calls::LogReply>(data);
    read::<calls::NetRequest>(data);
    read::<calls::NetReply>(data);
    read::<calls::InitRequest>(data);
    read::<calls::InitReply>(data);
    topic::<topics::Config>(data);
    topic::<topics::NetworkDesired>(data);
    topic::<topics::VifsDesired>(data);
    topic::<topics::AppDesired>(data);
    topic::<topics::VolumeObserved>(data);
    topic::<topics::AppObserved>(data);
    topic::<topics::AppStatus>(data);
    if let Ok(frame) = postcard::from_bytes::<CallFrame<'_>>(data) {
        assert!(frame.body.len() <= data.len());
    }
    let _ = postcard::from_bytes::<BusFrame<'_>>(data);
}

/// A manifest that is taken grants nothing twice and can be shown.
pub(crate) fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(manifest) = Manifest::parse(&text) {
        for file in &manifest.files {
            assert!(!file.inside().split('/').any(|part| part == ".."), "{:?}", file.path);
        }
        let _ = ipc::manifest::privilege_matrix(std::slice::from_ref(&manifest));
        let _ = ipc::manifest::check_set(&[manifest]);
    }
}

const TOPICS: [(&str, &str); 3] = [("a", "one"), ("b", "one"), ("c", "two")];
const CLIENTS: [&str; 3] = ["one", "two", "three"];

/// Any order of whatever clients do. A reader that took all it is told knows what stands, and no queue grows beyond what
/// there is to know.
pub(crate) fn broker(data: &[u8]) {
    let readers = CLIENTS.map(|client| (client.to_owned(), vec!["a".to_owned(), "c".to_owned()]));
    let mut broker = Broker::new(Rules::new(&TOPICS, &BTreeMap::from(readers)));
    let mut views: BTreeMap<&str, View> = BTreeMap::new();
    let mut numbers = Numbers(data);
    while let Some(choice) = numbers.next() {
        let client = CLIENTS[usize::from(choice & 3) % CLIENTS.len()];
        let topic = ["a", "b", "c", "d"][usize::from(choice >> 2 & 3)];
        let detail = numbers.byte();
        let key = (detail & 15).to_string();
        match choice >> 4 {
            0 => {
                broker.connect(client);
                views.insert(client, View::default());
            }
            1 => {
                broker.disconnect(client);
                views.remove(client);
            }
            2 => {
                if broker.subscribe(client, topic).is_ok()
                    && let Some(view) = views.get_mut(client)
                {
                    view.topics.insert(topic);
                }
            }
            3..=6 => {
                let value = (topic, key.clone(), detail >> 4);
                let _ = broker.put(client, topic, &key, value, usize::from(detail) << 12);
            }
            7..=9 => drop(broker.remove(client, topic, &key)),
            10 => drop(broker.synced(client, topic)),
            _ => tell(&mut broker, client, views.get_mut(client), usize::from(detail)),
        }
        // Two topics it may read, sixteen keys each, and that each is synced.
        assert!(CLIENTS.iter().all(|client| broker.queued(client) <= 2 * 17), "a queue without bound");
    }
    let connected: Vec<&str> = views.keys().copied().collect();
    for client in connected {
        let Some(mut view) = views.remove(client) else { continue };
        tell(&mut broker, client, Some(&mut view), usize::MAX);
        for topic in &view.topics {
            let known = view.values.iter().filter(|((of, _), _)| of == topic);
            let known: BTreeMap<&str, u8> = known.map(|((_, key), value)| (&**key, *value)).collect();
            let stands: BTreeMap<&str, u8> =
                broker.standing(topic).map(|(key, (_, _, value))| (key, *value)).collect();
            assert_eq!(known, stands, "{client} is wrong about {topic}");
        }
    }
}

/// What a reader was told.
#[derive(Default)]
struct View {
    topics: BTreeSet<&'static str>,
    values: BTreeMap<(String, String), u8>,
}

type Value = (&'static str, String, u8);

fn tell(broker: &mut Broker<Value>, client: &str, mut view: Option<&mut View>, most: usize) {
    for _ in 0..most {
        let Some(notice) = broker.front(client) else { return };
        broker.sent(client);
        let Some(view) = view.as_deref_mut() else { continue };
        match notice {
            Notice::Put((topic, key, value)) => {
                view.values.insert((topic.to_owned(), key), value);
            }
            Notice::Remove { topic, key } => {
                view.values.remove(&(topic, key));
            }
            Notice::Synced { .. } => {}
        }
    }
}
