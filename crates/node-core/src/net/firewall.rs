// SPDX-License-Identifier: Apache-2.0
//! The node's firewall, made of all networks and interfaces at once.
//!
//! ```text
//! frame of an app ─ bridge prerouting ─ own MAC, own address? ─┬─ input:   DNS and ping of its own gateway
//!                                                              └─ forward: from-app (out-<link>), to-app (in-<link>)
//! packet from outside ─ prerouting: port map? ─ forward: to-app
//! ```
//! Answers pass without their rules being asked; they exist only where a flow was allowed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::PortRange;
use model::id::NetworkInstanceId;
use model::net::Prefix4;

use super::acl::{drop_counter, host_set};
use super::rules::{
    Chain, Dispatch, Family, HookKind, HookPoint, Is, Match, Rule, Ruleset, TCP, Table, UDP, Verdict,
};
use super::{Network, Placed};

const DNS_PORT: PortRange = PortRange { first: 53, last: 53 };
/// Addresses of the link, RFC 3927: nothing routed may go there.
const LINK_LOCAL: Prefix4 = Prefix4 { address: Ipv4Addr::new(169, 254, 0, 0), length: 16 };
/// Before anything else of the bridge family.
const PRIORITY_BRIDGE_FIRST: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

pub(super) fn ruleset(
    networks: &BTreeMap<NetworkInstanceId, Network<'_>>,
    vifs: &BTreeMap<&str, Placed<'_>>,
    ports: &BTreeSet<String>,
) -> Ruleset {
    if networks.is_empty() {
        return between_ports(ports);
    }
    let mut by_number: Vec<&Network<'_>> = networks.values().collect();
    by_number.sort_by_key(|network| network.desired.number);
    let mut inet = Table::default();
    let bridges: BTreeSet<String> = by_number.iter().map(|network| network.bridge.clone()).collect();
    input(&mut inet, &by_number, &bridges);
    forward(&mut inet, &by_number, vifs, &bridges, ports);
    nat(&mut inet, &by_number, networks, vifs);
    for (link, vif) in vifs {
        inet.chains.insert(format!("out-{link}"), Chain::of(vif.acl.out.clone()));
        inet.chains.insert(format!("in-{link}"), Chain::of(vif.acl.into.clone()));
        inet.counters.insert(drop_counter(link));
        let number = networks[&vif.desired.network].desired.number;
        inet.host_sets.extend(vif.acl.hosts.iter().map(|host| host_set(number, host)));
    }
    Ruleset { tables: BTreeMap::from([(Family::Inet, inet), (Family::Bridge, identities(vifs))]) }
}

/// What apps may reach on the node, and that nobody else reaches the gateways.
fn input(table: &mut Table, networks: &[&Network<'_>], bridges: &BTreeSet<String>) {
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Input, PRIORITY_FILTER);
    base.rules.push(Rule::new(
        [Match::InLink(Is::So, bridges.clone())],
        Verdict::Goto("from-app-to-node".to_string()),
    ));
    let gateways = networks.iter().map(|network| network.desired.local.gateway).collect();
    base.rules.push(Rule::new(
        [Match::InLink(Is::Not, one("lo")), Match::DestinationAmong(gateways)],
        Verdict::Drop,
    ));
    table.chains.insert("input".to_string(), base);

    let mut rules = answers();
    for network in networks {
        let at_gateway = |rest: Vec<Match>| {
            let gateway = Prefix4 { address: network.desired.local.gateway, length: 32 };
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
    vifs: &BTreeMap<&str, Placed<'_>>,
    bridges: &BTreeSet<String>,
    ports: &BTreeSet<String>,
) {
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Forward, PRIORITY_FILTER);
    base.rules
        .push(Rule::new([Match::InLink(Is::So, bridges.clone())], Verdict::Jump("from-app".to_string())));
    base.rules
        .push(Rule::new([Match::OutLink(Is::So, bridges.clone())], Verdict::Jump("to-app".to_string())));
    base.rules.extend(no_router(ports));
    table.chains.insert("forward".to_string(), base);

    let mut from = answers();
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
        vifs.iter().map(|(link, vif)| (vif.desired.address, format!("{prefix}-{link}"))).collect()
    };
    if !vifs.is_empty() {
        from.push(Rule::new([], Verdict::Dispatch(Dispatch::Source(chains("out")))));
    }
    from.push(Rule::new([], Verdict::Drop));
    table.chains.insert("from-app".to_string(), Chain::of(from));

    let mut to = answers();
    to.push(Rule::new([Match::InLink(Is::Not, bridges.clone()), Match::PortMapped(Is::Not)], Verdict::Drop));
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
    vifs: &BTreeMap<&str, Placed<'_>>,
) {
    let mut maps = Vec::new();
    for vif in vifs.values() {
        let network = &by_id[&vif.desired.network];
        if network.uplink_addresses.is_empty() {
            continue;
        }
        for map in &vif.acl.port_maps {
            maps.push(Rule::new(
                [
                    Match::DestinationAmong(network.uplink_addresses.clone()),
                    Match::Protocol(map.protocol),
                    Match::DestinationPort(PortRange { first: map.node_port, last: map.node_port }),
                ],
                Verdict::Dnat { address: vif.desired.address, port: map.app_port },
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
        post.rules.push(Rule::new(
            [Match::Source(network.desired.local.subnet), Match::OutLink(Is::So, network.uplinks.clone())],
            Verdict::Masquerade,
        ));
    }
    table.chains.insert("postrouting".to_string(), post);
}

/// Frames an interface may send: IPv4 and ARP, as nobody but itself.
fn identities(vifs: &BTreeMap<&str, Placed<'_>>) -> Table {
    let mut table = Table::default();
    let mut base = Chain::hooked(HookKind::Filter, HookPoint::Prerouting, PRIORITY_BRIDGE_FIRST);
    let chains: BTreeMap<String, String> =
        vifs.keys().map(|link| (link.to_string(), format!("only-{link}"))).collect();
    if !chains.is_empty() {
        base.rules.push(Rule::new([], Verdict::Dispatch(Dispatch::InLink(chains))));
    }
    table.chains.insert("prerouting".to_string(), base);
    for (link, vif) in vifs {
        let (mac, address) = (vif.desired.mac, vif.desired.address);
        let rules = vec![
            Rule::new([Match::FrameSource(Is::Not, mac)], Verdict::Drop),
            Rule::new([Match::Ipv4Frame, Match::Source(Prefix4 { address, length: 32 })], Verdict::Accept),
            Rule::new([Match::ArpFrame, Match::ArpSender { mac, address }], Verdict::Accept),
            Rule::new([], Verdict::Drop),
        ];
        table.chains.insert(format!("only-{link}"), Chain::of(rules));
    }
    table
}

fn answers() -> Vec<Rule> {
    vec![
        Rule::new([Match::Related], Verdict::Accept),
        Rule::new([Match::Established, Match::ReplyDirection], Verdict::Accept),
    ]
}

fn one(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_string()])
}
