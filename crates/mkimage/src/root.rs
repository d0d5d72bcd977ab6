// SPDX-License-Identifier: Apache-2.0
//! The root: a tree becomes an erofs, and its hash tree.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use disk::verity;
use uuid::Uuid;

use crate::fetch::sha256;
use crate::tools::{self, Tools};
use crate::tree::Tree;

/// Bytes compressed at once: larger is smaller on disk, and more to read for one page.
const CLUSTER: u32 = 65536;

#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) data: Vec<u8>,
    pub(crate) tree: Vec<u8>,
    pub(crate) verity: verity::Root,
}

pub(crate) fn make(tree: &Tree, time: i64, tools: &Tools, work: &Path) -> anyhow::Result<Root> {
    let (tar, image) = (work.join("root.tar"), work.join("root.erofs"));
    let packed = tree.to_tar(time)?;
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, sha256(&packed).as_bytes());
    // itself, and what it becomes
    crate::build::check_space(work, 2 * packed.len())?;
    fs::write(&tar, &packed).with_context(|| format!("cannot write {}", tar.display()))?;
    let mut command = tools.command("usr/bin/mkfs.erofs");
    command
        .args(["--quiet", "--tar=f", "-x-1", "-zzstd,level=9"])
        .arg(format!("-C{CLUSTER}"))
        .arg(format!("-T{time}"))
        .arg(format!("-U{id}"))
        .arg(&image)
        .arg(&tar);
    tools::run(&mut command, "mkfs.erofs")?;
    let mut data = fs::read(&image).context("mkfs.erofs wrote no image")?;
    if data.is_empty() {
        bail!("mkfs.erofs wrote an empty image");
    }
    data.resize(data.len().next_multiple_of(verity::BLOCK_BYTES), 0);
    // the superblock of the tree names the tree it belongs to; the kernel does not look at it
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, sha256(&data).as_bytes());
    let (tree, verity) = verity::tree(&data, id);
    Ok(Root { data, tree, verity })
}
