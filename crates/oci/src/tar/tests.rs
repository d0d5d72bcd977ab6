// SPDX-License-Identifier: Apache-2.0

use std::io::BufReader;

use proptest::prelude::*;

use super::*;

/// Entries with their content, as far as they can be read.
fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    // A small buffer, so that content comes in pieces.
    let mut archive = Archive::new(BufReader::with_capacity(700, bytes));
    let mut out = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut content = Vec::new();
        loop {
            let piece = archive.content()?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(piece);
            let len = piece.len();
            archive.consume(len);
        }
        out.push((entry, content));
    }
    archive.drain()?;
    Ok(out)
}

/// An archive by the independent writer.
fn written() -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_mode(0o4755);
    header.set_uid(3_000_000_000);
    header.set_gid(7);
    header.set_mtime(1_700_000_000);
    header.set_size(1000);
    builder.append_data(&mut header, "bin/tool", &[7u8; 1000][..]).unwrap();
    let long = format!("{}/name", "d".repeat(150));
    header.set_size(3);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "t".repeat(200)).unwrap();
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.user.a", &b"1"[..]),
            ("mtime", b"5.25"),
            ("path", b"from pax"),
        ])
        .unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn an_archive_of_another_writer_is_read() {
    let entries = read_all(&written()).unwrap();
    assert_eq!(entries.len(), 4);
    let (tool, content) = &entries[0];
    assert_eq!(
        (tool.path.as_slice(), tool.mode, tool.uid, tool.gid),
        (&b"bin/tool"[..], 0o4755, 3_000_000_000, 7)
    );
    assert_eq!((tool.mtime, content), ((1_700_000_000, 0), &vec![7; 1000]));
    assert_eq!(entries[1].0.path.len(), 155);
    assert_eq!(entries[1].1, b"abc");
    assert_eq!((entries[2].0.kind, entries[2].0.link.len()), (Kind::Symlink, 200));
    let last = &entries[3].0;
    assert_eq!((last.path.as_slice(), last.mtime), (&b"from pax"[..], (5, 250_000_000)));
    assert_eq!(last.xattrs, [(b"user.a".to_vec(), b"1".to_vec())]);
}

/// A header block by hand.
fn block(kind: u8, path: &str, size: u64) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.set_path(path).unwrap();
    header.set_entry_type(::tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (key, value) in records {
        let bare = key.len() + value.len() + 3;
        let len = (bare + 1..).find(|len| len.to_string().len() + bare == *len).unwrap();
        body += &format!("{len} {key}={value}\n");
    }
    [block(b'x', "pax", body.len() as u64), padded(body.into_bytes())].concat()
}

#[test]
fn all_sparse_formats_give_the_same_map() {
    let map = [Segment { offset: 1024, len: 4 }, Segment { offset: 8192, len: 2 }];
    let mut old = block(b'S', "f", 6);
    for (at, text) in [
        (386, "00000002000\0"),
        (398, "00000000004\0"),
        (410, "00000020000\0"),
        (422, "00000000002\0"),
        (483, "00000040000\0"),
    ] {
        old[at..at + 12].copy_from_slice(text.as_bytes());
    }
    old[148..156].fill(b' ');
    let sum: u32 = old.iter().map(|byte| u32::from(*byte)).sum();
    old[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let content = padded(b"abcdef".to_vec());
    let in_content = [padded(b"2\n1024\n4\n8192\n2\n".to_vec()), content.clone()].concat();
    let archives = [
        [old, content.clone()].concat(),
        [
            pax(&[
                ("GNU.sparse.size", "16384"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "1024"),
                ("GNU.sparse.numbytes", "4"),
                ("GNU.sparse.offset", "8192"),
                ("GNU.sparse.numbytes", "2"),
            ]),
            block(b'0', "f", 6),
            content.clone(),
        ]
        .concat(),
        [
            pax(&[
                ("GNU.sparse.size", "16384"),
                ("GNU.sparse.name", "f"),
                ("GNU.sparse.map", "1024,4,8192,2"),
            ]),
            block(b'0', "GNUSparseFile.1/f", 6),
            content,
        ]
        .concat(),
        [
            pax(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "f"),
                ("GNU.sparse.realsize", "16384"),
            ]),
            block(b'0', "GNUSparseFile.1/f", 512 + 6),
            in_content,
        ]
        .concat(),
    ];
    for (number, archive) in archives.iter().enumerate() {
        let entries = read_all(archive).unwrap();
        let (entry, content) = &entries[0];
        assert_eq!(entry.path, b"f", "format {number}");
        assert_eq!(entry.sparse.as_deref(), Some(&map[..]), "format {number}");
        assert_eq!((entry.size, content.as_slice()), (16384, &b"abcdef"[..]), "format {number}");
    }
}

#[test]
fn sparse_maps_that_do_not_fit_are_refused() {
    for map in ["1024,4,8192", "0,4,2,2", "0,9", "16383,6", "18446744073709551615,6", "x,1"] {
        let archive = [
            pax(&[("GNU.sparse.size", "16384"), ("GNU.sparse.map", map)]),
            block(b'0', "f", 6),
            padded(b"abcdef".to_vec()),
        ]
        .concat();
        assert!(read_all(&archive).is_err(), "{map}");
    }
}

#[test]
fn archives_that_end_early_or_never_are_refused() {
    let whole = written();
    assert!(matches!(read_all(&whole[..700]), Err(TarError::Truncated)));
    assert!(matches!(read_all(&whole[..1000]), Err(TarError::Truncated)));
    assert!(matches!(read_all(&block(b'x', "pax", MAX_EXTENSION_BYTES + 1)), Err(TarError::TooLarge { .. })));
    let endless: Vec<u8> = (0..MAX_EXTENSIONS + 1).flat_map(|_| pax(&[("comment", "x")])).collect();
    assert!(matches!(read_all(&endless), Err(TarError::TooLarge { .. })));
    let mut broken = block(b'0', "f", 0);
    broken[0] = b'g';
    assert!(matches!(read_all(&broken), Err(TarError::Checksum)));
    assert!(read_all(&[]).unwrap().is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = read_all(&bytes);
    }

    /// Changed bytes with the checksum put right again reach the parsers behind it.
    #[test]
    fn a_changed_archive_is_read_or_refused(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = written();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for header in bytes.chunks_exact_mut(BLOCK) {
            if &header[257..262] == b"ustar" {
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let _ = read_all(&bytes);
    }
}
