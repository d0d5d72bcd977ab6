// SPDX-License-Identifier: Apache-2.0
//! The judge inside a box: an image of a test is built with it, init starts it when the box is well. It compares every process
//! with its manifest and says what it finds on the console; each line begins with `PROBE:`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use ipc::manifest::Manifest;
use tests::confinement::{self, Process};

const MANIFESTS: [&str; 10] = [
    include_str!("../../../services/agent.toml"),
    include_str!("../../../services/bus.toml"),
    include_str!("../../../services/fetch.toml"),
    include_str!("../../../services/log.toml"),
    include_str!("../../../services/net.toml"),
    include_str!("../../../services/planner.toml"),
    include_str!("../../../services/run.toml"),
    include_str!("../../../services/shim.toml"),
    include_str!("../../../services/store.toml"),
    include_str!("../../../services/vault.toml"),
];
/// First process of the web server that the test has ordered.
const APP: &str = "nginx";
const APP_PATIENCE: Duration = Duration::from_secs(180);

fn main() {
    let app = wait_for_app();
    let mut problems = Vec::new();
    match judge(app, &mut problems) {
        Ok(seen) => {
            for (name, count) in seen {
                say(&format!("seen {name} {count}"));
            }
        }
        Err(error) => problems.push(format!("{error:#}")),
    }
    for problem in problems {
        say(&format!("problem {problem}"));
    }
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_ascii_lowercase();
    say(&format!("pcr11 {}", line("/sys/class/tpm/tpm0/pcr-sha256/11")));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    for name in ["MemTotal", "MemAvailable"] {
        let found = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        say(&format!("{name} {}", found.unwrap_or_default().trim()));
    }
    say("end");
}

fn say(text: &str) {
    println!("PROBE: {text}");
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

fn wait_for_app() -> Option<u32> {
    let end = Instant::now() + APP_PATIENCE;
    loop {
        let found = pids().into_iter().filter(|pid| tests::lab::comm(*pid).as_deref() == Some(APP)).min();
        if found.is_some() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// How many processes of each kind there are. Whoever is of no kind is a problem.
fn judge(app: Option<u32>, problems: &mut Vec<String>) -> anyhow::Result<BTreeMap<String, u32>> {
    let manifests = MANIFESTS.map(Manifest::parse).into_iter().collect::<Result<Vec<_>, _>>()?;
    let init = Process::read(1)?;
    let mut seen = BTreeMap::new();
    for mount in &init.mounts {
        let is_writable = mount.options.contains("rw");
        if mount.point == "/" && (is_writable || mount.kind != "erofs") {
            problems.push(format!("the root is {} {:?}", mount.kind, mount.options));
        }
    }
    for pid in pids() {
        let Ok(process) = Process::read(pid) else { continue };
        let is_kernel = process.field("Kthread") == "1";
        let is_us = pid == std::process::id();
        if is_kernel || is_us || pid == 1 {
            continue;
        }
        let name = process.field("Name").to_owned();
        let of = manifests.iter().find(|m| m.bin.get(..m.bin.len().min(15)) == Some(name.as_str()));
        let kind = match of {
            Some(manifest) => {
                problems.extend(confinement::differences(manifest, &process, &init));
                let group = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
                if !group.contains("/selvedge-0/") {
                    problems.push(format!("{name} is in the control group {}", group.trim()));
                }
                manifest.name.clone()
            }
            None if name == APP => {
                if Some(pid) == app {
                    problems.extend(confinement::app_differences(&process, &init));
                }
                "app".to_owned()
            }
            None => {
                problems.push(format!("nobody ordered process {pid} {name}"));
                continue;
            }
        };
        *seen.entry(kind).or_insert(0) += 1;
    }
    Ok(seen)
}
