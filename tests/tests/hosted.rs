// SPDX-License-Identifier: Apache-2.0
//! A hosted node as a whole: real processes, real images, a real controller.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use tests::command::{root, run};
use tests::confinement::{self, Process, Socket};
use tests::http;
use tests::lab::{Lab, Place, comm, descendants};
use tests::probe::Probe;
use tests::progress::{step, wait_for};

const APP_PORT: u16 = 8080;
/// How long the app is probed after a service that was killed has taken up its work.
const WATCHED_ON: Duration = Duration::from_secs(1);

/// Services of a node, as their manifests name them.
const SERVICES: &[&str] = &["bus", "log", "vault", "agent", "planner", "net", "fetch", "store", "run"];

fn lab_with_hello(name: &str, number: u8) -> Lab {
    let mut lab = Lab::start(Place::new(name, number).unwrap()).unwrap();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello");
    lab.controller.cli(&["apply", "-f", examples]).unwrap();
    lab.wait_app(APP_PORT, Duration::from_secs(60)).unwrap();
    lab
}

/// The web server's first process.
fn app_pid(lab: &mut Lab) -> u32 {
    let all = descendants(lab.node.process().pid()).unwrap();
    all.into_iter().filter(|pid| comm(*pid).as_deref() == Some("nginx")).min().expect("the app runs")
}

#[test]
#[ignore = "needs root"]
fn every_process_and_the_app_have_what_their_manifests_grant_and_nothing_else() {
    let mut lab = lab_with_hello("confined", 11);
    let init_pid = lab.node.pids("init").unwrap().first().copied().unwrap_or(lab.node.process().pid());
    let init = Process::read(init_pid).unwrap();
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for manifest in confinement::manifests().unwrap() {
        for pid in lab.node.pids(&manifest.name).unwrap() {
            let process = Process::read(pid).unwrap();
            problems.extend(confinement::differences(&manifest, &process, &init));
            if manifest.name == "net" {
                // the judge sees sockets at all: the one server of the node is there
                let dns = Socket::Inet { protocol: "udp", waits_at: Some(53) };
                assert!(process.sockets.contains(&dns), "{:?}", process.sockets);
            }
            *seen.entry(manifest.name.clone()).or_insert(0) += 1;
        }
    }
    for service in SERVICES.iter().chain(&["shim"]) {
        if seen.get(*service) != Some(&1) {
            problems.push(format!("{service}: {:?} processes", seen.get(*service)));
        }
    }
    let app = Process::read(app_pid(&mut lab)).unwrap();
    problems.extend(confinement::app_differences(&app, &init));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
#[ignore = "needs root"]
fn no_probe_fails_while_each_service_is_killed() {
    let mut lab = lab_with_hello("killed", 12);
    let probe = Probe::start(lab.app_address(APP_PORT).unwrap());
    let app = app_pid(&mut lab);
    for service in SERVICES {
        let before = lab.node.pids(service).unwrap();
        let [pid] = before[..] else { panic!("{service} runs as {before:?}") };
        step(format_args!("killing {service}"));
        tests::command::signal(pid, "KILL").unwrap();
        wait_for(&format!("{service} runs again"), Duration::from_secs(10), || {
            lab.node.pids(service).unwrap().first().copied().filter(|new| *new != pid)
        })
        .unwrap();
        // a change goes through the whole node: everything that was killed took up its work
        let marker = format!("after-{service}");
        change_properties(&lab, &marker);
        wait_for(&format!("status is true after {service} was killed"), Duration::from_secs(10), || {
            reports(&lab, &marker).then_some(())
        })
        .unwrap();
        assert_eq!(app_pid(&mut lab), app, "{service} took the app with it");
        // damage may show late: watch on, however fast the node recovered
        std::thread::sleep(WATCHED_ON);
    }
    let asked = probe.end().unwrap();
    assert!(asked > 50, "only {asked} probes");
}

/// Name of the lab's only device.
fn device(lab: &Lab) -> String {
    let text = lab.controller.cli(&["get", "devices", "-o", "name"]).unwrap();
    text.lines().next().expect("a device").rsplit('/').next().unwrap().to_owned()
}

/// An unknown property changes nothing on the node but its echo.
fn change_properties(lab: &Lab, marker: &str) {
    let mut object = get(lab, &format!("device/{}", device(lab)));
    object["spec"]["properties"]["test.marker"] = marker.into();
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    object.as_object_mut().unwrap().remove("status");
    lab.controller.apply("device.yaml", &object.to_string()).unwrap();
}

/// The device has echoed the marker, and the controller shows its app as running.
fn reports(lab: &Lab, marker: &str) -> bool {
    let info = lab.controller.cli(&["get", &format!("device/{}", device(lab)), "--info"]).unwrap_or_default();
    info.contains(marker) && lab.controller.has_condition("apps", "Ready")
}

fn get(lab: &Lab, what: &str) -> serde_json::Value {
    let text = lab.controller.cli(&["get", what, "-o", "json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
#[ignore = "needs root"]
fn without_a_controller_the_app_comes_back_after_a_restart_of_the_whole_node() {
    let mut lab = lab_with_hello("offline", 13);
    lab.controller.process().stop().unwrap();
    lab.node.process().stop().unwrap();
    let address = lab.app_address(APP_PORT).unwrap();
    assert!(http::get(address, "/", Duration::from_millis(300)).is_none(), "the app outlived its node");
    lab.node = tests::lab::Node::start(&lab.place, &lab.netns, &lab.place.dir.join("config")).unwrap();
    let start = Instant::now();
    lab.wait_app(APP_PORT, Duration::from_secs(30)).unwrap();
    step(format_args!("the app answers {:.2} s after the start of the node", start.elapsed().as_secs_f64()));
}

#[test]
#[ignore = "needs root"]
fn nothing_is_left_behind() {
    let lab = lab_with_hello("gone", 14);
    let (name, dir) = (lab.place.name.clone(), lab.place.dir.clone());
    drop(lab);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*dir.to_string_lossy()), "mounts are left:\n{mounts}");
    let namespaces = run(root("ip").args(["netns", "list"])).unwrap();
    assert!(!namespaces.lines().any(|line| line.starts_with(&name)), "{namespaces}");
    let groups =
        run(root("find").args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", &format!("selvedge-{name}")]))
            .unwrap();
    assert!(groups.is_empty(), "control groups are left:\n{groups}");
    let processes = descendants(std::process::id()).unwrap();
    let left: Vec<_> =
        processes.iter().filter_map(|pid| comm(*pid)).filter(|c| c.starts_with("selvedge")).collect();
    assert!(left.is_empty(), "{left:?}");
}
