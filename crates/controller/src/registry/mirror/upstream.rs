// SPDX-License-Identifier: Apache-2.0
//! Client of an upstream registry: manifests and blobs, anonymous, Basic or by token. Blocking. It trusts nothing it
//! passes on: whoever reads the bytes verifies them.

use crate::registry::name::Reference;
use base64::Engine as _;
use model::id::Digest;
use oci::challenge::{Challenge, escape};
use serde::Deserialize;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the first byte: registries look blobs up in slow storage.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence within a blob after which the connection counts as dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer of a token server.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// The certificates that programs of this machine trust.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A registry whose images are copied when they are asked for.
#[derive(Clone)]
pub struct Upstream {
    /// `https://HOST` or `http://HOST`.
    pub base_url: String,
    /// Before every repository; empty or `a/b`.
    pub path: String,
    /// Trusted besides the machine's own roots.
    pub ca_pem: Option<String>,
    pub login: Option<(String, String)>,
    /// What copies of it may take.
    pub quota_bytes: u64,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// Why an upstream gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::registry) enum UpstreamError {
    /// It says that it has no such thing.
    #[error("the upstream registry does not have it")]
    Unknown,
    #[error("the upstream registry refuses the login: {0}")]
    Refused(String),
    #[error("the upstream registry cannot be reached: {0}")]
    Unreachable(String),
}

/// An answer whose bytes are still to come.
pub(super) struct Opened {
    pub(super) media_type: String,
    pub(super) digest: Option<String>,
    pub(super) size: Option<u64>,
    pub(super) body: Box<dyn Read + Send>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Clone, Copy)]
enum Ask {
    Get,
    Head,
}

impl Upstream {
    /// The manifest, whatever its form.
    pub(super) fn manifest(&self, repository: &str, reference: &Reference) -> Result<Opened, UpstreamError> {
        self.open(Ask::Get, repository, &manifest_path(reference))
    }

    /// What the manifest's digest is, where the upstream says so.
    pub(super) fn manifest_digest(
        &self,
        repository: &str,
        reference: &Reference,
    ) -> Result<Option<String>, UpstreamError> {
        Ok(self.open(Ask::Head, repository, &manifest_path(reference))?.digest)
    }

    pub(super) fn blob(&self, repository: &str, digest: Digest) -> Result<Opened, UpstreamError> {
        self.open(Ask::Get, repository, &format!("blobs/{digest}"))
    }

    /// Docker's registry answers under another name, and its own images have a repository of one word.
    fn target(&self, repository: &str) -> (String, String) {
        let host = self.base_url.split("://").nth(1).unwrap_or_default();
        let is_docker = matches!(host, "docker.io" | "index.docker.io");
        let base =
            if is_docker { "https://registry-1.docker.io" } else { self.base_url.trim_end_matches('/') };
        let separator = if self.path.is_empty() { "" } else { "/" };
        let mut full = format!("{}{separator}{repository}", self.path.trim_matches('/'));
        if is_docker && !full.contains('/') {
            full = format!("library/{full}");
        }
        (base.to_owned(), full)
    }

    fn open(&self, ask: Ask, repository: &str, path: &str) -> Result<Opened, UpstreamError> {
        let agent = self.agent()?;
        let (base, repository) = self.target(repository);
        let url = format!("{base}/v2/{repository}/{path}");
        let mut answer = send(&agent, ask, &url, None)?;
        if answer.status() == 401 {
            let headers = answer.headers().get_all("www-authenticate");
            let challenge = Challenge::choose(headers.iter().filter_map(|value| value.to_str().ok()));
            let authorization = self.authorize(&agent, &base, &repository, challenge)?;
            answer = send(&agent, ask, &url, Some(&authorization))?;
        }
        match answer.status().as_u16() {
            200 => {}
            404 => return Err(UpstreamError::Unknown),
            status @ (401 | 403) => return Err(UpstreamError::Refused(format!("{url} answered {status}"))),
            status => return Err(UpstreamError::Unreachable(format!("{url} answered {status}"))),
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        Ok(Opened {
            media_type: header("content-type").unwrap_or_default().to_owned(),
            digest: header("docker-content-digest").map(str::to_owned),
            size: header("content-length").and_then(|text| text.parse().ok()),
            body: Box::new(answer.into_body().into_reader()),
        })
    }

    fn agent(&self) -> Result<Agent, UpstreamError> {
        let mut roots = certificates(&std::fs::read(SYSTEM_ROOTS).unwrap_or_default());
        if let Some(pem) = &self.ca_pem {
            let own = certificates(pem.as_bytes());
            if own.is_empty() {
                return Err(UpstreamError::Unreachable("its CA certificate cannot be read".into()));
            }
            roots.extend(own);
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        Ok(Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("selvedge/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build()
            .new_agent())
    }

    /// The `Authorization` that answers a challenge.
    fn authorize(
        &self,
        agent: &Agent,
        base: &str,
        repository: &str,
        challenge: Option<Challenge>,
    ) -> Result<String, UpstreamError> {
        let refused = |why: &str| UpstreamError::Refused(why.to_owned());
        let basic = self.login.as_ref().map(|(user, password)| {
            let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {text}")
        });
        let (realm, service, scope) = match challenge {
            None => return Err(refused("it wants a login of an unknown kind")),
            Some(Challenge::Basic) => {
                return basic
                    .ok_or_else(|| refused("it wants a user name and password: give spec.credentials"));
            }
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
        };
        // A registry behind TLS has no business sending passwords in the clear.
        let is_clear = base.starts_with("http://") && realm.starts_with("http://");
        if !realm.starts_with("https://") && !is_clear {
            return Err(refused("its token server is not https"));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
        let mark = if realm.contains('?') { '&' } else { '?' };
        let mut url = format!("{realm}{mark}scope={}", escape(&scope));
        if let Some(service) = service {
            url.push_str(&format!("&service={}", escape(&service)));
        }
        let mut request = agent.get(&url);
        if let Some(basic) = &basic {
            request = request.header("authorization", basic);
        }
        let mut answer = request.call().map_err(|error| UpstreamError::Unreachable(error.to_string()))?;
        match answer.status().as_u16() {
            200 => {}
            400 | 401 | 403 => return Err(refused("its token server refuses it: see spec.credentials")),
            status => return Err(UpstreamError::Unreachable(format!("its token server answered {status}"))),
        }
        let bytes = answer.body_mut().with_config().limit(MAX_TOKEN_BYTES).read_to_vec();
        let token = bytes.ok().and_then(|bytes| serde_json::from_slice::<TokenAnswer>(&bytes).ok());
        let token =
            token.and_then(|answer| answer.token.or(answer.access_token)).filter(|token| !token.is_empty());
        token.map(|token| format!("Bearer {token}")).ok_or_else(|| refused("its token server sent no token"))
    }
}

fn manifest_path(reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("manifests/{}", tag.as_str()),
        Reference::Digest(digest) => format!("manifests/{digest}"),
    }
}

fn send(
    agent: &Agent,
    ask: Ask,
    url: &str,
    authorization: Option<&str>,
) -> Result<Response<Body>, UpstreamError> {
    let mut request = match ask {
        Ask::Get => agent.get(url),
        Ask::Head => agent.head(url),
    };
    request = request.header("accept", ACCEPT);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.call().map_err(|error| UpstreamError::Unreachable(format!("{url}: {error}")))
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    items.collect()
}
