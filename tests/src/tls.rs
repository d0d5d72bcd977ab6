// SPDX-License-Identifier: Apache-2.0
//! Certificates of all ages, servers that show them, and a client that trusts anyone: it is there to send what no good
//! client sends.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, SignatureScheme, StreamOwned,
};

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    Valid,
    Expired,
    /// From years ahead on.
    Future,
}

/// A CA of our own.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    /// For whoever shall trust it.
    pub pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    pub fn new(name: &str) -> anyhow::Result<Authority> {
        Authority::of(name, KeyPair::generate()?)
    }

    /// The authority of a name that has this key in PEM.
    pub fn with_key(name: &str, key: &str) -> anyhow::Result<Authority> {
        Authority::of(name, KeyPair::from_pem(key)?)
    }

    fn of(name: &str, key: KeyPair) -> anyhow::Result<Authority> {
        let mut params = params(name, Age::Valid);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { params, key, pem })
    }

    /// A server that shows a certificate for one address.
    pub fn server(&self, address: IpAddr, age: Age) -> anyhow::Result<Arc<ServerConfig>> {
        let key = KeyPair::generate()?;
        let mut params = params("server", age);
        params.subject_alt_names.push(SanType::IpAddress(address));
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        let chain = vec![cert.der().clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

fn params(name: &str, age: Age) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let (from, to) = match age {
        Age::Valid => (2020, 2080),
        Age::Expired => (2010, 2011),
        Age::Future => (2080, 2081),
    };
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    params
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A connection whose other end is believed whatever it shows.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Connects and shakes hands. `protocols`: what ALPN offers.
pub fn connect(address: SocketAddr, protocols: &[&[u8]], timeout: Duration) -> anyhow::Result<Stream> {
    let mut tcp = TcpStream::connect_timeout(&address, timeout)?;
    tcp.set_read_timeout(Some(timeout))?;
    tcp.set_write_timeout(Some(timeout))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let mut session = ClientConnection::new(Arc::new(config), ServerName::from(address.ip()))?;
    while session.is_handshaking() {
        session.complete_io(&mut tcp).context("the handshake failed")?;
    }
    Ok(StreamOwned::new(session, tcp))
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
