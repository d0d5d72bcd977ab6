// SPDX-License-Identifier: Apache-2.0
//! When nothing fails any more, everything comes to be as ordered, and the controller knows it.

use std::collections::BTreeSet;

use ipc::client::Topics;
use ipc::topics;
use model::config::DeviceConfig;
use model::report::{Info, InfoMessage};
use model::status::SwState;
use node_core::run::ShimPhase;

use super::Checker;
use crate::Fact;
use crate::node::store::MISSING_TAG;
use crate::node::{Name, Node};
use crate::world::World;

#[derive(Debug)]
pub(super) struct Converged;

impl Checker for Converged {
    fn name(&self) -> &'static str {
        "everything converges"
    }

    fn see(&mut self, world: &World, _: usize, fact: &Fact) -> Result<(), String> {
        let Fact::End = fact else { return Ok(()) };
        for node in &world.nodes {
            look(world, node).map_err(|text| format!("node {}: {text}", node.index))?;
        }
        Ok(())
    }
}

fn look(world: &World, node: &Node) -> Result<(), String> {
    if !node.is_on {
        return Err("it is off".into());
    }
    for name in Name::SERVICES {
        if !node.is_up(name) {
            return Err(format!("{} is not up", name.text()));
        }
    }
    let agent = node.agent().ok_or("the agent has no identity")?;
    let config = agent.config().ok_or("there is no config in force")?;
    let device = world.controller.device_of(&node.machine.serial).ok_or("it is not registered")?;
    let published = world.controller.published.get(&device).ok_or("the controller publishes no config")?;
    if published.config.version != config.version {
        let (new, old) = (&published.config.version, &config.version);
        return Err(format!("config {new} is published, {old} is in force"));
    }
    let topics = node.topics(Name::Agent).ok_or("no topics")?;
    apps(node, config, topics)?;
    if agent.waiting() > 0 {
        return Err(format!("{} info messages wait", agent.waiting()));
    }
    reported(world, device, topics)
}

/// What is ordered runs, and nothing else.
fn apps(node: &Node, config: &DeviceConfig, topics: &ipc::client::Client) -> Result<(), String> {
    let status = Topics::all::<topics::AppStatus>(topics);
    for app in &config.apps {
        let said =
            status.get(&app.id.to_string()).ok_or_else(|| format!("nothing is said of {}", app.name))?;
        let shim = node.machine.shims.get(&app.id);
        let runs = shim.is_some_and(|shim| matches!(shim.phase, ShimPhase::Running { .. }));
        let is_missing = config.content_trees.iter().any(|tree| {
            let is_of_app = tree.name == format!("{} image", app.name);
            is_of_app && tree.url.ends_with(MISSING_TAG)
        });
        if is_missing {
            if said.faults.is_empty() && app.is_active {
                return Err(format!("the image of {} is missing, and nobody says so", app.name));
            }
            continue;
        }
        if runs != app.is_active {
            return Err(format!(
                "{} is ordered to run: {}, runs: {runs}, said: {said:?}",
                app.name, app.is_active
            ));
        }
        let expected = if app.is_active { SwState::Running } else { SwState::Halted };
        if said.state != expected && (app.is_active || said.state == SwState::Running) {
            return Err(format!("{} is {:?}, expected {expected:?}", app.name, said.state));
        }
        if app.is_active
            && (said.restart_counter, said.purge_counter) != (app.restart_counter, app.purge_counter)
        {
            return Err(format!("{} did not take its counters", app.name));
        }
    }
    let ordered: BTreeSet<_> = config.apps.iter().map(|app| app.id).collect();
    if let Some(id) = node.machine.shims.keys().find(|id| !ordered.contains(id)) {
        return Err(format!("app {id} runs and is not ordered"));
    }
    Ok(())
}

/// The controller's newest of every object is what the node says now.
fn reported(world: &World, device: uuid::Uuid, topics: &ipc::client::Client) -> Result<(), String> {
    let wire = |info: Info| {
        let message = InfoMessage { device: None, at: None, info };
        eve_api::parse::info(&eve_api::render::info(&message)).map(|message| message.info).ok()
    };
    let mut expected = Vec::new();
    let all = Topics::all::<topics::AppStatus>(topics).into_values();
    expected.extend(all.map(|app| (format!("app/{}", app.app), Info::App(app))));
    let all = Topics::all::<topics::VolumeStatus>(topics).into_values();
    expected.extend(all.map(|volume| (format!("volume/{}", volume.key), Info::Volume(volume))));
    let all = Topics::all::<topics::ContentStatus>(topics).into_values();
    expected.extend(all.map(|tree| (format!("content/{}", tree.id), Info::ContentTree(tree))));
    let all = Topics::all::<topics::NetworkStatus>(topics).into_values();
    expected.extend(all.map(|one| (format!("network/{}", one.id), Info::NetworkInstance(one))));
    for (key, info) in &expected {
        let known =
            world.controller.info(device).find(|(other, _)| *other == key).map(|(_, message)| &message.info);
        if known != wire(info.clone()).as_ref() {
            return Err(format!("the controller knows of {key}: {known:?}, true is {info:?}"));
        }
    }
    for (key, message) in world.controller.info(device) {
        let Info::App(app) = &message.info else { continue };
        if !app.is_gone() && !expected.iter().any(|(other, _)| other == key) {
            return Err(format!("the controller believes in {key}, which is gone: {:?}", app.state));
        }
    }
    Ok(())
}
