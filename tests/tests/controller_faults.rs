// SPDX-License-Identifier: Apache-2.0
//! The controller is killed, restored and measured by others, and nothing it has said yes to is lost.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::command::{has, output, run};
use tests::lab::{Controller, Lab, Place, lab_number};
use tests::progress::{step, wait_for};

/// How old a heartbeat may be after a kill, less the time it takes to ask.
const HEARTBEAT_AGE: Duration = Duration::from_millis(4000);

/// Set for the long form: the full number of rounds.
fn is_long() -> bool {
    std::env::var_os("SELVEDGE_LONG").is_some()
}

fn address(port: u16) -> SocketAddr {
    format!("127.0.0.1:{}", port + 10 * u16::from(lab_number())).parse().unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Played devices that report without end; see `examples/device_reports.rs` of the controller.
struct Reports {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Reports {
    fn start(place: &Place, server: SocketAddr, bundle: &Path, count: usize) -> Reports {
        let mut child = Command::new(place.bin.join("examples/device_reports"))
            .args([&server.to_string(), &*bundle.to_string_lossy(), "report", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the devices did not onboard");
        Reports { child, out }
    }

    fn signal(&self, name: &str) {
        tests::command::signal(self.child.id(), name).unwrap();
    }

    /// What each device has sent, and how often each status was answered.
    fn finish(mut self) -> (Vec<(String, u64)>, String) {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "a report was lost: {text}");
        let sent = text.lines().filter_map(|line| {
            let mut words = line.strip_prefix("sent ")?.split(' ');
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        });
        let answers = text.lines().find_map(|line| line.strip_prefix("answers ")).unwrap_or_default();
        (sent.collect(), answers.to_owned())
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Highest resident memory of a process in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// Applies one change after another; gives the number of the last one the controller said yes to.
fn apply_without_end(controller: Arc<Command>, place: &Place, stop: &AtomicBool, acknowledged: &AtomicU64) {
    let path = place.dir.join("counted.yaml");
    for number in acknowledged.load(Ordering::SeqCst) + 1.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let text = format!(
            "apiVersion: selvedge/v1alpha1\nkind: Secret\nmetadata: {{ name: counted, labels: {{ number: '{number}' }} }}\nspec: {{ data: {{ number: '{number}' }} }}\n"
        );
        fs::write(&path, text).unwrap();
        let mut command = Command::new(controller.get_program());
        command.args(["apply", "-f"]).arg(&path);
        for (key, value) in controller.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        if output(&mut command).unwrap().status.success() {
            acknowledged.store(number, Ordering::SeqCst);
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// RFC 3339 to milliseconds, by the program every machine has.
fn times_ms(place: &Place, texts: &[&str]) -> Vec<i64> {
    let file = place.dir.join("times");
    fs::write(&file, texts.join("\n")).unwrap();
    let out = run(Command::new("date").arg("-u").arg("-f").arg(file).arg("+%s%3N")).unwrap();
    out.lines().map(|line| line.parse().unwrap()).collect()
}

/// When each device was heard last, by its id.
fn last_seen_ms(place: &Place, controller: &Controller) -> BTreeMap<String, i64> {
    let list = json(&controller.cli(&["get", "devices", "-o", "json"]).unwrap());
    let text = |device: &Value, key: &str| device["status"][key].as_str().unwrap().to_owned();
    let devices = list["items"].as_array().unwrap();
    let seen: Vec<String> = devices.iter().map(|device| text(device, "lastSeen")).collect();
    let times = times_ms(place, &seen.iter().map(String::as_str).collect::<Vec<_>>());
    devices.iter().map(|device| text(device, "id")).zip(times).collect()
}

#[test]
#[ignore = "minutes of kills"]
fn kills_lose_nothing_that_was_acknowledged() {
    let (kills, devices) = if is_long() { (50, 200) } else { (5, 30) };
    let place = Place::new("controller-kills", 0).unwrap();
    place.clear().unwrap();
    let server = address(18_450);
    let mut controller = Controller::start_at(&place, server, &[]).unwrap();
    let bundle = place.dir.join("bundle");
    controller.bundle(&bundle).unwrap();
    step(format_args!("{devices} devices report"));
    let reports = Reports::start(&place, server, &bundle, devices);
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let applies = {
        let command = Arc::new(controller.command(&[]));
        let (place, stop, acknowledged) = (place.clone(), stop.clone(), acknowledged.clone());
        std::thread::spawn(move || apply_without_end(command, &place, &stop, &acknowledged))
    };
    let mut peak = 0;
    for kill in 1..=kills {
        // What is known now has to be known after the kill; another moment of the loops each time.
        let live = last_seen_ms(&place, &controller);
        let live_ms = now_ms();
        std::thread::sleep(HEARTBEAT_AGE + Duration::from_millis(kill * 137 % 500));
        let before = acknowledged.load(Ordering::SeqCst);
        peak = peak.max(peak_mib(controller.process().pid()));
        controller.process().signal("KILL").unwrap();
        let age_s = (now_ms() - live_ms) as f64 / 1000.0;
        // With the devices stopped, what is shown is what was written down.
        reports.signal("STOP");
        drop(controller);
        let start = Instant::now();
        controller = Controller::start_at(&place, server, &[]).unwrap();
        let took = start.elapsed();
        let secret = json(&controller.cli(&["get", "secret/counted", "-o", "json"]).unwrap());
        let number: u64 = secret["metadata"]["labels"]["number"].as_str().unwrap().parse().unwrap();
        assert!(number >= before, "{before} was acknowledged, {number} is there");
        let shown = last_seen_ms(&place, &controller);
        let is_forgotten =
            |(device, seen): (&String, &i64)| shown.get(device).is_none_or(|shown| shown < seen);
        let forgotten = live.iter().filter(|entry| is_forgotten(*entry)).count();
        step(format_args!(
            "kill {kill}: back in {:.1} s, change {number} of {before} acknowledged, all heartbeats of {age_s:.1} s before",
            took.as_secs_f64()
        ));
        assert_eq!(forgotten, 0, "heartbeats of {age_s:.1} s before the kill are forgotten");
        // They all come back at once.
        reports.signal("CONT");
    }
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::SeqCst);
    applies.join().unwrap();
    let (sent, answers) = reports.finish();
    step(format_args!("answers {answers}; at most {peak} MiB"));
    assert!(
        answers.split(' ').all(|answer| answer.starts_with("201=") || answer.starts_with("503=")),
        "{answers}"
    );
    assert!(peak <= 256, "the controller had {peak} MiB");
    assert_eq!(sent.len(), devices);
    for (device, count) in sent {
        assert!(count > 0);
        let history = json(&controller.cli(&["get", &format!("device/{device}"), "--history"]).unwrap());
        let infos = history["items"].as_array().unwrap().iter();
        let numbers: Vec<u64> = infos
            .map(|item| item["message"]["ainfo"]["AppName"].as_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>(), "info of {device}: once each and in order");
        let logs = controller.cli(&["logs", &format!("device/{device}"), "--tail", "5000"]).unwrap();
        let mut lines: Vec<u64> = logs.lines().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines, (1..=count).collect::<Vec<_>>(), "log lines of {device}: none is lost");
    }
    let secret = json(&controller.cli(&["get", "secret/counted", "-o", "json"]).unwrap());
    let number: u64 = secret["metadata"]["labels"]["number"].as_str().unwrap().parse().unwrap();
    assert_eq!(number, acknowledged.load(Ordering::SeqCst));
}

const APP: &str = "
apiVersion: selvedge/v1alpha1
kind: Network
metadata: { name: lan }
spec: { subnet: 10.71.0.0/24 }
---
apiVersion: selvedge/v1alpha1
kind: App
metadata: { name: web }
spec:
  image: hello/web:1
  selector: {}
  networks: [{ network: lan }]
  ports: ['8080:80']
";

/// Restart counter and timestamp of the node's config.
fn config(controller: &Controller, device: &str) -> (u64, String) {
    let config = json(&controller.cli(&["get", &format!("device/{device}"), "--config"]).unwrap());
    let counter = config["apps"][0]["restart"]["counter"].as_u64().unwrap_or(0);
    (counter, config["configTimestamp"].as_str().unwrap_or_default().to_owned())
}

/// The receiver of figures and logs: Python, and the schema of OpenTelemetry itself.
struct Collector {
    child: Child,
    seen: std::path::PathBuf,
}

impl Collector {
    fn start(place: &Place, listen: &str) -> Collector {
        let venv = place.cache.join("otlp-venv");
        let python = venv.join("bin/python");
        if !venv.join(".ready").exists() {
            step("making the collector's Python environment");
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).unwrap();
            let packages = ["opentelemetry-proto", "prometheus-client"];
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages)).unwrap();
            fs::write(venv.join(".ready"), "").unwrap();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/collector.py");
        let seen = place.dir.join("otlp.jsonl");
        let child =
            Command::new(&python).arg(script).args([listen, &*seen.to_string_lossy()]).spawn().unwrap();
        Collector { child, seen }
    }

    /// Names of metrics and texts of logs that have come so far.
    fn has(&self, kind: &str, text: &str) -> bool {
        let lines = fs::read_to_string(&self.seen).unwrap_or_default();
        let mut values = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.any(|value| value["kind"] == kind && value["text"].as_str().is_some_and(|t| t.contains(text)))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn a_restored_controller_goes_on_with_its_node_and_others_can_read_its_figures() {
    let place = Place::new("controller-restore", 46).unwrap();
    place.clear().unwrap();
    let (otlp, figures) = (address(18_460).to_string(), address(18_461).to_string());
    let collector = Collector::start(&place, &otlp);
    let url = format!("http://{otlp}");
    let serve = ["--otlp", &url, "--metrics-listen", &figures];
    // The laboratory empties its directory: the collector's file is made after that.
    let mut lab = Lab::start_with(place.clone(), &serve).unwrap();
    lab.controller.apply("app.yaml", APP).unwrap();
    lab.wait_app(8080, Duration::from_secs(120)).unwrap();
    let devices = json(&lab.controller.cli(&["get", "devices", "-o", "json"]).unwrap());
    let device = devices["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();

    let object = format!("device/{device}");
    // Config and figures show within seconds then.
    let mut hasty = json(&lab.controller.cli(&["get", &object, "-o", "json"]).unwrap());
    hasty["spec"]["properties"] = serde_json::json!({ "timer.metric.interval": "5" });
    hasty.as_object_mut().unwrap().remove("status");
    lab.controller.apply("device.json", &hasty.to_string()).unwrap();

    step("backup, then more changes");
    let backup = place.dir.join("backup.tar");
    let file = backup.to_string_lossy().into_owned();
    lab.controller.cli(&["backup", "-o", &file]).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    for _ in 0..2 {
        lab.controller.cli(&["app", "restart", "web"]).unwrap();
    }
    let (restarts, timestamp) = config(&lab.controller, &device);
    assert_eq!(restarts, 2);
    lab.controller.cli(&["wait", &object, "--for", "ConfigApplied", "--timeout", "120s"]).unwrap();
    lab.controller.cli(&["wait", "app/web", "--for", "Ready", "--timeout", "120s"]).unwrap();

    step("others read the figures");
    wait_for("the collector has figures and logs of controller and node", Duration::from_secs(90), || {
        let figures = ["selvedge_controller_uptime_seconds", "selvedge_node_cpu_seconds_total"];
        let has_all = figures.iter().all(|name| collector.has("metric", name));
        (has_all
            && collector.has("log selvedge-node", "")
            && collector.has("log selvedge-controller", "event"))
        .then_some(())
    })
    .unwrap();
    let parse = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/scrape.py");
    let python = place.cache.join("otlp-venv/bin/python");
    let families = run(Command::new(&python).arg(&parse).arg(format!("http://{figures}/metrics"))).unwrap();
    assert!(
        families.lines().any(|line| line.starts_with("selvedge_app_running_state app=web 1")),
        "{families}"
    );

    step("restore");
    lab.controller.process().signal("KILL").unwrap();
    wait_for("the controller is gone", Duration::from_secs(10), || lab.controller.process().check().err())
        .unwrap();
    let mut refused = lab.controller.command(&["restore", &file]);
    assert!(!output(&mut refused).unwrap().status.success(), "the directory is not empty");
    lab.controller.cli(&["restore", &file, "--replace"]).unwrap();
    let restored_ms = now_ms();
    let host = lab.netns.host.clone();
    lab.controller = Controller::start(&place, &host, &serve).unwrap();

    step("the node goes on and says everything again");
    wait_for("the node says everything again", Duration::from_secs(120), || {
        let history = json(&lab.controller.cli(&["get", &object, "--history"]).ok()?);
        let items = history["items"].as_array()?.clone();
        let at: Vec<&str> = items.iter().map(|item| item["at"].as_str().unwrap_or_default()).collect();
        let fresh: Vec<&Value> = items
            .iter()
            .zip(times_ms(&place, &at))
            .filter(|(_, at)| *at > restored_ms)
            .map(|(item, _)| item)
            .collect();
        let kinds = ["dinfo", "ainfo", "niinfo", "vinfo", "cinfo"];
        kinds.iter().all(|kind| fresh.iter().any(|item| item["message"][kind].is_object())).then_some(())
    })
    .unwrap();
    lab.controller.cli(&["wait", &object, "--for", "ConfigApplied", "--timeout", "120s"]).unwrap();
    let (after, later) = config(&lab.controller, &device);
    assert!(after > restarts, "the restart counter went from {restarts} to {after}");
    let times = times_ms(&place, &[&timestamp, &later]);
    assert!(times[1] > times[0], "the config went from {timestamp} to {later}");
    lab.controller.cli(&["wait", "app/web", "--for", "Ready", "--timeout", "120s"]).unwrap();
    lab.wait_app(8080, Duration::from_secs(60)).unwrap();
    let audit = lab.controller.cli(&["audit", "tail"]).unwrap();
    assert!(audit.contains("  backup") && audit.contains("  restore"), "{audit}");
}

#[test]
#[ignore = "needs systemd's own checker"]
fn the_unit_is_correct_and_confined() {
    if !has("systemd-analyze") {
        step("systemd-analyze is not to be had here: the unit is not checked");
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging/selvedge.service");
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new("controller-unit", 0).unwrap();
    let program = place.program("selvedge");
    let text = fs::read_to_string(&unit).unwrap().replace("/usr/bin/selvedge", &program.to_string_lossy());
    let copy = dir.path().join("selvedge.service");
    fs::write(&copy, text).unwrap();
    run(Command::new("systemd-analyze").arg("verify").arg(&copy)).unwrap();
    // Exposure in tenths: below 2.0 is what systemd calls well confined.
    run(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=20"]).arg(&copy))
        .unwrap();
}
