// SPDX-License-Identifier: Apache-2.0
//! Networks of apps: from what is desired and which ports there are to everything the kernel shall hold.
//!
//! [`intent`] is the planner's first half: one pure function from all desired objects to one [`Intent`]. [`links::steps`]
//! is the second: the difference between the intended and the seen links. Rules have no steps, they are replaced as a
//! whole in one transaction.
//!
//! How a local network works: a bridge holds the gateway's address. Apps hang on isolated ports of it with a /32 address
//! and a route through the gateway, so that every packet, also one for a neighbour, is routed and judged by both
//! interfaces' rules. On the way in, the bridge lets through only frames with the interface's own MAC and IPv4 address,
//! so an address is an identity everywhere behind it. Outbound traffic is masqueraded on the network's uplinks; from
//! outside apps are reached by port maps only. Of the node itself apps see DNS and ping of their gateway.
//!
//! An object that cannot be set up as ordered is not set up at all, and says why; the others stand.

mod acl;
mod firewall;
pub mod links;
pub mod names;
pub mod rules;

#[cfg(test)]
mod tests;

pub use acl::{MAX_RULES, PortMap, canonical, drop_counter, host_set};

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::desired::{NetworkDesired, VifDesired, VifsDesired};
use model::id::{AppId, NetworkInstanceId};
use model::net::{Mac, Prefix4};
use model::observed::PortObserved;
use model::reason::{Fault, Reason};

use self::acl::{VifAcl, vif_acl};
use self::rules::Ruleset;

/// Interfaces on one node, over all apps.
pub const MAX_VIFS: usize = 1024;
/// Longest name of a link, `IFNAMSIZ` without its end.
pub const MAX_LINK_NAME: usize = 15;

/// Everything the kernel and the name servers shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// By Linux name.
    pub bridges: BTreeMap<String, Bridge>,
    /// Node's ends, by Linux name. Made when the app attaches, taken away when they are not here.
    pub vifs: BTreeMap<String, Vif>,
    pub ruleset: Ruleset,
    /// Switches of the network stack, path below its root to value: those to be set before any link is made.
    pub switches: BTreeMap<String, String>,
    /// Those of links, set once they are made.
    pub link_switches: BTreeMap<String, String>,
    /// By bridge.
    pub zones: BTreeMap<String, names::Zone>,
    pub networks: BTreeMap<NetworkInstanceId, Standing>,
    pub apps: BTreeMap<AppId, Vec<Standing>>,
}

/// The node's side of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Fixed, so that it does not follow the ports that come and go.
    pub mac: Mac,
    /// The gateway, with the subnet's length.
    pub address: Prefix4,
}

/// An interface of an app, both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    pub app: AppId,
    pub bridge: String,
    /// Position among the app's interfaces; the first carries the default route.
    pub index: usize,
    pub inner_name: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub subnet: Prefix4,
}

/// How one desired object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Bridge of a network, node's end of an interface.
    pub link: String,
    /// Uplink in use, for networks.
    pub uplink: Option<String>,
    pub fault: Option<Fault>,
}

/// Routing on. No advice to apps to go directly to a neighbour: they could not. And no second judgement of frames on
/// bridges by the rules for packets.
const SWITCHES: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];
const LINK_SWITCHES: &[(&str, &str, &str)] =
    &[("ipv4", "send_redirects", "0"), ("ipv6", "disable_ipv6", "1")];

fn switches<'a>(all: impl Iterator<Item = (String, &'a str)>) -> BTreeMap<String, String> {
    all.map(|(path, value)| (path, value.to_string())).collect()
}

/// Linux name of a network's bridge.
pub fn bridge_name(number: u16) -> String {
    format!("bn{number}")
}

/// A network that is set up, with what others need of it.
struct Network<'a> {
    desired: &'a NetworkDesired,
    bridge: String,
    /// Uplinks allowed for it, there or not.
    uplinks: BTreeSet<String>,
    /// Addresses of those that are there.
    uplink_addresses: BTreeSet<Ipv4Addr>,
    /// What the node itself says of names in it.
    names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
}

/// An interface that is set up.
struct Placed<'a> {
    desired: &'a VifDesired,
    bridge: String,
    acl: VifAcl,
}

/// The one function from what is desired to what the kernel shall hold. The order of the inputs does not matter.
pub fn intent(networks: &[NetworkDesired], apps: &[VifsDesired], ports: &[PortObserved]) -> Intent {
    let mut intent = Intent::default();
    let mut standing = BTreeMap::new();

    let mut networks: Vec<&NetworkDesired> = networks.iter().collect();
    networks.sort_by_key(|network| (network.number, network.id));
    for network in networks {
        let bridge = bridge_name(network.number);
        let checked = check_network(network, &standing, ports);
        let uplinks: Vec<&PortObserved> =
            network.uplinks.iter().filter_map(|name| ports.iter().find(|port| port.name == *name)).collect();
        intent.networks.insert(
            network.id,
            Standing {
                link: bridge.clone(),
                uplink: uplinks
                    .iter()
                    .find(|port| port.is_up && !port.addresses.is_empty())
                    .map(|port| port.name.clone()),
                fault: checked.err(),
            },
        );
        if intent.networks[&network.id].fault.is_none() {
            let (n, address) = (network.number.to_be_bytes(), network.local.gateway);
            intent.bridges.insert(
                bridge.clone(),
                Bridge {
                    mac: Mac([0x02, 0x53, 0x45, 0x4c, n[0], n[1]]),
                    address: Prefix4 { address, length: network.local.subnet.length },
                },
            );
            let uplink_addresses =
                uplinks.iter().flat_map(|port| &port.addresses).map(|prefix| prefix.address).collect();
            let uplinks = network.uplinks.iter().cloned().collect();
            let names = names::local(network, apps);
            let stands = Network { desired: network, bridge, uplinks, uplink_addresses, names };
            standing.insert(network.id, stands);
        }
    }

    let mut apps: Vec<&VifsDesired> = apps.iter().collect();
    apps.sort_by_key(|app| app.app);
    let mut placed: BTreeMap<&str, Placed<'_>> = BTreeMap::new();
    for app in &apps {
        let mut standings = Vec::new();
        for (index, vif) in app.vifs.iter().enumerate() {
            let fault = match check_vif(vif, &app.vifs[..index], &standing, &placed) {
                Ok((network, acl)) => {
                    intent.vifs.insert(
                        vif.host_name.clone(),
                        Vif {
                            app: app.app,
                            bridge: network.bridge.clone(),
                            index,
                            inner_name: vif.name.clone(),
                            mac: vif.mac,
                            address: vif.address,
                            gateway: network.desired.local.gateway,
                            subnet: network.desired.local.subnet,
                        },
                    );
                    placed
                        .insert(&vif.host_name, Placed { desired: vif, bridge: network.bridge.clone(), acl });
                    None
                }
                Err(fault) => Some(fault),
            };
            standings.push(Standing { link: vif.host_name.clone(), uplink: None, fault });
        }
        intent.apps.insert(app.app, standings);
    }

    let port_names: BTreeSet<String> = ports.iter().map(|port| port.name.clone()).collect();
    intent.ruleset = firewall::ruleset(&standing, &placed, &port_names);
    if !standing.is_empty() {
        intent.switches = switches(SWITCHES.iter().map(|(path, value)| (path.to_string(), *value)));
    }
    for bridge in intent.bridges.keys() {
        intent.link_switches.extend(switches(
            LINK_SWITCHES
                .iter()
                .map(|(family, switch, value)| (format!("{family}/conf/{bridge}/{switch}"), *value)),
        ));
    }
    intent.zones = names::zones(&standing, &apps, &placed, ports);
    intent
}

fn check_network(
    network: &NetworkDesired,
    standing: &BTreeMap<NetworkInstanceId, Network<'_>>,
    ports: &[PortObserved],
) -> Result<(), Fault> {
    let invalid = |what: &str| {
        Err(Fault::new(Reason::InvalidConfig, format!("network instance {} {what}", network.name)))
    };
    let conflict = |with: &str| {
        Err(Fault::new(
            Reason::AddressConflict,
            format!("network instance {} overlaps with {with}", network.name),
        ))
    };
    let (subnet, gateway) = (network.local.subnet, network.local.gateway);
    if !(8..=30).contains(&subnet.length) {
        return invalid("has a subnet that is not between /8 and /30");
    }
    if !is_unicast(subnet.network()) || !is_unicast(subnet.broadcast()) {
        return invalid("has a subnet of special addresses");
    }
    if !is_host_of(subnet, gateway) {
        return invalid("has a gateway that is no host of its subnet");
    }
    if let Some(bad) = network.uplinks.iter().find(|name| !is_link_name(name)) {
        return invalid(&format!("has an uplink of the unusable name {bad:?}"));
    }
    for other in standing.values() {
        if other.desired.number == network.number {
            return conflict(&format!("network instance {} in its number", other.desired.name));
        }
        if overlap(other.desired.local.subnet, subnet) {
            return conflict(&format!("network instance {}", other.desired.name));
        }
    }
    for port in ports {
        if let Some(taken) = port.addresses.iter().find(|prefix| overlap(**prefix, subnet)) {
            return conflict(&format!("the network {taken} of port {}", port.name));
        }
    }
    Ok(())
}

fn check_vif<'a, 'n>(
    vif: &VifDesired,
    earlier_of_app: &[VifDesired],
    standing: &'a BTreeMap<NetworkInstanceId, Network<'n>>,
    placed: &BTreeMap<&str, Placed<'_>>,
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
    let local = &network.desired.local;
    if !is_host_of(local.subnet, vif.address) {
        return invalid(&format!("has the address {} outside of {}", vif.address, local.subnet));
    }
    if vif.address == local.gateway {
        return conflict(format!("has the address {} of its gateway", vif.address));
    }
    for (other_link, other) in placed {
        if *other_link == link {
            return conflict("is there twice".to_string());
        }
        if other.desired.address == vif.address {
            return conflict(format!("has the address {} of {other_link}", vif.address));
        }
        if other.bridge == network.bridge && other.desired.mac == vif.mac {
            return conflict(format!("has the MAC {} of {other_link}", vif.mac));
        }
    }
    let acl = vif_acl(network.desired.number, &network.names, vif)?;
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

/// A name safe in every tool: letters, digits, `-`, `_` and `.`, not starting with a sign.
fn is_link_name(name: &str) -> bool {
    (1..=MAX_LINK_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_host_of(subnet: Prefix4, address: Ipv4Addr) -> bool {
    subnet.contains(address) && address != subnet.network() && address != subnet.broadcast()
}

/// Neither of this host, nor of the link, nor of a group.
fn is_unicast(address: Ipv4Addr) -> bool {
    !(address.octets()[0] == 0
        || address.octets()[0] >= 224
        || address.is_loopback()
        || address.is_link_local())
}

fn overlap(a: Prefix4, b: Prefix4) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}
