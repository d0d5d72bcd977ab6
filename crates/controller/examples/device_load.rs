// SPDX-License-Identifier: Apache-2.0
//! Load on a running controller's device API: real envelopes, real signatures, real TLS.
//!
//! `device_load SERVER(host:port) BUNDLE_DIR SERIAL PID SECONDS`: onboards one node with the bundle, then polls `/config`
//! with the known hash (304, `Prefer: wait=0`), first over a new connection each time, without and with TLS resumption,
//! then over kept connections. Prints requests per second of the controller's own CPU time, read from /proc/PID.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow_lite::{Context as _, Result};
use eve_api::Message as _;
use eve_api::envelope::{EcdsaSigner, seal_device, seal_register, unverified_payload};
use eve_api::wire::attest::{ZAttestQuote, ZAttestReq, ZAttestReqType, ZAttestResponse};
use eve_api::wire::config::{ConfigRequest, ConfigResponse};
use eve_api::wire::uuid::UuidResponse;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Errors as text: this is a tool, not a library.
mod anyhow_lite {
    pub(super) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
    pub(super) trait Context<T> {
        fn context(self, what: &str) -> Result<T>;
    }
    impl<T> Context<T> for Option<T> {
        fn context(self, what: &str) -> Result<T> {
            self.ok_or_else(|| what.into())
        }
    }
}

/// Connections at once.
const CLIENTS: usize = 32;

struct Target {
    server: String,
    name: ServerName<'static>,
}

type Tls = TlsStream<TcpStream>;

async fn connect(target: &Target, tls: &TlsConnector) -> Result<Tls> {
    let stream = TcpStream::connect(&target.server).await?;
    stream.set_nodelay(true)?;
    Ok(tls.connect(target.name.clone(), stream).await?)
}

fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "POST /api/v2/edgedevice/{path} HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-proto-binary\r\nPrefer: wait=0\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Status and body of one answer.
async fn exchange(stream: &mut Tls, request: &[u8]) -> Result<(u16, Vec<u8>)> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err("connection closed".into());
        }
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length:")).and_then(|l| l.trim().parse().ok());
        let length: usize = if status == 304 { 0 } else { length.unwrap_or(0) };
        while buffer.len() < end + 4 + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err("connection closed".into());
            }
        }
        return Ok((status, buffer[end + 4..end + 4 + length].to_vec()));
    }
}

/// CPU time of a process in seconds.
fn cpu_s(pid: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn connector(roots: &RootCertStore, resume: bool) -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has these versions")
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    if !resume {
        config.resumption = rustls::client::Resumption::disabled();
    }
    TlsConnector::from(Arc::new(config))
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, server, bundle, serial, pid, seconds] = &args[..] else {
        return Err("usage: device_load SERVER BUNDLE_DIR SERIAL PID SECONDS".into());
    };
    let read = |name: &str| fs::read(format!("{bundle}/{name}"));
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&read("root-certificate.pem")?) {
        roots.add(cert?)?;
    }
    let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host).to_owned();
    let target = Arc::new(Target { server: server.clone(), name: ServerName::try_from(host)? });

    let key = KeyPair::generate()?;
    let cert = CertificateParams::default().self_signed(&key)?;
    let hash = eve_api::certs::der_hash(cert.der());
    let signer = EcdsaSigner::from_pem(key.serialize_pem().as_bytes())?;
    let onboard_pem = read("onboard.cert.pem")?;
    let onboard_hash = eve_api::certs::der_hash(&eve_api::certs::first_der(&onboard_pem)?);
    let onboard = EcdsaSigner::from_pem(&read("onboard.key.pem")?)?;
    let mut stream = connect(&target, &connector(&roots, true)).await?;
    let register = eve_api::register::build_registration(cert.pem().as_bytes(), serial, "");
    let body = seal_register(register, &onboard_pem, &onboard_hash, &onboard)?;
    let (status, _) = exchange(&mut stream, &request("register", &body)).await?;
    if !matches!(status, 200 | 201) {
        return Err(format!("register answered {status}").into());
    }
    let (_, body) = exchange(&mut stream, &request("uuid", &seal_device(Vec::new(), &hash, &signer)?)).await?;
    let id = UuidResponse::decode(unverified_payload(&body)?.as_slice())?.uuid;
    let quote = ZAttestReq {
        req_type: ZAttestReqType::AttestReqQuote.into(),
        quote: Some(ZAttestQuote::default()),
        ..ZAttestReq::default()
    };
    let body = seal_device(quote.encode_to_vec(), &hash, &signer)?;
    let (_, body) = exchange(&mut stream, &request(&format!("id/{id}/attest"), &body)).await?;
    let answer = ZAttestResponse::decode(unverified_payload(&body)?.as_slice())?;
    let mut poll = ConfigRequest {
        integrity_token: answer.quote_resp.context("no quote answer")?.integrity_token,
        ..ConfigRequest::default()
    };
    let path = format!("id/{id}/config");
    let body = seal_device(poll.encode_to_vec(), &hash, &signer)?;
    let (_, body) = exchange(&mut stream, &request(&path, &body)).await?;
    poll.config_hash = ConfigResponse::decode(unverified_payload(&body)?.as_slice())?.config_hash;
    // A few hundred requests signed beforehand: the client's own signing is not what is measured.
    let requests: Vec<Vec<u8>> = (0..256)
        .map(|_| Ok(request(&path, &seal_device(poll.encode_to_vec(), &hash, &signer)?)))
        .collect::<Result<_>>()?;
    let requests = Arc::new(requests);

    let time = Duration::from_secs(seconds.parse()?);
    for (what, resume, keep) in [
        ("new connections, full handshake", false, false),
        ("new connections, resumed", true, false),
        ("kept connections", true, true),
    ] {
        let count = Arc::new(AtomicU64::new(0));
        let tls = connector(&roots, resume);
        let (start, cpu) = (Instant::now(), cpu_s(pid)?);
        let tasks: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (target, tls, requests, count) = (target.clone(), tls.clone(), requests.clone(), count.clone());
                tokio::spawn(async move {
                    let mut kept = None;
                    let mut next = client;
                    while start.elapsed() < time {
                        let mut stream = match kept.take() {
                            Some(stream) => stream,
                            None => connect(&target, &tls).await?,
                        };
                        let (status, _) = exchange(&mut stream, &requests[next % requests.len()]).await?;
                        if status != 304 {
                            return Err(format!("answered {status}").into());
                        }
                        next += 1;
                        count.fetch_add(1, Ordering::Relaxed);
                        if keep {
                            kept = Some(stream);
                        }
                    }
                    Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let (requests, cpu) = (count.load(Ordering::Relaxed) as f64, cpu_s(pid)? - cpu);
        let per_s = requests / start.elapsed().as_secs_f64();
        println!("{what}: {:.0} per second and core ({per_s:.0} per second measured, {cpu:.1} s CPU)", requests / cpu);
    }
    Ok(())
}
