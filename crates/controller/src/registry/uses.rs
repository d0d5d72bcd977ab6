// SPDX-License-Identifier: Apache-2.0
//! Images that somebody needs: they are neither deleted nor collected. Who needs what is the owner's knowledge.

use super::Registry;
use super::error::RegistryError;
use super::manifest::{What, load};
use super::name::{Reference, RepositoryName};
use model::id::Digest;
use std::collections::BTreeMap;

/// One image that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub repository: RepositoryName,
    pub reference: Reference,
    /// `app/hello`.
    pub by: String,
}

/// Says which images are needed now. Called for every delete and once per collection; it must answer from memory.
pub trait Uses: Send + Sync + 'static {
    fn uses(&self) -> Vec<Use>;
}

/// What a registry knows before its owner says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct NoUses;

impl Uses for NoUses {
    fn uses(&self) -> Vec<Use> {
        Vec::new()
    }
}

/// Manifests of a repository that are needed, with everything they lead to, and by whom.
pub(super) fn needed_manifests(
    registry: &Registry,
    uses: &[Use],
    repository: &RepositoryName,
) -> Result<BTreeMap<Digest, String>, RegistryError> {
    let mut needed = BTreeMap::new();
    for one in uses.iter().filter(|one| one.repository == *repository) {
        let root = match &one.reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => registry.disk.tag(repository, tag)?,
        };
        let mut pending: Vec<Digest> = root.into_iter().collect();
        while let Some(digest) = pending.pop() {
            if needed.contains_key(&digest) {
                continue;
            }
            // One that cannot be read is needed all the same.
            let read = load(registry, repository, digest).ok().flatten();
            let needs = read.iter().flat_map(|(_, parsed)| &parsed.needs);
            pending.extend(needs.filter(|need| need.what == What::Manifest).map(|need| need.digest));
            needed.insert(digest, one.by.clone());
        }
    }
    Ok(needed)
}
