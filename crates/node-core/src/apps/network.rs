// SPDX-License-Identifier: Apache-2.0
//! Networks of apps, and the addresses of their interfaces.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{
    AclAction, AclProtocol, AppInstance, AppInterface, DeviceConfig, LocalNetwork, NetworkInstance,
    NetworkInstanceKind, SystemAdapter,
};
use model::desired::{NetworkDesired, VifDesired, VifsDesired};
use model::id::AppId;
use model::net::Mac;
use model::reason::{Fault, Reason};

use super::{AppMemory, Desired, Faults, Memory, Observed};

/// Label every node knows: all ports used for the controller.
const LABEL_UPLINK: &str = "uplink";
/// The same without those that cost.
const LABEL_FREE_UPLINK: &str = "freeuplink";
/// All ports.
const LABEL_ALL: &str = "all";

pub(super) fn plan_networks(
    config: &DeviceConfig,
    observed: &Observed,
    memory: &Memory,
    desired: &mut Desired,
    faults: &mut Faults,
) {
    for instance in config.network_instances.iter().filter(|i| i.is_active) {
        let uplinks = uplinks(config, observed, instance);
        if !instance.port.is_empty() && !uplinks.iter().any(|name| observed.ports.contains_key(name)) {
            let message = format!(
                "network instance {}: no port of this node matches {:?}",
                instance.name, instance.port
            );
            faults.networks.entry(instance.id).or_default().push(Fault::new(Reason::NetworkFailed, message));
        }
        let local = match &instance.kind {
            NetworkInstanceKind::Local(local) => Some(local),
            NetworkInstanceKind::Switch => None,
        };
        let overlaps = |a: &LocalNetwork, b: &LocalNetwork| {
            a.subnet.contains(b.subnet.network()) || b.subnet.contains(a.subnet.network())
        };
        let overlap = local.and_then(|local| {
            let other =
                desired.networks.values().find(|other| other.local().is_some_and(|o| overlaps(o, local)));
            Some((local, other?))
        });
        if let Some((local, other)) = overlap {
            let message = format!(
                "subnet {} of network instance {} overlaps that of {}",
                local.subnet, instance.name, other.name
            );
            faults
                .networks
                .entry(instance.id)
                .or_default()
                .push(Fault::new(Reason::AddressConflict, message));
            continue;
        }
        desired.networks.insert(
            instance.id,
            NetworkDesired {
                id: instance.id,
                name: instance.name.clone(),
                number: memory.networks.get(&instance.id).copied().unwrap_or(0),
                kind: instance.kind.clone(),
                mtu: instance.mtu,
                is_flow_logged: instance.is_flow_logged,
                uplinks,
            },
        );
    }
}

/// Linux names of the ports a network instance's label stands for, cheapest first.
fn uplinks(config: &DeviceConfig, observed: &Observed, instance: &NetworkInstance) -> Vec<String> {
    if config.system_adapters.is_empty() && !instance.port.is_empty() {
        // the config leaves the ports to the node
        return observed
            .ports
            .values()
            .filter(|port| !port.addresses.is_empty())
            .map(|port| port.name.clone())
            .collect();
    }
    let any_uplink = config.system_adapters.iter().any(|a| a.is_uplink);
    let matches = |adapter: &SystemAdapter| match instance.port.as_str() {
        "" => false,
        LABEL_ALL => true,
        // no adapter marked: all of them are used for the controller
        LABEL_UPLINK => adapter.is_uplink || !any_uplink,
        LABEL_FREE_UPLINK => (adapter.is_uplink || !any_uplink) && adapter.cost == 0,
        own => adapter.name == own || adapter.shared_labels.iter().any(|label| label == own),
    };
    let mut chosen: Vec<&SystemAdapter> = config.system_adapters.iter().filter(|a| matches(a)).collect();
    chosen.sort_by_key(|adapter| adapter.cost);
    chosen.iter().filter_map(|adapter| interface_of(config, adapter)).collect()
}

fn interface_of(config: &DeviceConfig, adapter: &SystemAdapter) -> Option<String> {
    let label = if adapter.lower_layer.is_empty() { &adapter.name } else { &adapter.lower_layer };
    config.physical_ios.iter().find(|io| io.logical_label == *label)?.interface.clone()
}

/// Interfaces of an app as ordered, with addresses that stay the same for the app's life.
pub(super) fn plan_vifs(
    app: &AppInstance,
    interfaces: &[AppInterface],
    memory: &mut Memory,
    desired: &Desired,
) -> Result<VifsDesired, Fault> {
    let mut vifs = Vec::new();
    for (index, interface) in interfaces.iter().enumerate() {
        let network = desired.networks.get(&interface.network).ok_or_else(|| {
            let message = format!(
                "app {}: network instance {} of interface {} is not to be had",
                app.name, interface.network, interface.name
            );
            Fault::new(Reason::NetworkFailed, message)
        })?;
        let address = lease(app, interface, network, memory)?;
        let number = memory.apps.get(&app.id).map_or(0, |m| m.number);
        // rules change at once: taken from the newest config, the interface itself from what was committed
        let acl = app.interfaces.iter().find(|i| i.name == interface.name).map_or(&interface.acl, |i| &i.acl);
        vifs.push(VifDesired {
            name: interface.name.clone(),
            network: interface.network,
            host_name: format!("nbu{}x{number}", index + 1),
            mac: interface.mac.unwrap_or_else(|| made_mac(app.id, index)),
            address,
            acl: acl.clone(),
        });
    }
    Ok(VifsDesired { app: app.id, name: dns_label(&app.name), vifs })
}

fn lease(
    app: &AppInstance,
    interface: &AppInterface,
    network: &NetworkDesired,
    memory: &mut Memory,
) -> Result<Option<Ipv4Addr>, Fault> {
    // Addresses of a switch are given outside; a fixed one is the operator's to choose.
    let Some(local) = network.local() else { return Ok(interface.address) };
    let key = (interface.network, interface.name.clone());
    let taken: BTreeSet<Ipv4Addr> = memory
        .apps
        .iter()
        .flat_map(|(id, m)| m.leases.iter().map(move |(k, address)| (*id, k, *address)))
        .filter(|(id, k, _)| (*id, *k) != (app.id, &key) && k.0 == interface.network)
        .map(|(_, _, address)| address)
        .collect();
    let is_usable = |address: Ipv4Addr| {
        local.subnet.contains(address)
            && address != local.gateway
            && address != local.subnet.network()
            && address != local.subnet.broadcast()
    };
    let kept = memory.apps.get(&app.id).and_then(|m| m.leases.get(&key)).copied();
    let address = match interface.address {
        Some(wanted) if !is_usable(wanted) => {
            let message = format!(
                "app {}: address {wanted} of interface {} is no host address of {}",
                app.name, interface.name, local.subnet
            );
            return Err(Fault::new(Reason::InvalidConfig, message));
        }
        Some(wanted) if taken.contains(&wanted) => {
            let message = format!(
                "app {}: address {wanted} of interface {} belongs to another app",
                app.name, interface.name
            );
            return Err(Fault::new(Reason::AddressConflict, message));
        }
        Some(wanted) => wanted,
        None => match kept.filter(|a| is_usable(*a) && !taken.contains(a)) {
            Some(kept) => kept,
            None => free_address(local.range, |a| is_usable(a) && !taken.contains(&a)).ok_or_else(|| {
                let message = format!("app {}: no free address left in network {}", app.name, network.name);
                Fault::new(Reason::AddressConflict, message)
            })?,
        },
    };
    let entry: &mut AppMemory = memory.apps.entry(app.id).or_default();
    entry.leases.insert(key, address);
    Ok(Some(address))
}

fn free_address((first, last): (Ipv4Addr, Ipv4Addr), is_free: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    (first.to_bits()..=last.to_bits()).map(Ipv4Addr::from_bits).find(|a| is_free(*a))
}

/// A locally administered address that depends on the app alone (FNV-1a over its id).
fn made_mac(app: AppId, index: usize) -> Mac {
    let hash = app
        .0
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let [_, a, b, c] = hash.to_be_bytes();
    Mac([0x02, 0x16, 0x3e, a, b, c.wrapping_add(index as u8)])
}

/// Lower case letters, digits and hyphens, at most 63: what a DNS label may hold (RFC 1035 §2.3.1).
fn dns_label(name: &str) -> String {
    let text: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(63)
        .collect();
    text.trim_matches('-').to_string()
}

/// Node ports an app's rules map: port and protocol.
pub(super) fn mapped_ports(app: &AppInstance) -> impl Iterator<Item = (u16, AclProtocol)> + '_ {
    app.interfaces.iter().flat_map(|i| &i.acl).filter_map(|rule| match rule.action {
        AclAction::PortMap { .. } => {
            Some((rule.matches.local_port?.first, rule.matches.protocol.unwrap_or(AclProtocol::Tcp)))
        }
        AclAction::Allow | AclAction::Drop | AclAction::Limit { .. } => None,
    })
}
