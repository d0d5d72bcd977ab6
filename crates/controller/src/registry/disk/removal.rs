// SPDX-License-Identifier: Apache-2.0
//! Removing from the registry's directory. Links go before the content they name, so that a power cut leaves content
//! without a link, which is collected later, and never a link without content.

use super::super::name::{RepositoryName, Tag, digest_hex};
use super::{Disk, digests_in, found, parent_of, sync_directory};
use model::id::Digest;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{PoisonError, RwLockWriteGuard};
use std::time::SystemTime;

/// Proof that nobody links anything meanwhile.
#[derive(Debug)]
pub(in super::super) struct Removing<'a>(
    #[allow(dead_code, reason = "held, not read")] RwLockWriteGuard<'a, ()>,
);

impl Disk {
    /// While the answer lives nothing is linked.
    pub(in super::super) fn removing(&self) -> Removing<'_> {
        Removing(self.changes.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a tag away; the manifest counts as old only from now on. False when there was no such tag.
    pub(in super::super) fn remove_tag(
        &self,
        _: &Removing<'_>,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> io::Result<bool> {
        let Some(digest) = self.tag(repository, tag)? else { return Ok(false) };
        super::touch(&self.manifest_path(repository, digest))?;
        remove_file(&self.tag_path(repository, tag))
    }

    /// Takes a manifest away from `repository`, with its place among the referrers of its subject.
    pub(in super::super) fn remove_manifest(
        &self,
        _: &Removing<'_>,
        repository: &RepositoryName,
        digest: Digest,
        subject: Option<Digest>,
    ) -> io::Result<bool> {
        if let Some(subject) = subject {
            let directory = self.referrers_path(repository, subject);
            remove_file(&directory.join(digest_hex(digest)))?;
            remove_if_empty(&directory)?;
        }
        remove_file(&self.manifest_path(repository, digest))
    }

    /// Takes a blob away from `repository`.
    pub(in super::super) fn remove_blob(
        &self,
        _: &Removing<'_>,
        repository: &RepositoryName,
        digest: Digest,
    ) -> io::Result<bool> {
        remove_file(&self.blob_link(repository, digest))
    }

    /// Removes the directories of a repository that hold nothing any more, and those above it.
    pub(in super::super) fn prune(&self, _: &Removing<'_>, repository: &RepositoryName) -> io::Result<()> {
        let directory = self.repository(repository);
        for own in ["_blobs", "_manifests", "_tags", "_referrers"] {
            remove_if_empty(&directory.join(own))?;
        }
        let top = self.root.join("repositories");
        let mut above = Some(directory.as_path());
        while let Some(path) = above.filter(|path| *path != top) {
            if !remove_if_empty(path)? {
                break;
            }
            above = path.parent();
        }
        Ok(())
    }

    /// Removes content that is older than `before`; gives its size when it was. The caller knows that nothing links it.
    pub(in super::super) fn remove_content(
        &self,
        _: &Removing<'_>,
        digest: Digest,
        before: SystemTime,
    ) -> io::Result<Option<u64>> {
        let size = self.old_content(digest, before)?;
        if size.is_some() {
            remove_file(&self.blob_path(digest))?;
        }
        Ok(size)
    }

    /// Size of content that is older than `before`.
    pub(in super::super) fn old_content(
        &self,
        digest: Digest,
        before: SystemTime,
    ) -> io::Result<Option<u64>> {
        let Some(metadata) = found(fs::metadata(self.blob_path(digest)))? else { return Ok(None) };
        Ok((metadata.modified()? < before).then_some(metadata.len()))
    }

    /// Blobs that `repository` may read.
    pub(in super::super) fn blobs(&self, repository: &RepositoryName) -> io::Result<Vec<Digest>> {
        digests_in(&self.repository(repository).join("_blobs"))
    }

    /// Whether a manifest of `repository` was stored, tagged or asked for after `before`.
    pub(in super::super) fn is_young_manifest(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        before: SystemTime,
    ) -> io::Result<bool> {
        let Some(metadata) = found(fs::metadata(self.manifest_path(repository, digest)))? else {
            return Ok(false);
        };
        Ok(metadata.modified()? >= before)
    }

    /// All content, linked or not.
    pub(in super::super) fn contents(&self) -> io::Result<Vec<Digest>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.root.join("blobs/sha256"))? {
            all.extend(digests_in(&entry?.path())?);
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Directories of repositories, also of those that hold blobs only, in ASCII order.
    pub(in super::super) fn all_repositories(&self) -> io::Result<Vec<RepositoryName>> {
        let mut names = self.repositories_with(&["_manifests", "_blobs"])?;
        names.dedup();
        Ok(names.iter().filter_map(|name| RepositoryName::parse(name).ok()).collect())
    }
}

/// Whether it was there.
fn remove_file(path: &Path) -> io::Result<bool> {
    if found(fs::remove_file(path))?.is_none() {
        return Ok(false);
    }
    sync_directory(parent_of(path)?)?;
    Ok(true)
}

/// Whether it is gone.
fn remove_if_empty(path: &Path) -> io::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => {
            sync_directory(parent_of(path)?)?;
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty) => Ok(false),
        Err(error) => Err(error),
    }
}
