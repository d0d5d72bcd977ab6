// SPDX-License-Identifier: Apache-2.0
//! Manifests: what is taken, and reading and writing them over HTTP. A manifest is stored byte for byte
//! as it came; it is taken only when everything it references is in the same repository, so that no
//! reader ever meets half an image; deleting keeps to the same. A `subject` may be absent, as the spec demands.

use super::blob::{etag, matches_etag};
use super::disk::{Adding, StoredManifest};
use super::error::RegistryError;
use super::name::{Reference, RepositoryName, digest_of, parse_digest};
use super::{CONTENT_DIGEST, Registry, blocking, set};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use model::id::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The size every registry must take at least, by the Distribution Spec; real ones are below 100 KiB.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;
/// Each reference costs a look at the disk. Images have at most 127 layers, the largest indexes some hundreds.
const MAX_REFERENCES: usize = 4096;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// The document types we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OciImage,
    OciIndex,
    DockerImage,
    DockerList,
}

impl Kind {
    fn parse(untrusted: &str) -> Option<Self> {
        let media_type = untrusted.split(';').next().unwrap_or_default().trim();
        [Self::OciImage, Self::OciIndex, Self::DockerImage, Self::DockerList]
            .into_iter()
            .find(|kind| kind.media_type() == media_type)
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::OciImage => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerImage => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

/// Something a manifest needs to be in its repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) what: What,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Blob,
    Manifest,
}

/// A manifest that may be stored once all it needs is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    kind: Kind,
    pub(super) needs: Vec<Needed>,
    pub(super) subject: Option<Digest>,
    /// What kind of thing it is: its `artifactType`, or the media type of its config.
    pub(super) artifact_type: Option<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Parsed {
    pub(super) fn media_type(&self) -> &'static str {
        self.kind.media_type()
    }
}

pub(super) fn parse(untrusted: &[u8], content_type: Option<&str>) -> Result<Parsed, RegistryError> {
    let invalid = |why: String| RegistryError::ManifestInvalid(why);
    let document: Document = serde_json::from_slice(untrusted).map_err(|error| invalid(error.to_string()))?;
    if document.schema_version != 2 {
        return Err(invalid(format!("schemaVersion {} is not 2", document.schema_version)));
    }
    let named = content_type.or(document.media_type.as_deref());
    let named = named.ok_or_else(|| invalid("neither Content-Type nor mediaType is given".into()))?;
    let kind = Kind::parse(named).ok_or_else(|| invalid(format!("media type {named} is not accepted")))?;
    if document.media_type.as_deref().is_some_and(|inside| inside != kind.media_type()) {
        return Err(invalid("mediaType differs from Content-Type".into()));
    }
    let subject = document.subject.map(|subject| digest_in(&subject)).transpose()?;
    let of_config = document.config.as_ref().map(|config| config.media_type.clone());
    let artifact_type = document.artifact_type.or(of_config).filter(|text| !text.is_empty());
    let mut needs = Vec::new();
    // One document must not be an image to one reader and an index to another (CVE-2021-41190).
    match (kind, document.config, document.layers, document.manifests) {
        (Kind::OciImage | Kind::DockerImage, Some(config), Some(layers), None) => {
            for descriptor in layers.iter().filter(|layer| !is_elsewhere(layer)).chain([&config]) {
                needs.push(needed(descriptor, What::Blob)?);
            }
        }
        (Kind::OciIndex | Kind::DockerList, None, None, Some(manifests)) => {
            for descriptor in &manifests {
                // Build caches list layers in an index.
                let is_manifest = Kind::parse(&descriptor.media_type).is_some();
                needs.push(needed(descriptor, if is_manifest { What::Manifest } else { What::Blob })?);
            }
        }
        (Kind::OciImage | Kind::DockerImage, ..) => {
            return Err(invalid("an image has config and layers and no manifests".into()));
        }
        (Kind::OciIndex | Kind::DockerList, ..) => {
            return Err(invalid("an index has manifests and neither config nor layers".into()));
        }
    }
    if needs.len() > MAX_REFERENCES {
        return Err(invalid(format!("more than {MAX_REFERENCES} references")));
    }
    Ok(Parsed { kind, needs, subject, artifact_type, annotations: document.annotations })
}

fn needed(descriptor: &Descriptor, what: What) -> Result<Needed, RegistryError> {
    Ok(Needed { what, digest: digest_in(descriptor)?, size: descriptor.size })
}

fn digest_in(descriptor: &Descriptor) -> Result<Digest, RegistryError> {
    parse_digest(&descriptor.digest)
        .map_err(|error| RegistryError::ManifestInvalid(format!("descriptor: {error}")))
}

/// Layers that may not be redistributed stay where their `urls` point.
fn is_elsewhere(layer: &Descriptor) -> bool {
    !layer.urls.is_empty()
        || layer.media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || layer.media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// Answers `PUT`.
pub(super) async fn put(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    reference: Reference,
    headers: &HeaderMap,
    body: &mut Option<Body>,
) -> Result<Response<Body>, RegistryError> {
    let content_type = match headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(value)) => Some(value),
        Some(Err(_)) => return Err(RegistryError::ManifestInvalid("unreadable Content-Type".into())),
    };
    let bytes = collect(body, registry.limits.body_idle).await?;
    let parsed = parse(&bytes, content_type)?;
    let digest = digest_of(&bytes);
    if matches!(reference, Reference::Digest(claimed) if claimed != digest) {
        return Err(RegistryError::DigestInvalid(format!("content is {digest}")));
    }
    let location = format!("/v2/{repository}/manifests/{digest}");
    let subject = parsed.subject;
    let registry = registry.clone();
    blocking(move || store(&registry, &repository, &reference, &parsed, &bytes)).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    set(headers, header::LOCATION, &location);
    set(headers, CONTENT_DIGEST, &digest.to_string());
    headers.insert(header::CONTENT_LENGTH, 0.into());
    if let Some(subject) = subject {
        set(headers, OCI_SUBJECT, &subject.to_string());
    }
    Ok(response)
}

async fn collect(body: &mut Option<Body>, idle: std::time::Duration) -> Result<bytes::Bytes, RegistryError> {
    let body = Limited::new(body.take().unwrap_or_default(), MAX_MANIFEST_BYTES);
    match tokio::time::timeout(idle, body.collect()).await {
        Err(_) => Err(RegistryError::IdleBody),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(RegistryError::TooLarge { limit_bytes: MAX_MANIFEST_BYTES as u64 })
        }
        Ok(Err(_)) => Err(RegistryError::AbortedBody),
    }
}

fn store(
    registry: &Registry,
    repository: &RepositoryName,
    reference: &Reference,
    parsed: &Parsed,
    bytes: &[u8],
) -> Result<(), RegistryError> {
    if registry.disk.free_bytes()? < registry.limits.free_bytes {
        return Err(RegistryError::NoSpace);
    }
    // What is found present stays so until the manifest stands.
    let adding = registry.disk.adding();
    for Needed { what, digest, size } in &parsed.needs {
        let stored = match what {
            What::Blob => registry.disk.blob_size(repository, *digest)?,
            What::Manifest => registry.disk.manifest_size(repository, *digest)?,
        };
        match stored {
            Some(stored) if stored == *size => {}
            Some(stored) => {
                return Err(RegistryError::SizeInvalid(format!("{digest} has {stored} bytes, not {size}")));
            }
            None => {
                let what = if *what == What::Blob { "blob" } else { "manifest" };
                return Err(RegistryError::ManifestBlobUnknown(format!("{what} {digest}")));
            }
        }
    }
    let digest = keep(registry, &adding, repository, parsed, bytes)?;
    match reference {
        Reference::Tag(tag) => {
            registry.disk.put_tag(&adding, repository, tag, digest)?;
            tracing::info!(%repository, tag = tag.as_str(), %digest, "manifest tagged");
        }
        Reference::Digest(_) => tracing::info!(%repository, %digest, "manifest stored"),
    }
    Ok(())
}

/// Stores a manifest and enters it among the referrers of its subject.
pub(super) fn keep(
    registry: &Registry,
    adding: &Adding<'_>,
    repository: &RepositoryName,
    parsed: &Parsed,
    bytes: &[u8],
) -> Result<Digest, RegistryError> {
    let digest = registry.disk.put_manifest(adding, repository, bytes, parsed.media_type())?;
    if let Some(subject) = parsed.subject {
        registry.disk.put_referrer(adding, repository, subject, digest)?;
    }
    Ok(digest)
}

/// A stored manifest, read anew.
pub(super) fn load(
    registry: &Registry,
    repository: &RepositoryName,
    digest: Digest,
) -> Result<Option<(StoredManifest, Parsed)>, RegistryError> {
    let Some(stored) = registry.disk.manifest(repository, digest, MAX_MANIFEST_BYTES as u64)? else {
        return Ok(None);
    };
    let parsed = parse(&stored.bytes, Some(&stored.media_type))?;
    Ok(Some((stored, parsed)))
}

/// Answers `GET`, and `HEAD` when the caller drops the body.
pub(super) async fn get(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    reference: Reference,
    headers: &HeaderMap,
) -> Result<Response<Body>, RegistryError> {
    let registry = registry.clone();
    let stored = blocking(move || {
        let digest = match &reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => registry.disk.tag(&repository, tag)?,
        };
        let Some(digest) = digest else { return Ok(None) };
        let stored = registry.disk.manifest(&repository, digest, MAX_MANIFEST_BYTES as u64)?;
        if stored.is_some() {
            registry.disk.keep_manifest(&repository, digest)?;
        }
        Ok(stored)
    });
    let stored = stored.await?.ok_or(RegistryError::ManifestUnknown)?;
    let unchanged = matches_etag(headers, header::IF_NONE_MATCH, stored.digest);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    set(headers, header::CONTENT_TYPE, &stored.media_type);
    set(headers, CONTENT_DIGEST, &stored.digest.to_string());
    set(headers, header::ETAG, &etag(stored.digest));
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    headers.insert(header::CONTENT_LENGTH, stored.bytes.len().into());
    *response.body_mut() = Body::from(stored.bytes);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn descriptor(media_type: &str, content: &str) -> serde_json::Value {
        let digest = digest_of(content.as_bytes()).to_string();
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    fn why(document: &serde_json::Value, content_type: Option<&str>) -> String {
        parse(document.to_string().as_bytes(), content_type).unwrap_err().to_string()
    }

    #[test]
    fn an_image_needs_its_config_and_the_layers_that_are_not_elsewhere() {
        let mut foreign = descriptor("application/vnd.oci.image.layer.v1.tar", "foreign");
        foreign["urls"] = serde_json::json!(["https://example.org/layer"]);
        let document = serde_json::json!({
            "schemaVersion": 2, "mediaType": IMAGE, "artifactType": "application/x",
            "config": descriptor("application/vnd.oci.empty.v1+json", "{}"),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", "layer"), foreign],
            "subject": descriptor(IMAGE, "subject"), "annotations": {"a": "b"},
        });
        let parsed = parse(document.to_string().as_bytes(), Some(IMAGE)).unwrap();
        let blob = |content: &str| Needed {
            what: What::Blob,
            digest: digest_of(content.as_bytes()),
            size: content.len() as u64,
        };
        assert_eq!(parsed.needs, [blob("layer"), blob("{}")]);
        assert_eq!(parsed.subject, Some(digest_of(b"subject")));
        assert_eq!(parse(document.to_string().as_bytes(), None).unwrap(), parsed);
    }

    #[test]
    fn an_index_needs_manifests_and_takes_cached_layers() {
        let document = serde_json::json!({ "schemaVersion": 2, "manifests": [
            descriptor(IMAGE, "child"), descriptor("application/vnd.oci.image.layer.v1.tar", "layer"),
        ]});
        let parsed = parse(document.to_string().as_bytes(), Some(INDEX)).unwrap();
        assert_eq!(
            parsed.needs.iter().map(|need| need.what).collect::<Vec<_>>(),
            [What::Manifest, What::Blob]
        );
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "{}");
        let image = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [] });
        assert!(why(&image, None).contains("neither Content-Type nor mediaType"));
        assert!(why(&image, Some("application/json")).contains("not accepted"));
        assert!(why(&image, Some(INDEX)).contains("an index has manifests"));
        let mut both = image.clone();
        both["manifests"] = serde_json::json!([]);
        assert!(why(&both, Some(IMAGE)).contains("no manifests"));
        assert!(why(&both, Some(INDEX)).contains("neither config nor layers"));
        let mut liar = image.clone();
        liar["mediaType"] = INDEX.into();
        assert!(why(&liar, Some(IMAGE)).contains("differs"));
        let mut old = image.clone();
        old["schemaVersion"] = 1.into();
        assert!(why(&old, Some(IMAGE)).contains("is not 2"));
        let mut long = image;
        long["config"]["digest"] = format!("sha512:{}", "0".repeat(128)).into();
        assert!(why(&long, Some(IMAGE)).contains("sha512 is not supported"));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(deep.as_bytes(), Some(IMAGE)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Some(IMAGE));
        }
    }
}
