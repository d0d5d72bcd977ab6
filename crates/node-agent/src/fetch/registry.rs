// SPDX-License-Identifier: Apache-2.0
//! Client of OCI registries (distribution spec v1.1): manifests and blobs, anonymous, Basic or by token, with resuming.
//!
//! It trusts nothing it passes on: whoever reads the bytes verifies them. TLS trusts the CAs given with the request and
//! those of the system, where the node has them; plain HTTP is spoken only where the base URL says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipc::calls::{FetchObject, ImageRequest};
use model::reason::{Fault, Reason};
use oci::challenge::{Challenge, escape};
use serde::Deserialize;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::client::{Agents, Login, Opened, REGISTRY, fault_of, range, range_start};

/// A token without a life time lives this long (distribution spec).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Largest answer of a token server.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// Tokens kept.
const MAX_KEPT: usize = 16;
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// The client. Connections and tokens are kept for speed only; it may be dropped at any time.
#[derive(Debug)]
pub struct Registries {
    agents: Arc<Agents>,
    tokens: Mutex<BTreeMap<TokenKey, (String, Instant)>>,
}

/// Base URL, repository and user: a token of one user must not serve another.
type TokenKey = (String, String, Option<(String, String)>);

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Registries {
    pub fn new(agents: Arc<Agents>) -> Registries {
        Registries { agents, tokens: Mutex::default() }
    }

    /// Asks for a manifest or blob.
    pub fn open(&self, request: &ImageRequest, login: Option<&Login>) -> Result<Opened, Fault> {
        let target = Target::of(request)?;
        let agent = self.agents.get(&target.base_url, &request.source.registry.ca_pem, &REGISTRY)?;
        let key = (
            target.base_url.clone(),
            target.repository.clone(),
            login.map(|login| (login.user.clone(), login.password.clone())),
        );
        let mut authorization = self.token(&key);
        let mut answer = target.ask(&agent, authorization.as_deref(), (request.offset, request.length))?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenges = answer.headers().get_all("www-authenticate");
            let challenge = Challenge::choose(challenges.iter().filter_map(|value| value.to_str().ok()));
            authorization = Some(self.authorize(&agent, &target, challenge, &key, login)?);
            answer = target.ask(&agent, authorization.as_deref(), (request.offset, request.length))?;
        }
        target.opened(answer, request.offset)
    }

    fn token(&self, key: &TokenKey) -> Option<String> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, until)| *until > Instant::now());
        tokens.get(key).map(|(token, _)| token.clone())
    }

    /// The `Authorization` header that answers a challenge.
    fn authorize(
        &self,
        agent: &Agent,
        target: &Target,
        challenge: Option<Challenge>,
        key: &TokenKey,
        login: Option<&Login>,
    ) -> Result<String, Fault> {
        let refused = |message: String| Fault::new(Reason::RegistryAuthRefused, message);
        let basic = login
            .map(|login| format!("Basic {}", STANDARD.encode(format!("{}:{}", login.user, login.password))));
        let (realm, service, scope) = match challenge {
            None => return Err(refused(format!("{target}: the registry wants a login of an unknown kind"))),
            Some(Challenge::Basic) => {
                return basic.ok_or_else(|| {
                    refused(format!("{target}: the registry wants a user name and password"))
                });
            }
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
        };
        // A registry behind TLS has no business sending passwords in the clear.
        let is_clear_text = target.base_url.starts_with("http://");
        let is_fit = realm.starts_with("https://") || (is_clear_text && realm.starts_with("http://"));
        if !is_fit {
            return Err(refused(format!("{target}: the registry's token server is not https")));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", target.repository));
        let mut url =
            format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escape(&scope));
        if let Some(service) = service {
            url += &format!("&service={}", escape(&service));
        }
        let mut ask = agent.get(&url);
        if let Some(basic) = &basic {
            ask = ask.header("authorization", basic);
        }
        let mut answer = ask.call().map_err(|error| fault_of(&error, &realm, &REGISTRY))?;
        match answer.status().as_u16() {
            200 => {}
            400 | 401 | 403 => {
                return Err(refused(format!("{target}: the registry's token server refused the login")));
            }
            status => {
                let message = format!("{target}: the registry's token server answered {status}");
                return Err(Fault::new(Reason::RegistryUnreachable, message));
            }
        }
        let unreadable = || refused(format!("{target}: the registry's token server sent no token"));
        let bytes =
            answer.body_mut().with_config().limit(MAX_TOKEN_BYTES).read_to_vec().map_err(|_| unreadable())?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
        let token =
            answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(unreadable)?;
        let token = format!("Bearer {token}");
        let life = answer.expires_in.map_or(TOKEN_LIFE, Duration::from_secs).min(Duration::from_secs(3600));
        // Not used in its last tenth: it must not run out on the way.
        let until = Instant::now() + life * 9 / 10;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_KEPT {
            tokens.pop_first();
        }
        tokens.insert(key.clone(), (token.clone(), until));
        Ok(token)
    }
}

/// One object of one repository.
struct Target {
    base_url: String,
    repository: String,
    path: String,
    is_manifest: bool,
}

impl Target {
    fn of(request: &ImageRequest) -> Result<Target, Fault> {
        let source = &request.source;
        let invalid =
            |what: &str| Fault::new(Reason::InvalidConfig, format!("{what} in {:?}", source.repository));
        let base_url = source.registry.base_url.trim_end_matches('/');
        let is_plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic() && !b"?#%\\".contains(&c))
        };
        let authority = base_url.strip_prefix("https://").or_else(|| base_url.strip_prefix("http://"));
        if !authority.is_some_and(|authority| is_plain(authority) && !authority.contains(['/', '@'])) {
            return Err(Fault::new(
                Reason::InvalidConfig,
                format!("{base_url:?} is no address of a registry"),
            ));
        }
        if !is_plain(&source.repository)
            || source.repository.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(invalid("no repository"));
        }
        // Docker's registry answers under another name, and its own images have a repository of one word.
        let is_docker = matches!(authority, Some("docker.io" | "index.docker.io"));
        let base_url = if is_docker { "https://registry-1.docker.io" } else { base_url };
        let mut repository = source.repository.clone();
        if is_docker && !repository.contains('/') {
            repository = format!("library/{repository}");
        }
        let (path, is_manifest) = match &request.object {
            FetchObject::Manifest { reference } if is_plain(reference) && !reference.contains('/') => {
                (format!("manifests/{reference}"), true)
            }
            FetchObject::Manifest { .. } => return Err(invalid("no tag or digest")),
            FetchObject::Blob { digest } => (format!("blobs/{digest}"), false),
        };
        Ok(Target { base_url: base_url.into(), repository, path, is_manifest })
    }

    fn ask(
        &self,
        agent: &Agent,
        authorization: Option<&str>,
        (offset, length): (u64, Option<u64>),
    ) -> Result<Response<Body>, Fault> {
        let mut ask = agent.get(format!("{}/v2/{}/{}", self.base_url, self.repository, self.path));
        if self.is_manifest {
            ask = ask.header("accept", ACCEPT);
        } else if let Some(range) = range(offset, length) {
            ask = ask.header("range", range);
        }
        if let Some(authorization) = authorization {
            ask = ask.header("authorization", authorization);
        }
        ask.call().map_err(|error| fault_of(&error, &self.to_string(), &REGISTRY))
    }

    fn opened(&self, answer: Response<Body>, asked_offset: u64) -> Result<Opened, Fault> {
        let offset = match answer.status().as_u16() {
            200 => 0,
            206 => match answer
                .headers()
                .get("content-range")
                .and_then(|value| range_start(value.to_str().ok()?))
            {
                Some(offset) if offset <= asked_offset => offset,
                _ => {
                    let message = format!("{self}: the registry sent another part than asked for");
                    return Err(Fault::new(Reason::RegistryUnreachable, message));
                }
            },
            404 => return Err(Fault::new(Reason::ImageNotFound, format!("{self} is not in the registry"))),
            401 | 403 => {
                return Err(Fault::new(
                    Reason::RegistryAuthRefused,
                    format!("{self}: the registry refused the login"),
                ));
            }
            status => {
                return Err(Fault::new(
                    Reason::RegistryUnreachable,
                    format!("{self}: the registry answered {status}"),
                ));
            }
        };
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let media_type =
            header("content-type").unwrap_or("").split(';').next().unwrap_or("").trim().to_string();
        let size = header("content-length").and_then(|text| text.parse().ok());
        Ok(Opened { media_type, size, offset, body: Box::new(answer.into_body().into_reader()) })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.base_url, self.repository, self.path)
    }
}

#[cfg(test)]
pub(super) mod tests;
