// SPDX-License-Identifier: Apache-2.0
//! Whether a registry's directory is consistent: every tag has its manifest, every manifest is what its digest says and
//! has all it references. Looks only, so a registry may be open on the directory; what changes meanwhile is looked at
//! twice before it counts.

use super::MAX_MANIFEST_BYTES;
use super::disk::Disk;
use super::manifest::{What, parse};
use super::name::{RepositoryName, Tag};
use std::io;
use std::path::Path;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub repository: String,
    pub what: String,
}

/// Looks at a directory. Blocks.
pub fn examine(directory: &Path) -> io::Result<Vec<Finding>> {
    let disk = Disk::look(directory);
    let mut findings = Vec::new();
    for repository in disk.all_repositories()? {
        let first = look(&disk, &repository)?;
        if first.is_empty() {
            continue;
        }
        let second = look(&disk, &repository)?;
        let what = first.into_iter().filter(|what| second.contains(what));
        findings.extend(what.map(|what| Finding { repository: repository.to_string(), what }));
    }
    Ok(findings)
}

fn look(disk: &Disk, repository: &RepositoryName) -> io::Result<Vec<String>> {
    let mut findings = Vec::new();
    let manifests = disk.manifests(repository)?;
    for tag in disk.tags(repository)?.unwrap_or_default() {
        let Ok(name) = Tag::parse(&tag) else { continue };
        match disk.tag(repository, &name)? {
            Some(digest) if manifests.contains(&digest) => {}
            Some(digest) => findings.push(format!("tag {tag} names manifest {digest}, which is not there")),
            None => findings.push(format!("tag {tag} cannot be read")),
        }
    }
    for digest in manifests {
        let stored = match disk.manifest(repository, digest, MAX_MANIFEST_BYTES as u64) {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                findings.push(format!("manifest {digest} has no content"));
                continue;
            }
            Err(error) => {
                findings.push(format!("manifest {digest}: {error}"));
                continue;
            }
        };
        let Ok(parsed) = parse(&stored.bytes, Some(&stored.media_type)) else {
            findings.push(format!("manifest {digest} cannot be read"));
            continue;
        };
        // A mirror has of an image what somebody asked for.
        for need in parsed.needs.iter().filter(|_| !super::mirror::is_mirrored(repository)) {
            let size = match need.what {
                What::Blob => disk.blob_size(repository, need.digest)?,
                What::Manifest => disk.manifest_size(repository, need.digest)?,
            };
            match size {
                Some(size) if size == need.size => {}
                Some(size) => {
                    findings.push(format!(
                        "{} of manifest {digest} has {size} bytes, not {}",
                        need.digest, need.size
                    ));
                }
                None => findings.push(format!("manifest {digest} needs {}, which is not there", need.digest)),
            }
        }
    }
    Ok(findings)
}
