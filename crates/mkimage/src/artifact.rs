// SPDX-License-Identifier: Apache-2.0
//! An update file as an Edge Container of LF Edge: one layer that is a raw disk with the role `disk-root`, in an OCI layout that
//! skopeo and oras copy into a registry. The same file gives the same digests every time.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use disk::update::{MANIFEST, Manifest, Sum};
use disk::verity::hex;
use serde_json::{Value, json};

use crate::fetch::sha256;
use crate::update::{read_at, table};

const LAYER: &str = "application/vnd.lfedge.disk.layer.v1+raw";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const CHUNK_BYTES: usize = 1 << 20;

/// What was made, for people.
#[derive(Debug)]
pub struct Packed {
    pub version: String,
    /// Of the manifest.
    pub digest: String,
}

/// Makes the layout in a directory, under the version as its tag.
pub fn pack(update: &Path, out: &Path) -> anyhow::Result<Packed> {
    let named = || format!("update {}", update.display());
    let file = File::open(update).with_context(named)?;
    let table = table(&file).with_context(named)?;
    let first = table.partitions.get(&MANIFEST).context("it is no update file").with_context(named)?;
    let manifest = Manifest::parse(&read_at(&file, first)?).with_context(named)?.manifest;
    let blobs = out.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
    let (sum, size) = copy(update, &blobs).with_context(named)?;
    let put = |document: &Value| -> anyhow::Result<(String, usize)> {
        let text = serde_json::to_string(document)?;
        let sum = sha256(text.as_bytes());
        fs::write(blobs.join(&sum), &text)?;
        Ok((sum, text.len()))
    };
    let (config, config_bytes) = put(&json!({
        "architecture": manifest.architecture,
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    }))?;
    let (image, image_bytes) = put(&json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": { "mediaType": CONFIG, "digest": format!("sha256:{config}"), "size": config_bytes },
        "layers": [{
            "mediaType": LAYER,
            "digest": format!("sha256:{sum}"),
            "size": size,
            "annotations": {
                "org.lfedge.eci.mediaType": LAYER,
                "org.lfedge.eci.role": "disk-root",
                "org.opencontainers.image.title": "disk-root-node.update",
            },
        }],
        "annotations": { "org.opencontainers.image.version": manifest.version },
    }))?;
    let digest = format!("sha256:{image}");
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": IMAGE,
            "digest": digest,
            "size": image_bytes,
            "annotations": { "org.opencontainers.image.ref.name": manifest.version },
        }],
    });
    fs::write(out.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}\n")?;
    fs::write(out.join("index.json"), serde_json::to_string(&index)?)?;
    Ok(Packed { version: manifest.version, digest })
}

/// Copies the file under its sum.
fn copy(update: &Path, blobs: &Path) -> anyhow::Result<(String, u64)> {
    let mut from = File::open(update)?;
    let mut to = tempfile::NamedTempFile::new_in(blobs)?;
    let (mut sum, mut size, mut chunk) = (Sum::default(), 0, vec![0; CHUNK_BYTES]);
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        sum.add(&chunk[..count]);
        to.write_all(&chunk[..count])?;
        size += count as u64;
    }
    let name = hex(&sum.hash());
    to.persist(blobs.join(&name))?;
    Ok((name, size))
}
