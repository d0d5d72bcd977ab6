// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes: what is there, and the few changes we make.
//!
//! Links this software made carry its group number, so that they are known again after a restart and nobody else's
//! link is ever touched. Numbers are those of `linux/rtnetlink.h`, `if_link.h` and `if_addr.h`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use model::net::{Mac, Prefix4};
use node_core::net::links::{Frames, LinkKind, LinkSeen, Step, Way};
use rustix::io::Errno;

use crate::netlink::{
    Answer, CREATE, EXCL, Message, NetlinkError, REPLACE, Socket, attributes, read_ipv4, read_text, read_u32,
};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;

const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;
const NEIGHBOUR_BYTES: usize = 12;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_LINK_NETNSID: u16 = 37;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_PORT_KIND: u16 = 4;
const INFO_PORT_DATA: u16 = 5;
const PORT_ISOLATED: u16 = 33;
const BRIDGE_MULTICAST_SNOOPING: u16 = 23;
/// Packets that pass the bridge are given to the rules for packets, whatever the switch for all bridges says.
const BRIDGE_CALL_IPTABLES: u16 = 36;
const VETH_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const NDA_DESTINATION: u16 = 1;
const NDA_MAC: u16 = 2;
const NEIGHBOUR_PERMANENT: u16 = 0x80;

const RTA_DESTINATION: u16 = 1;
const RTA_OUT_LINK: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const ROUTE_UNICAST: u8 = 1;

const AF_INET: u8 = 2;
const ETHER: u16 = 1;
const FLAG_UP: u32 = 1;
const FLAG_RUNNING: u32 = 0x40;
const FLAG_PROMISCUOUS: u32 = 0x100;

/// Mark of our links: "SELV".
pub(crate) const GROUP: u32 = 0x5345_4c56;
/// Groups that tell of links, IPv4 addresses and IPv4 routes.
pub(crate) const CHANGES: u32 = 0x1 | 0x10 | 0x40;

/// A link and what hangs on it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) seen: LinkSeen,
    pub(crate) is_ethernet: bool,
    /// Is a port of a bridge or bond.
    pub(crate) has_master: bool,
    /// Up with a carrier.
    pub(crate) is_running: bool,
    pub(crate) gateways: Vec<Ipv4Addr>,
    pub(crate) stats: Stats,
}

/// Counters, as the link itself counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) rx_packets: u64,
    pub(crate) tx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_errors: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_dropped: u64,
}

/// All links of the socket's network namespace by name.
pub(crate) fn links(socket: &mut Socket) -> Result<BTreeMap<String, Link>, NetlinkError> {
    let answers = socket.dump(&Message::new(GET_LINK, 0, &[0; LINK_BYTES]))?;
    let names: BTreeMap<u32, String> = answers
        .iter()
        .filter_map(|answer| Some((link_index(answer)?, read_text(link_attribute(answer, IFLA_IFNAME)?))))
        .collect();
    let mut links: BTreeMap<String, Link> =
        answers.iter().filter_map(|answer| link(answer, &names)).collect();
    let mut of_index = |index: u32, change: &mut dyn FnMut(&mut Link)| {
        names.get(&index).and_then(|name| links.get_mut(name)).map(change);
    };
    for answer in socket.dump(&Message::new(GET_ADDRESS, 0, &fixed_address(0, 0)))? {
        if let Some((index, prefix)) = address(&answer) {
            of_index(index, &mut |link| link.seen.addresses.push(prefix));
        }
    }
    for answer in socket.dump(&Message::new(GET_NEIGHBOUR, 0, &fixed_neighbour(0)))? {
        if let Some((index, address, mac)) = neighbour(&answer) {
            of_index(index, &mut |link| {
                link.seen.neighbours.insert(address, mac);
            });
        }
    }
    for answer in socket.dump(&Message::new(GET_ROUTE, 0, &fixed_route(0, 0, 0)))? {
        if let Some((index, gateway)) = default_route(&answer) {
            of_index(index, &mut |link| link.gateways.push(gateway));
        }
    }
    Ok(links)
}

/// Carries out one step.
pub(crate) fn perform(socket: &mut Socket, step: &Step) -> Result<(), NetlinkError> {
    match step {
        Step::Delete { link } => match socket.request(of_link(DEL_LINK, 0, link)) {
            // Went with its app's namespace in the meantime.
            Err(error) if error.refusal() == Some(Errno::NODEV) => Ok(()),
            result => result,
        },
        Step::AddBridge { link, mac, judges_passing } => {
            socket.request(new_bridge(link, *mac, *judges_passing))
        }
        Step::AddPatch { link, outer } => add_patch(socket, link, outer),
        Step::SetMtu { link, mtu } => set_mtu(socket, link, *mtu),
        Step::AddNeighbour { link, address, mac } => {
            let mut message = neighbour_message(socket, NEW_NEIGHBOUR, CREATE | REPLACE, link, *address)?;
            message.attr(NDA_MAC, &mac.0);
            socket.request(message)
        }
        Step::RemoveNeighbour { link, address } => {
            let message = neighbour_message(socket, DEL_NEIGHBOUR, 0, link, *address)?;
            socket.request(message)
        }
        Step::Listen { link, to } => {
            let flags = if *to == Frames::All { FLAG_PROMISCUOUS } else { 0 };
            socket.request(flags_message(link, flags, FLAG_PROMISCUOUS))
        }
        Step::SetMac { link, mac } => {
            let mut message = of_link(SET_LINK, 0, link);
            message.attr(IFLA_ADDRESS, &mac.0);
            socket.request(message)
        }
        Step::AddAddress { link, address } => change_address(socket, NEW_ADDRESS, link, *address),
        Step::RemoveAddress { link, address } => change_address(socket, DEL_ADDRESS, link, *address),
        Step::Join { link, bridge, way } => join(socket, link, bridge, *way),
        Step::SetUp { link } => set_up(socket, link),
    }
}

/// What a new interface of an app needs at once.
#[derive(Clone, Debug)]
pub(crate) struct NewVeth<'a> {
    pub(crate) link: &'a str,
    pub(crate) inner_name: &'a str,
    pub(crate) inner_mac: Mac,
    pub(crate) namespace: BorrowedFd<'a>,
}

/// Makes both ends, the inner one in its namespace from the start. Both are down.
pub(crate) fn add_veth(socket: &mut Socket, new: &NewVeth<'_>) -> Result<(), NetlinkError> {
    let mut message = of_link(NEW_LINK, CREATE | EXCL, new.link);
    message.ne32(IFLA_GROUP, GROUP).nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
            data.nest(VETH_PEER, |peer| {
                peer.raw(&[0; LINK_BYTES]).text(IFLA_IFNAME, new.inner_name);
                peer.attr(IFLA_ADDRESS, &new.inner_mac.0);
                peer.ne32(IFLA_NET_NS_FD, new.namespace.as_raw_fd().cast_unsigned());
            });
        });
    });
    socket.request(message)
}

pub(crate) fn set_up(socket: &mut Socket, link: &str) -> Result<(), NetlinkError> {
    socket.request(flags_message(link, FLAG_UP, FLAG_UP))
}

/// Sets those flags of `changed` that are in `flags`, and takes away the others of `changed`.
fn flags_message(link: &str, flags: u32, changed: u32) -> Message {
    let mut fixed = [0; LINK_BYTES];
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&changed.to_ne_bytes());
    let mut message = Message::new(SET_LINK, 0, &fixed);
    message.text(IFLA_IFNAME, link);
    message
}

pub(crate) fn set_mtu(socket: &mut Socket, link: &str, mtu: u16) -> Result<(), NetlinkError> {
    let mut message = of_link(SET_LINK, 0, link);
    message.ne32(IFLA_MTU, mtu.into());
    socket.request(message)
}

/// Makes both ends of a pair that stays here. Both are down.
fn add_patch(socket: &mut Socket, link: &str, outer: &str) -> Result<(), NetlinkError> {
    let mut message = of_link(NEW_LINK, CREATE | EXCL, link);
    message.ne32(IFLA_GROUP, GROUP).nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
            data.nest(VETH_PEER, |peer| {
                peer.raw(&[0; LINK_BYTES]).text(IFLA_IFNAME, outer).ne32(IFLA_GROUP, GROUP);
            });
        });
    });
    socket.request(message)
}

/// Takes an address away; one that is not there is fine.
pub(crate) fn remove_address(socket: &mut Socket, index: u32, address: Prefix4) -> Result<(), NetlinkError> {
    match socket.request(address_message(DEL_ADDRESS, 0, index, address)) {
        Err(error) if error.refusal() == Some(Errno::ADDRNOTAVAIL) => Ok(()),
        result => result,
    }
}

/// Adds an address; one that is there already is fine.
pub(crate) fn add_address(socket: &mut Socket, index: u32, address: Prefix4) -> Result<(), NetlinkError> {
    socket.request(address_message(NEW_ADDRESS, CREATE | REPLACE, index, address))
}

/// Adds a route of the main table; `via` of `None` means that the destination is on the link.
pub(crate) fn add_route(
    socket: &mut Socket,
    index: u32,
    to: Prefix4,
    via: Option<Ipv4Addr>,
) -> Result<(), NetlinkError> {
    let scope = if via.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
    let fixed = fixed_route(to.length, TABLE_MAIN, scope);
    let mut message = Message::new(NEW_ROUTE, CREATE | REPLACE, &fixed);
    if to.length > 0 {
        message.attr(RTA_DESTINATION, &to.network().octets());
    }
    message.ne32(RTA_OUT_LINK, index);
    if let Some(gateway) = via {
        message.attr(RTA_GATEWAY, &gateway.octets());
    }
    socket.request(message)
}

/// Adds a default route with a metric, beside those with other metrics.
pub(crate) fn add_way_out(
    socket: &mut Socket,
    index: u32,
    gateway: Ipv4Addr,
    metric: u32,
) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_ROUTE, CREATE | REPLACE, &fixed_route(0, TABLE_MAIN, SCOPE_UNIVERSE));
    message.ne32(RTA_OUT_LINK, index).attr(RTA_GATEWAY, &gateway.octets());
    if metric > 0 {
        message.ne32(RTA_PRIORITY, metric);
    }
    socket.request(message)
}

/// Makes it a port. An isolated one is made so before it comes up, so it never talks to its neighbours.
fn join(socket: &mut Socket, link: &str, bridge: &str, way: Way) -> Result<(), NetlinkError> {
    let index = index_of(socket, bridge)?;
    let mut message = of_link(SET_LINK, 0, link);
    message.ne32(IFLA_MASTER, index);
    socket.request(message)?;
    // A set-link knows nothing of port data, a new-link of an existing link does.
    let mut message = of_link(NEW_LINK, 0, link);
    message.nest(IFLA_LINKINFO, |info| {
        info.text(INFO_PORT_KIND, "bridge").nest(INFO_PORT_DATA, |data| {
            data.attr(PORT_ISOLATED, &[u8::from(way == Way::Isolated)]);
        });
    });
    socket.request(message)
}

fn new_bridge(link: &str, mac: Mac, judges_passing: bool) -> Message {
    let mut message = of_link(NEW_LINK, CREATE | EXCL, link);
    message.ne32(IFLA_GROUP, GROUP).attr(IFLA_ADDRESS, &mac.0).nest(IFLA_LINKINFO, |info| {
        info.text(INFO_KIND, "bridge").nest(INFO_DATA, |data| {
            data.attr(BRIDGE_MULTICAST_SNOOPING, &[0]);
            if judges_passing {
                data.attr(BRIDGE_CALL_IPTABLES, &[1]);
            }
        });
    });
    message
}

fn change_address(socket: &mut Socket, kind: u16, link: &str, address: Prefix4) -> Result<(), NetlinkError> {
    let index = index_of(socket, link)?;
    let flags = if kind == NEW_ADDRESS { CREATE | REPLACE } else { 0 };
    socket.request(address_message(kind, flags, index, address))
}

fn address_message(kind: u16, flags: u16, index: u32, address: Prefix4) -> Message {
    let mut message = Message::new(kind, flags, &fixed_address(address.length, index));
    message.attr(IFA_LOCAL, &address.address.octets()).attr(IFA_ADDRESS, &address.address.octets());
    if address.length < 31 && kind == NEW_ADDRESS {
        message.attr(IFA_BROADCAST, &address.broadcast().octets());
    }
    message
}

fn index_of(socket: &mut Socket, link: &str) -> Result<u32, NetlinkError> {
    let answers = socket.dump(&Message::new(GET_LINK, 0, &[0; LINK_BYTES]))?;
    answers
        .iter()
        .find(|answer| link_attribute(answer, IFLA_IFNAME).map(read_text).as_deref() == Some(link))
        .and_then(link_index)
        .ok_or(NetlinkError::Refused(Errno::NODEV))
}

fn of_link(kind: u16, flags: u16, link: &str) -> Message {
    let mut message = Message::new(kind, flags, &[0; LINK_BYTES]);
    message.text(IFLA_IFNAME, link);
    message
}

fn fixed_address(length: u8, index: u32) -> [u8; ADDRESS_BYTES] {
    let i = index.to_ne_bytes();
    [AF_INET, length, 0, 0, i[0], i[1], i[2], i[3]]
}

fn fixed_neighbour(index: u32) -> [u8; NEIGHBOUR_BYTES] {
    let i = index.to_ne_bytes();
    let [low, high] = NEIGHBOUR_PERMANENT.to_ne_bytes();
    [AF_INET, 0, 0, 0, i[0], i[1], i[2], i[3], low, high, 0, 0]
}

fn neighbour_message(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    link: &str,
    address: Ipv4Addr,
) -> Result<Message, NetlinkError> {
    let index = index_of(socket, link)?;
    let mut message = Message::new(kind, flags, &fixed_neighbour(index));
    message.attr(NDA_DESTINATION, &address.octets());
    Ok(message)
}

/// A neighbour that was entered by hand.
fn neighbour(answer: &Answer) -> Option<(u32, Ipv4Addr, Mac)> {
    let state = u16::from_ne_bytes(answer.body.get(8..10)?.try_into().ok()?);
    let all = attributes(&answer.body, NEIGHBOUR_BYTES);
    let address = all.clone().value_of(NDA_DESTINATION).and_then(read_ipv4)?;
    let mac = all.value_of(NDA_MAC)?.try_into().ok().map(Mac)?;
    let is_ours = answer.body.first() == Some(&AF_INET) && state & NEIGHBOUR_PERMANENT != 0;
    is_ours.then_some((read_u32(answer.body.get(4..)?)?, address, mac))
}

fn fixed_route(length: u8, table: u8, scope: u8) -> [u8; ROUTE_BYTES] {
    [AF_INET, length, 0, 0, table, PROTOCOL_STATIC, scope, ROUTE_UNICAST, 0, 0, 0, 0]
}

fn link_index(answer: &Answer) -> Option<u32> {
    read_u32(answer.body.get(4..)?)
}

fn link_attribute(answer: &Answer, kind: u16) -> Option<&[u8]> {
    attributes(&answer.body, LINK_BYTES).value_of(kind)
}

fn link(answer: &Answer, names: &BTreeMap<u32, String>) -> Option<(String, Link)> {
    let flags = read_u32(answer.body.get(8..)?)?;
    let number = |kind| link_attribute(answer, kind).and_then(read_u32);
    let info = |kind| attributes(link_attribute(answer, IFLA_LINKINFO)?, 0).value_of(kind);
    let master = number(IFLA_MASTER);
    let kind = match info(INFO_KIND).map(read_text).as_deref() {
        Some("bridge") => LinkKind::Bridge,
        Some("veth") => LinkKind::Veth,
        _ => LinkKind::Other,
    };
    let is_isolated = info(INFO_PORT_KIND).map(read_text).as_deref() == Some("bridge")
        && info(INFO_PORT_DATA).and_then(|data| attributes(data, 0).value_of(PORT_ISOLATED))
            == Some(&[1][..]);
    let mac = link_attribute(answer, IFLA_ADDRESS).and_then(|bytes| bytes.try_into().ok()).map(Mac);
    let seen = LinkSeen {
        kind,
        is_ours: number(IFLA_GROUP) == Some(GROUP),
        is_up: flags & FLAG_UP != 0,
        mac,
        bridge: master.and_then(|index| names.get(&index).cloned()),
        is_isolated,
        judges_passing: kind == LinkKind::Bridge
            && info(INFO_DATA).and_then(|data| attributes(data, 0).value_of(BRIDGE_CALL_IPTABLES))
                == Some(&[1][..]),
        is_listening: flags & FLAG_PROMISCUOUS != 0,
        peer: match (kind, link_attribute(answer, IFLA_LINK_NETNSID)) {
            (LinkKind::Veth, None) => number(IFLA_LINK).and_then(|index| names.get(&index).cloned()),
            _ => None,
        },
        mtu: number(IFLA_MTU).unwrap_or_default(),
        addresses: Vec::new(),
        neighbours: BTreeMap::new(),
    };
    let link = Link {
        index: link_index(answer)?,
        seen,
        is_ethernet: answer.body.get(2..4)? == ETHER.to_ne_bytes(),
        has_master: master.is_some(),
        is_running: flags & FLAG_UP != 0 && flags & FLAG_RUNNING != 0,
        gateways: Vec::new(),
        stats: link_attribute(answer, IFLA_STATS64).and_then(stats).unwrap_or_default(),
    };
    Some((read_text(link_attribute(answer, IFLA_IFNAME)?), link))
}

fn stats(bytes: &[u8]) -> Option<Stats> {
    let at = |index: usize| bytes.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_ne_bytes);
    Some(Stats {
        rx_packets: at(0)?,
        tx_packets: at(1)?,
        rx_bytes: at(2)?,
        tx_bytes: at(3)?,
        rx_errors: at(4)?,
        tx_errors: at(5)?,
        rx_dropped: at(6)?,
        tx_dropped: at(7)?,
    })
}

fn address(answer: &Answer) -> Option<(u32, Prefix4)> {
    let (family, length) = (*answer.body.first()?, *answer.body.get(1)?);
    let index = read_u32(answer.body.get(4..)?)?;
    let all = attributes(&answer.body, ADDRESS_BYTES);
    let address =
        all.clone().value_of(IFA_LOCAL).or_else(|| all.value_of(IFA_ADDRESS)).and_then(read_ipv4)?;
    (family == AF_INET && length <= 32).then_some((index, Prefix4 { address, length }))
}

/// A default route of the main table through a gateway.
fn default_route(answer: &Answer) -> Option<(u32, Ipv4Addr)> {
    let fixed = answer.body.get(..ROUTE_BYTES)?;
    let all = attributes(&answer.body, ROUTE_BYTES);
    let table = all.clone().value_of(RTA_TABLE).and_then(read_u32).unwrap_or(u32::from(fixed[4]));
    let is_default =
        fixed[0] == AF_INET && fixed[1] == 0 && table == u32::from(TABLE_MAIN) && fixed[7] == ROUTE_UNICAST;
    if !is_default {
        return None;
    }
    Some((
        all.clone().value_of(RTA_OUT_LINK).and_then(read_u32)?,
        all.value_of(RTA_GATEWAY).and_then(read_ipv4)?,
    ))
}
