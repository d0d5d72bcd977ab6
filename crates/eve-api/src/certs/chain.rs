// SPDX-License-Identifier: Apache-2.0
//! The controller's certificate set (`ZControllerCert`), checked as EVE checks it.
//!
//! Rules: exactly one signing certificate, at least one for ECDH, no type but these and
//! intermediates; every leaf chains to one of the roots, valid at the given moment; a leaf with an
//! extended key usage must allow server authentication, one without may do all. No host names.
//! Two leaves pass that a TLS client would refuse: one that *is* a root, byte for byte (a
//! self-signed controller), and any when the moment is `None` as long as its chain was valid at some
//! moment. Refused though Go would take it: a leaf that is a CA but no root; curves other than
//! P-256 and P-384.

use prost::Message;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    anchor_from_trusted_cert,
};
use x509_cert::der::Decode;
use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::{CertError, MAX_CERTS, PublicKey, cert_hash, first_der, parse_pem, validity};
use crate::wire::certs::{ZCert, ZCertType, ZControllerCert};
use crate::wire::common::HashAlgorithm;

/// What a certificate of the controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Signing,
    Intermediate,
    Ecdh,
}

/// A certificate for object encryption and the hash that cipher contexts name it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EcdhCert {
    /// `ZCert.certHash` as sent; compared as a whole.
    pub hash: Vec<u8>,
    pub pem: Vec<u8>,
}

/// A verified set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerCerts {
    /// Exactly as sent: its hash names the signer of envelopes.
    pub signing_pem: Vec<u8>,
    pub signing_key: PublicKey,
    pub ecdh: Vec<EcdhCert>,
    /// Sorted `certHash` of all certificates: equal sets are the same set, whatever their order.
    pub hashes: Vec<Vec<u8>>,
}

impl ControllerCerts {
    /// The ECDH certificate that a cipher context names.
    pub fn ecdh_by_hash(&self, hash: &[u8]) -> Option<&EcdhCert> {
        self.ecdh.iter().find(|cert| cert.hash == hash)
    }
}

/// The payload of `GET /certs`.
pub fn build_controller_certs<'a>(certs: impl IntoIterator<Item = (Role, &'a [u8])>) -> Vec<u8> {
    let certs = certs.into_iter().map(|(role, pem)| ZCert {
        hash_algo: HashAlgorithm::Sha25616bytes.into(),
        cert_hash: cert_hash(pem).to_vec(),
        r#type: match role {
            Role::Signing => ZCertType::CertTypeControllerSigning,
            Role::Intermediate => ZCertType::CertTypeControllerIntermediate,
            Role::Ecdh => ZCertType::CertTypeControllerEcdhExchange,
        }
        .into(),
        cert: pem.to_vec(),
        ..ZCert::default()
    });
    ZControllerCert { certs: certs.collect() }.encode_to_vec()
}

/// Checks a `ZControllerCert` against the roots. `now` in seconds since 1970; `None` skips validity,
/// for a device whose clock is not set or that reads back what it accepted before.
pub fn verify_controller_certs(
    untrusted_set: &[u8],
    roots_pem: &[u8],
    now: Option<i64>,
) -> Result<ControllerCerts, CertError> {
    let set = ZControllerCert::decode(untrusted_set).map_err(|_| CertError::MalformedSet)?;
    if set.certs.len() > MAX_CERTS {
        return Err(CertError::TooLarge);
    }
    let (mut signing, mut ecdh, mut intermediates) = (Vec::new(), Vec::new(), Vec::new());
    for cert in &set.certs {
        match ZCertType::try_from(cert.r#type) {
            Ok(ZCertType::CertTypeControllerSigning) => signing.push(cert),
            Ok(ZCertType::CertTypeControllerEcdhExchange) => ecdh.push(cert),
            Ok(ZCertType::CertTypeControllerIntermediate) => intermediates.extend(parse_pem(&cert.cert)?),
            _ => return Err(CertError::UnknownType(cert.r#type)),
        }
    }
    let [signing] = signing[..] else { return Err(CertError::SigningCount(signing.len())) };
    if ecdh.is_empty() {
        return Err(CertError::NoEcdh);
    }
    if intermediates.len() > MAX_CERTS {
        return Err(CertError::TooLarge);
    }
    let roots = parse_pem(roots_pem)?;
    for leaf in std::iter::once(signing).chain(ecdh.iter().copied()) {
        verify_leaf(&first_der(&leaf.cert)?, &intermediates, &roots, now)?;
    }
    let mut hashes: Vec<_> = set.certs.iter().map(|cert| cert.cert_hash.clone()).collect();
    hashes.sort();
    Ok(ControllerCerts {
        signing_pem: signing.cert.clone(),
        signing_key: PublicKey::from_pem(&signing.cert)?,
        ecdh: ecdh.iter().map(|c| EcdhCert { hash: c.cert_hash.clone(), pem: c.cert.clone() }).collect(),
        hashes,
    })
}

/// Checks that one leaf chains to a root through the intermediates, all in DER.
pub fn verify_leaf(
    untrusted_leaf: &[u8],
    untrusted_intermediates: &[Vec<u8>],
    roots: &[Vec<u8>],
    now: Option<i64>,
) -> Result<(), CertError> {
    let leaf_validity = validity(untrusted_leaf)?;
    if now.is_some_and(|now| !is_within(now, leaf_validity)) {
        return Err(CertError::Validity);
    }
    if roots.iter().any(|root| root == untrusted_leaf) {
        return check_usage_of_root(untrusted_leaf);
    }
    let leaf = CertificateDer::from(untrusted_leaf);
    let leaf = EndEntityCert::try_from(&leaf).map_err(|_| CertError::Malformed)?;
    let intermediates: Vec<_> =
        untrusted_intermediates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();

    let moments = match now {
        Some(now) => vec![now],
        // Where all certificates of a chain are valid together, one of them has just become so.
        None => {
            let starts = untrusted_intermediates.iter().chain(roots).filter_map(|der| validity(der).ok());
            std::iter::once(leaf_validity).chain(starts).map(|(start, _)| start).collect()
        }
    };
    let mut error = CertError::Chain("never valid as a whole".into());
    for moment in moments {
        let valid_roots: Vec<_> = roots
            .iter()
            .filter(|der| validity(der).is_ok_and(|v| is_within(moment, v)))
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let anchors: Vec<TrustAnchor<'_>> =
            valid_roots.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment).unwrap_or(0)));
        match leaf.verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            at,
            ServerAuthOrAny,
            None,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(why) => match name_error(why) {
                // Without a time to judge by, some moments are bound to lie outside.
                CertError::Validity if now.is_none() => {}
                why => error = why,
            },
        }
    }
    Err(error)
}

fn is_within(moment: i64, (start, end): (i64, i64)) -> bool {
    (start..=end).contains(&moment)
}

fn name_error(why: Error) -> CertError {
    match why {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } | Error::InvalidCertValidity => {
            CertError::Validity
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => CertError::KeyUsage,
        other => CertError::Chain(other.to_string()),
    }
}

/// DER of the two usages that let a leaf pass: id-kp-serverAuth and anyExtendedKeyUsage.
const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
const ANY_USAGE: &str = "2.5.29.37.0";
const SERVER_AUTH_DECODED: [usize; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 1];
const ANY_USAGE_DECODED: [usize; 5] = [2, 5, 29, 37, 0];

/// Go's default purpose, without which EVE accepts no leaf.
struct ServerAuthOrAny;

impl ExtendedKeyUsageValidator for ServerAuthOrAny {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        let mut is_absent = true;
        for usage in usages {
            is_absent = false;
            let usage = usage?.to_decoded_oid();
            if usage == SERVER_AUTH_DECODED || usage == ANY_USAGE_DECODED {
                return Ok(());
            }
        }
        if is_absent { Ok(()) } else { Err(Error::EmptyEkuExtension) }
    }
}

fn check_usage_of_root(der: &[u8]) -> Result<(), CertError> {
    let cert = x509_cert::Certificate::from_der(der).map_err(|_| CertError::Malformed)?;
    let usage =
        cert.tbs_certificate().get_extension::<ExtendedKeyUsage>().map_err(|_| CertError::Malformed)?;
    match usage {
        Some((_, usage))
            if !usage.0.iter().any(|id| [SERVER_AUTH, ANY_USAGE].contains(&id.to_string().as_str())) =>
        {
            Err(CertError::KeyUsage)
        }
        _ => Ok(()),
    }
}
