// SPDX-License-Identifier: Apache-2.0
//! One DHCP datagram (RFC 2131 §2, options of RFC 2132, 3396 and 3442), of Ethernet and IPv4 alone.
//!
//! Fixed part of 236 bytes, magic cookie, options of kind, length and value. An option that comes in pieces is put
//! together. Foreign bytes never panic; what is no message is `None`.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::net::{Mac, Prefix4};

/// Larger than any link of ours carries in one piece.
pub const MAX_MESSAGE_BYTES: usize = 1500;
/// Every client takes a datagram of this size, RFC 2131 §2, without its IP and UDP headers.
pub const USUAL_BYTES: usize = 576 - 28;
/// Old relays and clients refuse less, RFC 1542 §2.1.
const LEAST_BYTES: usize = 300;
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const SERVER_NAME: core::ops::Range<usize> = 44..108;
const FILE_NAME: core::ops::Range<usize> = 108..236;
const BROADCAST_FLAG: u16 = 0x8000;
const ETHERNET: [u8; 2] = [1, 6];

const PAD: u8 = 0;
pub const SUBNET_MASK: u8 = 1;
pub const ROUTER: u8 = 3;
pub const DNS: u8 = 6;
pub const HOST_NAME: u8 = 12;
pub const DOMAIN: u8 = 15;
pub const MTU: u8 = 26;
pub const BROADCAST: u8 = 28;
pub const NTP: u8 = 42;
pub const REQUESTED_ADDRESS: u8 = 50;
pub const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;
const KIND: u8 = 53;
pub const SERVER_ID: u8 = 54;
pub const WANTED: u8 = 55;
pub const MAX_SIZE: u8 = 57;
pub const RENEW_TIME: u8 = 58;
pub const REBIND_TIME: u8 = 59;
pub const VENDOR_CLASS: u8 = 60;
pub const CLIENT_ID: u8 = 61;
pub const ROUTES: u8 = 121;
const END: u8 = 255;

/// What a message says (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

const KINDS: [Kind; 8] = [
    Kind::Discover,
    Kind::Offer,
    Kind::Request,
    Kind::Decline,
    Kind::Ack,
    Kind::Nak,
    Kind::Release,
    Kind::Inform,
];

impl Kind {
    /// Said by servers.
    fn is_reply(self) -> bool {
        matches!(self, Kind::Offer | Kind::Ack | Kind::Nak)
    }
}

/// Addresses that do not apply are `0.0.0.0`, as on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub transaction: u32,
    /// The client cannot hear what is sent to an address it does not have yet.
    pub wants_broadcast: bool,
    /// The one the client uses.
    pub client: Ipv4Addr,
    /// The one it may use.
    pub yours: Ipv4Addr,
    pub relay: Ipv4Addr,
    pub mac: Mac,
    /// Without 52 and 53.
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Message {
    pub fn new(kind: Kind, transaction: u32, mac: Mac) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        Message {
            kind,
            transaction,
            wants_broadcast: false,
            client: none,
            yours: none,
            relay: none,
            mac,
            options: BTreeMap::new(),
        }
    }

    pub fn parse(untrusted_bytes: &[u8]) -> Option<Message> {
        let fixed = untrusted_bytes.get(..FIXED_BYTES)?;
        let address =
            |at: usize| fixed.get(at..at + 4)?.try_into().ok().map(|bytes: [u8; 4]| Ipv4Addr::from(bytes));
        let (cookie, options) = untrusted_bytes.get(FIXED_BYTES..)?.split_at_checked(COOKIE.len())?;
        if untrusted_bytes.len() > MAX_MESSAGE_BYTES || fixed.get(1..3)? != ETHERNET || cookie != COOKIE {
            return None;
        }
        let mut all = BTreeMap::new();
        collect(options, &mut all);
        let overload = all.remove(&OVERLOAD).and_then(|value| value.first().copied()).unwrap_or(0);
        if overload & 1 != 0 {
            collect(fixed.get(FILE_NAME)?, &mut all);
        }
        if overload & 2 != 0 {
            collect(fixed.get(SERVER_NAME)?, &mut all);
        }
        all.remove(&OVERLOAD);
        let number = match all.remove(&KIND)?[..] {
            [number] => number,
            _ => return None,
        };
        let kind = *KINDS.get(usize::from(number).checked_sub(1)?)?;
        // 1 is a request, 2 a reply.
        if fixed.first()? != &(1 + u8::from(kind.is_reply())) {
            return None;
        }
        Some(Message {
            kind,
            transaction: u32::from_be_bytes(fixed.get(4..8)?.try_into().ok()?),
            wants_broadcast: u16::from_be_bytes([fixed[10], fixed[11]]) & BROADCAST_FLAG != 0,
            client: address(12)?,
            yours: address(16)?,
            relay: address(24)?,
            mac: Mac(fixed.get(28..34)?.try_into().ok()?),
            options: all,
        })
    }

    /// Writes the message; options in the order given first, then the rest, as long as they fit into `room` bytes.
    pub fn encode(&self, first: &[u8], room: usize) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[0] = 1 + u8::from(self.kind.is_reply());
        bytes[1..3].copy_from_slice(&ETHERNET);
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        let flags = if self.wants_broadcast { BROADCAST_FLAG } else { 0 };
        bytes[10..12].copy_from_slice(&flags.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.client.octets());
        bytes[16..20].copy_from_slice(&self.yours.octets());
        bytes[24..28].copy_from_slice(&self.relay.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes.extend(COOKIE);
        let number = KINDS.iter().zip(1_u8..).find(|(kind, _)| **kind == self.kind).map_or(0, |(_, n)| n);
        bytes.extend([KIND, 1, number]);
        let rest = self.options.keys().filter(|code| !first.contains(code));
        for code in first.iter().chain(rest) {
            let Some(value) = self.options.get(code) else { continue };
            let pieces: Vec<&[u8]> = value.chunks(usize::from(u8::MAX)).collect();
            if bytes.len() + value.len() + 2 * pieces.len() < room.min(MAX_MESSAGE_BYTES) {
                for piece in pieces {
                    bytes.extend([*code, piece.len() as u8]);
                    bytes.extend(piece);
                }
            }
        }
        bytes.push(END);
        bytes.resize(bytes.len().max(LEAST_BYTES), PAD);
        bytes
    }

    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.addresses(code).into_iter().next()
    }

    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let (all, _) = self.options.get(&code).map(Vec::as_slice).unwrap_or_default().as_chunks::<4>();
        all.iter().map(|bytes| Ipv4Addr::from(*bytes)).collect()
    }

    pub fn seconds(&self, code: u8) -> Option<u32> {
        self.options.get(&code)?.as_slice().try_into().ok().map(u32::from_be_bytes)
    }

    pub fn half(&self, code: u8) -> Option<u16> {
        self.options.get(&code)?.as_slice().try_into().ok().map(u16::from_be_bytes)
    }

    /// Routes of option 121: destination, and the way there; `0.0.0.0` is the link itself.
    pub fn routes(&self) -> Vec<(Prefix4, Ipv4Addr)> {
        let mut rest = self.options.get(&ROUTES).map(Vec::as_slice).unwrap_or_default();
        let mut routes = Vec::new();
        while let Some((length, after)) = rest.split_first() {
            let significant = usize::from(length.div_ceil(8));
            if *length > 32 || after.len() < significant + 4 {
                return routes;
            }
            let mut network = [0; 4];
            network[..significant].copy_from_slice(&after[..significant]);
            let mut via = [0; 4];
            via.copy_from_slice(&after[significant..significant + 4]);
            routes.push((Prefix4 { address: network.into(), length: *length }, via.into()));
            rest = &after[significant + 4..];
        }
        routes
    }
}

/// Bytes of a list of addresses.
pub fn list(addresses: &[Ipv4Addr]) -> Vec<u8> {
    addresses.iter().flat_map(|address| address.octets()).collect()
}

/// Bytes of option 121.
pub fn route_list(routes: &[(Prefix4, Ipv4Addr)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (to, via) in routes {
        bytes.push(to.length);
        bytes.extend(&to.network().octets()[..usize::from(to.length.div_ceil(8))]);
        bytes.extend(via.octets());
    }
    bytes
}

/// Takes options up to the end or to what is cut short.
fn collect(mut bytes: &[u8], all: &mut BTreeMap<u8, Vec<u8>>) {
    while let Some((code, rest)) = bytes.split_first() {
        match *code {
            PAD => bytes = rest,
            END => return,
            code => {
                let Some((length, rest)) = rest.split_first() else { return };
                let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else { return };
                all.entry(code).or_default().extend(value);
                bytes = rest;
            }
        }
    }
}

/// Everything that foreign bytes go through, for whoever wants to see that they do no harm: read as a message, written
/// again and read back, and looked at as a packet on a switch.
pub fn take_any_bytes(untrusted_bytes: &[u8]) {
    for word in ["arp nbu1x1", "dhcp nbu1x1", "x"] {
        let _ = crate::net::sighting_of(word, untrusted_bytes);
    }
    let _ = crate::net::flows::DroppedPacket::parse(untrusted_bytes);
    let Some(message) = Message::parse(untrusted_bytes) else { return };
    let _ = (message.routes(), message.addresses(DNS), message.seconds(LEASE_TIME), message.half(MTU));
    let again = Message::parse(&message.encode(&[], MAX_MESSAGE_BYTES));
    debug_assert!(again.is_none_or(|again| again.mac == message.mac && again.kind == message.kind));
}
