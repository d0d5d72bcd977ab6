// SPDX-License-Identifier: Apache-2.0
//! What clients of registries and of web servers share: connections with their trust, and how failures are told.
//!
//! TLS trusts the CAs given with the request and those of the system, where the node has them.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::reason::{Fault, Reason};
use ureq::Agent;
use ureq::config::{Config, RedirectAuthHeaders};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;

use crate::resolve::Dns;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Until the first byte of an answer: servers look content up in slow storage.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence within a stream after which the connection counts as dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Servers whose connections are kept.
const MAX_KEPT: usize = 16;
/// Redirects followed: storage behind a registry or a mirror is one or two away.
const MAX_REDIRECTS: u32 = 5;

/// User name and password.
pub struct Login {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

/// An answer whose bytes are still to come.
pub struct Opened {
    pub media_type: String,
    /// Bytes that follow.
    pub size: Option<u64>,
    /// Offset of the first of them.
    pub offset: u64,
    pub body: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened({}, {:?} bytes from {})", self.media_type, self.size, self.offset)
    }
}

/// The kind of server that is spoken with, for reasons and their words.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    pub unreachable: Reason,
    pub untrusted: Reason,
}

pub const REGISTRY: Peer =
    Peer { name: "registry", unreachable: Reason::RegistryUnreachable, untrusted: Reason::RegistryUntrusted };
pub const SERVER: Peer = Peer {
    name: "datastore",
    unreachable: Reason::DatastoreUnreachable,
    untrusted: Reason::DatastoreUntrusted,
};

/// Connections, kept for speed only.
#[derive(Debug)]
pub struct Agents {
    dns: Dns,
    system_roots: Vec<Certificate<'static>>,
    agents: Mutex<BTreeMap<(String, Vec<String>), Agent>>,
}

impl Agents {
    /// `system_roots_pem`: CA certificates trusted for every server.
    pub fn new(dns: Dns, system_roots_pem: &[u8]) -> Agents {
        Agents { dns, system_roots: certificates(system_roots_pem), agents: Mutex::default() }
    }

    /// For a server by its scheme and authority.
    pub fn get(&self, base_url: &str, ca_pem: &[String], peer: &Peer) -> Result<Agent, Fault> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (base_url.to_string(), ca_pem.to_vec());
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let mut roots = self.system_roots.clone();
        for pem in ca_pem {
            let own = certificates(pem.as_bytes());
            if own.is_empty() {
                let message = format!("{base_url}: the CA certificate of the {} is not readable", peer.name);
                return Err(Fault::new(peer.untrusted, message));
            }
            roots.extend(own);
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config: Config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // What was asked for over TLS is not sent on in the clear.
            .https_only(base_url.starts_with("https://"))
            .max_redirects(MAX_REDIRECTS)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .proxy(None)
            .user_agent(concat!("selvedge/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .max_idle_connections_per_host(4)
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), self.dns.clone());
        if agents.len() >= MAX_KEPT {
            agents.pop_first();
        }
        agents.insert(key, agent.clone());
        Ok(agent)
    }
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    items.collect()
}

/// Tells a certificate that is not trusted from a server that cannot be reached.
pub(super) fn fault_of(error: &ureq::Error, what: &str, peer: &Peer) -> Fault {
    let tls = match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match (tls, error) {
        (Some(rustls::Error::InvalidCertificate(why)), _) => {
            Fault::new(peer.untrusted, format!("{what}: certificate refused: {why}"))
        }
        (Some(error), _) => Fault::new(peer.unreachable, format!("{what}: {error}")),
        (None, ureq::Error::Other(inner)) => Fault::new(peer.unreachable, format!("{what}: {inner}")),
        (None, error) => Fault::new(peer.unreachable, format!("{what}: {error}")),
    }
}

/// The header that asks for a part; nothing: the whole is wanted.
pub(super) fn range(offset: u64, length: Option<u64>) -> Option<String> {
    match length {
        // a range has at least one byte
        Some(length) => {
            let last = offset.saturating_add(length.max(1) - 1);
            Some(format!("bytes={offset}-{last}"))
        }
        None if offset > 0 => Some(format!("bytes={offset}-")),
        None => None,
    }
}

/// `bytes 10-19/20` starts at 10.
pub(super) fn range_start(untrusted_text: &str) -> Option<u64> {
    untrusted_text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
