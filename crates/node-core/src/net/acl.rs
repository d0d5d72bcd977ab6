// SPDX-License-Identifier: Apache-2.0
//! One interface's access rules, from the words of the config to rules of the firewall.
//!
//! Every interface has two chains. `out-<link>` judges what the app sends, `in-<link>` what it is sent. First match
//! decides: allowed packets return to the caller, which may have another interface judge them too; what matches no rule
//! is dropped and counted. Only packets in the direction of their flow's first one come here; each leaves the number of
//! the rule that let it pass in its flow's mark, and an answer passes while that rule stands. So a rule taken away ends
//! the flows it had allowed, both ways and at once.

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

use super::marks::Numbers;
use super::rules::{Effect, Half, ICMP, Is, Limit, LimitUnit, Match, Rule, TCP, UDP, Verdict, fnv64};

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

/// A packet that is recorded for the flow log, at most so many: floods are dropped all the same.
const SHOWN_PER_S: u64 = 10;
const SHOWN_BURST: u32 = 20;

/// What becomes of one interface's access rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VifAcl {
    pub out: Vec<Rule>,
    pub into: Vec<Rule>,
    pub port_maps: BTreeSet<PortMap>,
    /// DNS names whose addresses are matched.
    pub hosts: BTreeSet<String>,
}

/// Why packets of an interface were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No rule let them pass, or one forbade it.
    Denied,
    /// They were more than a rule's rate.
    Rate,
}

/// Name of the counter of what the rules of this link dropped of what its app sent, or of what it was sent.
pub fn drop_counter(link: &str, half: Half, dropped: Dropped) -> String {
    let why = match dropped {
        Dropped::Denied => "drops",
        Dropped::Rate => "rate",
    };
    format!("{why}-{}-{link}", direction(half))
}

pub(super) const fn direction(half: Half) -> &'static str {
    match half {
        Half::Out => "out",
        Half::In => "in",
    }
}

/// The word under which a packet dropped by a rule is shown.
pub(super) fn drop_word(link: &str, half: Half, id: i32) -> String {
    format!("drop {link} {} {id}", direction(half))
}

/// Reads such a word.
pub fn read_drop_word(word: &str) -> Option<(&str, Half, i32)> {
    let mut words = word.split(' ');
    let (first, link) = (words.next()?, words.next()?);
    let half = match words.next()? {
        "out" => Half::Out,
        "in" => Half::In,
        _ => return None,
    };
    (first == "drop").then_some((link, half, words.next()?.parse().ok()?))
}

/// Name of the set with the addresses a name resolved to in this network.
pub fn host_set(network_number: u16, host: &str) -> String {
    let hash = fnv64(host);
    format!("host-{network_number}-{hash:016x}")
}

/// What rules need to know of their network.
pub(super) struct Place<'a> {
    pub number: u16,
    pub names: &'a BTreeMap<String, BTreeSet<Ipv4Addr>>,
    pub is_switch: bool,
    pub is_flow_logged: bool,
}

/// Reads the rules of one interface. `names` are those the node answers itself: they are known without a lookup, and
/// follow at once when an app moves. Other names are learned from answers of servers.
pub(super) fn vif_acl(network: &Place<'_>, vif: &VifDesired, numbers: &mut Numbers) -> Result<VifAcl, Fault> {
    let (network_number, names) = (network.number, network.names);
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
        let is_host = matches!(rule.matches.remote, Some(AclRemote::Host(_)));
        if network.is_switch && (is_host || matches!(rule.action, AclAction::PortMap { .. })) {
            let text = format!(
                "{} has access rule {} on a name or with a port map, which a switch cannot have",
                vif.host_name, rule.id
            );
            return Err(Fault::new(Reason::Unsupported, text));
        }
        if let AclAction::PortMap { app_port } = rule.action {
            let number = numbers.next(Half::In, vif, rule)?;
            port_map(network_number, vif, rule, (app_port, number), &mut acl)?;
            continue;
        }
        let is_out = rule.direction != AclDirection::Ingress;
        let is_in = rule.direction != AclDirection::Egress;
        let out_number = if is_out { numbers.next(Half::Out, vif, rule)? } else { 0 };
        let in_number = if is_in { numbers.next(Half::In, vif, rule)? } else { 0 };
        let ruling = |half, number| Ruling { vif, rule, half, number, is_shown: network.is_flow_logged };
        for matches in with_local_names(&rule.matches, names) {
            for protocol in protocols(&matches) {
                if is_out {
                    let matches = outbound(network_number, &matches, protocol);
                    ruling(Half::Out, out_number).push(&mut acl.out, matches);
                }
                if is_in {
                    let matches = inbound(network_number, &matches, protocol);
                    ruling(Half::In, in_number).push(&mut acl.into, matches);
                }
            }
        }
    }
    let link = &vif.host_name;
    for (half, chain) in [(Half::Out, &mut acl.out), (Half::In, &mut acl.into)] {
        deny(chain, Vec::new(), link, half, network.is_flow_logged.then_some(NO_RULE));
    }
    Ok(acl)
}

/// Id of what is dropped because no rule let it pass.
const NO_RULE: i32 = 0;

/// Drops, and where flows are logged shows some of what it drops.
fn deny(chain: &mut Vec<Rule>, matches: Vec<Match>, link: &str, half: Half, shown: Option<i32>) {
    if let Some(id) = shown {
        let word = drop_word(link, half, id);
        let rule = Rule::new(matches.clone(), Verdict::Continue).with(Effect::Show(word));
        chain.push(rule.at_most(SHOWN_PER_S, LimitUnit::Second, SHOWN_BURST));
    }
    let counter = drop_counter(link, half, Dropped::Denied);
    chain.push(Rule::new(matches, Verdict::Drop).counted(&counter));
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

/// One access rule in one direction.
struct Ruling<'a> {
    vif: &'a VifDesired,
    rule: &'a AclRule,
    half: Half,
    number: u16,
    is_shown: bool,
}

impl Ruling<'_> {
    fn push(&self, chain: &mut Vec<Rule>, matches: Vec<Match>) {
        let (link, half) = (&self.vif.host_name, self.half);
        let pass = |matches| Rule::new(matches, Verdict::Return).with(Effect::MarkFlow(half, self.number));
        match self.rule.action {
            AclAction::Allow => chain.push(pass(matches)),
            AclAction::Drop => deny(chain, matches, link, half, self.is_shown.then_some(self.rule.id)),
            AclAction::Limit { rate, per_s, burst } => {
                chain.push(Rule { limit: limit(rate, per_s, burst), ..pass(matches.clone()) });
                let counter = drop_counter(link, half, Dropped::Rate);
                chain.push(Rule::new(matches, Verdict::Drop).counted(&counter));
            }
            AclAction::PortMap { .. } => {}
        }
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
    (app_port, number): (u16, u16),
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
    acl.into.push(Rule::new(matches, Verdict::Return).with(Effect::MarkFlow(Half::In, number)));
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
