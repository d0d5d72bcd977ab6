// SPDX-License-Identifier: Apache-2.0
//! The base OS planner: from the version that is ordered and what init, store and agent see to what store writes, what init
//! does about the slots, and what is reported.
//!
//! ```text
//!                  ordered                installed, active              started
//! nothing to do ───────────▶ download ───────────────────▶ rebooting ─────────────▶ testing ─ good for the window ─▶ committed
//!                            (store)                       (trial is on disk)          │
//!                                                                                      │ bad, or all tries used
//!                              the version before runs, and reports why  ◀─────────────┘
//! ```
//! What a version that is tried must reach again, apps that ran and the controller, is remembered before the restart. A version
//! that failed is tried again when the retry counter changes and not before. A version on trial that nobody ordered (the
//! first one of a disk, one that was put there by hand) is good as soon as its services are.
//!
//! Never: an effect, a clock. Which blocks of an update come over the network is store's affair, boot entries are init's.

mod report;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use model::config::{BaseOs, DeviceConfig, ObjectRef};
use model::desired::{BootDesired, UpdateDesired, Verdict};
use model::id::AppId;
use model::observed::{AgentObserved, SlotsObserved, UpdateObserved, UpdateProgress};
use model::reason::{Fault, Reason};
use model::status::{BaseOsStatus, ContentTreeStatus};
use model::time::MonoMs;
use serde::{Deserialize, Serialize};

use crate::apps::content::content_of;
use crate::items::{self, Items};

/// Services of a version that nobody ordered are ready for so long: it is good.
const UNORDERED_TEST_S: u32 = 30;
/// A version that is neither good nor bad after so many windows goes from one to the other, and is bad.
const WINDOWS_MAX: u64 = 4;
/// The controller hears of a restart before it comes.
const RESTART_AFTER_S: u64 = 5;
/// The controller was there before a restart when it answered within so many seconds.
const RECENT_CONTACT_S: u64 = 600;

/// Everything a decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub now: MonoMs,
    /// Nothing: there is none yet.
    pub config: Option<&'a DeviceConfig>,
    /// Nothing: the node is hosted, and no operating system.
    pub slots: Option<&'a SlotsObserved>,
    pub update: Option<&'a UpdateObserved>,
    pub agent: Option<&'a AgentObserved>,
    /// Apps that run, and those that shall.
    pub running: &'a BTreeSet<AppId>,
    pub wanted: &'a BTreeSet<AppId>,
    /// Start of the node software, counted over its life on this disk.
    pub start: u32,
}

/// What must not be forgotten over a restart and a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub trial: Option<Trial>,
    pub failed: Option<Failed>,
    /// Retry counter of the order that was last carried out.
    pub update_counter: u32,
}

/// A version that the box was told to start into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub version: String,
    pub retry_counter: u32,
    /// Start of the node software in which that was decided.
    pub start: u32,
    /// The controller answered before.
    pub had_controller: bool,
    /// Apps that ran before.
    pub apps: BTreeSet<AppId>,
    /// Why it is bad, once it is.
    pub verdict: Option<Fault>,
}

/// An order that is not carried out again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub version: String,
    pub retry_counter: u32,
    pub fault: Fault,
}

/// Since when a version on trial is well, and since when not. Begins anew with every start of the planner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub began: Option<MonoMs>,
    pub well_since: Option<MonoMs>,
    pub unwell_since: Option<MonoMs>,
    /// Since when a restart into another version is told.
    pub restart_since: Option<MonoMs>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub update: Option<UpdateDesired>,
    pub boot: BootDesired,
    pub status: Option<BaseOsStatus>,
    /// Of the update file.
    pub content: Option<ContentTreeStatus>,
    /// To be on disk before anything is published.
    pub memory: Memory,
    pub watch: Watch,
    /// When to plan again though nothing changed.
    pub deadline: Option<MonoMs>,
}

/// Decides. In a steady world the plan stays, and what was reached is ordered no more.
pub fn plan(inputs: Inputs<'_>, memory: &Memory, watch: &Watch) -> Plan {
    let mut plan = Plan {
        update: None,
        boot: BootDesired::default(),
        status: None,
        content: None,
        memory: memory.clone(),
        watch: Watch::default(),
        deadline: None,
    };
    let Some(slots) = inputs.slots else { return plan };
    let items = inputs.config.map(|config| items::read(&config.items).0).unwrap_or_default();
    settle(inputs, slots, &mut plan);
    let order = inputs.config.and_then(|config| config.base_os.as_ref());
    if slots.own().tries.is_none() {
        // an order that was taken back, or another one, before the restart
        plan.memory.trial.take_if(|trial| order.is_none_or(|order| order.version != trial.version));
    }
    if let (Some(config), None) = (inputs.config, order)
        && refusal_of_config(Some(config)).is_none()
    {
        plan.memory.failed = None;
    }
    let mut refused = refusal_of_config(inputs.config);
    if slots.own().tries.is_some() {
        plan.watch = watch.clone();
        judge(inputs, slots, &items, &mut plan);
        // what runs may have to go: nothing is written over the version before
    } else if let (Some(config), Some(order)) = (inputs.config, order) {
        let is_failed = plan.memory.failed.as_ref().is_some_and(|failed| failed.is(order));
        if is_failed && has_tries(slots, &order.version) {
            // the boot loader must not come back to it
            plan.boot.verdict = Verdict::Bad { version: order.version.clone() };
        }
        if order.version == slots.own().version {
            plan.memory.update_counter = order.retry_counter;
        } else if !is_failed && !items.is_maintenance {
            plan.watch.restart_since = watch.restart_since;
            refused = carry_out(inputs, slots, (config, order), &mut plan).err().or(refused);
        }
    }
    plan.content =
        order.zip(inputs.config).and_then(|(order, config)| report::content(config, order, inputs.update));
    plan.status = Some(report::slots(slots, order, inputs.update, refused.as_ref(), &plan));
    plan
}

/// What became of the version that the box was told to start into.
fn settle(inputs: Inputs<'_>, slots: &SlotsObserved, plan: &mut Plan) {
    let Some(trial) = plan.memory.trial.clone() else { return };
    if slots.own().version == trial.version {
        if slots.own().tries.is_none() {
            plan.memory.trial = None;
            plan.memory.failed = None;
            plan.memory.update_counter = trial.retry_counter;
        }
        return;
    }
    // the restart is still to come
    let is_waiting = inputs.start == trial.start && slots.other().version == trial.version;
    if is_waiting && trial.verdict.is_none() {
        return;
    }
    let other = slots.other();
    let tries = other.tries.filter(|_| other.version == trial.version).map_or(0, |(_, done)| done);
    let fault = trial.verdict.unwrap_or_else(|| {
        let text = format!("version {} did not come up in {tries} tries", trial.version);
        Fault::new(Reason::UpdateRolledBack, text)
    });
    let (version, retry_counter) = (trial.version, trial.retry_counter);
    plan.memory.update_counter = retry_counter;
    plan.memory.failed = Some(Failed { version, retry_counter, fault });
    plan.memory.trial = None;
}

/// The boot loader may start it.
fn has_tries(slots: &SlotsObserved, version: &str) -> bool {
    let other = slots.other();
    other.version == version && other.tries.is_none_or(|(left, _)| left > 0)
}

/// Whether the version that runs on trial stays.
fn judge(inputs: Inputs<'_>, slots: &SlotsObserved, items: &Items, plan: &mut Plan) {
    let now = inputs.now;
    let version = slots.own().version.clone();
    let trial = plan.memory.trial.clone().filter(|trial| trial.version == version);
    if trial.as_ref().is_some_and(|trial| trial.verdict.is_some()) {
        plan.boot.verdict = Verdict::Bad { version };
        return;
    }
    let missing = missing(inputs, slots, trial.as_ref());
    let window_s = u64::from(if trial.is_some() { items.update_test_s } else { UNORDERED_TEST_S });
    let watch = &mut plan.watch;
    let began = *watch.began.get_or_insert(now);
    if missing.is_empty() {
        watch.unwell_since = None;
        let since = *watch.well_since.get_or_insert(now);
        if now >= since.plus_s(window_s) {
            plan.boot.verdict = Verdict::Good { version };
            return;
        }
        plan.deadline = Some(since.plus_s(window_s));
        return;
    }
    watch.well_since = None;
    let since = *watch.unwell_since.get_or_insert(now);
    let Some(mut trial) = trial else { return };
    let contact_s = u64::from(items.update_contact_s);
    let is_only_contact = missing.iter().all(|what| *what == Missing::Contact);
    let limit_s = if is_only_contact { contact_s } else { window_s };
    let end = since.plus_s(limit_s).min(began.plus_s(window_s.max(contact_s) * WINDOWS_MAX));
    if now < end {
        plan.deadline = Some(end);
        return;
    }
    let what: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let text = format!("version {version} did not pass its test: {}", what.join(", "));
    trial.verdict = Some(Fault::new(Reason::UpdateRolledBack, text));
    plan.memory.trial = Some(trial);
    plan.boot.verdict = Verdict::Bad { version };
}

/// What a version on trial lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    Services,
    Config,
    App(AppId),
    Contact,
}

impl core::fmt::Display for Missing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Missing::Services => f.write_str("not all services are ready"),
            Missing::Config => f.write_str("there is no config"),
            Missing::App(app) => write!(f, "app {app} ran before and does not run"),
            Missing::Contact => f.write_str("the controller was reached before and is not"),
        }
    }
}

fn missing(inputs: Inputs<'_>, slots: &SlotsObserved, trial: Option<&Trial>) -> Vec<Missing> {
    let mut out = Vec::new();
    if !slots.is_ready {
        out.push(Missing::Services);
    }
    let Some(trial) = trial else { return out };
    if inputs.config.is_none() {
        out.push(Missing::Config);
    }
    let gone = trial.apps.iter().filter(|app| inputs.wanted.contains(app) && !inputs.running.contains(app));
    out.extend(gone.map(|app| Missing::App(*app)));
    // the clock of contacts begins with this start
    if trial.had_controller && inputs.agent.is_none_or(|agent| agent.last_contact.is_none()) {
        out.push(Missing::Contact);
    }
    out
}

/// Has the version put into the idle slot, and started when that is wanted.
fn carry_out(
    inputs: Inputs<'_>,
    slots: &SlotsObserved,
    (config, order): (&DeviceConfig, &BaseOs),
    plan: &mut Plan,
) -> Result<(), Fault> {
    let tree = config.content_tree(order.content_tree).ok_or_else(|| {
        Fault::new(
            Reason::MissingReference,
            format!("content tree {} is not in the config", order.content_tree),
        )
    })?;
    let content = content_of(config, tree)?;
    let attempt = order.retry_counter;
    let wanted = UpdateDesired { version: order.version.clone(), attempt, content };
    let is_installed = inputs.update.is_some_and(|update| {
        update.state == UpdateProgress::Installed
            && (&update.version, update.attempt) == (&order.version, attempt)
    });
    plan.update = Some(wanted);
    if !(is_installed && order.is_active && slots.other().version == order.version) {
        plan.memory.trial = None;
        plan.watch.restart_since = None;
        return Ok(());
    }
    let had_controller = inputs
        .agent
        .and_then(|agent| agent.last_contact)
        .is_some_and(|at| inputs.now.since_ms(at) <= RECENT_CONTACT_S * 1000);
    let trial = plan.memory.trial.get_or_insert_with(|| Trial {
        version: order.version.clone(),
        retry_counter: attempt,
        start: inputs.start,
        had_controller,
        apps: inputs.running.clone(),
        verdict: None,
    });
    let at = plan.watch.restart_since.get_or_insert(inputs.now).plus_s(RESTART_AFTER_S);
    if inputs.now >= at {
        plan.boot.start_into = Some(trial.version.clone());
    } else {
        plan.deadline = Some(at);
    }
    Ok(())
}

/// The order was in the config and could not be read.
fn refusal_of_config(config: Option<&DeviceConfig>) -> Option<Fault> {
    let mut faults = config?.faults.iter();
    faults.find(|entry| entry.object == ObjectRef::BaseOs).map(|entry| entry.fault.clone())
}

impl Failed {
    pub(crate) fn is(&self, order: &BaseOs) -> bool {
        (&self.version, self.retry_counter) == (&order.version, order.retry_counter)
    }
}
