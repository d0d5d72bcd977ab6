// SPDX-License-Identifier: Apache-2.0
//! The fuzz targets on stable: the committed corpus, and mutations of it from a fixed seed.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../fuzz/targets.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::fs;
use std::path::PathBuf;

use common::Vectors;
use eve_api::certs::{Role, build_controller_certs};
use eve_api::newlogs::{DeviceComment, LogEntry, LogHeader, Timestamp};
use eve_api::{Message as _, newlogs, parse, render};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// Mutations of each file: the whole test stays within seconds.
const MUTATIONS: usize = 2_000;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Small and reproducible (xorshift64*).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn mutate(&mut self, mut data: Vec<u8>, other: &[u8]) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            let at = self.below(data.len());
            match self.below(6) {
                0 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                1 if !data.is_empty() => data[at] = self.next() as u8,
                2 => data.truncate(at),
                3 => data.insert(at, [0, 0xff, 0x80, 0x7f][self.below(4)]),
                4 => {
                    let until = (at + self.below(16)).min(data.len());
                    data.drain(at..until);
                }
                _ => {
                    let from = self.below(other.len());
                    let until = (from + self.below(64)).min(other.len());
                    data.splice(at..at, other[from..until].iter().copied());
                }
            }
        }
        data
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    let mut names: Vec<_> =
        fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let files: Vec<_> = names.iter().map(|name| fs::read(name).unwrap()).collect();
    assert!(files.len() >= 3, "a corpus of {} files", files.len());
    let mut chance = Chance(0x5e1f_ed6e);
    for (file, name) in files.iter().zip(&names) {
        run(file);
        for round in 0..MUTATIONS {
            let other = &files[chance.below(files.len())];
            let mutated = chance.mutate(file.clone(), other);
            if std::panic::catch_unwind(|| run(&mutated)).is_err() {
                let hex: String = mutated.iter().map(|byte| format!("{byte:02x}")).collect();
                panic!("mutation {round} of {} fails: {hex}", name.display());
            }
        }
    }
}

#[test]
fn envelopes_hold() {
    replay("envelope", targets::envelope);
}

#[test]
fn certificates_hold() {
    replay("certs", targets::certs);
}

#[test]
fn configs_hold() {
    replay("config", targets::config);
}

#[test]
fn reports_hold() {
    replay("report", targets::report);
}

#[test]
fn log_files_hold() {
    replay("newlogs", targets::newlogs);
}

/// Writes the seeds anew: `cargo test -p eve-api --test corpus -- --ignored seeds`.
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
        let info = common::arbitrary::info().new_tree(runner).unwrap().current();
        write("report", &format!("info-{i}"), &render::info(&info));
        let metrics = common::arbitrary::metrics().new_tree(runner).unwrap().current();
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
