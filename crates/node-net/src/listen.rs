// SPDX-License-Identifier: Apache-2.0
//! What the kernel tells of its own accord: packets that rules show, and flows that end.
//!
//! Numbers are those of `linux/netfilter/nfnetlink_log.h` and `nfnetlink_conntrack.h`.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use model::time::WallTime;
use node_core::net::flows::{Count, KernelFlow};
use node_core::net::rules::{SHOW_BYTES, SHOW_GROUP};

use crate::netlink::{Message, NetlinkError, Socket, attributes, read_ipv4, read_text};

const LOG_PACKET: u16 = 4 << 8;
const LOG_CONFIG: u16 = 4 << 8 | 1;
const LOG_CMD: u16 = 1;
const LOG_MODE: u16 = 2;
const LOG_TIMEOUT: u16 = 4;
const LOG_QUEUED: u16 = 5;
const LOG_BIND: u8 = 1;
const LOG_COPY_PACKET: u8 = 2;
const LOG_PAYLOAD: u16 = 9;
const LOG_PREFIX: u16 = 10;

const FLOW_ENDED: u16 = 1 << 8 | 2;
const GROUP_ENDED: u32 = 1 << 2;
const CT_ASKED: u16 = 1;
const CT_REPLY: u16 = 2;
const CT_MARK: u16 = 8;
const CT_SENT: u16 = 9;
const CT_RETURNED: u16 = 10;
const CT_ZONE: u16 = 18;
const CT_TIMES: u16 = 20;

/// Bytes of `struct nfgenmsg`.
const GENERIC_BYTES: usize = 4;
/// Datagrams taken at one turn, before the rest of the process has its own.
const DATAGRAMS_PER_TURN: usize = 64;
const NS_PER_S: u64 = 1_000_000_000;

/// Packets shown by rules.
#[derive(Debug)]
pub(crate) struct Shown(Socket);

impl Shown {
    pub(crate) fn open() -> Result<Shown, NetlinkError> {
        let mut socket = Socket::netfilter_listen(0)?;
        let [high, low] = SHOW_GROUP.to_be_bytes();
        let config = || Message::new(LOG_CONFIG, 0, &[0, 0, high, low]);
        let mut bind = config();
        bind.attr(LOG_CMD, &[LOG_BIND]);
        socket.request(bind)?;
        let mut mode = config();
        let [a, b, c, d] = SHOW_BYTES.to_be_bytes();
        mode.attr(LOG_MODE, &[a, b, c, d, LOG_COPY_PACKET, 0]);
        // One at a time: they are few, and each is waited for.
        mode.be32(LOG_QUEUED, 1).be32(LOG_TIMEOUT, 1);
        socket.request(mode)?;
        Ok(Shown(socket))
    }

    pub(crate) fn fd(&self) -> Result<OwnedFd, NetlinkError> {
        self.0.try_clone_fd()
    }

    /// The word of the rule, and the packet from its network header on.
    pub(crate) fn read(&self, mut each: impl FnMut(&str, &[u8])) {
        self.0.told(DATAGRAMS_PER_TURN, |kind, body| {
            if kind == LOG_PACKET {
                let all = attributes(body, GENERIC_BYTES);
                let word = all.clone().value_of(LOG_PREFIX).map(read_text);
                if let (Some(word), Some(packet)) = (word, all.value_of(LOG_PAYLOAD)) {
                    each(&word, packet);
                }
            }
        });
    }
}

/// Flows that ended. Listens only while someone wants to know.
#[derive(Debug)]
pub(crate) struct Ended {
    socket: Socket,
    is_listening: bool,
}

impl Ended {
    pub(crate) fn open() -> Result<Ended, NetlinkError> {
        Ok(Ended { socket: Socket::netfilter_listen(0)?, is_listening: false })
    }

    pub(crate) fn fd(&self) -> Result<OwnedFd, NetlinkError> {
        self.socket.try_clone_fd()
    }

    pub(crate) fn listen(&mut self, is_wanted: bool) -> Result<(), NetlinkError> {
        if self.is_listening != is_wanted {
            self.socket.join(if is_wanted { GROUP_ENDED } else { 0 })?;
            self.is_listening = is_wanted;
        }
        Ok(())
    }

    /// Says whether some were lost.
    pub(crate) fn read(&self, mut each: impl FnMut(&KernelFlow)) -> bool {
        self.socket.told(DATAGRAMS_PER_TURN, |kind, body| {
            if kind == FLOW_ENDED
                && let Some(flow) = flow(body)
            {
                each(&flow);
            }
        })
    }
}

fn flow(body: &[u8]) -> Option<KernelFlow> {
    let all = attributes(body, GENERIC_BYTES);
    let nested = |kind| all.clone().value_of(kind).map(|value| attributes(value, 0));
    let (asked, asked_ports, protocol) = tuple(all.clone().value_of(CT_ASKED)?)?;
    let (reply, reply_ports, _) = tuple(all.clone().value_of(CT_REPLY)?)?;
    let count = |kind| {
        let of = |inner| nested(kind)?.value_of(inner)?.try_into().ok().map(u64::from_be_bytes);
        Count { packets: of(1).unwrap_or(0), bytes: of(2).unwrap_or(0) }
    };
    let time = |inner| {
        let ns = nested(CT_TIMES)?.value_of(inner)?.try_into().ok().map(u64::from_be_bytes)?;
        let seconds = i64::try_from(ns / NS_PER_S).ok()?;
        Some(WallTime { seconds, nanos: (ns % NS_PER_S) as u32 })
    };
    let mark = all.clone().value_of(CT_MARK).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
    let zone = all.clone().value_of(CT_ZONE).and_then(|value| value.try_into().ok()).map(u16::from_be_bytes);
    Some(KernelFlow {
        protocol,
        asked,
        asked_ports,
        reply,
        reply_ports,
        mark: mark.unwrap_or(0),
        zone: zone.unwrap_or(0),
        sent: count(CT_SENT),
        returned: count(CT_RETURNED),
        started: time(1),
        ended: time(2),
    })
}

type Tuple = ((Ipv4Addr, Ipv4Addr), (u16, u16), u8);

/// Source and destination of one direction; `None` for IPv6.
fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let all = attributes(bytes, 0);
    let addresses = attributes(all.clone().value_of(1)?, 0);
    let address = |kind| addresses.clone().value_of(kind).and_then(read_ipv4);
    let protocol = attributes(all.value_of(2)?, 0);
    let port = |kind| {
        let value = protocol.clone().value_of(kind).and_then(|value| value.try_into().ok());
        value.map_or(0, u16::from_be_bytes)
    };
    let number = *protocol.clone().value_of(1)?.first()?;
    Some(((address(1)?, address(2)?), (port(2), port(3)), number))
}
