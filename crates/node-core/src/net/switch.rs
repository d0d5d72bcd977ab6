// SPDX-License-Identifier: Apache-2.0
//! Switches: apps on layer 2 of an uplink.
//!
//! ```text
//! app ─ veth ─ bn3 (bridge, no address) ─ bp3 ═ bu3 ⇄ eth0 ─ outside
//!                                                      └── the node's own address, untouched
//! ```
//! The uplink is never made a port of a bridge: it carries the node's own address and may be managed by others. Instead
//! frames are led between it and the outer end of a pair of links. What comes in at the uplink for the MAC of an app goes
//! to its switch alone, what is for a group goes there as a copy, all else is none of a switch's business; what comes out
//! of a switch goes out of the uplink, or to another switch on the same one. So nothing that happens to a switch can
//! cost the node its connection, and apps do not reach the node on layer 2.
//!
//! Frames of an app carry its MAC, and its address when that is fixed; only IPv4 and ARP pass. IPv4 is judged by the same
//! chains as in local networks, on the packet's way over the bridge, with its flows in a zone of their own. A packet
//! that was judged carries a mark, and no frame with IPv4 goes on without it: when the kernel does not judge bridged
//! packets, nothing passes. Frames to a group are judged by the rules on receiving, without regard to flows.
//!
//! Addresses come from outside: which one an app has is seen in its ARP and in what DHCP servers tell it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::id::NetworkInstanceId;
use model::net::{Mac, Prefix4};

use super::dhcp::message::{Kind, Message};
use super::firewall::{DHCP_BURST, DHCP_PER_S, PRIORITY_BRIDGE_FIRST, PRIORITY_FILTER, known_flows, one};
use super::rules::{
    Chain, Dispatch, Effect, Family, HookKind, HookPoint, Is, LimitUnit, Match, Rule, Table, Verdict,
};
use super::{Intent, Network, Patch, Placed};

/// On packets that the rules let pass a switch.
const JUDGED: u32 = 0x5e1f_0001;
/// ARP of an app that is looked at: it tells its address now and then, not each time.
const ARP_SHOWN_PER_MINUTE: u64 = 30;
const ARP_SHOWN_BURST: u32 = 10;
const WORD_ARP: &str = "arp";
const WORD_DHCP: &str = "dhcp";

/// Rules for packets that pass a switch.
pub(super) fn judge(table: &mut Table, switches: &[&Network<'_>], vifs: &BTreeMap<&str, &Placed<'_>>) {
    if switches.is_empty() {
        return;
    }
    let bridges: BTreeSet<String> = switches.iter().map(|network| network.bridge.clone()).collect();
    let inside = Match::InLink(Is::So, bridges.clone());
    // Flows of different networks may look the same.
    let mut zones = Chain::hooked(HookKind::Filter, HookPoint::Prerouting, PRIORITY_BRIDGE_FIRST);
    for network in switches {
        let zone = Effect::Zone(network.desired.number);
        zones
            .rules
            .push(Rule::new([Match::InLink(Is::So, one(&network.bridge))], Verdict::Continue).with(zone));
    }
    table.chains.insert("zones".to_string(), zones);

    // First of all: the rules for ports of the node and for local networks are not meant for these.
    for chain in ["forward", "port-maps"] {
        let base = table.chains.entry(chain.to_string()).or_default();
        let verdict = if chain == "forward" { Verdict::Goto("switch".into()) } else { Verdict::Return };
        base.rules.insert(0, Rule::new([inside.clone()], verdict));
    }
    let hook = || Chain::hooked(HookKind::Filter, HookPoint::Input, PRIORITY_FILTER);
    let input = table.chains.entry("input".to_string()).or_insert_with(hook);
    input.rules.insert(0, Rule::new([inside], Verdict::Drop));

    let pass = || Rule::new([], Verdict::Accept).with(Effect::MarkPacket(JUDGED));
    let mut rules = vec![Rule::new([Match::OutLink(Is::Not, bridges)], Verdict::Drop)];
    rules.push(Rule { matches: vec![Match::Related], ..pass() });
    let standing = known_flows().pop().map(|rule| rule.matches).unwrap_or_default();
    rules.push(Rule::new(standing, Verdict::Goto("switch-answers".to_string())));
    rules.push(Rule { matches: vec![Match::Dhcp], ..pass() });
    rules.push(Rule::new([], Verdict::Jump("switch-from".to_string())));
    rules.push(Rule::new([], Verdict::Jump("switch-to".to_string())));
    rules.push(pass());
    table.chains.insert("switch".to_string(), Chain::of(rules));
    let chains = |prefix: &str| -> BTreeMap<Mac, String> {
        vifs.iter().map(|(link, vif)| (vif.desired.mac, format!("{prefix}-{link}"))).collect()
    };
    let by = |dispatch| {
        let rules = if vifs.is_empty() { vec![] } else { vec![Rule::new([], Verdict::Dispatch(dispatch))] };
        Chain::of(rules)
    };
    table.chains.insert("switch-from".to_string(), by(Dispatch::FrameSource(chains("out"))));
    table.chains.insert("switch-to".to_string(), by(Dispatch::FrameDestination(chains("in"))));
    // As for all answers, and marked as judged.
    let mut answers = table.chains.get("answers").cloned().unwrap_or_default();
    if let Some(first) = answers.rules.first_mut() {
        first.effects.push(Effect::MarkPacket(JUDGED));
    }
    table.chains.insert("switch-answers".to_string(), answers);
}

/// Rules for frames: identities on the way in, and nothing unjudged on the way through.
pub(super) fn guard(table: &mut Table, switches: &[&Network<'_>], vifs: &BTreeMap<&str, &Placed<'_>>) {
    if switches.is_empty() {
        return;
    }
    let mut inward = BTreeMap::new();
    let mut onward = BTreeMap::new();
    for (link, vif) in vifs {
        let (mac, address) = (vif.desired.mac, vif.desired.address);
        let mut rules = vec![
            Rule::new([Match::FrameSource(Is::Not, mac)], Verdict::Drop),
            Rule::new([Match::ArpFrame, Match::ArpSender { mac, address }], Verdict::Continue)
                .at_most(ARP_SHOWN_PER_MINUTE, LimitUnit::Minute, ARP_SHOWN_BURST)
                .with(Effect::Show(format!("{WORD_ARP} {link}"))),
            Rule::new([Match::ArpFrame, Match::ArpSender { mac, address }], Verdict::Accept),
            Rule::new([Match::ArpFrame], Verdict::Drop),
            Rule::new([Match::DhcpFrom(mac)], Verdict::Accept).at_most(
                DHCP_PER_S,
                LimitUnit::Second,
                DHCP_BURST,
            ),
        ];
        let mut ip = vec![Match::Ipv4Frame];
        ip.extend(address.map(|address| Match::Source(Prefix4 { address, length: 32 })));
        rules.push(Rule::new(ip, Verdict::Accept));
        rules.push(Rule::new([], Verdict::Drop));
        table.chains.insert(format!("only-{link}"), Chain::of(rules));
        inward.insert(link.to_string(), format!("only-{link}"));

        let mut rules = vec![
            Rule::new([Match::ArpFrame], Verdict::Accept),
            Rule::new([Match::Ipv4Frame, Match::DhcpTo(Is::So, mac)], Verdict::Accept)
                .with(Effect::Show(format!("{WORD_DHCP} {link}"))),
            Rule::new([Match::DhcpTo(Is::Not, mac)], Verdict::Drop),
            Rule::new([Match::GroupFrame(Is::Not), Match::PacketMark(Is::So, JUDGED)], Verdict::Accept),
            Rule::new([Match::GroupFrame(Is::Not)], Verdict::Drop),
        ];
        rules.extend(vif.acl.into.iter().filter_map(without_flow));
        rules.push(Rule::new([], Verdict::Drop));
        table.chains.insert(format!("into-{link}"), Chain::of(rules));
        onward.insert(link.to_string(), format!("into-{link}"));
    }
    let out = vec![
        Rule::new([Match::ArpFrame], Verdict::Accept),
        Rule::new([Match::PacketMark(Is::So, JUDGED)], Verdict::Accept),
        Rule::new([], Verdict::Drop),
    ];
    for network in switches {
        let (inner, _) = patch_names(network);
        onward.insert(inner, "into-uplink".to_string());
    }
    table.chains.insert("into-uplink".to_string(), Chain::of(out));
    let base = table
        .chains
        .entry("prerouting".to_string())
        .or_insert_with(|| Chain::hooked(HookKind::Filter, HookPoint::Prerouting, PRIORITY_BRIDGE_FIRST));
    if !inward.is_empty() {
        base.rules.push(Rule::new([], Verdict::Dispatch(Dispatch::InLink(inward))));
    }
    let mut forward = Chain::hooked(HookKind::Filter, HookPoint::Forward, PRIORITY_FILTER);
    forward.rules.push(Rule::new([], Verdict::Dispatch(Dispatch::OutLink(onward))));
    table.chains.insert("forward".to_string(), forward);
}

/// A rule on receiving for a frame that has several receivers: it decides by itself, and leaves no mark on the flow.
fn without_flow(rule: &Rule) -> Option<Rule> {
    let verdict = match rule.verdict {
        Verdict::Return => Verdict::Accept,
        Verdict::Drop => Verdict::Drop,
        _ => return None,
    };
    Some(Rule { effects: Vec::new(), counter: None, verdict, ..rule.clone() })
}

fn patch_names(network: &Network<'_>) -> (String, String) {
    (format!("bp{}", network.desired.number), format!("bu{}", network.desired.number))
}

/// An uplink's own MAC, and its switches with those of their apps.
type Tapped<'a> = (Option<Mac>, Vec<(&'a Network<'a>, BTreeSet<Mac>)>);

/// Links between switches and uplinks, and the rules that lead frames.
pub(super) fn connect(
    intent: &mut Intent,
    standing: &BTreeMap<NetworkInstanceId, Network<'_>>,
    placed: &BTreeMap<&str, Placed<'_>>,
) {
    let mut by_uplink: BTreeMap<&str, Tapped<'_>> = BTreeMap::new();
    for network in standing.values().filter(|network| network.local().is_none()) {
        // One way out: two would be a loop.
        let Some(port) = network.ports.first() else { continue };
        let macs = placed
            .values()
            .filter(|vif| vif.desired.network == network.desired.id)
            .map(|vif| vif.desired.mac)
            .collect();
        let (inner, outer) = patch_names(network);
        let patch =
            Patch { bridge: network.bridge.clone(), outer, uplink: port.name.clone(), mtu: network.mtu };
        intent.patches.insert(inner, patch);
        intent.listening.insert(port.name.clone());
        by_uplink.entry(&port.name).or_insert((port.mac, Vec::new())).1.push((network, macs));
    }
    if by_uplink.is_empty() {
        return;
    }
    let mut table = Table::default();
    let to = |network: &Network<'_>, macs: &BTreeSet<Mac>| {
        let outer = patch_names(network).1;
        let copy = Rule::new([Match::GroupFrame(Is::So)], Verdict::Continue);
        let mut rules = vec![copy.with(Effect::Copy(outer.clone()))];
        if !macs.is_empty() {
            rules.push(Rule::new([Match::FrameDestinationAmong(macs.clone())], Verdict::Forward(outer)));
        }
        rules
    };
    for (uplink, (mac, networks)) in by_uplink {
        let mut inward = Chain::ingress(uplink);
        for (network, macs) in &networks {
            inward.rules.extend(to(network, macs));
            let outer = patch_names(network).1;
            let mut outward = Chain::ingress(&outer);
            // The node is not to be reached here, and asking outside for it would lead nowhere.
            outward
                .rules
                .extend(mac.map(|mac| Rule::new([Match::FrameDestination(Is::So, mac)], Verdict::Drop)));
            for (other, macs) in networks.iter().filter(|(other, _)| other.bridge != network.bridge) {
                outward.rules.extend(to(other, macs));
            }
            outward.rules.push(Rule::new([], Verdict::Forward(uplink.to_string())));
            table.chains.insert(format!("from-{outer}"), outward);
        }
        table.chains.insert(format!("from-{uplink}"), inward);
    }
    intent.taps.tables.insert(Family::Netdev, table);
}

/// An address an app was seen to have, or to have no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Node's end of the interface.
    pub link: String,
    pub address: Ipv4Addr,
    /// How long it is good for without being seen again.
    pub lasts_s: u32,
}

/// After this time without ARP an address is no longer believed, as in EVE.
const ARP_LASTS_S: u32 = 600;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Reads a packet that was shown by the rules above, from its network header on. `None`: it tells no address.
pub fn sighting_of(word: &str, untrusted_packet: &[u8]) -> Option<Sighting> {
    let (kind, link) = word.split_once(' ')?;
    let seen = |address: Ipv4Addr, lasts_s| {
        let is_address = !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast();
        is_address.then(|| Sighting { link: link.to_string(), address, lasts_s })
    };
    match kind {
        WORD_ARP => {
            let sender: [u8; 4] = untrusted_packet.get(14..18)?.try_into().ok()?;
            seen(sender.into(), ARP_LASTS_S)
        }
        WORD_DHCP => {
            let header = usize::from(untrusted_packet.first()? & 0x0f) * 4;
            let untrusted_message = untrusted_packet.get(header.max(IPV4_HEADER) + UDP_HEADER..)?;
            let message = Message::parse(untrusted_message).filter(|message| message.kind == Kind::Ack)?;
            let lasts_s = message.seconds(super::dhcp::message::LEASE_TIME).unwrap_or(ARP_LASTS_S);
            seen(message.yours, lasts_s)
        }
        _ => None,
    }
}
