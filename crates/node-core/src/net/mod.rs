// SPDX-License-Identifier: Apache-2.0
//! Networks of apps: from what is desired and which ports there are to everything the kernel shall hold.
//!
//! [`intent`] is the planner's first half: one pure function from all desired objects to one [`Intent`]. [`links::steps`]
//! is the second: the difference between the intended and the seen links. Rules have no steps, they are replaced as a
//! whole in one transaction.
//!
//! How a local network works: a bridge holds the gateway's address. Apps hang on isolated ports of it with one address
//! and a route through the gateway, so that every packet, also one for a neighbour, is routed and judged by both
//! interfaces' rules. On the way in, the bridge lets through only frames with the interface's own MAC and IPv4 address,
//! so an address is an identity everywhere behind it. Outbound traffic is masqueraded on the network's uplinks; from
//! outside apps are reached by port maps only. Of the node itself apps see DHCP, DNS and ping of their gateway.
//!
//! How a switch works: a bridge without an address, apps on ordinary ports of it, and a pair of links to its uplink, see
//! [`switch`]. Addresses come from outside; the same rules judge, on the packets that pass the bridge.
//!
//! An object that cannot be set up as ordered is not set up at all, and says why; the others stand.

mod acl;
pub mod dhcp;
mod firewall;
pub mod flows;
pub mod links;
pub mod marks;
pub mod names;
pub mod rules;
mod switch;
mod vif;

#[cfg(test)]
mod tests;

pub use acl::{Dropped, MAX_RULES, PortMap, canonical, drop_counter, host_set, read_drop_word};
pub use switch::{Sighting, sighting_of};

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::LocalNetwork;
use model::desired::{NetworkDesired, VifDesired, VifsDesired};
use model::id::{AppId, NetworkInstanceId};
use model::net::{Mac, Prefix4};
use model::observed::PortObserved;
use model::reason::{Fault, Reason};

use self::acl::VifAcl;
use self::dhcp::server::Scope;
use self::marks::Numbers;
use self::rules::Ruleset;

/// Interfaces on one node, over all apps.
pub const MAX_VIFS: usize = 1024;
/// Longest name of a link, `IFNAMSIZ` without its end.
pub const MAX_LINK_NAME: usize = 15;
/// What a link carries unless something says otherwise.
const USUAL_MTU: u16 = 1500;

/// Everything the kernel and the servers of names and addresses shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// By Linux name.
    pub bridges: BTreeMap<String, Bridge>,
    /// Pairs of links between a switch and its uplink, by the name of the end that is a port of the bridge.
    pub patches: BTreeMap<String, Patch>,
    /// Uplinks that must take in frames for others than themselves.
    pub listening: BTreeSet<String>,
    /// Node's ends, by Linux name. Made when the app attaches, taken away when they are not here.
    pub vifs: BTreeMap<String, Vif>,
    pub ruleset: Ruleset,
    /// Rules on links that [`Intent::patches`] and uplinks must be there for.
    pub taps: Ruleset,
    /// Behind the marks of flows.
    pub numbers: Numbers,
    /// Switches of the network stack, path below its root to value: those to be set before any link is made.
    pub switches: BTreeMap<String, String>,
    /// Those of links, set once they are made.
    pub link_switches: BTreeMap<String, String>,
    /// By bridge.
    pub zones: BTreeMap<String, names::Zone>,
    /// By bridge.
    pub scopes: BTreeMap<String, Scope>,
    pub networks: BTreeMap<NetworkInstanceId, Standing>,
    pub apps: BTreeMap<AppId, Vec<Standing>>,
}

/// The node's side of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Fixed, so that it does not follow the ports that come and go.
    pub mac: Mac,
    /// The gateway, with the subnet's length. A switch has none.
    pub address: Option<Prefix4>,
    pub mtu: u16,
    /// Known without asking, so that nobody else can answer.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
}

impl Bridge {
    /// Packets that pass from port to port are judged like those that are routed.
    pub fn judges_passing(&self) -> bool {
        self.address.is_none()
    }
}

/// Two ends of one cable: what goes in at one comes out of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    pub bridge: String,
    /// The end whose frames are exchanged with the uplink's.
    pub outer: String,
    pub uplink: String,
    pub mtu: u16,
}

/// An interface of an app, both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    pub app: AppId,
    pub network: NetworkInstanceId,
    pub bridge: String,
    pub inner_name: String,
    pub mac: Mac,
    pub mtu: u16,
    /// Carries the app's default route.
    pub is_default: bool,
    pub is_flow_logged: bool,
    pub addressing: Addressing,
}

/// How the app gets its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// All traffic goes through the gateway.
    Routed { address: Ipv4Addr, gateway: Ipv4Addr, subnet: Prefix4, routes: Vec<Prefix4> },
    /// Neighbours are on the link.
    OnLink { address: Prefix4, gateway: Option<Ipv4Addr> },
    /// From a DHCP server outside.
    Outside,
}

impl Vif {
    pub fn address(&self) -> Option<Ipv4Addr> {
        match &self.addressing {
            Addressing::Routed { address, .. } => Some(*address),
            Addressing::OnLink { address, .. } => Some(address.address),
            Addressing::Outside => None,
        }
    }

    /// Speaks with its bridge only, not with other ports.
    pub fn is_isolated(&self) -> bool {
        matches!(self.addressing, Addressing::Routed { .. })
    }
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
/// bridges by the rules for packets, but for those that ask for it. Flows are counted and timed.
const SWITCHES: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("netfilter/nf_conntrack_acct", "1"),
    ("netfilter/nf_conntrack_timestamp", "1"),
];
/// Of bridges of local networks: who believes that neighbours are on the link gets to them all the same.
const LINK_SWITCHES: &[(&str, &str)] = &[
    ("ipv4/conf/{}/send_redirects", "0"),
    ("ipv6/conf/{}/disable_ipv6", "1"),
    ("ipv4/conf/{}/proxy_arp_pvlan", "1"),
    ("ipv4/neigh/{}/proxy_delay", "0"),
];
/// Of bridges of switches and what connects them: the node itself is not there.
const SILENT_SWITCHES: &[(&str, &str)] =
    &[("ipv6/conf/{}/disable_ipv6", "1"), ("ipv4/conf/{}/arp_ignore", "8")];

fn switches<'a>(all: impl Iterator<Item = (String, &'a str)>) -> BTreeMap<String, String> {
    all.map(|(path, value)| (path, value.to_string())).collect()
}

fn link_switches<'a>(
    link: &'a str,
    all: &'a [(&'a str, &'a str)],
) -> impl Iterator<Item = (String, String)> + 'a {
    all.iter().map(move |(path, value)| (path.replace("{}", link), value.to_string()))
}

/// Linux name of a network's bridge.
pub fn bridge_name(number: u16) -> String {
    format!("bn{number}")
}

/// A network that is set up, with what others need of it.
struct Network<'a> {
    desired: &'a NetworkDesired,
    bridge: String,
    mtu: u16,
    /// Uplinks allowed for it, there or not.
    uplinks: BTreeSet<String>,
    /// Those that are there, in their order.
    ports: Vec<&'a PortObserved>,
    /// What the node itself says of names in it.
    names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
}

impl<'a> Network<'a> {
    fn local(&self) -> Option<&'a LocalNetwork> {
        self.desired.local()
    }

    fn uplink_addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.ports.iter().flat_map(|port| &port.addresses).map(|prefix| prefix.address).collect()
    }

    /// What apps reach through it besides its own subnet.
    fn routes(&self) -> Vec<Prefix4> {
        let Some(local) = self.local() else { return Vec::new() };
        let of_uplinks = self.ports.iter().flat_map(|port| &port.addresses).filter(|_| local.routes_uplinks);
        let mut routes: Vec<Prefix4> = local.routes.clone();
        routes.extend(of_uplinks.map(|on| Prefix4 { address: on.network(), length: on.length }));
        routes.truncate(MAX_ROUTES);
        routes
    }
}

/// Routes apps are told of one network; more do not fit into what every DHCP client takes.
const MAX_ROUTES: usize = 16;

/// An interface that is set up.
struct Placed<'a> {
    desired: &'a VifDesired,
    /// Name of its app.
    name: &'a str,
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
        let there: Vec<&PortObserved> =
            network.uplinks.iter().filter_map(|name| ports.iter().find(|port| port.name == *name)).collect();
        let is_usable =
            |port: &&&PortObserved| port.is_up && (network.local().is_none() || !port.addresses.is_empty());
        let uplink = there.iter().find(is_usable).map(|port| port.name.clone());
        let is_good = checked.is_ok();
        intent.networks.insert(network.id, Standing { link: bridge.clone(), uplink, fault: checked.err() });
        if is_good {
            let mtu = mtu(network, &there);
            let n = network.number.to_be_bytes();
            intent.bridges.insert(
                bridge.clone(),
                Bridge {
                    mac: Mac([0x02, 0x53, 0x45, 0x4c, n[0], n[1]]),
                    address: network
                        .local()
                        .map(|local| Prefix4 { address: local.gateway, length: local.subnet.length }),
                    mtu,
                    neighbours: BTreeMap::new(),
                },
            );
            let stands = Network {
                desired: network,
                bridge,
                mtu,
                uplinks: network.uplinks.iter().cloned().collect(),
                ports: there,
                names: names::local(network, apps),
            };
            standing.insert(network.id, stands);
        }
    }

    let mut apps: Vec<&VifsDesired> = apps.iter().collect();
    apps.sort_by_key(|app| app.app);
    let mut placed: BTreeMap<&str, Placed<'_>> = BTreeMap::new();
    for app in &apps {
        let mut standings = Vec::new();
        let default = vif::default_route(app, &standing);
        for (index, desired) in app.vifs.iter().enumerate() {
            let checked = vif::check(desired, &app.vifs[..index], &standing, &placed, &mut intent.numbers);
            let fault = match checked {
                Ok((network, acl)) => {
                    let vif = vif::place(app.app, desired, network, default == Some(index));
                    if let (Some(address), Some(bridge)) =
                        (vif.address().filter(|_| vif.is_isolated()), intent.bridges.get_mut(&network.bridge))
                    {
                        bridge.neighbours.insert(address, desired.mac);
                    }
                    intent.vifs.insert(desired.host_name.clone(), vif);
                    let bridge = network.bridge.clone();
                    placed.insert(&desired.host_name, Placed { desired, name: &app.name, bridge, acl });
                    None
                }
                Err(fault) => {
                    intent.numbers.forget(&desired.host_name);
                    Some(fault)
                }
            };
            standings.push(Standing { link: desired.host_name.clone(), uplink: None, fault });
        }
        intent.apps.insert(app.app, standings);
    }

    let port_names: BTreeSet<String> = ports.iter().map(|port| port.name.clone()).collect();
    intent.ruleset = firewall::ruleset(&standing, &placed, &port_names, &intent.numbers);
    switch::connect(&mut intent, &standing, &placed);
    if !standing.is_empty() {
        intent.switches = switches(SWITCHES.iter().map(|(path, value)| (path.to_string(), *value)));
    }
    for (name, bridge) in &intent.bridges {
        let all = if bridge.judges_passing() { SILENT_SWITCHES } else { LINK_SWITCHES };
        intent.link_switches.extend(link_switches(name, all));
    }
    for (inner, patch) in &intent.patches {
        intent.link_switches.extend(link_switches(inner, SILENT_SWITCHES));
        intent.link_switches.extend(link_switches(&patch.outer, SILENT_SWITCHES));
    }
    intent.zones = names::zones(&standing, &apps, &placed);
    intent.scopes = vif::scopes(&standing, &placed, &intent.vifs);
    intent
}

/// As ordered, else the smallest of the uplinks, so that nothing has to be cut on the way.
fn mtu(network: &NetworkDesired, uplinks: &[&PortObserved]) -> u16 {
    let of_uplinks = uplinks.iter().filter_map(|port| u16::try_from(port.mtu).ok()).filter(|mtu| *mtu > 0);
    match network.mtu {
        0 => of_uplinks.min().unwrap_or(USUAL_MTU),
        ordered => ordered,
    }
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
    if let Some(local) = network.local() {
        let (subnet, gateway) = (local.subnet, local.gateway);
        if !(8..=30).contains(&subnet.length) {
            return invalid("has a subnet that is not between /8 and /30");
        }
        if !is_unicast(subnet.network()) || !is_unicast(subnet.broadcast()) {
            return invalid("has a subnet of special addresses");
        }
        if !is_host_of(subnet, gateway) {
            return invalid("has a gateway that is no host of its subnet");
        }
    }
    if let Some(bad) = network.uplinks.iter().find(|name| !is_link_name(name)) {
        return invalid(&format!("has an uplink of the unusable name {bad:?}"));
    }
    for other in standing.values() {
        if other.desired.number == network.number {
            return conflict(&format!("network instance {} in its number", other.desired.name));
        }
        if let (Some(here), Some(there)) = (network.local(), other.local())
            && overlap(here.subnet, there.subnet)
        {
            return conflict(&format!("network instance {}", other.desired.name));
        }
    }
    for port in ports {
        if let Some(local) = network.local()
            && let Some(taken) = port.addresses.iter().find(|prefix| overlap(**prefix, local.subnet))
        {
            return conflict(&format!("the network {taken} of port {}", port.name));
        }
    }
    Ok(())
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
