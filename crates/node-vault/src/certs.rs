// SPDX-License-Identifier: Apache-2.0
//! Making the node's certificates: the profile of EVE, so that any EVE controller takes them.
//!
//! Device: self-signed CA, 20 years from yesterday. ECDH and quote: signed by the device key, same validity. A clock
//! before the build date does not count: the build date takes its place.

use std::time::Duration;

use eve_api::certs::{first_der, to_pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
    date_time_ymd,
};
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef};
use x509_cert::der::{Decode, Tagged};

use crate::keys::{KeyRole, Keys};

const DAY_S: i64 = 24 * 60 * 60;
const VALIDITY_S: i64 = 20 * 365 * DAY_S;
const ORGANIZATION: &str = "Selvedge";

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("cannot make the {role:?} certificate")]
    Make {
        role: KeyRole,
        #[source]
        source: rcgen::Error,
    },
    #[error("the device certificate's subject cannot be used as an issuer")]
    Issuer,
}

/// PEM of the self-signed device certificate. `at_s`: seconds since 1970, already at or after the build date.
pub fn make_device(keys: &dyn Keys, at_s: i64) -> Result<String, MakeError> {
    let signer = KeySigner::new(keys, KeyRole::Device);
    let params = params(device_name(), KeyRole::Device, at_s);
    let cert =
        params.self_signed(&signer).map_err(|source| MakeError::Make { role: KeyRole::Device, source })?;
    Ok(to_pem(cert.der()))
}

/// PEM of the certificate of another key, issued by the device key under the subject of `device_pem`.
pub fn make_node(keys: &dyn Keys, role: KeyRole, device_pem: &str, at_s: i64) -> Result<String, MakeError> {
    let issuer_params = params(subject_of(device_pem)?, KeyRole::Device, at_s);
    let issuer = Issuer::from_params(&issuer_params, KeySigner::new(keys, KeyRole::Device));
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(
        DnType::CommonName,
        match role {
            KeyRole::Device => "Selvedge device",
            KeyRole::Ecdh => "Selvedge device ECDH",
            KeyRole::Quote => "Selvedge device attestation",
        },
    );
    let cert = params(name, role, at_s)
        .signed_by(&KeySigner::new(keys, role), &issuer)
        .map_err(|source| MakeError::Make { role, source })?;
    Ok(to_pem(cert.der()))
}

fn device_name() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(DnType::CommonName, "Selvedge device");
    name
}

fn params(name: DistinguishedName, role: KeyRole, at_s: i64) -> CertificateParams {
    let start_s = at_s - DAY_S;
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    let moment = |s: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(s).unwrap_or(0));
    params.not_before = moment(start_s);
    params.not_after = moment(start_s + VALIDITY_S);
    params.key_usages = match role {
        KeyRole::Device => vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
        KeyRole::Ecdh => vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement],
        KeyRole::Quote => vec![KeyUsagePurpose::DigitalSignature],
    };
    if role == KeyRole::Device {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    } else {
        params.is_ca = IsCa::ExplicitNoCa;
    }
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// The subject of an existing certificate, in the same string types: issuer names are compared byte by byte.
fn subject_of(pem: &str) -> Result<DistinguishedName, MakeError> {
    let der = first_der(pem.as_bytes()).map_err(|_| MakeError::Issuer)?;
    let cert = x509_cert::Certificate::from_der(&der).map_err(|_| MakeError::Issuer)?;
    let mut name = DistinguishedName::new();
    for set in cert.tbs_certificate().subject().iter_rdn() {
        for attribute in set.iter() {
            let arcs: Vec<u64> = attribute.oid.arcs().map(u64::from).collect();
            name.push(DnType::from_oid(&arcs), value_of(&attribute.value)?);
        }
    }
    Ok(name)
}

fn value_of(value: &x509_cert::der::Any) -> Result<DnValue, MakeError> {
    use x509_cert::der::Tag;
    match value.tag() {
        Tag::Utf8String => {
            let text = std::str::from_utf8(value.value()).map_err(|_| MakeError::Issuer)?;
            Ok(DnValue::Utf8String(text.into()))
        }
        Tag::PrintableString => {
            let text = value.decode_as::<PrintableStringRef<'_>>().map_err(|_| MakeError::Issuer)?;
            let text = text.as_str().to_owned().try_into().map_err(|_| MakeError::Issuer)?;
            Ok(DnValue::PrintableString(text))
        }
        Tag::Ia5String => {
            let text = value.decode_as::<Ia5StringRef<'_>>().map_err(|_| MakeError::Issuer)?;
            let text = text.as_str().to_owned().try_into().map_err(|_| MakeError::Issuer)?;
            Ok(DnValue::Ia5String(text))
        }
        _ => Err(MakeError::Issuer),
    }
}

/// Lets the certificate library sign with a key it cannot see.
struct KeySigner<'a> {
    keys: &'a dyn Keys,
    role: KeyRole,
    point: Vec<u8>,
}

impl<'a> KeySigner<'a> {
    fn new(keys: &'a dyn Keys, role: KeyRole) -> KeySigner<'a> {
        KeySigner { keys, role, point: keys.public_point(role) }
    }
}

impl PublicKeyData for KeySigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for KeySigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let raw = self.keys.sign(self.role, message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(raw_to_der(&raw))
    }
}

/// r‖s of P-256 as the ASN.1 sequence certificates carry.
fn raw_to_der(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let mut body = Vec::new();
    for number in [r, s] {
        let zeros = number.iter().take_while(|byte| **byte == 0).count().min(number.len().saturating_sub(1));
        let digits = &number[zeros..];
        let pad = digits.first().is_some_and(|byte| *byte >= 0x80);
        // At most 33 bytes, so one length byte does.
        body.extend([2, digits.len() as u8 + u8::from(pad)]);
        body.extend(pad.then_some(0));
        body.extend(digits);
    }
    let mut out = vec![0x30, body.len() as u8];
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{SoftwareKeys, generate};
    use eve_api::certs::{chain, validity};

    fn keys() -> SoftwareKeys {
        SoftwareKeys::new(generate().unwrap(), generate().unwrap(), generate().unwrap())
    }

    const AT: i64 = 1_800_000_000;

    #[test]
    fn node_certificates_chain_to_the_device_certificate() {
        let keys = keys();
        let device = make_device(&keys, AT).unwrap();
        let root = vec![first_der(device.as_bytes()).unwrap()];
        for role in [KeyRole::Ecdh, KeyRole::Quote] {
            let pem = make_node(&keys, role, &device, AT).unwrap();
            chain::verify_leaf(&first_der(pem.as_bytes()).unwrap(), &[], &root, Some(AT)).unwrap();
        }
        assert_eq!(validity(&root[0]).unwrap(), (AT - DAY_S, AT - DAY_S + VALIDITY_S));
    }

    #[test]
    fn a_foreign_device_certificate_keeps_its_string_types_as_issuer() {
        let keys = keys();
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, DnValue::PrintableString("US".try_into().unwrap()));
        name.push(
            DnType::OrganizationName,
            DnValue::PrintableString("The Linux Foundation".try_into().unwrap()),
        );
        name.push(DnType::CommonName, DnValue::Utf8String("EVE".into()));
        let signer = KeySigner::new(&keys, KeyRole::Device);
        let device = to_pem(params(name, KeyRole::Device, AT).self_signed(&signer).unwrap().der());
        let pem = make_node(&keys, KeyRole::Ecdh, &device, AT).unwrap();
        let root = vec![first_der(device.as_bytes()).unwrap()];
        chain::verify_leaf(&first_der(pem.as_bytes()).unwrap(), &[], &root, Some(AT)).unwrap();
    }

    #[test]
    fn der_signatures_have_no_needless_zeros() {
        let mut raw = [0; 64];
        raw[31] = 0x80;
        raw[63] = 5;
        assert_eq!(raw_to_der(&raw), [0x30, 7, 2, 2, 0, 0x80, 2, 1, 5]);
    }
}
