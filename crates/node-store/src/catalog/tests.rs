// SPDX-License-Identifier: Apache-2.0

use model::desired::ImageConfig;
use model::id::VolumeId;
use model::observed::Blob;
use tempfile::TempDir;

use super::*;

fn open(place: &TempDir) -> (Catalog, Vec<Dropped>) {
    Catalog::open(place.path(), Owners::Ignored).unwrap()
}

fn id(number: u8) -> ContentTreeId {
    format!("00000000-0000-4000-8000-0000000000{number:02x}").parse().unwrap()
}

fn key(number: u8) -> VolumeKey {
    VolumeKey { id: VolumeId(id(number).0), generation: 3 }
}

fn image(layers: &[u8]) -> Image {
    Image {
        digest: Digest([7; 32]),
        total_bytes: 1,
        config: ImageConfig { cmd: vec!["x".into()], ..ImageConfig::default() },
        layers: layers.iter().map(|number| Digest([*number; 32])).collect(),
        blobs: vec![Blob { digest: digest::of(b"manifest"), size_bytes: 8, media_type: "m".into() }],
    }
}

fn order() -> Order {
    Order { generation: 1, digest: None, names: vec!["r/a latest".into()] }
}

/// A catalog with two layers, an image of both and a volume.
fn filled(place: &TempDir) -> Catalog {
    let (catalog, dropped) = open(place);
    assert!(dropped.is_empty());
    let mut finished = Vec::new();
    for number in [1, 2] {
        let temporary = catalog.temporary().unwrap();
        fs::write(temporary.join("file"), [number]).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o751)).unwrap();
        finished.push((temporary, Digest([number; 32]), LayerInfo::new(1, number == 1)));
    }
    catalog.put_layers(&finished).unwrap();
    catalog.put_blob(&digest::of(b"manifest"), b"manifest").unwrap();
    catalog.put_content(id(1), order(), Held::Image(image(&[1, 2]))).unwrap();
    catalog.make_volume(key(1), MadeVolume::Image(image(&[1, 2]))).unwrap();
    catalog
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let place = tempfile::tempdir().unwrap();
    let before = filled(&place);
    let (after, dropped) = open(&place);
    assert_eq!(dropped, [""; 0]);
    assert_eq!((after.contents(), after.volumes()), (before.contents(), before.volumes()));
    assert_eq!(after.contents()[&id(1)].order, order());
    assert_eq!(after.layer(&Digest([1; 32])), Some(LayerInfo::new(1, true)));
    assert_eq!(after.blob(&digest::of(b"manifest")).unwrap(), b"manifest");
    assert_eq!(after.content_bytes(), 2);
    let upper = fs::metadata(after.volume_path(key(1)).join("upper")).unwrap();
    assert_eq!(upper.permissions().mode() & 0o7777, 0o751);
}

#[test]
fn torn_things_are_dropped_with_a_reason() {
    let place = tempfile::tempdir().unwrap();
    drop(filled(&place));
    let hex = |number: u8| format!("{number:02x}").repeat(32);
    fs::write(place.path().join("layer-info").join(hex(2)), "{").unwrap();
    fs::write(place.path().join("blobs").join(&digest::of(b"manifest").to_string()[7..]), "spoiled").unwrap();
    fs::create_dir(place.path().join("layers/odd")).unwrap();
    fs::create_dir_all(place.path().join("volumes/odd#1/upper")).unwrap();
    fs::create_dir(place.path().join("tmp/9")).unwrap();
    let (catalog, dropped) = open(&place);
    assert_eq!(dropped.len(), 4, "{dropped:?}");
    assert!(catalog.contents().is_empty());
    // What an app wrote stays.
    assert_eq!(catalog.volumes().len(), 1);
    assert_eq!(catalog.blob(&digest::of(b"manifest")), None);
    assert_eq!(fs::read_dir(place.path().join("tmp")).unwrap().count(), 0);
    catalog.empty_trash().unwrap();
    assert_eq!(fs::read_dir(place.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn a_sweep_takes_only_what_nobody_needs() {
    let place = tempfile::tempdir().unwrap();
    let catalog = filled(&place);
    assert_eq!(catalog.sweep(&BTreeSet::new()).unwrap(), 0);
    // The volume still needs its layers.
    catalog.drop_content(id(1)).unwrap();
    assert_eq!(catalog.sweep(&BTreeSet::new()).unwrap(), 0);
    catalog.drop_volume(key(1)).unwrap();
    assert_eq!(catalog.sweep(&BTreeSet::new()).unwrap(), 3);
    catalog.empty_trash().unwrap();
    for name in ["blobs", "layers", "layer-info", "images", "volumes", "trash", "tmp"] {
        assert_eq!(fs::read_dir(place.path().join(name)).unwrap().count(), 0, "{name}");
    }
    assert_eq!(open(&place).1, [""; 0]);
}

#[test]
fn the_same_layer_from_two_pulls_is_kept_once() {
    let place = tempfile::tempdir().unwrap();
    let catalog = filled(&place);
    let temporary = catalog.temporary().unwrap();
    fs::write(temporary.join("other"), "x").unwrap();
    catalog.put_layers(&[(temporary.clone(), Digest([1; 32]), LayerInfo::new(9, false))]).unwrap();
    assert!(!temporary.exists());
    assert!(catalog.layer_path(&Digest([1; 32])).join("file").exists());
    assert_eq!(catalog.layer(&Digest([1; 32])), Some(LayerInfo::new(1, true)));
}

#[test]
fn volumes_grow_with_what_is_written() {
    let place = tempfile::tempdir().unwrap();
    let catalog = filled(&place);
    let empty = catalog.volume_bytes(key(1));
    fs::create_dir(catalog.volume_path(key(1)).join("upper/d")).unwrap();
    fs::write(catalog.volume_path(key(1)).join("upper/d/f"), vec![1; 100_000]).unwrap();
    assert!(catalog.volume_bytes(key(1)) >= empty + 100_000);
}

/// A catalog with a file, a copy of it in a volume, and a volume that is it.
fn with_files(place: &TempDir) -> (Catalog, Digest) {
    let catalog = open(place).0;
    let digest = digest::of(b"content");
    fs::write(catalog.partial_path(&digest), b"content").unwrap();
    catalog.put_file(&digest, &File::open(catalog.partial_path(&digest)).unwrap()).unwrap();
    let file = Blob { digest, size_bytes: 7, media_type: String::new() };
    catalog.put_content(id(1), order(), Held::File(file)).unwrap();
    catalog.make_volume(key(1), MadeVolume::File(digest)).unwrap();
    catalog.make_volume(key(2), MadeVolume::StoredFile(digest)).unwrap();
    catalog.make_volume(key(3), MadeVolume::Directory).unwrap();
    (catalog, digest)
}

#[test]
fn files_and_volumes_of_them_are_there_after_a_restart() {
    let place = tempfile::tempdir().unwrap();
    let (before, digest) = with_files(&place);
    fs::write(before.volume_path(key(1)).join("data"), b"changed").unwrap();
    let (after, dropped) = open(&place);
    assert_eq!(dropped, [""; 0]);
    assert_eq!((after.contents(), after.volumes()), (before.contents(), before.volumes()));
    assert_eq!((after.file_bytes(&digest), after.content_bytes()), (Some(7), 7));
    assert_eq!(fs::read(after.file_path(&digest)).unwrap(), b"content", "a copy is written, not the file");
    assert!(after.volume_path(key(3)).join("data").is_dir());
}

#[test]
fn a_file_stays_while_a_volume_is_it() {
    let place = tempfile::tempdir().unwrap();
    let (catalog, digest) = with_files(&place);
    let awaited = digest::of(b"coming");
    fs::write(catalog.partial_path(&awaited), b"com").unwrap();
    fs::write(catalog.partial_path(&digest::of(b"forgotten")), b"for").unwrap();
    catalog.drop_content(id(1)).unwrap();
    assert_eq!(catalog.sweep(&[awaited].into()).unwrap(), 1);
    assert!(catalog.file_path(&digest).exists() && catalog.partial_path(&awaited).exists());
    catalog.drop_volume(key(2)).unwrap();
    assert_eq!(catalog.sweep(&BTreeSet::new()).unwrap(), 2);
    assert_eq!(catalog.file_bytes(&digest), None);
}

#[test]
fn what_is_written_into_any_kind_of_volume_is_measured() {
    let place = tempfile::tempdir().unwrap();
    let (catalog, _) = with_files(&place);
    fs::write(catalog.volume_path(key(1)).join("data"), vec![1; 50_000]).unwrap();
    fs::write(catalog.volume_path(key(3)).join("data/f"), vec![1; 100_000]).unwrap();
    assert!(catalog.volume_bytes(key(1)) >= 50_000);
    assert_eq!(catalog.volume_bytes(key(2)), 0);
    assert!(catalog.volume_bytes(key(3)) >= 100_000);
}
