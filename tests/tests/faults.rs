// SPDX-License-Identifier: Apache-2.0
//! Processes of a hosted node are killed and stopped while an app is asked every 100 ms; no answer may fail, and the
//! node's report is true again within [`CONVERGED`] of each.
//!
//! In the short form each fault is met a few times; with `SELVEDGE_LONG` set (`cargo xtask test --faults --long`) each
//! service is killed 20 times, then 200 are killed at random, then each is stopped. `SELVEDGE_SEED` repeats a sequence.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tests::command::{output, root, run, signal};
use tests::http;
use tests::lab::{Lab, Place, comm};
use tests::probe::Probe;
use tests::progress::{step, wait_for};
use tests::toolbox;
use tests::truth::SERVICES;

/// The port of the app that is probed, and of one that is ended.
const PORT: u16 = 8080;
const BRIEF: u16 = 8081;
/// Everything is as it should be and reported so.
const CONVERGED: Duration = Duration::from_secs(10);
/// A service that does not answer for so long is started again; init asks it every few seconds.
const SILENT: Duration = Duration::from_secs(35);
/// Damage may show late: the app is watched on, however fast the node recovered.
const WATCHED_ON: Duration = Duration::from_secs(1);

fn is_long() -> bool {
    std::env::var_os("SELVEDGE_LONG").is_some()
}

/// Marsaglia's xorshift: a sequence that can be had again.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let seed: u64 =
            std::env::var("SELVEDGE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into()
            });
        step(format_args!("SELVEDGE_SEED={seed} repeats this sequence"));
        Chance(seed | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn document(name: &str, port: u16) -> String {
    format!(
        "apiVersion: selvedge/v1alpha1\nkind: App\nmetadata: {{name: {name}}}\nspec:\n  image: box:1\n  selector: {{}}\n  \
         networks: [{{network: apps}}]\n  ports: ['{port}:80']\n  resources: {{cpus: 1, memory: 64Mi}}\n---\n"
    )
}

/// Two apps of one image: one for the probe, one that may end.
fn lab_with_apps(name: &str, number: u8) -> Lab {
    let mut lab = Lab::start(Place::new(name, number).unwrap()).unwrap();
    lab.controller.push(&toolbox::layout(&lab.place.cache).unwrap(), "1", "box:1").unwrap();
    let network = "apiVersion: selvedge/v1alpha1\nkind: Network\nmetadata: {name: apps}\nspec:\n  \
                   kind: local\n  subnet: 10.60.0.0/24\n---\n";
    let all = network.to_owned() + &document("box", PORT) + &document("brief", BRIEF);
    lab.controller.apply("apps.yaml", &all).unwrap();
    for port in [PORT, BRIEF] {
        lab.wait_app(port, Duration::from_secs(60)).unwrap();
    }
    lab.converge("the start", Duration::from_secs(30)).unwrap();
    lab
}

/// Control group of an app, as every process in it shows it.
fn group_of(lab: &Lab, app: &str) -> String {
    let text = lab.controller.cli(&["get", &format!("app/{app}"), "-o", "json"]).unwrap();
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    format!("/app-{}/", object["status"]["devices"][0]["id"].as_str().unwrap())
}

/// Processes in a control group of the node.
fn in_group(lab: &Lab, group: &str) -> Vec<u32> {
    let is_in =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(group));
    lab.node.all_pids().unwrap().into_iter().filter(is_in).collect()
}

fn sh(lab: &Lab, port: u16, command: &str) -> String {
    let said = toolbox::sh(lab.app_address(port).unwrap(), command);
    said.unwrap_or_else(|| panic!("port {port} does not answer to: {command}"))
}

/// Does something to a service and waits until the node is whole again; how long that took.
fn recovers(lab: &Lab, fault: &str, service: &str, deed: impl FnOnce(u32)) -> Duration {
    recovers_within(CONVERGED, lab, fault, service, deed)
}

fn recovers_within(
    limit: Duration,
    lab: &Lab,
    fault: &str,
    service: &str,
    deed: impl FnOnce(u32),
) -> Duration {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let pid = lab.service(service).unwrap();
    let start = Instant::now();
    deed(pid);
    wait_for(&format!("{service} runs again after {fault}"), limit, || {
        lab.node.pids(service).unwrap().into_iter().find(|new| *new != pid)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.node.log_tail()));
    lab.converge(&format!("{fault}-{service}-{count}"), limit.saturating_sub(start.elapsed())).unwrap();
    start.elapsed()
}

#[test]
#[ignore = "needs root"]
fn no_probe_fails_while_each_service_is_killed() {
    let lab = lab_with_apps("faults", 12);
    let (rounds, random, stopped) =
        if is_long() { (20, 200, SERVICES) } else { (1, 10, &["bus", "planner", "run"][..]) };
    let apps = ["box", "brief"].map(|app| in_group(&lab, &group_of(&lab, app)));
    let probe = Probe::start(lab.app_address(PORT).unwrap());
    let mut took: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for round in 1..=rounds {
        for service in SERVICES {
            step(format_args!("killing {service}, round {round}"));
            let time = recovers(&lab, "kill", service, |pid| signal(pid, "KILL").unwrap());
            took.entry(format!("kill {service}")).or_default().push(time);
            std::thread::sleep(WATCHED_ON);
        }
    }
    let mut chance = Chance::new();
    for done in 1..=random {
        let service = SERVICES[chance.below(SERVICES.len() as u64) as usize];
        // Several at once, and ones that have not come back from the last.
        if let Some(pid) = lab.node.pids(service).unwrap().first() {
            let _ = signal(*pid, "KILL");
        }
        std::thread::sleep(Duration::from_millis(chance.below(1000)));
        if done % 10 == 0 {
            step(format_args!("{done} services killed at random"));
            let time = lab.converge(&format!("random-{done}"), CONVERGED).unwrap();
            took.entry("random kills".into()).or_default().push(time);
        }
    }
    for service in stopped {
        step(format_args!("stopping {service}"));
        let time = recovers(&lab, "stop", service, |pid| signal(pid, "STOP").unwrap());
        took.entry(format!("stop {service}")).or_default().push(time);
    }
    let asked = probe.end().unwrap();
    let after = ["box", "brief"].map(|app| in_group(&lab, &group_of(&lab, app)));
    assert_eq!(after, apps, "apps were started again");
    for (fault, times) in &took {
        let mut times = times.clone();
        times.sort();
        let (median, worst) = (times[times.len() / 2].as_secs_f64(), times[times.len() - 1].as_secs_f64());
        step(format_args!(
            "{fault}: {} times, whole again after {median:.2} s, at worst {worst:.2} s",
            times.len()
        ));
    }
    step(format_args!("{asked} probes, none failed"));
}

/// Processes held by the freezer: they are in no state that shows it, and do not answer.
struct Freezer(PathBuf);

impl Freezer {
    /// A group of the unified hierarchy, which stands beside those of cgroup v1 or is the only one.
    fn make(lab: &Lab) -> Freezer {
        let top = [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup")];
        let top = top.iter().find(|top| top.join("cgroup.procs").exists()).expect("cgroup v2 is there");
        let dir = top.join(format!("{}-frozen", lab.place.name));
        run(root("mkdir").arg(&dir)).unwrap();
        Freezer(dir)
    }

    fn freeze(&self, pid: u32) {
        let write = |file: &str, value: &str| {
            run(root("sh").args(["-c", "echo \"$1\" > \"$2\"", "sh", value]).arg(self.0.join(file))).unwrap();
        };
        write("cgroup.freeze", "1");
        write("cgroup.procs", &pid.to_string());
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = output(root("rmdir").arg(&self.0));
    }
}

#[test]
#[ignore = "needs root"]
fn a_service_that_does_not_answer_is_started_again() {
    if !is_long() {
        return step("left out: it waits for the time a service may be silent");
    }
    let lab = lab_with_apps("silent", 17);
    let freezer = Freezer::make(&lab);
    let probe = Probe::start(lab.app_address(PORT).unwrap());
    for service in ["planner", "net"] {
        step(format_args!("freezing {service}"));
        let took = recovers_within(SILENT + CONVERGED, &lab, "freeze", service, |pid| freezer.freeze(pid));
        assert!(took > SILENT / 2, "it was not silent: {took:?}");
        step(format_args!("whole again after {:.1} s", took.as_secs_f64()));
    }
    step(format_args!("{} probes, none failed", probe.end().unwrap()));
}

#[test]
#[ignore = "needs root"]
fn the_apps_of_a_killed_init_are_taken_over() {
    let mut lab = lab_with_apps("taken-over", 15);
    let times = if is_long() { 20 } else { 3 };
    let group = group_of(&lab, "box");
    let app = in_group(&lab, &group);
    let mut chance = Chance::new();
    // The console of the first process: a line each 100 ms, numbered.
    sh(
        &lab,
        PORT,
        "(n=0; while :; do n=$((n+1)); echo tick-$n; echo $n > /tmp/tick; sleep 0.1; done) > /proc/1/fd/1 2>&1 < /dev/null &",
    );
    let kept = in_group(&lab, &group);
    assert!(kept.len() > app.len());
    let probe = Probe::start(lab.app_address(PORT).unwrap());
    let mut took = Vec::new();
    for time in 1..=times {
        step(format_args!("killing init, time {time}"));
        lab.node.kill_init().unwrap();
        std::thread::sleep(Duration::from_millis(chance.below(3000)));
        let now = in_group(&lab, &group);
        assert!(app.iter().all(|pid| now.contains(pid)), "the app has lost a process: {app:?}, now {now:?}");
        lab.node.start_again(&lab.netns).unwrap();
        let start = Instant::now();
        lab.converge(&format!("init-{time}"), CONVERGED).unwrap();
        took.push(start.elapsed().as_secs_f64());
        let now = in_group(&lab, &group);
        assert!(app.iter().all(|pid| now.contains(pid)), "the app was started again: {app:?}, now {now:?}");
    }

    for time in 0..u16::try_from(times / 3).unwrap() {
        step("killing init while an app is being started");
        let (name, port) = (format!("late-{time}"), BRIEF + 1 + time);
        lab.controller.apply("late.yaml", &document(&name, port)).unwrap();
        std::thread::sleep(Duration::from_millis(chance.below(1500)));
        lab.node.kill_init().unwrap();
        lab.node.start_again(&lab.netns).unwrap();
        lab.wait_app(port, 2 * CONVERGED).unwrap();
        lab.converge(&format!("init-{name}"), CONVERGED).unwrap();
    }

    step("killing init; an app ends and a shim is killed before the next one comes");
    let brief = group_of(&lab, "brief");
    for deed in ["end", "kill"] {
        let before = in_group(&lab, &brief);
        lab.node.kill_init().unwrap();
        match deed {
            "end" => drop(toolbox::sh(lab.app_address(BRIEF).unwrap(), "kill -TERM 1")),
            _ => {
                let is_shim = |pid: &&u32| comm(**pid).as_deref() == Some("selvedge-shim");
                signal(*before.iter().find(is_shim).unwrap(), "KILL").unwrap();
            }
        }
        wait_for("the app ends", CONVERGED, || {
            http::get(lab.app_address(BRIEF).unwrap(), "/", Duration::from_millis(300))
                .is_none()
                .then_some(())
        })
        .unwrap();
        lab.node.start_again(&lab.netns).unwrap();
        lab.wait_app(BRIEF, CONVERGED).unwrap();
        lab.converge(&format!("init-{deed}"), CONVERGED).unwrap();
        assert!(
            in_group(&lab, &brief).iter().all(|pid| !before.contains(pid)),
            "something of the old start runs"
        );
    }
    let asked = probe.end().unwrap();

    // the file is empty for a moment now and then
    let now: u32 =
        wait_for("the last tick", CONVERGED, || sh(&lab, PORT, "cat /tmp/tick").parse().ok()).unwrap();
    let lines = wait_for("the lines of the console arrive", CONVERGED, || {
        let text = lab.controller.cli(&["logs", "app/box", "--tail", "100000"]).ok()?;
        let tick = |line: &str| line.rsplit_once("tick-")?.1.trim().parse::<u32>().ok();
        let ticks: Vec<u32> = text.lines().filter_map(tick).collect();
        ticks.iter().any(|tick| *tick > now).then_some(ticks)
    })
    .unwrap();
    let last = *lines.iter().max().unwrap();
    let missing: Vec<u32> = (1..last).filter(|tick| !lines.contains(tick)).collect();
    took.sort_by(f64::total_cmp);
    step(format_args!(
        "init killed {times} times: whole again after {:.2} s, at worst {:.2} s; {asked} probes, none failed; {} of {last} \
         lines missing",
        took[took.len() / 2],
        took[took.len() - 1],
        missing.len()
    ));
    assert!(missing.is_empty(), "missing lines: {missing:?}");
}

/// A disk of its own for what the node keeps.
struct Disk(PathBuf);

impl Disk {
    /// Moves everything there. The node must not run.
    fn under(lab: &Lab) -> Disk {
        let dir = &lab.place.dir;
        let (at, image) = (dir.join("persist"), dir.join("persist.img"));
        run(root("mv").arg(&at).arg(dir.join("persist.before"))).unwrap();
        run(root("mkdir").arg(&at)).unwrap();
        run(root("truncate").args(["-s", "1G"]).arg(&image)).unwrap();
        run(root("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image)).unwrap();
        run(root("mount").args(["-o", "loop"]).arg(&image).arg(&at)).unwrap();
        let disk = Disk(at);
        run(root("cp").arg("-a").arg(dir.join("persist.before/.")).arg(&disk.0)).unwrap();
        disk
    }

    fn fill(&self) {
        for block in ["1M", "4k", "1k"] {
            let (from, to) = ("if=/dev/zero", format!("of={}", self.0.join("fill").display()));
            let more = ["oflag=append", "conv=notrunc,fsync", "status=none"];
            let filled = output(root("dd").args([from, &to, &format!("bs={block}")]).args(more)).unwrap();
            assert!(!filled.status.success(), "the disk takes more");
        }
    }

    fn free(&self) {
        run(root("rm").arg(self.0.join("fill"))).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = output(root("umount").arg("-l").arg(&self.0));
    }
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_stops_changes_and_nothing_else() {
    let place = Place::new("full", 16).unwrap();
    // of a run that was cut off
    let _ = output(root("umount").args(["-l", "-q"]).arg(place.dir.join("persist")));
    let mut lab = lab_with_apps("full", 16);
    lab.node.process().stop().unwrap();
    let disk = Disk::under(&lab);
    lab.node.start_again(&lab.netns).unwrap();
    for port in [PORT, BRIEF] {
        lab.wait_app(port, Duration::from_secs(30)).unwrap();
    }
    let probe = Probe::start(lab.app_address(PORT).unwrap());
    step("filling the disk");
    disk.fill();
    for service in ["log", "vault", "agent", "planner"] {
        step(format_args!("killing {service} on a full disk"));
        recovers(&lab, "full", service, |pid| signal(pid, "KILL").unwrap());
    }
    step("killing init on a full disk");
    lab.node.kill_init().unwrap();
    lab.node.start_again(&lab.netns).unwrap();
    lab.converge("full-init", CONVERGED).unwrap();
    step("ordering an app on a full disk");
    disk.fill();
    lab.controller.apply("late.yaml", &document("late", 8082)).unwrap();
    let mut last = String::new();
    wait_for("the reason is described", CONVERGED, || {
        last = lab.controller.cli(&["describe", "app/late"]).unwrap_or_default();
        last.contains("DiskFull").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}:\n{last}\n{}", lab.node.log_tail()));
    step("deleting an app on a full disk");
    disk.fill();
    lab.controller.cli(&["delete", "app/brief"]).unwrap();
    wait_for("the app is gone", CONVERGED, || {
        http::get(lab.app_address(BRIEF).unwrap(), "/", Duration::from_millis(300)).is_none().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.node.log_tail()));
    step("the disk has room again");
    disk.free();
    lab.wait_app(8082, Duration::from_secs(30)).unwrap();
    lab.converge("full-freed", CONVERGED).unwrap();
    step(format_args!("{} probes, none failed", probe.end().unwrap()));
}
