// SPDX-License-Identifier: Apache-2.0
//! When apps are started, stopped and started again: the decisions of process run.
//!
//! Owns what is known of every app's shim and when the next start is due. Never starts anything itself: it orders, and
//! hears what came of it. One shim makes one start; the next start has a new shim.
//!
//! ```text
//!            Spawn               idle: Start              Stop or its own end
//! no shim ──────────▶ Awaited ───────────▶ Busy (starting, running, stopping) ──▶ over: Release
//!    ▲  ▲                │ nothing heard in time                                      │
//!    │  └── backoff ◀────┴────────────────────── Releasing ◀────────────────────────────┘
//!    └ restarted run: Input::Live names the shims that live; each then says itself what it does (Awaited)
//! ```
//!
//! An app whose probe fails is stopped and started again like one that ended by itself, when its order says so.
//!
//! Absent is not deleted: an app nobody orders is stopped only once the orders are synced. What asks for an isolation
//! that this node does not have fails and is never run with less.

mod app;
pub mod health;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};

use model::desired::AppDesired;
use model::id::AppId;
use model::observed::{AppObserved, Exit, Health};
use model::reason::Fault;
use model::time::{MonoMs, Now, WallTime};
use reconcile::{Machine, Outbox, earliest};
use serde::{Deserialize, Serialize};

use app::App;

/// What a shim says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shim {
    /// Of the start it was told; 0 while idle.
    pub instance: u64,
    /// Counts the starts of the instance, from 1.
    pub start: u32,
    pub phase: ShimPhase,
    /// What the app's probe says, while it runs and has one.
    pub health: Option<Health>,
    /// It wanted more processes than it may have, at the last look.
    pub wants_processes: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShimPhase {
    Idle,
    Starting,
    Running {
        since: MonoMs,
        started_at: Option<WallTime>,
    },
    Stopping,
    Ended(Exit),
    /// Nothing of it ever ran.
    Failed(Fault),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Shims that live when run begins; first input.
    Live(BTreeSet<AppId>),
    /// All orders that stand.
    Desired { apps: BTreeMap<AppId, AppDesired>, is_synced: bool },
    /// A shim said what it does; also right after its channel opened.
    Said { app: AppId, shim: Shim },
    /// Its channel closed.
    Gone { app: AppId },
    /// What came of [`Order::Spawn`].
    Spawned { app: AppId, result: Result<(), Fault> },
    /// What came of [`Order::Release`].
    Released { app: AppId, result: Result<(), Fault> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// A new shim with a control group of these limits.
    Spawn {
        app: AppId,
        memory_bytes: u64,
        vcpus: u32,
    },
    /// To its shim.
    Start {
        spec: Box<AppDesired>,
        start: u32,
    },
    /// To its shim.
    Stop {
        app: AppId,
        timeout_s: u32,
    },
    /// End the shim and whatever is left of the app.
    Release {
        app: AppId,
    },
    Publish(AppObserved),
    Remove {
        app: AppId,
    },
    /// Everything that lives is published.
    Synced,
}

/// All apps of the node.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Apps {
    apps: BTreeMap<AppId, App>,
    /// When [`Input::Live`] came: start delays count from here.
    live_since: Option<MonoMs>,
    are_orders_synced: bool,
    said_synced: bool,
}

impl Machine for Apps {
    type Input = Input;
    type Output = Order;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Order>) {
        match input {
            Input::Live(live) => {
                self.live_since.get_or_insert(now.mono);
                for app in live {
                    self.apps.entry(app).or_insert_with(|| App::new(app)).shim_lives(now.mono);
                }
            }
            Input::Desired { apps, is_synced } => {
                self.are_orders_synced |= is_synced;
                for (id, app) in &mut self.apps {
                    if !apps.contains_key(id) {
                        app.desire(None);
                    }
                }
                for (id, spec) in apps {
                    self.apps.entry(id).or_insert_with(|| App::new(id)).desire(Some(spec));
                }
            }
            Input::Said { app, shim } => {
                self.apps.entry(app).or_insert_with(|| App::new(app)).said(now.mono, shim);
            }
            Input::Gone { app } => self.tell(app, |app| app.gone(now.mono)),
            Input::Spawned { app, result } => self.tell(app, |app| app.spawned(now.mono, result)),
            Input::Released { app, result } => self.tell(app, |app| app.released(now.mono, result)),
        }
        self.decide(now.mono, outbox);
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Order>) {
        self.decide(now.mono, outbox);
    }

    fn deadline(&self) -> Option<MonoMs> {
        earliest(self.apps.values().map(App::deadline))
    }
}

impl Apps {
    /// Apps whose program runs, for metrics.
    pub fn running(&self) -> impl Iterator<Item = AppId> + '_ {
        self.apps.iter().filter(|(_, app)| app.is_running()).map(|(id, _)| *id)
    }

    fn tell(&mut self, app: AppId, say: impl FnOnce(&mut App)) {
        if let Some(app) = self.apps.get_mut(&app) {
            say(app);
        }
    }

    fn decide(&mut self, now: MonoMs, outbox: &mut Outbox<Order>) {
        // Before init said what lives, a new shim could be the second of its app.
        let Some(came_up) = self.live_since else { return };
        for app in self.apps.values_mut() {
            app.decide(now, came_up, self.are_orders_synced, outbox);
        }
        self.apps.retain(|_, app| !app.is_forgotten());
        if !self.said_synced && self.apps.values().all(App::is_known) {
            self.said_synced = true;
            outbox.push(Order::Synced);
        }
    }
}
