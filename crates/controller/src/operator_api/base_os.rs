// SPDX-License-Identifier: Apache-2.0
//! How far each device is with a version of the operating system.

use controller_core::intent::is_base_os_of;
use controller_core::resource::BaseOsSpec;
use model::report::DeviceStatus;
use model::status::{SoftwareStatus, UpdateState, UpdateStep};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use super::problem::Problem;
use super::view::{condition, reported_device, view_of};
use crate::objects::Stored;

/// What a device says of a version, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was said yet.
    Pending,
    Downloading,
    /// In its slot, not started.
    Installed,
    /// The device starts into it.
    Rebooting,
    Testing,
    Running,
    RolledBack,
    /// Refused.
    Failed,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Pending => "Pending",
            Stage::Downloading => "Downloading",
            Stage::Installed => "Installed",
            Stage::Rebooting => "Rebooting",
            Stage::Testing => "Testing",
            Stage::Running => "Running",
            Stage::RolledBack => "RolledBack",
            Stage::Failed => "Failed",
        }
    }
}

pub(super) async fn status(api: &Api, stored: &Stored) -> Result<Value, Problem> {
    let Ok(spec) = serde_json::from_value::<BaseOsSpec>(stored.spec.clone()) else {
        return Ok(json!({}));
    };
    let devices: Vec<(String, Uuid)> = api.with_project(|project| {
        let chosen = project.intent.devices.values().filter(|device| is_base_os_of(&spec, device));
        chosen.map(|device| (device.name.clone(), device.uid)).collect()
    });
    let (mut lines, mut stages, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for (name, device) in &devices {
        let view = view_of(api, *device).await?;
        let reported = reported_device(&view);
        let running =
            reported.as_ref().and_then(|status| status.software.iter().find(|slot| slot.is_running));
        let (stage, slot) =
            reported.as_deref().map_or((Stage::Pending, None), |status| stage(status, &spec.version));
        let fault = slot.and_then(|slot| slot.fault.as_ref());
        let is_bad = matches!(stage, Stage::RolledBack | Stage::Failed);
        if let Some(fault) = fault.filter(|_| is_bad) {
            faults.push(format!("{name}: {fault}"));
        }
        lines.push(json!({
            "device": name,
            "state": stage.name(),
            "runs": running.map(|slot| &slot.version),
            "partition": slot.map(|slot| &slot.partition),
            "progressPercent": slot.map(|slot| slot.progress_percent),
            "step": slot.map(|slot| &slot.step_text),
            "reason": fault.map(|fault| fault.reason.code()),
            "message": fault.map(|fault| &fault.message),
        }));
        stages.push(stage);
    }
    let count = |wanted: Stage| stages.iter().filter(|stage| **stage == wanted).count();
    let (total, running) = (devices.len(), count(Stage::Running));
    let text = format!("{running} of {total} running version {}", spec.version);
    let ready = if total == 0 {
        condition("Ready", false, "NoDevice", "chosen for no device")
    } else if running == total {
        condition("Ready", true, "Running", text)
    } else if !faults.is_empty() {
        let reason = if count(Stage::RolledBack) > 0 { "RolledBack" } else { "Failed" };
        condition("Ready", false, reason, format!("{text}; {}", faults.join("; ")))
    } else if !spec.activate && count(Stage::Installed) + running == total {
        condition("Ready", false, "Installed", format!("{text}; in the idle slot of the others, as ordered"))
    } else {
        let at = stages.iter().filter(|stage| **stage != Stage::Running).map(|stage| stage.name());
        let at: Vec<&str> = at.collect();
        condition("Ready", false, "Progressing", format!("{text}; {}", at.join(", ")))
    };
    Ok(json!({ "running": running, "total": total, "devices": lines, "conditions": [ready] }))
}

/// What a device reports of this version, and the slot it reports it of.
fn stage<'s>(status: &'s DeviceStatus, version: &str) -> (Stage, Option<&'s SoftwareStatus>) {
    let slot =
        status.software.iter().filter(|slot| slot.version == version).max_by_key(|slot| slot.is_running);
    // a node without slots says why at the one that it has
    let Some(slot) = slot else {
        let refused = status.software.iter().find(|slot| slot.is_running && slot.fault.is_some());
        return (if refused.is_some() { Stage::Failed } else { Stage::Pending }, refused);
    };
    let stage = match (slot.is_running, slot.update, slot.step) {
        (true, _, UpdateStep::Testing | UpdateStep::Confirming) => Stage::Testing,
        (true, ..) if slot.partition_state == "inprogress" => Stage::Testing,
        (true, ..) => Stage::Running,
        (false, UpdateState::Fallback, _) => Stage::RolledBack,
        (false, UpdateState::Failed, _) => Stage::Failed,
        (false, UpdateState::Updating, _) => Stage::Rebooting,
        (false, UpdateState::Downloaded | UpdateState::Updated, _) => Stage::Installed,
        (false, UpdateState::Downloading, _) => Stage::Downloading,
        (false, UpdateState::None, _) => Stage::Pending,
    };
    (stage, Some(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_a_version_has_its_word() {
        let slot = |version: &str, partition_state: &str, is_running, update, step| SoftwareStatus {
            version: version.into(),
            partition_state: partition_state.into(),
            is_running,
            update,
            step,
            ..SoftwareStatus::default()
        };
        let own = || slot("1", "active", true, UpdateState::Updated, UpdateStep::None);
        let of = |software: Vec<SoftwareStatus>| {
            let status = DeviceStatus { software, ..DeviceStatus::default() };
            stage(&status, "2").0
        };
        let other = |update, step| of(vec![own(), slot("2", "unused", false, update, step)]);
        assert_eq!(of(vec![own()]), Stage::Pending);
        assert_eq!(other(UpdateState::Downloading, UpdateStep::Verifying), Stage::Downloading);
        assert_eq!(other(UpdateState::Downloaded, UpdateStep::Initializing), Stage::Installed);
        assert_eq!(other(UpdateState::Updating, UpdateStep::Rebooting), Stage::Rebooting);
        assert_eq!(other(UpdateState::Fallback, UpdateStep::None), Stage::RolledBack);
        assert_eq!(other(UpdateState::Failed, UpdateStep::None), Stage::Failed);
        // as an EVE device reports it: no step, only the state of the partition
        assert_eq!(
            of(vec![slot("2", "inprogress", true, UpdateState::None, UpdateStep::None)]),
            Stage::Testing
        );
        assert_eq!(of(vec![slot("2", "active", true, UpdateState::None, UpdateStep::None)]), Stage::Running);
    }
}
