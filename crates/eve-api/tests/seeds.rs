// SPDX-License-Identifier: Apache-2.0
//! The seeds of the fuzzer's corpus that only this crate can make.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::Vectors;
use eve_api::certs::{Role, build_controller_certs};
use eve_api::newlogs::{DeviceComment, LogEntry, LogHeader, Timestamp};
use eve_api::{Message as _, newlogs, parse, render};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

fn folder(parser: &str) -> PathBuf {
    let group = if ["config", "report"].contains(&parser) { "eve-config" } else { "eve-envelope" };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(group).join(parser)
}

/// Writes the seeds anew: `cargo test -p eve-api --test seeds -- --ignored seeds`.
#[test]
#[ignore = "writes the corpus"]
fn seeds() {
    let write = |target: &str, name: &str, data: &[u8]| fs::write(folder(target).join(name), data).unwrap();
    let v = Vectors::load();
    for e in v.envelopes() {
        write("envelope", &e.name.replace([' ', '(', ')'], "-"), &e.container);
    }
    let (signing, ecdh) = (v.signing_as_sent(), v.pem("controller_ecdh").as_bytes());
    let root = v.pem("root").as_bytes();
    let plain = [(Role::Signing, signing), (Role::Ecdh, ecdh)];
    write("certs", "plain", &build_controller_certs(plain));
    write(
        "certs",
        "with-root",
        &build_controller_certs(plain.into_iter().chain([(Role::Intermediate, root)])),
    );
    write("certs", "der", &eve_api::certs::first_der(signing).unwrap());

    let mut runner = TestRunner::deterministic();
    let mut sample =
        |n: usize, f: &mut dyn FnMut(&mut TestRunner, usize)| (0..n).for_each(|i| f(&mut runner, i));
    sample(6, &mut |runner, i| {
        let config = common::arbitrary::config().new_tree(runner).unwrap().current();
        write("config", &format!("random-{i}"), &render::config_response(&config, "h"));
    });
    sample(6, &mut |runner, i| {
        let info = common::reports::info().new_tree(runner).unwrap().current();
        write("report", &format!("info-{i}"), &render::info(&info));
        let metrics = common::reports::metrics().new_tree(runner).unwrap().current();
        write("report", &format!("metrics-{i}"), &render::metrics(&metrics));
    });
    let pool = prost_reflect::DescriptorPool::decode(eve_api::DESCRIPTORS).unwrap();
    let kind = pool.get_message_by_name("org.lfedge.eve.config.EdgeDevConfig").unwrap();
    let mut json = serde_json::Deserializer::from_str(include_str!("container.json"));
    let message = prost_reflect::DynamicMessage::deserialize(kind, &mut json).unwrap();
    let config = parse::device_config_bytes(&message.encode_to_vec()).unwrap();
    write("config", "container", &render::config_response(&config, "hash"));

    let entry = LogEntry {
        severity: "info".into(),
        source: "agent".into(),
        content: "started".into(),
        msgid: 7,
        timestamp: Some(Timestamp { seconds: 1_700_000_000, nanos: 1000 }),
        ..LogEntry::default()
    };
    let device = DeviceComment { device: "U".into(), image: "IMGA".into(), version: "1".into() };
    let device = LogHeader { comment: Some(device), created_s: 1_700_000_000, ..LogHeader::default() };
    write("newlogs", "device", &newlogs::write(&device, &[entry.clone(), entry.clone()]).unwrap());
    let app = LogHeader { name: Some("my app".into()), ..LogHeader::default() };
    write("newlogs", "app", &newlogs::write(&app, &[entry]).unwrap());
    let go = r#"{"severity":"info","source":"x","iid":"1","content":"c","msgid":7,"tags":{"k":"v"},"timestamp":{"seconds":1,"nanos":2}}"#;
    let protobuf = r#"{"content":"c","msgid":"7","timestamp":"2026-01-02T03:04:05.678+01:00"}"#;
    write("newlogs", "text", format!("{go}\n{protobuf}\n").as_bytes());
    write("newlogs", "empty", &newlogs::write(&LogHeader::default(), &[]).unwrap());
}
