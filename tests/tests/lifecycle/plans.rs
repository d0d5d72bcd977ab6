// SPDX-License-Identifier: Apache-2.0
//! What a change would do is shown exactly, and what is refused says where. Needs a controller only.

use std::process::Output;

use tests::command::output;
use tests::lab::{Controller, Place};

use super::{app, document, network};

/// Documents in a file of the laboratory, and a command about it.
fn with_file(controller: &Controller, place: &Place, text: &str, args: &[&str]) -> Output {
    let path = place.dir.join("documents.yaml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_string_lossy().into_owned();
    output(&mut controller.command(&[args, &["-f", &path]].concat())).unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn hash(output: &Output) -> String {
    let text = text(output);
    text.lines()
        .find_map(|line| line.strip_prefix("plan "))
        .unwrap_or_else(|| panic!("no hash:\n{text}"))
        .to_owned()
}

#[test]
#[ignore = "starts a controller"]
fn a_plan_is_exact_and_refusals_say_where() {
    let place = Place::new("plans", 37).unwrap();
    place.clear().unwrap();
    let controller = Controller::start(&place, "127.0.0.37", &[]).unwrap();
    let ask = |text: &str, args: &[&str]| with_file(&controller, &place, text, args);
    let first = document("Device", "edge-1", "serial: S1")
        + &network("apps", "10.60.0.0/24")
        + &app("web", "box:1", "apps", 8080, "env: {A: b}");

    let planned = ask(&first, &["plan"]);
    assert_eq!(planned.status.code(), Some(2), "{}", text(&planned));
    for line in ["+ device/edge-1", "+ network/apps", "+ app/web", "device edge-1", "  + app web"] {
        assert!(text(&planned).lines().any(|seen| seen == line), "{line}:\n{}", text(&planned));
    }
    assert!(controller.cli(&["get", "apps", "-o", "name"]).unwrap().is_empty(), "a plan changed something");
    let stale = hash(&planned);
    assert_eq!(hash(&ask(&first, &["plan"])), stale, "the same question has two answers");

    // somebody else changes what the plan has read
    assert!(ask(&network("apps", "10.99.0.0/24"), &["apply"]).status.success());
    let refused = ask(&first, &["apply", "--plan", &stale]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
    let fresh = hash(&ask(&first, &["plan"]));
    let applied = ask(&first, &["apply", "--plan", &fresh]);
    assert!(applied.status.success(), "{}", text(&applied));
    let nothing = ask(&first, &["plan"]);
    assert_eq!(
        (nothing.status.code(), text(&nothing).contains("nothing changes")),
        (Some(0), true),
        "{}",
        text(&nothing)
    );

    let changed = ask(&first.replace("box:1", "box:2").replace("A: b", "A: c"), &["plan"]);
    assert_eq!(changed.status.code(), Some(2));
    for line in ["~ app/web", "    spec.image: box:1 → box:2", "    spec.env.A: b → c", "device edge-1"] {
        assert!(text(&changed).lines().any(|seen| seen == line), "{line}:\n{}", text(&changed));
    }
    let deleted =
        output(&mut controller.command(&["plan", "--delete", "app/web", "--delete", "network/apps"]))
            .unwrap();
    assert_eq!(deleted.status.code(), Some(2), "{}", text(&deleted));
    for line in ["- app/web", "- network/apps", "  - app web", "  - volume web root"] {
        assert!(text(&deleted).lines().any(|seen| seen == line), "{line}:\n{}", text(&deleted));
    }
    // the plan of a deletion is carried out by its hash alone
    let done = output(&mut controller.command(&["apply", "--plan", &hash(&deleted)])).unwrap();
    assert!(done.status.success(), "{}", text(&done));
    assert!(controller.cli(&["get", "apps", "-o", "name"]).unwrap().is_empty());

    for (wrong, place, field) in [
        (first.replace("'8080:80'", "'8080'"), "documents.yaml:21", "spec.ports[0]"),
        (first.replace("env:", "enviroment:"), "documents.yaml:23", "enviroment"),
        (first.replace("cpus: 1", "cpus: many"), "documents.yaml:22", "spec.resources.cpus"),
        (
            first.replace("network: apps", "network: absent"),
            "documents.yaml:20",
            "network/absent does not exist",
        ),
        (first.replace("kind: App", "kind: Apps"), "documents.yaml:15", "Apps"),
        (first.replace("box:1", "box:1\n  image: box:2"), "documents.yaml:19", "image"),
        (first.replace("serial: S1", "serial: [S1"), "documents.yaml", "documents.yaml:"),
    ] {
        for command in ["plan", "apply"] {
            let refused = ask(&wrong, &[command]);
            assert_eq!(refused.status.code(), Some(1), "{wrong}\n{}", text(&refused));
            let said = text(&refused);
            assert!(said.contains(place) && said.contains(field), "{place} {field}:\n{said}\n{wrong}");
        }
    }
    assert!(controller.cli(&["get", "apps", "-o", "name"]).unwrap().is_empty(), "something refused was done");
}
