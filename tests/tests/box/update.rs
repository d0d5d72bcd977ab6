// SPDX-License-Identifier: Apache-2.0
//! Versions ordered by the controller: refused, cut off, run, rolled back.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::command::run;
use tests::fileserver::FileServer;
use tests::lab::{Controller, Place};
use tests::machine::{BOOT, Image, Machine, controller, free_port};
use tests::progress::{step, wait_for};

/// The shortest test window a node takes.
const WINDOW_S: u64 = 30;
/// Part of a whole download that a version may move which changes one program.
const PART_MAX: f64 = 0.2;
/// How fast the server sends, so that there is a middle of a download.
const RATE: &str = "250000";

/// What the server of the host is called inside the box.
fn datastore(port: u16) -> String {
    format!(
        "apiVersion: selvedge/v1alpha1\nkind: Datastore\nmetadata: {{name: files}}\nspec: {{url: 'http://10.0.2.2:{port}'}}\n"
    )
}

fn order(version: &str, file: &str, sha256: &str, retry: u32) -> String {
    format!(
        "apiVersion: selvedge/v1alpha1\nkind: BaseOS\nmetadata: {{name: node}}\nspec:\n  version: '{version}'\n  \
         file: {{datastore: files, path: {file}, sha256: '{sha256}'}}\n  selector: {{}}\n  retryCounter: {retry}\n"
    )
}

fn order_of_registry(version: &str, reference: &str) -> String {
    format!(
        "apiVersion: selvedge/v1alpha1\nkind: BaseOS\nmetadata: {{name: node}}\nspec:\n  version: '{version}'\n  \
         image: {{reference: '{reference}'}}\n  selector: {{}}\n"
    )
}

/// How the one device stands with the version ordered.
fn device(controller: &Controller) -> Option<Value> {
    let text = controller.cli(&["get", "baseos", "node", "-o", "json"]).ok()?;
    let object: Value = serde_json::from_str(&text).ok()?;
    object["status"]["devices"].get(0).cloned()
}

fn wait_state(controller: &Controller, machine: &mut Machine, state: &str, timeout: Duration) -> Value {
    let found = wait_for(&format!("the version is {state}"), timeout, || {
        device(controller).filter(|device| device["state"] == state)
    });
    found.unwrap_or_else(|error| panic!("{error:#}; {:?}\n{}", device(controller), machine.console()))
}

/// Bytes of bodies that the server has sent, or was about to.
fn sent(server: &FileServer, file: &str) -> u64 {
    let lines = server.requests();
    let of_file = lines.iter().filter(|line| line.contains(&format!("/{file} ")));
    of_file.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// The states of slots in everything the device has sent, in order, without repetition.
fn states_on_the_wire(controller: &Controller) -> Vec<String> {
    let devices: Value =
        serde_json::from_str(&controller.cli(&["get", "devices", "-o", "json"]).unwrap()).unwrap();
    let devices = devices["items"].as_array().cloned().unwrap_or_else(|| vec![devices]);
    let name = devices[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let history: Value =
        serde_json::from_str(&controller.cli(&["get", &format!("device/{name}"), "--history"]).unwrap())
            .unwrap();
    let items = history["items"].as_array().cloned().unwrap_or_default();
    let mut states = Vec::new();
    for slot in
        items.iter().flat_map(|item| item["message"]["dinfo"]["swList"].as_array().into_iter().flatten())
    {
        let state = slot["partitionState"].as_str().unwrap_or_default().to_owned();
        if !states.contains(&state) {
            states.push(state);
        }
    }
    states
}

fn key(place: &Place, name: &str) -> String {
    let path = place.dir.join(name);
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(made.status.success());
    path.to_string_lossy().into_owned()
}

#[test]
#[ignore = "boots machines"]
fn an_ordered_version_moves_few_bytes_survives_a_power_cut_runs_and_a_bad_one_is_rolled_back() {
    let place = super::place("box-update");
    let (own, foreign) = (key(&place, "test-release.key"), key(&place, "test-foreign.key"));
    // one program has other bytes than before, as many as it is long, and none that a compressor makes smaller
    let net = fs::read(place.program("selvedge-net")).unwrap();
    let mut random = vec![0; net.len() / 2];
    let noise = fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut &noise, &mut random).unwrap();
    let (changed, broken) = (place.dir.join("changed"), place.dir.join("broken"));
    Image::programs(&place, &changed, &[("selvedge-net", [net, random].concat())]).unwrap();
    // a service that ends as soon as it was started
    let ends = fs::read(env!("CARGO_BIN_EXE_selvedge-ends")).unwrap();
    Image::programs(&place, &broken, &[("selvedge-run", ends)]).unwrap();
    let build = |version: &str, key: &str, programs: Option<&std::path::Path>| {
        let mut arguments = vec!["--image-version", version, "--release-key", key, "--insecure-test-keys"];
        let programs = programs.map(|path| path.to_string_lossy().into_owned());
        arguments.extend(programs.iter().flat_map(|path| ["--programs", path]));
        Image::build(&place, &place.dir.join(format!("image-{version}")), &arguments).unwrap()
    };
    step("building four versions");
    let old = build("1.0", &own, None);
    let new = build("2.0", &own, Some(&changed));
    let bad = build("3.0", &own, Some(&broken));
    let stranger = build("2.5", &foreign, None);
    let port = free_port().unwrap();
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let server = FileServer::start(&place.dir.join("files"), address, &["--rate", RATE]).unwrap();
    let put = |image: &Image, name: &str| server.put(name, &fs::read(image.file("update")).unwrap()).unwrap();
    let new_sha = put(&new, "new");
    let stranger_sha = put(&stranger, "stranger");

    let controller = controller(&place).unwrap();
    old.with_bundle(&place, &controller).unwrap();
    controller.apply("files.yaml", &datastore(port)).unwrap();
    step("the old version boots");
    let mut machine = Machine::start(&place, &old.file("raw"), &["--cpus", "2"]).unwrap();
    machine.wait_line("this is device", BOOT).unwrap();
    let label = format!("timer.test.baseimage.update={WINDOW_S}");
    let devices: Value =
        serde_json::from_str(&controller.cli(&["get", "devices", "-o", "json"]).unwrap()).unwrap();
    let devices = devices["items"].as_array().cloned().unwrap_or_else(|| vec![devices]);
    let name = devices[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let (key, value) = label.split_once('=').unwrap();
    let text = format!(
        "apiVersion: selvedge/v1alpha1\nkind: Device\nmetadata: {{name: '{name}'}}\nspec: {{properties: {{'{key}': '{value}'}}}}\n"
    );
    controller.apply("device.yaml", &text).unwrap();
    machine.wait_line("this version is good", BOOT).unwrap();

    step("a version of a foreign key is refused");
    controller.apply("order.yaml", &order("2.5", "stranger", &stranger_sha, 0)).unwrap();
    let device = wait_state(&controller, &mut machine, "Failed", BOOT);
    assert_eq!(device["reason"], "UpdateUntrusted", "{device}");
    assert!(sent(&server, "stranger") < 100_000, "more than its manifest was fetched");

    step("the new version is ordered, and the power goes while it comes");
    let whole = (new.description().unwrap()["rootBytes"].as_f64().unwrap()
        + new.description().unwrap()["ukiBytes"].as_f64().unwrap()) as u64;
    controller.apply("order.yaml", &order("2.0", "new", &new_sha, 0)).unwrap();
    wait_for("blocks come", BOOT, || (sent(&server, "new") > 600_000).then_some(())).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    machine.cut_power().unwrap();
    assert!(!machine.console().contains("is in its slot"), "the cut came too late to be one");
    let before = sent(&server, "new");
    let mut machine = Machine::start(&place, &old.file("raw"), &["--cpus", "2"]).unwrap();
    let line = machine.wait_line("selvedge: version", BOOT).unwrap();
    assert!(line.contains("version 1.0 on"), "{line}");
    machine.wait_line("version 2.0 is in its slot", BOOT).unwrap();
    let fetched = sent(&server, "new");
    step(format_args!("{before} bytes before the cut, {fetched} together, of {whole}"));

    // more than a second's worth of what had come is on the disk
    let again = fetched - before;
    assert!(again + 500_000 < before, "{again} bytes were fetched after {before}");

    step("the new version runs and is tested");
    let line = machine.wait_line("selvedge: version 2.0", BOOT).unwrap();
    assert!(line.contains("version 2.0 on"), "{line}");
    wait_state(&controller, &mut machine, "Testing", BOOT);
    machine.wait_line("this version is good: selvedge_2.0.efi", BOOT).unwrap();
    let device = wait_state(&controller, &mut machine, "Running", BOOT);
    assert_eq!(
        (device["runs"].as_str(), device["partition"].as_str()),
        (Some("2.0"), Some("IMGB")),
        "{device}"
    );
    let states = states_on_the_wire(&controller);
    for state in ["active", "unused", "updating", "inprogress"] {
        assert!(states.iter().any(|seen| seen == state), "{state} is not among {states:?}");
    }
    // all that was moved, the part that was on its way at the cut twice
    assert!((fetched as f64) < PART_MAX * whole as f64, "{fetched} of {whole} bytes were fetched");

    step("a version whose service ends again and again is ordered, from the registry");
    let layout = place.dir.join("layout");
    let mut command = Command::new(place.program("selvedge"));
    run(command.args(["image", "pack"]).arg(bad.file("update")).arg("--out").arg(&layout)).unwrap();
    controller.push(&layout, "3.0", "node/amd64:3.0").unwrap();
    controller.apply("order.yaml", &order_of_registry("3.0", "node/amd64:3.0")).unwrap();
    machine.wait_line("selvedge: version 3.0", BOOT).unwrap();
    machine.wait_line("version 3.0 is given up", BOOT).unwrap();
    step("the version before is back");
    let device = wait_state(&controller, &mut machine, "RolledBack", BOOT);
    assert_eq!((device["reason"].as_str(), device["runs"].as_str()), (Some("UpdateRolledBack"), Some("2.0")));
    let message = device["message"].as_str().unwrap_or_default();
    assert!(message.contains("not all services are ready"), "{device}");
    drop(machine);
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}
