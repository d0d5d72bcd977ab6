// SPDX-License-Identifier: Apache-2.0
//! Sealing for this node alone: AES-256-GCM whose nonce is an HMAC of the clear text.
//!
//! The same text gives the same bytes, so that topics do not change when nothing changed, and two texts never share a
//! nonce but for a collision of 96-bit HMACs. Shape: format byte 1, nonce (12), cipher text, tag (16).

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Bytes of the key kept in the vault's directory.
pub const KEY_BYTES: usize = 32;
/// Largest text sealed: user data of a few tens of kilobytes is usual.
pub const MAX_CLEAR_BYTES: usize = 1024 * 1024;
const FORMAT: u8 = 1;

/// Sealing or opening failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("text larger than allowed")]
    TooLarge,
    #[error("seal key has the wrong length")]
    Key,
    #[error("no random numbers")]
    Random,
    #[error("not sealed by this node, or damaged")]
    Unopenable,
}

/// Keys derived from the one that is kept.
pub struct Sealer {
    cipher: LessSafeKey,
    nonces: hmac::Key,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// A new key to keep.
pub fn generate_key() -> Result<Zeroizing<Vec<u8>>, SealError> {
    let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
    SystemRandom::new().fill(&mut key).map_err(|_| SealError::Random)?;
    Ok(key)
}

impl Sealer {
    pub fn new(key: &[u8]) -> Result<Sealer, SealError> {
        if key.len() != KEY_BYTES {
            return Err(SealError::Key);
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, key);
        let cipher_key = hmac::sign(&root, b"selvedge seal 1: cipher");
        let nonce_key = hmac::sign(&root, b"selvedge seal 1: nonce");
        let cipher = UnboundKey::new(&AES_256_GCM, cipher_key.as_ref()).map_err(|_| SealError::Key)?;
        Ok(Sealer {
            cipher: LessSafeKey::new(cipher),
            nonces: hmac::Key::new(hmac::HMAC_SHA256, nonce_key.as_ref()),
        })
    }

    pub fn seal(&self, clear: &[u8]) -> Result<Vec<u8>, SealError> {
        if clear.len() > MAX_CLEAR_BYTES {
            return Err(SealError::TooLarge);
        }
        let nonce = self.nonce(clear);
        let mut text = Zeroizing::new(clear.to_vec());
        let tag = self
            .cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text)
            .map_err(|_| SealError::TooLarge)?;
        let mut out = Vec::with_capacity(1 + NONCE_LEN + text.len() + tag.as_ref().len());
        out.push(FORMAT);
        out.extend(nonce);
        out.extend(text.iter());
        out.extend(tag.as_ref());
        Ok(out)
    }

    pub fn open(&self, untrusted_sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (format, rest) = untrusted_sealed.split_first().ok_or(SealError::Unopenable)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Unopenable)?;
        if *format != FORMAT || text.len() > MAX_CLEAR_BYTES + AES_256_GCM.tag_len() {
            return Err(SealError::Unopenable);
        }
        let mut text = Zeroizing::new(text.to_vec());
        let length = self
            .cipher
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut text)
            .map_err(|_| SealError::Unopenable)?
            .len();
        text.truncate(length);
        Ok(text)
    }

    fn nonce(&self, clear: &[u8]) -> [u8; NONCE_LEN] {
        let tag = hmac::sign(&self.nonces, clear);
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&tag.as_ref()[..NONCE_LEN]);
        nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_gives_the_same_bytes_and_opens_only_here() {
        let sealer = Sealer::new(&[7; KEY_BYTES]).unwrap();
        let sealed = sealer.seal(b"secret").unwrap();
        assert_eq!(sealer.seal(b"secret").unwrap(), sealed);
        assert_ne!(sealer.seal(b"secret2").unwrap()[1..13], sealed[1..13]);
        assert_eq!(**sealer.open(&sealed).unwrap(), *b"secret");
        let other = Sealer::new(&[8; KEY_BYTES]).unwrap();
        assert_eq!(other.open(&sealed), Err(SealError::Unopenable));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let sealer = Sealer::new(&[7; KEY_BYTES]).unwrap();
        let sealed = sealer.seal(b"secret").unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(sealer.open(&bad), Err(SealError::Unopenable), "byte {at}");
            assert!(sealer.open(&sealed[..at]).is_err(), "cut at {at}");
        }
    }
}
