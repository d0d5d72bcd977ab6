// SPDX-License-Identifier: Apache-2.0
//! One interface of an app: whether it can be set up, and everything that follows from its place.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use core::net::Ipv4Addr;

use model::desired::{VifDesired, VifsDesired};
use model::id::{AppId, NetworkInstanceId};
use model::net::Prefix4;
use model::reason::{Fault, Reason};

use super::acl::{Place, PortMap, VifAcl, vif_acl};
use super::dhcp::server::{Host, Scope};
use super::marks::Numbers;
use super::{Addressing, MAX_VIFS, Network, Placed, Vif, is_host_of, is_link_name};

/// Length of the prefix of an address in a switch whose network nothing tells.
const USUAL_PREFIX: u8 = 24;

/// The interface that carries an app's default route: the first one whose network leads out, else the first.
pub(super) fn default_route(
    app: &VifsDesired,
    standing: &BTreeMap<NetworkInstanceId, Network<'_>>,
) -> Option<usize> {
    let leads_out =
        |vif: &VifDesired| standing.get(&vif.network).is_some_and(|network| !network.uplinks.is_empty());
    app.vifs.iter().position(leads_out).or(if app.vifs.is_empty() { None } else { Some(0) })
}

pub(super) fn place(app: AppId, desired: &VifDesired, network: &Network<'_>, is_default: bool) -> Vif {
    let addressing = match (network.local(), desired.address) {
        (Some(local), address) => Addressing::Routed {
            // Checked to be there.
            address: address.unwrap_or(local.gateway),
            gateway: local.gateway,
            subnet: local.subnet,
            routes: network.routes(),
        },
        (None, Some(address)) => on_link(address, network),
        (None, None) => Addressing::Outside,
    };
    Vif {
        app,
        network: desired.network,
        bridge: network.bridge.clone(),
        inner_name: desired.name.clone(),
        mac: desired.mac,
        mtu: network.mtu,
        is_default,
        is_flow_logged: network.desired.is_flow_logged,
        addressing,
    }
}

/// A fixed address on a switch is in the network its uplink is in.
fn on_link(address: Ipv4Addr, network: &Network<'_>) -> Addressing {
    let of_uplink = network
        .ports
        .iter()
        .find_map(|port| Some((port, port.addresses.iter().find(|prefix| prefix.contains(address))?)));
    let (length, gateway) = match of_uplink {
        Some((port, prefix)) => {
            (prefix.length, port.gateways.iter().copied().find(|gateway| prefix.contains(*gateway)))
        }
        None => (USUAL_PREFIX, None),
    };
    Addressing::OnLink { address: Prefix4 { address, length }, gateway }
}

pub(super) fn check<'a, 'n>(
    vif: &VifDesired,
    earlier_of_app: &[VifDesired],
    standing: &'a BTreeMap<NetworkInstanceId, Network<'n>>,
    placed: &BTreeMap<&str, Placed<'_>>,
    numbers: &mut Numbers,
) -> Result<(&'a Network<'n>, VifAcl), Fault> {
    let link = &vif.host_name;
    let invalid = |what: &str| Err(Fault::new(Reason::InvalidConfig, format!("{link} {what}")));
    let conflict = |what: String| Err(Fault::new(Reason::AddressConflict, format!("{link} {what}")));
    let Some(network) = standing.get(&vif.network) else {
        return Err(Fault::new(
            Reason::NetworkFailed,
            format!("network instance {} of {link} does not stand", vif.network),
        ));
    };
    if placed.len() >= MAX_VIFS {
        return invalid(&format!("is one interface more than the {MAX_VIFS} a node has"));
    }
    if !is_link_name(link) || !is_link_name(&vif.name) || vif.name == "lo" {
        return invalid(&format!("or its inner name {:?} cannot be the name of a link", vif.name));
    }
    if standing.values().any(|network| network.bridge == *link || network.uplinks.contains(link)) {
        return invalid("has the name of another link");
    }
    if earlier_of_app.iter().any(|other| other.name == vif.name) {
        return conflict(format!("is a second {} of its app", vif.name));
    }
    if vif.mac.0[0] & 1 == 1 || vif.mac.0 == [0; 6] {
        return invalid(&format!("has the MAC {} which no interface can have", vif.mac));
    }
    if let Some(local) = network.local() {
        match vif.address {
            None => return invalid("has no address"),
            Some(address) if !is_host_of(local.subnet, address) => {
                return invalid(&format!("has the address {address} outside of {}", local.subnet));
            }
            Some(address) if address == local.gateway => {
                return conflict(format!("has the address {address} of its gateway"));
            }
            Some(_) => {}
        }
    }
    let is_routed = network.local().is_some();
    for (other_link, other) in placed {
        if *other_link == link {
            return conflict("is there twice".to_string());
        }
        // Routed networks share one space of addresses.
        let shares = other.bridge == network.bridge
            || is_routed && standing.get(&other.desired.network).is_some_and(|n| n.local().is_some());
        if shares
            && let Some(address) = vif.address
            && other.desired.address == vif.address
        {
            return conflict(format!("has the address {address} of {other_link}"));
        }
        if other.bridge == network.bridge && other.desired.mac == vif.mac {
            return conflict(format!("has the MAC {} of {other_link}", vif.mac));
        }
    }
    let place = Place {
        number: network.desired.number,
        names: &network.names,
        is_switch: !is_routed,
        is_flow_logged: network.desired.is_flow_logged,
    };
    let acl = vif_acl(&place, vif, numbers)?;
    for map in &acl.port_maps {
        let same_port = |other: &PortMap| (other.protocol, other.node_port) == (map.protocol, map.node_port);
        let taken_by = placed.iter().find(|(_, other)| {
            other.acl.port_maps.iter().any(same_port)
                && standing[&other.desired.network].uplinks.intersection(&network.uplinks).next().is_some()
        });
        if let Some((other, _)) = taken_by {
            return conflict(format!("maps port {} which {other} maps already", map.node_port));
        }
    }
    Ok((network, acl))
}

/// What the DHCP servers of local networks hand out.
pub(super) fn scopes(
    standing: &BTreeMap<NetworkInstanceId, Network<'_>>,
    placed: &BTreeMap<&str, Placed<'_>>,
    vifs: &BTreeMap<String, Vif>,
) -> BTreeMap<String, Scope> {
    let mut scopes = BTreeMap::new();
    for network in standing.values() {
        let Some(local) = network.local() else { continue };
        let of_network = placed.iter().filter(|(_, placed)| placed.desired.network == network.desired.id);
        let hosts = of_network.filter_map(|(link, placed)| {
            let vif = vifs.get(*link)?;
            let Addressing::Routed { address, routes, .. } = &vif.addressing else { return None };
            let host = Host {
                address: *address,
                name: placed.name.to_string(),
                is_default: vif.is_default,
                routes: routes.clone(),
            };
            Some((vif.mac, host))
        });
        let scope = Scope {
            gateway: local.gateway,
            subnet: local.subnet,
            mtu: network.mtu,
            domain: local.domain.clone(),
            ntp: local.ntp.clone(),
            hosts: hosts.collect(),
        };
        scopes.insert(network.bridge.clone(), scope);
    }
    scopes
}
