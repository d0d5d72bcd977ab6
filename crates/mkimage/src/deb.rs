// SPDX-License-Identifier: Apache-2.0
//! Debian packages, unpacked into memory. Only their files: scripts are not even read. What comes in here has its hash.

use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::tree::{Node, Tree};

/// Unpacks what `is_wanted` takes, by path without a slash at the front.
pub(crate) fn unpack(package: &[u8], is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<Tree> {
    let mut outer = ar::Archive::new(package);
    while let Some(member) = outer.next_entry() {
        let member = member.context("no Debian package")?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(packing) = name.trim_end_matches('/').strip_prefix("data.tar") else { continue };
        let reader: Box<dyn Read> = match packing {
            ".xz" => Box::new(lzma_rust2::XzReader::new(member, true)),
            ".zst" => Box::new(zstd::stream::read::Decoder::new(member)?),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            "" => Box::new(member),
            other => bail!("a package packed with {other} cannot be read"),
        };
        return inner(reader, is_wanted);
    }
    bail!("a package without files")
}

fn inner(reader: Box<dyn Read + '_>, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = plain(&entry.path()?)?;
        if path.is_empty() || !is_wanted(&path) {
            continue;
        }
        let header = entry.header();
        let is_executable = header.mode()? & 0o111 != 0;
        match header.entry_type() {
            tar::EntryType::Directory => tree.directory(&path),
            tar::EntryType::Regular => {
                let mut content = Vec::with_capacity(entry.size() as usize);
                entry.read_to_end(&mut content)?;
                tree.file(&path, content, is_executable);
            }
            tar::EntryType::Symlink => {
                let to = entry.link_name()?.with_context(|| format!("{path} leads nowhere"))?;
                tree.link(&path, &to.to_string_lossy());
            }
            tar::EntryType::Link => {
                let to = plain(&entry.link_name()?.with_context(|| format!("{path} leads nowhere"))?)?;
                let node = tree.get(&to).cloned();
                tree.insert(
                    &path,
                    node.with_context(|| format!("{path} is a name of {to}, which is left out"))?,
                );
            }
            other => bail!("{path} is of a kind that no image holds: {other:?}"),
        }
    }
    Ok(tree)
}

fn plain(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
    let text = text.trim_start_matches("./").trim_end_matches('/');
    if text == "." || text.is_empty() {
        return Ok(String::new());
    }
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        bail!("{text} leads out of the package");
    }
    Ok(text.to_owned())
}

/// A file that may be packed by xz, as kernel modules are.
pub(crate) fn unxz(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    lzma_rust2::XzReader::new(bytes, true).read_to_end(&mut out)?;
    Ok(out)
}

/// That a file of the package is an ordinary one.
pub(crate) fn is_file(node: &Node) -> bool {
    matches!(node, Node::File { .. })
}
