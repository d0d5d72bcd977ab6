// SPDX-License-Identifier: Apache-2.0
//! Apps run on whatever happens around them, and what is said of them is true.

use std::collections::BTreeMap;

use ipc::client::Topics;
use ipc::topics;
use model::config::{AppInstance, DeviceConfig};
use model::desired::AppDesired;
use model::id::AppId;
use model::status::SwState;
use node_core::run::ShimPhase;

use super::Checker;
use crate::node::Name;
use crate::world::World;
use crate::{CONVERGE_MS, Fact, MINUTE_MS};

/// The planner may order for the config before, while a newer one is on its way to it.
const LAG_MS: u64 = 1_000;
/// After this time without a disturbance what is said is what is.
const SETTLED_MS: u64 = 5 * MINUTE_MS;

/// An app is stopped only when its config changed. Not because the controller is away, a process died, or anything else.
#[derive(Debug, Default)]
pub(super) struct KeepRunning {
    /// What the config says of an app, and since when.
    said: BTreeMap<(usize, AppId), (Option<AppInstance>, u64)>,
    /// When an instance was first ordered.
    ordered: BTreeMap<(usize, AppId, u64), u64>,
}

impl Checker for KeepRunning {
    fn name(&self) -> &'static str {
        "apps keep running"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        let t = world.now_ms;
        match fact {
            Fact::Put { frame, .. } if frame.0 == "config" => {
                let Ok(config) = postcard::from_bytes::<DeviceConfig>(&frame.2) else {
                    return Err("the config cannot be read".into());
                };
                for app in &config.apps {
                    let said = self.said.entry((node, app.id)).or_insert((None, t));
                    if said.0.as_ref() != Some(app) {
                        *said = (Some(app.clone()), t);
                    }
                }
                for ((of, id), said) in &mut self.said {
                    if *of == node && said.0.is_some() && !config.apps.iter().any(|app| app.id == *id) {
                        *said = (None, t);
                    }
                }
            }
            Fact::Put { frame, .. } if frame.0 == "app-desired" => {
                if let Ok(desired) = postcard::from_bytes::<AppDesired>(&frame.2) {
                    self.ordered.entry((node, desired.app, desired.instance)).or_insert(t);
                }
            }
            Fact::AppStopped { app, instance } => {
                let changed = self.said.get(&(node, *app)).map_or(0, |said| said.1);
                let ordered = self.ordered.get(&(node, *app, *instance)).copied().unwrap_or(0);
                if changed + LAG_MS < ordered {
                    return Err(format!(
                        "app {app} was stopped, but its config did not change since instance {instance} was ordered"
                    ));
                }
            }
            Fact::Tick => return run_alone(world, node),
            _ => {}
        }
        Ok(())
    }
}

/// What has its volume runs, with or without a controller, uplink or registry.
fn run_alone(world: &World, node: usize) -> Result<(), String> {
    let node = &world.nodes[node];
    let machine = &node.machine;
    let is_settled = node.is_on && node.last_disturbed_ms + CONVERGE_MS < world.now_ms;
    let is_failing = machine.is_vault_down
        || machine.is_kernel_failing
        || machine.is_spawn_failing
        || machine.disk.is_full.get()
        || !Name::SERVICES.iter().all(|name| node.is_up(*name));
    if !is_settled || is_failing {
        return Ok(());
    }
    let (Some(config), Some(store)) = (node.agent().and_then(|agent| agent.config()), node.store()) else {
        return Ok(());
    };
    for app in config.apps.iter().filter(|app| app.is_active) {
        let has_volumes = app.volumes.iter().all(|volume| store.made.contains_key(&volume.key));
        if has_volumes && !machine.shims.get(&app.id).is_some_and(|shim| shim.is_running()) {
            return Err(format!("app {} has its volume and does not run", app.name));
        }
    }
    Ok(())
}

/// What is reported of an app is what its shim does, once nothing was disturbed for a while.
#[derive(Debug)]
pub(super) struct StatusIsTrue;

impl Checker for StatusIsTrue {
    fn name(&self) -> &'static str {
        "status is true"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        let node = &world.nodes[node];
        let is_settled = node.is_on && node.last_disturbed_ms + SETTLED_MS < world.now_ms;
        let is_told = [Name::Agent, Name::Planner, Name::Run, Name::Bus].iter().all(|name| node.is_up(*name));
        if !matches!(fact, Fact::Tick | Fact::End) || !is_settled || !is_told {
            return Ok(());
        }
        let Some(topics) = node.topics(Name::Agent) else { return Ok(()) };
        let said = Topics::all::<topics::AppStatus>(topics);
        for status in said.values() {
            let shim = node.machine.shims.get(&status.app);
            let runs = shim.is_some_and(|shim| matches!(shim.phase, ShimPhase::Running { .. }));
            let is_said = match status.state {
                // The old instance runs on until the new volumes are there.
                SwState::Purging | SwState::Restarting => runs,
                state => state == SwState::Running,
            };
            if runs != is_said && !is_moving(shim.map(|shim| &shim.phase)) {
                return Err(format!(
                    "app {} is said to be {:?}, but its shim is {shim:?}",
                    status.name, status.state
                ));
            }
        }
        for (app, shim) in &node.machine.shims {
            if shim.is_running() && !said.contains_key(&app.to_string()) {
                return Err(format!("app {app} runs and nothing is said of it"));
            }
        }
        Ok(())
    }
}

/// Between two states, where what is said may be a moment old.
fn is_moving(phase: Option<&ShimPhase>) -> bool {
    match phase {
        Some(ShimPhase::Running { .. }) | None => false,
        Some(
            ShimPhase::Idle
            | ShimPhase::Starting
            | ShimPhase::Stopping
            | ShimPhase::Ended(_)
            | ShimPhase::Failed(_),
        ) => true,
    }
}
