// SPDX-License-Identifier: Apache-2.0
//! Documents that cannot be meant so. Refused before anything is stored, by `plan` and `apply` alike, with file, line,
//! the path of the field, and what is allowed there. Needs a controller only.

use tests::command::output;
use tests::lab::{Controller, Place};
use tests::operator::{app, document, network};

/// A mistake: what of the good documents is replaced by what, and the texts that the refusal holds.
struct Mistake {
    what: &'static str,
    good: &'static str,
    bad: &'static str,
    told: &'static [&'static str],
}

const MISTAKES: &[Mistake] = &[
    Mistake { what: "an open list", good: "serial: S1", bad: "serial: [S1", told: &["documents.yaml:"] },
    Mistake { what: "a tab", good: "  serial: S1", bad: "\tserial: S1", told: &["documents.yaml:5"] },
    Mistake {
        what: "a key twice",
        good: "image: box:1",
        bad: "image: box:1\n  image: box:2",
        told: &["documents.yaml:19", "image"],
    },
    Mistake {
        what: "an unknown kind",
        good: "kind: App",
        bad: "kind: Apps",
        told: &["documents.yaml:15", "Apps", "Device", "Network", "Registry"],
    },
    Mistake {
        what: "another apiVersion",
        good: "apiVersion: selvedge/v1alpha1\nkind: App",
        bad: "apiVersion: selvedge/v9\nkind: App",
        told: &["documents.yaml:14", "selvedge/v1alpha1"],
    },
    Mistake {
        what: "an unknown field",
        good: "env:",
        bad: "enviroment:",
        told: &["documents.yaml:23", "enviroment", "allowed here", "env"],
    },
    Mistake {
        what: "a field of another place",
        good: "memory: 64Mi}",
        bad: "memory: 64Mi, image: 1Gi}",
        told: &["documents.yaml:22", "spec.resources.image", "allowed here: cpus, disk, memory"],
    },
    Mistake {
        what: "a word for a number",
        good: "cpus: 1",
        bad: "cpus: many",
        told: &["documents.yaml:22", "spec.resources.cpus"],
    },
    Mistake {
        what: "a negative number",
        good: "cpus: 1",
        bad: "cpus: -1",
        told: &["documents.yaml:22", "spec.resources.cpus"],
    },
    Mistake {
        what: "no CPU at all",
        good: "cpus: 1",
        bad: "cpus: 0",
        told: &["documents.yaml:22", "spec.resources.cpus", "1"],
    },
    Mistake {
        what: "more CPUs than exist",
        good: "cpus: 1",
        bad: "cpus: 4000000000",
        told: &["documents.yaml:22", "spec.resources.cpus"],
    },
    Mistake {
        what: "memory without a unit that exists",
        good: "64Mi",
        bad: "64Mo",
        told: &["documents.yaml:22", "spec.resources.memory", "Mi"],
    },
    Mistake {
        what: "a forgotten unit",
        good: "64Mi",
        bad: "'64'",
        told: &["documents.yaml:22", "spec.resources.memory", "bytes"],
    },
    Mistake {
        what: "no memory",
        good: "64Mi",
        bad: "'0'",
        told: &["documents.yaml:22", "spec.resources.memory"],
    },
    Mistake {
        what: "memory beyond numbers",
        good: "64Mi",
        bad: "99999999999999999999Gi",
        told: &["documents.yaml:22", "spec.resources.memory"],
    },
    Mistake {
        what: "half a port",
        good: "'8080:80'",
        bad: "'8080'",
        told: &["documents.yaml:21", "spec.ports[0]", "8080"],
    },
    Mistake {
        what: "a port beyond ports",
        good: "'8080:80'",
        bad: "'70000:80'",
        told: &["documents.yaml:21", "spec.ports[0]"],
    },
    Mistake {
        what: "the same port twice",
        good: "['8080:80']",
        bad: "['8080:80', '8080:81']",
        told: &["documents.yaml:21", "spec.ports[1]", "8080"],
    },
    Mistake {
        what: "no image",
        good: "image: box:1",
        bad: "image: ''",
        told: &["documents.yaml:18", "spec.image"],
    },
    Mistake {
        what: "no image reference",
        good: "image: box:1",
        bad: "image: 'BOX IMAGE'",
        told: &["documents.yaml:18", "spec.image"],
    },
    Mistake {
        what: "half a digest",
        good: "image: box:1",
        bad: "image: 'box@sha256:12'",
        told: &["documents.yaml:18", "spec.image", "sha256"],
    },
    Mistake {
        what: "a network that is not there",
        good: "network: apps",
        bad: "network: absent",
        told: &["documents.yaml:20", "spec.networks[0]", "network/absent does not exist"],
    },
    Mistake {
        what: "a registry that is not there",
        good: "env:",
        bad: "registry: absent\n  env:",
        told: &["documents.yaml:23", "spec.registry", "registry/absent does not exist"],
    },
    Mistake {
        what: "a secret that is not there",
        good: "env: {A: b}",
        bad: "secretEnv: {A: {name: none, key: k}}",
        told: &["documents.yaml:23", "spec.secretEnv.A", "secret/none does not exist"],
    },
    Mistake {
        what: "a variable that is none",
        good: "env: {A: b}",
        bad: "env: {1-A: b}",
        told: &["documents.yaml:23", "spec.env.1-A", "letters"],
    },
    Mistake {
        what: "a device that is not there",
        good: "selector: {}",
        bad: "devices: [edge-9]",
        told: &["documents.yaml", "spec.devices[0]", "device/edge-9 does not exist"],
    },
    Mistake {
        what: "no subnet",
        good: "subnet: 10.60.0.0/24",
        bad: "subnet: 10.60.0.0/33",
        told: &["documents.yaml:12", "spec.subnet"],
    },
    Mistake {
        what: "a subnet too small",
        good: "subnet: 10.60.0.0/24",
        bad: "subnet: 10.60.0.0/31",
        told: &["documents.yaml:12", "spec.subnet", "/29"],
    },
    Mistake {
        what: "a kind of network that is not there",
        good: "kind: local",
        bad: "kind: locale",
        told: &["documents.yaml:11", "spec.kind", "local"],
    },
    Mistake {
        what: "a name with a space",
        good: "{name: web}",
        bad: "{name: 'my web'}",
        told: &["documents.yaml:16", "metadata.name", "lower-case"],
    },
    Mistake {
        what: "no name",
        good: "metadata: {name: web}",
        bad: "metadata: {}",
        told: &["documents.yaml:16", "name"],
    },
];

#[test]
#[ignore = "starts a controller"]
fn documents_are_refused_with_line_field_and_what_is_allowed() {
    let place = Place::new("documents", 61).unwrap();
    place.clear().unwrap();
    let controller = Controller::start(&place, "127.0.0.61", &[]).unwrap();
    let good = document("Device", "edge-1", "serial: S1")
        + &network("apps", "10.60.0.0/24")
        + &app("web", "box:1", "apps", 8080, "env: {A: b}");
    let path = place.dir.join("documents.yaml");
    let mut wrong = Vec::new();
    for mistake in MISTAKES {
        let bad = good.replacen(mistake.good, mistake.bad, 1);
        assert_ne!(bad, good, "{}: nothing was replaced", mistake.what);
        std::fs::write(&path, &bad).unwrap();
        for command in ["plan", "apply"] {
            let refused = output(&mut controller.command(&[command, "-f", &path.to_string_lossy()])).unwrap();
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            let missing: Vec<&&str> = mistake.told.iter().filter(|text| !said.contains(**text)).collect();
            if refused.status.code() != Some(1) || !missing.is_empty() {
                wrong.push(format!(
                    "{} ({command}, {}): not told {missing:?}:\n{said}",
                    mistake.what, refused.status
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(controller.cli(&["get", "apps", "-o", "name"]).unwrap().is_empty(), "something refused was done");
    std::fs::write(&path, &good).unwrap();
    controller.cli(&["apply", "-f", &path.to_string_lossy()]).unwrap();
}
