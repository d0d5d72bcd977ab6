// SPDX-License-Identifier: Apache-2.0
//! The signed envelope (`AuthContainer`) around every payload of the device API.
//!
//! The signature covers SHA-256 of the payload bytes and nothing else: no path, no time, no direction,
//! so an old answer verifies again; freshness is the caller's affair (`config_timestamp`).
//! Both directions look alike but name their signer differently, see [`crate::certs`].
//! The length of every field is checked before anything else is done with it.
//! Not here: the encrypted form, which only a local operator console sends; it is refused.
//!
//! device → controller: [`seal_device`], [`seal_register`]; read by [`DeviceEnvelope::parse`], then
//! [`DeviceEnvelope::verify`] once the certificate of [`DeviceEnvelope::sender_hash`] was found.
//! controller → device: [`seal_controller`]; read by [`unseal_controller`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::SecretKey;
use prost::Message;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use crate::certs::{self, CertError, PublicKey, SignatureError};
use crate::wire::auth::{AuthBody, AuthContainer};
use crate::wire::common::HashAlgorithm;

/// Largest PEM accepted in `senderCert`: the standard's own rule for registration.
pub const MAX_SENDER_CERT_BYTES: usize = 10_240;

/// Makes the signature of an envelope; the key may live in another process.
pub trait Sign {
    type Error;
    /// Raw r‖s (2 × 32 bytes, P-256) over SHA-256 of `data`.
    fn sign(&self, data: &[u8]) -> Result<Vec<u8>, Self::Error>;
}

impl<T: Sign + ?Sized> Sign for &T {
    type Error = T::Error;
    fn sign(&self, data: &[u8]) -> Result<Vec<u8>, Self::Error> {
        (**self).sign(data)
    }
}

/// The private key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a P-256 private key in PEM")]
    Malformed,
    #[error("signing failed")]
    Signing,
}

/// A P-256 key in this process.
#[derive(Debug)]
pub struct EcdsaSigner {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl EcdsaSigner {
    /// From PEM: PKCS#8, or the older `EC PRIVATE KEY`.
    pub fn from_pem(pem: &[u8]) -> Result<EcdsaSigner, KeyError> {
        EcdsaSigner::from_secret_key(
            &crate::cipher::private_key_from_pem(pem).map_err(|_| KeyError::Malformed)?,
        )
    }

    pub fn from_secret_key(key: &SecretKey) -> Result<EcdsaSigner, KeyError> {
        let random = SystemRandom::new();
        let mut private = key.to_bytes();
        let public = crate::cipher::uncompressed(&key.public_key());
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &private,
            &public,
            &random,
        );
        zeroize::Zeroize::zeroize(private.as_mut_slice());
        Ok(EcdsaSigner { pair: pair.map_err(|_| KeyError::Malformed)?, random })
    }
}

impl Sign for EcdsaSigner {
    type Error = KeyError;
    fn sign(&self, data: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.pair.sign(&self.random, data).map_err(|_| KeyError::Signing)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// Why an envelope is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("not an envelope")]
    Malformed,
    #[error("envelope without payload")]
    NoPayload,
    #[error("encrypted envelope")]
    Encrypted,
    #[error("sender hash of {0} bytes")]
    HashSize(usize),
    #[error("hash algorithm {0} not allowed")]
    Algorithm(i32),
    /// Signed by a certificate other than the one known: the device fetches `/certs` again.
    #[error("sender certificate is not the one known")]
    CertMiss,
    #[error("envelope without signature")]
    NoSignature,
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("sender certificate is no base64 of a PEM text")]
    SenderCert,
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// A device's request. `device_hash`: [`certs::der_hash`] of its certificate. The payload may be empty.
pub fn seal_device<S: Sign>(
    payload: Vec<u8>,
    device_hash: &[u8; 32],
    signer: &S,
) -> Result<Vec<u8>, S::Error> {
    seal(payload, device_hash, Vec::new(), signer)
}

/// A registration: signed by the onboarding key, which sends its certificate along.
pub fn seal_register<S: Sign>(
    payload: Vec<u8>,
    onboarding_pem: &[u8],
    onboarding_hash: &[u8; 32],
    signer: &S,
) -> Result<Vec<u8>, S::Error> {
    seal(payload, onboarding_hash, STANDARD.encode(onboarding_pem).into_bytes(), signer)
}

/// A controller's answer. `signing_pem_as_sent`: the bytes of `ZCert.cert` in `/certs`.
pub fn seal_controller<S: Sign>(
    payload: Vec<u8>,
    signing_pem_as_sent: &[u8],
    signer: &S,
) -> Result<Vec<u8>, S::Error> {
    seal(payload, &certs::pem_hash(signing_pem_as_sent), Vec::new(), signer)
}

fn seal<S: Sign>(
    payload: Vec<u8>,
    sender_hash: &[u8; 32],
    sender_cert: Vec<u8>,
    signer: &S,
) -> Result<Vec<u8>, S::Error> {
    let container = AuthContainer {
        signature_hash: signer.sign(&payload)?,
        protected_payload: Some(AuthBody { payload }),
        algo: HashAlgorithm::Sha25632bytes.into(),
        sender_cert_hash: sender_hash.to_vec(),
        sender_cert,
        ..AuthContainer::default()
    };
    Ok(container.encode_to_vec())
}

/// The payload of a controller's answer, verified against its signing certificate as sent in `/certs`.
/// [`EnvelopeError::CertMiss`] means that `/certs` must be fetched again.
pub fn unseal_controller(
    untrusted_body: &[u8],
    signing_pem_as_sent: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let container = decode(untrusted_body)?;
    let hash = &container.sender_cert_hash;
    if !matches!(hash.len(), 16 | 32) {
        return Err(EnvelopeError::HashSize(hash.len()));
    }
    let expected = certs::pem_hash(signing_pem_as_sent);
    let expected = match HashAlgorithm::try_from(container.algo) {
        Ok(HashAlgorithm::Sha25632bytes) => &expected[..],
        Ok(HashAlgorithm::Sha25616bytes) => &expected[..16],
        _ => return Err(EnvelopeError::Algorithm(container.algo)),
    };
    if container.signature_hash.is_empty() {
        return Err(EnvelopeError::NoSignature);
    }
    if hash != expected {
        return Err(EnvelopeError::CertMiss);
    }
    let payload = payload(container.protected_payload)?;
    PublicKey::from_pem(signing_pem_as_sent)?.verify(&payload, &container.signature_hash)?;
    Ok(payload)
}

/// The payload of an envelope nobody vouches for. For `/certs` alone, whose content proves itself by
/// its chain ([`certs::verify_controller_certs`]).
pub fn unverified_payload(untrusted_body: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    payload(decode(untrusted_body)?.protected_payload)
}

/// A device's envelope whose form is right and whose signer is still to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEnvelope {
    untrusted_payload: Vec<u8>,
    sender_hash: [u8; 32],
    signature: Vec<u8>,
    sender_cert: Vec<u8>,
}

impl DeviceEnvelope {
    /// Checks the form: 32-byte hash, algorithm 2, a signature, a payload (maybe empty).
    pub fn parse(untrusted_body: &[u8]) -> Result<DeviceEnvelope, EnvelopeError> {
        let container = decode(untrusted_body)?;
        let sender_hash = <[u8; 32]>::try_from(container.sender_cert_hash.as_slice())
            .map_err(|_| EnvelopeError::HashSize(container.sender_cert_hash.len()))?;
        if container.algo != i32::from(HashAlgorithm::Sha25632bytes) {
            return Err(EnvelopeError::Algorithm(container.algo));
        }
        if container.signature_hash.is_empty() {
            return Err(EnvelopeError::NoSignature);
        }
        Ok(DeviceEnvelope {
            untrusted_payload: payload(container.protected_payload)?,
            sender_hash,
            signature: container.signature_hash,
            sender_cert: container.sender_cert,
        })
    }

    /// [`certs::der_hash`] of the certificate whose key should have signed.
    pub fn sender_hash(&self) -> &[u8; 32] {
        &self.sender_hash
    }

    /// The PEM text sent along with a registration, if any.
    pub fn sender_pem(&self) -> Result<Option<Vec<u8>>, EnvelopeError> {
        if self.sender_cert.is_empty() {
            return Ok(None);
        }
        decode_base64_pem(&self.sender_cert).map(Some).ok_or(EnvelopeError::SenderCert)
    }

    /// The payload, once `cert_der` is what the envelope names and its key made the signature.
    pub fn verify(self, cert_der: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let cert_hash = certs::der_hash(cert_der);
        if cert_hash != self.sender_hash {
            return Err(EnvelopeError::CertMiss);
        }
        self.verify_with(&cert_hash, &PublicKey::from_der(cert_der)?)
    }

    /// The same for a certificate that was read before: its [`certs::der_hash`] and its key.
    pub fn verify_with(self, cert_hash: &[u8; 32], key: &PublicKey) -> Result<Vec<u8>, EnvelopeError> {
        if *cert_hash != self.sender_hash {
            return Err(EnvelopeError::CertMiss);
        }
        key.verify(&self.untrusted_payload, &self.signature)?;
        Ok(self.untrusted_payload)
    }
}

/// PEM bytes out of base64 text, as `senderCert` and `pemCert` carry them; `None` for anything else.
pub(crate) fn decode_base64_pem(untrusted_text: &[u8]) -> Option<Vec<u8>> {
    if untrusted_text.len() > MAX_SENDER_CERT_BYTES * 4 / 3 + 4 {
        return None;
    }
    // Go's decoder passes over line ends, so some senders may break the text.
    let text: Vec<u8> = untrusted_text.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let pem = STANDARD.decode(text).ok()?;
    certs::first_der(&pem).ok()?;
    Some(pem)
}

fn decode(untrusted_body: &[u8]) -> Result<AuthContainer, EnvelopeError> {
    let container = AuthContainer::decode(untrusted_body).map_err(|_| EnvelopeError::Malformed)?;
    if container.cipher_context.is_some() || container.cipher_data.is_some() {
        return Err(EnvelopeError::Encrypted);
    }
    Ok(container)
}

fn payload(body: Option<AuthBody>) -> Result<Vec<u8>, EnvelopeError> {
    body.map(|body| body.payload).ok_or(EnvelopeError::NoPayload)
}
