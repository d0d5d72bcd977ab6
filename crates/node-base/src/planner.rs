// SPDX-License-Identifier: Apache-2.0
//! Process planner: keeps the inputs of [`node_core::apps`] together, and publishes what it decides.
//!
//! Owns no decision and no effect but one file: what the planner must not forget. It is on disk before anything that
//! follows from it is published. Nothing is decided before every input is synced: absent is not deleted.

mod base_os;
pub(crate) mod state;

use std::collections::{BTreeMap, BTreeSet};

use ipc::client::Topics;
use ipc::topics::{self, Topic};
use model::reason::Fault;
use model::status::SwState;
use model::time::MonoMs;
use node_core::apps::{self, Desired, Memory, Observed, Plan, Status};
use service::files::{Directory, Files};
use service::{Event, Service, log};

use base_os::BaseOsPlanner;
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
    let dir = service.dirs().state.clone().ok_or(PlannerError::NoStateDir)?;
    let files = || Box::new(Directory::new(&dir));
    let (mut planner, dropped) = Planner::load(files(), files());
    if let Some(error) = dropped {
        log::warn(format_args!("planner state dropped, numbers and addresses are given anew: {error}"));
    }
    Planner::subscribe(&mut service);
    Planner::subscribe_for_versions(&mut service);
    let mut deadline = None;
    let mut awaited = Vec::new();
    // Why the last plan could not be saved.
    let mut withheld = None;
    loop {
        service.keyframe(|| planner.snapshot());
        match service.next(deadline) {
            Event::Stop => return Ok(()),
            Event::Topics(_) | Event::Deadline => {}
            Event::Call(_) | Event::Channel(_) | Event::Worker(()) | Event::Readable(_) => continue,
        }
        let now = service.now().mono;
        let round = planner.round(&mut service, now);
        let again = planner.deadline();
        deadline = again;
        let (missing, failure) = match round {
            Round::Awaiting(missing) => (missing, None),
            Round::Planned => (Vec::new(), None),
            Round::NotSaved(fault) => {
                let retry = now.plus_ms(RETRY_MS);
                deadline = Some(again.map_or(retry, |again| again.min(retry)));
                (Vec::new(), Some(fault))
            }
        };
        if failure != withheld {
            match &failure {
                Some(fault) => log::error(format_args!("nothing is changed: {fault}")),
                None => log::info(format_args!("state can be written again")),
            }
            withheld = failure;
        }
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
    }
}

/// What a round came to.
#[derive(Debug)]
pub enum Round {
    /// Nothing is decided before these topics are complete.
    Awaiting(Vec<&'static str>),
    /// Decided and published; also when there is no config yet, and so nothing to decide.
    Planned,
    /// What must not be forgotten could not be written, so nothing was published but what is seen, and this reason.
    NotSaved(Fault),
}

/// The process without its loop: inputs are topics, outputs are topics and one file.
#[derive(Debug)]
pub struct Planner {
    file: StateFile,
    memory: Memory,
    desired: Desired,
    published: Published,
    base_os: BaseOsPlanner,
}

impl Planner {
    /// Reads what was not to be forgotten, of apps and of versions of the operating system; and why it was, if it was.
    pub fn load(files: Box<dyn Files>, of_versions: Box<dyn Files>) -> (Planner, Option<StateError>) {
        let file = StateFile::new(files);
        let (state, dropped) = match file.load() {
            Ok(state) => (state, None),
            Err(error) => (Default::default(), Some(error)),
        };
        let (memory, desired) = state;
        let base_os = BaseOsPlanner::load(of_versions);
        (Planner { file, memory, desired, published: Published::default(), base_os }, dropped)
    }

    pub fn subscribe(topics: &mut impl Topics) {
        topics.subscribe::<topics::Config>();
        topics.subscribe::<topics::ContentObserved>();
        topics.subscribe::<topics::VolumeObserved>();
        topics.subscribe::<topics::NetworkObserved>();
        topics.subscribe::<topics::VifsObserved>();
        topics.subscribe::<topics::AppObserved>();
        topics.subscribe::<topics::PortObserved>();
        topics.subscribe::<topics::NodeObserved>();
    }

    /// Also decide about versions of the operating system. Without this nothing is decided about them.
    pub fn subscribe_for_versions(topics: &mut impl Topics) {
        BaseOsPlanner::subscribe(topics);
    }

    /// When to decide again though nothing changed.
    pub fn deadline(&self) -> Option<MonoMs> {
        self.base_os.again
    }

    /// Everything a decision depends on besides the topics, for the flight recorder.
    pub fn snapshot(&self) -> Vec<u8> {
        // Our own types have no failing parts.
        let versions = self.base_os.snapshot();
        postcard::to_allocvec(&(&self.memory, &self.desired, &self.published.0, versions)).unwrap_or_default()
    }

    /// A planner as it was when it made this snapshot; `None` when it is none of this version.
    pub fn restore(files: Box<dyn Files>, of_versions: Box<dyn Files>, snapshot: &[u8]) -> Option<Planner> {
        type Keys = BTreeMap<String, BTreeSet<String>>;
        let (memory, desired, keys, versions): (Memory, Desired, Keys, base_os::Snapshot) =
            postcard::from_bytes(snapshot).ok()?;
        let topic =
            |name: &String| topics::ALL.iter().find(|(topic, _)| topic == name).map(|(topic, _)| *topic);
        let published = keys.into_iter().filter_map(|(name, keys)| Some((topic(&name)?, keys)));
        let published = Published(published.collect());
        let base_os = BaseOsPlanner::restore(of_versions, versions);
        Some(Planner { file: StateFile::new(files), memory, desired, published, base_os })
    }

    /// What is not to be forgotten, and what was decided last.
    pub fn state(&self) -> (&Memory, &Desired) {
        (&self.memory, &self.desired)
    }

    /// Decides anew from what the topics say now.
    pub fn round(&mut self, topics: &mut impl Topics, now: MonoMs) -> Round {
        let wanted = self.desired.apps.keys().copied().collect();
        self.base_os.round(topics, &wanted, now);
        let missing = missing_inputs(topics);
        if !missing.is_empty() {
            return Round::Awaiting(missing);
        }
        let Some(config) = topics.get::<topics::Config>("") else { return Round::Planned };
        let observed = observed(topics);
        let mut plan = apps::plan(&config, &observed, &self.memory, &self.desired);
        if let Some(file) = &self.base_os.content {
            plan.status.content.entry(file.id).and_modify(|known| known.clone_from(file));
        }
        let is_news = plan.memory != self.memory || plan.desired != self.desired;
        if is_news && let Err(error) = self.file.save_on_full_disk(&plan.memory, &plan.desired) {
            let fault = error.fault();
            let unchanged = apps::status(&config, &observed, &self.memory, &self.desired);
            self.published.publish_status(topics, &without_change(&plan, unchanged, &self.desired, &fault));
            return Round::NotSaved(fault);
        }
        self.published.publish(topics, &plan);
        (self.memory, self.desired) = (plan.memory, plan.desired);
        Round::Planned
    }
}

/// What is reported while a plan cannot be carried out: what is seen, and for each app that the plan would change, or that
/// does not run yet, why it does not go on. `unchanged` is told of those that the plan would change.
fn without_change(plan: &Plan, mut unchanged: Status, desired: &Desired, fault: &Fault) -> Status {
    let mut status = plan.status.clone();
    for (id, app) in &mut status.apps {
        let is_changed = plan.desired.apps.get(id) != desired.apps.get(id);
        if is_changed && let Some(unchanged) = unchanged.apps.remove(id) {
            *app = unchanged;
        }
        let is_waiting = plan.desired != *desired && app.is_activated && app.state != SwState::Running;
        if is_changed || is_waiting {
            app.faults.push(fault.clone());
        }
    }
    status
}

/// Topics whose writer has not yet said everything.
fn missing_inputs(topics: &impl Topics) -> Vec<&'static str> {
    fn missing<T: Topic>(topics: &impl Topics) -> Option<&'static str> {
        (!topics.is_synced::<T>()).then_some(T::NAME)
    }
    [
        missing::<topics::Config>(topics),
        missing::<topics::ContentObserved>(topics),
        missing::<topics::VolumeObserved>(topics),
        missing::<topics::NetworkObserved>(topics),
        missing::<topics::VifsObserved>(topics),
        missing::<topics::AppObserved>(topics),
        missing::<topics::PortObserved>(topics),
        missing::<topics::NodeObserved>(topics),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn observed(topics: &impl Topics) -> Observed {
    Observed {
        content: topics.all::<topics::ContentObserved>().into_values().map(|v| (v.id, v)).collect(),
        volumes: topics.all::<topics::VolumeObserved>().into_values().map(|v| (v.key, v)).collect(),
        networks: topics.all::<topics::NetworkObserved>().into_values().map(|v| (v.id, v)).collect(),
        vifs: topics.all::<topics::VifsObserved>().into_values().map(|v| (v.app, v)).collect(),
        apps: topics.all::<topics::AppObserved>().into_values().map(|v| (v.app, v)).collect(),
        ports: topics.all::<topics::PortObserved>(),
        node: topics.get::<topics::NodeObserved>(""),
    }
}

/// Keys this process published, by topic.
#[derive(Debug, Default)]
struct Published(BTreeMap<&'static str, BTreeSet<String>>);

impl Published {
    fn publish(&mut self, topics: &mut impl Topics, plan: &Plan) {
        let Desired { content, volumes, networks, vifs, apps } = &plan.desired;
        self.replace::<topics::ContentDesired, _>(topics, content);
        self.replace::<topics::VolumeDesired, _>(topics, volumes);
        self.replace::<topics::NetworkDesired, _>(topics, networks);
        self.replace::<topics::VifsDesired, _>(topics, vifs);
        self.replace::<topics::AppDesired, _>(topics, apps);
        self.publish_status(topics, &plan.status);
        let applied = plan.status.applied.clone();
        self.replace::<topics::ConfigApplied, _>(topics, &BTreeMap::from([(Empty, applied)]));
    }

    /// All but that the config is applied.
    fn publish_status(&mut self, topics: &mut impl Topics, status: &Status) {
        let Status { apps, content, volumes, networks, applied: _ } = status;
        self.replace::<topics::AppStatus, _>(topics, apps);
        self.replace::<topics::ContentStatus, _>(topics, content);
        self.replace::<topics::VolumeStatus, _>(topics, volumes);
        self.replace::<topics::NetworkStatus, _>(topics, networks);
    }

    /// Publishes all of a map: what stood there before and is not in it goes.
    fn replace<T: Topic, K: ToString + Ord>(
        &mut self,
        topics: &mut impl Topics,
        values: &BTreeMap<K, T::Value>,
    ) {
        let before = self.0.remove(T::NAME);
        let mut keys = BTreeSet::new();
        for (key, value) in values {
            let key = key.to_string();
            topics.publish::<T>(&key, value);
            keys.insert(key);
        }
        for gone in before.iter().flatten().filter(|key| !keys.contains(*key)) {
            topics.remove::<T>(gone);
        }
        if before.is_none() {
            // the first time in this process: keys of the process before us that were not seen again go now
            topics.synced::<T>();
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
        let fault = StateError::Write(source).fault();
        assert_eq!(fault.reason, Reason::DiskFull);
        let told = |desired: &Desired| -> Vec<bool> {
            let status = without_change(&plan, plan.status.clone(), desired, &fault);
            status.apps.values().map(|app| app.faults == [fault.clone()]).collect()
        };
        assert_eq!(told(&before), [false, true, true, false]);
        // only memory is to be written: nobody waits
        assert_eq!(told(&plan.desired), [false; 4]);
    }
}
