// SPDX-License-Identifier: Apache-2.0
//! Images: what a registry says of them, and their layers.

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;

use oci::config::Config;
use oci::digest;
use oci::layer::{ExpectedLayer, unpack_layer};
use oci::manifest::{Compression, Document};
use oci::platform::Platform;
use oci::reference::Reference;
use oci::unpack::{Limits, Owners, unpack};

/// Room one archive may take.
const LIMITS_BYTES: u64 = 1 << 20;

pub(crate) fn manifest(data: &[u8]) {
    if let Ok(Document::Index(index)) = Document::parse(data) {
        let _ = Platform::this_machine().choose(&index);
    }
}

pub(crate) fn config(data: &[u8]) {
    let _ = Config::parse(data);
}

/// A reference is the same after it was written.
pub(crate) fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = text.parse::<Reference>() {
        let again = reference.to_string().parse::<Reference>().expect("what is written can be read");
        assert_eq!(again, reference);
        let _ = reference.asked_for();
    }
    if let Ok(image) = controller_core::image::parse_image(&text) {
        let _ = format!("{image:?}");
    }
}

fn limits() -> Limits {
    Limits { bytes: LIMITS_BYTES, ..Limits::default() }
}

/// Nothing leaves the layer's directory, and only the archive is ever at fault.
pub(crate) fn archive(data: &[u8]) {
    let place = super::place();
    let inside = place.path().join("layer");
    fs::create_dir(&inside).expect("a directory can be made");
    let root = fs::File::open(&inside).expect("and opened");
    if let Err(error) = unpack(root.as_fd(), data, Owners::Ignored, limits()) {
        assert!(error.is_archive_at_fault(), "{error:?}");
    }
    assert_eq!(fs::read_dir(place.path()).expect("it is there").count(), 1, "something left the layer");
    // Modes of the archive may forbid us to look in and to clear away.
    let _ = oci::unpack::remove_tree(fs::File::open(place.path()).expect("it is there").as_fd(), b"layer");
}

/// The bytes as a layer, packed in each way: as they come, and as what is in a sound wrapping.
pub(crate) fn layer(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let packed;
    let (compression, bytes, contents) = match choice % 5 {
        0 => (Compression::None, data, data),
        1 => (Compression::Gzip, data, data),
        2 => (Compression::Zstd, data, data),
        3 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, data).expect("memory takes all");
            packed = gzip.finish().expect("memory takes all");
            (Compression::Gzip, &packed[..], data)
        }
        _ => {
            packed = zstd::encode_all(data, 1).expect("memory takes all");
            (Compression::Zstd, &packed[..], data)
        }
    };
    let place = super::place();
    let root = fs::File::open(place.path()).expect("it is there");
    let expected = ExpectedLayer {
        compression,
        digest: digest::of(bytes),
        size: bytes.len() as u64,
        diff_id: digest::of(contents),
    };
    let _ = unpack_layer(bytes, &expected, root.as_fd(), Owners::Ignored, limits(), &AtomicU64::new(0));
    for entry in fs::read_dir(place.path()).expect("it is there").flatten() {
        let _ = oci::unpack::remove_tree(root.as_fd(), entry.file_name().as_encoded_bytes());
    }
}
