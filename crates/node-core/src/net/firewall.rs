// SPDX-License-Identifier: Apache-2.0
//! The node's firewall, made of all networks and interfaces at once.
//!
//! ```text
//! frame of an app ─ bridge prerouting ─ own MAC, own address? ─┬─ input:   DNS and ping of its own gateway
//!                                                              └─ forward: from-app (out-<link>), to-app (in-<link>)
//! packet from outside ─ prerouting: port map? ─ forward: to-app
//! ```
//! Answers pass while the rules stand that let their flow pass, see [`super::marks`]. Frames that pass a switch are in
//! [`super::switch`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::PortRange;
use model::id::NetworkInstanceId;
use model::net::Prefix4;

use super::acl::{Dropped, drop_counter, host_set};
use super::dhcp::{CLIENT_PORT, SERVER_PORT};
use super::marks::Numbers;
use super::rules::{
    Chain, Dispatch, Family, Half, HookKind, HookPoint, Is, LimitUnit, Match, Rule, Ruleset, TCP, Table, UDP,
    Verdict,
};
use super::{Network, Placed, switch};

const DNS_PORT: PortRange = PortRange { first: 53, last: 53 };
/// Addresses of the link, RFC 3927: nothing routed may go there.
const LINK_LOCAL: Prefix4 = Prefix4 { address: Ipv4Addr::new(169, 254, 0, 0), length: 16 };
/// Messages of one DHCP client that are taken: one that works sends a few and waits.
pub(super) const DHCP_PER_S: u64 = 10;
pub(super) const DHCP_BURST: u32 = 20;
/// Before anything else of the bridge family.
pub(super) const PRIORITY_BRIDGE_FIRST: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
pub(super) const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

pub(super) fn ruleset(
    networks: &BTreeMap<NetworkInstanceId, Network<'_>>,
    vifs: &BTreeMap<&str, Placed<'_>>,
    ports: &BTreeSet<String>,
    numbers: &Numbers,
) -> Ruleset {
    if networks.is_empty() {
        return between_ports(ports);
    }
    let mut by_number: Vec<&Network<'_>> = networks.values().collect();
    by_number.sort_by_key(|network| network.desired.number);
    let mut inet = Table::default();
    let (locals, switches): (Vec<&Network<'_>>, Vec<&Network<'_>>) =
        by_number.into_iter().partition(|network| network.local().is_some());
    let is_local = |vif: &Placed<'_>| networks[&vif.desired.network].local().is_some();
    let (routed, switched): (BTreeMap<&str, &Placed<'_>>, BTreeMap<&str, &Placed<'_>>) =
        vifs.iter().map(|(link, vif)| (*link, vif)).partition(|(_, vif)| is_local(vif));
    input(&mut inet, &locals);
    forward(&mut inet, &locals, &routed, ports);
    inet.chains.insert("answers".to_string(), Chain::of(answers(numbers)));
    nat(&mut inet, &locals, networks, &routed);
    switch::judge(&mut inet, &switches, &switched);
    for (link, vif) in vifs {
        inet.chains.insert(format!("out-{link}"), Chain::of(vif.acl.out.clone()));
        inet.chains.insert(format!("in-{link}"), Chain::of(vif.acl.into.clone()));
        for half in [Half::Out, Half::In] {
            inet.counters.insert(drop_counter(link, half, Dropped::Denied));
            inet.counters.insert(drop_counter(link, half, Dropped::Rate));
        }
        let number = networks[&vif.desired.network].desired.number;
        inet.host_sets.extend(vif.acl.hosts.iter().map(|host| host_set(number, host)));
    }
    let mut bridge = identities(&routed);
    switch::guard(&mut bridge, &switches, &switched);
    Ruleset { tables: BTreeMap::from([(Family::Inet, inet), (Family::Bridge, bridge)]) }
}

fn bridges(networks: &[&Network<'_>]) -> BTreeSet<String> {
    networks.iter().map(|network| network.bridge.clone()).collect()
}

/// A packet of an answer: it passes while every rule stands that let its flow pass.
fn answers(numbers: &Numbers) -> Vec<Rule> {
    let stands = |half| Match::FlowMark(half, numbers.standing(half));
    vec![
        Rule::new([Match::FlowMarked(Is::So), stands(Half::Out), stands(Half::In)], Verdict::Accept),
        Rule::new([], Verdict::Drop),
    ]
}

/// Errors about flows pass, answers are asked for the rules of their flows.
pub(super) fn known_flows() -> Vec<Rule> {
    vec![
        Rule::new([Match::Related], Verdict::Accept),
        Rule::new([Match::Established, Match::ReplyDirection], Verdict::Goto("answers".to_string())),
    ]
}

/// What apps may reach on the node, and that nobody else reaches the gateways.
fn input(table: &mut Table, networks: &[&Network<'_>]) {
    if networks.is_empty() {
        return;
    }
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Input, PRIORITY_FILTER);
    base.rules.push(Rule::new(
        [Match::InLink(Is::So, bridges(networks))],
        Verdict::Goto("from-app-to-node".to_string()),
    ));
    let gateways = networks.iter().filter_map(|network| Some(network.local()?.gateway)).collect();
    base.rules.push(Rule::new(
        [Match::InLink(Is::Not, one("lo")), Match::DestinationAmong(gateways)],
        Verdict::Drop,
    ));
    table.chains.insert("input".to_string(), base);

    // Flows with the node itself have no rules of apps.
    let mut rules = vec![
        Rule::new([Match::Related], Verdict::Accept),
        Rule::new([Match::Established, Match::ReplyDirection], Verdict::Accept),
    ];
    let dhcp = [
        Match::InLink(Is::So, bridges(networks)),
        Match::Protocol(UDP),
        Match::SourcePort(PortRange { first: CLIENT_PORT, last: CLIENT_PORT }),
        Match::DestinationPort(PortRange { first: SERVER_PORT, last: SERVER_PORT }),
    ];
    rules.push(Rule::new(dhcp, Verdict::Accept));
    for network in networks {
        let Some(local) = network.local() else { continue };
        let at_gateway = |rest: Vec<Match>| {
            let gateway = Prefix4 { address: local.gateway, length: 32 };
            let mut all = vec![Match::InLink(Is::So, one(&network.bridge)), Match::Destination(gateway)];
            all.extend(rest);
            Rule::new(all, Verdict::Accept)
        };
        rules.push(at_gateway(vec![Match::Protocol(UDP), Match::DestinationPort(DNS_PORT)]));
        rules.push(at_gateway(vec![Match::Protocol(TCP), Match::DestinationPort(DNS_PORT)]));
        rules.push(at_gateway(vec![Match::IcmpEchoRequest]));
    }
    rules.push(Rule::new([], Verdict::Drop));
    table.chains.insert("from-app-to-node".to_string(), Chain::of(rules));
}

fn forward(
    table: &mut Table,
    networks: &[&Network<'_>],
    vifs: &BTreeMap<&str, &Placed<'_>>,
    ports: &BTreeSet<String>,
) {
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Forward, PRIORITY_FILTER);
    let bridges = bridges(networks);
    if !bridges.is_empty() {
        let from = [Match::InLink(Is::So, bridges.clone())];
        base.rules.push(Rule::new(from, Verdict::Jump("from-app".to_string())));
        let to = [Match::OutLink(Is::So, bridges.clone())];
        base.rules.push(Rule::new(to, Verdict::Jump("to-app".to_string())));
    }
    base.rules.extend(no_router(ports));
    table.chains.insert("forward".to_string(), base);
    if bridges.is_empty() {
        return;
    }

    let mut from = known_flows();
    from.push(Rule::new([Match::Destination(LINK_LOCAL)], Verdict::Drop));
    for network in networks {
        let mut allowed = network.uplinks.clone();
        allowed.insert(network.bridge.clone());
        let mut matches = vec![Match::InLink(Is::So, one(&network.bridge)), Match::OutLink(Is::Not, allowed)];
        if !network.uplinks.is_empty() {
            // A neighbour network may be reached as the outside reaches it: by its port maps.
            matches.push(Match::PortMapped(Is::Not));
        }
        from.push(Rule::new(matches, Verdict::Drop));
    }
    let chains = |prefix: &str| {
        vifs.iter()
            .filter_map(|(link, vif)| Some((vif.desired.address?, format!("{prefix}-{link}"))))
            .collect()
    };
    if !vifs.is_empty() {
        from.push(Rule::new([], Verdict::Dispatch(Dispatch::Source(chains("out")))));
    }
    from.push(Rule::new([], Verdict::Drop));
    table.chains.insert("from-app".to_string(), Chain::of(from));

    let mut to = known_flows();
    to.push(Rule::new([Match::InLink(Is::Not, bridges), Match::PortMapped(Is::Not)], Verdict::Drop));
    if !vifs.is_empty() {
        to.push(Rule::new([], Verdict::Dispatch(Dispatch::Destination(chains("in")))));
    }
    to.push(Rule::new([], Verdict::Drop));
    table.chains.insert("to-app".to_string(), Chain::of(to));
}

/// Without networks there is nothing to guard but the way between two ports: forwarding stays on once it was needed.
fn between_ports(ports: &BTreeSet<String>) -> Ruleset {
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Forward, PRIORITY_FILTER);
    base.rules.extend(no_router(ports));
    if base.rules.is_empty() {
        return Ruleset::default();
    }
    let table = Table { chains: BTreeMap::from([("forward".to_string(), base)]), ..Table::default() };
    Ruleset { tables: BTreeMap::from([(Family::Inet, table)]) }
}

/// That forwarding is on for apps does not make the node a router between its ports.
fn no_router(ports: &BTreeSet<String>) -> Option<Rule> {
    let matches = [
        Match::InLink(Is::So, ports.clone()),
        Match::OutLink(Is::So, ports.clone()),
        Match::PortMapped(Is::Not),
    ];
    (ports.len() > 1).then(|| Rule::new(matches, Verdict::Drop))
}

fn nat(
    table: &mut Table,
    networks: &[&Network<'_>],
    by_id: &BTreeMap<NetworkInstanceId, Network<'_>>,
    vifs: &BTreeMap<&str, &Placed<'_>>,
) {
    let mut maps = Vec::new();
    for vif in vifs.values() {
        let addresses = by_id[&vif.desired.network].uplink_addresses();
        let Some(address) = vif.desired.address.filter(|_| !addresses.is_empty()) else { continue };
        for map in &vif.acl.port_maps {
            maps.push(Rule::new(
                [
                    Match::DestinationAmong(addresses.clone()),
                    Match::Protocol(map.protocol),
                    Match::DestinationPort(PortRange { first: map.node_port, last: map.node_port }),
                ],
                Verdict::Dnat { address, port: map.app_port },
            ));
        }
    }
    for (name, point) in [("prerouting", HookPoint::Prerouting), ("output", HookPoint::Output)] {
        let mut base = Chain::hooked(HookKind::Nat, point, PRIORITY_DNAT);
        base.rules.push(Rule::new([], Verdict::Jump("port-maps".to_string())));
        table.chains.insert(name.to_string(), base);
    }
    table.chains.insert("port-maps".to_string(), Chain::of(maps));

    let mut post = Chain::hooked(HookKind::Nat, HookPoint::Postrouting, PRIORITY_SNAT);
    for network in networks.iter().filter(|network| !network.uplinks.is_empty()) {
        let Some(local) = network.local() else { continue };
        post.rules.push(Rule::new(
            [Match::Source(local.subnet), Match::OutLink(Is::So, network.uplinks.clone())],
            Verdict::Masquerade,
        ));
    }
    table.chains.insert("postrouting".to_string(), post);
}

/// Frames an interface may send: IPv4 and ARP, as nobody but itself. And what a DHCP client hears: nothing about others.
fn identities(vifs: &BTreeMap<&str, &Placed<'_>>) -> Table {
    let mut table = Table::default();
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Prerouting, PRIORITY_BRIDGE_FIRST);
    let chains: BTreeMap<String, String> =
        vifs.keys().map(|link| (link.to_string(), format!("only-{link}"))).collect();
    if !chains.is_empty() {
        base.rules.push(Rule::new([], Verdict::Dispatch(Dispatch::InLink(chains))));
    }
    table.chains.insert("prerouting".to_string(), base);
    let mut last = Chain::hooked(HookKind::Filter, HookPoint::Postrouting, PRIORITY_FILTER);
    for (link, vif) in vifs {
        let (mac, Some(address)) = (vif.desired.mac, vif.desired.address) else { continue };
        let nobody = Prefix4 { address: Ipv4Addr::UNSPECIFIED, length: 32 };
        let itself = Prefix4 { address, length: 32 };
        let rules = vec![
            Rule::new([Match::FrameSource(Is::Not, mac)], Verdict::Drop),
            Rule::new([Match::Ipv4Frame, Match::Source(itself)], Verdict::Accept),
            Rule::new([Match::Ipv4Frame, Match::Source(nobody), Match::DhcpFrom(mac)], Verdict::Accept)
                .at_most(DHCP_PER_S, LimitUnit::Second, DHCP_BURST),
            Rule::new([Match::ArpFrame, Match::ArpSender { mac, address: Some(address) }], Verdict::Accept),
            Rule::new([], Verdict::Drop),
        ];
        table.chains.insert(format!("only-{link}"), Chain::of(rules));
        last.rules
            .push(Rule::new([Match::OutLink(Is::So, one(link)), Match::DhcpTo(Is::Not, mac)], Verdict::Drop));
    }
    table.chains.insert("postrouting".to_string(), last);
    table
}

pub(super) fn one(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_string()])
}
