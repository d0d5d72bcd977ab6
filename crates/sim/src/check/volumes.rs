// SPDX-License-Identifier: Apache-2.0
//! What an app stands on is not taken away from below it.

use model::desired::AppDesired;
use model::id::VolumeKey;

use super::Checker;
use crate::Fact;
use crate::world::World;

fn uses(spec: &AppDesired, key: VolumeKey) -> bool {
    spec.root == key || spec.mounts.iter().any(|mount| mount.volume == key)
}

/// A volume or a layer that a live app uses is never deleted.
#[derive(Debug)]
pub(super) struct InUse;

impl Checker for InUse {
    fn name(&self) -> &'static str {
        "volumes in use stay"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        let live = world.nodes[node].machine.shims.values().filter(|shim| shim.is_running());
        let mut specs = live.filter_map(|shim| shim.spec.as_ref());
        match fact {
            Fact::VolumeDropped { key } => match specs.find(|spec| uses(spec, *key)) {
                Some(spec) => Err(format!("volume {key} was deleted while app {} runs on it", spec.name)),
                None => Ok(()),
            },
            Fact::Swept { layers } => {
                let lost = specs.find(|spec| spec.layers.iter().any(|layer| !layers.contains(layer)));
                match lost {
                    Some(spec) => Err(format!("a layer of app {}, which runs, was deleted", spec.name)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
