// SPDX-License-Identifier: Apache-2.0
//! Ports, the networks of ports, and network instances.

use std::net::Ipv4Addr;

use model::config::{
    LocalNetwork, NetworkConfig, NetworkInstance, NetworkInstanceKind, PhysicalIo, PortAddressing,
    SystemAdapter,
};
use model::net::Prefix4;

use super::bad::{Bad, Read, ipv4, ipv4_list, non_empty, prefix4, quote, uuid};
use crate::wire::common::{DhcpType, Ipspec};
use crate::wire::config as wire;

/// Longest prefix that leaves room for a gateway and an app.
const LONGEST_PREFIX: u8 = 30;
/// What every link must carry, RFC 8200 §5; EVE takes no less either.
const SMALLEST_MTU: u16 = 1280;
/// Shortest prefix taken as one network; what is larger is a slip of the pen.
const SHORTEST_PREFIX: u8 = 8;

pub(super) fn physical_io(wire: &wire::PhysicalIo) -> Read<PhysicalIo> {
    if wire.logicallabel.is_empty() {
        return Err(Bad::invalid("logicallabel", "empty"));
    }
    // EVE takes the keys of addresses in any case.
    let interface = wire.phyaddrs.iter().find(|(key, _)| key.eq_ignore_ascii_case("ifname"));
    Ok(PhysicalIo {
        kind: wire.ptype,
        physical_label: wire.phylabel.clone(),
        logical_label: wire.logicallabel.clone(),
        assignment_group: wire.assigngrp.clone(),
        interface: interface.map(|(_, name)| name.clone()).filter(|name| !name.is_empty()),
        usage: wire.usage,
    })
}

pub(super) fn network(wire: &wire::NetworkConfig) -> Read<NetworkConfig> {
    let id = uuid("id", &wire.id)?;
    let addressing = match &wire.ip {
        None => PortAddressing::None,
        Some(ip) => addressing(ip).map_err(|bad| bad.at("ip"))?,
    };
    Ok(NetworkConfig { id, addressing })
}

fn addressing(ip: &Ipspec) -> Read<PortAddressing> {
    Ok(match DhcpType::try_from(ip.dhcp) {
        Ok(DhcpType::Client) => PortAddressing::Dhcp,
        Ok(DhcpType::DhcpNone | DhcpType::DhcpNoop) => PortAddressing::None,
        Ok(DhcpType::Static) => PortAddressing::Static {
            subnet: prefix4("subnet", &ip.subnet)?,
            gateway: non_empty(&ip.gateway, |text| ipv4("gateway", text))?.filter(|a| !a.is_unspecified()),
            dns: ipv4_list("dns", &ip.dns)?,
        },
        Err(_) => return Err(Bad::invalid("dhcp", format!("{} is no kind of addressing", ip.dhcp))),
    })
}

/// The adapter, and its address where the config gives one.
pub(super) fn system_adapter(wire: &wire::SystemAdapter) -> Read<(SystemAdapter, Option<Ipv4Addr>)> {
    if wire.name.is_empty() {
        return Err(Bad::invalid("name", "empty"));
    }
    let adapter = SystemAdapter {
        name: wire.name.clone(),
        lower_layer: wire.lower_layer_name.clone(),
        network: non_empty(&wire.network_uuid, |text| uuid("networkUUID", text))?,
        is_uplink: wire.uplink,
        cost: u8::try_from(wire.cost).unwrap_or(u8::MAX),
        shared_labels: wire.shared_labels.clone(),
    };
    Ok((adapter, non_empty(&wire.addr, |text| ipv4("addr", text))?))
}

pub(super) fn network_instance(wire: &wire::NetworkInstanceConfig) -> Read<NetworkInstance> {
    let id = wire.uuidandversion.as_ref().ok_or_else(|| Bad::invalid("uuidandversion", "missing"))?;
    let kind = match wire::ZNetworkInstType::try_from(wire.inst_type) {
        Ok(wire::ZNetworkInstType::ZnetInstSwitch) => NetworkInstanceKind::Switch,
        Ok(wire::ZNetworkInstType::ZnetInstLocal) => NetworkInstanceKind::Local(local(wire)?),
        _ => {
            return Err(Bad::unsupported("instType", format!("network instance of type {}", wire.inst_type)));
        }
    };
    Ok(NetworkInstance {
        id: uuid("uuidandversion.uuid", &id.uuid)?,
        version: id.version.clone(),
        name: wire.displayname.clone(),
        is_active: wire.activate,
        port: wire.port.as_ref().map(|port| port.name.clone()).unwrap_or_default(),
        mtu: mtu(wire.mtu)?,
        is_flow_logged: !wire.disable_flowlog,
        kind,
    })
}

/// 0: left to the node.
fn mtu(value: u32) -> Read<u16> {
    match u16::try_from(value) {
        Ok(mtu) if mtu == 0 || mtu >= SMALLEST_MTU => Ok(mtu),
        _ => Err(Bad::invalid("mtu", format!("{value} is not between {SMALLEST_MTU} and {}", u16::MAX))),
    }
}

/// A destination that apps reach through the network. One behind another app, or bound to a port by its label, would
/// need tables of routes of its own.
fn route(wire: &wire::IpRoute, subnet: Prefix4) -> Read<Prefix4> {
    if !wire.port.is_empty() || wire.probe.as_ref().is_some_and(|probe| probe.enable_gw_ping) {
        return Err(Bad::unsupported("port", "a route bound to a port"));
    }
    let gateway = non_empty(&wire.gateway, |text| ipv4("gateway", text))?;
    if gateway.is_some_and(|gateway| subnet.contains(gateway)) {
        return Err(Bad::unsupported("gateway", "a route through an app"));
    }
    prefix4("destination_network", &wire.destination_network)
}

fn local(wire: &wire::NetworkInstanceConfig) -> Read<LocalNetwork> {
    use wire::AddressType;
    if !matches!(AddressType::try_from(wire.ip_type), Ok(AddressType::First | AddressType::Ipv4)) {
        return Err(Bad::unsupported("ipType", "addresses other than IPv4"));
    }
    let ip = wire.ip.as_ref().ok_or_else(|| Bad::invalid("ip", "missing"))?;
    let (subnet, gateway, range, dns) = local_addresses(ip).map_err(|bad| bad.at("ip"))?;
    let mut static_names = Vec::new();
    for (index, entry) in wire.dns.iter().enumerate() {
        let at = |bad: Bad| bad.at(format!("dns[{index}]"));
        if entry.host_name.is_empty() {
            return Err(at(Bad::invalid("HostName", "empty")));
        }
        static_names.push((entry.host_name.clone(), ipv4_list("Address", &entry.address).map_err(at)?));
    }
    let mut routes = Vec::new();
    for (index, entry) in wire.static_routes.iter().enumerate() {
        routes.push(route(entry, subnet).map_err(|bad| bad.at(format!("static_routes[{index}]")))?);
    }
    // Servers by name are not for DHCP; apps that want them know them.
    let ntp = [&ip.ntp].into_iter().chain(&ip.more_ntp).filter_map(|text| text.parse().ok());
    Ok(LocalNetwork {
        subnet,
        gateway,
        dns,
        range,
        static_names,
        domain: ip.domain.clone(),
        ntp: ntp.collect(),
        routes,
        routes_uplinks: wire.propagate_connected_routes,
    })
}

type LocalAddresses = (Prefix4, Ipv4Addr, (Ipv4Addr, Ipv4Addr), Vec<Ipv4Addr>);

/// Gateway and range may be left out: then they are the first address and all others.
fn local_addresses(ip: &Ipspec) -> Read<LocalAddresses> {
    let subnet = prefix4("subnet", &ip.subnet)?;
    if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&subnet.length) {
        return Err(Bad::invalid("subnet", format!("{subnet} is too small or too large")));
    }
    let first = subnet.network().to_bits() + 1;
    let last = subnet.broadcast().to_bits() - 1;
    let inside = |field: &str, address: Ipv4Addr| {
        if (first..=last).contains(&address.to_bits()) {
            Ok(address)
        } else {
            Err(Bad::invalid(field, format!("{address} is no host of {subnet}")))
        }
    };
    let gateway = non_empty(&ip.gateway, |text| inside("gateway", ipv4("gateway", text)?))?;
    let gateway = gateway.unwrap_or(Ipv4Addr::from_bits(first));
    let (mut start, mut end) = (Ipv4Addr::from_bits(first + 1), Ipv4Addr::from_bits(last));
    if let Some(range) = &ip.dhcp_range {
        let bound = |field: &str, text: &str| non_empty(text, |text| inside(field, ipv4(field, text)?));
        start = bound("dhcpRange.start", &range.start)?.unwrap_or(start);
        end = bound("dhcpRange.end", &range.end)?.unwrap_or(end);
        if start > end {
            return Err(Bad::invalid(
                "dhcpRange",
                format!("{} lies behind {}", quote(&range.start), quote(&range.end)),
            ));
        }
    }
    Ok((subnet, gateway, (start, end), ipv4_list("dns", &ip.dns)?))
}
