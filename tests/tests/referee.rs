// SPDX-License-Identifier: Apache-2.0
//! The independent referees judge both sides.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::http;
use tests::lab::{Controller, Node, Place};
use tests::netns::Netns;
use tests::progress::{step, wait_for};
use tests::referee::{self, Listens, Referees};

/// A hosted node under the referee's controller.
struct Trial {
    node: Node,
    netns: Netns,
    referee: referee::Trial,
}

impl Trial {
    fn start(name: &str, number: u8) -> Trial {
        let place = Place::new(name, number).unwrap();
        place.clear().unwrap();
        let netns = Netns::create(&place.name, number).unwrap();
        let listens = |port: u16| {
            let at = format!("{}:{port}", netns.host);
            Listens { at: at.parse().unwrap(), as_seen: at }
        };
        let referee = referee::Trial::start(&place, &listens(8443), &listens(5000)).unwrap();
        let node = Node::start(&place, &netns, &referee.state.join("config")).unwrap();
        Trial { node, netns, referee }
    }

    /// With the end of the node's log when it fails.
    fn see<T>(&self, result: anyhow::Result<T>) -> T {
        result.unwrap_or_else(|error| {
            let log = fs::read_to_string(self.node.dir().join("node.log"));
            panic!("{error:#}\nnode:\n{}", log.map(|text| tail(&text)).unwrap_or_default())
        })
    }

    fn page(&self) -> Option<String> {
        http::get(format!("{}:8080", self.netns.node).parse().unwrap(), "/", Duration::from_secs(2))
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[test]
#[ignore = "needs root and the referees"]
fn the_node_is_a_good_eve() {
    let mut trial = Trial::start("ref-node", 21);
    let judged = trial.referee.judge(90);
    let violations = trial.see(judged);
    let page = wait_for("app answers", Duration::from_secs(10), || trial.page()).unwrap();
    assert!(page.contains("hello from the referee"), "encrypted user data did not arrive: {page}");
    assert!(violations.is_empty(), "{}", serde_json::to_string_pretty(&violations).unwrap());
}

#[test]
#[ignore = "needs root and the referees"]
fn the_node_survives_what_a_bad_network_and_a_bad_controller_do() {
    let mut trial = Trial::start("ref-faults", 22);
    let is_app = format!("request.ainfo.AppID={}", referee::Trial::APP);
    trial.see(trial.referee.wait(&["call=info", &is_app, "request.ainfo.state=RUNNING"], 120));
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
        fs::write(trial.referee.state.join("fail.rules"), rules.join("\n") + "\n").unwrap();
        trial.referee.publish(name).unwrap();
        trial.see(trial.referee.wait_marker(name, 180));
        assert!(trial.page().is_some(), "{name} took the app down");
    }
    step("certificate sets that must be refused");
    for rule in ["expired", "client-eku", "unchained", "no-ecdh", "two-signing", "unknown-type"] {
        // a rotation makes the node fetch the certificates; the first sets it gets are bad
        fs::write(trial.referee.state.join("fail.rules"), format!("certs:{rule}:1\ncerts:rotate\n")).unwrap();
        trial.referee.publish(rule).unwrap();
        trial.see(trial.referee.wait_marker(rule, 180));
    }
    assert!(trial.page().is_some());
    let states: Vec<_> = trial
        .referee
        .all_events()
        .unwrap()
        .into_iter()
        .filter(|e| e["request"]["ainfo"]["AppID"] == referee::Trial::APP)
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
