// SPDX-License-Identifier: Apache-2.0
//! The independent referees judge both sides.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tests::command::Background;
use tests::http;
use tests::image;
use tests::lab::{Controller, Node, Place};
use tests::netns::Netns;
use tests::progress::{step, wait_for};
use tests::referee::Referees;
use tests::registry::Registry;

const APP: &str = "60000000-0000-4000-8000-000000000001";

/// The referee's controller with a node under it, and a registry that is not ours.
struct Trial {
    node: Node,
    _controller: Background,
    _registry: Registry,
    netns: Netns,
    referees: Referees,
    state: PathBuf,
    config: Value,
}

impl Trial {
    fn start(name: &str, number: u8, extra: &[&str]) -> Trial {
        let place = Place::new(name, number).unwrap();
        place.clear().unwrap();
        let referees = Referees::prepare(&place.cache).unwrap();
        let netns = Netns::create(&place.name, number).unwrap();
        let registry =
            Registry::start(&place.dir.join("registry"), format!("{}:5000", netns.host).parse().unwrap())
                .unwrap();
        registry.push(&image::web_server(&place.cache).unwrap(), image::TAG, "web:1").unwrap();
        let mut config = referees.sample("sample-container.json").unwrap();
        config["datastores"][0]["fqdn"] = json!(format!("docker://{}", registry.address));
        let state = place.dir.join("referee");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("config.json"), config.to_string()).unwrap();
        let listen = format!("{}:8443", netns.host);
        let mut command = referees.command("controller.py");
        command
            .args(["--listen", &listen, "--state"])
            .arg(&state)
            .arg("--config")
            .arg(state.join("config.json"));
        command.args(["--enforce-attest", "soft"]).args(extra);
        let mut controller =
            Background::start("the referee", &place.dir.join("referee.log"), &mut command).unwrap();
        wait_for("referee is ready", Duration::from_secs(20), || {
            controller.check().unwrap();
            (state.join("config/server").exists() && state.join("events.jsonl").exists()).then_some(())
        })
        .unwrap();
        let node = Node::start(&place, &netns, &state.join("config")).unwrap();
        Trial { node, _controller: controller, _registry: registry, netns, referees, state, config }
    }

    fn events(&self) -> PathBuf {
        self.state.join("events.jsonl")
    }

    fn wait(&self, conditions: &[&str], timeout_s: u32) -> Value {
        self.referees.wait(&self.events(), conditions, timeout_s).unwrap_or_else(|error| {
            panic!(
                "{error:#}\nnode:\n{}",
                fs::read_to_string(self.node.dir().join("node.log")).map(|t| tail(&t)).unwrap_or_default()
            )
        })
    }

    /// Publishes the config with a marker the node must echo.
    fn publish(&mut self, marker: &str) {
        let items = self.config["configItems"].as_array_mut().unwrap();
        items.retain(|item| item["key"] != "testmarker");
        items.push(json!({"key": "testmarker", "value": marker}));
        let fresh = self.state.join("config.new");
        fs::write(&fresh, self.config.to_string()).unwrap();
        fs::rename(fresh, self.state.join("config.json")).unwrap();
    }

    fn wait_marker(&self, marker: &str, timeout_s: u32) {
        let condition =
            format!("request.dinfo.configItemStatus.unknownConfigItems.testmarker.value={marker}");
        self.wait(&["call=info", &condition], timeout_s);
    }

    fn page(&self) -> Option<String> {
        http::get(format!("{}:8080", self.netns.node).parse().unwrap(), "/", Duration::from_secs(2))
    }

    fn app_answers(&self) -> bool {
        self.page().is_some()
    }

    fn all_events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.events()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[test]
#[ignore = "needs root and the referees"]
fn the_node_is_a_good_eve() {
    let mut trial = Trial::start("ref-node", 21, &[]);
    step("onboarding");
    trial.wait(&["call=register", "status=201"], 60);
    trial.wait(&["call=uuid", "status=200"], 60);
    trial.wait(&["call=config", "status=200"], 60);
    step("app");
    trial.wait(&["call=info", &format!("request.ainfo.AppID={APP}"), "request.ainfo.state=RUNNING"], 90);
    let page = wait_for("app answers", Duration::from_secs(10), || trial.page()).unwrap();
    assert!(page.contains("hello from the referee"), "encrypted user data did not arrive: {page}");
    step("config not modified, reports");
    trial.wait(&["call=config", "status=304"], 60);
    trial.wait(&["call=info", "request.dinfo"], 60);
    for kind in ["niinfo", "vinfo", "cinfo"] {
        trial.wait(&["call=info", &format!("request.{kind}")], 60);
    }
    trial.wait(&["call=metrics", "request.dm", "request.am"], 60);
    trial.wait(&["call=newlogs", "request.lines.content"], 90);
    trial.wait(&["call=applogs", &format!("request.app={APP}")], 90);
    trial.publish("first");
    trial.wait_marker("first", 30);
    step("no violation, nothing that does not verify");
    let bad: Vec<_> = trial
        .all_events()
        .into_iter()
        .filter(|e| e["violations"].is_array() || e["verify"].as_str().is_some_and(|v| v != "ok"))
        .collect();
    assert!(bad.is_empty(), "{}", serde_json::to_string_pretty(&bad).unwrap());
}

#[test]
#[ignore = "needs root and the referees"]
fn the_node_survives_what_a_bad_network_and_a_bad_controller_do() {
    let mut trial = Trial::start("ref-faults", 22, &[]);
    trial.wait(&["call=info", &format!("request.ainfo.AppID={APP}"), "request.ainfo.state=RUNNING"], 120);
    let groups: &[(&str, &[&str])] = &[
        (
            "outage",
            &[
                "config:503:2",
                "config:drop:2",
                "config:truncate:1",
                "info:503:2",
                "metrics:drop:2",
                "newlogs:503:2",
            ],
        ),
        (
            "forged",
            &[
                "config:wrong-key:1",
                "config:bad-signature:1",
                "config:der-signature:1",
                "config:no-signature:1",
            ],
        ),
        ("malformed", &["config:hash15:1", "config:algo0:1", "config:bare:1", "config:garbage:1"]),
        ("unknown-signer", &["config:stale-signature:1", "config:der-hash:1", "config:newline-hash:1"]),
        (
            "not-for-us",
            &[
                "config:replay-old:1",
                "config:old-timestamp:1",
                "config:foreign-uuid:1",
                "config:same-hash-empty:1",
            ],
        ),
        ("short-hash", &["config:hash16:2"]),
        (
            "attest-again",
            &[
                "config:403:1",
                "attest:nonce-mismatch:1",
                "attest:short-nonce:1",
                "attest:long-nonce:1",
                "attest:quote-failed:1",
            ],
        ),
        ("rotated", &["certs:rotate"]),
        ("rotated-ecdh", &["certs:rotate-ecdh"]),
    ];
    for (name, rules) in groups {
        step(format_args!("{name}: {}", rules.join(" ")));
        fs::write(trial.state.join("fail.rules"), rules.join("\n") + "\n").unwrap();
        trial.publish(name);
        trial.wait_marker(name, 180);
        assert!(trial.app_answers(), "{name} took the app down");
    }
    step("certificate sets that must be refused");
    for rule in ["expired", "client-eku", "unchained", "no-ecdh", "two-signing", "unknown-type"] {
        // a rotation makes the node fetch the certificates; the first sets it gets are bad
        fs::write(trial.state.join("fail.rules"), format!("certs:{rule}:1\ncerts:rotate\n")).unwrap();
        trial.publish(rule);
        trial.wait_marker(rule, 180);
    }
    assert!(trial.app_answers());
    let states: Vec<_> = trial
        .all_events()
        .into_iter()
        .filter(|e| e["request"]["ainfo"]["AppID"] == APP)
        .map(|e| e["request"]["ainfo"]["state"].as_str().unwrap_or_default().to_owned())
        .collect();
    let first = states.iter().position(|s| s == "RUNNING").unwrap();
    assert!(states[first..].iter().all(|s| s == "RUNNING"), "the app did not run all the time: {states:?}");
}

/// Our controller with a bundle for the referee's devices.
struct Judged {
    controller: Controller,
    place: Place,
    referees: Referees,
}

impl Judged {
    /// `port` is that of the first laboratory; the others are ten further each.
    fn start(name: &str, port: u16, serve: &[&str]) -> Judged {
        let place = Place::new(name, 0).unwrap();
        place.clear().unwrap();
        let referees = Referees::prepare(&place.cache).unwrap();
        let port = port + 10 * u16::from(tests::lab::lab_number());
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        let controller = Controller::start_at(&place, address, serve).unwrap();
        let bundle = place.dir.join("bundle");
        let out = bundle.to_string_lossy();
        let serials = ["--serial", "SN1", "--serial", "SN1-b", "--soft-serial", "SOFT1"];
        controller
            .cli(&[&["node", "bundle", "--join-token", "referee", "--out", &out], &serials[..]].concat())
            .unwrap();
        Judged { controller, place, referees }
    }

    /// Tells a program made of the referee where the controller is and who the device is.
    fn introduce(&self, command: &mut Command) {
        let file = |name: &str| self.place.dir.join("bundle").join(name).to_string_lossy().into_owned();
        command
            .args(["--controller", &format!("https://{}", self.controller.address), "--serial", "SN1"])
            .args(["--root-cert", &file("root-certificate.pem")])
            .args(["--onboard-cert", &file("onboard.cert.pem"), "--onboard-key", &file("onboard.key.pem")]);
    }
}

/// Runs the referee device against our controller and gives its verdict, one result per check.
fn judge_controller(name: &str, port: u16, attest: &str) -> Vec<Value> {
    // the referee waits 30 s for an answer; a held one must come earlier
    let judged = Judged::start(name, port, &["--hold", "1s"]);
    let place = &judged.place;
    let intent = place.dir.join("intent.yaml");
    fs::write(&intent, INTENT).unwrap();
    let data = judged.controller.data.display();
    let selvedge = format!("SELVEDGE_DATA='{data}' '{}'", place.program("selvedge").display());
    let mut command = judged.referees.command("device.py");
    judged.introduce(&mut command);
    command
        .args(["--attest", attest, "--soft-serial", "SOFT1"])
        .args(["--adopt-cmd", &format!("{selvedge} apply -f '{}'", intent.display())])
        .args(["--change-cmd", &format!("{selvedge} app restart judged")])
        .args(["--stored-cmd", &format!("{selvedge} get device/$EVE_UUID --history")])
        .arg("--out")
        .arg(place.dir.join("results.json"));
    let verdict = tests::command::output(&mut command).unwrap();
    print!("{}", String::from_utf8_lossy(&verdict.stdout));
    eprint!("{}", String::from_utf8_lossy(&verdict.stderr));
    assert!(verdict.status.success(), "the referee found faults");
    let results: Value = serde_json::from_slice(&fs::read(place.dir.join("results.json")).unwrap()).unwrap();
    results["results"].as_array().cloned().unwrap()
}

/// An app with a secret on every device.
const INTENT: &str = "
apiVersion: selvedge/v1alpha1
kind: Secret
metadata: { name: judged }
spec: { data: { password: open sesame } }
---
apiVersion: selvedge/v1alpha1
kind: Network
metadata: { name: judged }
spec: { subnet: 10.61.0.0/24 }
---
apiVersion: selvedge/v1alpha1
kind: App
metadata: { name: judged }
spec:
  image: judged/web:1
  selector: {}
  networks: [{ network: judged }]
  ports: ['8080:80']
  secretEnv: { PASSWORD: { name: judged, key: password } }
";

/// Number of checks the referee knows.
const CHECKS: usize = 75;

fn with_result<'a>(results: &'a [Value], result: &str) -> Vec<&'a str> {
    results.iter().filter(|r| r["result"] == result).filter_map(|r| r["name"].as_str()).collect()
}

#[test]
#[ignore = "needs root and the referees"]
fn the_controller_is_good_enough_for_eve_with_a_tpm() {
    let results = judge_controller("ref-soft", 18_443, "soft");
    assert_eq!(results.len(), CHECKS);
    assert_eq!(with_result(&results, "FAIL"), [""; 0]);
    assert_eq!(with_result(&results, "skip"), [""; 0]);
}

#[test]
#[ignore = "needs root and the referees"]
fn the_controller_is_good_enough_for_eve_without_a_tpm() {
    let results = judge_controller("ref-none", 18_444, "none");
    assert_eq!(results.len(), CHECKS);
    assert_eq!(with_result(&results, "FAIL"), [""; 0]);
    let skipped = with_result(&results, "skip");
    assert!(skipped.iter().all(|name| name.starts_with("attest-")), "{skipped:?}");
}

/// Changes a device that polls as stock EVE does is to see, and how soon all but two of them.
const CHANGES: usize = 200;
const PUSH_P99: Duration = Duration::from_secs(1);

/// What the device says after this word; a held answer may end without news in between, so that it asks once more.
fn said(lines: &mut impl Iterator<Item = std::io::Result<String>>, word: &str) -> String {
    loop {
        let line = lines.next().expect("the device goes on").unwrap();
        let (first, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match first {
            first if first == word => return rest.to_owned(),
            "asks" => continue,
            _ => panic!("{line}"),
        }
    }
}

#[test]
#[ignore = "needs root and the referees"]
fn a_device_that_polls_as_stock_eve_does_sees_200_changes_within_a_second() {
    let judged = Judged::start("ref-stock", 18_445, &[]);
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/stock_device.py");
    let mut command = judged.referees.command_with(&program);
    judged.introduce(&mut command);
    let mut device = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(device.stdout.take().unwrap()).lines();
    let mut took: Vec<Duration> = Vec::new();
    for change in 0..CHANGES {
        said(&mut lines, "asks");
        // the request has arrived and is held
        std::thread::sleep(Duration::from_millis(100));
        let start = SystemTime::now();
        let marker = format!(
            "\nspec:\n  image: judged/web:1\n  selector: {{}}\n  activate: false\n  env: {{ CHANGE: '{change}' }}\n"
        );
        let app = format!("apiVersion: selvedge/v1alpha1\nkind: App\nmetadata: {{ name: judged }}{marker}");
        judged.controller.apply("change.yaml", &app).unwrap();
        let at = UNIX_EPOCH + Duration::from_micros(said(&mut lines, "got").parse().unwrap());
        took.push(at.duration_since(start).unwrap_or_default());
    }
    drop(device.stdin.take());
    device.wait().unwrap();
    took.sort();
    let (p50, p99, worst) = (took[CHANGES / 2], took[CHANGES * 99 / 100 - 1], took[CHANGES - 1]);
    step(format_args!(
        "{CHANGES} changes, apply to verified config: p50 {p50:?}, p99 {p99:?}, worst {worst:?}"
    ));
    assert!(p99 <= PUSH_P99, "p99 {p99:?} of {took:?}");
}
