// SPDX-License-Identifier: Apache-2.0
//! One interface's access rules, from the words of the config to rules of the firewall.
//!
//! Every interface has two chains. `out-<link>` judges what the app sends, `in-<link>` what it is sent. First match
//! decides: allowed packets return to the caller, which may have another interface judge them too; what matches no rule
//! is dropped and counted. Only packets in the direction of their flow's first one come here, so a rule taken away
//! ends the flows it had allowed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{AclAction, AclDirection, AclMatch, AclProtocol, AclRemote, AclRule, PortRange};
use model::desired::VifDesired;
use model::net::Prefix4;
use model::reason::{Fault, Reason};

use super::rules::{ICMP, Is, Limit, LimitUnit, Match, Rule, TCP, UDP, Verdict};

/// Rules one interface may have; each is checked by each new packet.
pub const MAX_RULES: usize = 256;
/// Longest DNS name, RFC 1035 §2.3.4.
const MAX_HOST_NAME: usize = 253;

/// A port of the node that leads to an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMap {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub node_port: u16,
    pub app_port: u16,
}

/// What becomes of one interface's access rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VifAcl {
    pub out: Vec<Rule>,
    pub into: Vec<Rule>,
    pub port_maps: BTreeSet<PortMap>,
    /// DNS names whose addresses are matched.
    pub hosts: BTreeSet<String>,
}

/// Name of the counter of what the rules of this link dropped.
pub fn drop_counter(link: &str) -> String {
    format!("drops-{link}")
}

/// Name of the set with the addresses a name resolved to in this network.
pub fn host_set(network_number: u16, host: &str) -> String {
    let hash = host
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("host-{network_number}-{hash:016x}")
}

/// Reads the rules of one interface. `names` are those the node answers itself: they are known without a lookup, and
/// follow at once when an app moves. Other names are learned from answers of servers.
pub(super) fn vif_acl(
    network_number: u16,
    names: &BTreeMap<String, BTreeSet<Ipv4Addr>>,
    vif: &VifDesired,
) -> Result<VifAcl, Fault> {
    if vif.acl.len() > MAX_RULES {
        return Err(invalid(vif, &format!("has more than {MAX_RULES} access rules")));
    }
    let mut acl =
        VifAcl { out: Vec::new(), into: Vec::new(), port_maps: BTreeSet::new(), hosts: BTreeSet::new() };
    for rule in &vif.acl {
        if let Some(AclRemote::Host(host)) = &rule.matches.remote {
            acl.hosts.insert(host_name(vif, host)?);
        }
        for range in [rule.matches.local_port, rule.matches.remote_port].into_iter().flatten() {
            if range.first > range.last {
                return Err(invalid(
                    vif,
                    &format!("access rule {} has ports {}-{}", rule.id, range.first, range.last),
                ));
            }
        }
        let has_ports = rule.matches.local_port.is_some() || rule.matches.remote_port.is_some();
        if has_ports && !matches!(rule.matches.protocol, None | Some(AclProtocol::Tcp | AclProtocol::Udp)) {
            return Err(invalid(vif, &format!("access rule {} has ports of a protocol without", rule.id)));
        }
        if let AclAction::PortMap { app_port } = rule.action {
            port_map(network_number, vif, rule, app_port, &mut acl)?;
            continue;
        }
        for matches in with_local_names(&rule.matches, names) {
            for protocol in protocols(&matches) {
                if rule.direction != AclDirection::Ingress {
                    push(&mut acl.out, outbound(network_number, &matches, protocol), vif, rule);
                }
                if rule.direction != AclDirection::Egress {
                    push(&mut acl.into, inbound(network_number, &matches, protocol), vif, rule);
                }
            }
        }
    }
    let counter = drop_counter(&vif.host_name);
    acl.out.push(Rule::new([], Verdict::Drop).counted(&counter));
    acl.into.push(Rule::new([], Verdict::Drop).counted(&counter));
    Ok(acl)
}

/// The match as ordered, and for a name one more for each address it or a name below it has in this network.
fn with_local_names(matches: &AclMatch, names: &BTreeMap<String, BTreeSet<Ipv4Addr>>) -> Vec<AclMatch> {
    let mut all = vec![matches.clone()];
    if let Some(AclRemote::Host(host)) = &matches.remote {
        let host = canonical(host);
        let is_meant =
            |name: &str| name.strip_suffix(&*host).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let addresses: BTreeSet<Ipv4Addr> =
            names.iter().filter(|(name, _)| is_meant(name)).flat_map(|(_, here)| here).copied().collect();
        all.extend(addresses.into_iter().map(|address| {
            let remote = Some(AclRemote::Prefix(Prefix4 { address, length: 32 }));
            AclMatch { remote, ..matches.clone() }
        }));
    }
    all
}

fn push(chain: &mut Vec<Rule>, matches: Vec<Match>, vif: &VifDesired, rule: &AclRule) {
    let counter = drop_counter(&vif.host_name);
    match rule.action {
        AclAction::Allow => chain.push(Rule::new(matches, Verdict::Return)),
        AclAction::Drop => chain.push(Rule::new(matches, Verdict::Drop).counted(&counter)),
        AclAction::Limit { rate, per_s, burst } => {
            let limit = limit(rate, per_s, burst);
            chain.push(Rule { limit, ..Rule::new(matches.clone(), Verdict::Return) });
            chain.push(Rule::new(matches, Verdict::Drop).counted(&counter));
        }
        AclAction::PortMap { .. } => {}
    }
}

/// The kernel knows rates per second, minute, hour and day: the largest unit not above the period, rounded down.
fn limit(rate: u32, per_s: u32, burst: u32) -> Option<Limit> {
    let per_s = u64::from(per_s.max(1));
    let per = [LimitUnit::Day, LimitUnit::Hour, LimitUnit::Minute, LimitUnit::Second]
        .into_iter()
        .find(|unit| unit.seconds() <= per_s)
        .unwrap_or(LimitUnit::Second);
    let packets = (u64::from(rate) * per.seconds() / per_s).max(1);
    Some(Limit { packets, per, burst: burst.max(1) })
}

fn port_map(
    network_number: u16,
    vif: &VifDesired,
    rule: &AclRule,
    app_port: u16,
    acl: &mut VifAcl,
) -> Result<(), Fault> {
    let protocol = match rule.matches.protocol {
        Some(AclProtocol::Tcp) => TCP,
        Some(AclProtocol::Udp) => UDP,
        _ => return Err(invalid(vif, &format!("port map {} names neither tcp nor udp", rule.id))),
    };
    let node_port = match rule.matches.local_port {
        Some(PortRange { first, last }) if first == last && first != 0 => first,
        _ => return Err(invalid(vif, &format!("port map {} does not name one port of the node", rule.id))),
    };
    if app_port == 0 {
        return Err(invalid(vif, &format!("port map {} leads to port 0", rule.id)));
    }
    let map = PortMap { protocol, node_port, app_port };
    if acl.port_maps.iter().any(|m| (m.protocol, m.node_port) == (protocol, node_port) && *m != map) {
        return Err(Fault::new(
            Reason::AddressConflict,
            format!("{} maps port {node_port} to two ports of its own", vif.host_name),
        ));
    }
    acl.port_maps.insert(map);
    let single = |port| PortRange { first: port, last: port };
    let mut matches = vec![
        Match::PortMapped(Is::So),
        Match::Protocol(protocol),
        Match::AskedDestinationPort(single(node_port)),
        Match::DestinationPort(single(app_port)),
    ];
    matches.extend(remote_source(network_number, &rule.matches));
    if let Some(range) = rule.matches.remote_port {
        matches.push(Match::SourcePort(range));
    }
    acl.into.push(Rule::new(matches, Verdict::Return));
    Ok(())
}

fn outbound(network_number: u16, matches: &AclMatch, protocol: Option<u8>) -> Vec<Match> {
    let mut out = Vec::new();
    match &matches.remote {
        Some(AclRemote::Prefix(prefix)) if prefix.length > 0 => out.push(Match::AskedDestination(*prefix)),
        Some(AclRemote::Host(host)) => {
            out.push(Match::AskedDestinationInHostSet(host_set(network_number, &canonical(host))));
        }
        Some(AclRemote::Prefix(_)) | None => {}
    }
    out.extend(protocol.map(Match::Protocol));
    out.extend(matches.local_port.map(Match::SourcePort));
    out.extend(matches.remote_port.map(Match::AskedDestinationPort));
    out
}

fn inbound(network_number: u16, matches: &AclMatch, protocol: Option<u8>) -> Vec<Match> {
    let mut into: Vec<Match> = remote_source(network_number, matches).into_iter().collect();
    into.extend(protocol.map(Match::Protocol));
    into.extend(matches.remote_port.map(Match::SourcePort));
    into.extend(matches.local_port.map(Match::DestinationPort));
    into
}

fn remote_source(network_number: u16, matches: &AclMatch) -> Option<Match> {
    match &matches.remote {
        Some(AclRemote::Prefix(prefix)) if prefix.length > 0 => Some(Match::Source(*prefix)),
        Some(AclRemote::Host(host)) => {
            Some(Match::SourceInHostSet(host_set(network_number, &canonical(host))))
        }
        Some(AclRemote::Prefix(_)) | None => None,
    }
}

/// One rule is made for each. Ports without a protocol are meant for both that have them.
fn protocols(matches: &AclMatch) -> Vec<Option<u8>> {
    let has_ports = matches.local_port.is_some() || matches.remote_port.is_some();
    match matches.protocol {
        Some(AclProtocol::Tcp) => vec![Some(TCP)],
        Some(AclProtocol::Udp) => vec![Some(UDP)],
        Some(AclProtocol::Icmp) => vec![Some(ICMP)],
        Some(AclProtocol::Number(number)) => vec![Some(number)],
        None if has_ports => vec![Some(TCP), Some(UDP)],
        None => vec![None],
    }
}

/// Lower case, without the final dot.
pub fn canonical(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn host_name(vif: &VifDesired, host: &str) -> Result<String, Fault> {
    let name = canonical(host);
    let is_dns = !name.is_empty()
        && name.len() <= MAX_HOST_NAME
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    is_dns.then_some(name).ok_or_else(|| invalid(vif, "has an access rule with a host that is no DNS name"))
}

fn invalid(vif: &VifDesired, what: &str) -> Fault {
    Fault::new(Reason::InvalidConfig, format!("{} {what}", vif.host_name))
}
