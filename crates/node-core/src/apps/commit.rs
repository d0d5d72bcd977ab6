// SPDX-License-Identifier: Apache-2.0
//! When what of the config reaches a running app.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{AclProtocol, AppInstance, AppInterface, DeviceConfig, VirtualizationMode, VolumeOrigin};
use model::desired::{AppDesired, VifsDesired};
use model::id::{AppId, VolumeKey};
use model::observed::Image;
use model::reason::{Fault, Reason};

use super::content::effective;
use super::network::{mapped_ports, plan_vifs};
use super::{Committed, Desired, Faults, Memory, Observed, is_alive};

/// Memory of the box that apps cannot have: the node's own services and the kernel.
const NODE_RESERVE_BYTES: u64 = 192 << 20;

pub(super) fn plan_apps(
    config: &DeviceConfig,
    observed: &Observed,
    memory: &mut Memory,
    desired: &mut Desired,
    faults: &mut Faults,
) {
    let mut order: Vec<&AppInstance> = config.apps.iter().collect();
    order.sort_by_key(|app| memory.apps.get(&app.id).map_or(u16::MAX, |m| m.number));
    let mut admitted = Admitted::new(observed);
    for app in order {
        note_purge(app, memory);
        let is_wanted = is_wanted(config, app);
        if let Err(fault) =
            check(config, app).and_then(|()| if is_wanted { admitted.admit(app) } else { Ok(()) })
        {
            faults.block_app(app.id, fault);
            continue;
        }
        if faults.blocked.contains(&app.id) || !is_wanted {
            continue;
        }
        if let Err(fault) = plan_app(app, observed, memory, desired, faults) {
            faults.block_app(app.id, fault);
        }
    }
}

/// Ordered to run: activated, and its profiles (if any) contain the current one.
pub(super) fn is_wanted(config: &DeviceConfig, app: &AppInstance) -> bool {
    app.is_active && (app.profiles.is_empty() || app.profiles.contains(&config.global_profile))
}

/// A purge that left the volumes' generations alone makes new ones of the node's own.
fn note_purge(app: &AppInstance, memory: &mut Memory) {
    let Some(entry) = memory.apps.get_mut(&app.id) else { return };
    if app.purge_counter == entry.purge_counter {
        return;
    }
    entry.purge_counter = app.purge_counter;
    if let Some(committed) = &entry.committed {
        let now: Vec<VolumeKey> =
            app.volumes.iter().map(|key| effective(*key, entry.local_generation)).collect();
        if now == committed.volumes {
            entry.local_generation += 1;
        }
    }
}

/// What can be said of an app from the config alone.
fn check(config: &DeviceConfig, app: &AppInstance) -> Result<(), Fault> {
    if app.resources.mode != VirtualizationMode::NoHyper {
        let message = format!(
            "app {}: virtualization mode {:?} cannot be had on this node",
            app.name, app.resources.mode
        );
        return Err(Fault::new(Reason::IsolationUnavailable, message));
    }
    if !app.adapters.is_empty() {
        let message = format!("app {}: physical devices cannot be given to containers so far", app.name);
        return Err(Fault::new(Reason::Unsupported, message));
    }
    match app.volumes.as_slice() {
        [_] => {}
        [] => return Err(Fault::new(Reason::InvalidConfig, format!("app {} has no root volume", app.name))),
        [_, _, ..] => {
            let message = format!("app {}: more than one volume cannot be used so far", app.name);
            return Err(Fault::new(Reason::Unsupported, message));
        }
    }
    for key in &app.volumes {
        let Some(volume) = config.volume(*key) else {
            let message = format!("app {}: volume {key} is not in the config", app.name);
            return Err(Fault::new(Reason::MissingReference, message));
        };
        match volume.origin {
            VolumeOrigin::Content(tree) if config.content_tree(tree).is_none() => {
                let message = format!(
                    "app {}: content tree {tree} of volume {} is not in the config",
                    app.name, volume.name
                );
                return Err(Fault::new(Reason::MissingReference, message));
            }
            VolumeOrigin::Content(_) => {}
            VolumeOrigin::Blank => {
                let message = format!("app {}: root volume {} has no content", app.name, volume.name);
                return Err(Fault::new(Reason::InvalidConfig, message));
            }
        }
    }
    for interface in &app.interfaces {
        if config.network_instance(interface.network).is_none() {
            let message = format!(
                "app {}: network instance {} of interface {} is not in the config",
                app.name, interface.network, interface.name
            );
            return Err(Fault::new(Reason::MissingReference, message));
        }
    }
    Ok(())
}

/// What earlier apps took of what there is once.
struct Admitted {
    memory_left_bytes: Option<u64>,
    ports: BTreeMap<(u16, AclProtocolKey), AppId>,
}

/// Orders protocols.
type AclProtocolKey = u16;

fn protocol_key(protocol: AclProtocol) -> AclProtocolKey {
    match protocol {
        AclProtocol::Icmp => 1,
        AclProtocol::Tcp => 6,
        AclProtocol::Udp => 17,
        AclProtocol::Number(number) => u16::from(number),
    }
}

impl Admitted {
    fn new(observed: &Observed) -> Admitted {
        let memory_left_bytes =
            observed.node.as_ref().map(|n| n.memory_bytes.saturating_sub(NODE_RESERVE_BYTES));
        Admitted { memory_left_bytes, ports: BTreeMap::new() }
    }

    fn admit(&mut self, app: &AppInstance) -> Result<(), Fault> {
        if let Some(left) = self.memory_left_bytes {
            self.memory_left_bytes = Some(left.checked_sub(app.resources.memory_bytes).ok_or_else(|| {
                let message = format!(
                    "app {} asks for {} bytes of memory, {left} are left",
                    app.name, app.resources.memory_bytes
                );
                Fault::new(Reason::MemoryExceeded, message)
            })?);
        }
        for (port, protocol) in mapped_ports(app) {
            let owner = *self.ports.entry((port, protocol_key(protocol))).or_insert(app.id);
            if owner != app.id {
                let message =
                    format!("app {}: port {port} of the node is already mapped to app {owner}", app.name);
                return Err(Fault::new(Reason::AddressConflict, message));
            }
        }
        Ok(())
    }
}

fn plan_app(
    app: &AppInstance,
    observed: &Observed,
    memory: &mut Memory,
    desired: &mut Desired,
    faults: &mut Faults,
) -> Result<(), Fault> {
    let target = Target::of(app, memory);
    let committed = memory.apps.get(&app.id).and_then(|m| m.committed.clone());
    let runs = observed.apps.get(&app.id).is_some_and(is_alive);
    let (commits, interfaces) = match &committed {
        None => (target.image(observed).is_some(), target.interfaces.clone()),
        Some(old) => {
            let may = target.may_commit(old, runs);
            if !may {
                target.warn(app, old, faults);
            }
            // the old instance runs on until the new volumes are there
            let ready = may && target.image(observed).is_some();
            (ready, if ready { target.interfaces.clone() } else { old.interfaces.clone() })
        }
    };
    let vifs = plan_vifs(app, &interfaces, memory, desired)?;
    let changes = committed.as_ref().is_none_or(|old| target.differs(old));
    if let (true, true, Some(image)) = (commits, changes, target.image(observed)) {
        target.commit(app, image, &vifs, desired, memory);
    }
    let ready = are_ready(&vifs, observed);
    desired.vifs.insert(app.id, vifs);
    let Some(committed) = memory.apps.get(&app.id).and_then(|m| m.committed.as_ref()) else { return Ok(()) };
    let volumes_stand =
        committed.volumes.iter().all(|key| observed.volumes.get(key).is_some_and(|v| v.image.is_some()));
    if (ready && volumes_stand) || runs {
        desired.apps.insert(app.id, committed.spec.clone());
    }
    Ok(())
}

/// The rules and the node's ends stand, as ordered now.
fn are_ready(vifs: &VifsDesired, observed: &Observed) -> bool {
    let Some(seen) = observed.vifs.get(&vifs.app) else { return vifs.vifs.is_empty() };
    vifs.vifs
        .iter()
        .all(|vif| seen.vifs.iter().any(|s| s.name == vif.name && s.address == vif.address && s.is_ready))
}

/// What the newest config asks of an app, in the form of what is committed.
struct Target {
    restart_counter: u32,
    purge_counter: u32,
    resources: model::config::Resources,
    volumes: Vec<VolumeKey>,
    interfaces: Vec<AppInterface>,
    user_data: Option<model::config::UserData>,
}

impl Target {
    fn of(app: &AppInstance, memory: &Memory) -> Target {
        let local = memory.apps.get(&app.id).map_or(0, |m| m.local_generation);
        Target {
            restart_counter: app.restart_counter,
            purge_counter: app.purge_counter,
            resources: app.resources,
            volumes: app.volumes.iter().map(|key| effective(*key, local)).collect(),
            interfaces: app
                .interfaces
                .iter()
                .map(|i| AppInterface { acl: Vec::new(), ..i.clone() })
                .collect(),
            user_data: app.user_data.clone(),
        }
    }

    /// The image of the root volume, once that stands.
    fn image<'a>(&self, observed: &'a Observed) -> Option<&'a Image> {
        observed.volumes.get(self.volumes.first()?)?.image.as_ref()
    }

    fn differs(&self, old: &Committed) -> bool {
        self.restart_counter != old.restart_counter
            || self.purge_counter != old.purge_counter
            || self.resources != old.resources
            || self.volumes != old.volumes
            || self.interfaces != old.interfaces
            || self.user_data != old.user_data
    }

    fn may_commit(&self, old: &Committed, runs: bool) -> bool {
        let purges = self.purge_counter != old.purge_counter;
        let restarts = purges || self.restart_counter != old.restart_counter || !runs;
        restarts && (purges || self.volumes == old.volumes)
    }

    fn warn(&self, app: &AppInstance, old: &Committed, faults: &mut Faults) {
        if self.volumes != old.volumes {
            let message = format!("app {}: its volumes changed without a purge", app.name);
            faults.warn_app(app.id, Fault::new(Reason::PurgeNeeded, message));
        } else if self.resources != old.resources {
            let message = format!("app {}: its resources changed without a restart", app.name);
            faults.warn_app(app.id, Fault::new(Reason::RestartNeeded, message));
        }
    }

    fn commit(
        self,
        app: &AppInstance,
        image: &Image,
        vifs: &VifsDesired,
        desired: &Desired,
        memory: &mut Memory,
    ) {
        let Some(root) = self.volumes.first().copied() else { return };
        let Some(entry) = memory.apps.get_mut(&app.id) else { return };
        if let Some(old) = &entry.committed {
            entry.retired.insert(old.spec.instance, old.volumes.clone());
        }
        entry.instance += 1;
        let mut dns: Vec<Ipv4Addr> = vifs
            .vifs
            .iter()
            .filter_map(|vif| Some(desired.networks.get(&vif.network)?.local()?.gateway))
            .collect();
        dns.dedup();
        let spec = AppDesired {
            app: app.id,
            name: app.name.to_string(),
            instance: entry.instance,
            mode: self.resources.mode,
            memory_bytes: self.resources.memory_bytes,
            vcpus: self.resources.vcpus.max(1),
            root,
            image: image.config.clone(),
            layers: image.layers.clone(),
            vif_count: u16::try_from(vifs.vifs.len()).unwrap_or(u16::MAX),
            dns,
            user_data: self.user_data.clone(),
        };
        entry.committed = Some(Committed {
            restart_counter: self.restart_counter,
            purge_counter: self.purge_counter,
            resources: self.resources,
            volumes: self.volumes,
            interfaces: self.interfaces,
            user_data: self.user_data,
            spec,
        });
    }
}
