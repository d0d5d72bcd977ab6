// SPDX-License-Identifier: Apache-2.0
//! Images that cannot be had and isolation that cannot be given: told soon, and no harm to others.

use std::path::Path;
use std::time::Duration;

use tests::lab::Lab;
use tests::probe::Probe;
use tests::progress::{step, wait_for};
use tests::registry::Registry;

use super::{
    SOON, app, apply, document, network, on_device, pids, push, toolbox_lab, wait_answer, wait_described,
    wait_state,
};

const GOOD: u16 = 8080;
/// Longest wait until a node tries again by itself what failed a few times.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
const PASSWORD: &str = "letmein";

fn registries(lab: &Lab) -> String {
    let pem = |name: &str| -> String {
        let text = std::fs::read_to_string(lab.place.dir.join("config").join(name)).unwrap();
        text.lines().map(|line| format!("\n  {line}")).collect()
    };
    let (root, unrelated) = (pem("root-certificate.pem"), pem("onboard.cert.pem"));
    let host = &lab.netns.host;
    document("Secret", "wrong", "data: {username: admin, password: wrong}")
        + &document("Secret", "other", &format!("data: {{username: someone, password: not-{PASSWORD}}}"))
        + &document(
            "Registry",
            "refusing",
            &format!("url: {}\ncredentials: wrong\nca: |{root}", lab.controller.address),
        )
        + &document("Registry", "down", &format!("url: {host}:5999\ninsecure: true"))
        + &document("Registry", "debian", &format!("url: {host}:5000\ninsecure: true\ncredentials: other"))
        + &document(
            "Registry",
            "untrusted",
            &format!("url: {}\ncredentials: wrong\nca: |{unrelated}", lab.controller.address),
        )
}

#[test]
#[ignore = "needs root"]
fn what_cannot_run_says_why_within_ten_seconds_and_harms_nobody() {
    let mut lab = toolbox_lab("images", 32);
    let host = format!("{}:5000", lab.netns.host).parse().unwrap();
    let foreign =
        Registry::start_with_user(&lab.place.dir.join("registry"), host, "someone", PASSWORD).unwrap();
    foreign.push(&tests::toolbox::layout(&lab.place.cache).unwrap(), "2", "deep/path/box:2").unwrap();
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("good", "box:1", "apps", GOOD, "")));
    wait_answer(&mut lab, GOOD, "one", SOON);
    let probe = Probe::start(lab.app_address(GOOD).unwrap());

    let absent = "sha256:00000000000000000000000000000000000000000000000000000000000000ff";
    let apps = [
        ("missing", "box:none".to_owned(), "", "ImageNotFound"),
        ("gone", format!("box@{absent}"), "", "ImageNotFound"),
        ("refused", "box:1".to_owned(), "registry: refusing", "RegistryAuthRefused"),
        ("other", "deep/path/box:2".to_owned(), "registry: debian", "RegistryAuthRefused"),
        ("silent", "box:1".to_owned(), "registry: down", "RegistryUnreachable"),
        ("strange", "box:1".to_owned(), "registry: untrusted", "RegistryUntrusted"),
        ("foreign", "box:foreign".to_owned(), "", "ArchitectureMismatch"),
        ("virtual", "box:1".to_owned(), "isolation: vm", "IsolationUnavailable"),
    ];
    let mut text = registries(&lab);
    for (number, (name, image, more, _)) in (0..).zip(&apps) {
        text += &app(name, image, "apps", 8100 + number, more);
    }
    apply(&lab, &text);
    let start = std::time::Instant::now();
    for (name, _, _, reason) in &apps {
        let left = SOON.saturating_sub(start.elapsed());
        let said = wait_described(&lab, name, &format!("{reason}: "), left);
        assert!(said.contains("Ready") && said.contains("Faulty"), "{said}");
        step(format_args!("{name}: {reason} after {:.1} s", start.elapsed().as_secs_f64()));
    }
    wait_state(&lab, "virtual", "FAILED", SOON);
    let id = on_device(&lab, "virtual")["id"].as_str().unwrap().to_owned();
    assert_eq!(pids(&mut lab, &id), [0; 0], "it runs less isolated than asked");

    step("what is put right comes up by itself");
    push(&lab, "2", "box:none");
    apply(&lab, &document("Secret", "other", &format!("data: {{username: someone, password: {PASSWORD}}}")));
    wait_answer(&mut lab, 8103, "two", TRIED_AGAIN);
    wait_answer(&mut lab, 8100, "two", TRIED_AGAIN);
    step("the registry comes up");
    let down = format!("{}:5999", lab.netns.host).parse().unwrap();
    let late = Registry::start(Path::new(&lab.place.dir.join("late")), down).unwrap();
    late.push(&tests::toolbox::layout(&lab.place.cache).unwrap(), "1", "box:1").unwrap();
    wait_answer(&mut lab, 8104, "one", TRIED_AGAIN);
    for name in ["missing", "other", "silent"] {
        wait_for("the reason goes with its cause", SOON, || {
            let faults = on_device(&lab, name)["faults"].clone();
            faults.as_array().is_some_and(Vec::is_empty).then_some(())
        })
        .unwrap();
    }
    probe.end().unwrap();
}
