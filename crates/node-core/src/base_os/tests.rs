// SPDX-License-Identifier: Apache-2.0
use alloc::vec;

use model::config::{ConfigItem, ContentFormat, ContentTree, Datastore, DatastoreKind};
use model::id::{ContentTreeId, DatastoreId, DeviceId, Digest};
use model::observed::SlotObserved;
use model::status::{SwState, UpdateState, UpdateStep};
use uuid::Uuid;

use super::*;

const TREE: ContentTreeId = ContentTreeId(Uuid::from_u128(7));

fn app(number: u128) -> AppId {
    AppId(Uuid::from_u128(number))
}

/// A box as the planner sees it, with init and store that do as they are told.
struct World {
    now: MonoMs,
    config: Option<DeviceConfig>,
    slots: SlotsObserved,
    update: Option<UpdateObserved>,
    agent: AgentObserved,
    running: BTreeSet<AppId>,
    start: u32,
    memory: Memory,
    watch: Watch,
}

impl World {
    /// 1.0 runs and is good, 2.0 is ordered.
    fn new() -> World {
        let mut config = DeviceConfig::empty(DeviceId(Uuid::from_u128(1)));
        let store = DatastoreId(Uuid::from_u128(2));
        config.datastores.push(Datastore {
            id: store,
            kind: DatastoreKind::Http,
            fqdn: "http://server".into(),
            path: String::new(),
            credentials: None,
            ca_pem: vec![],
        });
        config.content_trees.push(ContentTree {
            id: TREE,
            name: "node 2.0".into(),
            datastores: vec![store],
            url: "node.update".into(),
            format: ContentFormat::Raw,
            digest: Some(Digest([4; 32])),
            max_size_bytes: 0,
            generation: 0,
        });
        config.items.push(ConfigItem { key: "timer.test.baseimage.update".into(), value: "60".into() });
        config.base_os =
            Some(BaseOs { content_tree: TREE, version: "2.0".into(), is_active: true, retry_counter: 0 });
        let slot = |version: &str| SlotObserved { version: version.into(), ..SlotObserved::default() };
        World {
            now: MonoMs(1_000_000),
            config: Some(config),
            slots: SlotsObserved { slots: [slot("1.0"), slot("")], running: 0, is_ready: true },
            update: None,
            agent: AgentObserved {
                device: None,
                server: String::new(),
                last_contact: Some(MonoMs(990_000)),
                is_attested: false,
                fault: None,
            },
            running: [app(1), app(2)].into(),
            start: 5,
            memory: Memory::default(),
            watch: Watch::default(),
        }
    }

    fn order(&mut self) -> &mut BaseOs {
        self.config.as_mut().unwrap().base_os.as_mut().unwrap()
    }

    fn plan(&mut self) -> Plan {
        let wanted = [app(1), app(2)].into();
        let inputs = Inputs {
            now: self.now,
            config: self.config.as_ref(),
            slots: Some(&self.slots),
            update: self.update.as_ref(),
            agent: Some(&self.agent),
            running: &self.running,
            wanted: &wanted,
            start: self.start,
        };
        let plan = plan(inputs, &self.memory, &self.watch);
        let again = super::plan(inputs, &plan.memory, &plan.watch);
        assert_eq!(again.memory, plan.memory, "the same world is decided in another way");
        (self.memory, self.watch) = (plan.memory.clone(), plan.watch.clone());
        plan
    }

    fn store_says(&mut self, state: UpdateProgress, fault: Option<Fault>) {
        let (version, attempt) = (self.order().version.clone(), self.order().retry_counter);
        if state == UpdateProgress::Installed {
            self.slots.slots[1] =
                SlotObserved { version: version.clone(), tries: Some((0, 0)), ..SlotObserved::default() };
        }
        self.update =
            Some(UpdateObserved { version, attempt, state, fetched_bytes: 5, is_unsigned: true, fault });
    }

    /// Into slot B, in its first try.
    fn restart_into_new(&mut self) {
        self.restart();
        self.slots.running = 1;
        self.slots.slots[1].tries = Some((2, 1));
    }

    fn restart_into_old(&mut self, left: u32) {
        self.restart();
        self.slots.running = 0;
        self.slots.slots[1].tries = Some((left, 3 - left));
    }

    fn restart(&mut self) {
        self.start += 1;
        self.now = MonoMs(20_000);
        self.watch = Watch::default();
        self.update = None;
        self.agent.last_contact = None;
        self.running.clear();
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.plus_s(seconds);
    }
}

fn other(plan: &Plan, world: &World) -> model::status::SoftwareStatus {
    plan.status.as_ref().unwrap().slots[1 - usize::from(world.slots.running)].clone()
}

/// 2.0 runs on trial.
fn on_trial() -> World {
    let mut world = World::new();
    world.store_says(UpdateProgress::Installed, None);
    world.plan();
    world.pass(RESTART_AFTER_S);
    assert_eq!(world.plan().boot.start_into.as_deref(), Some("2.0"));
    world.restart_into_new();
    world
}

#[test]
fn an_ordered_version_is_installed_started_tested_and_stays() {
    let mut world = World::new();
    let plan = world.plan();
    let update = plan.update.clone().unwrap();
    assert_eq!((&*update.version, update.attempt, update.content.id), ("2.0", 0, TREE));
    assert_eq!(other(&plan, &world).update, UpdateState::Downloading);
    world.store_says(UpdateProgress::Downloading { done_bytes: 1, total_bytes: 4 }, None);
    let plan = world.plan();
    let slot = other(&plan, &world);
    assert_eq!(
        (slot.state, slot.progress_percent, slot.step),
        (SwState::Downloading, 25, UpdateStep::Downloading)
    );
    assert!(slot.step_text.contains("no release key"));
    assert_eq!(plan.content.unwrap().state, SwState::Downloading);
    world.store_says(UpdateProgress::Installed, None);
    let plan = world.plan();
    // it is told before it comes
    assert_eq!(
        (plan.boot.start_into.as_ref(), plan.deadline),
        (None, Some(world.now.plus_s(RESTART_AFTER_S)))
    );
    assert!(plan.status.unwrap().is_updating);
    world.pass(RESTART_AFTER_S);
    let plan = world.plan();
    assert_eq!(plan.boot.start_into.as_deref(), Some("2.0"));
    assert_eq!(
        (&*other(&plan, &world).partition_state, plan.status.unwrap().is_updating),
        ("updating", true)
    );

    world.restart_into_new();
    let plan = world.plan();
    let status = plan.status.unwrap();
    assert_eq!(
        (&*status.slots[1].partition_state, &*status.slots[0].partition_state),
        ("inprogress", "unused")
    );
    assert_eq!((plan.update, plan.boot.verdict), (None, Verdict::Pending));
    world.running = [app(1), app(2)].into();
    world.agent.last_contact = Some(world.now);
    let plan = world.plan();
    assert_eq!(plan.deadline, Some(world.now.plus_s(60)));
    world.pass(59);
    assert_eq!(world.plan().boot.verdict, Verdict::Pending);
    world.pass(1);
    assert_eq!(world.plan().boot.verdict, Verdict::Good { version: "2.0".into() });
    world.slots.slots[1].tries = None;
    let plan = world.plan();
    assert_eq!((world.memory.trial.as_ref(), world.memory.failed.as_ref()), (None, None));
    assert_eq!(plan.status.unwrap().slots[1].partition_state, "active");
    // and that is all
    assert_eq!((plan.update, plan.boot), (None, BootDesired::default()));
}

#[test]
fn a_version_that_lacks_something_for_the_window_goes_back_and_the_one_before_says_why() {
    type Break = fn(&mut World);
    let cases: [(Break, u64, &str); 3] = [
        (|world| world.slots.is_ready = false, 60, "not all services are ready"),
        (
            |world| {
                world.running.remove(&app(2));
            },
            60,
            "app 00000000-0000-0000-0000-000000000002 ran before",
        ),
        (|world| world.agent.last_contact = None, 300, "the controller was reached before"),
    ];
    for (break_it, limit_s, what) in cases {
        let mut world = on_trial();
        world.running = [app(1), app(2)].into();
        world.agent.last_contact = Some(world.now);
        break_it(&mut world);
        world.plan();
        world.pass(limit_s - 1);
        assert_eq!(world.plan().boot.verdict, Verdict::Pending, "{what}");
        world.pass(1);
        assert_eq!(world.plan().boot.verdict, Verdict::Bad { version: "2.0".into() }, "{what}");
        world.restart_into_old(0);
        let plan = world.plan();
        let slot = other(&plan, &world);
        assert_eq!((slot.update, slot.state), (UpdateState::Fallback, SwState::Failed));
        let fault = slot.fault.unwrap();
        assert_eq!(fault.reason, Reason::UpdateRolledBack);
        assert!(fault.message.contains(what), "{fault}");
        assert_eq!((plan.update, plan.boot), (None, BootDesired::default()), "it is tried again");
    }
}

#[test]
fn a_version_that_never_judged_itself_is_told_by_its_used_tries() {
    let mut world = on_trial();
    world.restart_into_old(0);
    let plan = world.plan();
    let fault = other(&plan, &world).fault.unwrap();
    assert!(fault.message.contains("did not come up in 3 tries"), "{fault}");
    // a box that comes up with the old version though the new one has tries left: the boot loader must not come back to it
    let mut world = on_trial();
    world.restart_into_old(2);
    let plan = world.plan();
    assert_eq!(plan.boot, BootDesired { verdict: Verdict::Bad { version: "2.0".into() }, start_into: None });
    assert_eq!(plan.update, None);
}

#[test]
fn a_version_that_failed_is_tried_again_when_the_retry_counter_changes() {
    let mut world = on_trial();
    world.restart_into_old(0);
    assert_eq!(world.plan().update, None);
    assert_eq!(world.plan().status.unwrap().update_counter, 0);
    world.order().retry_counter = 1;
    let update = world.plan().update.unwrap();
    assert_eq!(update.attempt, 1);
    // what store said of the attempt before counts for nothing
    world.order().retry_counter = 0;
    world.store_says(UpdateProgress::Installed, None);
    world.order().retry_counter = 1;
    world.memory.failed = None;
    assert_eq!(world.plan().boot.start_into, None);
}

#[test]
fn a_refused_update_is_told_and_nothing_is_started() {
    let mut world = World::new();
    let fault = Fault::new(Reason::UpdateUntrusted, "it is not signed");
    world.store_says(UpdateProgress::Downloading { done_bytes: 0, total_bytes: 0 }, Some(fault.clone()));
    let plan = world.plan();
    let slot = other(&plan, &world);
    assert_eq!((slot.update, slot.fault, slot.state), (UpdateState::Failed, Some(fault), SwState::Failed));
    assert_eq!(plan.boot, BootDesired::default());
    // a server that cannot be reached is no refusal
    let fault = Fault::new(Reason::DatastoreUnreachable, "no route");
    world.store_says(UpdateProgress::Downloading { done_bytes: 0, total_bytes: 0 }, Some(fault));
    let plan = world.plan();
    assert_eq!(other(&plan, &world).update, UpdateState::Downloading);
}

#[test]
fn without_activate_a_version_waits_in_its_slot_and_the_running_one_is_never_ordered_again() {
    let mut world = World::new();
    world.order().is_active = false;
    world.store_says(UpdateProgress::Installed, None);
    let plan = world.plan();
    assert_eq!((&plan.boot.start_into, other(&plan, &world).update), (&None, UpdateState::Downloaded));
    world.order().is_active = true;
    world.plan();
    world.pass(RESTART_AFTER_S);
    assert_eq!(world.plan().boot.start_into.as_deref(), Some("2.0"));
    // the order is taken back before the restart
    world.order().version = "1.0".into();
    let plan = world.plan();
    assert_eq!((plan.update, plan.boot, plan.memory.trial), (None, BootDesired::default(), None));
}

#[test]
fn the_controller_counts_only_where_it_was_there_before() {
    let mut world = World::new();
    world.agent.last_contact = None;
    world.store_says(UpdateProgress::Installed, None);
    world.plan();
    world.restart_into_new();
    world.running = [app(1), app(2)].into();
    world.plan();
    world.pass(60);
    assert_eq!(world.plan().boot.verdict, Verdict::Good { version: "2.0".into() });
}

#[test]
fn a_version_nobody_ordered_is_good_when_its_services_are() {
    let mut world = World::new();
    world.config = None;
    world.slots.slots[0].tries = Some((2, 1));
    world.slots.is_ready = false;
    world.agent.last_contact = None;
    world.plan();
    world.pass(5000);
    assert_eq!(world.plan().boot.verdict, Verdict::Pending);
    world.slots.is_ready = true;
    assert_eq!(world.plan().deadline, Some(world.now.plus_s(30)));
    world.pass(30);
    assert_eq!(world.plan().boot.verdict, Verdict::Good { version: "1.0".into() });
}

#[test]
fn a_version_that_flaps_for_ever_is_bad() {
    let mut world = on_trial();
    world.running = [app(1), app(2)].into();
    world.agent.last_contact = Some(world.now);
    let mut verdict = Verdict::Pending;
    for turn in 0..100 {
        world.slots.is_ready = turn % 2 == 0;
        verdict = world.plan().boot.verdict;
        if verdict != Verdict::Pending {
            break;
        }
        world.pass(50);
    }
    assert_eq!(verdict, Verdict::Bad { version: "2.0".into() });
}

#[test]
fn a_hosted_node_has_nothing_to_decide() {
    let world = World::new();
    let none = BTreeSet::new();
    let inputs = Inputs {
        now: world.now,
        config: world.config.as_ref(),
        slots: None,
        update: None,
        agent: None,
        running: &none,
        wanted: &none,
        start: 0,
    };
    let plan = plan(inputs, &Memory::default(), &Watch::default());
    assert_eq!((plan.update, plan.status, plan.boot), (None, None, BootDesired::default()));
}
