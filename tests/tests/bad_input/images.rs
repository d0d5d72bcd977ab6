// SPDX-License-Identifier: Apache-2.0
//! Registries and images that cannot be trusted.

use std::fs;
use std::time::Instant;

use tests::hostile::{ESCAPED, Flaw, Hostile};
use tests::operator::{SOON, app, apply, document, network, toolbox_lab, wait_answer};
use tests::probe::Probe;
use tests::progress::step;
use tests::tls::{Age, Authority};
use tests::toolbox;

use super::{Row, wait_told};

const FLAWED: &[(&str, Flaw)] = &[
    ("sound", Flaw::None),
    ("truncated", Flaw::Truncated),
    ("spoiled", Flaw::OtherBytes),
    ("swapped", Flaw::OtherManifest),
    ("unlike", Flaw::OtherArchive),
    ("garbage", Flaw::Garbage),
    ("login", Flaw::NoManifest),
    ("escaping", Flaw::Traversal),
    ("devices", Flaw::Devices),
    ("bomb", Flaw::Bomb),
    ("foreign", Flaw::Architecture),
    ("deep", Flaw::Deep),
];

#[test]
#[ignore = "needs root"]
fn images_and_registries_that_cannot_be_trusted_are_told_and_harm_nobody() {
    let mut lab = toolbox_lab("untrusted", 62);
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("good", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let probe = Probe::start(lab.app_address(8080).unwrap());

    let program = fs::read(toolbox::busybox(&lab.place.cache).unwrap()).unwrap();
    let at = |port: u16| format!("{}:{port}", lab.netns.host).parse().unwrap();
    let hostile = Hostile::start(at(5001), None, &program, FLAWED).unwrap();
    let (trusted, unrelated) = (Authority::new("trusted").unwrap(), Authority::new("unrelated").unwrap());
    let host = lab.netns.host.parse().unwrap();
    for (port, authority, age) in [
        (5002, &trusted, Age::Expired),
        (5003, &trusted, Age::Future),
        (5004, &unrelated, Age::Valid),
        (5006, &trusted, Age::Valid),
    ] {
        let tls = authority.server(host, age).unwrap();
        Hostile::start(at(port), Some(tls), &program, &[("sound", Flaw::None)]).unwrap();
    }
    // for another name than the one asked for
    let tls = trusted.server("192.0.2.77".parse().unwrap(), Age::Valid).unwrap();
    Hostile::start(at(5005), Some(tls), &program, &[("sound", Flaw::None)]).unwrap();

    let ca: String = trusted.pem.lines().map(|line| format!("\n  {line}")).collect();
    let mut text = document("Registry", "hostile", &format!("url: {}\ninsecure: true", hostile.address));
    let aged = [("old", 5002), ("early", 5003), ("stranger", 5004), ("misnamed", 5005), ("trusted", 5006)];
    for (name, port) in aged {
        text += &document("Registry", name, &format!("url: {}:{port}\nca: |{ca}", lab.netns.host));
    }
    text += &document("Registry", "silent", &format!("url: {}:5999\ninsecure: true", lab.netns.host));
    let mut port = 8100;
    let mut order = |name: &str, image: &str, registry: &str| {
        port += 1;
        text += &app(name, image, "apps", port, &format!("registry: {registry}"));
    };
    for (name, flaw) in FLAWED {
        match flaw {
            // with a tag there is nothing to compare with
            Flaw::OtherManifest => order(name, &format!("{name}@{}", hostile.digests[*name]), "hostile"),
            _ => order(name, &format!("{name}:1"), "hostile"),
        }
    }
    for (name, _) in aged {
        order(&format!("{name}-tls"), "sound:1", name);
    }
    order("nowhere", "sound:1", "silent");
    let absent = "sha256:00000000000000000000000000000000000000000000000000000000000000ff";
    order("unpublished", &format!("sound@{absent}"), "hostile");
    apply(&lab, &text);
    let start = Instant::now();
    let rows: &[Row<'_>] = &[
        ("truncated", &["RegistryUnreachable: ", "truncated:1", "end of file"]),
        ("spoiled", &["DigestMismatch: ", "spoiled:1"]),
        ("swapped", &["DigestMismatch: ", "swapped"]),
        ("unlike", &["ImageInvalid: ", "unlike:1", "diff id"]),
        ("garbage", &["ImageInvalid: ", "garbage:1"]),
        ("login", &["ImageInvalid: ", "login:1"]),
        ("escaping", &["ImageInvalid: ", "escaping:1", "path"]),
        ("foreign", &["ArchitectureMismatch: ", "s390x"]),
        ("deep", &["ImageInvalid: ", "deep:1"]),
        ("old-tls", &["RegistryUntrusted: ", "expired"]),
        ("early-tls", &["RegistryUntrusted: ", "not valid yet"]),
        ("stranger-tls", &["RegistryUntrusted: "]),
        ("misnamed-tls", &["RegistryUntrusted: ", "name"]),
        ("nowhere", &["RegistryUnreachable: ", "5999"]),
        ("unpublished", &["ImageNotFound: ", "sound"]),
        ("bomb", &["ImageInvalid: ", "bomb:1", "larger than its blob"]),
        // what is sound runs, whatever else the same registry holds; so does an image without its devices
        ("sound", &["state: RUNNING"]),
        ("devices", &["state: RUNNING"]),
        ("trusted-tls", &["state: RUNNING"]),
    ];
    wait_told(&lab, start, rows);
    step("nothing got out of its place");
    for place in [std::path::Path::new("/tmp"), &lab.place.dir] {
        assert!(!place.join(ESCAPED).exists(), "{} holds {ESCAPED}", place.display());
    }
    let found =
        tests::command::run(tests::command::root("find").arg(&lab.place.dir).args(["-name", ESCAPED]))
            .unwrap();
    assert!(found.is_empty(), "{found}");
    let devices = tests::command::run(
        tests::command::root("find").arg(lab.place.dir.join("persist/store/layers")).args(["-type", "b"]),
    )
    .unwrap();
    assert!(devices.is_empty(), "{devices}");
    assert!(probe.end().unwrap() > 10);
}
