// SPDX-License-Identifier: Apache-2.0
//! A played device for tools: registers with a bundle, attests without a TPM, and asks for its config, with real envelopes, signatures and TLS.

#![allow(dead_code, reason = "each tool uses its part")]

use std::fs;
use std::sync::Arc;

use eve_api::Message as _;
use eve_api::certs::{ControllerCerts, der_hash, first_der, verify_controller_certs};
use eve_api::envelope::{EcdsaSigner, seal_device, seal_register, unseal_controller, unverified_payload};
use eve_api::register::build_registration;
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

/// Errors as text: these are tools, not a library.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub(crate) trait Context<T> {
    fn context(self, what: &str) -> Result<T>;
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: &str) -> Result<T> {
        self.ok_or_else(|| what.into())
    }
}

/// Where the controller is, and what proves that it is it.
pub(crate) struct Target {
    server: String,
    name: ServerName<'static>,
    roots: RootCertStore,
    root_pem: Vec<u8>,
    onboard_pem: Vec<u8>,
    onboard_key_pem: Vec<u8>,
}

pub(crate) type Tls = TlsStream<TcpStream>;

/// Whether a client resumes TLS sessions.
#[derive(Clone, Copy)]
pub(crate) enum Sessions {
    Fresh,
    Resumed,
}

impl Target {
    /// `server` is host:port, `bundle` a node's configuration directory.
    pub(crate) fn read(server: &str, bundle: &str) -> Result<Target> {
        let read = |name: &str| fs::read(format!("{bundle}/{name}"));
        let root_pem = read("root-certificate.pem")?;
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&root_pem) {
            roots.add(cert?)?;
        }
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host).to_owned();
        Ok(Target {
            server: server.to_owned(),
            name: ServerName::try_from(host)?,
            roots,
            root_pem,
            onboard_pem: read("onboard.cert.pem")?,
            onboard_key_pem: read("onboard.key.pem")?,
        })
    }

    pub(crate) fn connector(&self, sessions: Sessions) -> TlsConnector {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("the provider has these versions")
                .with_root_certificates(self.roots.clone())
                .with_no_client_auth();
        if let Sessions::Fresh = sessions {
            config.resumption = rustls::client::Resumption::disabled();
        }
        TlsConnector::from(Arc::new(config))
    }

    pub(crate) async fn connect(&self, tls: &TlsConnector) -> Result<Tls> {
        let stream = TcpStream::connect(&self.server).await?;
        stream.set_nodelay(true)?;
        Ok(tls.connect(self.name.clone(), stream).await?)
    }
}

/// A POST; `wait_s` is how long the answer may be held, nothing said as stock EVE says nothing.
pub(crate) fn request(path: &str, body: &[u8], wait_s: Option<u32>) -> Vec<u8> {
    let prefer = wait_s.map_or(String::new(), |wait_s| format!("Prefer: wait={wait_s}\r\n"));
    let mut out = format!(
        "POST /api/v2/edgedevice/{path} HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-proto-binary\r\n{prefer}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Status and body of one answer.
pub(crate) async fn exchange(stream: &mut Tls, request: &[u8]) -> Result<(u16, Vec<u8>)> {
    let (status, _, body) = exchange_with_head(stream, request).await?;
    Ok((status, body))
}

/// Status, head in lower case and body of one answer.
pub(crate) async fn exchange_with_head(stream: &mut Tls, request: &[u8]) -> Result<(u16, String, Vec<u8>)> {
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
        let length =
            head.lines().find_map(|l| l.strip_prefix("content-length:")).and_then(|l| l.trim().parse().ok());
        let length: usize = if status == 304 { 0 } else { length.unwrap_or(0) };
        while buffer.len() < end + 4 + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err("connection closed".into());
            }
        }
        return Ok((status, head, buffer[end + 4..end + 4 + length].to_vec()));
    }
}

/// A device that is registered and has its integrity token.
pub(crate) struct Device {
    pub(crate) id: String,
    hash: [u8; 32],
    signer: EcdsaSigner,
    token: Vec<u8>,
}

impl Device {
    /// Onboards under a serial number.
    pub(crate) async fn onboard(target: &Target, serial: &str) -> Result<Device> {
        let key = KeyPair::generate()?;
        let cert = CertificateParams::default().self_signed(&key)?;
        let hash = der_hash(cert.der());
        let signer = EcdsaSigner::from_pem(key.serialize_pem().as_bytes())?;
        let onboard_hash = der_hash(&first_der(&target.onboard_pem)?);
        let onboard = EcdsaSigner::from_pem(&target.onboard_key_pem)?;
        let mut stream = target.connect(&target.connector(Sessions::Fresh)).await?;
        let register = build_registration(cert.pem().as_bytes(), serial, "");
        let body = seal_register(register, &target.onboard_pem, &onboard_hash, &onboard)?;
        let (status, _) = exchange(&mut stream, &request("register", &body, None)).await?;
        if !matches!(status, 200 | 201) {
            return Err(format!("register answered {status}").into());
        }
        let mut device = Device { id: String::new(), hash, signer, token: Vec::new() };
        let (_, body) = exchange(&mut stream, &request("uuid", &device.seal(Vec::new())?, None)).await?;
        device.id = UuidResponse::decode(unverified_payload(&body)?.as_slice())?.uuid;
        let quote = ZAttestReq {
            req_type: ZAttestReqType::AttestReqQuote.into(),
            quote: Some(ZAttestQuote::default()),
            ..ZAttestReq::default()
        };
        let body = device.seal(quote.encode_to_vec())?;
        let path = format!("id/{}/attest", device.id);
        let (_, body) = exchange(&mut stream, &request(&path, &body, None)).await?;
        let answer = ZAttestResponse::decode(unverified_payload(&body)?.as_slice())?;
        device.token = answer.quote_resp.context("no quote answer")?.integrity_token;
        Ok(device)
    }

    fn seal(&self, payload: Vec<u8>) -> Result<Vec<u8>> {
        Ok(seal_device(payload, &self.hash, &self.signer)?)
    }

    /// A signed request to a call of this device.
    pub(crate) fn request(&self, call: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
        Ok(request(&format!("id/{}/{call}", self.id), &self.seal(payload)?, None))
    }

    /// A signed request for the config, of which `hash` is known.
    pub(crate) fn config_request(&self, hash: &str, wait_s: Option<u32>) -> Result<Vec<u8>> {
        let poll = ConfigRequest { config_hash: hash.to_owned(), integrity_token: self.token.clone() };
        let body = self.seal(poll.encode_to_vec())?;
        Ok(request(&format!("id/{}/config", self.id), &body, wait_s))
    }
}

/// Asks for the controller's certificates and verifies them against the bundle's root.
pub(crate) async fn controller_certs(target: &Target) -> Result<ControllerCerts> {
    let mut stream = target.connect(&target.connector(Sessions::Fresh)).await?;
    let (_, body) =
        exchange(&mut stream, b"GET /api/v2/edgedevice/certs HTTP/1.1\r\nHost: c\r\n\r\n").await?;
    Ok(verify_controller_certs(&unverified_payload(&body)?, &target.root_pem, None)?)
}

/// Hash of a config answer, after its signature was verified.
pub(crate) fn verified_hash(body: &[u8], certs: &ControllerCerts) -> Result<String> {
    let payload = unseal_controller(body, &certs.signing_pem)?;
    Ok(ConfigResponse::decode(payload.as_slice())?.config_hash)
}
