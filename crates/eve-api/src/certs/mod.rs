// SPDX-License-Identifier: Apache-2.0
//! Certificates as eve-api uses them: PEM, the two hashes, public keys and raw signatures.
//!
//! Two hashes exist and must not be mixed up. A *device* is named by SHA-256 of its certificate's DER
//! ([`der_hash`]); a *controller* certificate by SHA-256 of its PEM bytes exactly as sent
//! ([`pem_hash`]), in `ZCert.certHash` cut to 16 bytes ([`cert_hash`]). The chain rules of a
//! controller's set are in [`chain`]. Never reads a clock; time is a parameter.

pub mod chain;

use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

pub use chain::{ControllerCerts, EcdhCert, Role, build_controller_certs, verify_controller_certs};

/// Most certificates read from one PEM text or one controller answer: a chain needs three or four.
pub const MAX_CERTS: usize = 32;
/// Largest PEM text read.
pub const MAX_PEM_BYTES: usize = 256 * 1024;

const OID_EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const OID_P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const OID_P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Why a certificate or a set of them is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    #[error("no certificate in the PEM text")]
    NoPem,
    #[error("PEM text or certificate set is larger than allowed")]
    TooLarge,
    #[error("malformed certificate")]
    Malformed,
    #[error("unsupported public key")]
    UnsupportedKey,
    #[error("malformed certificate message")]
    MalformedSet,
    #[error("{0} signing certificates where exactly one is allowed")]
    SigningCount(usize),
    #[error("no ECDH certificate")]
    NoEcdh,
    #[error("unknown certificate type {0}")]
    UnknownType(i32),
    #[error("certificate outside its validity")]
    Validity,
    #[error("extended key usage without server authentication")]
    KeyUsage,
    #[error("certificate does not chain to a trusted root: {0}")]
    Chain(String),
}

/// A signature does not fit; `Length` when its size alone is wrong (also DER where raw r‖s belongs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("signature of {0} bytes has the wrong length")]
    Length(usize),
    #[error("signature does not fit")]
    Mismatch,
}

/// The DER of every certificate in a PEM text; at least one. Other blocks are passed over.
pub fn parse_pem(untrusted_pem: &[u8]) -> Result<Vec<Vec<u8>>, CertError> {
    if untrusted_pem.len() > MAX_PEM_BYTES {
        return Err(CertError::TooLarge);
    }
    let mut out = Vec::new();
    for cert in CertificateDer::pem_slice_iter(untrusted_pem) {
        if out.len() == MAX_CERTS {
            return Err(CertError::TooLarge);
        }
        out.push(cert.map_err(|_| CertError::Malformed)?.to_vec());
    }
    if out.is_empty() { Err(CertError::NoPem) } else { Ok(out) }
}

/// The DER of the first certificate of a PEM text.
pub fn first_der(untrusted_pem: &[u8]) -> Result<Vec<u8>, CertError> {
    parse_pem(untrusted_pem)?.into_iter().next().ok_or(CertError::NoPem)
}

/// DER as PEM text, ending in a newline.
pub fn to_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// SHA-256 of a certificate's DER: how a device is named in its envelopes.
pub fn der_hash(der: &[u8]) -> [u8; 32] {
    sha256(der)
}

/// SHA-256 of PEM bytes exactly as sent: how the controller's signing certificate is named in its
/// envelopes. One newline more is another hash.
pub fn pem_hash(pem_as_sent: &[u8]) -> [u8; 32] {
    sha256(pem_as_sent)
}

/// `ZCert.certHash`: the first 16 bytes of [`pem_hash`], in both directions.
pub fn cert_hash(pem_as_sent: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&pem_hash(pem_as_sent)[..16]);
    out
}

pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// A public key that can check eve-api signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Uncompressed point, 65 bytes.
    P256(Vec<u8>),
    /// Uncompressed point, 97 bytes.
    P384(Vec<u8>),
    /// PKCS#1 `RSAPublicKey` in DER.
    Rsa(Vec<u8>),
}

impl PublicKey {
    /// The key of a certificate in DER.
    pub fn from_der(cert_der: &[u8]) -> Result<PublicKey, CertError> {
        let cert = Certificate::from_der(cert_der).map_err(|_| CertError::Malformed)?;
        PublicKey::from_spki(cert.tbs_certificate().subject_public_key_info())
    }

    /// The key of the first certificate of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<PublicKey, CertError> {
        PublicKey::from_der(&first_der(pem)?)
    }

    fn from_spki(spki: &SubjectPublicKeyInfoOwned) -> Result<PublicKey, CertError> {
        let key = spki.subject_public_key.as_bytes().ok_or(CertError::Malformed)?.to_vec();
        if spki.algorithm.oid == OID_RSA {
            return Ok(PublicKey::Rsa(key));
        }
        if spki.algorithm.oid != OID_EC {
            return Err(CertError::UnsupportedKey);
        }
        let parameters = spki.algorithm.parameters.as_ref().ok_or(CertError::UnsupportedKey)?;
        match parameters.decode_as::<ObjectIdentifier>() {
            Ok(OID_P256) => Ok(PublicKey::P256(key)),
            Ok(OID_P384) => Ok(PublicKey::P384(key)),
            _ => Err(CertError::UnsupportedKey),
        }
    }

    /// Checks an envelope's signature over `data`: raw r‖s padded to the curve, or PKCS#1 v1.5 for
    /// RSA, all over SHA-256.
    pub fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        let checked = match self {
            PublicKey::P256(point) => {
                expect_length(signature, 64)?;
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(data, signature)
            }
            PublicKey::P384(point) => {
                expect_length(signature, 96)?;
                let signature = raw_to_der(signature);
                UnparsedPublicKey::new(&ECDSA_P384_SHA256_ASN1, point).verify(data, &signature)
            }
            PublicKey::Rsa(key) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(data, signature)
            }
        };
        checked.map_err(|_| SignatureError::Mismatch)
    }
}

fn expect_length(signature: &[u8], length: usize) -> Result<(), SignatureError> {
    if signature.len() == length { Ok(()) } else { Err(SignatureError::Length(signature.len())) }
}

/// r‖s as the ASN.1 sequence of two integers; for curves up to P-384, whose sequence fits one length byte.
fn raw_to_der(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let mut body = Vec::with_capacity(raw.len() + 8);
    for number in [r, s] {
        let skip = number.iter().take_while(|b| **b == 0).count().min(number.len() - 1);
        let number = &number[skip..];
        let pad = usize::from(number[0] >= 0x80);
        body.extend_from_slice(&[2, (number.len() + pad) as u8]);
        body.extend(std::iter::repeat_n(0, pad));
        body.extend_from_slice(number);
    }
    let mut out = vec![0x30, body.len() as u8];
    out.extend_from_slice(&body);
    out
}

/// Validity of a certificate in seconds since 1970.
pub fn validity(cert_der: &[u8]) -> Result<(i64, i64), CertError> {
    let cert = Certificate::from_der(cert_der).map_err(|_| CertError::Malformed)?;
    let validity = cert.tbs_certificate().validity();
    let seconds =
        |t: &x509_cert::time::Time| i64::try_from(t.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    Ok((seconds(&validity.not_before), seconds(&validity.not_after)))
}

/// `SubjectPublicKeyInfo` of a certificate in DER: what stays equal when a certificate is renewed.
pub fn public_key_info(cert_der: &[u8]) -> Result<Vec<u8>, CertError> {
    let cert = Certificate::from_der(cert_der).map_err(|_| CertError::Malformed)?;
    cert.tbs_certificate().subject_public_key_info().to_der().map_err(|_| CertError::Malformed)
}
