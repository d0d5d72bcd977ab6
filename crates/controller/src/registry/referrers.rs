// SPDX-License-Identifier: Apache-2.0
//! Who refers to a manifest: signatures, SBOMs and other artifacts whose `subject` it is (Distribution Spec v1.1).
//!
//! The list is kept at each push of a manifest with a subject, also of one that a client additionally enters in an index
//! under the fallback tag `sha256-HEX`; such tags are tags like others. So a client of either way finds what a client of
//! the other one attached.

use super::error::RegistryError;
use super::list::{page_of, page_size};
use super::manifest::load;
use super::name::{RepositoryName, digest_hex};
use super::{Query, Registry, blocking, set};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use model::id::Digest;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Answers `GET`: an index of descriptors, in pages.
pub(super) async fn get(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    subject: Digest,
    query: &Query,
) -> Result<Response<Body>, RegistryError> {
    let count = page_size(query)?;
    // A plus that a client did not escape came as a space, which no media type holds.
    let wanted = query.artifact_type.as_ref().map(|text| text.replace(' ', "+"));
    let last = query.last.clone();
    let (registry, name, filter) = (registry.clone(), repository.clone(), wanted.clone());
    let (descriptors, next) = blocking(move || {
        let all: Vec<String> = registry.disk.referrers(&name, subject)?.into_iter().map(digest_hex).collect();
        let (shown, more) = page_of(&all, last.as_deref(), count);
        let mut descriptors = Vec::new();
        for hex in shown {
            let Ok(digest) = super::name::parse_digest(&format!("sha256:{hex}")) else { continue };
            descriptors.extend(descriptor(&registry, &name, digest, filter.as_deref())?);
        }
        Ok((descriptors, more.then(|| shown.last().cloned()).flatten()))
    })
    .await?;
    let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors }).to_string();
    let length = body.len();
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    headers.insert(header::CONTENT_LENGTH, length.into());
    if wanted.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = next {
        let filter = wanted.as_ref().map(|text| format!("&artifactType={}", escape(text)));
        let path = format!("/v2/{repository}/referrers/{subject}?n={count}&last={last}");
        let link = format!("<{path}{}>; rel=\"next\"", filter.unwrap_or_default());
        set(headers, header::LINK, &link);
    }
    Ok(response)
}

/// `None` for one that is not of the wanted type, or cannot be read.
fn descriptor(
    registry: &Registry,
    repository: &RepositoryName,
    digest: Digest,
    wanted: Option<&str>,
) -> Result<Option<Value>, RegistryError> {
    let Some((stored, parsed)) = load(registry, repository, digest)? else { return Ok(None) };
    if wanted.is_some_and(|wanted| parsed.artifact_type.as_deref() != Some(wanted)) {
        return Ok(None);
    }
    let mut descriptor = json!({
        "mediaType": stored.media_type,
        "digest": digest.to_string(),
        "size": stored.bytes.len(),
    });
    if let Some(text) = parsed.artifact_type {
        descriptor["artifactType"] = text.into();
    }
    if !parsed.annotations.is_empty() {
        descriptor["annotations"] = json!(parsed.annotations);
    }
    Ok(Some(descriptor))
}

/// Media types hold no byte but `+` that a query must escape; everything unusual is escaped all the same.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'/');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Enters the manifests that were pushed before referrers were kept. Blocks; does nothing but the first time.
pub(super) fn complete(registry: &Registry) -> io::Result<()> {
    if registry.disk.has_referrers()? {
        return Ok(());
    }
    let adding = registry.disk.adding();
    for repository in registry.disk.all_repositories()? {
        for digest in registry.disk.manifests(&repository)? {
            // One that cannot be read refers to nothing.
            let Ok(Some((_, parsed))) = load(registry, &repository, digest) else { continue };
            if let Some(subject) = parsed.subject {
                registry.disk.put_referrer(&adding, &repository, subject, digest)?;
            }
        }
    }
    registry.disk.set_has_referrers()
}
