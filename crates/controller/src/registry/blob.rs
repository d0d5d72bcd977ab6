// SPDX-License-Identifier: Apache-2.0
//! Reading blobs over HTTP: whole, in part, or just their size. A blob is never in memory as a whole;
//! one chunk is on the wire while the next is read.

use super::error::RegistryError;
use super::name::RepositoryName;
use super::{Registry, blocking, set};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::stream;
use model::id::Digest;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes read at once. Large enough that the hand-over between threads does not show, small enough
/// that [`super::Limits::downloads`] times two of them fit into memory.
const READ_CHUNK_BYTES: u64 = 512 * 1024;

/// Answers `GET`.
pub(super) async fn get(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Response<Body>, RegistryError> {
    let permit = registry.downloads.clone().try_acquire_owned();
    let permit = permit.map_err(|_| RegistryError::TooMany("downloads"))?;
    let disk = registry.clone();
    let (mut file, size) = blocking(move || Ok(disk.disk.open_blob(&repository, digest)?))
        .await?
        .ok_or(RegistryError::BlobUnknown)?;
    if matches_etag(headers, header::IF_NONE_MATCH, digest) {
        return Ok(described(StatusCode::NOT_MODIFIED, digest, Body::empty()));
    }
    let (status, range) = match requested_range(headers, digest, size) {
        Requested::Whole => (StatusCode::OK, 0..size),
        Requested::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Requested::Outside => return Err(RegistryError::RangeUnsatisfiable { size }),
    };
    file.seek(SeekFrom::Start(range.start))?;
    let body = stream_file(file, range.end - range.start, permit);
    let mut response = described(status, digest, body);
    response.headers_mut().insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        set(response.headers_mut(), header::CONTENT_RANGE, &value);
    }
    Ok(response)
}

/// Answers `HEAD`.
pub(super) async fn head(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    digest: Digest,
) -> Result<Response<Body>, RegistryError> {
    let disk = registry.clone();
    let size = blocking(move || {
        let size = disk.disk.blob_size(&repository, digest)?;
        if size.is_some() {
            disk.disk.keep_blob(&repository, digest)?;
        }
        Ok(size)
    })
    .await?;
    let size = size.ok_or(RegistryError::BlobUnknown)?;
    let mut response = described(StatusCode::OK, digest, Body::empty());
    response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
    Ok(response)
}

fn described(status: StatusCode, digest: Digest, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set(headers, super::CONTENT_DIGEST, &digest.to_string());
    set(headers, header::ETAG, &etag(digest));
    response
}

/// Content addressed by digest never changes, so the digest is a strong entity tag.
pub(super) fn etag(digest: Digest) -> String {
    format!("\"{digest}\"")
}

/// Whether a condition header lists the entity tag of `digest`.
pub(super) fn matches_etag(headers: &HeaderMap, name: header::HeaderName, digest: Digest) -> bool {
    let etag = etag(digest);
    let lists = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|value| value.split(',').any(|one| one.trim().trim_start_matches("W/") == etag))
    };
    headers.get_all(name).iter().any(lists)
}

#[derive(Debug, PartialEq, Eq)]
enum Requested {
    Whole,
    Part(Range<u64>),
    Outside,
}

/// RFC 9110 §14: one range is honoured; several, other units and nonsense give the whole blob.
fn requested_range(headers: &HeaderMap, digest: Digest, size: u64) -> Requested {
    if headers.contains_key(header::IF_RANGE) && !matches_etag(headers, header::IF_RANGE, digest) {
        return Requested::Whole;
    }
    let value = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    value.map_or(Requested::Whole, |untrusted| parse_range(untrusted, size))
}

fn parse_range(untrusted: &str, size: u64) -> Requested {
    let Some((first, last)) = untrusted.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Requested::Whole;
    };
    let (first, last) = match (decimal(first), decimal(last)) {
        (Some(first), Some(last)) if first <= last => (first, last),
        (Some(first), None) if last.is_empty() => (first, u64::MAX),
        (None, Some(0)) if first.is_empty() => return Requested::Outside,
        (None, Some(suffix)) if first.is_empty() => (size.saturating_sub(suffix), u64::MAX),
        _ => return Requested::Whole,
    };
    if first >= size { Requested::Outside } else { Requested::Part(first..last.saturating_add(1).min(size)) }
}

/// Digits only: `parse` alone would take a sign.
pub(super) fn decimal(untrusted: &str) -> Option<u64> {
    untrusted.bytes().all(|b| b.is_ascii_digit()).then(|| untrusted.parse().ok()).flatten()
}

type Read = io::Result<(File, Vec<u8>)>;

struct Download {
    next: JoinHandle<Read>,
    remaining: u64,
    permit: OwnedSemaphorePermit,
}

fn stream_file(file: File, length: u64, permit: OwnedSemaphorePermit) -> Body {
    let first = (length > 0).then(|| Download { next: read_ahead(file, length), remaining: length, permit });
    Body::from_stream(stream::try_unfold(first, |download| async move {
        let Some(Download { next, remaining, permit }) = download else { return Ok::<_, io::Error>(None) };
        let (file, chunk) = next.await.map_err(io::Error::other)??;
        let remaining = remaining - chunk.len() as u64;
        let rest = (remaining > 0).then(|| Download { next: read_ahead(file, remaining), remaining, permit });
        Ok(Some((Bytes::from(chunk), rest)))
    }))
}

fn read_ahead(mut file: File, remaining: u64) -> JoinHandle<Read> {
    spawn_blocking(move || {
        let length = remaining.min(READ_CHUNK_BYTES);
        let mut chunk = Vec::with_capacity(length as usize);
        (&mut file).take(length).read_to_end(&mut chunk)?;
        if (chunk.len() as u64) < length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "stored blob is shorter than it was"));
        }
        Ok((file, chunk))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_honoured_and_nonsense_is_ignored() {
        for (value, size, expected) in [
            ("bytes=0-0", 10, Requested::Part(0..1)),
            ("bytes=2-5", 10, Requested::Part(2..6)),
            ("bytes=2-", 10, Requested::Part(2..10)),
            ("bytes=2-99", 10, Requested::Part(2..10)),
            ("bytes=0-18446744073709551615", 10, Requested::Part(0..10)),
            ("bytes=-3", 10, Requested::Part(7..10)),
            ("bytes=-30", 10, Requested::Part(0..10)),
            ("bytes=10-", 10, Requested::Outside),
            ("bytes=-0", 10, Requested::Outside),
            ("bytes=0-", 0, Requested::Outside),
            ("bytes=-5", 0, Requested::Outside),
            ("bytes=5-2", 10, Requested::Whole),
            ("bytes=0-1,3-4", 10, Requested::Whole),
            ("bytes=+1-2", 10, Requested::Whole),
            ("bytes=--", 10, Requested::Whole),
            ("bytes=-", 10, Requested::Whole),
            ("items=0-1", 10, Requested::Whole),
            ("bytes=99999999999999999999-", 10, Requested::Whole),
        ] {
            assert_eq!(parse_range(value, size), expected, "{value} of {size}");
        }
    }
}
