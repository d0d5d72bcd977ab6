// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::digest;

fn archive() -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(700_000);
    // Not compressible at all, so that the blob has some length.
    let noise: Vec<u8> = (0u32..700_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    builder.append_data(&mut header, "file", &noise[..]).unwrap();
    builder.into_inner().unwrap()
}

fn packed(archive: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => archive.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(archive, 1).unwrap(),
    }
}

fn expected(blob: &[u8], archive: &[u8], compression: Compression) -> ExpectedLayer {
    ExpectedLayer {
        compression,
        digest: digest::of(blob),
        size: blob.len() as u64,
        diff_id: digest::of(archive),
    }
}

fn run(blob: &[u8], expected: &ExpectedLayer) -> (Result<Report, LayerError>, TempDir) {
    let place = tempfile::tempdir().unwrap();
    let root = fs::File::open(place.path()).unwrap();
    let read = AtomicU64::new(0);
    let result = unpack_layer(blob, expected, root.as_fd(), Owners::Ignored, Limits::default(), &read);
    if result.is_ok() {
        assert_eq!(read.into_inner(), blob.len() as u64);
    }
    (result, place)
}

const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

#[test]
fn a_good_layer_is_verified_and_unpacked() {
    let archive = archive();
    for compression in ALL {
        let blob = packed(&archive, compression);
        let (result, place) = run(&blob, &expected(&blob, &archive, compression));
        assert_eq!(result.unwrap().bytes, 700_000, "{compression:?}");
        assert_eq!(fs::metadata(place.path().join("file")).unwrap().len(), 700_000);
    }
}

#[test]
fn several_members_or_frames_are_one_archive() {
    let archive = archive();
    let (first, second) = archive.split_at(300_000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob = [packed(first, compression), packed(second, compression)].concat();
        let (result, _place) = run(&blob, &expected(&blob, &archive, compression));
        assert!(result.is_ok(), "{result:?}");
    }
}

#[test]
fn a_blob_spoiled_on_the_way_is_told_from_one_made_wrong() {
    let archive = archive();
    for compression in ALL {
        let blob = packed(&archive, compression);
        let good = expected(&blob, &archive, compression);
        for at in [0, 20, blob.len() / 2, blob.len() - 1] {
            let mut spoiled = blob.clone();
            spoiled[at] ^= 0x55;
            let error = run(&spoiled, &good).0.unwrap_err();
            assert_eq!(error.reason(), Reason::DigestMismatch, "{compression:?} at {at}: {error}");
            // The same bytes under their own digest: nothing happened on the way.
            let own = expected(&spoiled, &archive, compression);
            let result = run(&spoiled, &own).0;
            // Bytes behind the archive's end mark or in a header's comment may change nothing.
            if compression != Compression::None
                && let Err(error) = result
            {
                assert_eq!(error.reason(), Reason::ImageInvalid, "{compression:?} at {at}: {error}");
            }
        }
        let cut = &blob[..blob.len() - 7];
        assert_eq!(run(cut, &good).0.unwrap_err().reason(), Reason::DigestMismatch);
        let longer = [&blob[..], b"more"].concat();
        assert!(matches!(run(&longer, &good).0, Err(LayerError::Size { .. })));
        let wrong_inside = ExpectedLayer { diff_id: digest::of(b""), ..good };
        if compression != Compression::None {
            assert!(matches!(run(&blob, &wrong_inside).0, Err(LayerError::DiffId { .. })));
        }
    }
}

#[test]
fn an_uncompressed_layer_must_have_its_digest_as_diff_id() {
    let archive = archive();
    let wrong = ExpectedLayer { diff_id: digest::of(b""), ..expected(&archive, &archive, Compression::None) };
    assert!(matches!(run(&archive, &wrong).0, Err(LayerError::DiffId { .. })));
}

#[test]
fn a_bomb_stops_early() {
    // 1 GiB of zeros in some 30 KB.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        encoder.write_all(&zeros).unwrap();
    }
    let blob = encoder.finish().unwrap();
    // Zero blocks end the archive; what follows is read on for its digest alone.
    let error = run(&blob, &expected(&blob, b"", Compression::Zstd)).0.unwrap_err();
    assert!(matches!(error, LayerError::Bomb { .. }), "{error}");
}

#[test]
fn a_reader_that_fails_is_not_a_broken_image() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let len = buffer.len().min(self.0);
            buffer[..len].fill(0x1f);
            self.0 -= len;
            Ok(len)
        }
    }
    let place = tempfile::tempdir().unwrap();
    let root = fs::File::open(place.path()).unwrap();
    for compression in ALL {
        let want = ExpectedLayer { size: 1000, ..expected(b"", b"", compression) };
        let read = AtomicU64::new(0);
        let result =
            unpack_layer(Failing(600), &want, root.as_fd(), Owners::Ignored, Limits::default(), &read);
        assert_eq!(result.unwrap_err().reason(), Reason::RegistryUnreachable, "{compression:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_packing_end_in_an_answer(
        bytes in proptest::collection::vec(any::<u8>(), 0..600), which in 0usize..3, magic in any::<bool>()
    ) {
        let mut blob = bytes;
        if magic {
            let archive = [0; 1024];
            let good = packed(&archive, ALL[which]);
            blob.splice(0..0, good[..good.len() / 2].iter().copied());
        }
        let _ = run(&blob, &expected(&blob, b"", ALL[which]));
    }
}
