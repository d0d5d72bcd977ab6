// SPDX-License-Identifier: Apache-2.0
//! Access rules. A rule that cannot be read refuses its whole app: an app never runs with fewer rules than ordered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::config::{AclAction, AclDirection, AclMatch, AclProtocol, AclRemote, AclRule, PortRange};
use model::net::Prefix4;

use super::bad::{Bad, Read, quote};
use crate::wire::config::{Ace, AceAction, AceDirection, AceMatch};

/// `None` for a rule on IPv6 alone, which can match no traffic of ours.
pub(super) fn rule(wire: &Ace) -> Read<Option<AclRule>> {
    let mut matches = AclMatch::default();
    for (index, part) in wire.matches.iter().enumerate() {
        let known = add_match(&mut matches, part).map_err(|bad| bad.at(format!("matches[{index}]")))?;
        if !known {
            return Ok(None);
        }
    }
    let action = match &wire.actions[..] {
        [] => AclAction::Allow,
        [action] => read_action(action).map_err(|bad| bad.at("actions[0]"))?,
        _ => return Err(Bad::unsupported("actions", "more than one action")),
    };
    if let AclAction::PortMap { .. } = action
        && (matches.local_port.is_none_or(|range| range.first != range.last)
            || !matches!(matches.protocol, Some(AclProtocol::Tcp | AclProtocol::Udp)))
    {
        return Err(Bad::invalid("matches", "a port map needs protocol tcp or udp and one lport"));
    }
    let direction = match AceDirection::try_from(wire.dir) {
        Ok(AceDirection::Both) => AclDirection::Both,
        Ok(AceDirection::Ingress) => AclDirection::Ingress,
        Ok(AceDirection::Egress) => AclDirection::Egress,
        Err(_) => return Err(Bad::invalid("dir", format!("{} is no direction", wire.dir))),
    };
    Ok(Some(AclRule { id: wire.id, direction, matches, action }))
}

/// False: matches IPv6 only.
fn add_match(matches: &mut AclMatch, wire: &AceMatch) -> Read<bool> {
    let value = wire.value.as_str();
    match wire.r#type.as_str() {
        "ip" => {
            let Some(prefix) = ip_prefix(value)? else { return Ok(false) };
            once(&mut matches.remote, AclRemote::Prefix(prefix))?;
        }
        "host" if value.is_empty() => return Err(Bad::invalid("value", "empty host")),
        "host" => once(&mut matches.remote, AclRemote::Host(value.to_owned()))?,
        "protocol" => once(&mut matches.protocol, protocol(value)?)?,
        "lport" => once(&mut matches.local_port, port_range(value)?)?,
        "fport" => once(&mut matches.remote_port, port_range(value)?)?,
        other => return Err(Bad::unsupported("type", format!("match {}", quote(other)))),
    }
    Ok(true)
}

fn once<T>(slot: &mut Option<T>, value: T) -> Read<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Bad::unsupported("type", "two conditions of the same kind in one rule")),
    }
}

/// A prefix, or an address; `None` for IPv6.
fn ip_prefix(value: &str) -> Read<Option<Prefix4>> {
    let bad = || Bad::invalid("value", format!("{} is no address or prefix", quote(value)));
    let (address, length) = match value.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| bad())?)),
        None => (value, None),
    };
    match address.parse().map_err(|_| bad())? {
        IpAddr::V4(address) => {
            let length = length.unwrap_or(Ipv4Addr::BITS as u8);
            (u32::from(length) <= Ipv4Addr::BITS).then_some(Some(Prefix4 { address, length })).ok_or_else(bad)
        }
        IpAddr::V6(_) => (u32::from(length.unwrap_or(0)) <= Ipv6Addr::BITS).then_some(None).ok_or_else(bad),
    }
}

fn protocol(value: &str) -> Read<AclProtocol> {
    match value.to_ascii_lowercase().as_str() {
        "tcp" => Ok(AclProtocol::Tcp),
        "udp" => Ok(AclProtocol::Udp),
        "icmp" => Ok(AclProtocol::Icmp),
        other => match other.parse() {
            Ok(1) => Ok(AclProtocol::Icmp),
            Ok(6) => Ok(AclProtocol::Tcp),
            Ok(17) => Ok(AclProtocol::Udp),
            Ok(number) => Ok(AclProtocol::Number(number)),
            Err(_) => Err(Bad::invalid("value", format!("{} is no protocol", quote(value)))),
        },
    }
}

fn port_range(value: &str) -> Read<PortRange> {
    let bad = || Bad::invalid("value", format!("{} is no port or range of ports", quote(value)));
    let (first, last) = value.split_once(['-', ':']).unwrap_or((value, value));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad);
    let range = PortRange { first: port(first)?, last: port(last)? };
    if range.first <= range.last { Ok(range) } else { Err(bad()) }
}

fn read_action(wire: &AceAction) -> Read<AclAction> {
    match (wire.drop, wire.limit, wire.portmap) {
        (false, false, false) => Ok(AclAction::Allow),
        (true, false, false) => Ok(AclAction::Drop),
        (false, true, false) => {
            let per_s = match wire.limitunit.trim_end_matches('s') {
                "" | "second" | "sec" => 1,
                "minute" | "min" => 60,
                "hour" => 3600,
                "day" => 86_400,
                other => {
                    return Err(Bad::invalid("limitunit", format!("{} is no unit of time", quote(other))));
                }
            };
            Ok(AclAction::Limit { rate: wire.limitrate, per_s, burst: wire.limitburst })
        }
        (false, false, true) => match u16::try_from(wire.app_port) {
            Ok(app_port) if app_port != 0 => Ok(AclAction::PortMap { app_port }),
            _ => Err(Bad::invalid("appPort", format!("{} is no port", wire.app_port))),
        },
        _ => Err(Bad::unsupported("", "more than one action")),
    }
}
