// SPDX-License-Identifier: Apache-2.0
//! Volumes and the files they are made of: from a web server that is not ours into apps.

use std::time::Duration;

use tests::fileserver::FileServer;
use tests::lab::Lab;
use tests::probe::Probe;
use tests::progress::{step, wait_for};

use super::{
    SOON, STOPPED, answer, app, apply, document, network, object, on_device, pids, sh, toolbox_lab,
    wait_answer, wait_described, wait_silent, wait_state,
};

const PASSWORD: &str = "open-sesame-4c1f";
/// Until a volume that is written is measured, judged and its app stopped.
const MEASURED: Duration = Duration::from_secs(40);

fn indented(pem: &str) -> String {
    pem.lines().map(|line| format!("\n  {line}")).collect()
}

fn file_volume(name: &str, store: &str, path: &str, sha256: &str, more: &str) -> String {
    let spec = format!("file: {{datastore: {store}, path: {path}, sha256: '{sha256}'}}\n{more}");
    document("Volume", name, &spec)
}

#[test]
#[ignore = "needs root"]
fn files_of_web_servers_become_volumes_and_what_cannot_be_had_says_why() {
    let mut lab = toolbox_lab("datastores", 41);
    let host = lab.netns.host.clone();
    let address = |port: u16| format!("{host}:{port}").parse().unwrap();
    let login = format!("joe:{PASSWORD}");
    let broken = ["--login", &login, "--break-after", "400000"];
    let tls = FileServer::start_tls(&lab.place.dir.join("tls"), address(5443), &broken).unwrap();
    let plain = FileServer::start(&lab.place.dir.join("plain"), address(5080), &[]).unwrap();
    let content: Vec<u8> = (0..1_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let digest = tls.put("model.bin", &content).unwrap();
    let small = plain.put("settings", b"from the server\n").unwrap();
    // what is held by its digest already would not be asked for
    let (wrong, absent) = ("ab".repeat(32), "cd".repeat(32));

    let stores = document("Secret", "joe", &format!("data: {{username: joe, password: {PASSWORD}}}"))
        + &document("Secret", "ann", "data: {username: ann, password: wrong}")
        + &document(
            "Datastore",
            "tls",
            &format!("url: https://{host}:5443\ncredentials: joe\nca: |{}", indented(&tls.ca_pem)),
        )
        + &document(
            "Datastore",
            "stranger",
            &format!("url: https://{host}:5443\ncredentials: ann\nca: |{}", indented(&tls.ca_pem)),
        )
        + &document("Datastore", "untrusted", &format!("url: https://{host}:5443"))
        + &document("Datastore", "plain", &format!("url: http://{host}:5080"))
        + &document("Datastore", "down", &format!("url: http://{host}:5999"));
    let good = file_volume("model.bin", "tls", "/moved/model.bin", &digest, "readOnly: true")
        + &file_volume("settings", "plain", "settings", &small, "");
    let both = "volumes: [{volume: model.bin, mountPath: /models}, {volume: settings, mountPath: /etc/app}]";
    let one = "volumes: [{volume: model.bin, mountPath: /models}]";
    let mut text = network("apps", "10.60.0.0/24")
        + &stores
        + &good
        + &app("first", "box:1", "apps", 8080, both)
        + &app("second", "box:1", "apps", 8081, one);
    let bad = [
        ("nofile", "plain", "none", &absent, "FileNotFound"),
        ("refused", "stranger", "model.bin", &absent, "DatastoreAuthRefused"),
        ("strange", "untrusted", "model.bin", &absent, "DatastoreUntrusted"),
        ("silent", "down", "model.bin", &absent, "DatastoreUnreachable"),
        ("wrong", "plain", "settings", &wrong, "DigestMismatch"),
        ("round", "plain", "loop", &absent, "DatastoreUnreachable"),
    ];
    for (number, (name, store, path, sha256, _)) in (0..).zip(&bad) {
        text += &file_volume(name, store, path, sha256, "");
        let uses = format!("volumes: [{{volume: {name}, mountPath: /x}}]");
        text += &app(name, "box:1", "apps", 8100 + number, &uses);
    }
    apply(&lab, &text);
    wait_answer(&mut lab, 8080, "one", SOON * 2);
    wait_answer(&mut lab, 8081, "one", SOON);

    step("the file is whole, though every connection broke");
    for port in [8080, 8081] {
        let said = sh(&lab, port, "busybox sha256sum /models/model.bin");
        assert_eq!(said.split_whitespace().next(), Some(digest.as_str()), "{said}");
    }
    assert_eq!(sh(&lab, 8080, "cat /models/1 | busybox wc -c"), content.len().to_string());
    assert_eq!(
        sh(&lab, 8080, "busybox wc -c < /dev/eve/volumes/by-name/model.bin"),
        content.len().to_string()
    );
    let ranges: Vec<String> = tls.requests().into_iter().filter(|line| line.starts_with("206 ")).collect();
    assert!(ranges.len() >= 3, "not resumed: {ranges:?}");
    let said = sh(&lab, 8080, "echo x >> /models/model.bin; echo done");
    assert!(said.contains("Read-only file system"), "{said}");
    step("a copy is the app's own, and outlives a restart");
    sh(&lab, 8080, "echo mine >> /etc/app/settings");
    lab.controller.cli(&["app", "restart", "first"]).unwrap();
    lab.controller.cli(&["wait", "app/first", "--for", "Ready", "--timeout", "60s"]).unwrap();
    wait_answer(&mut lab, 8080, "one", SOON);
    assert_eq!(sh(&lab, 8080, "cat /etc/app/settings"), "from the server\nmine");

    step("what cannot be had");
    for (name, _, _, _, reason) in &bad {
        wait_described(&lab, name, &format!("{reason}: "), SOON);
    }
    let volume = object(&lab, "volume/model.bin");
    assert_eq!(volume["status"]["devices"][0]["state"], "CREATED_VOLUME", "{volume}");
    let config = lab.controller.cli(&["get", &device(&lab), "--config"]).unwrap();
    assert!(!config.contains(PASSWORD), "the password is in the config");

    step("what is not used any more goes, what is stays");
    let stored = lab.place.dir.join("persist/store/files").join(&digest);
    assert!(exists(&stored));
    apply(&lab, &app("first", "box:1", "apps", 8080, ""));
    wait_for("the copy is gone", SOON * 2, || (volumes_named(&lab) == 2 + 1 + bad.len()).then_some(()))
        .unwrap();
    assert!(exists(&stored), "another app uses it");
    lab.controller.cli(&["delete", "app/second"]).unwrap();
    wait_for("the file is gone", SOON * 3, || (!exists(&stored)).then_some(())).unwrap();
}

fn device(lab: &Lab) -> String {
    lab.controller.cli(&["get", "devices", "-o", "name"]).unwrap().trim().to_owned()
}

fn exists(path: &std::path::Path) -> bool {
    tests::command::output(tests::command::root("test").arg("-e").arg(path)).unwrap().status.success()
}

fn volumes_named(lab: &Lab) -> usize {
    let dir = lab.place.dir.join("persist/store/volumes");
    tests::command::run(tests::command::root("ls").arg(dir)).unwrap().lines().count()
}

const DATA: &str = "volumes: [{blank: SIZE, mountPath: /data}, {image: 'box:2', mountPath: /tools}]";

#[test]
#[ignore = "needs root"]
fn volumes_have_their_size_and_what_an_app_fills_harms_nobody() {
    let mut lab = toolbox_lab("volumes", 42);
    let with =
        |size: &str, more: &str| app("writer", "box:1", "apps", 8080, &(DATA.replace("SIZE", size) + more));
    let text = network("apps", "10.60.0.0/24")
        + &document("Volume", "named", "size: 1Mi")
        + &with("8Mi", "")
        + &app("neighbour", "box:1", "apps", 8081, "volumes: [{volume: named, mountPath: /deep/er/place}]");
    apply(&lab, &text);
    wait_answer(&mut lab, 8080, "one", SOON);
    wait_answer(&mut lab, 8081, "one", SOON);
    let probe = Probe::start(lab.app_address(8081).unwrap());
    assert_eq!(sh(&lab, 8080, "cat /tools/version"), "two");
    assert!(sh(&lab, 8080, "echo x > /tools/version").contains("Read-only file system"));
    sh(&lab, 8080, "echo kept > /data/mark");
    sh(&lab, 8081, "echo stays > /deep/er/place/mark");
    let second = lab.controller.apply(
        "second.yaml",
        &app("thief", "box:1", "apps", 8082, "volumes: [{volume: named, mountPath: /data}]"),
    );
    assert!(format!("{:#}", second.unwrap_err()).contains("make it readOnly"));

    step("full");
    sh(&lab, 8080, "busybox dd if=/dev/zero of=/data/fill bs=1M count=12 2>&1; busybox sync");
    wait_described(&lab, "writer", "VolumeFull", MEASURED);
    wait_silent(&lab, 8080, STOPPED);
    wait_state(&lab, "writer", "FAILED", STOPPED);
    step("more room");
    apply(&lab, &with("64Mi", ""));
    wait_answer(&mut lab, 8080, "one", MEASURED);
    assert_eq!(sh(&lab, 8080, "cat /data/mark; ls /data"), "kept\nfill\nmark");
    step("purge");
    lab.controller.cli(&["app", "purge", "writer"]).unwrap();
    lab.controller.cli(&["wait", "app/writer", "--for", "Ready", "--timeout", "60s"]).unwrap();
    wait_answer(&mut lab, 8080, "one", SOON);
    assert_eq!(sh(&lab, 8080, "ls /data"), "");
    probe.end().unwrap();
    lab.controller.cli(&["app", "purge", "neighbour"]).unwrap();
    lab.controller.cli(&["wait", "app/neighbour", "--for", "Ready", "--timeout", "60s"]).unwrap();
    wait_answer(&mut lab, 8081, "one", STOPPED);
    assert_eq!(
        sh(&lab, 8081, "cat /deep/er/place/mark"),
        "stays",
        "a volume by name outlives a purge of its app"
    );

    step("the app's own disk");
    let limited = app("small", "box:1", "apps", 8083, "").replace("memory: 64Mi", "memory: 64Mi, disk: 4Mi");
    apply(&lab, &limited);
    wait_answer(&mut lab, 8083, "one", SOON);
    sh(&lab, 8083, "busybox dd if=/dev/zero of=/root/fill bs=1M count=8 2>&1; busybox sync");
    wait_described(&lab, "small", "VolumeFull", MEASURED);
}

const DEAF: &str = "\
userData:
  text: |
    #cloud-config
    write_files:
      - path: /start
        content: |
          trap '' TERM
          httpd -p 80 -h /srv
          while :; do sleep 1; done
";

#[test]
#[ignore = "needs root"]
fn an_app_that_misbehaves_is_told_and_harms_nobody() {
    let mut lab = toolbox_lab("misbehave", 43);
    let sick =
        "probe: {http: {port: 80, path: /index.html}, everySeconds: 1, failures: 2, onFailure: report}";
    let never = "probe: {tcp: {port: 81}, everySeconds: 1, graceSeconds: 2}";
    let text = network("apps", "10.60.0.0/24")
        + &app("good", "box:1", "apps", 8080, "")
        + &app("deaf", "box:1", "apps", 8081, DEAF)
        + &app("bomb", "box:1", "apps", 8082, "")
        + &app("sick", "box:1", "apps", 8083, sick)
        + &app("never", "box:1", "apps", 8084, never)
        + &app("late", "box:1", "apps", 8085, "startDelaySeconds: 3600");
    apply(&lab, &text);
    for port in [8080, 8081, 8082, 8083] {
        wait_answer(&mut lab, port, "one", SOON);
    }
    let probe = Probe::start(lab.app_address(8080).unwrap());
    wait_state(&lab, "late", "START_DELAYED", SOON);

    step("health");
    lab.controller.cli(&["wait", "app/sick", "--for", "Ready", "--timeout", "20s"]).unwrap();
    sh(&lab, 8083, "rm /srv/index.html");
    let said = wait_described(&lab, "sick", "AppUnhealthy: app sick: http :80/index.html answers 404", SOON);
    assert!(said.contains("0 of 1 running"), "{said}");
    sh(&lab, 8083, "echo one > /srv/index.html");
    lab.controller.cli(&["wait", "app/sick", "--for", "Ready", "--timeout", "20s"]).unwrap();
    wait_described(&lab, "never", "its probe failed: tcp :81 refuses connections", SOON);
    wait_for("it is started again", SOON * 2, || {
        let log = lab.controller.cli(&["logs", "app/never"]).unwrap_or_default();
        (log.matches("toolbox one starts").count() >= 2).then_some(())
    })
    .unwrap();

    step("a delay that is taken back");
    apply(&lab, &app("late", "box:1", "apps", 8085, ""));
    wait_answer(&mut lab, 8085, "one", SOON);

    step("deaf to the stop signal");
    apply(&lab, &app("deaf", "box:1", "apps", 8081, &format!("activate: false\n{DEAF}")));
    wait_silent(&lab, 8081, STOPPED);
    wait_state(&lab, "deaf", "HALTED", STOPPED);

    step("fork bomb");
    let id = on_device(&lab, "bomb")["id"].as_str().unwrap().to_owned();
    let _ = tests::toolbox::sh(
        lab.app_address(8082).unwrap(),
        "(while :; do sleep 1000 & done) > /dev/null 2>&1 & busybox sleep 3",
    );
    let count = pids(&mut lab, &id).len();
    assert!(count < 1100, "{count} processes");
    assert_eq!(answer(&lab, 8080).as_deref(), Some("one"));
    apply(&lab, &app("bomb", "box:1", "apps", 8082, "activate: false"));
    wait_for("all of it is gone", STOPPED, || pids(&mut lab, &id).is_empty().then_some(())).unwrap();

    step("log flood");
    let _ =
        tests::toolbox::sh(lab.app_address(8083).unwrap(), "busybox timeout 3 busybox yes > /proc/1/fd/1");
    sh(&lab, 8080, "echo heard above the noise > /proc/1/fd/1");
    wait_for("the neighbour's line arrives", SOON * 2, || {
        lab.controller
            .cli(&["logs", "app/good"])
            .unwrap_or_default()
            .contains("heard above the noise")
            .then_some(())
    })
    .unwrap();
    wait_for("what was lost is counted", SOON * 2, || {
        lab.controller
            .cli(&["logs", "app/sick", "--tail", "5000"])
            .unwrap_or_default()
            .contains("lines lost here")
            .then_some(())
    })
    .unwrap();
    probe.end().unwrap();
}
