// SPDX-License-Identifier: Apache-2.0
//! The corpus on stable Rust without a fuzzer: every input, cut short, with turned bits, and changed at random from a
//! fixed seed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;

use fuzz::{ALL, Group, Parser};

/// Changes of each input, and of a whole corpus: the test stays within seconds.
const CHANGES: usize = 60;
const CHANGES_MAX: usize = 600;

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

    fn change(&mut self, mut data: Vec<u8>, other: &[u8]) -> Vec<u8> {
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

fn replay(group: &Group, parser: &Parser) {
    let mut names: Vec<_> =
        fs::read_dir(group.corpus(parser)).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let files: Vec<_> = names.iter().map(|name| fs::read(name).unwrap()).collect();
    assert!(!files.is_empty(), "{}/{} has no corpus", group.name, parser.name);
    let mut chance = Chance(0x5e1f_ed6e);
    let changes = CHANGES.min(CHANGES_MAX / files.len());
    for (file, name) in files.iter().zip(&names) {
        (parser.run)(file);
        for round in 0..changes {
            let other = &files[chance.below(files.len())];
            let changed = chance.change(file.clone(), other);
            if std::panic::catch_unwind(|| (parser.run)(&changed)).is_err() {
                let hex: String = changed.iter().map(|byte| format!("{byte:02x}")).collect();
                panic!("change {round} of {} fails: {hex}", name.display());
            }
        }
    }
}

/// The fuzzer's driver numbers the directories in their order.
#[test]
fn every_parser_has_a_corpus_and_every_corpus_a_parser() {
    let names = |dir: &std::path::Path| -> BTreeSet<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut groups = BTreeSet::new();
    for group in ALL {
        let dir = group.corpus(&group.parsers[0]).parent().unwrap().to_owned();
        let parsers: Vec<String> = group.parsers.iter().map(|parser| parser.name.to_owned()).collect();
        assert_eq!(names(&dir).into_iter().collect::<Vec<_>>(), parsers, "{}", group.name);
        groups.insert(group.name.to_owned());
        assert!(groups.len() <= names(dir.parent().unwrap()).len());
    }
    let corpus = ALL[0].corpus(&ALL[0].parsers[0]);
    assert_eq!(names(corpus.ancestors().nth(2).unwrap()), groups);
}

macro_rules! replays {
    ($($name:ident $group:ident),*) => {$(
        #[test]
        fn $name() {
            fuzz::$group.parsers.iter().for_each(|parser| replay(&fuzz::$group, parser));
        }
    )*};
}

replays! {
    files_of_our_own_hold DISK,
    disks_of_strangers_and_the_firmware_hold BOX,
    what_comes_over_networks_holds NET,
    documents_hold DOCUMENTS,
    configs_and_reports_hold EVE_CONFIG,
    envelopes_certificates_and_logs_hold EVE_ENVELOPE,
    frames_and_the_bus_hold IPC,
    manifests_of_images_hold OCI_DOCUMENTS,
    layers_hold OCI_LAYERS,
    the_registry_holds REGISTRY,
    what_apps_say_holds RUN,
    keys_and_quotes_hold VAULT
}
