// SPDX-License-Identifier: Apache-2.0
//! The limits of an app's control group bite, and what an app takes is not taken from others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::lab::Lab;
use tests::probe::Probe;
use tests::progress::{slowness, step, wait_for};
use tests::toolbox;

use super::{SOON, app, apply, network, object, on_device, pids, sh, toolbox_lab, wait_answer};

/// As long as CPU time is measured; many periods of 100 ms.
const MEASURED: Duration = Duration::from_secs(3);
/// What may be used beyond a quota, by rounding to periods.
const CPU_SLACK: f64 = 1.2;
/// Processes of an app with 64 MiB.
const PIDS_MAX: u64 = 256;

/// Directory of a process's control group, whichever version this machine has.
pub(super) fn group_dir(pid: u32, controller: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |line: &str| line.splitn(3, ':').nth(2).unwrap().trim_start_matches('/').to_owned();
    let mount = Path::new("/sys/fs/cgroup");
    if has_v2() {
        return mount.join(path(groups.lines().find(|line| line.starts_with("0::")).unwrap()));
    }
    let has = |line: &&str| line.split(':').nth(1).unwrap().split(',').any(|name| name == controller);
    mount.join(controller).join(path(groups.lines().find(has).unwrap()))
}

pub(super) fn has_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn first_pid(lab: &mut Lab, app: &str) -> u32 {
    let id = on_device(lab, app)["id"].as_str().unwrap().to_owned();
    pids(lab, &id).first().copied().expect("the app runs")
}

fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().parse().unwrap_or_else(|_| panic!("{}: {text}", path.display()))
}

/// The line of a file that begins with a key.
fn field(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {key} in {}: {text}", path.display()))
}

fn cpu_s(pid: u32) -> f64 {
    if has_v2() {
        return field(&group_dir(pid, "cpu").join("cpu.stat"), "usage_usec") as f64 / 1e6;
    }
    number(&group_dir(pid, "cpuacct").join("cpuacct.usage")) as f64 / 1e9
}

#[test]
#[ignore = "needs root"]
fn an_app_has_its_cpus_and_processes_and_no_more() {
    let mut lab = toolbox_lab("bites", 36);
    let text = network("apps", "10.60.0.0/24")
        + &app("busy", "box:1", "apps", 8080, "")
        + &app("bomb", "box:1", "apps", 8081, "")
        + &app("calm", "box:1", "apps", 8082, "");
    apply(&lab, &text);
    for port in 8080..=8082 {
        wait_answer(&mut lab, port, "one", SOON);
    }

    step("three loops on one CPU's worth of time");
    sh(&lab, 8080, "for n in 1 2 3; do (while :; do :; done) > /dev/null 2>&1 < /dev/null & done; echo on");
    let pid = first_pid(&mut lab, "busy");
    let (before, start) = (cpu_s(pid), Instant::now());
    std::thread::sleep(MEASURED);
    let used = (cpu_s(pid) - before) / start.elapsed().as_secs_f64();
    let throttled = field(&group_dir(pid, "cpu").join("cpu.stat"), "nr_throttled");
    step(format_args!("{used:.2} CPUs used, held back {throttled} times"));
    assert!(used < CPU_SLACK, "{used} of 1 CPU");
    // with one core there is nothing to hold back; a machine busy with others may take a while to give more than one CPU
    if std::thread::available_parallelism().unwrap().get() > 1 {
        let stat = group_dir(pid, "cpu").join("cpu.stat");
        wait_for("the app is held back", Duration::from_secs(60), || {
            (field(&stat, "nr_throttled") > 0).then_some(())
        })
        .unwrap();
    }

    step("processes without end");
    let pid = first_pid(&mut lab, "bomb");
    let dir = group_dir(pid, "pids");
    assert_eq!(number(&dir.join("pids.max")), PIDS_MAX);
    let calm = (slowness() == 1).then(|| Probe::start(lab.app_address(8082).unwrap()));
    let bomb = "b() { while :; do sleep 100 & done; }; (b & b & b) > /dev/null 2>&1 < /dev/null; echo on";
    let _ = toolbox::sh(lab.app_address(8081).unwrap(), bomb);
    wait_for("the limit is reached", SOON, || (field(&dir.join("pids.events"), "max") > 0).then_some(()))
        .unwrap();
    assert!(number(&dir.join("pids.current")) <= PIDS_MAX);
    wait_answer(&mut lab, 8082, "one", SOON);
    sh(&lab, 8082, "echo the neighbour makes processes");
    if let Some(calm) = calm {
        calm.end().unwrap();
    }
}

/// Memory that is taken outside of the node, by files in memory; whose is older is swapped sooner.
struct Taken(PathBuf);

impl Taken {
    fn nothing(dir: &Path) -> Taken {
        let place = dir.join("taken");
        fs::create_dir_all(&place).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=200%", "taken"];
        tests::command::run(Command::new("mount").args(options).arg(&place)).unwrap();
        Taken(place)
    }

    /// On the account of a control group.
    fn take(&self, group: &Path, mib: u64) {
        let script = "echo $$ > \"$1/cgroup.procs\" && dd if=/dev/zero bs=1M of=\"$2\" count=\"$3\"";
        let file = self.0.join(format!("{mib}"));
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(group).arg(file).arg(mib.to_string());
        tests::command::run(&mut command).unwrap();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _ = tests::command::run(Command::new("umount").arg(&self.0));
    }
}

#[test]
#[ignore = "needs root"]
fn cgroup_v2_keeps_the_memory_of_services_and_takes_from_others_under_pressure() {
    assert!(has_v2(), "run it by: cargo xtask test --guest");
    let mut lab = toolbox_lab("pressure", 37);
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("calm", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let swap = lab.place.dir.join("swap");
    let script = format!(
        "dd if=/dev/zero of={0} bs=1M count=768 2> /dev/null && chmod 600 {0} && mkswap -q {0} && swapon {0}",
        swap.display()
    );
    tests::command::run(Command::new("sh").args(["-c", &script])).unwrap();

    // one that nobody protects, to see that the pressure was real
    let unprotected = Path::new("/sys/fs/cgroup/selvedge-test-unprotected");
    fs::create_dir(unprotected).unwrap();
    let taken = Taken::nothing(&lab.place.dir);
    taken.take(unprotected, 64);
    assert!(number(&unprotected.join("memory.current")) > 64 << 20);

    let node = group_dir(lab.node.pids("bus").unwrap()[0], "memory").parent().unwrap().to_owned();
    let services: Vec<PathBuf> = fs::read_dir(&node)
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("memory.min").exists() && !path.to_string_lossy().contains("/app-"))
        .collect();
    assert!(services.len() >= 9, "{services:?}");
    let claimed: u64 = services.iter().map(|dir| number(&dir.join("memory.min"))).sum();
    assert!(
        number(&node.join("memory.min")) >= claimed,
        "the node's group protects less than its services claim"
    );
    let before: Vec<u64> = services.iter().map(|dir| number(&dir.join("memory.current"))).collect();

    step("memory is taken");
    let others = Path::new("/sys/fs/cgroup/selvedge-test-others");
    fs::create_dir(others).unwrap();
    taken.take(others, field_kib("/proc/meminfo", "MemTotal:") / 1024 + 256);
    wait_for("the kernel takes memory away from who has no protection", SOON, || {
        (number(&unprotected.join("memory.swap.current")) > 8 << 20).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", fs::read_to_string("/proc/meminfo")));
    std::thread::sleep(Duration::from_secs(2));
    for (dir, before) in services.iter().zip(before) {
        let (min, now) = (number(&dir.join("memory.min")), number(&dir.join("memory.current")));
        let out = number(&dir.join("memory.swap.current"));
        step(format_args!(
            "{}: {} KiB of {} KiB, {} KiB swapped",
            dir.display(),
            now >> 10,
            before >> 10,
            out >> 10
        ));
        // within what is kept nothing goes; a few pages may come and go by themselves
        assert!(now + (now >> 3) >= before.min(min), "{}: {before} bytes became {now}", dir.display());
        assert!(before > min || out == 0, "{}: {out} bytes swapped", dir.display());
    }
    // it works on while memory is short
    apply(&lab, &app("calm", "box:2", "apps", 8080, ""));
    wait_answer(&mut lab, 8080, "two", SOON);
    assert!(object(&lab, "devices")["items"][0]["status"].is_object());
    drop(taken);
    tests::command::run(Command::new("swapoff").arg(swap)).unwrap();
    fs::remove_dir(others).unwrap();
    fs::remove_dir(unprotected).unwrap();
}

fn field_kib(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the field is there");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
