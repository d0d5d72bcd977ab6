// SPDX-License-Identifier: Apache-2.0
//! Activate, restart, purge, change, delete; and a neighbour that notices nothing.

use std::path::PathBuf;
use std::time::Duration;

use tests::command::{output, root, run};
use tests::lab::Lab;
use tests::probe::Probe;
use tests::progress::{step, wait_for};

use super::{
    SOON, STOPPED, answer, app, apply, network, object, on_device, pids, sh, state, toolbox_lab, wait_answer,
    wait_silent, wait_state,
};

const PORT: u16 = 8080;
const NEIGHBOUR: u16 = 8081;

/// Directories of volumes on the node, by name.
fn volumes(lab: &Lab) -> Vec<PathBuf> {
    let text = run(root("ls").arg(lab.place.dir.join("persist/store/volumes"))).unwrap();
    text.lines().map(PathBuf::from).collect()
}

fn in_netns(lab: &Lab, program: &str, args: &[&str]) -> String {
    let program = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| PathBuf::from(dir).join(program));
    let program = program.iter().find(|path| path.exists()).expect("the program is installed");
    run(lab.netns.command(program).args(args)).unwrap()
}

/// The number of the image's digest in the controller's registry.
fn digest(lab: &Lab, tag: &str) -> String {
    let token = std::fs::read_to_string(lab.controller.data.join("admin-token")).unwrap();
    let reference = format!("docker://{}/box:{tag}", lab.controller.address);
    let creds = format!("admin:{}", token.trim());
    let args = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", "--creds", &creds, &reference];
    run(std::process::Command::new("skopeo").args(args)).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs root"]
fn an_app_lives_as_ordered_and_its_neighbour_is_never_interrupted() {
    let mut lab = toolbox_lab("life", 31);
    let changing = |image: &str, more: &str| {
        network("near", "10.60.0.0/24")
            + &network("far", "10.61.0.0/24")
            + &app("neighbour", "box:1", "near", NEIGHBOUR, "")
            + &app("changing", image, "far", PORT, more)
    };
    apply(&lab, &changing("box:1", ""));
    wait_answer(&mut lab, PORT, "one", SOON);
    wait_answer(&mut lab, NEIGHBOUR, "one", SOON);
    let probe = Probe::start(lab.app_address(NEIGHBOUR).unwrap());
    let id = on_device(&lab, "changing")["id"].as_str().unwrap().to_owned();
    sh(&lab, PORT, "echo kept > /root/mark");

    step("deactivate");
    let before = volumes(&lab);
    assert_eq!(before.len(), 2);
    apply(&lab, &changing("box:1", "activate: false"));
    wait_silent(&lab, PORT, STOPPED);
    wait_state(&lab, "changing", "HALTED", STOPPED);
    assert_eq!(pids(&mut lab, &id), [0; 0]);
    assert_eq!(volumes(&lab), before);
    let table = lab.controller.cli(&["get", "apps"]).unwrap();
    let line = table.lines().find(|line| line.starts_with("changing")).unwrap();
    assert!(line.contains("no (Deactivated)"), "{table}");

    step("activate");
    apply(&lab, &changing("box:1", ""));
    wait_answer(&mut lab, PORT, "one", SOON);
    assert_eq!(sh(&lab, PORT, "cat /root/mark"), "kept");

    step("restart");
    let old = pids(&mut lab, &id);
    lab.controller.cli(&["app", "restart", "changing"]).unwrap();
    lab.controller.cli(&["wait", "app/changing", "--for", "Ready", "--timeout", "20s"]).unwrap();
    let new = pids(&mut lab, &id);
    assert!(!new.is_empty() && new.iter().all(|pid| !old.contains(pid)), "{old:?} are {new:?}");
    assert_eq!(sh(&lab, PORT, "cat /root/mark"), "kept");
    assert_eq!(volumes(&lab), before);

    step("purge");
    lab.controller.cli(&["app", "purge", "changing"]).unwrap();
    lab.controller.cli(&["wait", "app/changing", "--for", "Ready", "--timeout", "20s"]).unwrap();
    wait_answer(&mut lab, PORT, "one", SOON);
    assert_eq!(sh(&lab, PORT, "ls /root"), "");
    wait_for("the old volume is gone", SOON, || (volumes(&lab).len() == 2).then_some(())).unwrap();
    assert_ne!(volumes(&lab), before);

    step("another tag");
    apply(&lab, &changing("box:2", ""));
    lab.controller.cli(&["wait", "app/changing", "--for", "Ready", "--timeout", "20s"]).unwrap();
    wait_answer(&mut lab, PORT, "two", Duration::from_secs(1));

    step("a digest");
    let first = digest(&lab, "1");
    apply(&lab, &changing(&format!("box@{first}"), ""));
    wait_answer(&mut lab, PORT, "one", STOPPED);
    wait_state(&lab, "changing", "RUNNING", SOON);
    assert!(in_netns(&lab, "nft", &["list", "ruleset"]).contains("dport 8080"));
    assert_eq!(bridges(&lab), 2);

    step("delete");
    lab.controller.cli(&["delete", "app/changing", "network/far"]).unwrap();
    wait_silent(&lab, PORT, STOPPED);
    wait_for("the app's processes are gone", STOPPED, || pids(&mut lab, &id).is_empty().then_some(()))
        .unwrap();
    let shown = output(&mut lab.controller.command(&["get", "app/changing"])).unwrap();
    assert!(!shown.status.success(), "{shown:?}");
    wait_for("the volume is gone", SOON, || (volumes(&lab).len() == 1).then_some(())).unwrap();
    wait_for("the port map is gone", SOON, || {
        (!in_netns(&lab, "nft", &["list", "ruleset"]).contains("dport 8080")).then_some(())
    })
    .unwrap();
    wait_for("the bridge is gone", SOON, || (bridges(&lab) == 1).then_some(())).unwrap();
    wait_for("the control groups are gone", SOON, || {
        let groups = run(root("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("app-{id}")]));
        groups.unwrap_or_default().is_empty().then_some(())
    })
    .unwrap();
    wait_for("the device no longer reports the app", SOON, || {
        let device = object(&lab, "devices")["items"][0]["status"].to_string();
        (!device.contains(&id)).then_some(())
    })
    .unwrap();

    // a quick machine is done before the probe has asked often enough to mean anything
    std::thread::sleep(Duration::from_secs(3));
    let asked = probe.end().unwrap();
    assert!(asked > 30, "only {asked} probes");
    assert_eq!(
        (state(&lab, "neighbour").as_str(), answer(&lab, NEIGHBOUR).as_deref()),
        ("RUNNING", Some("one"))
    );
}

fn bridges(lab: &Lab) -> usize {
    in_netns(lab, "ip", &["-o", "link", "show", "type", "bridge"]).lines().count()
}
