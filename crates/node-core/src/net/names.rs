// SPDX-License-Identifier: Apache-2.0
//! Names inside a network: what its name server answers itself, and where it asks otherwise. Pure data and lookup.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::desired::{NetworkDesired, VifsDesired};
use model::id::NetworkInstanceId;
use model::observed::PortObserved;

use super::acl::{canonical, host_set};
use super::{Network, Placed};

/// Servers asked at most; the rest would only be asked when all these are silent.
pub const MAX_SERVERS: usize = 4;

/// One network's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Where apps ask: the gateway.
    pub listen: Ipv4Addr,
    /// Lower case, without a final dot: app names, `name.<network>`, and the network's static names.
    pub names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Asked in order for everything else.
    pub servers: Vec<Ipv4Addr>,
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

    /// Sets that want to know what this name resolved to: its own, and those of its parents.
    pub fn learners(&self, name: &str) -> Vec<&str> {
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        core::iter::once(name).chain(parents).filter_map(|n| self.learn.get(n)).map(String::as_str).collect()
    }
}

/// Names of a network that need no server: its static ones, and those of all apps ordered into it.
pub(super) fn local(network: &NetworkDesired, apps: &[VifsDesired]) -> BTreeMap<String, BTreeSet<Ipv4Addr>> {
    let mut names: BTreeMap<String, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for (name, addresses) in &network.local.static_names {
        names.entry(canonical(name)).or_default().extend(addresses);
    }
    let domain = canonical(&network.name);
    for app in apps {
        for vif in app.vifs.iter().filter(|vif| vif.network == network.id) {
            let name = canonical(&app.name);
            names.entry(format!("{name}.{domain}")).or_default().insert(vif.address);
            names.entry(name).or_default().insert(vif.address);
        }
    }
    names
}

pub(super) fn zones(
    networks: &BTreeMap<NetworkInstanceId, Network<'_>>,
    apps: &[&VifsDesired],
    placed: &BTreeMap<&str, Placed<'_>>,
    ports: &[PortObserved],
) -> BTreeMap<String, Zone> {
    let mut zones = BTreeMap::new();
    for (id, network) in networks {
        let domain = canonical(&network.desired.name);
        let mut names: BTreeMap<String, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        let mut learn = BTreeMap::new();
        for (name, addresses) in &network.desired.local.static_names {
            names.entry(canonical(name)).or_default().extend(addresses);
        }
        for app in apps {
            for vif in app.vifs.iter().filter(|vif| vif.network == *id) {
                let Some(vif) = placed.get(vif.host_name.as_str()).filter(|p| p.desired == vif) else {
                    continue;
                };
                let name = canonical(&app.name);
                names.entry(format!("{name}.{domain}")).or_default().insert(vif.desired.address);
                names.entry(name).or_default().insert(vif.desired.address);
                for host in &vif.acl.hosts {
                    learn.insert(host.clone(), host_set(network.desired.number, host));
                }
            }
        }
        let servers = servers(network, ports);
        let listen = network.desired.local.gateway;
        zones.insert(network.bridge.clone(), Zone { listen, names, servers, learn });
    }
    zones
}

/// Those of the network's own config, else those of its uplinks in their order.
fn servers(network: &Network<'_>, ports: &[PortObserved]) -> Vec<Ipv4Addr> {
    let mut servers = Vec::new();
    let of_uplinks = network.desired.uplinks.iter().flat_map(|name| {
        ports.iter().filter(move |port| port.name == *name).flat_map(|port| port.dns.iter().copied())
    });
    let of_config = network.desired.local.dns.iter().copied();
    for server in of_config.chain(of_uplinks) {
        // Apps are often told the gateway as their server: asking ourselves would never end.
        if server != network.desired.local.gateway && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers.truncate(MAX_SERVERS);
    servers
}
