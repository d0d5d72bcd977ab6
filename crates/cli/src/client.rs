// SPDX-License-Identifier: Apache-2.0
//! Client of the operator API.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use controller::operator_api::{BASE, Problem};
use controller_core::resource::{DEFAULT_PROJECT, Kind};
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::advice::Advice;
use crate::args::Connection;

/// A plan of a large fleet takes a while.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A controller that does not take a connection in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer.
const MAX_ANSWER_BYTES: u64 = 256 * 1024 * 1024;

/// The controller said no.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) problem: Problem,
}

impl ApiError {
    /// Something has changed meanwhile; what was asked would be right otherwise.
    pub(crate) fn is_refusal(&self) -> bool {
        self.problem.status == 409
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.detail)?;
        for error in &self.problem.errors {
            let dot = if error.object.is_empty() { "" } else { ": " };
            write!(f, "\n  {}{dot}{}: {}", error.object, error.path, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

/// Where the controller is, and how it knows us.
pub(crate) struct Target {
    pub(crate) server: String,
    token: String,
    /// Its root certificate in PEM.
    pub(crate) ca: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Target {
    /// From what was given, and from the data directory for the rest.
    pub(crate) fn resolve(connection: &Connection) -> anyhow::Result<Target> {
        let data = &connection.data;
        let read = |name: &str| {
            let path = data.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                let next = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        "run this as the controller's user or with sudo; or give --server, --token and --ca"
                    }
                    _ => {
                        "on the controller's host give --data DIR (or SELVEDGE_DATA); elsewhere --server, --token and \
                         --ca (or SELVEDGE_SERVER, SELVEDGE_TOKEN, SELVEDGE_CA)"
                    }
                };
                Advice::new(format!("cannot read {}", path.display()), next).because(error)
            })
        };
        let server = match &connection.server {
            Some(server) => server.trim_end_matches('/').to_owned(),
            None => {
                let file: Value =
                    serde_json::from_str(&read("client.json")?).context("client.json is damaged")?;
                file["server"].as_str().ok_or_else(|| anyhow!("client.json names no server"))?.to_owned()
            }
        };
        let token = match &connection.token {
            Some(token) => token.trim().to_owned(),
            None => read("admin-token")?.trim().to_owned(),
        };
        let ca = match &connection.ca {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            }
            None => read("pki/root-certificate.pem")?,
        };
        Ok(Target { server, token, ca })
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    base: String,
    token: String,
}

impl Client {
    pub(crate) fn connect(connection: &Connection) -> anyhow::Result<Client> {
        Client::new(&Target::resolve(connection)?)
    }

    pub(crate) fn new(target: &Target) -> anyhow::Result<Client> {
        Client::with_patience(target, TIMEOUT)
    }

    /// A client that gives a request up after `patience`.
    pub(crate) fn with_patience(target: &Target, patience: Duration) -> anyhow::Result<Client> {
        let root = Certificate::from_pem(target.ca.as_bytes()).context("the root certificate is no PEM")?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::new_with_certs(&[root]))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(patience))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(patience)))
            .user_agent(concat!("selvedge/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let Target { server, token, .. } = target;
        Ok(Client { agent, base: format!("{server}{BASE}/projects/{DEFAULT_PROJECT}"), token: token.clone() })
    }

    /// Path below the project, with names as they stand.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}/{path}", self.base);
        let answer = self.agent.get(&url).header("Authorization", format!("Bearer {}", self.token)).call();
        self.read(answer)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}/{path}", self.base);
        let answer = self
            .agent
            .post(&url)
            .header("Authorization", format!("Bearer {}", self.token))
            .header("Content-Type", "application/json")
            .send(body.to_string());
        self.read(answer)
    }

    pub(crate) fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}/{path}", self.base);
        let answer = self.agent.delete(&url).header("Authorization", format!("Bearer {}", self.token)).call();
        self.read(answer)
    }

    /// The body of an answer that goes on; it ends with an error after `silence`.
    pub(crate) fn stream(
        &self,
        path: &str,
        silence: Duration,
    ) -> anyhow::Result<impl std::io::Read + Send + 'static> {
        let url = format!("{}/{path}", self.base);
        let answer = self
            .agent
            .get(&url)
            .config()
            .timeout_global(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_per_read(Some(silence))
            .build()
            .header("Authorization", format!("Bearer {}", self.token))
            .call();
        match answer {
            Ok(answer) if answer.status().is_success() => Ok(answer.into_body().into_reader()),
            other => Err(self.read(other).err().unwrap_or_else(|| anyhow!("the controller gave no stream"))),
        }
    }

    /// The address that was connected to, for messages.
    pub(crate) fn server(&self) -> &str {
        self.base.split("/apis/").next().unwrap_or(&self.base)
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut answer = answer.map_err(|error| {
            let what = format!("cannot reach the controller at {}", self.server());
            Advice::new(what, "find out why with: selvedge doctor").because(error)
        })?;
        let text = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string()?;
        if answer.status().is_success() {
            if text.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_str(&text).context("the controller's answer is no JSON");
        }
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => Err(ApiError { problem }.into()),
            Err(_) => Err(anyhow!("the controller answered {}: {}", answer.status(), text.trim())),
        }
    }
}

/// `KIND/NAME`, or `KIND` and `NAME` as two words. The name may be missing.
pub(crate) fn parse_object(words: &[String]) -> anyhow::Result<(Kind, Option<String>)> {
    let (kind, name) = match words {
        [one] => match one.split_once('/') {
            Some((kind, name)) => (kind, Some(name.to_owned())),
            None => (one.as_str(), None),
        },
        [kind, name] => (kind.as_str(), Some(name.clone())),
        _ => return Err(anyhow!("name an object like app/hello")),
    };
    let kinds = || Kind::ALL.map(Kind::singular).join(", ");
    let kind = Kind::parse(kind)
        .ok_or_else(|| anyhow!("there is no kind called '{kind}'; kinds are {}", kinds()))?;
    let is_plain = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
    };
    if let Some(name) = name.as_ref().filter(|name| !is_plain(name)) {
        return Err(anyhow!("'{name}' cannot be the name of an object"));
    }
    Ok((kind, name))
}

/// An object with its name.
pub(crate) fn parse_named(text: &str) -> anyhow::Result<(Kind, String)> {
    let (kind, name) = parse_object(&[text.to_owned()])?;
    Ok((kind, name.ok_or_else(|| anyhow!("'{text}' is no KIND/NAME like app/hello"))?))
}
