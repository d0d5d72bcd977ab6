// SPDX-License-Identifier: Apache-2.0
//! One TLS port for everything: device API, operator API, registry.
//!
//! An accept loop of our own: the number of connections is limited, a handshake and a request's head must come in
//! time, so clients that stop half way hold up nobody. TLS 1.3, and 1.2 with the two suites EVE offers; sessions are
//! resumed, since EVE opens a connection per request. Only HTTP/1.1 is offered.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::ring::{Ticketer, cipher_suite as suite};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedCipherSuite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::device_api;
use crate::state::Controller;
use crate::telemetry::Api;

/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the head of a request, and how long a kept connection may rest.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Sessions of TLS 1.2 clients that are remembered.
const TLS_SESSIONS: usize = 32_768;
/// How long sent bytes may stay unacknowledged.
const UNACKNOWLEDGED_MS: u32 = 90_000;
/// A connection that rests this long is probed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Pause after an accept failed, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Length of the queue of connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Where the device API lives.
const DEVICE_API: &str = "/api/v2/edgedevice";
/// Where the registry lives.
const REGISTRY_API: &str = "/v2";

/// TLS 1.3, and of 1.2 the two suites that EVE offers and two more that common clients prefer.
const SUITES: &[SupportedCipherSuite] = &[
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
];

/// The TLS certificate in use; another one can take its place while the server runs.
#[derive(Debug)]
pub(crate) struct TlsCert(RwLock<Arc<CertifiedKey>>);

impl TlsCert {
    pub(crate) fn new(key: Arc<CertifiedKey>) -> Arc<TlsCert> {
        Arc::new(TlsCert(RwLock::new(key)))
    }
    pub(crate) fn replace(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

impl ResolvesServerCert for TlsCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The TLS side of the server.
pub(crate) fn tls_config(cert: Arc<TlsCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: SUITES.to_vec(),
        ..rustls::crypto::ring::default_provider()
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(cert);
    config.session_storage = ServerSessionMemoryCache::new(TLS_SESSIONS);
    config.ticketer = Ticketer::new()?;
    // One ticket is enough for clients that open one connection at a time; each costs bytes and a signature.
    config.send_tls13_tickets = 1;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Where a request came from, among its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub SocketAddr);

/// Opens the port.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` becomes true.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    controller: Arc<Controller>,
    router: Router,
    max_connections: usize,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(max_connections));
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                Some((slot, listener.accept().await))
            } => accepted,
        };
        match accepted {
            None => return,
            Some((slot, Ok((stream, peer)))) => {
                let (acceptor, controller, router) = (acceptor.clone(), controller.clone(), router.clone());
                tokio::spawn(async move {
                    connection(stream, Peer(peer), acceptor, controller, router).await;
                    drop(slot);
                });
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    acceptor: TlsAcceptor,
    controller: Arc<Controller>,
    router: Router,
) {
    set_up(&stream);
    let _open = Open::count(&controller);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
        return;
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (controller, router) = (controller.clone(), router.clone());
        async move { Ok::<_, Infallible>(answer(&controller, router, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// A connection that is counted as long as it is open.
struct Open(Arc<Controller>);

impl Open {
    fn count(controller: &Arc<Controller>) -> Open {
        controller.counters.connections.fetch_add(1, Ordering::Relaxed);
        Open(controller.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A failure here costs only speed, or patience with a client that is gone.
fn set_up(stream: &TcpStream) {
    // Answers are small and complete; waiting to fill a segment only delays them.
    let _ = stream.set_nodelay(true);
    // A client that takes nothing, or whose line is dead, does not keep its connection for ever.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS);
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
    let _ = rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE);
}

async fn answer(controller: &Arc<Controller>, router: Router, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let api = match path {
        path if path.starts_with(DEVICE_API) => Api::Device,
        path if path.starts_with(REGISTRY_API) => Api::Registry,
        _ => Api::Operator,
    };
    let response = match api {
        Api::Device => device_api::answer(controller, request).await,
        Api::Operator | Api::Registry => match router.oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    };
    controller.counters.request(api, response.status().as_u16());
    response
}
