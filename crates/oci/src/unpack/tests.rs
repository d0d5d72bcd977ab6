// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap as Map;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// One entry of an archive under test.
#[derive(Clone, Debug)]
struct Item<'a> {
    kind: u8,
    path: &'a str,
    link: &'a str,
    content: &'a [u8],
    mode: u32,
    pax: &'a [(&'a str, &'a [u8])],
}

fn item(kind: u8, path: &str) -> Item<'_> {
    Item { kind, path, link: "", content: b"", mode: if kind == b'5' { 0o755 } else { 0o644 }, pax: &[] }
}

fn file<'a>(path: &'a str, content: &'a [u8]) -> Item<'a> {
    Item { content, ..item(b'0', path) }
}

fn link<'a>(kind: u8, path: &'a str, target: &'a str) -> Item<'a> {
    Item { link: target, ..item(kind, path) }
}

/// Paths are written raw: the writer's own checks would refuse the bad ones.
fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for item in items {
        if !item.pax.is_empty() {
            builder.append_pax_extensions(item.pax.iter().copied()).unwrap();
        }
        let mut header = ::tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..item.path.len()].copy_from_slice(item.path.as_bytes());
        old.linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(::tar::EntryType::new(item.kind));
        header.set_mode(item.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(item.content.len() as u64);
        header.set_cksum();
        builder.append(&header, item.content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A directory for the layer, with something beside it that must not change.
struct Place {
    outside: TempDir,
}

impl Place {
    fn new() -> Place {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("layer")).unwrap();
        fs::write(outside.path().join("secret"), "untouched").unwrap();
        Place { outside }
    }

    fn root(&self) -> std::path::PathBuf {
        self.outside.path().join("layer")
    }

    fn unpack_with(&self, items: &[Item<'_>], limits: Limits) -> Result<Report, UnpackError> {
        let root = fs::File::open(self.root()).unwrap();
        let result = unpack(root.as_fd(), &archive(items)[..], Owners::Ignored, limits);
        assert_eq!(fs::read(self.outside.path().join("secret")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(self.outside.path()).unwrap().count(), 2);
        result
    }

    fn unpack(&self, items: &[Item<'_>]) -> Result<Report, UnpackError> {
        self.unpack_with(items, Limits::default())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(path)).unwrap()
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let stat = self.stat(path);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 100];
        let len = rustix::fs::getxattr(self.root().join(path), name, &mut value[..]).ok()?;
        value.truncate(len);
        Some(value)
    }
}

#[test]
fn files_keep_mode_time_content_and_links() {
    let place = Place::new();
    let report = place
        .unpack(&[
            Item { mode: 0o1777, ..item(b'5', "./tmp/") },
            Item { mode: 0o4755, ..file("bin/su", b"program") },
            Item { pax: &[("SCHILY.xattr.user.note", b"x"), ("mtime", b"12.5")], ..file("bin/noted", b"") },
            link(b'1', "bin/also-su", "bin/su"),
            link(b'2', "sbin", "bin"),
            link(b'1', "bin/through-link", "sbin/su"),
            Item { mode: 0o600, ..item(b'6', "fifo") },
            Item { mode: 0o500, ..item(b'5', "closed") },
            file("closed/inside", b"1"),
        ])
        .unwrap();
    assert_eq!(place.stat("tmp").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(place.stat("bin/su").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(place.stat("bin/su").nlink(), 3);
    assert_eq!(place.stat("bin/su").ino(), place.stat("bin/through-link").ino());
    for path in ["tmp", "bin/su", "sbin", "fifo", "closed", "closed/inside"] {
        assert_eq!(place.stat(path).mtime(), 1_000_000_000, "{path}");
    }
    assert_eq!((place.stat("bin/noted").mtime(), place.stat("bin/noted").mtime_nsec()), (12, 500_000_000));
    assert_eq!(place.xattr("bin/noted", "user.note").unwrap(), b"x");
    assert!(place.stat("fifo").file_type().is_fifo());
    assert_eq!(place.stat("closed").permissions().mode() & 0o7777, 0o500);
    assert_eq!(report.implied, [b"bin".to_vec()]);
    assert_eq!((report.entries, report.bytes, report.has_root), (9, 8, false));
}

#[test]
fn whiteouts_hide_what_is_below_and_not_what_is_here() {
    let place = Place::new();
    place
        .unpack(&[
            item(b'0', "etc/.wh.gone"),
            item(b'5', "srv"),
            item(b'0', "srv/.wh..wh..opq"),
            // Before and after an entry of the same name.
            item(b'0', ".wh.file1"),
            file("file1", b"new"),
            file("file2", b"new"),
            item(b'0', ".wh.file2"),
            item(b'0', ".wh.dir1"),
            item(b'5', "dir1"),
            item(b'5', "dir2"),
            item(b'0', ".wh.dir2"),
            item(b'0', ".wh.dir3"),
            file("dir3/implied", b"x"),
            item(b'0', ".wh..wh.plnk"),
        ])
        .unwrap();
    assert!(place.is_whiteout("etc/gone"));
    assert_eq!((place.read("file1"), place.read("file2")), ("new".into(), "new".into()));
    for path in ["srv", "dir1", "dir2", "dir3"] {
        assert_eq!(place.xattr(path, "user.overlay.opaque").unwrap(), b"y", "{path}");
    }
    assert!(place.xattr("etc", "user.overlay.opaque").is_none());
    assert!(!place.root().join(".wh..wh.plnk").exists());
    for bad in [".wh.", ".wh..", "a/.wh..."] {
        assert!(Place::new().unpack(&[item(b'0', bad)]).is_err(), "{bad}");
    }
}

#[test]
fn the_last_entry_of_a_path_wins() {
    let place = Place::new();
    place
        .unpack(&[
            file("a", b"first"),
            file("a", b"second"),
            item(b'5', "d"),
            file("d/x/y", b"deep"),
            file("d", b"now a file"),
            file("f", b"file"),
            item(b'5', "f"),
            file("f/child", b"1"),
            link(b'2', "l", "a"),
            file("l", b"no longer a link"),
            item(b'5', "keep"),
            file("keep/child", b"1"),
            Item { mode: 0o700, ..item(b'5', "keep") },
        ])
        .unwrap();
    assert_eq!(place.read("a"), "second");
    assert_eq!(place.read("d"), "now a file");
    assert_eq!(place.read("f/child"), "1");
    assert_eq!(place.read("l"), "no longer a link");
    assert_eq!(place.read("keep/child"), "1");
    assert_eq!(place.stat("keep").permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_implied_directory_may_be_replaced_through_a_link() {
    let place = Place::new();
    let report = place
        .unpack(&[link(b'2', "a", "b"), file("a/d/c", b""), file("a/d", b"now a file"), item(b'6', "a")])
        .unwrap();
    assert_eq!(place.read("b/d"), "now a file");
    assert_eq!(report.implied, [b"b".to_vec()]);
}

#[test]
fn no_path_leaves_the_layer() {
    for path in ["../secret", "a/../../secret", "..", "a/..", "/../secret"] {
        let place = Place::new();
        assert!(matches!(place.unpack(&[file(path, b"x")]), Err(UnpackError::Path { .. })), "{path}");
    }
    let place = Place::new();
    place
        .unpack(&[
            file("/secret", b"inside"),
            link(b'2', "up", "../../.."),
            file("up/secret", b"root of the layer"),
            link(b'2', "absolute", "/nowhere/yet"),
            file("absolute/new", b"made"),
            link(b'2', "chain", "absolute/../../x"),
            file("chain/y", b"made too"),
        ])
        .unwrap();
    assert_eq!(place.read("secret"), "root of the layer");
    assert_eq!(place.read("nowhere/yet/new"), "made");
    assert_eq!(place.read("x/y"), "made too");
    for target in ["../secret", "/../secret", "up/secret", "missing", "", "self"] {
        let place = Place::new();
        let items = [link(b'2', "up", ".."), link(b'1', "self", target)];
        assert!(place.unpack(&items).unwrap_err().is_archive_at_fault(), "{target}");
    }
    // Links in a circle end.
    let place = Place::new();
    let circle = [link(b'2', "a", "b"), link(b'2', "b", "a"), file("a/x", b"")];
    assert!(matches!(place.unpack(&circle), Err(UnpackError::Path { .. })));
    let below_file = [file("a", b""), file("a/x", b"")];
    assert!(matches!(Place::new().unpack(&below_file), Err(UnpackError::Path { .. })));
}

#[test]
fn devices_and_attributes_of_the_host_are_left_out_and_named() {
    let place = Place::new();
    let report = place
        .unpack(&[
            item(b'3', "dev/null"),
            item(b'4', "dev/sda"),
            link(b'1', "dev/also-null", "dev/null"),
            Item {
                pax: &[("SCHILY.xattr.user.overlay.redirect", b"/x"), ("SCHILY.xattr.trusted.a", b"1")],
                ..file("f", b"")
            },
            item(b'Z', "odd"),
        ])
        .unwrap();
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 1);
    assert!(place.xattr("f", "user.overlay.redirect").is_none());
    let named: Vec<_> = report.skipped.iter().map(|skipped| skipped.path.as_str()).collect();
    assert_eq!(named, ["dev/null", "dev/sda", "dev/also-null", "f", "f", "odd"]);
    assert_eq!(report.skipped_count, 6);
}

#[test]
fn holes_of_sparse_files_stay_holes() {
    let place = Place::new();
    let map: &[(&str, &[u8])] = &[("GNU.sparse.size", b"1073741824"), ("GNU.sparse.map", b"536870912,3")];
    let report = place.unpack(&[Item { pax: map, ..file("disk", b"abc") }]).unwrap();
    let stat = place.stat("disk");
    assert_eq!(stat.len(), 1 << 30);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
    assert_eq!(report.bytes, 3);
    let mut bytes = [0; 4];
    rustix::io::pread(fs::File::open(place.root().join("disk")).unwrap(), &mut bytes[..], (1 << 29) - 1)
        .unwrap();
    assert_eq!(&bytes, b"\0abc");
}

#[test]
fn limits_stop_an_archive() {
    let few = Limits { bytes: 10, entries: 3, file_bytes: 8 };
    let rows: [(&[Item<'_>], bool); 4] = [
        (&[file("a", b"12345"), file("b", b"12345")], true),
        (&[file("a", b"12345"), file("b", b"123456")], false),
        (&[file("a", b"123456789")], false),
        (&[item(b'5', "a"), item(b'5', "a"), item(b'5', "a"), item(b'5', "a")], false),
    ];
    for (items, passes) in rows {
        let result = Place::new().unpack_with(items, few);
        assert_eq!(result.is_ok(), passes, "{result:?}");
    }
    let deep = "a/".repeat(49);
    let deeper: Vec<u8> = std::iter::repeat_n(deep.as_bytes(), 6).flatten().copied().collect();
    let pax: &[(&str, &[u8])] = &[("path", &deeper)];
    assert!(matches!(Place::new().unpack(&[Item { pax, ..item(b'0', "x") }]), Err(UnpackError::Path { .. })));
    let long = vec![b'n'; 256];
    let pax: &[(&str, &[u8])] = &[("path", &long)];
    assert!(matches!(Place::new().unpack(&[Item { pax, ..item(b'0', "x") }]), Err(UnpackError::Path { .. })));
}

#[test]
fn owners_outside_the_range_are_refused() {
    let place = Place::new();
    let root = fs::File::open(place.root()).unwrap();
    let pax: &[(&str, &[u8])] = &[("uid", b"65536")];
    let bytes = archive(&[Item { pax, ..file("f", b"") }]);
    for owners in [Owners::AsIs { limit: 65536 }, Owners::Shifted { base: 1_000_000, limit: 65536 }] {
        let error = unpack(root.as_fd(), &bytes[..], owners, Limits::default()).unwrap_err();
        assert!(matches!(error, UnpackError::Owner { uid: 65536, .. }), "{error}");
    }
}

#[test]
fn implied_directories_look_like_those_below() {
    let (lowest, middle, top) = (Place::new(), Place::new(), Place::new());
    lowest
        .unpack(&[
            Item { mode: 0o1777, ..item(b'5', "tmp") },
            Item { mode: 0o700, ..item(b'5', "root") },
            Item { mode: 0o700, ..item(b'5', "opaque") },
            Item { mode: 0o700, ..item(b'5', "opaque/sub") },
            Item { mode: 0o700, ..item(b'5', "gone") },
            Item { mode: 0o711, ..item(b'5', "deep") },
            Item { mode: 0o710, ..item(b'5', "deep/er") },
        ])
        .unwrap();
    middle
        .unpack(&[
            Item { mode: 0o750, ..item(b'5', "root") },
            item(b'0', ".wh.gone"),
            item(b'0', "opaque/.wh..wh..opq"),
        ])
        .unwrap();
    let paths = ["tmp/a", "root/a", "opaque/sub/a", "gone/a", "deep/er/a", "new/a"];
    let report = top.unpack(&paths.map(|path| file(path, b""))).unwrap();
    assert_eq!(report.implied.len(), 8);
    let open = |place: &Place| fs::File::open(place.root()).unwrap();
    let (lowest, middle, root) = (open(&lowest), open(&middle), open(&top));
    adopt_attributes(root.as_fd(), &report.implied, &[middle.as_fd(), lowest.as_fd()]).unwrap();
    let mode = |path: &str| top.stat(path).permissions().mode() & 0o7777;
    let rows = [
        ("tmp", 0o1777),
        ("root", 0o750),
        ("opaque", 0o755),
        ("opaque/sub", 0o755),
        ("gone", 0o755),
        ("deep", 0o711),
        ("deep/er", 0o710),
        ("new", 0o755),
    ];
    for (path, expected) in rows {
        assert_eq!(mode(path), expected, "{path}");
    }
    assert_eq!(top.stat("tmp").mtime(), 1_000_000_000);
}

#[test]
fn a_tree_is_removed_without_following_links() {
    let place = Place::new();
    let items = [file("d/e/f/g", b""), link(b'2', "d/out", "../../secret"), item(b'0', "d/.wh.x")];
    place.unpack(&items).unwrap();
    let root = fs::File::open(place.root()).unwrap();
    remove_tree(root.as_fd(), b"d").unwrap();
    remove_tree(root.as_fd(), b"d").unwrap();
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 0);
    assert!(place.outside.path().join("secret").exists());
}

/// Everything below a directory, with its kind.
fn listing(root: &Path, below: &Path, out: &mut Map<Vec<u8>, fs::FileType>) {
    for entry in fs::read_dir(below).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        out.insert(entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), kind);
        if kind.is_dir() {
            listing(root, &entry.path(), out);
        }
    }
}

const NAMES: [&str; 10] =
    ["a", "b", "a/b", "b/a", "a/b/c", "../secret", "/a", "./b", ".wh.a", "a/.wh..wh..opq"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_order_of_entries_stays_inside(
        choices in proptest::collection::vec((0usize..8, 0usize..NAMES.len(), 0usize..NAMES.len()), 0..24)
    ) {
        let kinds = [b'0', b'5', b'2', b'1', b'6', b'3', b'0', b'5'];
        let items: Vec<_> = choices
            .iter()
            .map(|(kind, path, target)| {
                let kind = kinds[*kind];
                let mut item = link(kind, NAMES[*path], if matches!(kind, b'1' | b'2') { NAMES[*target] } else { "" });
                if kind == b'0' {
                    item.content = b"x";
                }
                item
            })
            .collect();
        let place = Place::new();
        match place.unpack(&items) {
            Ok(_) => listing(&place.root(), &place.root(), &mut Map::new()),
            Err(error) => prop_assert!(error.is_archive_at_fault(), "{error:?}"),
        }
    }
}
