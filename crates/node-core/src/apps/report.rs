// SPDX-License-Identifier: Apache-2.0
//! What is reported: the state of each object of the config, and of those that are still leaving.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

use core::net::Ipv4Addr;

use model::config::{
    AppInstance, ContentTree, DeviceConfig, NetworkInstance, NetworkInstanceKind, Volume, VolumeOrigin,
};
use model::desired::VifDesired;
use model::id::{AppId, ContentTreeId, NetworkInstanceId};
use model::observed::{AppObserved, ContentState, Health, RunState, VolumeObserved};
use model::reason::{Fault, Reason};
use model::status::{
    AppStatus, ConfigApplied, ConfigItemStatus, ContentTreeStatus, NetworkInstanceStatus, NetworkKind,
    NetworkVifStatus, SwState, VifStatus, VolumeStatus,
};

use super::commit::is_wanted;
use super::volumes;
use super::{Desired, Faults, Memory, Observed, Status, is_alive};

pub(super) struct World<'a> {
    pub config: &'a DeviceConfig,
    pub observed: &'a Observed,
    pub memory: &'a Memory,
    pub desired: &'a Desired,
    pub faults: &'a Faults,
    pub is_maintenance: bool,
}

pub(super) fn report(world: &World<'_>, items: Vec<ConfigItemStatus>) -> Status {
    let config = world.config;
    let mut apps: BTreeMap<AppId, AppStatus> =
        config.apps.iter().map(|app| (app.id, world.app(app))).collect();
    for (id, seen) in &world.observed.apps {
        // still leaving: its last report must not look as if it ran on
        if is_alive(seen) && !apps.contains_key(id) && !world.faults.apps.contains_key(id) {
            apps.insert(*id, world.leaving_app(*id, seen));
        }
    }
    for (id, faults) in &world.faults.apps {
        if !apps.contains_key(id) {
            apps.insert(*id, world.unreadable_app(*id, faults));
        }
    }
    Status {
        apps,
        content: config.content_trees.iter().map(|tree| (tree.id, world.content(tree))).collect(),
        volumes: config.volumes.iter().map(|volume| (volume.key, world.volume(volume))).collect(),
        networks: config
            .network_instances
            .iter()
            .map(|network| (network.id, world.network(network)))
            .collect(),
        applied: ConfigApplied {
            version: config.version.clone(),
            timestamp: config.timestamp,
            items,
            is_maintenance: world.is_maintenance,
            reboot_counter: config.reboot.map_or(0, |command| command.counter),
            shutdown_counter: config.shutdown.map_or(0, |command| command.counter),
        },
    }
}

impl World<'_> {
    fn app(&self, app: &AppInstance) -> AppStatus {
        let entry = self.memory.apps.get(&app.id);
        let committed = entry.and_then(|e| e.committed.as_ref());
        let seen = self.observed.apps.get(&app.id);
        let mut faults = self.faults.apps.get(&app.id).cloned().unwrap_or_default();
        let is_activated = is_wanted(self.config, app);
        let state = self.app_state(app, is_activated, seen, &mut faults);
        let counters = committed.map(|c| (c.restart_counter, c.purge_counter));
        let (restart_counter, purge_counter) = counters.unwrap_or((app.restart_counter, app.purge_counter));
        AppStatus {
            app: app.id,
            version: app.version.clone(),
            name: app.name.clone(),
            state,
            is_activated,
            faults,
            volumes: app.volumes.iter().map(|used| used.key).collect(),
            vifs: self.vifs(app.id, seen),
            restart_counter,
            purge_counter,
            started_at: match seen.map(|s| s.state) {
                Some(RunState::Running { started_at, .. }) => started_at,
                _ => None,
            },
        }
    }

    fn app_state(
        &self,
        app: &AppInstance,
        is_activated: bool,
        seen: Option<&AppObserved>,
        faults: &mut Vec<Fault>,
    ) -> SwState {
        let entry = self.memory.apps.get(&app.id);
        let committed = entry.and_then(|e| e.committed.as_ref());
        if self.is_maintenance && !seen.is_some_and(is_alive) && is_activated {
            faults.push(Fault::new(Reason::Maintenance, "the node starts no apps while in maintenance mode"));
            return SwState::Halted;
        }
        let is_told =
            |s: &&AppObserved| is_alive(s) || matches!(s.state, RunState::Failed | RunState::Delayed { .. });
        if let Some(seen) = seen.filter(is_told) {
            faults.extend(seen.fault.clone());
            let leaves = !self.desired.apps.contains_key(&app.id);
            let stale = committed.is_some_and(|c| c.spec.instance != seen.instance);
            return match seen.state {
                _ if leaves && is_alive(seen) => SwState::Halting,
                RunState::Running { .. } | RunState::Stopping if stale => SwState::Restarting,
                RunState::Delayed { .. } => SwState::StartDelayed,
                RunState::Starting => SwState::Booting,
                RunState::Running { .. } if self.purges(app) => {
                    // Why the new volumes are not there yet.
                    let volumes = app.volumes.iter().filter_map(|used| self.config.volume(used.key));
                    faults.extend(volumes.filter_map(|volume| self.volume_progress(volume).1));
                    SwState::Purging
                }
                RunState::Running { .. } => match &seen.health {
                    // Its probe has not been answered yet.
                    Some(Health::Unknown) => SwState::Booting,
                    Some(Health::Bad(why)) => {
                        let message = format!("app {}: {why}", app.name);
                        faults.push(Fault::new(Reason::AppUnhealthy, message));
                        SwState::Running
                    }
                    Some(Health::Good) | None => SwState::Running,
                },
                RunState::Stopping => SwState::Halting,
                RunState::Backoff { .. } | RunState::Failed | RunState::Halted => SwState::Failed,
            };
        }
        if self.faults.blocked.contains(&app.id) {
            return SwState::Failed;
        }
        let volumes = app
            .volumes
            .iter()
            .filter_map(|used| self.config.volume(used.key))
            .map(|volume| {
                let (state, fault) = self.volume_progress(volume);
                faults.extend(fault);
                state
            })
            .min()
            .unwrap_or(SwState::Initial);
        if volumes < SwState::CreatedVolume {
            let is_stuck =
                faults.iter().any(|fault| fault.reason.retry() == model::reason::Retry::AfterChange);
            return if is_stuck { SwState::Failed } else { volumes };
        }
        if !is_activated {
            return if committed.is_some() { SwState::Halted } else { SwState::Installed };
        }
        let network_faults = self
            .desired
            .vifs
            .get(&app.id)
            .into_iter()
            .flat_map(|v| &v.vifs)
            .filter_map(|vif| self.observed.networks.get(&vif.network)?.fault.clone());
        faults.extend(network_faults);
        let vif_faults =
            self.observed.vifs.get(&app.id).into_iter().flat_map(|v| &v.vifs).filter_map(|v| v.fault.clone());
        faults.extend(vif_faults);
        if self.desired.apps.contains_key(&app.id) { SwState::Booting } else { SwState::AwaitNetworkInstance }
    }

    /// A purge is under way: the new volumes are not there yet.
    fn purges(&self, app: &AppInstance) -> bool {
        self.memory
            .apps
            .get(&app.id)
            .is_some_and(|e| e.committed.as_ref().is_some_and(|c| c.purge_counter != app.purge_counter))
    }

    fn leaving_app(&self, id: AppId, seen: &AppObserved) -> AppStatus {
        let state = match seen.state {
            _ if !self.desired.apps.contains_key(&id) => SwState::Halting,
            // nobody was told to stop it yet
            RunState::Running { .. } => SwState::Running,
            RunState::Starting => SwState::Booting,
            RunState::Stopping => SwState::Halting,
            _ => SwState::Failed,
        };
        AppStatus { state, ..self.nameless_app(id) }
    }

    /// Of which the config says nothing that can be read.
    fn nameless_app(&self, id: AppId) -> AppStatus {
        let spec = self.memory.apps.get(&id).and_then(|e| e.committed.as_ref()).map(|c| &c.spec);
        AppStatus { name: spec.map(|s| s.name.clone()).unwrap_or_default(), ..AppStatus::gone(id) }
    }

    /// Not readable in the newest config: what runs, runs on.
    fn unreadable_app(&self, id: AppId, faults: &[Fault]) -> AppStatus {
        let seen = self.observed.apps.get(&id);
        let runs = seen.is_some_and(|s| matches!(s.state, RunState::Running { .. }));
        AppStatus {
            state: if runs { SwState::Running } else { SwState::Failed },
            is_activated: self.desired.apps.contains_key(&id),
            faults: faults.to_vec(),
            vifs: self.vifs(id, seen),
            ..self.nameless_app(id)
        }
    }

    fn vifs(&self, app: AppId, seen: Option<&AppObserved>) -> Vec<VifStatus> {
        let runs = seen.is_some_and(|s| matches!(s.state, RunState::Running { .. }));
        let Some(vifs) = self.desired.vifs.get(&app) else { return Vec::new() };
        let status = |vif: &VifDesired| VifStatus {
            name: vif.name.clone(),
            network: vif.network,
            mac: vif.mac,
            address: self.address(app, vif),
            is_up: runs,
        };
        vifs.vifs.iter().map(status).collect()
    }

    /// As ordered, or in a switch as it was seen.
    fn address(&self, app: AppId, vif: &VifDesired) -> Option<Ipv4Addr> {
        let seen = || {
            let of_app = self.observed.vifs.get(&app)?;
            of_app.vifs.iter().find(|seen| seen.host_name == vif.host_name)?.address
        };
        vif.address.or_else(seen)
    }

    fn content_progress(&self, id: ContentTreeId) -> (SwState, u8, u64) {
        match self.observed.content.get(&id).map(|c| &c.state) {
            None => (SwState::Initial, 0, 0),
            Some(ContentState::ResolvingTag) => (SwState::ResolvingTag, 0, 0),
            Some(ContentState::Downloading { done_bytes, total_bytes, .. }) => {
                (SwState::Downloading, percent(*done_bytes, *total_bytes), *total_bytes)
            }
            Some(ContentState::Verified { total_bytes, .. }) => (SwState::Verified, 100, *total_bytes),
            Some(ContentState::Loaded(image)) => (SwState::Loaded, 100, image.total_bytes),
            Some(ContentState::LoadedFile(file)) => (SwState::Loaded, 100, file.size_bytes),
        }
    }

    fn content_faults(&self, id: ContentTreeId) -> Vec<Fault> {
        let mut faults = self.faults.content.get(&id).cloned().unwrap_or_default();
        faults.extend(self.observed.content.get(&id).and_then(|c| c.fault.clone()));
        faults
    }

    fn content(&self, tree: &ContentTree) -> ContentTreeStatus {
        let seen = self.observed.content.get(&tree.id);
        let faults = self.content_faults(tree.id);
        let (state, progress_percent, total_bytes) = self.content_progress(tree.id);
        let (digest, blobs) = match seen.map(|c| &c.state) {
            Some(ContentState::Loaded(image)) => {
                (Some(image.digest), image.blobs.iter().map(|b| b.digest).collect())
            }
            Some(ContentState::LoadedFile(file)) => (Some(file.digest), alloc::vec![file.digest]),
            Some(ContentState::Downloading { digest, .. } | ContentState::Verified { digest, .. }) => {
                (Some(*digest), Vec::new())
            }
            Some(ContentState::ResolvingTag) | None => (tree.digest, Vec::new()),
        };
        let users = self
            .config
            .volumes
            .iter()
            .filter(|volume| matches!(volume.origin, VolumeOrigin::Content(id) if id == tree.id))
            .count();
        let state =
            if state < SwState::Loaded && self.is_given_up(&faults) { SwState::Failed } else { state };
        ContentTreeStatus {
            id: tree.id,
            name: tree.name.clone(),
            state,
            digest,
            progress_percent,
            total_bytes,
            blobs,
            users: u32::try_from(users).unwrap_or(u32::MAX),
            faults,
        }
    }

    fn is_given_up(&self, faults: &[Fault]) -> bool {
        faults.iter().any(|fault| fault.reason.retry() == model::reason::Retry::AfterChange)
    }

    /// What stands for a volume of the config, after local purges of its app.
    fn seen_volume(&self, volume: &Volume) -> Option<&VolumeObserved> {
        volumes::keys(self.config, self.memory, volume).iter().find_map(|key| self.observed.volumes.get(key))
    }

    fn volume_progress(&self, volume: &Volume) -> (SwState, Option<Fault>) {
        let seen = self.seen_volume(volume);
        if let Some(seen) = seen.filter(|v| v.made.is_some()) {
            return (SwState::CreatedVolume, seen.fault.clone());
        }
        if let Some(fault) = seen.and_then(|v| v.fault.clone()) {
            return (SwState::CreatingVolume, Some(fault));
        }
        match volume.origin {
            VolumeOrigin::Blank => (SwState::CreatingVolume, None),
            VolumeOrigin::Content(id) => {
                let (state, _, _) = self.content_progress(id);
                let fault = self.content_faults(id).into_iter().next();
                (if state == SwState::Loaded { SwState::CreatingVolume } else { state }, fault)
            }
        }
    }

    fn volume(&self, volume: &Volume) -> VolumeStatus {
        let (state, fault) = self.volume_progress(volume);
        let faults: Vec<Fault> = fault.into_iter().collect();
        let seen = self.seen_volume(volume);
        let is_user = |app: &&AppInstance| app.volumes.iter().any(|used| used.key == volume.key);
        let users = self.config.apps.iter().filter(is_user).count();
        VolumeStatus {
            key: volume.key,
            name: volume.name.clone(),
            state: if state < SwState::CreatedVolume && self.is_given_up(&faults) {
                SwState::Failed
            } else {
                state
            },
            progress_percent: match volume.origin {
                VolumeOrigin::Content(id) => self.content_progress(id).1,
                VolumeOrigin::Blank => 0,
            },
            used_bytes: seen.map_or(0, |v| v.used_bytes),
            max_size_bytes: volume.max_size_bytes,
            users: u32::try_from(users).unwrap_or(u32::MAX),
            faults,
        }
    }

    fn network(&self, instance: &NetworkInstance) -> NetworkInstanceStatus {
        let id: NetworkInstanceId = instance.id;
        let seen = self.observed.networks.get(&id);
        let mut faults = self.faults.networks.get(&id).cloned().unwrap_or_default();
        faults.extend(seen.and_then(|s| s.fault.clone()));
        let vifs = self.desired.vifs.values().flat_map(|app| {
            app.vifs.iter().filter(|vif| vif.network == id).map(|vif| NetworkVifStatus {
                app: app.app,
                vif: vif.host_name.clone(),
                mac: vif.mac,
                address: self.address(app.app, vif),
            })
        });
        let local = self.desired.networks.get(&id).and_then(|network| network.local());
        NetworkInstanceStatus {
            id,
            version: instance.version.clone(),
            name: instance.name.clone(),
            is_active: seen.is_some_and(|s| s.is_up),
            kind: Some(match instance.kind {
                NetworkInstanceKind::Local(_) => NetworkKind::Local,
                NetworkInstanceKind::Switch => NetworkKind::Switch,
            }),
            gateway: local.map(|local| local.gateway),
            mtu: seen.map_or(0, |seen| seen.mtu),
            bridge: seen.map(|s| s.bridge.clone()).unwrap_or_default(),
            uplink: seen.and_then(|s| s.uplink.clone()),
            vifs: vifs.collect(),
            faults,
        }
    }
}

fn percent(done: u64, total: u64) -> u8 {
    u8::try_from((u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(0).min(100)).unwrap_or(100)
}
