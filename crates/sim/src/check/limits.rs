// SPDX-License-Identifier: Apache-2.0
//! Who writes, and how much waits.

use ipc::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use node_core::upload::MAX_ITEMS;

use super::Checker;
use crate::Fact;
use crate::world::World;

/// Requests that may wait in one of the agent's lanes, as the process has it.
const LANE_QUEUE: usize = 32;

/// Every topic has the one writer that the map of topics names.
#[derive(Debug)]
pub(super) struct OneWriter;

impl Checker for OneWriter {
    fn name(&self) -> &'static str {
        "one writer per topic"
    }

    fn see(&mut self, _: &World, _: usize, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Put { writer, frame } => {
                let topic = &frame.0;
                let owner = ipc::topics::ALL.iter().find(|(name, _)| name == topic).map(|(_, owner)| *owner);
                if owner != Some(writer.text()) {
                    return Err(format!("{} wrote {topic}, which is {owner:?}'s", writer.text()));
                }
                Ok(())
            }
            Fact::Refused { text } => Err(format!("the bus refused: {text}")),
            _ => Ok(()),
        }
    }
}

/// Nothing grows without end.
#[derive(Debug)]
pub(super) struct UnderLimits;

impl Checker for UnderLimits {
    fn name(&self) -> &'static str {
        "queues are under their limits"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        let node = &world.nodes[node];
        match fact {
            Fact::Put { frame, .. } if frame.1.len() > MAX_KEY_BYTES || frame.2.len() > MAX_VALUE_BYTES => {
                return Err(format!("a value of {} is too large", frame.0));
            }
            Fact::Tick | Fact::End => {}
            _ => return Ok(()),
        }
        for (lane, asks) in &node.lanes {
            if asks.len() > LANE_QUEUE {
                return Err(format!("{} requests wait in lane {lane:?}", asks.len()));
            }
        }
        let waiting = node.agent().map_or(0, |agent| agent.waiting());
        let files = node.machine.disk.count("agent/queue");
        // A file may wait for its end beside the one that takes its place.
        if waiting > MAX_ITEMS || files > MAX_ITEMS + 1 {
            return Err(format!("{waiting} info messages wait, {files} on disk"));
        }
        Ok(())
    }
}
