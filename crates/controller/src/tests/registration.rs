// SPDX-License-Identifier: Apache-2.0
//! Certificates that open no door: of onboarding and of devices, expired, of a time to come, of another controller. Each
//! is refused with its status, and the operator sees it.

use super::*;

const NEVER: (i32, i32) = (1990, 2000);
const SOMEDAY: (i32, i32) = (2090, 2099);
const NOW: (i32, i32) = (1990, 2099);

/// A certificate that is valid from the first year to the second, with its key.
fn aged(name: &str, (from, to): (i32, i32)) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(name);
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key)
}

async fn register(node: &Node, onboarding: &(String, KeyPair), device: &str, serial: &str) -> Reply {
    let (pem, key) = onboarding;
    let signer = EcdsaSigner::from_pem(key.serialize_pem().as_bytes()).unwrap();
    let hash = eve_api::certs::der_hash(&eve_api::certs::first_der(pem.as_bytes()).unwrap());
    let payload = eve_api::register::build_registration(device.as_bytes(), serial, "");
    node.send("register", seal_register(payload, pem.as_bytes(), &hash, &signer).unwrap()).await
}

#[tokio::test]
async fn certificates_that_are_too_old_too_young_or_foreign_are_refused_and_seen() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let onboarding = [("good", NOW), ("old", NEVER), ("young", SOMEDAY)].map(|(name, age)| {
        let made = aged(name, age);
        (name, made)
    });
    let tokens = onboarding
        .iter()
        .map(|(name, (pem, _))| object("JoinToken", name, json!({ "serials": ["S1"], "certificate": pem })));
    apply(&controller, Value::Array(tokens.collect())).await;
    let [(_, good), (_, old), (_, young)] = onboarding;
    let foreign = aged("of another controller", NOW);
    let node = Node::new(&controller);
    let device = |age| aged("device", age).0;
    let (forbidden, wrong) = (StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY);
    for (what, onboarding, device, serial, status, object, told) in [
        ("old onboarding", &old, &*node.pem, "S1", forbidden, "jointoken/old", "has expired"),
        ("young onboarding", &young, &node.pem, "S1", forbidden, "jointoken/young", "is not valid yet"),
        ("foreign onboarding", &foreign, &node.pem, "S1", forbidden, "controller", "is not known"),
        ("old device", &good, &device(NEVER), "S1", wrong, "jointoken/good", "serial 'S1' has expired"),
        (
            "young device",
            &good,
            &device(SOMEDAY),
            "S1",
            wrong,
            "jointoken/good",
            "serial 'S1' is not valid yet",
        ),
        ("unlisted", &good, &node.pem, "S2", forbidden, "jointoken/good", "'S2' is not listed"),
        ("no certificate", &good, "no PEM", "S1", wrong, "jointoken/good", "pemCert"),
    ] {
        for _ in 0..3 {
            let reply = register(&node, onboarding, device, serial).await;
            assert_eq!(reply.status, status, "{what}: {}", String::from_utf8_lossy(&reply.body));
        }
        let events = api(&controller, Method::GET, "events", Value::Null, None).await.json();
        let items = events["items"].as_array().unwrap();
        let seen: Vec<&Value> = items
            .iter()
            .filter(|event| event["object"] == object && event["reason"] == "RegistrationRefused")
            .filter(|event| event["message"].as_str().unwrap().contains(told))
            .collect();
        assert_eq!(seen.len(), 1, "{what}: told once, although it came three times: {events}");
        assert!(seen[0]["message"].as_str().unwrap().starts_with(status.as_str()), "{what}: {}", seen[0]);
    }
    // Nothing of that stands in the way of the one that may.
    assert_eq!(register(&node, &good, &node.pem, "S1").await.status, StatusCode::CREATED);
    let devices = api(&controller, Method::GET, "devices", Value::Null, None).await.json();
    assert_eq!(devices["items"].as_array().unwrap().len(), 1);
}
