// SPDX-License-Identifier: Apache-2.0
//! Who may do what. The registry asks an [`Authorize`] of its owner for every request; it keeps no
//! user and no password itself. Basic credentials and bearer tokens are passed on as they came; the
//! challenge is always Basic, there is no token service.

use super::name::RepositoryName;
use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use std::fmt;

/// Sent with every 401.
pub(super) const CHALLENGE: &str = "Basic realm=\"registry\", charset=\"UTF-8\"";

/// What a request proves about its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credentials<'a> {
    /// Nothing; also what clients mean by an empty name with an empty password.
    Anonymous,
    /// RFC 7617.
    Basic {
        /// The part before the first colon.
        username: &'a str,
        /// The rest.
        password: &'a str,
    },
    /// RFC 6750.
    Bearer(&'a str),
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => {
                f.debug_struct("Basic").field("username", username).finish_non_exhaustive()
            }
            Self::Bearer(_) => f.write_str("Bearer(..)"),
        }
    }
}

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `GET /v2/`: are these credentials any good?
    Check,
    /// List all repositories.
    Catalog,
    /// Read manifests, blobs and tags of one repository.
    Pull,
    /// Write to one repository.
    Push,
    /// Delete from one repository.
    Delete,
}

/// The answer of an [`Authorize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// 401: credentials are missing or wrong.
    Unauthenticated,
    /// 403: known, but not allowed to do this.
    Deny,
}

/// Decides about requests. Called once or twice per request on a thread that serves others too: it
/// must answer from memory.
pub trait Authorize: Send + Sync + 'static {
    /// `repository` is given for [`Action::Pull`], [`Action::Push`] and [`Action::Delete`].
    fn authorize(
        &self,
        credentials: Credentials<'_>,
        repository: Option<&RepositoryName>,
        action: Action,
    ) -> Decision;
}

/// What a registry does before its owner says otherwise: nobody may do anything.
#[derive(Debug, Clone, Copy)]
pub struct RefuseAll;

impl Authorize for RefuseAll {
    fn authorize(&self, _: Credentials<'_>, _: Option<&RepositoryName>, _: Action) -> Decision {
        Decision::Unauthenticated
    }
}

/// Everybody may do everything; for tests and closed networks.
#[derive(Debug, Clone, Copy)]
pub struct AllowAll;

impl Authorize for AllowAll {
    fn authorize(&self, _: Credentials<'_>, _: Option<&RepositoryName>, _: Action) -> Decision {
        Decision::Allow
    }
}

/// Whether pulling needs credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnonymousPull {
    /// Whoever sends no credentials may pull all repositories. `GET /v2/` still asks for credentials,
    /// since clients decide by it whether to send any when they push.
    Allowed,
    /// The [`Authorize`] decides about every request.
    Refused,
}

/// The `Authorization` header, decoded and owned.
#[derive(Default)]
pub(super) enum Presented {
    #[default]
    Nothing,
    Basic {
        username: String,
        password: String,
    },
    Bearer(String),
    /// A header we cannot read: as good as wrong credentials.
    Unreadable,
}

impl Presented {
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let Some(untrusted) = headers.get(header::AUTHORIZATION) else { return Self::Nothing };
        Self::parse(untrusted).unwrap_or(Self::Unreadable)
    }

    fn parse(untrusted: &HeaderValue) -> Option<Self> {
        let (scheme, value) = untrusted.to_str().ok()?.split_once(' ')?;
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer(value.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, password) = decoded.split_once(':')?;
        if username.is_empty() && password.is_empty() {
            return Some(Self::Nothing);
        }
        Some(Self::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    /// `None` when the header was unreadable.
    pub(super) fn credentials(&self) -> Option<Credentials<'_>> {
        match self {
            Self::Nothing => Some(Credentials::Anonymous),
            Self::Basic { username, password } => Some(Credentials::Basic { username, password }),
            Self::Bearer(token) => Some(Credentials::Bearer(token)),
            Self::Unreadable => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(value: &str) -> Presented {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        Presented::from_headers(&headers)
    }

    #[test]
    fn credentials_are_read_from_both_schemes() {
        let basic = presented("basic YWRtaW46YTpi");
        assert_eq!(basic.credentials(), Some(Credentials::Basic { username: "admin", password: "a:b" }));
        assert_eq!(presented("Bearer tok").credentials(), Some(Credentials::Bearer("tok")));
        assert_eq!(presented("Basic Og==").credentials(), Some(Credentials::Anonymous));
        assert_eq!(Presented::from_headers(&HeaderMap::new()).credentials(), Some(Credentials::Anonymous));
        for unreadable in ["Basic", "Basic ????", "Basic YWRtaW4=", "Digest x", "Basic /w=="] {
            assert_eq!(presented(unreadable).credentials(), None, "{unreadable}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let shown = format!(
            "{:?}",
            [Credentials::Basic { username: "u", password: "geheim" }, Credentials::Bearer("geheim")]
        );
        assert!(!shown.contains("geheim"), "{shown}");
    }
}
