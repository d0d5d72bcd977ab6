// SPDX-License-Identifier: Apache-2.0
//! Names inside a network: what its name server answers itself, and where it asks otherwise. Pure data and lookup.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::LocalNetwork;
use model::desired::{NetworkDesired, VifsDesired};
use model::id::NetworkInstanceId;
use model::net::Prefix4;

use super::acl::{canonical, host_set};
use super::{Network, Placed};

/// Servers asked at most; the rest would only be asked when all these are silent.
pub const MAX_SERVERS: usize = 4;

/// One network's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Where apps ask: the gateway.
    pub listen: Ipv4Addr,
    /// Addresses whose names nobody else knows.
    pub subnet: Prefix4,
    /// Lower case, without a final dot: app names, `name.<network>`, and the network's static names.
    pub names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Asked in order for everything else.
    pub servers: Vec<Ipv4Addr>,
    /// Lookups are recorded, by who asks: address to node's end of the interface.
    pub recorded: BTreeMap<Ipv4Addr, String>,
    /// Names whose addresses access rules match, and the set that keeps them.
    pub learn: BTreeMap<String, String>,
}

/// What a zone says to a question for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    Here(&'a BTreeSet<Ipv4Addr>),
    /// Not here and nobody else's: a name of one label.
    Nowhere,
    /// Ask the servers.
    Elsewhere,
}

impl Zone {
    /// `name` in lower case without a final dot.
    pub fn lookup(&self, name: &str) -> Answer<'_> {
        match self.names.get(name) {
            Some(addresses) => Answer::Here(addresses),
            None if !name.contains('.') => Answer::Nowhere,
            None => Answer::Elsewhere,
        }
    }

    /// The name of an address; `None`: it is not one of this network.
    pub fn reverse(&self, address: Ipv4Addr) -> Option<Option<&str>> {
        if !self.subnet.contains(address) {
            return None;
        }
        let longest =
            self.names.iter().filter(|(_, all)| all.contains(&address)).map(|(name, _)| name.as_str());
        // The full name says more than its first label.
        Some(longest.max_by_key(|name| name.len()))
    }

    /// Sets that want to know what this name resolved to: its own, and those of its parents.
    pub fn learners(&self, name: &str) -> Vec<&str> {
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        core::iter::once(name).chain(parents).filter_map(|n| self.learn.get(n)).map(String::as_str).collect()
    }
}

/// Names of a network that need no server: its static ones, and those of all apps ordered into it.
pub(super) fn local(network: &NetworkDesired, apps: &[VifsDesired]) -> BTreeMap<String, BTreeSet<Ipv4Addr>> {
    let mut names: BTreeMap<String, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    let Some(local) = network.local() else { return names };
    for (name, addresses) in &local.static_names {
        names.entry(canonical(name)).or_default().extend(addresses);
    }
    for app in apps {
        for vif in app.vifs.iter().filter(|vif| vif.network == network.id) {
            for name in names_of_app(network, &app.name) {
                names.entry(name).or_default().extend(vif.address);
            }
        }
    }
    names
}

/// An app is known by its name alone, in its network's name and in its network's domain.
fn names_of_app(network: &NetworkDesired, app: &str) -> Vec<String> {
    let app = canonical(app);
    let domains = [canonical(&network.name), canonical(network.local().map_or("", |local| &local.domain))];
    let full = domains.iter().filter(|domain| !domain.is_empty()).map(|domain| format!("{app}.{domain}"));
    full.chain([app.clone()]).collect()
}

pub(super) fn zones(
    networks: &BTreeMap<NetworkInstanceId, Network<'_>>,
    apps: &[&VifsDesired],
    placed: &BTreeMap<&str, Placed<'_>>,
) -> BTreeMap<String, Zone> {
    let mut zones = BTreeMap::new();
    for (id, network) in networks {
        let Some(local) = network.local() else { continue };
        let mut names: BTreeMap<String, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        let (mut learn, mut recorded) = (BTreeMap::new(), BTreeMap::new());
        for (name, addresses) in &local.static_names {
            names.entry(canonical(name)).or_default().extend(addresses);
        }
        for app in apps {
            for vif in app.vifs.iter().filter(|vif| vif.network == *id) {
                let Some(vif) = placed.get(vif.host_name.as_str()).filter(|p| p.desired == vif) else {
                    continue;
                };
                for name in names_of_app(network.desired, &app.name) {
                    names.entry(name).or_default().extend(vif.desired.address);
                }
                if network.desired.is_flow_logged {
                    recorded
                        .extend(vif.desired.address.map(|address| (address, vif.desired.host_name.clone())));
                }
                for host in &vif.acl.hosts {
                    learn.insert(host.clone(), host_set(network.desired.number, host));
                }
            }
        }
        let servers = servers(network, local);
        let (listen, subnet) = (local.gateway, local.subnet);
        zones.insert(network.bridge.clone(), Zone { listen, subnet, names, servers, recorded, learn });
    }
    zones
}

/// Those of the network's own config, else those of its uplinks in their order.
fn servers(network: &Network<'_>, local: &LocalNetwork) -> Vec<Ipv4Addr> {
    let mut servers = Vec::new();
    let of_uplinks = network.ports.iter().flat_map(|port| port.dns.iter().copied());
    let of_config = local.dns.iter().copied();
    for server in of_config.chain(of_uplinks) {
        // Apps are often told the gateway as their server: asking ourselves would never end.
        if server != local.gateway && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers.truncate(MAX_SERVERS);
    servers
}
