// SPDX-License-Identifier: Apache-2.0
//! Answers to the calls of other services. Who may ask for what:
//!
//! | caller | may |
//! |---|---|
//! | agent | read the identity, sign, quote, seal, name the controller's ECDH certificates |
//! | shim | open user data |
//! | fetch | open credentials |
//!
//! Clear text and keys are wiped after use and stand in no log and no error.

use std::path::{Path, PathBuf};

use eve_api::certs::cert_hash;
use eve_api::cipher::{ObjectSecrets, check_ecdh_cert};
use eve_api::envelope::{EcdsaSigner, Sign};
use ipc::calls::{VaultReply, VaultRequest};
use model::reason::{Fault, Reason};
use model::secret::SecretHandle;
use zeroize::Zeroizing;

use crate::config_dir::ConfigDir;
use crate::durable;
use crate::identity::Identity;
use crate::keys::{KeyRole, from_pem};
use crate::trusted::TrustedCerts;

/// Longest nonce a TPM takes into a quote.
const MAX_NONCE_BYTES: usize = 64;
/// Largest message signed: a log file or a report with its envelope.
const MAX_SIGNED_BYTES: usize = 4 * 1024 * 1024;

/// The vault, open.
#[derive(Debug)]
pub struct Vault {
    dir: PathBuf,
    identity: Identity,
    onboarding: Option<EcdsaSigner>,
    trusted: TrustedCerts,
    ecdh_hash: [u8; 16],
}

/// What a caller asks for, as far as permission goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Agent,
    OpenUserData,
    OpenCredentials,
}

impl Vault {
    /// Takes an identity into service. An onboarding key that cannot be read is as good as none: a node whose
    /// certificate is known does not need it.
    pub fn new(dir: &Path, config: &ConfigDir, identity: Identity) -> Vault {
        let onboarding = config.onboarding.as_ref().and_then(|files| {
            EcdsaSigner::from_secret_key(&from_pem(&files.key_pem, KeyRole::Device).ok()?).ok()
        });
        let trusted = durable::read(dir, TrustedCerts::FILE)
            .ok()
            .flatten()
            .map(|text| TrustedCerts::parse(&text))
            .unwrap_or_default();
        let ecdh_pem = identity.public.node_certs.iter().find(|cert| cert.kind == 13).map(|cert| &cert.pem);
        let ecdh_hash = ecdh_pem.map(|pem| cert_hash(pem.as_bytes())).unwrap_or_default();
        Vault { dir: dir.to_owned(), identity, onboarding, trusted, ecdh_hash }
    }

    pub fn has_tpm(&self) -> bool {
        self.identity.keys.has_tpm()
    }

    /// Answers one call of the service `from`.
    pub fn answer(&mut self, from: &str, request: VaultRequest) -> Result<VaultReply, Fault> {
        check_right(from, &request)?;
        match request {
            VaultRequest::Identity => Ok(VaultReply::Identity(self.identity.public.clone())),
            VaultRequest::SignAsDevice { data } => {
                check_size(&data)?;
                let signature = self.identity.keys.sign(KeyRole::Device, &data);
                signature.map(VaultReply::Signature).map_err(|error| internal(error.to_string()))
            }
            VaultRequest::SignAsOnboarding { data } => {
                check_size(&data)?;
                let signer =
                    self.onboarding.as_ref().ok_or_else(|| internal("the node has no onboarding key"))?;
                signer.sign(&data).map(VaultReply::Signature).map_err(|error| internal(error.to_string()))
            }
            VaultRequest::Quote { nonce } => {
                if nonce.len() > MAX_NONCE_BYTES {
                    return Err(internal("nonce longer than a quote takes"));
                }
                self.identity.keys.quote(&nonce).map(VaultReply::Quote).map_err(|e| internal(e.to_string()))
            }
            VaultRequest::Seal { clear } => {
                let clear = Zeroizing::new(clear);
                let sealed = self.identity.sealer.seal(&clear).map_err(|e| internal(e.to_string()))?;
                Ok(VaultReply::Sealed(SecretHandle::Sealed { sealed }))
            }
            VaultRequest::TrustControllerCerts { ecdh_pems } => self.trust(&ecdh_pems),
            VaultRequest::OpenUserData { handle } => {
                let mut secrets = self.open(&handle)?;
                let text = std::mem::take(&mut *secrets.user_data);
                match String::from_utf8(text) {
                    Ok(text) => Ok(VaultReply::UserData(text)),
                    Err(error) => {
                        drop(Zeroizing::new(error.into_bytes()));
                        Err(Fault::new(Reason::UserDataInvalid, "user data is not text"))
                    }
                }
            }
            VaultRequest::OpenCredentials { handle } => {
                let mut secrets = self.open(&handle)?;
                Ok(VaultReply::Credentials {
                    user: std::mem::take(&mut *secrets.datastore_user),
                    password: std::mem::take(&mut *secrets.datastore_password),
                })
            }
        }
    }

    fn trust(&mut self, ecdh_pems: &[String]) -> Result<VaultReply, Fault> {
        for pem in ecdh_pems {
            check_ecdh_cert(pem.as_bytes())
                .map_err(|error| internal(format!("controller's ECDH certificate: {error}")))?;
        }
        if self.trusted.renew(ecdh_pems) {
            durable::write(&self.dir, TrustedCerts::FILE, self.trusted.to_text().as_bytes())
                .map_err(|error| Fault::new(Reason::StorageFailed, format!("vault: {error}")))?;
        }
        Ok(VaultReply::Done)
    }

    fn open(&self, handle: &SecretHandle) -> Result<ObjectSecrets, Fault> {
        let fault = |message: String| Fault::new(Reason::SecretUndecryptable, message);
        let clear = match handle {
            SecretHandle::Sealed { sealed } => {
                self.identity.sealer.open(sealed).map_err(|error| fault(error.to_string()))?
            }
            SecretHandle::Object { block, context } => {
                if context.device_cert_hash != self.ecdh_hash {
                    return Err(fault(format!("context {:?} is for another device key", context.id)));
                }
                let peer = self.trusted.by_hash(&context.controller_cert_hash).ok_or_else(|| {
                    fault(format!("context {:?} names an unknown controller certificate", context.id))
                })?;
                let clear = self.identity.keys.decrypt(block, peer.as_bytes());
                clear.map_err(|error| fault(format!("context {:?}: {error}", context.id)))?
            }
        };
        ObjectSecrets::from_clear(&clear).map_err(|error| fault(error.to_string()))
    }
}

fn check_right(from: &str, request: &VaultRequest) -> Result<(), Fault> {
    let needed = match request {
        VaultRequest::Identity
        | VaultRequest::SignAsDevice { .. }
        | VaultRequest::SignAsOnboarding { .. }
        | VaultRequest::Quote { .. }
        | VaultRequest::Seal { .. }
        | VaultRequest::TrustControllerCerts { .. } => Right::Agent,
        VaultRequest::OpenUserData { .. } => Right::OpenUserData,
        VaultRequest::OpenCredentials { .. } => Right::OpenCredentials,
    };
    let has = match from {
        "agent" => Some(Right::Agent),
        "shim" => Some(Right::OpenUserData),
        "fetch" => Some(Right::OpenCredentials),
        _ => None,
    };
    if has == Some(needed) {
        return Ok(());
    }
    Err(internal(format!("{from} may not ask the vault for {request:?}")))
}

fn check_size(data: &[u8]) -> Result<(), Fault> {
    if data.len() > MAX_SIGNED_BYTES { Err(internal("message too large to sign")) } else { Ok(()) }
}

fn internal(message: impl Into<String>) -> Fault {
    Fault::new(Reason::Internal, message)
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
