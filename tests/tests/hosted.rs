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
use tests::progress::step;
use tests::truth::SERVICES;

const APP_PORT: u16 = 8080;

fn lab_with_hello(name: &str, number: u8) -> Lab {
    let mut lab = Lab::start(Place::new(name, number).unwrap()).unwrap();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello");
    lab.controller.cli(&["apply", "-f", examples]).unwrap();
    lab.wait_app(APP_PORT, Duration::from_secs(60)).unwrap();
    lab
}

/// The web server's first process.
fn app_pid(lab: &mut Lab) -> u32 {
    let all = lab.node.all_pids().unwrap();
    all.into_iter().filter(|pid| comm(*pid).as_deref() == Some("nginx")).min().expect("the app runs")
}

#[test]
#[ignore = "needs root"]
fn every_process_and_the_app_have_what_their_manifests_grant_and_nothing_else() {
    let mut lab = lab_with_hello("confined", 11);
    let init = Process::read(lab.node.init_pid().unwrap()).unwrap();
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
