// SPDX-License-Identifier: Apache-2.0
//! When what of the config reaches a running app.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{AclProtocol, AppInstance, AppInterface, DeviceConfig, VirtualizationMode};
use model::desired::{AppDesired, MountDesired, Probe, VifsDesired};
use model::id::{AppId, VolumeKey};
use model::observed::Image;
use model::reason::{Fault, Reason};

use super::network::{mapped_ports, plan_vifs};
use super::{Committed, Desired, Faults, Memory, Observed, VolumeUse, is_alive, probe, volumes};

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
        note_purge(config, app, memory);
        let is_wanted = is_wanted(config, app);
        if let Err(fault) =
            check(config, app).and_then(|()| if is_wanted { admitted.admit(config, app) } else { Ok(()) })
        {
            faults.block_app(app.id, fault);
            continue;
        }
        if faults.blocked.contains(&app.id) || !is_wanted {
            continue;
        }
        if let Err(fault) = plan_app(config, app, observed, memory, desired, faults) {
            faults.block_app(app.id, fault);
        }
    }
}

/// Ordered to run: activated, and its profiles (if any) contain the current one.
pub(super) fn is_wanted(config: &DeviceConfig, app: &AppInstance) -> bool {
    app.is_active && (app.profiles.is_empty() || app.profiles.contains(&config.global_profile))
}

/// A purge that left the volumes' generations alone makes new ones of the node's own.
fn note_purge(config: &DeviceConfig, app: &AppInstance, memory: &mut Memory) {
    let Some(entry) = memory.apps.get_mut(&app.id) else { return };
    if app.purge_counter == entry.purge_counter {
        return;
    }
    let before = core::mem::replace(&mut entry.purge_counter, app.purge_counter);
    if let Some(committed) = &mut entry.committed {
        // back at what is committed, by way of another: a purge all the same
        if committed.purge_counter == app.purge_counter {
            committed.purge_counter = before;
        }
        let now = volumes::uses(config, app, entry.local_generation);
        if keys(&now).eq(keys(&committed.volumes)) {
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
    volumes::check(config, app)?;
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
    /// Those that may be written.
    volumes: BTreeMap<VolumeKey, AppId>,
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
        Admitted { memory_left_bytes, ports: BTreeMap::new(), volumes: BTreeMap::new() }
    }

    fn admit(&mut self, config: &DeviceConfig, app: &AppInstance) -> Result<(), Fault> {
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
        for volume in app.volumes.iter().filter_map(|used| config.volume(used.key)) {
            if volume.is_read_only {
                continue;
            }
            let owner = *self.volumes.entry(volume.key).or_insert(app.id);
            if owner != app.id {
                let message =
                    format!("app {}: volume {} is writable and used by app {owner}", app.name, volume.name);
                return Err(Fault::new(Reason::VolumeInUse, message));
            }
        }
        Ok(())
    }
}

fn plan_app(
    config: &DeviceConfig,
    app: &AppInstance,
    observed: &Observed,
    memory: &mut Memory,
    desired: &mut Desired,
    faults: &mut Faults,
) -> Result<(), Fault> {
    let target = Target::of(config, app, memory);
    let committed = memory.apps.get(&app.id).and_then(|m| m.committed.clone());
    let runs = observed.apps.get(&app.id).is_some_and(is_alive);
    let standing = volumes::standing(&target.volumes, observed);
    let (commits, interfaces) = match &committed {
        None => (standing.is_some(), target.interfaces.clone()),
        Some(old) => {
            let may = target.may_commit(old, runs);
            if !may {
                target.warn(app, old, faults);
            }
            // the old instance runs on until the new volumes are there
            let ready = may && standing.is_some();
            (ready, if ready { target.interfaces.clone() } else { old.interfaces.clone() })
        }
    };
    let vifs = plan_vifs(app, &interfaces, memory, desired)?;
    let changes = committed.as_ref().is_none_or(|old| target.differs(old));
    if let (true, true, Some(standing)) = (commits, changes, standing) {
        target.commit(app, standing, &vifs, desired, memory);
    }
    let ready = are_ready(&vifs, observed);
    desired.vifs.insert(app.id, vifs);
    let Some(committed) = memory.apps.get(&app.id).and_then(|m| m.committed.as_ref()) else { return Ok(()) };
    if let Some(fault) = volumes::obstacle(&committed.volumes, observed) {
        return Err(fault);
    }
    if (ready && volumes::standing(&committed.volumes, observed).is_some()) || runs {
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
    volumes: Vec<VolumeUse>,
    interfaces: Vec<AppInterface>,
    user_data: Option<model::config::UserData>,
    probe: Option<Probe>,
    start_delay_s: u32,
}

fn keys(uses: &[VolumeUse]) -> impl Iterator<Item = VolumeKey> {
    uses.iter().map(|volume| volume.key)
}

impl Target {
    fn of(config: &DeviceConfig, app: &AppInstance, memory: &Memory) -> Target {
        let local = memory.apps.get(&app.id).map_or(0, |m| m.local_generation);
        Target {
            restart_counter: app.restart_counter,
            purge_counter: app.purge_counter,
            resources: app.resources,
            volumes: volumes::uses(config, app, local),
            interfaces: app
                .interfaces
                .iter()
                .map(|i| AppInterface { acl: Vec::new(), ..i.clone() })
                .collect(),
            user_data: app.user_data.clone(),
            probe: probe::of(config, app.id),
            start_delay_s: app.start_delay_s,
        }
    }

    fn differs(&self, old: &Committed) -> bool {
        self.restart_counter != old.restart_counter
            || self.purge_counter != old.purge_counter
            || self.resources != old.resources
            || self.volumes != old.volumes
            || self.interfaces != old.interfaces
            || self.user_data != old.user_data
            || self.probe != old.probe
            || self.start_delay_s != old.spec.start_delay_s
    }

    fn may_commit(&self, old: &Committed, runs: bool) -> bool {
        let purges = self.purge_counter != old.purge_counter;
        let restarts = purges || self.restart_counter != old.restart_counter || !runs;
        restarts && (purges || keys(&self.volumes).eq(keys(&old.volumes)))
    }

    fn warn(&self, app: &AppInstance, old: &Committed, faults: &mut Faults) {
        if !keys(&self.volumes).eq(keys(&old.volumes)) {
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
        (image, mounts): (&Image, Vec<MountDesired>),
        vifs: &VifsDesired,
        desired: &Desired,
        memory: &mut Memory,
    ) {
        let Some(root) = self.volumes.first() else { return };
        let Some(entry) = memory.apps.get_mut(&app.id) else { return };
        if let Some(old) = &entry.committed {
            entry.retired.insert(old.spec.instance, keys(&old.volumes).collect());
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
            root: root.key,
            root_size_bytes: root.max_size_bytes,
            mounts,
            image: image.config.clone(),
            layers: image.layers.clone(),
            vif_count: u16::try_from(vifs.vifs.len()).unwrap_or(u16::MAX),
            dns,
            user_data: self.user_data.clone(),
            start_delay_s: app.start_delay_s,
            probe: self.probe.clone(),
        };
        entry.committed = Some(Committed {
            restart_counter: self.restart_counter,
            purge_counter: self.purge_counter,
            resources: self.resources,
            volumes: self.volumes,
            interfaces: self.interfaces,
            user_data: self.user_data,
            probe: self.probe,
            spec,
        });
    }
}
