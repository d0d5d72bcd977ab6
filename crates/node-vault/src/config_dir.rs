// SPDX-License-Identifier: Apache-2.0
//! What an EVE-shaped CONFIG directory says about the node and its controller. Read once at start, never written.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use crate::durable;

/// Content of CONFIG that the vault uses.
#[derive(Default)]
pub struct ConfigDir {
    pub server: String,
    pub root_certs_pem: String,
    pub tls_root_certs_pem: String,
    pub soft_serial: Option<String>,
    pub onboarding: Option<KeyFiles>,
    /// Made elsewhere, to be used instead of a key of our own.
    pub device: Option<KeyFiles>,
}

/// A certificate and its private key, both PEM.
pub struct KeyFiles {
    pub cert_pem: String,
    pub key_pem: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ConfigDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigDir").field("server", &self.server).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for KeyFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyFiles(…)")
    }
}

/// CONFIG cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigDirError {
    #[error("cannot read {name} of the config directory")]
    Read {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{0} of the config directory is missing or empty")]
    Missing(&'static str),
    #[error("{0} of the config directory is not text")]
    NotText(&'static str),
}

impl ConfigDir {
    pub fn read(dir: &Path) -> Result<ConfigDir, ConfigDirError> {
        let file = |name: &'static str| {
            durable::read(dir, name).map_err(|source| ConfigDirError::Read { name, source })
        };
        let text = |name: &'static str| -> Result<Option<String>, ConfigDirError> {
            let Some(bytes) = file(name)? else { return Ok(None) };
            String::from_utf8(bytes.to_vec()).map(Some).map_err(|_| ConfigDirError::NotText(name))
        };
        let pair = |cert: &'static str, key: &'static str| -> Result<Option<KeyFiles>, ConfigDirError> {
            // A certificate without its key is that of a TPM, or a left-over: nothing to sign with.
            Ok(text(cert)?.zip(file(key)?).map(|(cert_pem, key_pem)| KeyFiles { cert_pem, key_pem }))
        };
        let line = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());

        let server = text("server")?.and_then(line).ok_or(ConfigDirError::Missing("server"))?;
        let root_certs_pem = text("root-certificate.pem")?
            .filter(|pem| !pem.trim().is_empty())
            .ok_or(ConfigDirError::Missing("root-certificate.pem"))?;
        let tls_root_certs_pem = text("v2tlsbaseroot-certificates.pem")?
            .filter(|pem| !pem.trim().is_empty())
            .unwrap_or_else(|| root_certs_pem.clone());
        Ok(ConfigDir {
            server,
            root_certs_pem,
            tls_root_certs_pem,
            soft_serial: text("soft_serial")?.and_then(line),
            onboarding: pair("onboard.cert.pem", "onboard.key.pem")?,
            device: pair("device.cert.pem", "device.key.pem")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_trimmed_and_missing_files_are_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("server", "  \n");
        assert!(matches!(ConfigDir::read(dir.path()), Err(ConfigDirError::Missing("server"))));
        put("server", "controller.example:8443\n");
        assert!(matches!(ConfigDir::read(dir.path()), Err(ConfigDirError::Missing("root-certificate.pem"))));
        put("root-certificate.pem", "PEM");
        put("soft_serial", "S1\n");
        put("onboard.cert.pem", "CERT");
        let config = ConfigDir::read(dir.path()).unwrap();
        assert_eq!(config.server, "controller.example:8443");
        assert_eq!(config.tls_root_certs_pem, "PEM");
        assert_eq!(config.soft_serial.as_deref(), Some("S1"));
        assert!(config.onboarding.is_none(), "a certificate without its key signs nothing");
    }
}
