// SPDX-License-Identifier: Apache-2.0
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use model::config::VirtualizationMode;
use model::desired::{ImageConfig, Probe, ProbeAction, ProbeKind};
use model::id::{VolumeId, VolumeKey};
use model::observed::RunState;
use model::reason::Reason;
use model::time::Wall;

/// Run with shims that do as they are told at once.
struct World {
    apps: Apps,
    now: u64,
    outbox: Outbox<Order>,
    published: BTreeMap<AppId, AppObserved>,
    log: Vec<String>,
}

fn id(n: u8) -> AppId {
    format!("00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

fn spec(n: u8, instance: u64) -> AppDesired {
    AppDesired {
        app: id(n),
        name: format!("app{n}"),
        instance,
        mode: VirtualizationMode::NoHyper,
        memory_bytes: 1 << 20,
        vcpus: 1,
        root: VolumeKey { id: VolumeId(id(n).0), generation: 0 },
        image: ImageConfig::default(),
        layers: Vec::new(),
        vif_count: 0,
        dns: Vec::new(),
        user_data: None,
        root_size_bytes: 0,
        mounts: Vec::new(),
        start_delay_s: 0,
        probe: None,
    }
}

fn running(since: u64) -> ShimPhase {
    ShimPhase::Running { since: MonoMs(since), started_at: None }
}

fn idle() -> Shim {
    Shim { instance: 0, start: 0, phase: ShimPhase::Idle, health: None, wants_processes: false }
}

impl World {
    fn new() -> World {
        World {
            apps: Apps::default(),
            now: 1_000,
            outbox: Outbox::new(),
            published: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn live(live: &[AppId]) -> World {
        let mut world = World::new();
        world.input(Input::Live(live.iter().copied().collect::<BTreeSet<_>>()));
        world
    }

    fn input(&mut self, input: Input) {
        let now = Now { mono: MonoMs(self.now), wall: Wall::Unset };
        self.apps.handle(now, input, &mut self.outbox);
        self.settle();
    }

    fn advance(&mut self, ms: u64) {
        self.now += ms;
        let now = Now { mono: MonoMs(self.now), wall: Wall::Unset };
        self.apps.wake(now, &mut self.outbox);
        self.settle();
        assert!(self.apps.deadline().is_none_or(|at| at.0 > self.now), "spins: {:?}", self.apps);
    }

    fn settle(&mut self) {
        while let Some(order) = self.outbox.pop() {
            let now = Now { mono: MonoMs(self.now), wall: Wall::Unset };
            let answer = match order {
                Order::Spawn { app, .. } => {
                    self.log.push(format!("spawn {}", app.0.as_bytes()[15]));
                    let spawned = Input::Spawned { app, result: Ok(()) };
                    self.apps.handle(now, spawned, &mut self.outbox);
                    Some(Input::Said { app, shim: idle() })
                }
                Order::Start { spec, start } => {
                    self.log.push(format!("start {} #{start}", spec.instance));
                    let phase = running(self.now);
                    let health = spec.probe.as_ref().map(|_| Health::Unknown);
                    let shim = Shim { instance: spec.instance, start, phase, health, wants_processes: false };
                    Some(Input::Said { app: spec.app, shim })
                }
                Order::Stop { .. } => {
                    self.log.push("stop".into());
                    None
                }
                Order::Release { app } => {
                    self.log.push("release".into());
                    Some(Input::Released { app, result: Ok(()) })
                }
                Order::Publish(seen) => {
                    self.published.insert(seen.app, seen);
                    None
                }
                Order::Remove { app } => {
                    self.published.remove(&app);
                    None
                }
                Order::Synced => {
                    self.log.push("synced".into());
                    None
                }
            };
            if let Some(answer) = answer {
                self.apps.handle(now, answer, &mut self.outbox);
            }
        }
    }

    fn desire(&mut self, specs: &[AppDesired], is_synced: bool) {
        let apps = specs.iter().map(|spec| (spec.app, spec.clone())).collect();
        self.input(Input::Desired { apps, is_synced });
    }

    fn said(&mut self, n: u8, instance: u64, start: u32, phase: ShimPhase) {
        self.input(Input::Said {
            app: id(n),
            shim: Shim { instance, start, phase, health: None, wants_processes: false },
        });
    }

    /// Every state that was published of an app while something happens, with its reason.
    fn states(&mut self, n: u8, input: Input) -> Vec<(Option<RunState>, Option<Reason>)> {
        let now = Now { mono: MonoMs(self.now), wall: Wall::Unset };
        self.apps.handle(now, input, &mut self.outbox);
        let mut seen = Vec::new();
        let mut orders: Vec<Order> = core::iter::from_fn(|| self.outbox.pop()).collect();
        for order in orders.drain(..) {
            if let Order::Publish(observed) = &order
                && observed.app == id(n)
            {
                seen.push((Some(observed.state), observed.fault.as_ref().map(|fault| fault.reason)));
            }
            self.outbox.push(order);
        }
        self.settle();
        seen
    }

    fn log(&mut self) -> String {
        core::mem::take(&mut self.log).join(", ")
    }

    fn state(&self, n: u8) -> Option<RunState> {
        self.published.get(&id(n)).map(|seen| seen.state)
    }

    fn fault(&self, n: u8) -> Option<Reason> {
        self.published.get(&id(n))?.fault.as_ref().map(|fault| fault.reason)
    }
}

#[test]
fn an_ordered_app_is_started_once() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 7)], false);
    world.desire(&[spec(1, 7)], true);
    world.advance(1_000_000);
    assert_eq!(world.log(), "synced, spawn 1, start 7 #1");
    assert!(matches!(world.state(1), Some(RunState::Running { .. })));
    assert_eq!(world.fault(1), None);
    assert_eq!(world.apps.running().collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn nothing_is_decided_before_it_is_known_what_lives() {
    let mut world = World::new();
    world.desire(&[spec(1, 7)], true);
    world.advance(1_000_000);
    assert_eq!(world.log(), "");
    world.input(Input::Live(BTreeSet::new()));
    assert_eq!(world.log(), "spawn 1, start 7 #1, synced");
}

#[test]
fn a_restarted_run_adopts_what_lives() {
    let mut world = World::live(&[id(1), id(2)]);
    assert_eq!(world.log(), "");
    world.desire(&[spec(1, 7)], true);
    assert_eq!(world.log(), "", "neither may be touched before it has spoken");
    world.said(1, 7, 3, running(500));
    world.said(2, 9, 1, running(600));
    // 1 goes on as it is; 2 is ordered by nobody.
    assert_eq!(world.log(), "stop, synced");
    assert_eq!(world.published[&id(1)].starts, 3);
    world.said(2, 9, 1, ShimPhase::Ended(Exit::Code(0)));
    assert_eq!(world.log(), "release");
    assert_eq!(world.state(2), None);
}

#[test]
fn absent_is_not_deleted_before_the_orders_are_synced() {
    let mut world = World::live(&[id(1)]);
    world.said(1, 7, 1, running(500));
    world.desire(&[], false);
    world.advance(1_000_000);
    assert_eq!(world.log(), "synced");
    assert!(matches!(world.state(1), Some(RunState::Running { .. })));
    world.desire(&[], true);
    assert_eq!(world.log(), "stop");
    assert_eq!(world.state(1), Some(RunState::Stopping));
}

#[test]
fn an_app_that_ends_is_started_again_after_growing_waits() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 7)], true);
    world.log();
    for (wait, start) in [(1_000, 1), (2_000, 2), (4_000, 3)] {
        world.said(1, 7, start, ShimPhase::Ended(Exit::Code(3)));
        let retry_at = MonoMs(world.now + wait);
        assert_eq!(world.state(1), Some(RunState::Backoff { retry_at, exit: Exit::Code(3) }));
        assert_eq!(world.fault(1), Some(Reason::AppExited));
        world.advance(wait - 1);
        assert_eq!(world.log(), "release");
        world.advance(1);
        assert_eq!(world.log(), format!("spawn 1, start 7 #{}", start + 1));
        assert_eq!(world.fault(1), None);
    }
    world.advance(60_000);
    world.said(1, 7, 4, ShimPhase::Ended(Exit::OutOfMemory));
    assert_eq!(world.fault(1), Some(Reason::AppOutOfMemory));
    let retry_at = MonoMs(world.now + 1_000);
    assert_eq!(
        world.state(1),
        Some(RunState::Backoff { retry_at, exit: Exit::OutOfMemory }),
        "it was healthy"
    );
}

#[test]
fn another_instance_is_a_stop_and_a_start_without_a_wait() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 7)], true);
    world.log();
    world.desire(&[spec(1, 8)], true);
    assert_eq!(world.log(), "stop");
    assert_eq!(world.state(1), Some(RunState::Stopping));
    world.said(1, 7, 1, ShimPhase::Stopping);
    world.said(1, 7, 1, ShimPhase::Ended(Exit::Signal(15)));
    assert_eq!(world.log(), "release, spawn 1, start 8 #1");
    assert_eq!(world.published[&id(1)].instance, 8);
}

#[test]
fn the_end_of_an_instance_that_is_replaced_is_no_failure() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 1)], true);
    world.desire(&[spec(1, 2)], true);
    let phase = ShimPhase::Ended(Exit::Code(0));
    let shim = Shim { instance: 1, start: 1, phase, health: None, wants_processes: false };
    let seen = world.states(1, Input::Said { app: id(1), shim });
    assert!(
        seen.iter().all(|(state, fault)| *state == Some(RunState::Stopping) && fault.is_none()),
        "{seen:?}"
    );
    assert!(matches!(world.state(1), Some(RunState::Running { .. })));
}

#[test]
fn a_shim_that_does_not_stop_is_ended() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 7)], true);
    world.desire(&[], true);
    world.log();
    world.advance(u64::from(app::STOP_TIMEOUT_S) * 1000 + 14_999);
    assert_eq!(world.log(), "");
    world.advance(1);
    assert_eq!(world.log(), "release");
    assert_eq!(world.state(1), None);
}

#[test]
fn what_asks_for_a_hypervisor_fails_and_is_never_run() {
    let mut world = World::live(&[]);
    world.log();
    for mode in [VirtualizationMode::Hvm, VirtualizationMode::Pv, VirtualizationMode::Other(42)] {
        world.desire(&[AppDesired { mode, ..spec(1, 7) }], true);
        world.advance(1_000_000);
        assert_eq!(world.log(), "");
        assert_eq!(world.state(1), Some(RunState::Failed));
        assert_eq!(world.fault(1), Some(Reason::IsolationUnavailable));
    }
    world.desire(&[spec(1, 8)], true);
    assert_eq!(world.log(), "spawn 1, start 8 #1");
    // An order that changes to a hypervisor ends the container, too.
    world.desire(&[AppDesired { mode: VirtualizationMode::Hvm, ..spec(1, 9) }], true);
    world.said(1, 8, 1, ShimPhase::Ended(Exit::Code(0)));
    assert_eq!(world.log(), "stop, release");
    assert_eq!(world.fault(1), Some(Reason::IsolationUnavailable));
    world.desire(&[], true);
    assert_eq!(world.state(1), None);
}

#[test]
fn a_start_that_cannot_work_waits_for_a_change_and_another_is_tried_again() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 7), spec(2, 7)], true);
    world.log();
    let lasting = Fault::new(Reason::UserDataInvalid, "line 1");
    world.said(1, 7, 1, ShimPhase::Failed(lasting));
    let passing = Fault::new(Reason::ServiceUnavailable, "net");
    world.said(2, 7, 1, ShimPhase::Failed(passing));
    assert_eq!(world.log(), "release, release");
    assert_eq!((world.state(1), world.fault(1)), (Some(RunState::Failed), Some(Reason::UserDataInvalid)));
    assert_eq!((world.state(2), world.fault(2)), (Some(RunState::Failed), Some(Reason::ServiceUnavailable)));
    world.advance(1_000_000);
    assert_eq!(world.log(), "spawn 2, start 7 #2");
    world.desire(&[spec(1, 8), spec(2, 7)], true);
    assert_eq!(world.log(), "spawn 1, start 8 #1");
}

#[test]
fn a_shim_that_dies_is_cleared_away_and_its_app_started_again() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 7)], true);
    world.log();
    world.input(Input::Gone { app: id(1) });
    assert_eq!(world.log(), "release");
    assert_eq!(world.fault(1), Some(Reason::Internal));
    world.advance(1_000);
    assert_eq!(world.log(), "spawn 1, start 7 #2");
}

#[test]
fn a_start_delay_counts_from_the_node_and_strikes_only_the_first_start() {
    let mut world = World::live(&[]);
    let late = AppDesired { start_delay_s: 30, ..spec(1, 1) };
    world.desire(&[late.clone(), spec(2, 1)], true);
    assert_eq!(world.state(1), Some(RunState::Delayed { until: MonoMs(31_000) }));
    assert!(matches!(world.state(2), Some(RunState::Running { .. })));
    world.advance(29_999);
    assert!(matches!(world.state(1), Some(RunState::Delayed { .. })));
    world.advance(1);
    assert!(matches!(world.state(1), Some(RunState::Running { .. })));
    // Ordered to restart within the delay of a later order, it does not wait again.
    world.desire(&[AppDesired { start_delay_s: 3_000, ..spec(1, 2) }, spec(2, 1)], true);
    world.said(1, 1, 1, ShimPhase::Ended(Exit::Code(0)));
    assert!(matches!(world.state(1), Some(RunState::Running { .. })));
}

#[test]
fn an_app_whose_probe_fails_is_started_again_when_its_order_says_so() {
    for (action, restarts) in [(ProbeAction::Restart, true), (ProbeAction::Report, false)] {
        let mut world = World::live(&[]);
        let probe = Probe {
            kind: ProbeKind::Tcp,
            port: 80,
            every_s: 1,
            timeout_s: 1,
            failures: 1,
            grace_s: 1,
            action,
        };
        world.desire(&[AppDesired { probe: Some(probe), ..spec(1, 1) }], true);
        assert_eq!(world.published[&id(1)].health, Some(Health::Unknown));
        let sick = |phase| Shim {
            instance: 1,
            start: 1,
            phase,
            health: Some(Health::Bad("refused".into())),
            wants_processes: false,
        };
        world.input(Input::Said { app: id(1), shim: sick(running(1_000)) });
        assert_eq!(world.log.contains(&String::from("stop")), restarts);
        if !restarts {
            assert_eq!(world.published[&id(1)].health, Some(Health::Bad("refused".into())));
            continue;
        }
        assert_eq!((world.state(1), world.fault(1)), (Some(RunState::Stopping), Some(Reason::AppUnhealthy)));
        world.input(Input::Said { app: id(1), shim: sick(ShimPhase::Ended(Exit::Code(0))) });
        assert!(matches!(world.state(1), Some(RunState::Backoff { .. })));
        assert_eq!(world.fault(1), Some(Reason::AppUnhealthy));
        world.advance(1_000);
        assert_eq!(world.published[&id(1)].starts, 2);
        assert_eq!((world.published[&id(1)].health.clone(), world.fault(1)), (Some(Health::Unknown), None));
    }
}

#[test]
fn how_an_app_ended_is_told_with_what_follows() {
    let mut world = World::live(&[]);
    world.desire(&[spec(1, 1)], true);
    for (exit, text) in [
        (Exit::Code(7), "the app ended with code 7; start 2 follows after 1 s"),
        (Exit::Signal(9), "the app was ended by signal 9 (SIGKILL); start 3 follows after 2 s"),
        (Exit::OutOfMemory, "the app used more memory than its limit; start 4 follows after 4 s"),
    ] {
        let start = world.published[&id(1)].starts;
        world.said(1, 1, start, ShimPhase::Ended(exit));
        assert_eq!(world.published[&id(1)].fault.as_ref().unwrap().message, text);
        world.advance(60_000);
    }
}
