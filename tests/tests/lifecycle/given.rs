// SPDX-License-Identifier: Apache-2.0
//! What an app is given: environment, user data, secrets, user, directory, limits. And what is told of one that fails.

use std::fs;

use tests::command::{output, root, run};
use tests::lab::Lab;
use tests::progress::{step, wait_for};
use tests::toolbox::sh as try_sh;

use super::limits::{group_dir, has_v2};
use super::{
    SOON, app, apply, document, network, on_device, pids, sh, toolbox_lab, wait_answer, wait_described,
    wait_state,
};

/// Never to be found on a disk or in a log but inside the app.
const SECRET: &str = "swordfish-7ad1";
const SECRET_FILE: &str = "mackerel-93bc";
const SECRET_PASSWORD: &str = "trout-55e0";

const CLOUD_CONFIG: &str = "\
userData:
  text: |
    #cloud-config
    write_files:
      - path: /etc/made/here.conf
        permissions: '0640'
        content: |
          first line
          second line
      - path: /etc/encoded
        encoding: b64
        content: aGVsbG8=
";

#[test]
#[ignore = "needs root"]
fn an_app_gets_what_was_ordered_for_it_and_its_secrets_stay_secret() {
    let mut lab = toolbox_lab("given", 33);
    let text = network("apps", "10.60.0.0/24")
        + &document(
            "Secret",
            "hidden",
            &format!(
                "data: {{word: {SECRET}, file: \"#cloud-config\\nwrite_files: [{{path: /etc/hidden, content: {SECRET_FILE}}}]\"}}"
            ),
        )
        + &document(
            "Secret",
            "account",
            &format!("data: {{username: someone, password: {SECRET_PASSWORD}}}"),
        )
        + &document("Registry", "account", "url: 127.0.0.1:1\ninsecure: true\ncredentials: account")
        + &app(
            "env",
            "box:worker",
            "apps",
            8080,
            "env: {PLAIN: 'two words', BOTH: order, QUOTED: '\"kept\"'}\n\
             secretEnv: {WORD: {name: hidden, key: word}}\nuserData: {text: \"TEXT=from text\\n\"}",
        )
        + &app("cloud", "box:1", "apps", 8081, CLOUD_CONFIG)
        + &app("sealed", "box:1", "apps", 8082, "userData: {secretRef: {name: hidden, key: file}}")
        + &app("account", "box:1", "apps", 8083, "registry: account");
    apply(&lab, &text);
    wait_answer(&mut lab, 8080, "worker", SOON);
    wait_answer(&mut lab, 8081, "one", SOON);
    wait_answer(&mut lab, 8082, "one", SOON);

    step("environment, user and directory");
    let env = sh(&lab, 8080, "tr '\\0' '\\n' < /proc/1/environ");
    let wanted =
        ["PLAIN=two words", "BOTH=order", "QUOTED=\"kept\"", &format!("WORD={SECRET}"), "TEXT=from text"];
    for line in wanted.iter().chain(&["FROM_IMAGE=yes", "PATH=/bin"]) {
        assert_eq!(env.lines().filter(|seen| seen == line).count(), 1, "{line}:\n{env}");
    }
    assert!(!env.contains("BOTH=image"), "{env}");
    assert_eq!(sh(&lab, 8080, "id -u; id -g"), "1234\n2345");
    assert_eq!(sh(&lab, 8081, "id -u; id -g"), "0\n0");
    assert_eq!(sh(&lab, 8080, "ls -l /proc/1/cwd | grep -c '/work/place$'"), "1");

    step("user data");
    assert_eq!(sh(&lab, 8081, "cat /etc/made/here.conf /etc/encoded"), "first line\nsecond line\nhello");
    assert_eq!(sh(&lab, 8081, "stat -c '%a %u' /etc/made/here.conf /etc/encoded"), "640 0\n644 0");
    assert_eq!(sh(&lab, 8082, "cat /etc/hidden"), SECRET_FILE);

    step("secrets");
    wait_described(&lab, "account", "RegistryUnreachable", SOON);
    let secret = super::object(&lab, "secret/hidden").to_string();
    assert!(secret.contains("word") && !secret.contains(SECRET), "{secret}");
    let config = lab.controller.cli(&["get", &device(&lab), "--config"]).unwrap();
    assert!(!config.contains(SECRET), "{config}");
    nowhere_in_clear(&mut lab);
}

fn device(lab: &Lab) -> String {
    lab.controller.cli(&["get", "devices", "-o", "name"]).unwrap().trim().to_owned()
}

/// Looks through all files of the node, and the memory of those that must never hear a secret: there the topics are.
fn nowhere_in_clear(lab: &mut Lab) {
    for secret in [SECRET, SECRET_FILE, SECRET_PASSWORD] {
        let mut files = root("grep");
        files.args(["-rlaF", "--devices=skip", secret]).args([
            "persist",
            "run",
            "node.log",
            "controller.log",
        ]);
        let found = output(files.current_dir(&lab.place.dir)).unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        // an app that is to have a file has it, in its own volume
        let (own, strange): (Vec<&str>, Vec<&str>) = found
            .lines()
            .partition(|path| path.starts_with("persist/store/volumes/") && path.ends_with("/etc/hidden"));
        assert_eq!((own.len(), strange), (usize::from(secret == SECRET_FILE), Vec::new()), "{secret}");
    }
    let app = on_device(lab, "env")["id"].as_str().unwrap().to_owned();
    assert!(
        pids(lab, &app).into_iter().any(|pid| memory_holds(pid, SECRET)),
        "the search finds nothing anywhere"
    );
    for service in ["init", "bus", "planner", "log", "net", "store", "fetch"] {
        for pid in lab.node.pids(service).unwrap() {
            for secret in [SECRET, SECRET_FILE] {
                assert!(!memory_holds(pid, secret), "{secret} is in the memory of {service}");
            }
        }
    }
}

/// Whether a writable private part of a process's memory holds a text.
fn memory_holds(pid: u32, text: &str) -> bool {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let Ok(memory) = fs::File::open(format!("/proc/{pid}/mem")) else {
        panic!("the memory of {pid} is closed to root")
    };
    let mut is_found = false;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap().min(64 << 20)];
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            is_found |= bytes.windows(text.len()).any(|window| window == text.as_bytes());
        }
    }
    is_found
}

/// Value of a file of the app's control group, whichever version this machine has.
fn limit(pid: u32, controller: &str, v1: &str, v2: &str) -> String {
    limit_while_it_runs(pid, controller, v1, v2).unwrap()
}

fn limit_while_it_runs(pid: u32, controller: &str, v1: &str, v2: &str) -> anyhow::Result<String> {
    fs::metadata(format!("/proc/{pid}"))?;
    let file = if has_v2() { v2 } else { v1 };
    Ok(run(root("cat").arg(group_dir(pid, controller).join(file)))?.trim().to_owned())
}

#[test]
#[ignore = "needs root"]
fn limits_are_set_and_what_ends_or_takes_too_much_is_told() {
    let mut lab = toolbox_lab("limits", 34);
    let with = |name: &str, port, more: &str| {
        app(name, "box:1", "apps", port, more).replace("cpus: 1, memory: 64Mi", "cpus: 2, memory: 48Mi")
    };
    let text = network("apps", "10.60.0.0/24")
        + &with("steady", 8080, "")
        + &app("exits", "box:1", "apps", 8081, "env: {MODE: exit}")
        + &with("hogs", 8082, "env: {MODE: hog}")
        + &app("broken", "box:1", "apps", 8083, "userData: {text: 'no variable at all'}")
        + &app("later", "box:1", "apps", 8084, "");
    apply(&lab, &text);
    wait_answer(&mut lab, 8080, "one", SOON);
    let id = on_device(&lab, "steady")["id"].as_str().unwrap().to_owned();
    let pid = pids(&mut lab, &id)[0];
    assert_eq!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max"), (48 << 20).to_string());
    let quota = limit(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("200000"), "{quota}");

    step("crash loop");
    let said = wait_described(&lab, "exits", "AppExited: the app ended with code 7", SOON);
    assert!(said.contains("state: FAILED") || said.contains("state: BOOTING"), "{said}");
    wait_for("the pauses between two starts grow", SOON, || {
        let log = lab.controller.cli(&["logs", "app/exits"]).unwrap_or_default();
        (log.matches("toolbox one starts").count() >= 3).then_some(())
    })
    .unwrap();
    step("out of memory");
    wait_described(&lab, "hogs", "AppOutOfMemory", SOON);
    assert_eq!(super::answer(&lab, 8080).as_deref(), Some("one"), "the limit of one app struck another");
    step("unreadable user data");
    wait_described(&lab, "broken", "UserDataInvalid", SOON);
    wait_state(&lab, "broken", "FAILED", SOON);
    apply(&lab, &app("broken", "box:1", "apps", 8083, "userData: {text: 'VARIABLE=yes'}"));
    wait_answer(&mut lab, 8083, "one", SOON);

    step("other limits are set by a restart");
    assert!(try_sh(lab.app_address(8084).unwrap(), "true").is_some());
    let later = on_device(&lab, "later")["id"].as_str().unwrap().to_owned();
    apply(&lab, &app("later", "box:1", "apps", 8084, "").replace("64Mi", "96Mi"));
    wait_for("the limit is the new one", SOON, || {
        let pid = pids(&mut lab, &later).first().copied()?;
        let names = ("memory.limit_in_bytes", "memory.max");
        let set = limit_while_it_runs(pid, "memory", names.0, names.1).ok()?;
        (set == (96 << 20).to_string()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", on_device(&lab, "later")));
    wait_answer(&mut lab, 8084, "one", SOON);
}
