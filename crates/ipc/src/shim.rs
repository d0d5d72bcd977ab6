// SPDX-License-Identifier: Apache-2.0
//! What run and the shim of one app say to each other over their raw channel (kinds `run` and `shim`).
//!
//! A shim starts its app once. It speaks first whenever its channel to run is new, so that a restarted run learns what
//! lives without asking; every [`ShimEvent::Status`] is the whole truth and may be repeated.

use model::desired::AppDesired;
use model::id::AppId;
use model::observed::{AppMetrics, Exit, Health};
use model::reason::Fault;
use model::time::{MonoMs, WallTime};
use serde::{Deserialize, Serialize};

/// From run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShimRequest {
    /// Ignored unless the shim is idle.
    Start(Box<StartApp>),
    /// The image's stop signal now, SIGKILL after `timeout_s`. Ignored unless the app runs.
    Stop {
        timeout_s: u32,
    },
    Status,
    Metrics,
}

/// One start of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartApp {
    pub spec: AppDesired,
    /// Counts the starts of this instance, from 1.
    pub start: u32,
}

/// To run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShimEvent {
    Status(ShimStatus),
    Metrics(AppMetrics),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimStatus {
    pub app: AppId,
    /// Of the start it was told; 0 while idle.
    pub instance: u64,
    pub start: u32,
    pub phase: ShimPhase,
    /// What the app's probe says, while it runs and has one.
    pub health: Option<Health>,
    /// It wanted more processes than it may have, at the last look.
    pub wants_processes: bool,
}

/// ```text
/// Idle ── Start ──▶ Starting ──▶ Running ── Stop ──▶ Stopping ──▶ Ended
///                      └──────▶ Failed        └─────────────────────▲
/// ```
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
    /// Nothing runs and nothing of it ever did.
    Failed(Fault),
}
