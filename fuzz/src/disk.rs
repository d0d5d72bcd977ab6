// SPDX-License-Identifier: Apache-2.0
//! Files of our own after a power cut or a bad block: dropped with a reason, never a crash, and writing goes on.

use std::fs;
use std::path::Path;

use node_agent::agent::disk::Disk;
use node_store::catalog::Catalog;
use oci::unpack::Owners;

/// Checksums are made right: hardly any change would survive them.
fn records(data: &[u8], head: &[u8]) -> Vec<u8> {
    let mut out = head.to_vec();
    let mut parts = super::Numbers(data);
    while let Some(length) = parts.next() {
        let body = parts.take(usize::from(length));
        let mut crc = flate2::Crc::new();
        crc.update(body);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc.sum().to_le_bytes());
        out.extend_from_slice(body);
    }
    out
}

/// An even first byte: the file as it is; an odd one: records with sound checksums.
fn file(data: &[u8], head: &[u8]) -> Vec<u8> {
    match data.split_first() {
        Some((choice, data)) if choice % 2 == 1 => records(data, head),
        Some((_, data)) => data.to_vec(),
        None => Vec::new(),
    }
}

fn write(path: &Path, content: &[u8]) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("a directory can be made");
    }
    fs::write(path, content).expect("a file can be written");
}

pub(crate) fn segments(data: &[u8]) {
    let place = super::place();
    let (old, new) = data.split_at(data.len() / 3);
    write(&place.path().join("info.seg"), &file(new, b"SELVSEG1\n"));
    if !old.is_empty() {
        write(&place.path().join("info.old.seg"), &file(old, b"SELVSEG1\n"));
    }
    controller::untrusted::segments(place.path());
}

pub(crate) fn log_ring(data: &[u8]) {
    let place = super::place();
    let (taken, segment) = data.split_at(data.len().min(8));
    write(&place.path().join("00000007.seg"), &file(segment, b"selvedge-log format 1\n"));
    if data.len() % 2 == 1 {
        write(&place.path().join("taken"), taken);
    }
    node_base::untrusted::log_ring(place.path());
}

pub(crate) fn planner(data: &[u8]) {
    let place = super::place();
    let path = place.path().join("state");
    write(&path, data);
    let _ = node_base::untrusted::planner_state(place.path());
    write(&path, &node_base::untrusted::planner_file(data));
    let _ = node_base::untrusted::planner_state(place.path());
}

/// Files of the store: what is damaged is dropped, and nothing is found damaged twice.
pub(crate) fn catalog(data: &[u8]) {
    const HEX: &str = "00000000000000000000000000000000000000000000000000000000000000ff";
    let place = super::place();
    let root = place.path();
    let image = "60000000-0000-4000-8000-000000000001";
    let paths = [
        format!("layer-info/{HEX}"),
        format!("images/{image}"),
        format!("volumes/{image}#0/volume"),
        format!("blobs/{HEX}"),
        "trash/18446744073709551615".to_owned(),
        "tmp/1".to_owned(),
    ];
    fs::create_dir_all(root.join("layers").join(HEX)).expect("a directory can be made");
    for (path, content) in paths.iter().zip(super::parts(data)) {
        write(&root.join(path), content);
    }
    let (catalog, _) = Catalog::open(root, Owners::Ignored).expect("damage is no reason to refuse");
    let _ = catalog.content_bytes();
    catalog.sweep(&std::collections::BTreeSet::new()).expect("what is not needed goes");
    drop(catalog);
    let (_, dropped) = Catalog::open(root, Owners::Ignored).expect("and again");
    assert!(dropped.is_empty(), "{dropped:?}");
}

/// Files of the agent.
pub(crate) fn saved(data: &[u8]) {
    let place = super::place();
    let names = ["uuid", "certs", "floor", "lastconfig", "lastconfig.bak", "queue/00000001", "queue/x"];
    for (name, content) in names.iter().zip(super::parts(data)) {
        write(&place.path().join(name), content);
    }
    let disk = Disk::new(service::files::Directory::new(place.path()));
    let (_, _, _) = (disk.device(), disk.certs(), disk.floor_s());
    for config in disk.configs() {
        disk.save_config(&config).expect("what was read can be written");
        assert_eq!(disk.configs().first(), Some(&config));
    }
    for info in disk.queue() {
        let _ = disk.erase_info(&info.key);
    }
}
