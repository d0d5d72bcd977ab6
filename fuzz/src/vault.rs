// SPDX-License-Identifier: Apache-2.0
//! What vault reads: CONFIG, its own files, sealed objects; and what the controller reads of a TPM.

use std::fs;

use node_vault::config_dir::ConfigDir;
use node_vault::identity;
use node_vault::seal::{KEY_BYTES, Sealer};
use node_vault::trusted::TrustedCerts;
use trust::quote::{Pcrs, QuoteKey, parse_attest, verify_quote};

const FILES: [&str; 8] = [
    "server",
    "root-certificate.pem",
    "v2tlsbaseroot-certificates.pem",
    "soft_serial",
    "onboard.cert.pem",
    "onboard.key.pem",
    "device.cert.pem",
    "device.key.pem",
];

/// Files of CONFIG, cut at zero bytes. What is not there of the vault's own is made: costly, so only when it matters.
pub(crate) fn config_dir(data: &[u8]) {
    let place = super::place();
    for (name, content) in FILES.iter().zip(super::parts(data)) {
        if !content.is_empty() {
            fs::write(place.path().join(name), content).expect("a file can be written");
        }
    }
    let Ok(config) = ConfigDir::read(place.path()) else { return };
    assert!(!config.server.trim().is_empty());
    let _ = node_agent::agent::http::Client::new(
        &ipc::calls::NodeIdentity {
            device_cert_pem: config.root_certs_pem.clone(),
            onboarding_cert_pem: config.onboarding.as_ref().map(|files| files.cert_pem.clone()),
            node_certs: Vec::new(),
            soft_serial: config.soft_serial.clone(),
            server: config.server.clone(),
            root_certs_pem: config.root_certs_pem.clone(),
            tls_root_certs_pem: config.tls_root_certs_pem.clone(),
        },
        std::sync::Arc::new(Nobody),
        node_agent::resolve::Dns::default(),
    );
    if config.device.is_some() {
        let own = super::place();
        let _ = identity::load(own.path(), &config, 1_735_689_600);
    }
}

/// Other processes that are not there.
struct Nobody;

impl node_agent::agent::http::Services for Nobody {
    fn vault(&self, _: ipc::calls::VaultRequest) -> Result<ipc::calls::VaultReply, model::reason::Fault> {
        Err(model::reason::Fault::new(model::reason::Reason::ServiceUnavailable, "nobody"))
    }

    fn log(&self, _: ipc::calls::LogRequest) -> Option<ipc::calls::LogReply> {
        None
    }

    fn net(&self, _: ipc::calls::NetRequest) -> Option<ipc::calls::NetReply> {
        None
    }
}

/// Nothing opens but what was sealed with the same key.
pub(crate) fn sealed(data: &[u8]) {
    let sealer = Sealer::new(&[7; KEY_BYTES]).expect("a key of the right length");
    assert!(sealer.open(data).is_err(), "forged");
    let Ok(mut sealed) = sealer.seal(data) else { return };
    assert_eq!(sealer.open(&sealed).expect("our own").as_slice(), data);
    if let Some(byte) = data.first() {
        let at = usize::from(*byte) % sealed.len();
        sealed[at] ^= 1;
        assert!(sealer.open(&sealed).is_err(), "a changed bit is not seen");
    }
}

pub(crate) fn trusted(data: &[u8]) {
    let certs = TrustedCerts::parse(data);
    assert_eq!(TrustedCerts::parse(certs.to_text().as_bytes()), certs);
}

/// Without the key there is no quote.
pub(crate) fn quote(data: &[u8]) {
    if let Ok(attested) = parse_attest(data) {
        assert!(attested.nonce.len() + attested.digest.len() < data.len());
    }
    let mut parts = super::parts(data);
    let mut next = || parts.next().unwrap_or_default();
    let (key, signature) = (next(), next());
    let pcrs = Pcrs::from([(0, [0; 32]), (7, [7; 32])]);
    for key in [QuoteKey::P256(key.to_vec()), QuoteKey::Rsa(key.to_vec())] {
        assert!(verify_quote(data, signature, &key, b"nonce", &pcrs).is_err(), "forged");
    }
}
