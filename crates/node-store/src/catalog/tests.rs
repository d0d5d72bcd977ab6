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
    catalog.put_image(id(1), order(), image(&[1, 2])).unwrap();
    catalog.make_volume(key(1), &image(&[1, 2])).unwrap();
    catalog
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let place = tempfile::tempdir().unwrap();
    let before = filled(&place);
    let (after, dropped) = open(&place);
    assert_eq!(dropped, [""; 0]);
    assert_eq!((after.images(), after.volumes()), (before.images(), before.volumes()));
    assert_eq!(after.images()[&id(1)].order, order());
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
    assert!(catalog.images().is_empty());
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
    assert_eq!(catalog.sweep().unwrap(), 0);
    // The volume still needs its layers.
    catalog.drop_image(id(1)).unwrap();
    assert_eq!(catalog.sweep().unwrap(), 0);
    catalog.drop_volume(key(1)).unwrap();
    assert_eq!(catalog.sweep().unwrap(), 3);
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
