// SPDX-License-Identifier: Apache-2.0
//! Starts everything on a data directory and runs until told to stop.
//!
//! ```text
//! DATA/pki/             keys and certificates          DATA/observed/   what devices reported
//! DATA/intent.db        intent (SQLite)                DATA/registry/   images
//! DATA/admin-token      who has it is the operator     DATA/client.json where the CLI finds this controller
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::files;
use crate::notify::Systemd;
use crate::operator_api::{self, ImageUses, MirroredRegistries, RegistryUsers};
use crate::registry::{self, Registry, Run};
use crate::server::{self, TlsCert};
use crate::state::{Controller, Settings, StateError};
use crate::store::{SqliteStore, StoreError};
use crate::telemetry::otlp;

/// How often certificates are looked at and given up uploads dropped.
const CHORES: Duration = Duration::from_secs(600);
/// How often it is written down when devices were heard: after any end it is known to this.
const HEARTBEATS: Duration = Duration::from_secs(2);
/// How often garbage of the registry is collected: the grace period is a day, so more often finds little.
const COLLECT: Duration = Duration::from_secs(6 * 3600);
/// Time for requests to end after the signal to stop.
const STOP_TIME: Duration = Duration::from_secs(2);

/// What `serve` was asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// `host:port` that devices reach; left out: this machine's address.
    pub advertise: Option<String>,
    /// Longest time an unchanged config's answer is held.
    pub hold: Duration,
    /// More names and addresses for the TLS certificate.
    pub names: Vec<String>,
    pub max_connections: usize,
    /// Collector to send figures and logs to, and the queue its logs come through.
    pub otlp: Option<(otlp::Target, otlp::LogQueue)>,
    /// Where figures can be had without a token.
    pub open_metrics: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("registry")]
    Registry(#[from] registry::OpenError),
    #[error(transparent)]
    Otlp(#[from] otlp::OtlpError),
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("{} is in use by another controller: stop that one, or choose another directory with --data", .0.display())]
    InUse(PathBuf),
    #[error("a restore into {} was cut off: run it again", .0.display())]
    HalfRestored(PathBuf),
    #[error("wait for signals")]
    Signal(#[source] std::io::Error),
}

/// Runs the controller until SIGINT or SIGTERM. `ready` is called with the address once it listens.
pub async fn serve(options: Options, ready: impl FnOnce(SocketAddr, &str)) -> Result<(), ServeError> {
    raise_file_limit();
    files::private_dir(&options.data)?;
    let _lock = files::lock_dir(&options.data)?.ok_or_else(|| ServeError::InUse(options.data.clone()))?;
    if options.data.join(crate::backup::RESTORING).exists() {
        return Err(ServeError::HalfRestored(options.data.clone()));
    }
    let listener =
        server::listen(options.listen).map_err(|source| ServeError::Listen(options.listen, source))?;
    let address = listener.local_addr().map_err(|source| ServeError::Listen(options.listen, source))?;
    let advertise = options.advertise.clone().unwrap_or_else(|| default_advertise(address));
    let store = Arc::new(SqliteStore::open(&options.data.join("intent.db"))?);
    let exported_logs = options.otlp.as_ref().map(|(_, queue)| queue.clone());
    let settings = Settings { advertise: advertise.clone(), hold: options.hold, exported_logs };
    let controller = Arc::new(Controller::open(&options.data, store, settings)?);
    let registry = Registry::open(options.data.join("registry"))?
        .with_authorize(Arc::new(RegistryUsers::new(controller.clone())))
        .with_uses(Arc::new(ImageUses(controller.clone())))
        .with_upstreams(Arc::new(MirroredRegistries(controller.clone())));
    let registry = Arc::new(registry);

    let names = tls_names(&options, address, &advertise);
    let cert = TlsCert::new(controller.ca.tls(&names).map_err(StateError::from)?);
    let tls = server::tls_config(cert.clone())?;
    let router = operator_api::router(controller.clone())
        .merge(operator_api::registry_router(controller.clone(), registry.clone()))
        .merge(registry::router(registry.clone()));
    let client =
        serde_json::json!({ "format": 1, "server": format!("https://{}", reached_from_here(address)) });
    files::write(&options.data.join("client.json"), client.to_string().as_bytes())?;

    if let Some((target, queue)) = options.otlp.clone() {
        otlp::start(&controller, &target, queue)?;
    }
    let open_metrics = options.open_metrics.map(|address| {
        let controller = controller.clone();
        tokio::spawn(async move {
            if let Err(error) = operator_api::figures::serve_open(address, controller).await {
                tracing::error!(%address, %error, "cannot serve figures");
            }
        })
    });
    let (beating, last) = (controller.clone(), controller.clone());
    let (stop, stopped) = watch::channel(false);
    let statuses = tokio::spawn(operator_api::follow_statuses(controller.clone()));
    let heartbeats = tokio::spawn(save_heartbeats(controller.clone()));
    let chores = tokio::spawn(do_chores(controller.clone(), registry, cert, names));
    let server =
        tokio::spawn(server::serve(listener, tls, controller, router, options.max_connections, stopped));
    ready(address, &advertise);
    let systemd = Arc::new(Systemd::from_environment());
    systemd.ready(&format!("listens on {address}"));
    let beats = tokio::spawn(systemd.clone().beat(beating));
    wait_for_signal().await.map_err(ServeError::Signal)?;
    systemd.stopping();
    tracing::info!("stopping");
    stop.send_replace(true);
    open_metrics.inspect(tokio::task::JoinHandle::abort);
    beats.abort();
    heartbeats.abort();
    chores.abort();
    statuses.abort();
    // Whether it ended in time or not, the process ends now.
    let _ = tokio::time::timeout(STOP_TIME, server).await;
    let _ = tokio::task::spawn_blocking(move || last.end()).await;
    Ok(())
}

/// Where a program on this host finds a listener: on its own address, or on loopback when it listens on all.
fn reached_from_here(listens: std::net::SocketAddr) -> std::net::SocketAddr {
    match listens.ip() {
        ip if !ip.is_unspecified() => listens,
        std::net::IpAddr::V4(_) => (std::net::Ipv4Addr::LOCALHOST, listens.port()).into(),
        std::net::IpAddr::V6(_) => (std::net::Ipv6Addr::LOCALHOST, listens.port()).into(),
    }
}

async fn wait_for_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Writes down when devices were heard, as long as the process runs.
async fn save_heartbeats(controller: Arc<Controller>) {
    loop {
        tokio::time::sleep(HEARTBEATS).await;
        let controller = controller.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || controller.save_heartbeats()).await {
            tracing::error!(%error, "writing heartbeats ended in a panic");
        }
    }
}

/// Renews the TLS certificate, sweeps the registry and collects its garbage.
async fn do_chores(
    controller: Arc<Controller>,
    registry: Arc<Registry>,
    cert: Arc<TlsCert>,
    names: Vec<String>,
) {
    let mut until_collected = COLLECT;
    loop {
        tokio::time::sleep(CHORES).await;
        until_collected = until_collected.saturating_sub(CHORES);
        let is_time = until_collected.is_zero();
        if is_time {
            until_collected = COLLECT;
        }
        let (controller, registry, cert, names) =
            (controller.clone(), registry.clone(), cert.clone(), names.clone());
        let done = tokio::task::spawn_blocking(move || {
            match controller.ca.tls(&names) {
                Ok(key) => cert.replace(key),
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the TLS certificate"
                ),
            }
            if let Err(error) = registry.sweep(SystemTime::now()) {
                tracing::error!(%error, "cannot sweep the registry");
            }
            if is_time && let Err(error) = registry.collect(SystemTime::now(), registry::GRACE, Run::Real) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "cannot collect garbage of the registry");
            }
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "chores ended in a panic");
        }
    }
}

/// Each device holds a connection, so the usual 1,024 are few.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The address this machine has towards others; nothing is sent to find it out.
fn default_advertise(address: SocketAddr) -> String {
    let ip =
        if address.ip().is_unspecified() { outgoing_address().unwrap_or(address.ip()) } else { address.ip() };
    let ip = if ip.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { ip };
    SocketAddr::new(ip, address.port()).to_string()
}

fn outgoing_address() -> Option<IpAddr> {
    // A documentation address; connecting a UDP socket only chooses the route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Every name and address under which this controller is reached.
fn tls_names(options: &Options, address: SocketAddr, advertise: &str) -> Vec<String> {
    let host = advertise.rsplit_once(':').map_or(advertise, |(host, _)| host);
    let mut names = vec![host.trim_matches(['[', ']']).to_owned()];
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if !address.ip().is_unspecified() {
        names.push(address.ip().to_string());
    }
    names.extend(rustix::system::uname().nodename().to_str().ok().map(str::to_owned));
    names.extend(options.names.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}
