// SPDX-License-Identifier: Apache-2.0
//! Every input of `fuzz/corpus` ends in an answer. The corpus holds seeds and whatever once went wrong; a fuzzer can use
//! the same folders, this test replays them on stable Rust.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use oci::config::Config;
use oci::digest;
use oci::layer::{ExpectedLayer, unpack_layer};
use oci::manifest::{Compression, Document};
use oci::reference::Reference;
use oci::unpack::{Limits, Owners, unpack};

fn unpack_layer_of(bytes: &[u8]) {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let place = tempfile::tempdir().unwrap();
        let root = fs::File::open(place.path()).unwrap();
        let digest = digest::of(bytes);
        let expected = ExpectedLayer { compression, digest, size: bytes.len() as u64, diff_id: digest };
        let limits = Limits { bytes: 1 << 20, ..Limits::default() };
        let _ = unpack_layer(bytes, &expected, root.as_fd(), Owners::Ignored, limits, &AtomicU64::new(0));
    }
}

fn unpack_archive(bytes: &[u8]) {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("layer")).unwrap();
    let root = fs::File::open(place.path().join("layer")).unwrap();
    let limits = Limits { bytes: 1 << 20, ..Limits::default() };
    if let Err(error) = unpack(root.as_fd(), bytes, Owners::Ignored, limits) {
        assert!(error.is_archive_at_fault(), "{error:?}");
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "something left the layer");
}

#[test]
fn every_input_of_the_corpus_ends_in_an_answer() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut count = 0;
    for folder in fs::read_dir(corpus).unwrap() {
        let folder = folder.unwrap();
        let replay: fn(&[u8]) = match folder.file_name().to_str().unwrap() {
            "archive" => unpack_archive,
            "layer" => unpack_layer_of,
            "manifest" => |bytes| drop(Document::parse(bytes)),
            "config" => |bytes| drop(Config::parse(bytes)),
            "reference" => |bytes| drop(String::from_utf8_lossy(bytes).parse::<Reference>()),
            other => panic!("no parser for corpus {other}"),
        };
        for input in fs::read_dir(folder.path()).unwrap() {
            // Each input also cut short and with single bits turned.
            let bytes = fs::read(input.unwrap().path()).unwrap();
            replay(&bytes);
            for at in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
                replay(&bytes[..at]);
                let mut turned = bytes.clone();
                turned[at] ^= 1 << (at % 8);
                replay(&turned);
            }
            count += 1;
        }
    }
    assert!(count >= 15, "{count} inputs");
}
