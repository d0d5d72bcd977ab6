// SPDX-License-Identifier: Apache-2.0
//! The node's keys and certificates on disk: made once, kept byte for byte for ever.
//!
//! A published certificate cannot be replaced (a strict controller refuses another one of the same type), so what
//! stands here is never made anew. A key is written before its certificate; a key alone gets its certificate at the
//! next start. A file that is there and cannot be read stops the vault: taking a new identity is no repair.
//! CONFIG's own device key, when there is one, is used in place of ours and is not copied.

use std::io;
use std::path::Path;

use ipc::calls::{NodeCert, NodeIdentity};
use p256::SecretKey;
use zeroize::Zeroizing;

use crate::certs::{MakeError, make_device, make_node};
use crate::config_dir::ConfigDir;
use crate::durable;
use crate::keys::{KeyError, KeyRole, Keys, SoftwareKeys, from_pem, generate, to_pem};
use crate::seal::{SealError, Sealer, generate_key};

/// `ZCertType` numbers of what a node publishes.
const CERT_QUOTE: i32 = 11;
const CERT_ECDH: i32 = 13;

const SEAL_KEY_FILE: &str = "seal.key";

/// The identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read or write {name} of the vault's directory")]
    File {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} of the vault's directory is damaged")]
    Damaged { name: String },
    #[error("device certificate of the config directory does not belong to its key")]
    ConfigDevice,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error("no seal key")]
    Seal(#[from] SealError),
}

/// What the vault serves from.
pub struct Identity {
    pub keys: Box<dyn Keys + Send>,
    pub public: NodeIdentity,
    pub sealer: Sealer,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Reads the identity with software keys, and makes what is not there yet. `at_s`: seconds since 1970, at or after the
/// build date.
pub fn load(dir: &Path, config: &ConfigDir, at_s: i64) -> Result<Identity, IdentityError> {
    let device = match &config.device {
        Some(files) => from_pem(&files.key_pem, KeyRole::Device)?,
        None => key(dir, KeyRole::Device)?,
    };
    let keys = SoftwareKeys::new(device, key(dir, KeyRole::Ecdh)?, key(dir, KeyRole::Quote)?);

    let device_cert_pem = match &config.device {
        Some(files) => files.cert_pem.clone(),
        None => cert(dir, KeyRole::Device, || make_device(&keys, at_s))?,
    };
    check_belongs(&keys, KeyRole::Device, &device_cert_pem).ok_or(IdentityError::ConfigDevice)?;
    let mut node_certs = Vec::new();
    for (role, kind) in [(KeyRole::Quote, CERT_QUOTE), (KeyRole::Ecdh, CERT_ECDH)] {
        let pem = cert(dir, role, || make_node(&keys, role, &device_cert_pem, at_s))?;
        check_belongs(&keys, role, &pem).ok_or_else(|| IdentityError::Damaged { name: cert_file(role) })?;
        node_certs.push(NodeCert { kind, pem, tpm_public: None });
    }
    Ok(Identity {
        keys: Box::new(keys),
        sealer: Sealer::new(&seal_key(dir)?)?,
        public: NodeIdentity {
            device_cert_pem,
            onboarding_cert_pem: config.onboarding.as_ref().map(|files| files.cert_pem.clone()),
            node_certs,
            soft_serial: config.soft_serial.clone(),
            server: config.server.clone(),
            root_certs_pem: config.root_certs_pem.clone(),
            tls_root_certs_pem: config.tls_root_certs_pem.clone(),
        },
    })
}

fn stem(role: KeyRole) -> &'static str {
    match role {
        KeyRole::Device => "device",
        KeyRole::Ecdh => "ecdh",
        KeyRole::Quote => "attest",
    }
}

fn cert_file(role: KeyRole) -> String {
    format!("{}.cert.pem", stem(role))
}

fn read(dir: &Path, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    durable::read(dir, name).map_err(|source| IdentityError::File { name: name.into(), source })
}

fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), IdentityError> {
    durable::write(dir, name, content).map_err(|source| IdentityError::File { name: name.into(), source })
}

fn key(dir: &Path, role: KeyRole) -> Result<SecretKey, IdentityError> {
    let name = format!("{}.key.pem", stem(role));
    if let Some(pem) = read(dir, &name)? {
        return from_pem(&pem, role).map_err(|_| IdentityError::Damaged { name });
    }
    if read(dir, &cert_file(role))?.is_some() {
        // The certificate may be published: its key is gone, and another one would not fit it.
        return Err(IdentityError::Damaged { name });
    }
    let key = generate()?;
    write(dir, &name, to_pem(&key, role)?.as_bytes())?;
    Ok(key)
}

fn cert(
    dir: &Path,
    role: KeyRole,
    make: impl FnOnce() -> Result<String, MakeError>,
) -> Result<String, IdentityError> {
    let name = cert_file(role);
    if let Some(pem) = read(dir, &name)? {
        return String::from_utf8(pem.to_vec()).map_err(|_| IdentityError::Damaged { name });
    }
    let pem = make()?;
    write(dir, &name, pem.as_bytes())?;
    Ok(pem)
}

fn check_belongs(keys: &SoftwareKeys, role: KeyRole, pem: &str) -> Option<()> {
    use eve_api::certs::PublicKey;
    let found = PublicKey::from_pem(pem.as_bytes()).ok()?;
    (found == PublicKey::P256(keys.public_point(role))).then_some(())
}

fn seal_key(dir: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    if let Some(key) = read(dir, SEAL_KEY_FILE)? {
        return Ok(key);
    }
    let key = generate_key()?;
    write(dir, SEAL_KEY_FILE, &key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_dir::KeyFiles;

    const AT: i64 = 1_800_000_000;

    #[test]
    fn the_identity_stays_the_same_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(dir.path(), &ConfigDir::default(), AT).unwrap();
        let again = load(dir.path(), &ConfigDir::default(), AT + 1_000_000).unwrap();
        assert_eq!(first.public, again.public);
        let sealed = first.sealer.seal(b"x").unwrap();
        assert_eq!(**again.sealer.open(&sealed).unwrap(), *b"x");
    }

    #[test]
    fn a_lost_certificate_is_made_again_and_a_lost_key_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(dir.path(), &ConfigDir::default(), AT).unwrap();
        std::fs::remove_file(dir.path().join("device.cert.pem")).unwrap();
        let again = load(dir.path(), &ConfigDir::default(), AT).unwrap();
        assert_eq!(first.public.node_certs, again.public.node_certs);
        std::fs::remove_file(dir.path().join("ecdh.key.pem")).unwrap();
        assert!(matches!(load(dir.path(), &ConfigDir::default(), AT), Err(IdentityError::Damaged { .. })));
    }

    #[test]
    fn a_device_key_in_config_is_used_and_must_fit_its_certificate() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = load(one.path(), &ConfigDir::default(), AT).unwrap();
        let files = || KeyFiles {
            cert_pem: made.public.device_cert_pem.clone(),
            key_pem: Zeroizing::new(std::fs::read(one.path().join("device.key.pem")).unwrap()),
        };
        let config = ConfigDir { device: Some(files()), ..ConfigDir::default() };
        let used = load(two.path(), &config, AT).unwrap();
        assert_eq!(used.public.device_cert_pem, made.public.device_cert_pem);
        assert!(!two.path().join("device.key.pem").exists());

        let mut foreign = files();
        foreign.key_pem = Zeroizing::new(std::fs::read(one.path().join("ecdh.key.pem")).unwrap());
        let config = ConfigDir { device: Some(foreign), ..ConfigDir::default() };
        assert!(matches!(load(two.path(), &config, AT), Err(IdentityError::ConfigDevice)));
    }
}
