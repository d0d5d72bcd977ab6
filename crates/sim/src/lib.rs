// SPDX-License-Identifier: Apache-2.0
//! A simulated world: the real decisions of nodes and controller, everything around them played, one thread, virtual time.
//!
//! ```text
//!  scenario (from the seed): what the operator does, what fails
//!      │
//!      ▼
//!  world ── events by time ──▶ node: agent, planner, store, net, run around the real cores, the real broker between them
//!      │                   └─▶ controller: the real core around a store that commits as a whole
//!      └── facts ──▶ checkers, outside the cores, after every event
//! ```
//!
//! The same seed gives the same world, to the millisecond. Real are: `node-core` whole, the agent's core with its
//! signatures and files, the planner with its file, store's plan, the broker with the product's manifests,
//! `controller-core`. Played are: the disk with its write cache, links, the registry, DHCP, the vault, the kernel, shims,
//! init, and the shells of net, store and run. Never linked into a product.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod check;
mod controller;
mod disk;
mod fuse;
mod keys;
mod link;
pub mod node;
pub mod replay;
pub mod scenario;
mod shrink;
mod story;
pub mod world;

use std::collections::BTreeSet;

use model::desired::AppDesired;
use model::id::{AppId, Digest, VolumeKey};

pub use controller::CANARY;
pub use shrink::shrink;

use node::{Frame, Name};
use scenario::Scenario;
use world::World;

pub const MINUTE_MS: u64 = 60_000;
pub const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
/// True time at the start of every world, in seconds since 1970.
pub const EPOCH_S: i64 = 1_800_000_000;
/// When nothing fails any more, everything is as ordered after this time. The longest wait of any part is that of store
/// before it tries a pull again that only a change could help: half an hour.
pub const CONVERGE_MS: u64 = 35 * MINUTE_MS;

/// What happened on a node, as checkers see it.
#[derive(Clone, Debug)]
pub enum Fact {
    /// The bus took a value.
    Put {
        writer: Name,
        frame: Frame,
    },
    Removed {
        topic: String,
        key: String,
    },
    /// The bus refused a frame.
    Refused {
        text: String,
    },
    AppStarted {
        spec: Box<AppDesired>,
    },
    /// Because run had it stopped.
    AppStopped {
        app: AppId,
        instance: u64,
    },
    VolumeMade {
        key: VolumeKey,
    },
    VolumeDropped {
        key: VolumeKey,
    },
    /// Layers other than these were taken away.
    Swept {
        layers: BTreeSet<Digest>,
    },
    PowerOn,
    PowerOff,
    /// An info message came to the controller, which keeps it.
    InfoArrived {
        key: String,
        incarnation: u64,
        number: u64,
        payload: Vec<u8>,
    },
    /// The node knows that it did.
    InfoDelivered {
        key: String,
        incarnation: u64,
        number: u64,
        payload: Vec<u8>,
    },
    /// Time passes.
    Tick,
    /// Nothing fails any more, and the time to converge is over.
    End,
}

/// Why a world is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub checker: &'static str,
    pub at_ms: u64,
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", story::moment(self.at_ms), self.checker, self.text)
    }
}

/// What became of a world.
#[derive(Debug)]
pub struct Outcome {
    pub failure: Option<Failure>,
    /// All of the story, or its end.
    pub story: Vec<String>,
    /// Days that nodes lived through.
    pub node_days: f64,
    pub events: u64,
}

/// Whether the whole story is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    Whole,
    End,
}

/// Lives through a scenario.
pub fn run(scenario: &Scenario, telling: Telling) -> Outcome {
    run_planted(scenario, telling, node::Plants::default())
}

/// As [`run`], with faults in the nodes' own code.
pub fn run_planted(scenario: &Scenario, telling: Telling, plants: node::Plants) -> Outcome {
    let mut world = World::new(scenario, telling == Telling::Whole, plants);
    let failure = world.live().err();
    Outcome {
        failure,
        story: world.story.lines().map(str::to_owned).collect(),
        node_days: scenario.nodes as f64 * world.now_ms as f64 / DAY_MS as f64,
        events: world.events,
    }
}
