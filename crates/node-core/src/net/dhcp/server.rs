// SPDX-License-Identifier: Apache-2.0
//! What the node says to a DHCP client of a local network.
//!
//! An interface has one address and keeps it; whoever has its MAC may have it as often as it likes. That MACs are true,
//! in the frame and in the message, is seen to by the rules for frames. Apps are told the mask of the subnet; a
//! neighbour's address is answered for by the bridge, so packets for it are routed and judged all the same.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::net::{Mac, Prefix4};

use super::message::{self, Kind, Message};

/// How long an app may keep its address without asking: what EVE's apps are told.
pub const LEASE_S: u32 = 3600;
/// Options in order of need: what does not fit is left out from the end.
const ORDER: [u8; 13] = [
    message::SERVER_ID,
    message::LEASE_TIME,
    message::SUBNET_MASK,
    message::ROUTES,
    message::ROUTER,
    message::DNS,
    message::RENEW_TIME,
    message::REBIND_TIME,
    message::BROADCAST,
    message::MTU,
    message::DOMAIN,
    message::HOST_NAME,
    message::NTP,
];

/// One local network, as its DHCP server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The server's own address.
    pub gateway: Ipv4Addr,
    pub subnet: Prefix4,
    pub mtu: u16,
    /// Empty: none.
    pub domain: String,
    pub ntp: Vec<Ipv4Addr>,
    pub hosts: BTreeMap<Mac, Host>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub address: Ipv4Addr,
    pub name: String,
    /// Carries the app's default route.
    pub is_default: bool,
    /// Destinations it reaches through the gateway, besides the subnet.
    pub routes: Vec<Prefix4>,
}

/// A datagram on its way to an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub message: Message,
    /// `None`: to everyone on the link.
    pub to: Option<Ipv4Addr>,
    /// Bytes the client takes.
    pub room: usize,
}

impl Reply {
    pub fn encode(&self) -> Vec<u8> {
        self.message.encode(&ORDER, self.room)
    }
}

/// Decides on one message; `None`: not for this server, or nothing to say. `from` is the address it came from.
pub fn answer(scope: &Scope, asked: &Message, from: Ipv4Addr) -> Option<Reply> {
    let host = scope.hosts.get(&asked.mac)?;
    let is_own = from == Ipv4Addr::UNSPECIFIED || from == host.address;
    // Behind a relay there is nobody of ours.
    if !is_own || asked.relay != Ipv4Addr::UNSPECIFIED {
        return None;
    }
    let is_for_other = asked.address(message::SERVER_ID).is_some_and(|server| server != scope.gateway);
    let reply = match asked.kind {
        Kind::Discover => lease(scope, host, asked, Kind::Offer),
        Kind::Request if is_for_other => return None,
        Kind::Request => {
            // Asked for by option when it is new, used already when it is renewed.
            let wanted = asked.address(message::REQUESTED_ADDRESS).unwrap_or(asked.client);
            if wanted == host.address { lease(scope, host, asked, Kind::Ack) } else { refuse(scope, asked) }
        }
        Kind::Inform => {
            let mut reply = lease(scope, host, asked, Kind::Ack);
            reply.yours = Ipv4Addr::UNSPECIFIED;
            for code in [message::LEASE_TIME, message::RENEW_TIME, message::REBIND_TIME] {
                reply.options.remove(&code);
            }
            reply
        }
        Kind::Decline | Kind::Release | Kind::Offer | Kind::Ack | Kind::Nak => return None,
    };
    let room = asked.half(message::MAX_SIZE).map_or(0, |size| usize::from(size).saturating_sub(28));
    let to = match reply.kind {
        Kind::Nak => None,
        _ if asked.client != Ipv4Addr::UNSPECIFIED => Some(host.address),
        _ if asked.wants_broadcast => None,
        _ => Some(host.address),
    };
    Some(Reply { message: reply, to, room: room.max(message::USUAL_BYTES) })
}

fn lease(scope: &Scope, host: &Host, asked: &Message, kind: Kind) -> Message {
    let mut reply = Message::new(kind, asked.transaction, asked.mac);
    reply.wants_broadcast = asked.wants_broadcast;
    reply.client = if kind == Kind::Ack { asked.client } else { Ipv4Addr::UNSPECIFIED };
    reply.yours = host.address;
    let on_link = Ipv4Addr::UNSPECIFIED;
    let gateway = scope.gateway;
    // Who understands this list must not look at the router, RFC 3442: all of it stands here again.
    let mut routes = vec![(Prefix4 { address: gateway, length: 32 }, on_link), (scope.subnet, gateway)];
    routes.extend(host.routes.iter().map(|to| (*to, gateway)));
    let mut options = BTreeMap::from([
        (message::SERVER_ID, message::list(&[gateway])),
        (message::LEASE_TIME, LEASE_S.to_be_bytes().to_vec()),
        (message::RENEW_TIME, (LEASE_S / 2).to_be_bytes().to_vec()),
        (message::REBIND_TIME, (LEASE_S / 8 * 7).to_be_bytes().to_vec()),
        (message::SUBNET_MASK, message::list(&[scope.subnet.mask()])),
        (message::BROADCAST, message::list(&[scope.subnet.broadcast()])),
        (message::DNS, message::list(&[gateway])),
        (message::HOST_NAME, host.name.clone().into_bytes()),
    ]);
    if host.is_default {
        options.insert(message::ROUTER, message::list(&[gateway]));
        routes.push((Prefix4 { address: Ipv4Addr::UNSPECIFIED, length: 0 }, gateway));
    }
    options.insert(message::ROUTES, message::route_list(&routes));
    if scope.mtu != 0 {
        options.insert(message::MTU, scope.mtu.to_be_bytes().to_vec());
    }
    if !scope.domain.is_empty() {
        options.insert(message::DOMAIN, scope.domain.clone().into_bytes());
    }
    if !scope.ntp.is_empty() {
        options.insert(message::NTP, message::list(&scope.ntp));
    }
    options.retain(|_, value| !value.is_empty());
    reply.options = options;
    reply
}

fn refuse(scope: &Scope, asked: &Message) -> Message {
    let mut reply = Message::new(Kind::Nak, asked.transaction, asked.mac);
    reply.wants_broadcast = true;
    reply.options.insert(message::SERVER_ID, message::list(&[scope.gateway]));
    reply
}
