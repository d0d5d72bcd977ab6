// SPDX-License-Identifier: Apache-2.0
//! Garbage collection: mark and sweep, while pushes and pulls go on.
//!
//! ```text
//!  kept in a repository    manifests that are tagged (but in a mirror that is no more), young, or used by an app
//!                          + all they reference + those whose subject is kept
//!  collected               other manifests → blob links no kept manifest references → content no repository links
//! ```
//!
//! Young is what was stored, linked, tagged, untagged or asked for within the grace period. Each repository is marked and
//! swept in one go with [`Removing`] held, then each directory of content, so that a push waits for milliseconds. What a
//! push has uploaded or found present is young, so it is there when the push's manifest comes, provided that comes within
//! the grace period. A manifest that cannot be read keeps every blob of its repository.

use super::disk::Removing;
use super::error::RegistryError;
use super::manifest::{Parsed, What, load};
use super::name::{RepositoryName, Tag};
use super::uses::{Use, needed_manifests};
use super::{Registry, mirror};
use model::id::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, SystemTime};

/// Grace period of the collections that run by themselves: a push, or a node's pull that has read a manifest, ends
/// within a day.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// The shortest grace period: a push over a slow line, and twice the precision with which use is noted.
pub const MIN_GRACE: Duration = Duration::from_secs(3600);

/// Whether anything is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    Real,
    /// Only says what would be.
    Dry,
}

/// What was collected, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    pub manifests: Vec<(RepositoryName, Digest)>,
    /// Links of blobs from repositories.
    pub links: usize,
    /// Content without any link, with its size.
    pub contents: Vec<(Digest, u64)>,
    /// Repositories whose blobs were all kept since a manifest cannot be read.
    pub unreadable: Vec<RepositoryName>,
}

impl Collected {
    /// Bytes of content.
    pub fn bytes(&self) -> u64 {
        self.contents.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Why a collection stopped.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("a grace period under {} s could take what a push needs", MIN_GRACE.as_secs())]
    Grace,
    #[error("collect garbage of the registry")]
    Io(#[source] io::Error),
}

impl Registry {
    /// Collects what nobody can reach any more. Blocks.
    pub fn collect(&self, now: SystemTime, grace: Duration, run: Run) -> Result<Collected, CollectError> {
        if grace < MIN_GRACE {
            return Err(CollectError::Grace);
        }
        let before = now.checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut out = Collected::default();
        let mut linked = BTreeSet::new();
        let uses = self.uses.uses();
        for repository in self.disk.all_repositories().map_err(CollectError::Io)? {
            let removing = self.disk.removing();
            let round = Round { registry: self, removing: &removing, before, run, uses: &uses };
            round.repository(&repository, &mut linked, &mut out).map_err(|error| match error {
                RegistryError::Internal(error) => CollectError::Io(error),
                other => CollectError::Io(io::Error::other(other)),
            })?;
        }
        self.collect_contents(before, run, &linked, &mut out).map_err(CollectError::Io)?;
        if run == Run::Real {
            let (manifests, contents) = (out.manifests.len(), out.contents.len());
            tracing::info!(manifests, contents, bytes = out.bytes(), "garbage of the registry collected");
        }
        Ok(out)
    }

    /// `linked` may lack what was linked since it was made; that is young.
    fn collect_contents(
        &self,
        before: SystemTime,
        run: Run,
        linked: &BTreeSet<Digest>,
        out: &mut Collected,
    ) -> io::Result<()> {
        for digest in self.disk.contents()?.into_iter().filter(|digest| !linked.contains(digest)) {
            let size = match run {
                Run::Dry => self.disk.old_content(digest, before)?,
                Run::Real => self.disk.remove_content(&self.disk.removing(), digest, before)?,
            };
            out.contents.extend(size.map(|size| (digest, size)));
        }
        Ok(())
    }
}

struct Round<'a> {
    registry: &'a Registry,
    removing: &'a Removing<'a>,
    before: SystemTime,
    run: Run,
    uses: &'a [Use],
}

/// The manifests of one repository as they were read.
#[derive(Default)]
struct Marked {
    all: BTreeMap<Digest, Option<Parsed>>,
    kept: BTreeSet<Digest>,
}

impl Marked {
    /// Keeps a manifest and all it leads to.
    fn keep(&mut self, root: Digest) {
        let mut pending = vec![root];
        while let Some(digest) = pending.pop() {
            let Some(read) = self.all.get(&digest) else { continue };
            if self.kept.insert(digest) {
                let needs = read.iter().flat_map(|parsed| &parsed.needs);
                pending.extend(needs.filter(|need| need.what == What::Manifest).map(|need| need.digest));
            }
        }
    }

    /// Keeps what refers to something kept, until nothing is added.
    fn keep_referrers(&mut self) {
        loop {
            let subject_of = |read: &Option<Parsed>| read.as_ref().and_then(|parsed| parsed.subject);
            let more: Vec<Digest> = self
                .all
                .iter()
                .filter(|(digest, _)| !self.kept.contains(digest))
                .filter(|(_, read)| subject_of(read).is_some_and(|subject| self.kept.contains(&subject)))
                .map(|(digest, _)| *digest)
                .collect();
            if more.is_empty() {
                return;
            }
            more.into_iter().for_each(|digest| self.keep(digest));
        }
    }
}

impl Round<'_> {
    fn repository(
        &self,
        repository: &RepositoryName,
        linked: &mut BTreeSet<Digest>,
        out: &mut Collected,
    ) -> Result<(), RegistryError> {
        let disk = &self.registry.disk;
        let marked = self.mark(repository)?;
        let is_unreadable = marked.kept.iter().any(|digest| marked.all.get(digest) == Some(&None));
        if is_unreadable {
            out.unreadable.push(repository.clone());
        }
        for (digest, read) in marked.all.iter().filter(|(digest, _)| !marked.kept.contains(digest)) {
            if self.run == Run::Real {
                let subject = read.as_ref().and_then(|parsed| parsed.subject);
                self.remove_tags(repository, *digest)?;
                disk.remove_manifest(self.removing, repository, *digest, subject)?;
            }
            out.manifests.push((repository.clone(), *digest));
        }
        let referenced: BTreeSet<Digest> = marked
            .kept
            .iter()
            .filter_map(|digest| marked.all.get(digest)?.as_ref())
            .flat_map(|parsed| parsed.needs.iter().map(|need| need.digest))
            .collect();
        for digest in disk.blobs(repository)? {
            let is_kept = is_unreadable
                || referenced.contains(&digest)
                || disk.blob_used(repository, digest)? >= self.before;
            if is_kept {
                linked.insert(digest);
                continue;
            }
            if self.run == Run::Real {
                disk.remove_blob(self.removing, repository, digest)?;
            }
            out.links += 1;
        }
        linked.extend(marked.kept);
        if self.run == Run::Real {
            disk.prune(self.removing, repository)?;
        }
        Ok(())
    }

    /// Tags of a manifest that goes: only a mirror that is no more has such.
    fn remove_tags(&self, repository: &RepositoryName, digest: Digest) -> Result<(), RegistryError> {
        let disk = &self.registry.disk;
        for tag in disk.tags(repository)?.unwrap_or_default() {
            let Ok(tag) = Tag::parse(&tag) else { continue };
            if disk.tag(repository, &tag)? == Some(digest) {
                disk.remove_tag(self.removing, repository, &tag)?;
            }
        }
        Ok(())
    }

    fn mark(&self, repository: &RepositoryName) -> Result<Marked, RegistryError> {
        let disk = &self.registry.disk;
        let mut marked = Marked::default();
        for digest in disk.manifests(repository)? {
            let read = match load(self.registry, repository, digest) {
                Ok(read) => read.map(|(_, parsed)| parsed),
                Err(error) => {
                    tracing::error!(%repository, %digest, %error, "a stored manifest cannot be read");
                    None
                }
            };
            marked.all.insert(digest, read);
        }
        let mut roots: Vec<Digest> =
            needed_manifests(self.registry, self.uses, repository)?.into_keys().collect();
        let is_left = mirror::is_mirrored(repository) && !mirror::is_wanted(self.registry, repository);
        let tags = if is_left { Vec::new() } else { disk.tags(repository)?.unwrap_or_default() };
        for tag in tags {
            let Ok(tag) = Tag::parse(&tag) else { continue };
            roots.extend(disk.tag(repository, &tag)?);
        }
        for digest in marked.all.keys() {
            if disk.is_young_manifest(repository, *digest, self.before)? {
                roots.push(*digest);
            }
        }
        roots.into_iter().for_each(|digest| marked.keep(digest));
        marked.keep_referrers();
        Ok(marked)
    }
}
