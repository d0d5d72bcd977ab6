// SPDX-License-Identifier: Apache-2.0
//! A few whole worlds. Many more are lived through by `cargo xtask sim`.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use sim::check::Checker;
use sim::node::Plants;
use sim::scenario::{Action, Fault, Scenario, Step, What, away, generate};
use sim::world::World;
use sim::{Fact, MINUTE_MS, Telling, run};

#[test]
fn the_same_seed_tells_the_same_story() {
    let tell = || run(&generate(5, 1), Telling::Whole).story;
    let (once, again) = (tell(), tell());
    assert!(once.len() > 10);
    assert_eq!(once, again);
}

#[test]
fn a_few_worlds_are_well() {
    for seed in 1..=2 {
        let outcome = run(&generate(seed, 1), Telling::End);
        assert_eq!(outcome.failure, None, "seed {seed}:\n{}", outcome.story.join("\n"));
    }
}

/// What seeds have found, each as short as it could be made.
#[test]
fn what_failed_once_does_not_fail_again() {
    let operator = |at_ms, action| Step { at_ms, what: What::Operator(action) };
    let fault = |at_ms, fault| Step { at_ms, what: What::Fault(0, fault) };
    let cases = [
        (
            "an app that was deleted while the box was off is not the controller's for ever",
            vec![
                operator(MINUTE_MS, Action::AddApp(0)),
                operator(2 * MINUTE_MS, Action::AddApp(1)),
                fault(100 * MINUTE_MS, Fault::PowerCut { off_ms: 300 * MINUTE_MS }),
                operator(200 * MINUTE_MS, Action::DeleteApp(0)),
            ],
        ),
        (
            "where many answers are lost, requests do not pile up until the agent is stuck",
            vec![fault(60 * MINUTE_MS, Fault::LinkLossy { percent: 80, for_ms: 1_000 * MINUTE_MS })],
        ),
    ];
    for (what, steps) in cases {
        let scenario = Scenario {
            seed: 3,
            nodes: 1,
            days: 1,
            holds: false,
            metric_interval_s: 60,
            config_interval_s: 60,
            clear_secrets: false,
            steps,
        };
        let outcome = run(&scenario, Telling::End);
        assert_eq!(outcome.failure, None, "{what}:\n{}", outcome.story.join("\n"));
    }
}

/// Info messages that arrived, by node and object, with their times.
type Arrived = Rc<RefCell<BTreeMap<(usize, String), Vec<u64>>>>;

struct Watch(Arrived);

impl Checker for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String> {
        if let Fact::InfoArrived { key, .. } = fact {
            self.0.borrow_mut().entry((node, key.clone())).or_default().push(world.now_ms);
        }
        Ok(())
    }
}

/// `cargo xtask test --sim` does it with more of them, for a week.
const DEVICES: usize = 2;
const DAYS: u64 = 1;

/// The checkers see to it that apps run meanwhile and that info comes once and in order; here: that the storm is small.
#[test]
fn after_a_day_without_a_controller_every_device_says_of_every_object_how_it_is_now() {
    let scenario = away(11, DEVICES, DAYS);
    let arrived = Arrived::default();
    let mut world = World::new(&scenario, false, Plants::default());
    world.watch(Box::new(Watch(arrived.clone())));
    let result = world.live();
    assert_eq!(result, Ok(()), "{}", world.story.lines().collect::<Vec<_>>().join("\n"));
    let back_ms = 60 * MINUTE_MS + DAYS * sim::DAY_MS;
    let mut devices = 0;
    for ((node, key), times) in arrived.borrow().iter() {
        let storm: Vec<u64> =
            times.iter().copied().filter(|at| (back_ms..back_ms + 2 * MINUTE_MS).contains(at)).collect();
        // One from the queue. The device's changes with the contact itself, and is reported once more.
        let most = if key == "device" { 2 } else { 1 };
        assert!(storm.len() <= most, "node {node}, {key}: {storm:?}");
        assert!(!times.iter().any(|at| (60 * MINUTE_MS + 1_000..back_ms).contains(at)));
        devices += usize::from(key == "device" && !storm.is_empty());
    }
    assert_eq!(devices, DEVICES, "all are back");
}
