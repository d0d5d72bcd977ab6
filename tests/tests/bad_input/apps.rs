// SPDX-License-Identifier: Apache-2.0
//! Apps that ask for what cannot be, and apps that misbehave.

use std::time::{Duration, Instant};

use tests::command::output;
use tests::lab::Lab;
use tests::operator::{
    SOON, app, apply, document, network, object, on_device, pids, toolbox_lab, wait_answer, wait_described,
};
use tests::probe::Probe;
use tests::progress::{step, wait_for};

use super::{Row, wait_told};

/// Time in which an app that hears no signal is gone: it is given 10 s to end.
const KILLED: Duration = Duration::from_secs(20);
/// Most processes of an app with 64 MiB.
const PIDS_MAX: usize = 256;

/// An app whose first process runs a script before it serves.
fn scripted(name: &str, port: u16, script: &str) -> String {
    app(name, "box:1", "apps", port, &format!("env: {{SCRIPT: '{script}'}}"))
}

#[test]
#[ignore = "needs root"]
fn apps_that_cannot_be_or_misbehave_are_told_and_harm_nobody() {
    let mut lab = toolbox_lab("misbehave", 63);
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("good", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let probe = Probe::start(lab.app_address(8080).unwrap());

    let uplink = lab.netns.node.rsplit_once('.').unwrap().0.to_owned();
    let vast = app("vast", "box:1", "apps", 8101, "").replace("64Mi", "900Gi");
    let text = vast
        + &network("inside", &format!("{uplink}.128/25"))
        + &app("clash", "box:1", "inside", 8102, "")
        + &scripted("crashes", 8103, "exit 7")
        + &scripted("killed", 8104, "kill -KILL \\$\\$; sleep 1")
        + &app("hogs", "box:1", "apps", 8105, "env: {MODE: hog}")
        + &app("broken", "box:1", "apps", 8106, "userData: {text: no variable at all}")
        + &scripted("bomb", 8107, "b() { while :; do sleep 100 & done; }; (b & b & b) 2> /dev/null")
        + &scripted("fills", 8112, "dd if=/dev/zero of=/tmp/all bs=1M count=200 2> /dev/null &")
            .replace("64Mi", "64Mi, disk: 16Mi")
        + &scripted("floods", 8108, "(while :; do echo flood flood flood; done) &")
        + &scripted("deaf", 8109, "trap : TERM INT; (httpd -f -p 80 -h /srv &); while :; do sleep 1; done")
        + &app("caged", "box:1", "apps", 8110, "isolation: vm");
    apply(&lab, &text);
    let start = Instant::now();
    let rows: &[Row<'_>] = &[
        ("vast", &["MemoryExceeded: ", "vast"]),
        ("clash", &["AddressConflict: ", "inside"]),
        ("crashes", &["AppExited: the app ended with code 7"]),
        ("hogs", &["AppOutOfMemory: "]),
        ("broken", &["UserDataInvalid: ", "KEY=VALUE"]),
        ("caged", &["IsolationUnavailable: "]),
        ("floods", &["state: RUNNING"]),
        ("deaf", &["state: RUNNING"]),
        ("bomb", &["state: RUNNING", "AppProcessLimit: "]),
        ("fills", &["VolumeFull: "]),
    ];
    wait_told(&lab, start, rows);

    step("port of another app");
    let path = lab.place.dir.join("second.yaml");
    std::fs::write(&path, app("second", "box:1", "apps", 8080, "")).unwrap();
    let refused = output(&mut lab.controller.command(&["apply", "-f", &path.to_string_lossy()])).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for text in ["spec.ports[0]", "port 8080", "is used by app/good already"] {
        assert!(said.contains(text), "{text}: {said}");
    }

    step("processes without end");
    let id = on_device(&lab, "bomb")["id"].as_str().unwrap().to_owned();
    let count = wait_for("the bomb has grown", SOON, || {
        let count = pids(&mut lab, &id).len();
        (count > PIDS_MAX / 2).then_some(count)
    })
    .unwrap();
    assert!(count <= PIDS_MAX, "{count} processes");

    step("the flood is counted, and others are heard");
    wait_for("lost lines are counted", SOON, || {
        let log = lab.controller.cli(&["logs", "app/floods", "--tail", "20000"]).ok()?;
        (log.contains("flood") && log.contains("lost")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}:\n{}", tail(&lab, "app/floods")));
    apply(&lab, &scripted("heard", 8111, "echo somebody else speaks"));
    wait_answer(&mut lab, 8111, "one", SOON);
    wait_for("another app is heard", SOON, || {
        lab.controller.cli(&["logs", "app/heard"]).ok()?.contains("somebody else speaks").then_some(())
    })
    .unwrap();

    step("one that hears no signal");
    wait_answer(&mut lab, 8109, "one", SOON);
    let id = on_device(&lab, "deaf")["id"].as_str().unwrap().to_owned();
    lab.controller.cli(&["delete", "app/deaf", "app/bomb", "app/floods", "app/hogs", "app/fills"]).unwrap();
    wait_for("the deaf app is gone", KILLED, || pids(&mut lab, &id).is_empty().then_some(())).unwrap();

    step("what is put right comes up by itself");
    apply(&lab, &(app("vast", "box:1", "apps", 8101, "") + &app("broken", "box:1", "apps", 8106, "")));
    wait_answer(&mut lab, 8101, "one", SOON);
    wait_answer(&mut lab, 8106, "one", SOON);
    apply(&lab, &document("Network", "inside", "kind: local\nsubnet: 10.61.0.0/24"));
    wait_answer(&mut lab, 8102, "one", SOON);
    wait_described(&lab, "clash", "state: RUNNING", SOON);
    assert!(object(&lab, "devices")["items"][0]["status"].is_object());
    assert!(probe.end().unwrap() > 10);
}

fn tail(lab: &Lab, object: &str) -> String {
    let log = lab.controller.cli(&["logs", object, "--tail", "5000"]).unwrap_or_default();
    log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
}
