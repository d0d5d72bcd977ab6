// SPDX-License-Identifier: Apache-2.0
//! Process planner: keeps the inputs of [`node_core::apps`] together, and publishes what it decides.
//!
//! Owns no decision and no effect but one file: what the planner must not forget. It is on disk before anything that
//! follows from it is published. Nothing is decided before every input is synced: absent is not deleted.

mod state;

use std::collections::{BTreeMap, BTreeSet};

use ipc::topics::{self, Topic};
use model::reason::Fault;
use model::status::SwState;
use node_core::apps::{self, Desired, Memory, Observed, Plan, Status};
use service::{Event, Service, log};

pub use state::StateError;
use state::StateFile;

/// Wait after a failed write of the state file.
const RETRY_MS: u64 = 1_000;

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    #[error("the manifest grants no directory for the planner's state")]
    NoStateDir,
}

/// Runs the process until init asks it to stop.
pub fn run(mut service: Service) -> Result<(), PlannerError> {
    let file = StateFile::new(service.dirs().state.as_deref().ok_or(PlannerError::NoStateDir)?);
    let (mut memory, mut desired) = file.load().unwrap_or_else(|error| {
        log::warn(format_args!("planner state dropped, numbers and addresses are given anew: {error}"));
        Default::default()
    });
    subscribe(&mut service);
    let mut published = Published::default();
    let mut deadline = None;
    let mut awaited = Vec::new();
    // Why the last plan could not be saved.
    let mut withheld = None;
    loop {
        match service.next(deadline) {
            Event::Stop => return Ok(()),
            Event::Topics(_) | Event::Deadline => {}
            Event::Call(_) | Event::Channel(_) | Event::Worker(()) | Event::Readable(_) => continue,
        }
        deadline = None;
        let missing = missing_inputs(&service);
        if missing != awaited {
            match missing.as_slice() {
                [] => log::info(format_args!("all inputs are there")),
                names => {
                    log::info(format_args!(
                        "nothing is decided before these are there: {}",
                        names.join(", ")
                    ));
                }
            }
            awaited = missing;
        }
        let Some(config) = awaited.is_empty().then(|| service.get::<topics::Config>("")).flatten() else {
            continue;
        };
        let plan = apps::plan(&config, &observed(&service), &memory, &desired);
        let changes = plan.memory != memory || plan.desired != desired;
        let saved = if changes { file.save_on_full_disk(&plan.memory, &plan.desired) } else { Ok(()) };
        let failure = saved.err().map(|error| error.fault());
        if failure != withheld {
            match &failure {
                Some(fault) => log::error(format_args!("nothing is changed: {fault}")),
                None => log::info(format_args!("state can be written again")),
            }
            withheld = failure;
        }
        if let Some(fault) = &withheld {
            published.publish_status(&mut service, &without_change(&plan, &desired, fault));
            deadline = Some(service.now().mono.plus_ms(RETRY_MS));
            continue;
        }
        published.publish(&mut service, &plan);
        Plan { memory, desired, .. } = plan;
    }
}

/// What is reported while a plan cannot be carried out: what is seen, and for each app that the plan would change, or that
/// does not run yet, why it does not go on.
fn without_change(plan: &Plan, desired: &Desired, fault: &Fault) -> Status {
    let mut status = plan.status.clone();
    for (id, app) in &mut status.apps {
        let is_changed = plan.desired.apps.get(id) != desired.apps.get(id);
        let is_waiting = plan.desired != *desired && app.is_activated && app.state != SwState::Running;
        if is_changed || is_waiting {
            app.faults.push(fault.clone());
        }
    }
    status
}

fn subscribe(service: &mut Service) {
    service.subscribe::<topics::Config>();
    service.subscribe::<topics::ContentObserved>();
    service.subscribe::<topics::VolumeObserved>();
    service.subscribe::<topics::NetworkObserved>();
    service.subscribe::<topics::VifsObserved>();
    service.subscribe::<topics::AppObserved>();
    service.subscribe::<topics::PortObserved>();
    service.subscribe::<topics::NodeObserved>();
}

/// Topics whose writer has not yet said everything.
fn missing_inputs(service: &Service) -> Vec<&'static str> {
    fn missing<T: Topic>(service: &Service) -> Option<&'static str> {
        (!service.is_synced::<T>()).then_some(T::NAME)
    }
    [
        missing::<topics::Config>(service),
        missing::<topics::ContentObserved>(service),
        missing::<topics::VolumeObserved>(service),
        missing::<topics::NetworkObserved>(service),
        missing::<topics::VifsObserved>(service),
        missing::<topics::AppObserved>(service),
        missing::<topics::PortObserved>(service),
        missing::<topics::NodeObserved>(service),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn observed(service: &Service) -> Observed {
    Observed {
        content: service.all::<topics::ContentObserved>().into_values().map(|v| (v.id, v)).collect(),
        volumes: service.all::<topics::VolumeObserved>().into_values().map(|v| (v.key, v)).collect(),
        networks: service.all::<topics::NetworkObserved>().into_values().map(|v| (v.id, v)).collect(),
        vifs: service.all::<topics::VifsObserved>().into_values().map(|v| (v.app, v)).collect(),
        apps: service.all::<topics::AppObserved>().into_values().map(|v| (v.app, v)).collect(),
        ports: service.all::<topics::PortObserved>(),
        node: service.get::<topics::NodeObserved>(""),
    }
}

/// Keys this process published, by topic.
#[derive(Debug, Default)]
struct Published(BTreeMap<&'static str, BTreeSet<String>>);

impl Published {
    fn publish(&mut self, service: &mut Service, plan: &Plan) {
        let Desired { content, volumes, networks, vifs, apps } = &plan.desired;
        self.replace::<topics::ContentDesired, _>(service, content);
        self.replace::<topics::VolumeDesired, _>(service, volumes);
        self.replace::<topics::NetworkDesired, _>(service, networks);
        self.replace::<topics::VifsDesired, _>(service, vifs);
        self.replace::<topics::AppDesired, _>(service, apps);
        self.publish_status(service, &plan.status);
        let applied = plan.status.applied.clone();
        self.replace::<topics::ConfigApplied, _>(service, &BTreeMap::from([(Empty, applied)]));
    }

    /// All but that the config is applied.
    fn publish_status(&mut self, service: &mut Service, status: &Status) {
        let Status { apps, content, volumes, networks, applied: _ } = status;
        self.replace::<topics::AppStatus, _>(service, apps);
        self.replace::<topics::ContentStatus, _>(service, content);
        self.replace::<topics::VolumeStatus, _>(service, volumes);
        self.replace::<topics::NetworkStatus, _>(service, networks);
    }

    /// Publishes all of a map: what stood there before and is not in it goes.
    fn replace<T: Topic, K: ToString + Ord>(
        &mut self,
        service: &mut Service,
        values: &BTreeMap<K, T::Value>,
    ) {
        let before = self.0.remove(T::NAME);
        let mut keys = BTreeSet::new();
        for (key, value) in values {
            let key = key.to_string();
            service.publish::<T>(&key, value);
            keys.insert(key);
        }
        for gone in before.iter().flatten().filter(|key| !keys.contains(*key)) {
            service.remove::<T>(gone);
        }
        if before.is_none() {
            // the first time in this process: keys of the process before us that were not seen again go now
            service.synced::<T>();
        }
        self.0.insert(T::NAME, keys);
    }
}

/// Key of a topic that has only one value.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Empty;

impl std::fmt::Display for Empty {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::config::VirtualizationMode;
    use model::desired::AppDesired;
    use model::id::{AppId, VolumeKey};
    use model::reason::Reason;
    use model::status::{AppStatus, ConfigApplied};

    /// On every Linux.
    const ENOSPC: i32 = 28;

    fn id(last: u8) -> AppId {
        format!("60000000-0000-4000-8000-0000000000{last:02}").parse().unwrap()
    }

    fn order(last: u8, instance: u64) -> (AppId, AppDesired) {
        let order = AppDesired {
            app: id(last),
            name: "app".into(),
            instance,
            mode: VirtualizationMode::NoHyper,
            memory_bytes: 0,
            vcpus: 1,
            root: VolumeKey { id: model::id::VolumeId(id(last).0), generation: 0 },
            image: Default::default(),
            layers: vec![],
            vif_count: 0,
            dns: vec![],
            user_data: None,
            root_size_bytes: 0,
            mounts: vec![],
            start_delay_s: 0,
            probe: None,
        };
        (id(last), order)
    }

    #[test]
    fn while_a_plan_cannot_be_saved_those_it_would_change_are_told_why() {
        let status = |last: u8, state, is_activated| {
            (id(last), AppStatus { state, is_activated, ..AppStatus::gone(id(last)) })
        };
        // 1 runs and stays, 2 runs and is to change, 3 is to come, 4 is off
        let apps = BTreeMap::from([
            status(1, SwState::Running, true),
            status(2, SwState::Running, true),
            status(3, SwState::Initial, true),
            status(4, SwState::Halted, false),
        ]);
        let applied = ConfigApplied {
            version: "2".into(),
            timestamp: None,
            items: vec![],
            is_maintenance: false,
            reboot_counter: 0,
            shutdown_counter: 0,
        };
        let (content, volumes, networks) = Default::default();
        let status = Status { apps, content, volumes, networks, applied };
        let before = Desired { apps: BTreeMap::from([order(1, 1), order(2, 1)]), ..Desired::default() };
        let desired =
            Desired { apps: BTreeMap::from([order(1, 1), order(2, 2), order(3, 1)]), ..Desired::default() };
        let plan = Plan { desired, status, memory: Memory::default() };
        let source = std::io::Error::from_raw_os_error(ENOSPC);
        let fault = StateError::Write { path: "state".into(), source }.fault();
        assert_eq!(fault.reason, Reason::DiskFull);
        let told = |desired: &Desired| -> Vec<bool> {
            let status = without_change(&plan, desired, &fault);
            status.apps.values().map(|app| app.faults == [fault.clone()]).collect()
        };
        assert_eq!(told(&before), [false, true, true, false]);
        // only memory is to be written: nobody waits
        assert_eq!(told(&plan.desired), [false; 4]);
    }
}
