// SPDX-License-Identifier: Apache-2.0
//! Lists in pages: the tags of a repository and the repositories of the registry.

use super::error::RegistryError;
use super::name::RepositoryName;
use super::{Query, Registry, blocking, set};
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use std::sync::Arc;

/// Entries of a page when the client does not say, and the most it can ask for. Clients that do not
/// follow `Link` see this many.
const MAX_PAGE: usize = 1000;

/// The entries behind `last`, and whether more follow.
pub(super) fn page_of<'a>(sorted: &'a [String], last: Option<&str>, count: usize) -> (&'a [String], bool) {
    let from = last.map_or(0, |last| sorted.partition_point(|entry| entry.as_str() <= last));
    let rest = &sorted[from..];
    let shown = &rest[..count.min(rest.len())];
    (shown, shown.len() < rest.len())
}

pub(super) fn page_size(query: &Query) -> Result<usize, RegistryError> {
    let Some(untrusted) = query.n.as_deref() else { return Ok(MAX_PAGE) };
    let count = super::blob::decimal(untrusted)
        .ok_or_else(|| RegistryError::QueryInvalid("n is not a number".into()))?;
    Ok(usize::try_from(count).unwrap_or(MAX_PAGE).min(MAX_PAGE))
}

/// Answers `GET tags/list`.
pub(super) async fn tags(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    query: &Query,
) -> Result<Response<Body>, RegistryError> {
    let count = page_size(query)?;
    let registry = registry.clone();
    let name = repository.clone();
    let all = blocking(move || Ok(registry.disk.tags(&name)?)).await?.ok_or(RegistryError::NameUnknown)?;
    let (shown, more) = page_of(&all, query.last.as_deref(), count);
    let body = serde_json::json!({ "name": repository.as_str(), "tags": shown });
    Ok(paged(&body, shown, more, &format!("/v2/{repository}/tags/list")))
}

/// Answers `GET _catalog`.
pub(super) async fn catalog(
    registry: &Arc<Registry>,
    query: &Query,
) -> Result<Response<Body>, RegistryError> {
    let count = page_size(query)?;
    let registry = registry.clone();
    let all = blocking(move || Ok(registry.disk.repositories()?)).await?;
    let (shown, more) = page_of(&all, query.last.as_deref(), count);
    Ok(paged(&serde_json::json!({ "repositories": shown }), shown, more, "/v2/_catalog"))
}

fn paged(body: &serde_json::Value, shown: &[String], more: bool, path: &str) -> Response<Body> {
    let body = body.to_string();
    let length = body.len();
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    if let (true, Some(last)) = (more, shown.last()) {
        // Neither names nor tags hold a byte that a query would have to escape.
        set(headers, header::LINK, &format!("<{path}?n={}&last={last}>; rel=\"next\"", shown.len()));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_list_once() {
        let all: Vec<_> = ["a", "b", "c"].map(str::to_owned).to_vec();
        for (last, count, expected, more) in [
            (None, 9, &all[..], false),
            (None, 3, &all[..], false),
            (None, 2, &all[..2], true),
            (Some("b"), 2, &all[2..], false),
            (Some("aa"), 1, &all[1..2], true),
            (Some("z"), 1, &all[3..], false),
            (None, 0, &all[..0], true),
        ] {
            assert_eq!(page_of(&all, last, count), (expected, more), "{last:?} {count}");
        }
    }
}
