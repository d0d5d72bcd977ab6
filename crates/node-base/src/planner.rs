// SPDX-License-Identifier: Apache-2.0
//! Process planner: keeps the inputs of [`node_core::apps`] together, and publishes what it decides.
//!
//! Owns no decision and no effect but one file: what the planner must not forget. It is on disk before anything that
//! follows from it is published. Nothing is decided before every input is synced: absent is not deleted.

mod state;

use std::collections::{BTreeMap, BTreeSet};

use ipc::topics::{self, Topic};
use model::time::MonoMs;
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
        let saved = if changes { file.save(&plan.memory, &plan.desired) } else { Ok(()) };
        if let Err(error) = saved {
            log::error(format_args!(
                "planner state not written, nothing is changed until it can be: {error}"
            ));
            deadline = Some(MonoMs(service.now().mono.0 + RETRY_MS));
            continue;
        }
        published.publish(&mut service, &plan);
        Plan { memory, desired, .. } = plan;
    }
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
        let Status { apps, content, volumes, networks, applied } = &plan.status;
        self.replace::<topics::AppStatus, _>(service, apps);
        self.replace::<topics::ContentStatus, _>(service, content);
        self.replace::<topics::VolumeStatus, _>(service, volumes);
        self.replace::<topics::NetworkStatus, _>(service, networks);
        self.replace::<topics::ConfigApplied, _>(service, &BTreeMap::from([(Empty, applied.clone())]));
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
