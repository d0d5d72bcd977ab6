// SPDX-License-Identifier: Apache-2.0
//! Mirrors: images of other registries under `mirror/NAME/…`, fetched when they are asked for, verified, kept.
//!
//! ```text
//!  GET manifest by tag ─▶ looked up within tag_fresh? ──yes──────────────────────────────▶ from here
//!                              │ no: ask the upstream ─▶ the same digest? ──yes───────────▶ from here
//!                              │                           │ no: fetch, verify, keep ────▶ from here
//!                              └ it does not answer ─▶ one of that tag is here? ──yes─────▶ from here
//!  GET by digest, blob ─▶ here? ──yes─────────────────────────────────────────────────────▶ from here
//!                          └ no: fetch, verify, keep ─────────────────────────────────────▶ from here
//! ```
//! A blob is fetched once however many ask for it, and to its end though they go away. Before one is fetched, blobs that
//! were not used for longest make room within the mirror's quota; those of images that an app uses stay. Nobody pushes
//! here. A repository of a mirror that is no more is collected as garbage once nothing uses it.

mod upstream;

use super::disk::Temporary;
use super::error::RegistryError;
use super::manifest::{self, MAX_MANIFEST_BYTES};
use super::name::{Reference, RepositoryName, Tag, digest_of, finished_digest, parse_digest};
use super::uses::needed_manifests;
use super::{Registry, blocking};
use model::id::Digest;
use ring::digest::{Context, SHA256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
pub use upstream::Upstream;
pub(super) use upstream::UpstreamError;

/// First component of the names of mirrored repositories.
const PREFIX: &str = "mirror/";
/// Tags whose last look is remembered; forgetting costs one question.
const MAX_TAGS: usize = 4096;
/// Blobs fetched at once: each takes a thread and a connection.
const MAX_FETCHES: usize = 16;
const CHUNK_BYTES: usize = 256 * 1024;
/// How often the free space is looked at while a blob arrives.
const SPACE_CHECK_BYTES: u64 = 64 * 1024 * 1024;
/// Blobs used this recently are not dropped for others: somebody may be reading the rest of their image. Twice as long
/// as the precision with which use is noted.
const IN_USE: Duration = Duration::from_secs(1200);

/// Says what is mirrored. Called per request; it must answer from memory.
pub trait Upstreams: Send + Sync + 'static {
    fn upstream(&self, name: &str) -> Option<Upstream>;
}

/// What a registry mirrors before its owner says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct NoUpstreams;

impl Upstreams for NoUpstreams {
    fn upstream(&self, _: &str) -> Option<Upstream> {
        None
    }
}

type Done = Option<Result<(), Failed>>;
/// A failure that several waiters get.
type Failed = Arc<RegistryError>;

/// What is under way, and when tags were looked up.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    fetches: Mutex<BTreeMap<(RepositoryName, Digest), watch::Receiver<Done>>>,
    tags: Mutex<BTreeMap<(RepositoryName, Tag), Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single map operations cannot leave it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a repository holds copies, of which not all parts need be here.
pub(super) fn is_mirrored(repository: &RepositoryName) -> bool {
    repository.as_str().starts_with(PREFIX)
}

/// The mirror's name and the repository at its upstream.
fn split(repository: &RepositoryName) -> Option<(&str, &str)> {
    repository.as_str().strip_prefix(PREFIX)?.split_once('/')
}

/// Whether a repository is one of a mirror that there is.
pub(super) fn is_wanted(registry: &Registry, repository: &RepositoryName) -> bool {
    split(repository).is_some_and(|(name, _)| registry.upstreams.upstream(name).is_some())
}

fn upstream_of(
    registry: &Registry,
    repository: &RepositoryName,
) -> Result<(Upstream, String), RegistryError> {
    let (name, rest) = split(repository).ok_or(RegistryError::NameUnknown)?;
    let upstream =
        registry.upstreams.upstream(name).ok_or_else(|| RegistryError::NoMirror(name.to_owned()))?;
    Ok((upstream, rest.to_owned()))
}

/// Nobody pushes into a mirror.
pub(super) fn refuse_push(repository: &RepositoryName) -> Result<(), RegistryError> {
    if is_mirrored(repository) { Err(RegistryError::Mirror) } else { Ok(()) }
}

/// Sees to it that a manifest is here, as new as it can be had.
pub(super) async fn ensure_manifest(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    reference: &Reference,
) -> Result<(), RegistryError> {
    let (registry, repository, reference) = (registry.clone(), repository.clone(), reference.clone());
    blocking(move || match &reference {
        Reference::Digest(digest) => {
            if registry.disk.manifest_size(&repository, *digest)?.is_some() {
                return Ok(());
            }
            fetch_manifest(&registry, &repository, &reference).map(drop)
        }
        Reference::Tag(tag) => ensure_tag(&registry, &repository, tag),
    })
    .await
}

fn ensure_tag(registry: &Registry, repository: &RepositoryName, tag: &Tag) -> Result<(), RegistryError> {
    let here = registry.disk.tag(repository, tag)?;
    let key = (repository.clone(), tag.clone());
    let is_fresh =
        lock(&registry.mirrors.tags).get(&key).is_some_and(|at| at.elapsed() < registry.limits.tag_fresh);
    if here.is_some() && is_fresh {
        return Ok(());
    }
    match renew_tag(registry, repository, tag, here) {
        Ok(()) => {
            let mut tags = lock(&registry.mirrors.tags);
            if tags.len() >= MAX_TAGS {
                tags.clear();
            }
            tags.insert(key, Instant::now());
            Ok(())
        }
        // What is here is better than nothing; one that the upstream has deleted is not here any more either.
        Err(RegistryError::Upstream(why) | RegistryError::UpstreamRefused(why)) if here.is_some() => {
            tracing::warn!(%repository, tag = tag.as_str(), why, "served from the mirror alone");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn renew_tag(
    registry: &Registry,
    repository: &RepositoryName,
    tag: &Tag,
    here: Option<Digest>,
) -> Result<(), RegistryError> {
    let reference = Reference::Tag(tag.clone());
    if let Some(here) = here {
        let (upstream, name) = upstream_of(registry, repository)?;
        let told = upstream.manifest_digest(&name, &reference).map_err(unknown_manifest)?;
        if told == Some(here.to_string()) {
            return Ok(());
        }
    }
    let digest = fetch_manifest(registry, repository, &reference)?;
    let adding = registry.disk.adding();
    Ok(registry.disk.put_tag(&adding, repository, tag, digest)?)
}

fn unknown_manifest(error: UpstreamError) -> RegistryError {
    match error {
        UpstreamError::Unknown => RegistryError::ManifestUnknown,
        other => failed(&other),
    }
}

fn failed(error: &UpstreamError) -> RegistryError {
    match error {
        UpstreamError::Refused(_) => RegistryError::UpstreamRefused(error.to_string()),
        UpstreamError::Unknown | UpstreamError::Unreachable(_) => RegistryError::Upstream(error.to_string()),
    }
}

fn fetch_manifest(
    registry: &Registry,
    repository: &RepositoryName,
    reference: &Reference,
) -> Result<Digest, RegistryError> {
    let (upstream, name) = upstream_of(registry, repository)?;
    let opened = upstream.manifest(&name, reference).map_err(unknown_manifest)?;
    let mut bytes = Vec::new();
    let most = MAX_MANIFEST_BYTES as u64 + 1;
    let read = opened.body.take(most).read_to_end(&mut bytes);
    read.map_err(|error| RegistryError::Upstream(format!("the manifest broke off: {error}")))?;
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(RegistryError::Upstream("the manifest is too large".into()));
    }
    let digest = digest_of(&bytes);
    let claimed = opened.digest.as_deref().and_then(|text| parse_digest(text).ok());
    let asked = match reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(_) => None,
    };
    if asked.or(claimed).is_some_and(|wanted| wanted != digest) {
        return Err(RegistryError::Upstream(format!(
            "the manifest it sent is {digest}, another than it should be"
        )));
    }
    let parsed = manifest::parse(&bytes, Some(&opened.media_type))
        .map_err(|error| RegistryError::Upstream(format!("its manifest is not one to keep: {error}")))?;
    let adding = registry.disk.adding();
    manifest::keep(registry, &adding, repository, &parsed, &bytes)?;
    tracing::info!(%repository, %digest, "manifest mirrored");
    Ok(digest)
}

/// Sees to it that a blob is here.
pub(super) async fn ensure_blob(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    digest: Digest,
) -> Result<(), RegistryError> {
    let (disk, name) = (registry.clone(), repository.clone());
    let is_here = blocking(move || {
        let is_here = disk.disk.blob_size(&name, digest)?.is_some();
        if is_here {
            disk.disk.keep_blob(&name, digest)?;
        }
        Ok(is_here)
    });
    if is_here.await? {
        return Ok(());
    }
    let mut done = begin(registry, repository, digest)?;
    let result = done.wait_for(Option::is_some).await.map(|done| (*done).clone());
    match result {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(failed))) => Err(failed.as_ref().again()),
        Ok(None) | Err(_) => Err(RegistryError::Upstream("fetching the blob ended early".into())),
    }
}

/// Joins the fetch that is under way, or starts one that ends whether anybody waits or not.
fn begin(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    digest: Digest,
) -> Result<watch::Receiver<Done>, RegistryError> {
    let key = (repository.clone(), digest);
    let mut fetches = lock(&registry.mirrors.fetches);
    if let Some(under_way) = fetches.get(&key) {
        return Ok(under_way.clone());
    }
    if fetches.len() >= MAX_FETCHES {
        return Err(RegistryError::TooMany("blobs are fetched"));
    }
    let (sender, receiver) = watch::channel(None);
    fetches.insert(key.clone(), receiver.clone());
    drop(fetches);
    let registry = registry.clone();
    tokio::task::spawn_blocking(move || {
        let result = fetch_blob(&registry, &key.0, digest);
        if let Err(error) = &result {
            tracing::warn!(repository = %key.0, %digest, %error, "cannot mirror a blob");
        }
        lock(&registry.mirrors.fetches).remove(&key);
        // Nobody waiting is no error.
        let _ = sender.send(Some(result.map_err(Arc::new)));
    });
    Ok(receiver)
}

fn fetch_blob(registry: &Registry, repository: &RepositoryName, digest: Digest) -> Result<(), RegistryError> {
    let (upstream, name) = upstream_of(registry, repository)?;
    let opened = upstream.blob(&name, digest).map_err(|error| match error {
        UpstreamError::Unknown => RegistryError::BlobUnknown,
        other => failed(&other),
    })?;
    let most = registry.limits.blob_bytes.min(upstream.quota_bytes);
    let too_large =
        || RegistryError::UpstreamRefused(format!("blob {digest} is larger than the mirror's quota"));
    if opened.size.is_some_and(|size| size > most) {
        return Err(too_large());
    }
    make_room(registry, repository, upstream.quota_bytes, opened.size.unwrap_or(0))?;
    let mut temporary: Temporary = registry.disk.temporary()?;
    let mut hash = Context::new(&SHA256);
    let mut body = opened.body;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut length, mut next_space_check) = (0_u64, 0_u64);
    loop {
        let read = body.read(&mut chunk);
        let count =
            read.map_err(|error| RegistryError::Upstream(format!("blob {digest} broke off: {error}")))?;
        if count == 0 {
            break;
        }
        length += count as u64;
        if length > most {
            return Err(too_large());
        }
        if length > next_space_check {
            if registry.disk.free_bytes()? < registry.limits.free_bytes {
                return Err(RegistryError::NoSpace);
            }
            next_space_check = length + SPACE_CHECK_BYTES;
        }
        hash.update(&chunk[..count]);
        temporary.file.write_all(&chunk[..count])?;
    }
    let actual = finished_digest(&hash.finish());
    if actual != digest {
        return Err(RegistryError::Upstream(format!("the blob it sent is {actual}, not {digest}")));
    }
    if opened.size.is_none() {
        make_room(registry, repository, upstream.quota_bytes, length)?;
    }
    temporary.file.sync_all()?;
    let adding = registry.disk.adding();
    temporary.commit_blob(&registry.disk, &adding, digest)?;
    registry.disk.link_blob(&adding, repository, digest)?;
    tracing::info!(%repository, %digest, bytes = length, "blob mirrored");
    Ok(())
}

/// Takes a blob away, and its content with it unless another repository has it too.
fn drop_blob(registry: &Registry, held: &Held) -> Result<(), RegistryError> {
    let removing = registry.disk.removing();
    registry.disk.remove_blob(&removing, &held.repository, held.digest)?;
    for repository in registry.disk.all_repositories()? {
        let has = |size: Option<u64>| size.is_some();
        if has(registry.disk.blob_size(&repository, held.digest)?)
            || has(registry.disk.manifest_size(&repository, held.digest)?)
        {
            return Ok(());
        }
    }
    registry.disk.remove_content(&removing, held.digest, SystemTime::now() + Duration::from_secs(1))?;
    Ok(())
}

/// One blob of a mirror.
struct Held {
    used: SystemTime,
    repository: RepositoryName,
    digest: Digest,
    bytes: u64,
}

/// Drops the blobs of this mirror that were not used for longest, until `wanted` more bytes fit into the quota.
fn make_room(
    registry: &Registry,
    repository: &RepositoryName,
    quota_bytes: u64,
    wanted: u64,
) -> Result<(), RegistryError> {
    let Some((mirror, _)) = split(repository) else { return Ok(()) };
    let (mut held, mut needed) = (Vec::new(), BTreeSet::new());
    let uses = registry.uses.uses();
    let all = registry.disk.all_repositories()?;
    for repository in all.into_iter().filter(|one| split(one).is_some_and(|(name, _)| name == mirror)) {
        for manifest in needed_manifests(registry, &uses, &repository)?.into_keys() {
            let read = manifest::load(registry, &repository, manifest).ok().flatten();
            needed.extend(read.iter().flat_map(|(_, parsed)| parsed.needs.iter().map(|need| need.digest)));
        }
        for digest in registry.disk.blobs(&repository)? {
            let Some(bytes) = registry.disk.blob_size(&repository, digest)? else { continue };
            let used = registry.disk.blob_used(&repository, digest)?;
            held.push(Held { used, repository: repository.clone(), digest, bytes });
        }
    }
    let mut total: u64 = held.iter().map(|one| one.bytes).sum();
    held.sort_by_key(|one| one.used);
    let now = SystemTime::now();
    for one in held {
        if total.saturating_add(wanted) <= quota_bytes {
            return Ok(());
        }
        let is_in_use = now.duration_since(one.used).map_or(true, |age| age < IN_USE);
        if is_in_use || needed.contains(&one.digest) {
            continue;
        }
        drop_blob(registry, &one)?;
        total -= one.bytes;
        tracing::info!(repository = %one.repository, digest = %one.digest, bytes = one.bytes, "blob dropped from the mirror");
    }
    if total.saturating_add(wanted) <= quota_bytes {
        return Ok(());
    }
    Err(RegistryError::UpstreamRefused(format!(
        "the mirror's quota of {quota_bytes} bytes is used up by images in use; raise spec.mirror.quota of registry/{mirror}"
    )))
}
