// SPDX-License-Identifier: Apache-2.0
//! The apps planner: from the device config and what every process observed to what each process shall keep.
//!
//! Owns: which content, volumes, networks, interfaces and apps are to exist now, in which order they come and go, and
//! what is reported of them. Never: an effect, a clock, a wire format.
//!
//! Order of coming: content → volume, network → interfaces → app. Order of going is the reverse, one step per round:
//! an interface stays until the app is seen to be gone, a volume until its interfaces are.
//!
//! What runs is *committed*: later changes of the config reach a running app only as EVE defines it.
//!
//! | change | takes effect |
//! |---|---|
//! | ACL | at once |
//! | restart counter | the app is stopped and started with all changes but those of volumes |
//! | purge counter | the new volumes are made while the old instance runs, then both are swapped |
//! | memory, processors, interfaces, user data alone | at the next restart; resources report `RestartNeeded` |
//! | volumes alone | not at all; reports `PurgeNeeded` |
//! | size of a volume, its place in the app, probe | at the next restart |
//!
//! A volume that is full ([`Reason::VolumeFull`](model::reason::Reason)) stops the apps that use it and is never deleted for
//! it; a volume that may be written belongs to one app.

mod commit;
pub(crate) mod content;
mod network;
pub(crate) mod probe;
mod report;
#[cfg(test)]
mod tests;
mod volumes;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{AppInterface, DeviceConfig, ObjectRef, Resources, UserData};
use model::desired::{AppDesired, ContentDesired, NetworkDesired, Probe, VifsDesired, VolumeDesired};
use model::id::{AppId, ContentTreeId, NetworkInstanceId, VolumeKey};
use model::observed::{
    AppObserved, ContentObserved, NetworkObserved, NodeObserved, PortObserved, VifsObserved, VolumeObserved,
};
use model::reason::Fault;
use model::status::{AppStatus, ConfigApplied, ContentTreeStatus, NetworkInstanceStatus, VolumeStatus};
use serde::{Deserialize, Serialize};

use crate::items;

/// What the processes saw. Complete: the planner is not run before all of it is synced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub content: BTreeMap<ContentTreeId, ContentObserved>,
    pub volumes: BTreeMap<VolumeKey, VolumeObserved>,
    pub networks: BTreeMap<NetworkInstanceId, NetworkObserved>,
    pub vifs: BTreeMap<AppId, VifsObserved>,
    pub apps: BTreeMap<AppId, AppObserved>,
    pub ports: BTreeMap<String, PortObserved>,
    pub node: Option<NodeObserved>,
}

/// What the planner must not forget, also over a power cut: numbers, leases and what was committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub apps: BTreeMap<AppId, AppMemory>,
    /// Number of each network instance: names its bridge.
    pub networks: BTreeMap<NetworkInstanceId, u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppMemory {
    /// Names the node's ends of its interfaces. Older apps have lower numbers, and win conflicts.
    pub number: u16,
    /// Added to the generation of the app's root volume: raised by a purge that left the generations alone. Other
    /// volumes outlive such a purge, as the standard has it.
    pub local_generation: u64,
    /// Purge counter `local_generation` has been raised for.
    pub purge_counter: u32,
    /// Rises with every commit.
    pub instance: u64,
    pub leases: BTreeMap<(NetworkInstanceId, String), Ipv4Addr>,
    pub committed: Option<Committed>,
    /// Volumes of earlier instances that may still run.
    pub retired: BTreeMap<u64, Vec<VolumeKey>>,
}

/// What of the config an app was last started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub restart_counter: u32,
    pub purge_counter: u32,
    pub resources: Resources,
    pub volumes: Vec<VolumeUse>,
    /// Without their rules: those change at once.
    pub interfaces: Vec<AppInterface>,
    pub user_data: Option<UserData>,
    pub probe: Option<Probe>,
    pub spec: AppDesired,
}

/// How an app uses a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// With the local generation added.
    pub key: VolumeKey,
    pub name: String,
    pub mount_dir: String,
    pub max_size_bytes: u64,
    pub is_read_only: bool,
}

/// What each process shall keep. Absent means to go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    pub content: BTreeMap<ContentTreeId, ContentDesired>,
    pub volumes: BTreeMap<VolumeKey, VolumeDesired>,
    pub networks: BTreeMap<NetworkInstanceId, NetworkDesired>,
    pub vifs: BTreeMap<AppId, VifsDesired>,
    pub apps: BTreeMap<AppId, AppDesired>,
}

/// What is reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub apps: BTreeMap<AppId, AppStatus>,
    pub content: BTreeMap<ContentTreeId, ContentTreeStatus>,
    pub volumes: BTreeMap<VolumeKey, VolumeStatus>,
    pub networks: BTreeMap<NetworkInstanceId, NetworkInstanceStatus>,
    pub applied: ConfigApplied,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub desired: Desired,
    pub status: Status,
    /// To be on disk before `desired` is published.
    pub memory: Memory,
}

/// Decides what shall be. `previous` is the desired state of the last round, or what was published before a restart.
/// Same inputs, same plan; in a steady world `plan.desired == previous`.
pub fn plan(config: &DeviceConfig, observed: &Observed, memory: &Memory, previous: &Desired) -> Plan {
    let (items, echo) = items::read(&config.items);
    let mut memory = memory.clone();
    let mut faults = Faults::from_config(config);
    let desired = if items.is_maintenance {
        previous.clone()
    } else {
        forget_the_gone(config, observed, &mut memory);
        number_objects(config, &mut memory);
        let mut desired = Desired::default();
        network::plan_networks(config, observed, &memory, &mut desired, &mut faults);
        content::plan_content(config, &mut desired, &mut faults);
        commit::plan_apps(config, observed, &mut memory, &mut desired, &mut faults);
        hold_the_unreadable(config, previous, &mut desired);
        keep_the_leaving(observed, previous, &mut desired);
        volumes::plan_volumes(config, observed, &memory, previous, &mut desired);
        desired
    };
    let status = report::report(
        &report::World {
            config,
            observed,
            memory: &memory,
            desired: &desired,
            faults: &faults,
            is_maintenance: items.is_maintenance,
        },
        echo,
    );
    Plan { desired, status, memory }
}

/// What there is to report when nothing is changed: of what was decided last, not of what would be decided now.
pub fn status(config: &DeviceConfig, observed: &Observed, memory: &Memory, decided: &Desired) -> Status {
    let (items, echo) = items::read(&config.items);
    let world = report::World {
        config,
        observed,
        memory,
        desired: decided,
        faults: &Faults::from_config(config),
        is_maintenance: items.is_maintenance,
    };
    report::report(&world, echo)
}

/// Faults found while planning, by the object they struck.
#[derive(Debug, Default)]
struct Faults {
    apps: BTreeMap<AppId, Vec<Fault>>,
    /// Apps that cannot run because of their faults, as opposed to those that run on as they were.
    blocked: BTreeSet<AppId>,
    content: BTreeMap<ContentTreeId, Vec<Fault>>,
    networks: BTreeMap<NetworkInstanceId, Vec<Fault>>,
}

impl Faults {
    fn from_config(config: &DeviceConfig) -> Faults {
        let mut out = Faults::default();
        for entry in &config.faults {
            match &entry.object {
                ObjectRef::App(id) => out.block_app(*id, entry.fault.clone()),
                ObjectRef::ContentTree(id) => out.content(*id, entry.fault.clone()),
                ObjectRef::NetworkInstance(id) => {
                    out.networks.entry(*id).or_default().push(entry.fault.clone())
                }
                ObjectRef::Device
                | ObjectRef::Volume(_)
                | ObjectRef::Datastore(_)
                | ObjectRef::BaseOs
                | ObjectRef::Path(_) => {}
            }
        }
        out
    }
    /// The app runs on as it was; the operator should know.
    fn warn_app(&mut self, app: AppId, fault: Fault) {
        self.apps.entry(app).or_default().push(fault);
    }
    fn block_app(&mut self, app: AppId, fault: Fault) {
        self.blocked.insert(app);
        self.warn_app(app, fault);
    }
    fn content(&mut self, id: ContentTreeId, fault: Fault) {
        self.content.entry(id).or_default().push(fault);
    }
}

/// Drops the memory of apps and networks that are neither ordered nor seen any more.
fn forget_the_gone(config: &DeviceConfig, observed: &Observed, memory: &mut Memory) {
    memory.apps.retain(|id, _| {
        config.apps.iter().any(|app| app.id == *id)
            || is_unreadable(config, &ObjectRef::App(*id))
            || observed.apps.contains_key(id)
            || observed.vifs.contains_key(id)
    });
    for (id, entry) in &mut memory.apps {
        let alive = observed.apps.get(id).filter(|app| is_alive(app)).map(|app| app.instance);
        entry.retired.retain(|instance, _| alive == Some(*instance));
    }
    memory.networks.retain(|id, _| {
        config.network_instance(*id).is_some()
            || is_unreadable(config, &ObjectRef::NetworkInstance(*id))
            || observed.networks.contains_key(id)
    });
}

fn number_objects(config: &DeviceConfig, memory: &mut Memory) {
    for app in &config.apps {
        if !memory.apps.contains_key(&app.id) {
            let number = lowest_free(memory.apps.values().map(|m| m.number));
            let fresh = AppMemory { number, purge_counter: app.purge_counter, ..AppMemory::default() };
            memory.apps.insert(app.id, fresh);
        }
    }
    for instance in &config.network_instances {
        if !memory.networks.contains_key(&instance.id) {
            let number = lowest_free(memory.networks.values().copied());
            memory.networks.insert(instance.id, number);
        }
    }
}

fn lowest_free(taken: impl Iterator<Item = u16>) -> u16 {
    let taken: BTreeSet<u16> = taken.collect();
    (1..u16::MAX).find(|number| !taken.contains(number)).unwrap_or(u16::MAX)
}

/// An object of the config that could not be read is not deleted: it stays as it was.
fn hold_the_unreadable(config: &DeviceConfig, previous: &Desired, desired: &mut Desired) {
    fn hold<K: Ord + Copy, V: Clone>(key: K, from: &BTreeMap<K, V>, to: &mut BTreeMap<K, V>) {
        if let (false, Some(old)) = (to.contains_key(&key), from.get(&key)) {
            to.insert(key, old.clone());
        }
    }
    for entry in &config.faults {
        match &entry.object {
            ObjectRef::App(id) => {
                hold(*id, &previous.apps, &mut desired.apps);
                hold(*id, &previous.vifs, &mut desired.vifs);
            }
            ObjectRef::ContentTree(id) => hold(*id, &previous.content, &mut desired.content),
            ObjectRef::NetworkInstance(id) => hold(*id, &previous.networks, &mut desired.networks),
            ObjectRef::Volume(key) => {
                for old in previous.volumes.keys().filter(|old| old.id == key.id) {
                    hold(*old, &previous.volumes, &mut desired.volumes);
                }
            }
            ObjectRef::Device | ObjectRef::Datastore(_) | ObjectRef::BaseOs | ObjectRef::Path(_) => {}
        }
    }
}

fn is_unreadable(config: &DeviceConfig, object: &ObjectRef) -> bool {
    config.faults.iter().any(|entry| entry.object == *object)
}

/// An interface stays until its app is seen to be gone, a network until its interfaces are.
fn keep_the_leaving(observed: &Observed, previous: &Desired, desired: &mut Desired) {
    for (id, vifs) in &previous.vifs {
        if !desired.vifs.contains_key(id) && observed.apps.get(id).is_some_and(is_alive) {
            desired.vifs.insert(*id, vifs.clone());
        }
    }
    for (id, network) in &previous.networks {
        let in_use = || desired.vifs.values().flat_map(|v| &v.vifs).any(|vif| vif.network == *id);
        if !desired.networks.contains_key(id) && in_use() {
            desired.networks.insert(*id, network.clone());
        }
    }
}

/// There may still be a process of the app.
fn is_alive(app: &AppObserved) -> bool {
    use model::observed::RunState;
    match app.state {
        RunState::Starting | RunState::Running { .. } | RunState::Stopping | RunState::Backoff { .. } => true,
        RunState::Delayed { .. } | RunState::Halted | RunState::Failed => false,
    }
}
