// SPDX-License-Identifier: Apache-2.0
//! Each checker catches the fault it is there for. A checker that cannot fail proves nothing.
#![allow(clippy::unwrap_used)]

use sim::node::planner::Plant;
use sim::node::{Name, Plants};
use sim::scenario::{Action, Fault, Scenario, Step, What};
use sim::{DAY_MS, MINUTE_MS, Telling, run_planted};

const HOUR_MS: u64 = 60 * MINUTE_MS;

/// One node, two apps, and what else happens.
fn scenario(more: &[(u64, What)]) -> Scenario {
    let operator = |at_ms, action| Step { at_ms, what: What::Operator(action) };
    let mut steps = vec![operator(MINUTE_MS, Action::AddApp(0)), operator(2 * MINUTE_MS, Action::AddApp(1))];
    steps.extend(more.iter().map(|(at_ms, what)| Step { at_ms: *at_ms, what: what.clone() }));
    Scenario {
        seed: 7,
        nodes: 1,
        days: 1,
        holds: true,
        metric_interval_s: 900,
        config_interval_s: 300,
        clear_secrets: true,
        steps,
    }
}

#[track_caller]
fn caught(checker: &str, plants: Plants, more: &[(u64, What)]) {
    let scenario = scenario(more);
    let healthy = run_planted(&scenario, Telling::End, Plants::default());
    assert_eq!(healthy.failure, None, "without the planted fault all is well");
    let failure = run_planted(&scenario, Telling::End, plants).failure;
    assert_eq!(failure.as_ref().map(|failure| failure.checker), Some(checker), "{failure:?}");
}

#[test]
fn a_run_that_stops_apps_by_itself_is_caught() {
    let crash = What::Fault(0, Fault::Crash(Name::Run));
    caught(
        "apps keep running",
        Plants { run_stops_offline: true, ..Plants::default() },
        &[(3 * HOUR_MS, crash)],
    );
}

#[test]
fn a_planner_that_says_everything_runs_is_caught() {
    let stop = What::Operator(Action::Deactivate(0));
    let plants = Plants { planner: Some(Plant::SaysAllRun), ..Plants::default() };
    let fails = What::Fault(0, Fault::SpawnFails { for_ms: 3 * HOUR_MS });
    let exits = What::Fault(0, Fault::AppExits { app: 0, code: 1 });
    caught("status is true", plants, &[(HOUR_MS, fails), (HOUR_MS + 1, exits), (5 * HOUR_MS, stop)]);
}

#[test]
fn instances_that_are_numbered_anew_are_caught() {
    let cut = What::Fault(0, Fault::PowerCut { off_ms: 1_000 });
    let plants = Plants { planner: Some(Plant::ForgetsInstances), ..Plants::default() };
    caught("generations never go back", plants, &[(HOUR_MS, cut)]);
}

#[test]
fn a_restored_controller_that_has_no_doubts_is_caught() {
    let restart = |hour: u64| (hour * HOUR_MS, What::Operator(Action::Restart(0)));
    let restored = What::Fault(0, Fault::ControllerRestored { changes: 1, has_reports: true });
    let plants = Plants { restore_without_doubt: true, ..Plants::default() };
    caught("generations never go back", plants, &[restart(1), restart(2), (3 * HOUR_MS, restored)]);
}

#[test]
fn a_secret_that_is_published_is_caught() {
    caught("no secret on topics", Plants { agent_forgets_seal: true, ..Plants::default() }, &[]);
}

#[test]
fn a_disk_that_acknowledges_and_keeps_nothing_is_caught() {
    let away = What::Fault(0, Fault::LinkDown { for_ms: 10 * HOUR_MS });
    let cuts = (0..8).map(|n| (2 * HOUR_MS + n * HOUR_MS, What::Fault(0, Fault::PowerCut { off_ms: 1_000 })));
    let more: Vec<(u64, What)> = std::iter::once((HOUR_MS, away)).chain(cuts).collect();
    caught("acknowledged writes survive", Plants { lying_disk: true, ..Plants::default() }, &more);
}

#[test]
fn a_second_writer_is_caught() {
    caught("one writer per topic", Plants { rogue_writer: true, ..Plants::default() }, &[]);
}

#[test]
fn a_queue_without_end_is_caught() {
    caught("queues are under their limits", Plants { endless_queue: true, ..Plants::default() }, &[]);
}

#[test]
fn a_store_that_deletes_what_is_used_is_caught() {
    let crash = What::Fault(0, Fault::Crash(Name::Store));
    caught(
        "volumes in use stay",
        Plants { store_drops_used: true, ..Plants::default() },
        &[(3 * HOUR_MS, crash)],
    );
}

#[test]
fn info_that_is_sent_twice_is_caught() {
    caught("info once and in order", Plants { agent_sends_twice: true, ..Plants::default() }, &[]);
}

#[test]
fn a_planner_that_does_nothing_is_caught() {
    let plants = Plants { planner: Some(Plant::FallsSilent), ..Plants::default() };
    caught("everything converges", plants, &[(DAY_MS / 2, What::Operator(Action::Restart(0)))]);
}
