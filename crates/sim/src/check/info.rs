// SPDX-License-Identifier: Apache-2.0
//! What a node reports arrives once and in order.
//!
//! *Once* means: a message of which the node knows that it arrived is never sent again. A message whose answer was lost
//! is sent again, unchanged, and before any newer message of its object; the controller's newest state of the object is
//! the same after it. *In order* is meant per object. What happened while the controller was away and was overtaken by
//! something newer of the same object is not sent at all.

use std::collections::BTreeMap;

use super::Checker;
use crate::Fact;
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct OnceInOrder {
    objects: BTreeMap<(usize, String), Object>,
}

#[derive(Debug, Default)]
struct Object {
    /// Of the newest message that arrived: which agent process sent it, and its number there.
    newest: (u64, u64),
    arrived: Vec<u8>,
    /// The newest of which the node knows that it arrived.
    delivered: ((u64, u64), Vec<u8>),
}

impl Checker for OnceInOrder {
    fn name(&self) -> &'static str {
        "info once and in order"
    }

    fn see(&mut self, _: &World, node: usize, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::InfoArrived { key, incarnation, number, payload } => {
                let object = self.objects.entry((node, key.clone())).or_default();
                let turn = (*incarnation, *number);
                if turn < object.newest {
                    return Err(format!("a message about {key} came after a newer one"));
                }
                // Without a clock two reports of the same state are the same bytes.
                let has_time = eve_api::parse::info(payload).is_ok_and(|message| message.at.is_some());
                let is_same = has_time && !object.delivered.1.is_empty() && object.delivered.1 == *payload;
                if turn == object.delivered.0 || is_same {
                    return Err(format!("a message about {key} came again after it was delivered"));
                }
                if turn == object.newest && object.arrived != *payload {
                    return Err(format!("a message about {key} came again with another content"));
                }
                object.newest = turn;
                object.arrived.clone_from(payload);
                Ok(())
            }
            Fact::InfoDelivered { key, incarnation, number, payload } => {
                let object = self.objects.entry((node, key.clone())).or_default();
                object.delivered = ((*incarnation, *number), payload.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
