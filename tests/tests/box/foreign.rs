// SPDX-License-Identifier: Apache-2.0
//! A version ordered by a controller that is not ours: the independent referee, which knows EVE's rules and no word of ours.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::command::{Background, run};
use tests::fileserver::FileServer;
use tests::machine::{BOOT, Image, Machine, free_port};
use tests::progress::{step, wait_for};
use tests::referee::Referees;

const STORE: &str = "30000000-0000-4000-8000-000000000009";
const TREE: &str = "40000000-0000-4000-8000-000000000009";

/// What the referee's sample says of ports and timers, and nothing to run.
fn config(sample: &Value) -> Value {
    let mut config = sample.clone();
    for list in ["apps", "volumes", "contentInfo", "datastores", "networkInstances"] {
        config[list] = json!([]);
    }
    let items = config["configItems"].as_array_mut().unwrap();
    items.push(json!({"key": "timer.test.baseimage.update", "value": "30"}));
    config
}

#[test]
#[ignore = "boots machines, needs the referees"]
fn a_foreign_controller_orders_a_version_and_is_told_in_the_words_of_eve() {
    let place = super::place("box-foreign");
    let referees = Referees::prepare(&place.cache).unwrap();
    let build = |version: &str| {
        Image::build(&place, &place.dir.join(version), &["--image-version", version]).unwrap()
    };
    step("building two versions");
    let (old, new) = (build("1.0"), build("2.0"));
    let port = free_port().unwrap();
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let server = FileServer::start(&place.dir.join("files"), address, &[]).unwrap();
    let sha = server.put("node.update", &fs::read(new.file("update")).unwrap()).unwrap();

    let state = place.dir.join("referee");
    fs::create_dir_all(&state).unwrap();
    let mut ordered = config(&referees.sample("sample-container.json").unwrap());
    let publish = |config: &Value| {
        fs::write(state.join("config.new"), config.to_string()).unwrap();
        fs::rename(state.join("config.new"), state.join("config.json")).unwrap();
    };
    publish(&ordered);
    let listen = free_port().unwrap();
    let mut command = referees.command("controller.py");
    command.args(["--listen", &format!("127.0.0.1:{listen}"), "--advertise", &format!("10.0.2.2:{listen}")]);
    command.arg("--state").arg(&state).arg("--config").arg(state.join("config.json"));
    let mut referee = Background::start("the referee", &place.dir.join("referee.log"), &mut command).unwrap();
    wait_for("the referee is ready", Duration::from_secs(30), || {
        referee.check().unwrap();
        (state.join("config/server").exists() && state.join("events.jsonl").exists()).then_some(())
    })
    .unwrap();
    let mut command = Command::new(place.program("selvedge"));
    command.args(["image", "bundle"]).arg(old.file("raw")).arg("--config").arg(state.join("config"));
    run(&mut command).unwrap();
    let wait = |conditions: &[&str]| {
        let all: Vec<&str> = ["call=info"].iter().chain(conditions).copied().collect();
        referees.wait(&state.join("events.jsonl"), &all, 240).unwrap()
    };
    let slot = |what: &str| format!("request.dinfo.swList.{what}");

    step("the old version boots");
    let mut machine = Machine::start(&place, &old.file("raw"), &[]).unwrap();
    wait(&[&slot("shortVersion=1.0"), &slot("partitionLabel=IMGA"), &slot("partitionState=active")]);
    step("the new version is ordered");
    ordered["datastores"] =
        json!([{"id": STORE, "dType": "DsHttp", "fqdn": format!("http://10.0.2.2:{port}"), "dpath": ""}]);
    ordered["contentInfo"] = json!([{
        "uuid": TREE, "displayName": "node 2.0", "URL": "node.update", "iformat": "RAW", "sha256": sha,
        "dsIdsList": [STORE], "maxSizeBytes": "0",
    }]);
    ordered["baseos"] = json!({"contentTreeUuid": TREE, "baseOsVersion": "2.0", "activate": true,
        "retryUpdate": {"counter": 1, "desiredState": true}});
    publish(&ordered);
    wait(&[&slot("partitionState=updating"), &slot("subStatus=UPDATE_REBOOTING")]);
    wait(&["request.dinfo.state=ZDEVICE_STATE_BASEOS_UPDATING"]);
    machine.wait_line("version 2.0 on", BOOT).unwrap();
    wait(&[&slot("partitionState=inprogress"), &slot("subStatus=UPDATE_TESTING"), &slot("shortVersion=2.0")]);
    machine.wait_line("this version is good: selvedge_2.0.efi", BOOT).unwrap();
    wait(&[&slot("userStatus=UPDATED"), "request.dinfo.baseos_update_counter=1"]);
    let events = fs::read_to_string(state.join("events.jsonl")).unwrap();
    let is_bad = |line: &&str| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["violations"].is_array() || event["verify"].as_str().is_some_and(|verified| verified != "ok")
    };
    let bad: Vec<&str> = events.lines().filter(is_bad).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    drop(machine);
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}
