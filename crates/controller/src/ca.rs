// SPDX-License-Identifier: Apache-2.0
//! The controller's certificates: a root, and under it one for TLS, one that signs answers, one for object encryption.
//!
//! Lifetimes: root 20 years; signing and ECDH 5 years; TLS 397 days, renewed by itself when less than a third is left
//! or when the names it must carry change. Devices keep trusting through the root. Private keys are files of mode 0600 in
//! the directory `pki` of the data directory; they are made once, on the first run, each file written whole before the
//! next.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::files::{self, FileError};

const ROOT_YEARS: i16 = 20;
const SERVICE_YEARS: i16 = 5;
const TLS_DAYS: i64 = 397;
/// The TLS certificate is renewed when it has less than this left.
const TLS_RENEW_DAYS: i64 = 130;
/// Certificates begin to hold this long before they are made: boxes whose clock is late must take them.
const BACKDATE_DAYS: i64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("certificate file {} cannot be read", .0.display())]
    Malformed(PathBuf),
    #[error("TLS key cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("key cannot be used: {0}")]
    Key(String),
    #[error("'{0}' is no host name or address")]
    Name(String),
}

/// All certificates and keys of this controller.
pub struct Ca {
    dir: PathBuf,
    pub root_pem: String,
    /// Exactly as sent to devices: no newline at the end.
    pub signing_pem: Vec<u8>,
    pub signer: eve_api::envelope::EcdsaSigner,
    pub ecdh_pem: Vec<u8>,
    pub ecdh_key: p256::SecretKey,
    /// Key of the HMAC that makes initial values.
    pub iv_key: ring::hmac::Key,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Ca {
    /// Opens the directory; makes what is missing.
    pub fn open(dir: &Path) -> Result<Ca, CaError> {
        files::private_dir(dir)?;
        let root_key = key(dir, "root.key.pem")?;
        let root_pem =
            cert(dir, "root-certificate.pem", || Ok(root_params()?.self_signed(&root_key)?.pem()))?;
        let signing_key = key(dir, "signing.key.pem")?;
        let signing_pem = cert(dir, "signing.cert.pem", || {
            leaf("Selvedge signing", vec![KeyUsagePurpose::DigitalSignature], &signing_key, &root_key)
        })?;
        let ecdh_key = key(dir, "ecdh.key.pem")?;
        let ecdh_pem = cert(dir, "ecdh.cert.pem", || {
            leaf("Selvedge object encryption", vec![KeyUsagePurpose::KeyAgreement], &ecdh_key, &root_key)
        })?;
        let iv_secret = files::read_or_make(&dir.join("iv.key"), || files::random_bytes(32))?;
        let why = |error: &dyn std::fmt::Display| CaError::Key(error.to_string());
        Ok(Ca {
            dir: dir.into(),
            signer: eve_api::envelope::EcdsaSigner::from_pem(signing_key.serialize_pem().as_bytes())
                .map_err(|e| why(&e))?,
            ecdh_key: eve_api::cipher::private_key_from_pem(ecdh_key.serialize_pem().as_bytes())
                .map_err(|e| why(&e))?,
            root_pem,
            signing_pem: signing_pem.trim_end().as_bytes().to_vec(),
            ecdh_pem: ecdh_pem.trim_end().as_bytes().to_vec(),
            iv_key: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &iv_secret),
        })
    }

    /// The TLS certificate for these names, from disk or made anew.
    pub fn tls(&self, names: &[String]) -> Result<Arc<CertifiedKey>, CaError> {
        let tls_key = key(&self.dir, "tls.key.pem")?;
        let path = self.dir.join("tls.cert.pem");
        let names_path = self.dir.join("tls.names");
        let wanted = names.join("\n");
        let is_good = files::read(&names_path)?.is_some_and(|text| text == wanted.as_bytes())
            && files::read(&path)?
                .is_some_and(|pem| days_left(&pem).is_some_and(|days| days > TLS_RENEW_DAYS));
        if !is_good {
            let root_key = key(&self.dir, "root.key.pem")?;
            let mut params = params("Selvedge controller", days_from_now(TLS_DAYS));
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            for name in names {
                params.subject_alt_names.push(match name.parse::<IpAddr>() {
                    Ok(address) => SanType::IpAddress(address),
                    Err(_) => {
                        SanType::DnsName(name.clone().try_into().map_err(|_| CaError::Name(name.clone()))?)
                    }
                });
            }
            let cert = params.signed_by(&tls_key, &Issuer::new(root_params()?, &root_key))?;
            files::write(&path, cert.pem().as_bytes())?;
            files::write(&names_path, wanted.as_bytes())?;
            tracing::info!(?names, "made a TLS certificate");
        }
        let pem = files::read(&path)?.unwrap_or_default();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|_| CaError::Malformed(path.clone()))?;
        let der = PrivateKeyDer::from_pem_slice(tls_key.serialize_pem().as_bytes())
            .map_err(|_| CaError::Malformed(path.clone()))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&der)?;
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// An onboarding certificate with its key, both in PEM.
pub(crate) fn make_onboarding(name: &str) -> Result<(String, String), CaError> {
    let key = KeyPair::generate()?;
    let mut params = params(&format!("Selvedge onboarding {name}"), years_from_now(ROOT_YEARS));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn root_params() -> Result<CertificateParams, CaError> {
    let mut params = params("Selvedge root", years_from_now(ROOT_YEARS));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf(
    name: &str,
    usages: Vec<KeyUsagePurpose>,
    key: &KeyPair,
    root_key: &KeyPair,
) -> Result<String, CaError> {
    let mut params = params(name, years_from_now(SERVICE_YEARS));
    params.key_usages = usages;
    Ok(params.signed_by(key, &Issuer::new(root_params()?, root_key))?.pem())
}

type Day = (i32, u8, u8);

fn params(name: &str, (year, month, day): Day) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let (y, m, d) = days_from_now(-BACKDATE_DAYS);
    params.not_before = rcgen::date_time_ymd(y, m, d);
    params.not_after = rcgen::date_time_ymd(year, month, day);
    params.use_authority_key_identifier_extension = true;
    params
}

fn days_from_now(days: i64) -> Day {
    let date = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = date.saturating_add(jiff::Span::new().days(days));
    (date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
}

fn years_from_now(years: i16) -> Day {
    let (year, month, day) = days_from_now(0);
    // Every year has this day.
    (year + i32::from(years), month, day.min(28))
}

pub(crate) fn days_left(pem: &[u8]) -> Option<i64> {
    let der = eve_api::certs::first_der(pem).ok()?;
    let (_, end) = eve_api::certs::validity(&der).ok()?;
    Some((end - jiff::Timestamp::now().as_second()) / 86_400)
}

fn key(dir: &Path, name: &str) -> Result<KeyPair, CaError> {
    let path = dir.join(name);
    let pem = files::read_or_make(&path, || {
        KeyPair::generate().map(|k| k.serialize_pem().into_bytes()).unwrap_or_default()
    })?;
    let text = String::from_utf8(pem).map_err(|_| CaError::Malformed(path.clone()))?;
    KeyPair::from_pem(&text).map_err(|_| CaError::Malformed(path))
}

fn cert(dir: &Path, name: &str, make: impl FnOnce() -> Result<String, CaError>) -> Result<String, CaError> {
    let path = dir.join(name);
    if let Some(pem) = files::read(&path)? {
        return String::from_utf8(pem).map_err(|_| CaError::Malformed(path));
    }
    let pem = make()?;
    files::write(&path, pem.as_bytes())?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_makes_a_set_that_devices_accept_and_the_second_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open(&dir.path().join("pki")).unwrap();
        use eve_api::certs::{Role, build_controller_certs, verify_controller_certs};
        let set = build_controller_certs([
            (Role::Signing, first.signing_pem.as_slice()),
            (Role::Ecdh, first.ecdh_pem.as_slice()),
        ]);
        let now = jiff::Timestamp::now().as_second();
        verify_controller_certs(&set, first.root_pem.as_bytes(), Some(now)).unwrap();
        let four_years = now + 4 * 365 * 86_400;
        verify_controller_certs(&set, first.root_pem.as_bytes(), Some(four_years)).unwrap();
        let again = Ca::open(&dir.path().join("pki")).unwrap();
        assert_eq!((&again.root_pem, &again.signing_pem), (&first.root_pem, &first.signing_pem));
    }

    #[test]
    fn tls_is_made_anew_only_for_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("pki")).unwrap();
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let one = ca.tls(&names(&["127.0.0.1", "localhost"])).unwrap();
        assert_eq!(ca.tls(&names(&["127.0.0.1", "localhost"])).unwrap().cert, one.cert);
        assert_ne!(ca.tls(&names(&["192.0.2.1"])).unwrap().cert, one.cert);
        let roots = eve_api::certs::parse_pem(ca.root_pem.as_bytes()).unwrap();
        let now = Some(jiff::Timestamp::now().as_second());
        eve_api::certs::chain::verify_leaf(&one.cert[0], &[], &roots, now).unwrap();
    }
}
