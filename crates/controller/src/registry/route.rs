// SPDX-License-Identifier: Apache-2.0
//! From the path of a request to the endpoint it names. Pure. Repository names contain slashes, so a
//! path is read from its end: the last segments say which endpoint it is, the rest is the name.

use super::name::{NameError, Reference, RepositoryName, parse_digest};
use model::id::Digest;
use uuid::Uuid;

/// What a path under `/v2/` names; the rows of the endpoint table of the Distribution Spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/v2/`
    Ping,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/tags/list`
    Tags(RepositoryName),
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest(RepositoryName, Reference),
    /// `/v2/NAME/blobs/DIGEST`
    Blob(RepositoryName, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(RepositoryName),
    /// `/v2/NAME/blobs/uploads/SESSION`; `None` is a session id that we never gave out.
    Upload(RepositoryName, Option<Uuid>),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(RepositoryName, Digest),
}

/// Why a path names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RouteError {
    /// No row of the table has this shape.
    NoEndpoint,
    /// The shape is right, a name in it is not.
    Name(NameError),
}

impl From<NameError> for RouteError {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

/// Reads the percent-decoded path behind `/v2/`.
pub(super) fn endpoint(untrusted_rest: &str) -> Result<Endpoint, RouteError> {
    match untrusted_rest {
        "" => return Ok(Endpoint::Ping),
        "_catalog" => return Ok(Endpoint::Catalog),
        _ => {}
    }
    let (front, last) = untrusted_rest.rsplit_once('/').ok_or(RouteError::NoEndpoint)?;
    let (name, kind) = front.rsplit_once('/').ok_or(RouteError::NoEndpoint)?;
    match (kind, last) {
        ("tags", "list") => Ok(Endpoint::Tags(RepositoryName::parse(name)?)),
        ("manifests", reference) => {
            Ok(Endpoint::Manifest(RepositoryName::parse(name)?, Reference::parse(reference)?))
        }
        ("referrers", digest) => Ok(Endpoint::Referrers(RepositoryName::parse(name)?, parse_digest(digest)?)),
        ("blobs", "uploads") => Ok(Endpoint::Uploads(RepositoryName::parse(name)?)),
        ("blobs", digest) => Ok(Endpoint::Blob(RepositoryName::parse(name)?, parse_digest(digest)?)),
        ("uploads", session) => {
            let name = name.strip_suffix("/blobs").ok_or(RouteError::NoEndpoint)?;
            let name = RepositoryName::parse(name)?;
            if session.is_empty() {
                return Ok(Endpoint::Uploads(name));
            }
            Ok(Endpoint::Upload(name, Uuid::try_parse(session).ok()))
        }
        _ => Err(RouteError::NoEndpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let name = |text| RepositoryName::parse(text).unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        let parsed = parse_digest(&digest).unwrap();
        let tag = |text| Reference::parse(text).unwrap();
        let id = Uuid::from_u128(7);
        for (path, expected) in [
            (String::new(), Endpoint::Ping),
            ("_catalog".into(), Endpoint::Catalog),
            ("a/tags/list".into(), Endpoint::Tags(name("a"))),
            ("a/tags/tags/list".into(), Endpoint::Tags(name("a/tags"))),
            ("a/b/manifests/v1".into(), Endpoint::Manifest(name("a/b"), tag("v1"))),
            (
                format!("a/manifests/manifests/{digest}"),
                Endpoint::Manifest(name("a/manifests"), tag(&digest)),
            ),
            ("a/blobs/uploads/manifests/v1".into(), Endpoint::Manifest(name("a/blobs/uploads"), tag("v1"))),
            (format!("a/blobs/{digest}"), Endpoint::Blob(name("a"), parsed)),
            ("a/blobs/uploads".into(), Endpoint::Uploads(name("a"))),
            ("a/blobs/uploads/".into(), Endpoint::Uploads(name("a"))),
            (format!("a/b/blobs/uploads/{id}"), Endpoint::Upload(name("a/b"), Some(id))),
            ("a/blobs/uploads/nothing".into(), Endpoint::Upload(name("a"), None)),
            (format!("a/referrers/{digest}"), Endpoint::Referrers(name("a"), parsed)),
        ] {
            assert_eq!(endpoint(&path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn wrong_names_and_unknown_shapes_are_told_apart() {
        assert_eq!(endpoint("x"), Err(RouteError::NoEndpoint));
        assert_eq!(endpoint("a/b/c"), Err(RouteError::NoEndpoint));
        assert_eq!(endpoint("a/blobs/uploads/../x"), Err(RouteError::NoEndpoint));
        assert_eq!(endpoint("../../etc/manifests/v1"), Err(RouteError::Name(NameError::Repository)));
        assert_eq!(endpoint("a/manifests/.."), Err(RouteError::Name(NameError::Reference)));
        assert_eq!(endpoint("a/blobs/sha256:12"), Err(RouteError::Name(NameError::Digest)));
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "[a-z./:_%-]{0,60}") {
            let _ = endpoint(&path);
        }
    }
}
