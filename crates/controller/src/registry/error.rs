// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in the registry and how it reads on the wire: a status, a code of the
//! Distribution Spec and a JSON body. Causes that are ours are logged here and never shown to a client.

use super::name::NameError;
use super::route::RouteError;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use std::io;

/// Every answer that is not a success.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("blob unknown to this repository")]
    BlobUnknown,
    #[error("upload unknown or expired, start a new one")]
    UploadUnknown,
    #[error("upload invalid: {0}")]
    UploadInvalid(String),
    /// The chunk does not start where the last one ended; the client reads the offset and resumes.
    #[error("chunk starts elsewhere than at byte {offset}")]
    ChunkOutOfOrder { offset: u64, location: String },
    #[error("{0}")]
    DigestInvalid(String),
    #[error("{0}")]
    SizeInvalid(String),
    #[error("body larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("manifest invalid: {0}")]
    ManifestInvalid(String),
    #[error("manifest references unknown {0}")]
    ManifestBlobUnknown(String),
    #[error("manifest unknown to this repository")]
    ManifestUnknown,
    #[error("repository unknown")]
    NameUnknown,
    #[error("invalid repository name")]
    NameInvalid,
    #[error("{0}")]
    ReferenceInvalid(String),
    #[error("authentication required")]
    Unauthorized,
    #[error("access to this resource is denied")]
    Denied,
    /// Somebody needs what was to be deleted.
    #[error("{what} is in use: {by}")]
    InUse { what: String, by: String },
    #[error("mirror/ holds copies of other registries; push under another name")]
    Mirror,
    /// Nothing mirrors under this name.
    #[error("there is no mirror {0}: apply a registry/{0} with spec.mirror")]
    NoMirror(String),
    /// The registry that is mirrored did not give what was asked for, and it is not here.
    #[error("{0}")]
    Upstream(String),
    /// The same, and trying again will not help before somebody has changed something.
    #[error("{0}")]
    UpstreamRefused(String),
    #[error("operation not supported")]
    Unsupported { allow: &'static str },
    #[error("no such endpoint")]
    NoEndpoint,
    #[error("{0}")]
    QueryInvalid(String),
    #[error("too many {0} at once, try again later")]
    TooMany(&'static str),
    #[error("requested range is outside of the blob")]
    RangeUnsatisfiable { size: u64 },
    #[error("no data arrived for too long")]
    IdleBody,
    #[error("the request body broke off")]
    AbortedBody,
    #[error("the registry has no space left")]
    NoSpace,
    #[error("internal error of the registry")]
    Internal(#[source] io::Error),
}

impl From<io::Error> for RegistryError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Internal(error),
        }
    }
}

impl From<NameError> for RegistryError {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Repository => Self::NameInvalid,
            NameError::Reference => Self::ReferenceInvalid(error.to_string()),
            NameError::Digest | NameError::Algorithm(_) => Self::DigestInvalid(error.to_string()),
        }
    }
}

impl From<RouteError> for RegistryError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NoEndpoint => Self::NoEndpoint,
            RouteError::Name(name) => name.into(),
        }
    }
}

impl RegistryError {
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::UploadInvalid(_) | Self::AbortedBody => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::ChunkOutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::DigestInvalid(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::SizeInvalid(_) => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::ManifestInvalid(_) | Self::ReferenceInvalid(_) => {
                (StatusCode::BAD_REQUEST, "MANIFEST_INVALID")
            }
            Self::ManifestBlobUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NameUnknown => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Denied | Self::Mirror | Self::UpstreamRefused(_) => (StatusCode::FORBIDDEN, "DENIED"),
            Self::NoMirror(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::Upstream(_) => (StatusCode::BAD_GATEWAY, "UNKNOWN"),
            // What the spec has for a delete that a registry does not do.
            Self::InUse { .. } => (StatusCode::METHOD_NOT_ALLOWED, "DENIED"),
            Self::Unsupported { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::NoEndpoint => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::QueryInvalid(_) => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::RangeUnsatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID"),
            Self::IdleBody => (StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID"),
            Self::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "DENIED"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }

    /// The same for another who waited for it.
    pub(super) fn again(&self) -> RegistryError {
        match self {
            Self::BlobUnknown => Self::BlobUnknown,
            Self::NoSpace => Self::NoSpace,
            Self::NoMirror(name) => Self::NoMirror(name.clone()),
            Self::Upstream(why) => Self::Upstream(why.clone()),
            Self::UpstreamRefused(why) => Self::UpstreamRefused(why.clone()),
            other => Self::Internal(io::Error::other(other.to_string())),
        }
    }

    /// The answer: status, headers the status demands, and the spec's error body.
    pub(super) fn into_response(self) -> Response<Body> {
        if let Self::Internal(cause) = &self {
            tracing::error!(%cause, "registry storage failed");
        }
        let (status, code) = self.status_and_code();
        let body =
            serde_json::json!({ "errors": [{ "code": code, "message": self.to_string() }] }).to_string();
        let length = body.len();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(super::auth::CHALLENGE));
            }
            Self::Unsupported { allow } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Self::InUse { .. } => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::RangeUnsatisfiable { size } => {
                super::set(headers, header::CONTENT_RANGE, &format!("bytes */{size}"))
            }
            Self::ChunkOutOfOrder { offset, location } => {
                super::set(headers, header::LOCATION, &location);
                super::set(headers, header::RANGE, &super::upload::received_range(offset));
            }
            _ => {}
        }
        response
    }
}
