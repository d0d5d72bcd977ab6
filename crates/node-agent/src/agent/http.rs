// SPDX-License-Identifier: Apache-2.0
//! HTTPS to the controller: one client with kept connections, one thread per lane.
//!
//! TLS 1.3, or 1.2 with the two suites EVE offers; trust is what CONFIG names and nothing of the system. A thread takes
//! one [`Ask`] at a time, has it signed by the vault, sends it and posts a [`Done`]. It decides nothing but this: a
//! request that failed at once on a kept connection is sent once more on a new one, since the controller may have
//! closed it meanwhile and every request may be repeated.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use eve_api::certs::{CertError, der_hash, first_der, parse_pem};
use eve_api::envelope::{Sign, seal_device, seal_register};
use eve_api::newlogs::{self, DeviceComment, LogHeader};
use eve_api::paths::{HEADER_REQUEST_ID, MAX_RESPONSE_BYTES, MIME_PROTO};
use ipc::calls::{LogReply, LogRequest, NetReply, NetRequest, NodeIdentity, VaultReply, VaultRequest};
use model::flow::{FlowCounters, FlowReport};
use model::id::DeviceId;
use model::log::{LogEntry, LogSeverity};
use model::reason::{Fault, Reason};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self as suites, cipher_suite as suite};
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::DefaultConnector;
use uuid::Uuid;

use super::ask::{Ask, HttpReply, Lane, Message, Signer, message};

/// `timer.send.timeout` and `timer.dial.timeout` of EVE.
const SEND_TIMEOUT: Duration = Duration::from_secs(120);
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A kept connection older than this is not used: controllers and middleboxes close them about then.
const IDLE_AGE: Duration = Duration::from_secs(50);
/// A failure within this time may be that of a connection the controller had closed.
const STALE: Duration = Duration::from_millis(500);
/// Requests that may wait in a lane: each machine has one under way at most.
const LANE_QUEUE: usize = 32;
/// JSON bytes in one log file; packed it then stays below the hard limit of 65,536 bytes.
const LOG_FILE_BYTES: usize = 400_000;
/// Hard limit of a packed log file.
const PACKED_LIMIT: usize = 64_000;

/// Other processes that the threads need.
pub trait Services: Send + Sync {
    fn vault(&self, request: VaultRequest) -> Result<VaultReply, Fault>;
    fn log(&self, request: LogRequest) -> Option<LogReply>;
    fn net(&self, request: NetRequest) -> Option<NetReply>;
}

/// The result of an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Http {
        ask: Ask,
        /// The answer, whatever it says, or why there is none.
        result: Result<HttpReply, Fault>,
    },
    Logs {
        batch: Option<u64>,
    },
    /// `lost`: what nobody took in time, since net started.
    Flows {
        batch: Option<Flows>,
        lost: Option<FlowCounters>,
    },
}

/// A flow report that was read: its number, and how much is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    pub batch: u64,
    pub flows: u64,
    pub lookups: u64,
}

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("TLS root certificates of the config directory cannot be read")]
    Roots(#[source] CertError),
    #[error("device or onboarding certificate cannot be read")]
    Own(#[source] CertError),
}

/// Sends requests; shared by the lanes.
pub struct Client {
    http: ureq::Agent,
    base: String,
    identity: NodeIdentity,
    device_hash: [u8; 32],
    onboarding_hash: Option<[u8; 32]>,
    services: Arc<dyn Services>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(
        identity: &NodeIdentity,
        services: Arc<dyn Services>,
        resolver: impl Resolver,
    ) -> Result<Client, ClientError> {
        let roots = parse_pem(identity.tls_root_certs_pem.as_bytes()).map_err(ClientError::Roots)?;
        let roots = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(provider()))
            .build();
        let config = Config::builder()
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls)
            .timeout_global(Some(SEND_TIMEOUT))
            .timeout_connect(Some(DIAL_TIMEOUT))
            .max_idle_age(IDLE_AGE)
            .max_idle_connections_per_host(3)
            .user_agent("selvedge")
            .proxy(None)
            .build();
        let hash =
            |pem: &String| first_der(pem.as_bytes()).map(|der| der_hash(&der)).map_err(ClientError::Own);
        Ok(Client {
            http: ureq::Agent::with_parts(config, DefaultConnector::default(), resolver),
            base: format!("https://{}", identity.server),
            device_hash: hash(&identity.device_cert_pem)?,
            onboarding_hash: identity.onboarding_cert_pem.as_ref().map(hash).transpose()?,
            identity: identity.clone(),
            services,
        })
    }

    fn send(&self, message: Message) -> Result<HttpReply, Fault> {
        let body = self.wrap(&message)?;
        let began = Instant::now();
        match self.send_once(&message, &body) {
            Err(_) if began.elapsed() < STALE => self.send_once(&message, &body),
            other => other,
        }
    }

    fn wrap(&self, message: &Message) -> Result<Vec<u8>, Fault> {
        let payload = message.payload.clone();
        match message.signer {
            Signer::Nobody => Ok(Vec::new()),
            Signer::Device => {
                seal_device(payload, &self.device_hash, &Remote { client: self, is_device: true })
            }
            Signer::Onboarding => {
                let signer = Remote { client: self, is_device: false };
                match (&self.identity.onboarding_cert_pem, &self.onboarding_hash) {
                    (Some(pem), Some(hash)) => seal_register(payload, pem.as_bytes(), hash, &signer),
                    _ => Err(Fault::new(Reason::Internal, "no onboarding certificate")),
                }
            }
        }
    }

    fn send_once(&self, message: &Message, body: &[u8]) -> Result<HttpReply, Fault> {
        let url = format!("{}{}", self.base, message.path);
        let request_id = random_id().to_string();
        let result = if message.signer == Signer::Nobody {
            self.http.get(&url).header(HEADER_REQUEST_ID, request_id).call()
        } else {
            let mut request = self.http.post(&url).header(HEADER_REQUEST_ID, request_id);
            for (name, value) in &message.headers {
                request = request.header(*name, value);
            }
            request.content_type(MIME_PROTO).send(body)
        };
        let mut response = result.map_err(|error| self.fault_of(&error))?;
        let status = response.status().as_u16();
        let limited = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES as u64);
        let untrusted_body = limited.read_to_vec().map_err(|error| self.fault_of(&error))?;
        Ok(HttpReply { status, untrusted_body })
    }

    fn post_flows(&self, device: DeviceId, report: &FlowReport) -> Result<HttpReply, Fault> {
        use eve_api::paths::{DeviceCall, Endpoint};
        let path = Endpoint::Device { device: &device.to_string(), call: DeviceCall::Flowlog }.to_string();
        let report = FlowReport { device: Some(device), ..report.clone() };
        let payload = eve_api::render::flows(&report);
        self.send(Message { path, signer: Signer::Device, payload, headers: Vec::new() })
    }

    /// Tells a certificate that is not trusted from a controller that cannot be reached.
    fn fault_of(&self, error: &ureq::Error) -> Fault {
        let tls = match error {
            ureq::Error::Rustls(error) => Some(error),
            ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
            _ => None,
        };
        let server = &self.identity.server;
        match (tls, error) {
            (Some(rustls::Error::InvalidCertificate(why)), _) => {
                Fault::new(Reason::ControllerUntrusted, format!("{server}: certificate refused: {why}"))
            }
            (Some(error), _) => Fault::new(Reason::ControllerUnreachable, format!("{server}: {error}")),
            (None, ureq::Error::Other(inner)) => {
                Fault::new(Reason::ControllerUnreachable, format!("{server}: {inner}"))
            }
            // the library says so in a sentence about its manual
            (None, ureq::Error::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Fault::new(Reason::ControllerUnreachable, format!("{server}: the connection broke off"))
            }
            (None, error) => Fault::new(Reason::ControllerUnreachable, format!("{server}: {error}")),
        }
    }

    /// Uploads one batch, in as many files as it needs.
    fn post_logs(&self, device: DeviceId, version: &str, batch: &Batch) -> Result<HttpReply, Fault> {
        use eve_api::paths::{DeviceCall, Endpoint};
        let path = |call: DeviceCall<'_>| Endpoint::Device { device: &device.to_string(), call }.to_string();
        let (path, comment, name) = match &batch.app {
            Some((app, name)) => {
                (path(DeviceCall::AppNewlogs { app: &app.to_string() }), None, Some(name.clone()))
            }
            None => {
                let comment = DeviceComment {
                    device: device.to_string(),
                    image: "IMGA".into(),
                    version: version.to_owned(),
                };
                (path(DeviceCall::Newlogs), Some(comment), None)
            }
        };
        let first = batch.entries.first().map_or(0, |entry| entry.at.seconds);
        let header = LogHeader { comment, name, created_s: u32::try_from(first).unwrap_or(0) };
        let entries: Vec<newlogs::LogEntry> = batch.entries.iter().map(log_entry).collect();
        let mut last = HttpReply { status: 200, untrusted_body: Vec::new() };
        for file in pack(&header, &entries).map_err(|error| own(error.to_string()))? {
            let message =
                Message { path: path.clone(), signer: Signer::Device, payload: file, headers: Vec::new() };
            last = self.send(message)?;
            if !super::ask::is_success(last.status) {
                return Ok(last);
            }
        }
        Ok(last)
    }
}

/// A request that does not come so far as to be sent.
fn own(what: impl Into<String>) -> Fault {
    Fault::new(Reason::Internal, what)
}

/// Log files of at most the hard limit each: the half of what is too large, again.
fn pack(header: &LogHeader, entries: &[newlogs::LogEntry]) -> std::io::Result<Vec<Vec<u8>>> {
    let size: usize = entries.iter().map(|entry| entry.content.len() + 100).sum();
    if size <= LOG_FILE_BYTES || entries.len() < 2 {
        let file = newlogs::write(header, entries)?;
        if file.len() <= PACKED_LIMIT || entries.len() < 2 {
            return Ok(vec![file]);
        }
    }
    let (left, right) = entries.split_at(entries.len() / 2);
    let mut files = pack(header, left)?;
    files.extend(pack(header, right)?);
    Ok(files)
}

fn log_entry(entry: &LogEntry) -> newlogs::LogEntry {
    newlogs::LogEntry {
        severity: match entry.severity {
            LogSeverity::Debug => "debug",
            LogSeverity::Info => "info",
            LogSeverity::Warning => "warning",
            LogSeverity::Error => "error",
        }
        .into(),
        source: entry.source.clone(),
        content: entry.content.clone(),
        msgid: entry.number,
        timestamp: Some(newlogs::Timestamp {
            seconds: entry.at.seconds,
            nanos: i32::try_from(entry.at.nanos).unwrap_or(0),
        }),
        ..newlogs::LogEntry::default()
    }
}

/// TLS 1.3, and of 1.2 the two suites EVE offers.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        ..suites::default_provider()
    }
}

/// A key of the vault.
struct Remote<'a> {
    client: &'a Client,
    is_device: bool,
}

impl Sign for Remote<'_> {
    type Error = Fault;
    fn sign(&self, data: &[u8]) -> Result<Vec<u8>, Fault> {
        let data = data.to_vec();
        let request = if self.is_device {
            VaultRequest::SignAsDevice { data }
        } else {
            VaultRequest::SignAsOnboarding { data }
        };
        match self.client.services.vault(request)? {
            VaultReply::Signature(signature) => Ok(signature),
            other => Err(Fault::new(Reason::Internal, format!("vault answered {other:?} to a signature"))),
        }
    }
}

struct Batch {
    number: u64,
    app: Option<(model::id::AppId, String)>,
    entries: Vec<LogEntry>,
}

/// The threads. Dropping it ends them after their present request.
#[derive(Debug)]
pub struct Lanes {
    config: SyncSender<Ask>,
    dialogue: SyncSender<Ask>,
    logs: SyncSender<Ask>,
}

impl Lanes {
    /// `post` gives a result to the main loop and says whether there is still one.
    pub fn start(client: Arc<Client>, post: impl Fn(Done) -> bool + Clone + Send + 'static) -> Lanes {
        let lane = |name: &str| {
            let (sender, receiver) = sync_channel(LANE_QUEUE);
            let (client, post) = (client.clone(), post.clone());
            let thread = std::thread::Builder::new().name(name.into());
            // Without its thread a lane refuses asks, which then count as not answered.
            let _ = thread.spawn(move || work(&client, &receiver, &post));
            sender
        };
        Lanes { config: lane("config"), dialogue: lane("dialogue"), logs: lane("logs") }
    }

    /// Hands over a request; gives it back when the lane cannot take it.
    pub fn send(&self, ask: Ask) -> Result<(), Ask> {
        let lane = match ask.lane() {
            Lane::Config => &self.config,
            Lane::Dialogue => &self.dialogue,
            Lane::Logs => &self.logs,
        };
        lane.try_send(ask).map_err(|error| match error {
            TrySendError::Full(ask) | TrySendError::Disconnected(ask) => ask,
        })
    }
}

fn work(client: &Client, asks: &Receiver<Ask>, post: &impl Fn(Done) -> bool) {
    let mut batch: Option<Batch> = None;
    let mut flows: Option<(u64, FlowReport)> = None;
    for ask in asks {
        let result = match &ask {
            Ask::ReadLogs => {
                batch = read_logs(&*client.services);
                if !post(Done::Logs { batch: batch.as_ref().map(|batch| batch.number) }) {
                    return;
                }
                continue;
            }
            Ask::TakenLogs { batch } => {
                client.services.log(LogRequest::Taken { batch: *batch });
                continue;
            }
            Ask::PostLogs { device, batch: number, version } => {
                match batch.as_ref().filter(|batch| batch.number == *number) {
                    Some(batch) => client.post_logs(*device, version, batch),
                    None => Err(own("the batch of logs is gone")),
                }
            }
            Ask::ReadFlows => {
                let (read, lost) = read_flows(&*client.services);
                let count = |(batch, report): &(u64, FlowReport)| Flows {
                    batch: *batch,
                    flows: report.flows.len() as u64,
                    lookups: report.lookups.len() as u64,
                };
                let done = Done::Flows { batch: read.as_ref().map(count), lost };
                flows = read;
                if !post(done) {
                    return;
                }
                continue;
            }
            Ask::TakenFlows { batch } => {
                client.services.net(NetRequest::FlowsTaken { batch: *batch });
                continue;
            }
            Ask::PostFlows { device, batch: number } => {
                match flows.as_ref().filter(|(batch, _)| batch == number) {
                    Some((_, report)) => client.post_flows(*device, report),
                    None => Err(own("the flow report is gone")),
                }
            }
            _ => match message(&ask, &client.identity) {
                Some(message) => client.send(message),
                None => Err(own("not a request to the controller")),
            },
        };
        if !post(Done::Http { ask, result }) {
            return;
        }
    }
}

type ReadFlows = (Option<(u64, FlowReport)>, Option<FlowCounters>);

fn read_flows(services: &dyn Services) -> ReadFlows {
    match services.net(NetRequest::NextFlows) {
        Some(NetReply::Flows { batch, report, lost }) => (Some((batch, report)), Some(lost)),
        Some(NetReply::Attached { .. } | NetReply::NoFlows | NetReply::Done) | None => (None, None),
    }
}

fn read_logs(services: &dyn Services) -> Option<Batch> {
    match services.log(LogRequest::Next)? {
        LogReply::Batch { batch, app, entries } => Some(Batch { number: batch, app, entries }),
        LogReply::Nothing | LogReply::Done => None,
    }
}

/// A random UUID by the system call itself: the root of a confined process has no `/dev/urandom` to fall back to.
fn random_id() -> Uuid {
    let mut bytes = [0; 16];
    // a failure leaves an id that repeats; it only helps to find a request in two logs
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::time::WallTime;

    #[test]
    fn large_batches_are_cut_into_files_below_the_hard_limit() {
        // Digits of a running product do not compress well.
        let mut seed = 1_u64;
        let mut noise = || {
            (0..40)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    format!("{seed:016x}")
                })
                .collect::<String>()
        };
        let entries: Vec<LogEntry> = (0..900)
            .map(|number| LogEntry {
                number,
                severity: LogSeverity::Info,
                source: "agent".into(),
                content: noise(),
                at: WallTime { seconds: 1, nanos: 2 },
            })
            .collect();
        let entries: Vec<newlogs::LogEntry> = entries.iter().map(log_entry).collect();
        let files = pack(&LogHeader::default(), &entries).unwrap();
        assert!(files.len() > 1);
        let mut read = Vec::new();
        for file in files {
            assert!(file.len() <= PACKED_LIMIT, "{}", file.len());
            read.extend(newlogs::read(&file).unwrap().entries);
        }
        assert_eq!(read, entries);
    }
}
