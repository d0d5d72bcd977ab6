// SPDX-License-Identifier: Apache-2.0
//! The node's private keys, behind the one interface that software and a TPM share.
//!
//! Nothing outside an implementation of [`Keys`] ever sees a private key; what leaves are public points,
//! signatures, quotes and decrypted objects.

use eve_api::cipher::{self, CipherError};
use eve_api::envelope::{EcdsaSigner, Sign};
use ipc::calls::TpmQuote;
use model::secret::CipherBlock;
use p256::SecretKey;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyRole {
    /// The node's identity: signs all messages and the certificates of the other keys.
    Device,
    /// Receives encrypted objects.
    Ecdh,
    /// Signs quotes.
    Quote,
}

/// A key refuses its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("{0:?} key cannot be read")]
    Unreadable(KeyRole),
    #[error("no random numbers")]
    Random,
    #[error("{0:?} key failed to sign")]
    Signing(KeyRole),
}

/// Private keys of this node. All are P-256.
pub trait Keys {
    /// Uncompressed public point, 65 bytes.
    fn public_point(&self, role: KeyRole) -> Vec<u8>;
    /// Raw r‖s over SHA-256 of the data.
    fn sign(&self, role: KeyRole, data: &[u8]) -> Result<Vec<u8>, KeyError>;
    /// Decrypts an object that was encrypted for the ECDH key by the owner of `peer_pem`.
    fn decrypt(&self, block: &CipherBlock, peer_pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, CipherError>;
    /// A quote over the nonce, where there is something that measured the boot.
    fn quote(&self, nonce: &[u8]) -> Result<Option<TpmQuote>, KeyError>;
    fn has_tpm(&self) -> bool;
}

/// Keys in this process's memory.
pub struct SoftwareKeys {
    device: SecretKey,
    ecdh: SecretKey,
    quote: SecretKey,
}

impl std::fmt::Debug for SoftwareKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SoftwareKeys(…)")
    }
}

impl SoftwareKeys {
    pub fn new(device: SecretKey, ecdh: SecretKey, quote: SecretKey) -> SoftwareKeys {
        SoftwareKeys { device, ecdh, quote }
    }

    fn key(&self, role: KeyRole) -> &SecretKey {
        match role {
            KeyRole::Device => &self.device,
            KeyRole::Ecdh => &self.ecdh,
            KeyRole::Quote => &self.quote,
        }
    }
}

impl Keys for SoftwareKeys {
    fn public_point(&self, role: KeyRole) -> Vec<u8> {
        self.key(role).public_key().to_sec1_bytes_uncompressed()
    }

    fn sign(&self, role: KeyRole, data: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signer = EcdsaSigner::from_secret_key(self.key(role)).map_err(|_| KeyError::Unreadable(role))?;
        signer.sign(data).map_err(|_| KeyError::Signing(role))
    }

    fn decrypt(&self, block: &CipherBlock, peer_pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, CipherError> {
        cipher::decrypt(block, &self.ecdh, peer_pem)
    }

    fn quote(&self, _nonce: &[u8]) -> Result<Option<TpmQuote>, KeyError> {
        // EVE without a TPM publishes a quote certificate all the same and sends empty quotes.
        Ok(None)
    }

    fn has_tpm(&self) -> bool {
        false
    }
}

/// The point in the form every certificate and signature library reads.
trait Uncompressed {
    fn to_sec1_bytes_uncompressed(&self) -> Vec<u8>;
}

impl Uncompressed for p256::PublicKey {
    fn to_sec1_bytes_uncompressed(&self) -> Vec<u8> {
        use p256::elliptic_curve::sec1::ToSec1Point;
        self.to_sec1_point(false).as_bytes().to_vec()
    }
}

/// A new key.
pub fn generate() -> Result<SecretKey, KeyError> {
    // A random 32-byte number is a valid scalar but for a chance of 2^-32.
    const TRIES: usize = 8;
    let random = SystemRandom::new();
    for _ in 0..TRIES {
        let mut bytes = Zeroizing::new([0; 32]);
        random.fill(&mut *bytes).map_err(|_| KeyError::Random)?;
        if let Ok(key) = SecretKey::from_slice(&*bytes) {
            return Ok(key);
        }
    }
    Err(KeyError::Random)
}

/// PKCS#8 PEM of a key, for the vault's own directory.
pub fn to_pem(key: &SecretKey, role: KeyRole) -> Result<Zeroizing<String>, KeyError> {
    key.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Unreadable(role))
}

/// Reads PKCS#8 or `EC PRIVATE KEY`.
pub fn from_pem(pem: &[u8], role: KeyRole) -> Result<SecretKey, KeyError> {
    cipher::private_key_from_pem(pem).map_err(|_| KeyError::Unreadable(role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_from_its_file_and_signs_as_before() {
        let key = generate().unwrap();
        let pem = to_pem(&key, KeyRole::Device).unwrap();
        assert_eq!(from_pem(pem.as_bytes(), KeyRole::Device).unwrap(), key);
        assert_eq!(from_pem(b"torn", KeyRole::Ecdh), Err(KeyError::Unreadable(KeyRole::Ecdh)));
        let keys = SoftwareKeys::new(key, generate().unwrap(), generate().unwrap());
        let signature = keys.sign(KeyRole::Device, b"text").unwrap();
        let public = eve_api::certs::PublicKey::P256(keys.public_point(KeyRole::Device));
        public.verify(b"text", &signature).unwrap();
        assert!(public.verify(b"texts", &signature).is_err());
    }
}
