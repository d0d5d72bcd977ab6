// SPDX-License-Identifier: Apache-2.0
//! One rule as expressions of the kernel's small machine: load into register 1, compare, decide.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Sets without a name belong to the rule that looks into them and
//! have to be sent before it; they are collected on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::config::PortRange;
use model::net::Mac;
use model::net::Prefix4;
use node_core::net::dhcp::{CLIENT_PORT, SERVER_PORT};
use node_core::net::rules::{
    Dispatch, Effect, Family, Is, Limit, Match, Rule, SHOW_BYTES, SHOW_GROUP, UDP, Verdict,
};

use crate::netlink::Message;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;

const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;

const BASE_LINK: u32 = 0;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

const META_PROTOCOL: u32 = 1;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
const CT_PROTO_DST: u32 = 12;
const CT_DST_IP: u32 = 20;
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;
const STATE_ESTABLISHED: u32 = 2;
const STATE_RELATED: u32 = 4;
const STATUS_DNAT: u32 = 0x20;

const NFPROTO_IPV4: u8 = 2;
const ICMP_ECHO_REQUEST: u8 = 8;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;

const VERDICT_DROP: i32 = 0;
const VERDICT_ACCEPT: i32 = 1;
const VERDICT_JUMP: i32 = -3;
const VERDICT_GOTO: i32 = -4;
const VERDICT_CONTINUE: i32 = -1;
const VERDICT_RETURN: i32 = -5;

const OBJECT_COUNTER: u32 = 1;
const NAT_DNAT: u32 = 1;
/// Space for a link's name: all of it is compared.
const NAME_BYTES: usize = 16;

/// Types of a set's key, as nft prints them.
pub(super) const KEY_IPV4: (u32, u32) = (7, 4);
pub(super) const KEY_MAC: (u32, u32) = (9, 6);
pub(super) const KEY_MARK: (u32, u32) = (19, 4);
pub(super) const KEY_LINK: (u32, u32) = (41, NAME_BYTES as u32);

/// A set that belongs to one rule.
#[derive(Debug)]
pub(super) struct AnonymousSet {
    /// Names it inside the batch.
    pub id: u32,
    pub key: (u32, u32),
    pub elements: Vec<Element>,
    pub is_verdict_map: bool,
}

#[derive(Debug)]
pub(super) struct Element {
    pub key: Vec<u8>,
    /// Chain to go to, in verdict maps.
    pub chain: Option<String>,
}

/// Encodes a rule's expressions into the list attribute that is open in `out`.
pub(super) struct Encoder<'a> {
    pub out: &'a mut Message,
    pub family: Family,
    pub sets: &'a mut Vec<AnonymousSet>,
    /// Number of the next set of the batch.
    pub next_set: &'a mut u32,
    /// Kernel's numbers of links that rules send frames to.
    pub links: &'a BTreeMap<String, u32>,
    /// The rule has made sure that the packet is IPv4.
    is_ipv4: bool,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(
        out: &'a mut Message,
        family: Family,
        sets: &'a mut Vec<AnonymousSet>,
        next_set: &'a mut u32,
        links: &'a BTreeMap<String, u32>,
    ) -> Encoder<'a> {
        Encoder { out, family, sets, next_set, links, is_ipv4: false }
    }

    pub(super) fn rule(&mut self, rule: &Rule) {
        for condition in &rule.matches {
            self.condition(condition);
        }
        if let Some(limit) = rule.limit {
            self.limit(limit);
        }
        for effect in &rule.effects {
            self.effect(effect);
        }
        if let Some(counter) = &rule.counter {
            self.expr("objref", |data| {
                data.be32(1, OBJECT_COUNTER).text(2, counter);
            });
        }
        self.verdict(&rule.verdict);
    }

    fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::MarkFlow(half, number) => {
                self.ct(CT_MARK, None);
                self.bitwise(&(!half.mask()).to_ne_bytes(), &half.place(*number).to_ne_bytes());
                self.ct_set(CT_MARK);
            }
            Effect::MarkPacket(mark) => {
                self.immediate(REG_1, &mark.to_ne_bytes());
                self.expr("meta", |data| {
                    data.be32(2, META_MARK).be32(3, REG_1);
                });
            }
            Effect::Zone(zone) => {
                self.immediate(REG_1, &zone.to_ne_bytes());
                self.ct_set(CT_ZONE);
            }
            Effect::Show(word) => self.expr("log", |data| {
                data.attr(1, &SHOW_GROUP.to_be_bytes()).text(2, word).be32(3, SHOW_BYTES);
            }),
            Effect::Copy(link) => {
                self.link_number(link);
                self.expr("dup", |data| {
                    data.be32(2, REG_1);
                });
            }
        }
    }

    fn link_number(&mut self, link: &str) {
        // Without such a link the number is none, and the kernel drops what is sent there.
        let number = self.links.get(link).copied().unwrap_or(0);
        self.immediate(REG_1, &number.to_ne_bytes());
    }

    fn ct_set(&mut self, key: u32) {
        self.expr("ct", |data| {
            data.be32(2, key).be32(4, REG_1);
        });
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::InLink(is, names) => self.link(META_IIFNAME, *is, names),
            Match::OutLink(is, names) => self.link(META_OIFNAME, *is, names),
            Match::Source(prefix) => {
                self.packet_address(12);
                self.prefix(*prefix);
            }
            Match::Destination(prefix) => {
                self.packet_address(16);
                self.prefix(*prefix);
            }
            Match::DestinationAmong(all) => {
                self.packet_address(16);
                match all.first() {
                    Some(only) if all.len() == 1 => self.cmp(CMP_EQ, &only.octets()),
                    _ => {
                        let keys = all.iter().map(|a| a.octets().to_vec());
                        self.among(Is::So, KEY_IPV4, keys.collect());
                    }
                }
            }
            Match::AskedDestination(prefix) => {
                self.ct(CT_DST_IP, Some(ORIGINAL));
                self.prefix(*prefix);
            }
            Match::SourceInHostSet(set) => {
                self.packet_address(12);
                self.lookup_named(set);
            }
            Match::AskedDestinationInHostSet(set) => {
                self.ct(CT_DST_IP, Some(ORIGINAL));
                self.lookup_named(set);
            }
            Match::Protocol(number) => {
                self.meta(META_L4PROTO);
                self.cmp(CMP_EQ, &[*number]);
            }
            Match::SourcePort(range) => {
                self.payload(BASE_TRANSPORT, 0, 2);
                self.ports(*range);
            }
            Match::DestinationPort(range) => {
                self.payload(BASE_TRANSPORT, 2, 2);
                self.ports(*range);
            }
            Match::AskedDestinationPort(range) => {
                self.ct(CT_PROTO_DST, Some(ORIGINAL));
                self.ports(*range);
            }
            Match::IcmpEchoRequest => {
                self.meta(META_L4PROTO);
                self.cmp(CMP_EQ, &[node_core::net::rules::ICMP]);
                self.payload(BASE_TRANSPORT, 0, 1);
                self.cmp(CMP_EQ, &[ICMP_ECHO_REQUEST]);
            }
            Match::Established => self.flow_bits(CT_STATE, STATE_ESTABLISHED, CMP_NEQ),
            Match::Related => self.flow_bits(CT_STATE, STATE_RELATED, CMP_NEQ),
            Match::ReplyDirection => {
                self.ct(CT_DIRECTION, None);
                self.cmp(CMP_EQ, &[REPLY]);
            }
            Match::PortMapped(Is::So) => self.flow_bits(CT_STATUS, STATUS_DNAT, CMP_NEQ),
            Match::PortMapped(Is::Not) => self.flow_bits(CT_STATUS, STATUS_DNAT, CMP_EQ),
            Match::FlowMark(half, numbers) => {
                self.ct(CT_MARK, None);
                self.mask(&half.mask().to_ne_bytes());
                let keys = numbers.iter().map(|number| half.place(*number).to_ne_bytes().to_vec());
                self.among(Is::So, KEY_MARK, keys.collect());
            }
            Match::FlowMarked(is) => {
                self.ct(CT_MARK, None);
                self.cmp(if *is == Is::So { CMP_NEQ } else { CMP_EQ }, &[0; 4]);
            }
            Match::PacketMark(is, mark) => {
                self.meta(META_MARK);
                self.cmp(equal(*is), &mark.to_ne_bytes());
            }
            Match::FrameSource(is, mac) => {
                self.payload(BASE_LINK, 6, 6);
                self.cmp(equal(*is), &mac.0);
            }
            Match::FrameDestination(is, mac) => {
                self.payload(BASE_LINK, 0, 6);
                self.cmp(equal(*is), &mac.0);
            }
            Match::FrameDestinationAmong(all) => {
                self.payload(BASE_LINK, 0, 6);
                self.among(Is::So, KEY_MAC, all.iter().map(|mac| mac.0.to_vec()).collect());
            }
            Match::GroupFrame(is) => {
                self.payload(BASE_LINK, 0, 1);
                self.mask(&[1]);
                self.cmp(CMP_EQ, &[u8::from(*is == Is::So)]);
            }
            Match::Ipv4Frame => self.frame_type(ETHERTYPE_IPV4),
            Match::ArpFrame => self.frame_type(ETHERTYPE_ARP),
            Match::ArpSender { mac, address } => {
                self.payload(BASE_NETWORK, 0, 4);
                self.cmp(CMP_EQ, &[0, 1, 8, 0]);
                match address {
                    Some(address) => {
                        self.payload(BASE_NETWORK, 8, 10);
                        self.cmp(CMP_EQ, &[&mac.0[..], &address.octets()].concat());
                    }
                    None => {
                        self.payload(BASE_NETWORK, 8, 6);
                        self.cmp(CMP_EQ, &mac.0);
                    }
                }
            }
            Match::DhcpFrom(mac) => self.dhcp((CLIENT_PORT, SERVER_PORT), Is::So, *mac),
            Match::DhcpTo(is, mac) => self.dhcp((SERVER_PORT, CLIENT_PORT), *is, *mac),
            Match::Dhcp => {
                self.packet_protocol(UDP);
                let ports = PortRange { first: SERVER_PORT, last: CLIENT_PORT };
                self.payload(BASE_TRANSPORT, 0, 2);
                self.ports(ports);
                self.payload(BASE_TRANSPORT, 2, 2);
                self.ports(ports);
            }
        }
    }

    /// A message between these ports about this client.
    fn dhcp(&mut self, (from, to): (u16, u16), is: Is, mac: Mac) {
        self.packet_protocol(UDP);
        for (offset, port) in [(0, from), (2, to)] {
            self.payload(BASE_TRANSPORT, offset, 2);
            self.cmp(CMP_EQ, &port.to_be_bytes());
        }
        // Behind the UDP header, at byte 28 of the message.
        self.payload(BASE_TRANSPORT, 36, 6);
        self.cmp(equal(is), &mac.0);
    }

    fn packet_protocol(&mut self, number: u8) {
        self.only_ipv4();
        self.payload(BASE_NETWORK, 9, 1);
        self.cmp(CMP_EQ, &[number]);
    }

    fn frame_type(&mut self, ethertype: u16) {
        self.meta(META_PROTOCOL);
        self.cmp(CMP_EQ, &ethertype.to_be_bytes());
        self.is_ipv4 = ethertype == ETHERTYPE_IPV4;
    }

    /// Loads an address of the IPv4 header, after making sure there is one.
    fn packet_address(&mut self, offset: u32) {
        self.only_ipv4();
        self.payload(BASE_NETWORK, offset, 4);
    }

    fn only_ipv4(&mut self) {
        if !self.is_ipv4 {
            match self.family {
                Family::Inet => {
                    self.meta(META_NFPROTO);
                    self.cmp(CMP_EQ, &[NFPROTO_IPV4]);
                }
                Family::Bridge | Family::Netdev => self.frame_type(ETHERTYPE_IPV4),
            }
            self.is_ipv4 = true;
        }
    }

    fn prefix(&mut self, prefix: Prefix4) {
        if prefix.length < 32 {
            self.mask(&prefix.mask().octets());
        }
        self.cmp(CMP_EQ, &prefix.network().octets());
    }

    fn ports(&mut self, range: PortRange) {
        if range.first == range.last {
            self.cmp(CMP_EQ, &range.first.to_be_bytes());
        } else {
            self.cmp(CMP_GTE, &range.first.to_be_bytes());
            self.cmp(CMP_LTE, &range.last.to_be_bytes());
        }
    }

    fn link(&mut self, key: u32, is: Is, names: &BTreeSet<String>) {
        self.meta(key);
        match names.first() {
            Some(only) if names.len() == 1 => {
                self.cmp(if is == Is::So { CMP_EQ } else { CMP_NEQ }, &link_key(only));
            }
            _ => self.among(is, KEY_LINK, names.iter().map(|name| link_key(name)).collect()),
        }
    }

    fn among(&mut self, is: Is, key: (u32, u32), keys: Vec<Vec<u8>>) {
        let elements = keys.into_iter().map(|key| Element { key, chain: None }).collect();
        let id = self.anonymous(key, elements, false);
        self.expr("lookup", |data| {
            data.text(1, anonymous_name(false)).be32(2, REG_1).be32(4, id);
            if is == Is::Not {
                data.be32(5, 1);
            }
        });
    }

    fn anonymous(&mut self, key: (u32, u32), elements: Vec<Element>, is_verdict_map: bool) -> u32 {
        *self.next_set += 1;
        let id = *self.next_set;
        self.sets.push(AnonymousSet { id, key, elements, is_verdict_map });
        id
    }

    fn lookup_named(&mut self, set: &str) {
        self.expr("lookup", |data| {
            data.text(1, set).be32(2, REG_1);
        });
    }

    fn flow_bits(&mut self, key: u32, bits: u32, op_with_zero: u32) {
        self.ct(key, None);
        self.mask(&bits.to_ne_bytes());
        self.cmp(op_with_zero, &[0; 4]);
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let (code, chain) = match verdict {
            Verdict::Accept => (VERDICT_ACCEPT, None),
            Verdict::Drop => (VERDICT_DROP, None),
            Verdict::Return => (VERDICT_RETURN, None),
            Verdict::Continue => (VERDICT_CONTINUE, None),
            Verdict::Jump(chain) => (VERDICT_JUMP, Some(chain)),
            Verdict::Goto(chain) => (VERDICT_GOTO, Some(chain)),
            Verdict::Dispatch(dispatch) => return self.dispatch(dispatch),
            Verdict::Forward(link) => {
                self.link_number(link);
                return self.expr("fwd", |data| {
                    data.be32(1, REG_1);
                });
            }
            Verdict::Masquerade => return self.expr("masq", |_| {}),
            Verdict::Dnat { address, port } => return self.dnat(*address, *port),
        };
        self.expr("immediate", |data| {
            data.be32(1, REG_VERDICT).nest(2, |value| verdict_data(value, code, chain.map(String::as_str)));
        });
    }

    fn dispatch(&mut self, dispatch: &Dispatch) {
        let by_address = |map: &BTreeMap<Ipv4Addr, String>| {
            map.iter()
                .map(|(a, chain)| Element { key: a.octets().to_vec(), chain: Some(chain.clone()) })
                .collect()
        };
        let by_mac = |map: &BTreeMap<Mac, String>| {
            map.iter()
                .map(|(mac, chain)| Element { key: mac.0.to_vec(), chain: Some(chain.clone()) })
                .collect()
        };
        let by_link = |map: &BTreeMap<String, String>| {
            map.iter()
                .map(|(name, chain)| Element { key: link_key(name), chain: Some(chain.clone()) })
                .collect()
        };
        let (key, elements) = match dispatch {
            Dispatch::InLink(map) => {
                self.meta(META_IIFNAME);
                (KEY_LINK, by_link(map))
            }
            Dispatch::OutLink(map) => {
                self.meta(META_OIFNAME);
                (KEY_LINK, by_link(map))
            }
            Dispatch::FrameSource(map) => {
                self.payload(BASE_LINK, 6, 6);
                (KEY_MAC, by_mac(map))
            }
            Dispatch::FrameDestination(map) => {
                self.payload(BASE_LINK, 0, 6);
                (KEY_MAC, by_mac(map))
            }
            Dispatch::Source(map) => {
                self.packet_address(12);
                (KEY_IPV4, by_address(map))
            }
            Dispatch::Destination(map) => {
                self.packet_address(16);
                (KEY_IPV4, by_address(map))
            }
        };
        let id = self.anonymous(key, elements, true);
        self.expr("lookup", |data| {
            data.text(1, anonymous_name(true)).be32(2, REG_1).be32(3, REG_VERDICT).be32(4, id);
        });
    }

    fn dnat(&mut self, address: Ipv4Addr, port: u16) {
        self.immediate(REG_1, &address.octets());
        self.immediate(REG_2, &port.to_be_bytes());
        self.expr("nat", |data| {
            data.be32(1, NAT_DNAT).be32(2, u32::from(NFPROTO_IPV4));
            data.be32(3, REG_1).be32(4, REG_1).be32(5, REG_2).be32(6, REG_2);
        });
    }

    fn limit(&mut self, limit: Limit) {
        self.expr("limit", |data| {
            data.be64(1, limit.packets).be64(2, limit.per.seconds()).be32(3, limit.burst);
            data.be32(4, 0).be32(5, 0);
        });
    }

    fn meta(&mut self, key: u32) {
        self.expr("meta", |data| {
            data.be32(1, REG_1).be32(2, key);
        });
    }

    fn ct(&mut self, key: u32, direction: Option<u8>) {
        self.expr("ct", |data| {
            data.be32(1, REG_1).be32(2, key);
            if let Some(direction) = direction {
                data.attr(3, &[direction]);
            }
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.expr("payload", |data| {
            data.be32(1, REG_1).be32(2, base).be32(3, offset).be32(4, length);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.bitwise(mask, &vec![0; mask.len()]);
    }

    /// Keeps the bits of `mask` and turns those of `turned`.
    fn bitwise(&mut self, mask: &[u8], turned: &[u8]) {
        self.expr("bitwise", |data| {
            data.be32(1, REG_1).be32(2, REG_1).be32(3, mask.len() as u32);
            data.nest_attr(4, 1, mask).nest_attr(5, 1, turned);
        });
    }

    fn cmp(&mut self, op: u32, value: &[u8]) {
        self.expr("cmp", |data| {
            data.be32(1, REG_1).be32(2, op).nest_attr(3, 1, value);
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expr("immediate", |data| {
            data.be32(1, register).nest_attr(2, 1, value);
        });
    }

    fn expr(&mut self, name: &str, data: impl FnOnce(&mut Message)) {
        self.out.nest(1, |element| {
            element.text(1, name).nest(2, data);
        });
    }
}

const fn equal(is: Is) -> u32 {
    match is {
        Is::So => CMP_EQ,
        Is::Not => CMP_NEQ,
    }
}

/// `NFTA_DATA_VERDICT` with its code and chain.
pub(super) fn verdict_data(value: &mut Message, code: i32, chain: Option<&str>) {
    value.nest(2, |verdict| {
        verdict.be32(1, code.cast_unsigned());
        if let Some(chain) = chain {
            verdict.text(2, chain);
        }
    });
}

/// The verdict of an element of a map.
pub(super) fn goto_data(value: &mut Message, chain: &str) {
    verdict_data(value, VERDICT_GOTO, Some(chain));
}

/// The kernel puts a number for the placeholder.
pub(super) fn anonymous_name(is_map: bool) -> &'static str {
    if is_map { "__map%d" } else { "__set%d" }
}

fn link_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(NAME_BYTES, 0);
    key
}
