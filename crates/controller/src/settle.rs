// SPDX-License-Identifier: Apache-2.0
//! After a restore: collects what [`controller_core::restore`] decides from, and stores what it decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller_core::restore::{self, Poll, Reported};
use model::id::{DeviceId, VolumeId};
use model::report::Info;

use crate::node::{ConfigState, Node};
use crate::observed::DeviceView;
use crate::state::{Controller, StateError, ledger_key, now_ms, to_bytes};
use crate::store::Txn;

/// A device's clock may be wrong by this much before what it says of times is not believed.
const MAX_AHEAD_MS: i64 = 10 * 366 * 86_400_000;

impl Controller {
    /// Ends the doubt about a node that came from a backup. `known`: the hash in its poll.
    pub async fn settle(self: &Arc<Self>, node: &Arc<Node>, known: &str) -> Result<(), StateError> {
        let view = self.observed.view(node.id).await.map_err(StateError::Observed)?;
        let (controller, node, known) = (self.clone(), node.clone(), known.to_owned());
        let done = tokio::task::spawn_blocking(move || controller.settle_with(&node, &known, &view)).await;
        done.map_err(|error| StateError::Observed(std::io::Error::other(error)))?
    }

    fn settle_with(&self, node: &Node, known: &str, view: &DeviceView) -> Result<(), StateError> {
        let device = DeviceId(node.id);
        let reported = reported(view);
        let changing = self.changing();
        if !node.is_restored() {
            return Ok(());
        }
        let settled = {
            let project = self.snapshot();
            let name = project.device_names.get(&node.id).ok_or(StateError::NoDevice)?;
            let computed = self.compute(&project.intent, &project.ledgers, name);
            project.ledgers.get(&node.id).map(|ledger| {
                tracing::info!(
                    device = name,
                    is_known = (known == ledger.hash),
                    "a restored device has come back"
                );
                let config = computed.as_ref().map(|computed| &computed.config);
                let poll = Poll { device, known, epoch: self.site.epoch };
                restore::settle(ledger, poll, config, &reported)
            })
        };
        if let Some(settled) = settled {
            self.commit(&Txn { puts: vec![(ledger_key(node.id), to_bytes(&settled))], ..Txn::default() })?;
            changing.project(|project| Arc::make_mut(&mut project.ledgers).insert(node.id, settled));
        }
        node.set_restored(false);
        self.republish_with(&changing, node.id).map(drop)
    }

    /// The device has processed a config that is later than what is published for it: its next one must be later still.
    /// Blocks.
    pub fn overtake(&self, node: &Node, processed_ms: i64) -> Result<(), StateError> {
        if processed_ms > now_ms().saturating_add(MAX_AHEAD_MS) {
            return Ok(());
        }
        let changing = self.changing();
        changing.project(|project| {
            Arc::make_mut(&mut project.ledgers).entry(node.id).or_default().overtake(processed_ms);
        });
        tracing::warn!(device = %node.id, processed_ms, "the device has a later config than was published");
        self.republish_with(&changing, node.id).map(drop)
    }
}

impl Node {
    /// A config of this time is later than what is published for the node.
    pub fn is_ahead(&self, processed_ms: i64) -> bool {
        match &*self.config.borrow() {
            ConfigState::Published(published) => published
                .config
                .timestamp
                .is_some_and(|at| processed_ms > at.seconds * 1000 + i64::from(at.nanos) / 1_000_000),
            _ => false,
        }
    }
}

fn reported(view: &DeviceView) -> Reported {
    let infos = view.info.values().filter_map(|latest| eve_api::parse::info(&latest.bytes).ok());
    let versions = infos.filter_map(|info| match info.info {
        Info::App(app) if !app.is_gone() => Some((app.app, app.version)),
        _ => None,
    });
    let mut generations = BTreeMap::new();
    for key in view.info.keys() {
        let Some((id, generation)) = key.strip_prefix("volume/").and_then(|rest| rest.split_once('#')) else {
            continue;
        };
        if let (Ok(id), Ok(generation)) = (id.parse(), generation.parse::<u64>()) {
            let highest = generations.entry(VolumeId(id)).or_default();
            *highest = generation.max(*highest);
        }
    }
    Reported { versions: versions.collect(), generations }
}
