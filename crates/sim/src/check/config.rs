// SPDX-License-Identifier: Apache-2.0
//! What was said is not taken back: configs, instances, addresses, volumes. And no secret is said at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::config::DeviceConfig;
use model::desired::{AppDesired, VifsDesired};
use model::id::{AppId, DeviceId, VolumeId, VolumeKey};
use model::time::WallTime;

use super::Checker;
use crate::node::Name;
use crate::world::World;
use crate::{CANARY, Fact, MINUTE_MS};

fn config(fact: &Fact) -> Option<DeviceConfig> {
    match fact {
        Fact::Put { frame, .. } if frame.0 == "config" => postcard::from_bytes(&frame.2).ok(),
        _ => None,
    }
}

/// On a full disk a config is in force before it is saved, so that one that makes room can come.
fn is_kept(world: &World, node: usize) -> bool {
    !world.nodes[node].machine.disk.is_full.get()
}

/// Timestamps of configs, generations of volumes, instances and counters of apps only rise.
///
/// A controller that was restored cannot know of generations that nobody reported (docs/decisions/0041). An app that was
/// gone and comes back is a new one to the node.
#[derive(Debug, Default)]
pub(super) struct NeverBack {
    timestamps: BTreeMap<usize, Option<WallTime>>,
    generations: BTreeMap<(usize, VolumeId), u64>,
    counters: BTreeMap<(usize, AppId), (u32, u32)>,
    instances: BTreeMap<(usize, AppId), u64>,
}

fn rises<K: Ord, V: PartialOrd + Copy + std::fmt::Debug>(
    what: &str,
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
) -> Result<(), String> {
    match map.insert(key, value) {
        Some(old) if value < old => Err(format!("{what} went back from {old:?} to {value:?}")),
        _ => Ok(()),
    }
}

impl Checker for NeverBack {
    fn name(&self) -> &'static str {
        "generations never go back"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        if let Some(config) = config(fact).filter(|_| is_kept(world, node)) {
            rises("the timestamp of the config", &mut self.timestamps, node, config.timestamp)?;
            let settled = world.controller.settled.get(&config.id.0);
            let is_unreported = |id: VolumeId, generation: u64| {
                settled.is_some_and(|told| told.generations.get(&id).is_none_or(|told| *told < generation))
            };
            for app in &config.apps {
                let counters = (app.restart_counter, app.purge_counter);
                let Some(old) = self.counters.insert((node, app.id), counters) else { continue };
                let root = app.volumes.first().map(|volume| volume.key.id);
                let generation = root.and_then(|id| self.generations.get(&(node, id)).map(|old| (id, *old)));
                let may_purge_less = generation.is_some_and(|(id, old)| is_unreported(id, old));
                if counters.0 < old.0 || (counters.1 < old.1 && !may_purge_less) {
                    return Err(format!(
                        "counters of app {} went back from {old:?} to {counters:?}",
                        app.name
                    ));
                }
            }
            for volume in &config.volumes {
                let (id, generation) = (volume.key.id, volume.key.generation);
                if self.generations.get(&(node, id)).is_some_and(|old| is_unreported(id, *old)) {
                    self.generations.remove(&(node, id));
                }
                rises("the generation of a volume", &mut self.generations, (node, id), generation)?;
            }
        }
        if let Fact::Removed { .. } | Fact::Tick = fact {
            self.instances.retain(|(of, app), _| *of != node || !world.nodes[node].has_forgotten(*app));
        }
        if let Fact::Put { frame, .. } = fact
            && frame.0 == "app-desired"
            && let Ok(desired) = postcard::from_bytes::<AppDesired>(&frame.2)
        {
            let what = format!("the instance of app {}", desired.name);
            rises(&what, &mut self.instances, (node, desired.app), desired.instance)?;
        }
        Ok(())
    }
}

/// No topic carries what only the vault may see.
#[derive(Debug)]
pub(super) struct NoSecret;

impl Checker for NoSecret {
    fn name(&self) -> &'static str {
        "no secret on topics"
    }

    fn see(&mut self, _: &World, _: usize, fact: &Fact) -> Result<(), String> {
        let Fact::Put { frame, .. } = fact else { return Ok(()) };
        let (topic, key, value) = &**frame;
        if value.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()) {
            return Err(format!("topic {topic}, key {key:?} carries a secret"));
        }
        Ok(())
    }
}

/// What was told was on the disk before, so it is there after every power cut.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    devices: BTreeMap<usize, DeviceId>,
    configs: BTreeMap<usize, Option<WallTime>>,
    addresses: BTreeMap<(usize, AppId, String), (String, Option<Ipv4Addr>)>,
    volumes: BTreeSet<(usize, VolumeKey)>,
    /// When the agent was seen up without a config it had had.
    missing_since: BTreeMap<usize, u64>,
}

/// The agent has its saved config in force by then; it needs the vault for that.
const LOADED_MS: u64 = 2 * MINUTE_MS;

impl Checker for Acknowledged {
    fn name(&self) -> &'static str {
        "acknowledged writes survive"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::VolumeMade { key } => {
                self.volumes.insert((node, *key));
            }
            Fact::VolumeDropped { key } => {
                self.volumes.remove(&(node, *key));
            }
            Fact::Removed { .. } => self.forget(world, node),
            Fact::Put { frame, .. } if frame.0 == "vifs-desired" => {
                if let Ok(app) = postcard::from_bytes::<VifsDesired>(&frame.2) {
                    return self.vifs(node, &app);
                }
            }
            Fact::Put { .. } => {
                if let Some(config) = config(fact).filter(|_| is_kept(world, node)) {
                    self.missing_since.remove(&node);
                    self.devices.insert(node, config.id);
                    let before = self.configs.insert(node, config.timestamp);
                    if before.is_some_and(|before| config.timestamp < before) {
                        return Err("an older config is in force than was said before".into());
                    }
                }
            }
            Fact::PowerOff => {
                self.missing_since.remove(&node);
            }
            Fact::Tick | Fact::End => {
                self.forget(world, node);
                return self.look(world, node);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Acknowledged {
    fn forget(&mut self, world: &World, node: usize) {
        self.addresses.retain(|(of, app, _), _| *of != node || !world.nodes[node].has_forgotten(*app));
    }

    fn vifs(&mut self, node: usize, app: &VifsDesired) -> Result<(), String> {
        for vif in &app.vifs {
            let key = (node, app.app, vif.name.clone());
            let value = (vif.host_name.clone(), vif.address);
            match self.addresses.insert(key, value.clone()) {
                Some(old) if old != value => {
                    return Err(format!("{} of app {} was {old:?} and is {value:?}", vif.name, app.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn look(&mut self, world: &World, index: usize) -> Result<(), String> {
        let node = &world.nodes[index];
        let is_up = node.is_on && node.is_up(Name::Agent) && !node.machine.is_vault_down;
        if !is_up {
            self.missing_since.remove(&index);
            return Ok(());
        }
        if let Some(agent) = node.agent()
            && self.devices.contains_key(&index)
        {
            if agent.device() != self.devices.get(&index).copied() {
                return Err("the node forgot which device it is".into());
            }
            if agent.config().is_none() {
                let since = *self.missing_since.entry(index).or_insert(world.now_ms);
                if world.now_ms - since > LOADED_MS {
                    return Err("the node forgot its config".into());
                }
            }
        }
        if let Some(store) = node.store().filter(|_| node.is_up(Name::Store)) {
            let lost = self.volumes.iter().find(|(of, key)| *of == index && !store.made.contains_key(key));
            if let Some((_, key)) = lost {
                return Err(format!("volume {key} was made and is gone"));
            }
        }
        Ok(())
    }
}
