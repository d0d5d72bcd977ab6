// SPDX-License-Identifier: Apache-2.0
//! The controller's certificates, made once per process: no decision depends on their bytes.

use std::sync::OnceLock;

use eve_api::envelope::EcdsaSigner;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) root_pem: String,
    pub(crate) signing_pem: String,
    pub(crate) ecdh_pem: String,
    pub(crate) signer: EcdsaSigner,
}

/// Those of this process.
pub(crate) fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| make().expect("making keys needs nothing but random bytes"))
}

fn make() -> Result<Keys, Box<dyn std::error::Error>> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "root of the simulated controller");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key)?.pem();
    let issuer = Issuer::from_params(&root, &root_key);
    let leaf = || -> Result<(String, KeyPair), rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "leaf of the simulated controller");
        Ok((params.signed_by(&key, &issuer)?.pem(), key))
    };
    let (signing_pem, signing_key) = leaf()?;
    let (ecdh_pem, _) = leaf()?;
    let signer = EcdsaSigner::from_pem(signing_key.serialize_pem().as_bytes()).map_err(|_| "signing key")?;
    Ok(Keys { root_pem, signing_pem, ecdh_pem, signer })
}
