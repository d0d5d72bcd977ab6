// SPDX-License-Identifier: Apache-2.0
//! What real services recorded: it replays, and goes into a support bundle.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::command::run;
use tests::lab::{Lab, Place};
use tests::progress::wait_for;

/// Decisions a node makes at least until its first app runs.
const LEAST_DECISIONS: usize = 3;

/// All decisions in a service's records; fails when one comes out otherwise.
fn replayed(persist: &Path, service: &str) -> usize {
    let mut decisions = 0;
    for number in [0, 1] {
        let path = persist.join(service).join(format!("flight.{number}"));
        if !path.exists() {
            continue;
        }
        let replayed = sim::replay::replay(&service::flight::read(&path).unwrap());
        assert_eq!(replayed.differences, [""; 0], "{}:\n{}", path.display(), replayed.story.join("\n"));
        assert_eq!(replayed.service, service);
        decisions += replayed.decisions;
    }
    decisions
}

#[test]
#[ignore = "needs root"]
fn flight_records_of_a_real_node_replay_and_go_into_a_support_bundle() {
    let mut lab = Lab::start(Place::new("flight", 14).unwrap()).unwrap();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello");
    lab.controller.cli(&["apply", "-f", examples]).unwrap();
    lab.wait_app(8080, Duration::from_secs(60)).unwrap();
    let persist = lab.place.dir.join("persist");
    for service in ["planner", "run"] {
        let [pid] = lab.node.pids(service).unwrap()[..] else { panic!("{service} runs once") };
        let before = replayed(&persist, service);
        assert!(before >= LEAST_DECISIONS, "{service}: {before} decisions");
        // What was recorded before the death is read after it, and the next process goes on.
        tests::command::signal(pid, "KILL").unwrap();
        wait_for(&format!("{service} decides again"), Duration::from_secs(30), || {
            (replayed(&persist, service) > before).then_some(())
        })
        .unwrap();
    }

    let devices: serde_json::Value =
        serde_json::from_str(&lab.controller.cli(&["get", "devices", "-o", "json"]).unwrap()).unwrap();
    let device = devices["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let bundle = lab.place.dir.join("support.tar");
    let object = format!("device/{device}");
    let (file, dir) = (bundle.to_string_lossy(), persist.to_string_lossy());
    // figures come once a minute: before the first of them a bundle has none
    let names = wait_for("a bundle has figures", Duration::from_secs(150), || {
        let _ = std::fs::remove_file(&bundle);
        lab.controller.cli(&["collect", &object, "--file", &file, "--persist", &dir]).unwrap();
        let names = run(Command::new("tar").arg("-tf").arg(&bundle)).unwrap();
        names.contains("metrics.json").then_some(names)
    })
    .unwrap();
    let parts = ["about.json", "device.json", "config.json", "info.json", "history.json", "metrics.json"];
    let more = ["logs.json", "events.json", "apps.json", "flight/planner/flight.0", "flight/run/flight.0"];
    for part in parts.iter().chain(&more) {
        assert!(names.lines().any(|name| name.ends_with(part)), "{part} is missing:\n{names}");
    }
    let bytes = std::fs::read(&bundle).unwrap();
    for secret in ["admin-token", "pull-password"] {
        let secret = std::fs::read_to_string(lab.controller.data.join(secret)).unwrap();
        let secret = secret.trim().as_bytes();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "a secret is in the bundle");
    }
}
