// SPDX-License-Identifier: Apache-2.0
//! Deleting over HTTP: a tag, a manifest with all its tags, or a blob. What is deleted is gone from its repository at
//! once; its bytes go with the next collection. Refused with the reason is what an app uses, and what a manifest of the
//! same repository references: a reader never meets half an image.

use super::disk::Removing;
use super::error::RegistryError;
use super::manifest::load;
use super::name::{Reference, RepositoryName, Tag};
use super::uses::needed_manifests;
use super::{Registry, blocking};
use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use model::id::Digest;
use std::sync::Arc;

fn accepted() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(header::CONTENT_LENGTH, 0.into());
    response
}

/// Answers `DELETE` of a manifest or tag.
pub(super) async fn manifest(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    reference: Reference,
) -> Result<Response<Body>, RegistryError> {
    let registry = registry.clone();
    blocking(move || {
        let removing = registry.disk.removing();
        match &reference {
            Reference::Tag(tag) => delete_tag(&registry, &removing, &repository, tag)?,
            Reference::Digest(digest) => delete_manifest(&registry, &removing, &repository, *digest)?,
        }
        Ok(registry.disk.prune(&removing, &repository)?)
    })
    .await?;
    Ok(accepted())
}

fn delete_tag(
    registry: &Registry,
    removing: &Removing<'_>,
    repository: &RepositoryName,
    tag: &Tag,
) -> Result<(), RegistryError> {
    let is_used = |reference: &Reference| matches!(reference, Reference::Tag(used) if used == tag);
    let user =
        registry.uses.uses().into_iter().find(|one| one.repository == *repository && is_used(&one.reference));
    if let Some(user) = user {
        return Err(in_use(format!("tag {}", tag.as_str()), &user.by));
    }
    if !registry.disk.remove_tag(removing, repository, tag)? {
        return Err(RegistryError::ManifestUnknown);
    }
    tracing::info!(%repository, tag = tag.as_str(), "tag deleted");
    Ok(())
}

fn in_use(what: String, user: &str) -> RegistryError {
    RegistryError::InUse { what, by: format!("{user} uses it; change or delete {user} first") }
}

fn delete_manifest(
    registry: &Registry,
    removing: &Removing<'_>,
    repository: &RepositoryName,
    digest: Digest,
) -> Result<(), RegistryError> {
    if registry.disk.manifest_size(repository, digest)?.is_none() {
        return Err(RegistryError::ManifestUnknown);
    }
    let needed = needed_manifests(registry, &registry.uses.uses(), repository)?;
    if let Some(user) = needed.get(&digest) {
        return Err(in_use(format!("manifest {digest}"), user));
    }
    refuse_when_referenced(registry, repository, digest, "manifest")?;
    for tag in registry.disk.tags(repository)?.unwrap_or_default() {
        let Ok(tag) = Tag::parse(&tag) else { continue };
        if registry.disk.tag(repository, &tag)? == Some(digest) {
            registry.disk.remove_tag(removing, repository, &tag)?;
        }
    }
    // One that cannot be read any more is deleted all the same.
    let subject = load(registry, repository, digest).ok().flatten().and_then(|(_, parsed)| parsed.subject);
    registry.disk.remove_manifest(removing, repository, digest, subject)?;
    tracing::info!(%repository, %digest, "manifest deleted");
    Ok(())
}

/// Answers `DELETE` of a blob.
pub(super) async fn blob(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    digest: Digest,
) -> Result<Response<Body>, RegistryError> {
    let registry = registry.clone();
    blocking(move || {
        let removing = registry.disk.removing();
        if registry.disk.blob_size(&repository, digest)?.is_none() {
            return Err(RegistryError::BlobUnknown);
        }
        refuse_when_referenced(&registry, &repository, digest, "blob")?;
        registry.disk.remove_blob(&removing, &repository, digest)?;
        tracing::info!(%repository, %digest, "blob deleted");
        Ok(registry.disk.prune(&removing, &repository)?)
    })
    .await?;
    Ok(accepted())
}

fn refuse_when_referenced(
    registry: &Registry,
    repository: &RepositoryName,
    digest: Digest,
    what: &str,
) -> Result<(), RegistryError> {
    for holder in registry.disk.manifests(repository)?.into_iter().filter(|holder| *holder != digest) {
        let Ok(Some((_, parsed))) = load(registry, repository, holder) else { continue };
        if parsed.needs.iter().any(|need| need.digest == digest) {
            return Err(RegistryError::InUse {
                what: format!("{what} {digest}"),
                by: format!("manifest {holder} references it; delete that first"),
            });
        }
    }
    Ok(())
}
