// SPDX-License-Identifier: Apache-2.0
//! What is told of the slots, in EVE's words.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use model::config::{BaseOs, DeviceConfig};
use model::observed::{SlotObserved, SlotsObserved, UpdateObserved, UpdateProgress};
use model::reason::{Fault, Reason};
use model::status::{BaseOsStatus, ContentTreeStatus, SoftwareStatus, SwState, UpdateState, UpdateStep};

use super::Plan;

/// As EVE calls slots A and B.
const LABELS: [&str; 2] = ["IMGA", "IMGB"];

pub(super) fn slots(
    slots: &SlotsObserved,
    order: Option<&BaseOs>,
    update: Option<&UpdateObserved>,
    refused: Option<&Fault>,
    plan: &Plan,
) -> BaseOsStatus {
    let mut out: Vec<SoftwareStatus> = Vec::new();
    for (index, (slot, label)) in slots.slots.iter().zip(LABELS).enumerate() {
        let status = SoftwareStatus {
            partition: label.into(),
            device: slot.device.clone(),
            version: slot.version.clone(),
            ..SoftwareStatus::default()
        };
        out.push(if index == usize::from(slots.running.min(1)) {
            own(slot, status)
        } else {
            let order = order.filter(|order| order.version != slots.own().version);
            other(slot, status, Seen { slots, order, update, refused, plan })
        });
    }
    BaseOsStatus {
        slots: out,
        update_counter: plan.memory.update_counter,
        is_updating: starting(slots, plan).is_some(),
        is_testing: slots.own().tries.is_some(),
    }
}

/// The version that the box is about to start into.
fn starting<'p>(slots: &SlotsObserved, plan: &'p Plan) -> Option<&'p str> {
    let trial = plan.memory.trial.as_ref().filter(|_| slots.own().tries.is_none())?;
    Some(&trial.version)
}

fn own(slot: &SlotObserved, status: SoftwareStatus) -> SoftwareStatus {
    let base =
        SoftwareStatus { is_running: true, state: SwState::Installed, progress_percent: 100, ..status };
    match slot.tries {
        None => SoftwareStatus { partition_state: "active".into(), update: UpdateState::Updated, ..base },
        Some((_, done)) => SoftwareStatus {
            partition_state: "inprogress".into(),
            update: UpdateState::Updating,
            step: UpdateStep::Testing,
            step_text: format!("being tested, try {}", done.max(1)),
            ..base
        },
    }
}

/// What the slot that does not run is told by.
#[derive(Clone, Copy)]
struct Seen<'a> {
    slots: &'a SlotsObserved,
    order: Option<&'a BaseOs>,
    update: Option<&'a UpdateObserved>,
    refused: Option<&'a Fault>,
    plan: &'a Plan,
}

fn other(slot: &SlotObserved, status: SoftwareStatus, seen: Seen<'_>) -> SoftwareStatus {
    let Seen { slots, order, update, refused, plan } = seen;
    let state = if slot.version.is_empty() { SwState::Initial } else { SwState::Installed };
    let base = SoftwareStatus { partition_state: "unused".into(), state, ..status };
    let failed = plan.memory.failed.as_ref();
    if let (Some(failed), true) =
        (failed, failed.is_some_and(|failed| order.is_none_or(|order| failed.is(order))))
    {
        let state = SwState::Failed;
        let fault = Some(failed.fault.clone());
        return SoftwareStatus {
            version: failed.version.clone(),
            state,
            update: UpdateState::Fallback,
            fault,
            ..base
        };
    }
    let Some(order) = order else {
        // an order that could not be read
        let update = if refused.is_some() { UpdateState::Failed } else { UpdateState::None };
        return SoftwareStatus { update, fault: refused.cloned(), ..base };
    };
    let base = SoftwareStatus { version: order.version.clone(), ..base };
    if let Some(version) = starting(slots, plan) {
        return SoftwareStatus {
            partition_state: "updating".into(),
            state: SwState::Installed,
            update: UpdateState::Updating,
            step: UpdateStep::Rebooting,
            step_text: format!("the box starts into version {version}"),
            progress_percent: 100,
            ..base
        };
    }
    let update =
        update.filter(|update| (&update.version, update.attempt) == (&order.version, order.retry_counter));
    let Some(update) = update else {
        let state = if refused.is_some() { UpdateState::Failed } else { UpdateState::Downloading };
        return SoftwareStatus { state: SwState::Initial, update: state, fault: refused.cloned(), ..base };
    };
    let seen = SoftwareStatus { fault: refused.cloned().or_else(|| update.fault.clone()), ..base };
    if seen.fault.as_ref().is_some_and(is_final) {
        return SoftwareStatus { state: SwState::Failed, update: UpdateState::Failed, ..seen };
    }
    match update.state {
        UpdateProgress::Downloading { done_bytes, total_bytes } => SoftwareStatus {
            state: SwState::Downloading,
            update: UpdateState::Downloading,
            step: UpdateStep::Downloading,
            step_text: moved(update),
            progress_percent: percent(done_bytes, total_bytes),
            ..seen
        },
        UpdateProgress::Verifying => SoftwareStatus {
            state: SwState::Verifying,
            update: UpdateState::Downloading,
            step: UpdateStep::Verifying,
            step_text: moved(update),
            progress_percent: 100,
            ..seen
        },
        UpdateProgress::Installed => SoftwareStatus {
            state: SwState::Installed,
            update: UpdateState::Downloaded,
            step: UpdateStep::Initializing,
            step_text: moved(update),
            progress_percent: 100,
            ..seen
        },
    }
}

/// Of the update file, as of any content tree.
pub(super) fn content(
    config: &DeviceConfig,
    order: &BaseOs,
    update: Option<&UpdateObserved>,
) -> Option<ContentTreeStatus> {
    let tree = config.content_tree(order.content_tree)?;
    let update =
        update.filter(|update| (&update.version, update.attempt) == (&order.version, order.retry_counter));
    let (state, progress_percent, total_bytes) = match update.map(|update| update.state) {
        None => (SwState::Initial, 0, 0),
        Some(UpdateProgress::Downloading { done_bytes, total_bytes }) => {
            (SwState::Downloading, percent(done_bytes, total_bytes), total_bytes)
        }
        Some(UpdateProgress::Verifying) => (SwState::Verifying, 100, 0),
        Some(UpdateProgress::Installed) => (SwState::Loaded, 100, 0),
    };
    let faults: Vec<Fault> = update.and_then(|update| update.fault.clone()).into_iter().collect();
    let state = if faults.iter().any(is_final) { SwState::Failed } else { state };
    Some(ContentTreeStatus {
        id: tree.id,
        name: tree.name.clone(),
        state,
        digest: tree.digest,
        progress_percent,
        total_bytes,
        blobs: Vec::new(),
        users: 1,
        faults,
    })
}

fn is_final(fault: &Fault) -> bool {
    fault.reason.retry() == model::reason::Retry::AfterChange || fault.reason == Reason::DigestMismatch
}

fn moved(update: &UpdateObserved) -> String {
    let trust = if update.is_unsigned { "; not signed: this image has no release key" } else { "" };
    format!("{} bytes came over the network{trust}", update.fetched_bytes)
}

fn percent(done: u64, total: u64) -> u8 {
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
    u8::try_from(percent.min(100)).unwrap_or(100)
}
