// SPDX-License-Identifier: Apache-2.0
//! The test vectors, made by an independent program, and certificates made for a test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod arbitrary;
pub mod reports;

use eve_api::wire::certs::ZControllerCert;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use serde_json::Value;

pub struct Vectors(Value);

impl Vectors {
    pub fn load() -> Vectors {
        Vectors(serde_json::from_str(include_str!("../vectors.json")).unwrap())
    }

    pub fn pem(&self, name: &str) -> &str {
        self.0["pem"][name].as_str().unwrap()
    }

    /// The signing certificate as the controller of the vectors sends it.
    pub fn signing_as_sent(&self) -> &[u8] {
        self.pem("signing").trim_end().as_bytes()
    }

    pub fn key(&self, name: &str) -> p256::SecretKey {
        secret(self.0["keys_hex"][name].as_str().unwrap())
    }

    pub fn envelopes(&self) -> impl Iterator<Item = Envelope> {
        self.0["envelopes"].as_array().unwrap().iter().map(|e| Envelope {
            name: text(e, "name"),
            is_from_device: text(e, "dir").starts_with("device"),
            payload: bytes(e, "payload"),
            sender_hash: bytes(e, "sender_hash"),
            container: bytes(e, "container"),
        })
    }

    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.0["object_encryption"].as_array().unwrap().iter()
    }
}

pub struct Envelope {
    pub name: String,
    pub is_from_device: bool,
    pub payload: Vec<u8>,
    pub sender_hash: Vec<u8>,
    pub container: Vec<u8>,
}

pub fn secret(hex_text: &str) -> p256::SecretKey {
    p256::SecretKey::from_slice(&hex::decode(hex_text).unwrap()).unwrap()
}

pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

pub fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex::decode(value[key].as_str().unwrap()).unwrap()
}

pub type Ca = CertifiedIssuer<'static, KeyPair>;

pub fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2030, 1, 1);
    params
}

pub fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

pub fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

pub fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca_params(name), key()).unwrap()
}

pub fn with_usage(mut params: CertificateParams, usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    params.extended_key_usages = usages.to_vec();
    params
}

/// A leaf in PEM and its key.
pub fn leaf(params: CertificateParams, issuer: &Ca) -> (Vec<u8>, KeyPair) {
    let key = key();
    let cert = params.signed_by(&key, issuer).unwrap();
    (cert.pem().into_bytes(), key)
}

pub fn set(bytes: &[u8]) -> ZControllerCert {
    eve_api::Message::decode(bytes).unwrap()
}
