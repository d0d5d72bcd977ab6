// SPDX-License-Identifier: Apache-2.0
//! Object encryption: secrets inside a device config, for one device's ECDH key.
//!
//! Key: SHA-256 over X‖Y of the shared P-256 point (both 32 bytes, neither HKDF nor X alone). Cipher:
//! AES-256-CFB with 128-bit feedback, no padding, no tag; what was encrypted is recognised by
//! SHA-256 of the clear text. CFB does not authenticate, and the same initial value for two clear texts leaks:
//! the caller gives the initial value and answers for it. Knows no certificates but the one it is handed.

use aes::Aes256;
use aes::cipher::KeyIvInit;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::secret::CipherBlock;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::DecodePrivateKey;
use p256::{ProjectivePoint, SecretKey};
use prost::Message;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::certs::{self, CertError, PublicKey, sha256};
use crate::wire::common::{
    CipherContext, EncryptionBlock, EncryptionScheme, HashAlgorithm, KeyExchangeScheme,
};

/// Bytes of `initialValue`. A block with another length crashes EVE.
pub const IV_BYTES: usize = 16;
/// Largest clear text: user data is at most some tens of kilobytes, patches in line are more.
pub const MAX_CLEAR_BYTES: usize = 8 * 1024 * 1024;

/// Why something cannot be encrypted or decrypted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    #[error("initial value of {0} bytes, 16 are needed")]
    IvLength(usize),
    #[error("clear text is empty or larger than allowed")]
    Size,
    #[error("not a P-256 private key")]
    PrivateKey,
    #[error("the other side's certificate has no P-256 key")]
    PeerKey,
    #[error(transparent)]
    PeerCert(#[from] CertError),
    #[error("clear text does not have the digest sent along: wrong key or damaged")]
    Digest,
    #[error("clear text is no encryption block")]
    Malformed,
    #[error("encryption scheme not supported")]
    Scheme,
}

/// A P-256 private key from PEM: PKCS#8 or `EC PRIVATE KEY`; other blocks are passed over.
pub fn private_key_from_pem(pem: &[u8]) -> Result<SecretKey, CipherError> {
    let key = match PrivateKeyDer::from_pem_slice(pem).map_err(|_| CipherError::PrivateKey)? {
        PrivateKeyDer::Pkcs8(der) => SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Sec1(der) => SecretKey::from_sec1_der(der.secret_sec1_der()).ok(),
        _ => None,
    };
    key.ok_or(CipherError::PrivateKey)
}

/// Encrypts `clear` (a marshalled encryption block) for the owner of `peer_pem`.
pub fn encrypt(
    clear: &[u8],
    own: &SecretKey,
    peer_pem: &[u8],
    context_id: &str,
    iv: &[u8; IV_BYTES],
) -> Result<CipherBlock, CipherError> {
    if clear.is_empty() || clear.len() > MAX_CLEAR_BYTES {
        return Err(CipherError::Size);
    }
    let key = shared_key(own, peer_pem)?;
    let mut data = clear.to_vec();
    cfb_mode::Encryptor::<Aes256>::new((&*key).into(), iv.into()).encrypt(&mut data);
    Ok(CipherBlock {
        context_id: context_id.into(),
        initial_value: iv.to_vec(),
        cipher_data: data,
        clear_text_sha256: sha256(clear).to_vec(),
    })
}

/// Decrypts a block that the owner of `peer_pem` encrypted for us, and checks its digest.
pub fn decrypt(
    untrusted_block: &CipherBlock,
    own: &SecretKey,
    peer_pem: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CipherError> {
    let iv = <&[u8; IV_BYTES]>::try_from(untrusted_block.initial_value.as_slice())
        .map_err(|_| CipherError::IvLength(untrusted_block.initial_value.len()))?;
    if untrusted_block.cipher_data.is_empty() || untrusted_block.cipher_data.len() > MAX_CLEAR_BYTES {
        return Err(CipherError::Size);
    }
    let key = shared_key(own, peer_pem)?;
    let mut clear = Zeroizing::new(untrusted_block.cipher_data.clone());
    cfb_mode::Decryptor::<Aes256>::new((&*key).into(), iv.into()).decrypt(&mut clear);
    if sha256(&clear)[..] != untrusted_block.clear_text_sha256[..] {
        return Err(CipherError::Digest);
    }
    Ok(clear)
}

/// The AES key both sides derive: SHA-256(X‖Y) of own × peer.
pub fn shared_key(own: &SecretKey, peer_pem: &[u8]) -> Result<Zeroizing<[u8; 32]>, CipherError> {
    let PublicKey::P256(point) = PublicKey::from_pem(peer_pem)? else { return Err(CipherError::PeerKey) };
    let peer = p256::PublicKey::from_sec1_bytes(&point).map_err(|_| CipherError::PeerKey)?;
    let shared: ProjectivePoint = peer.to_projective() * *own.to_nonzero_scalar();
    let shared = shared.to_affine().to_sec1_point(false);
    // Uncompressed form: 4 ‖ X ‖ Y. The point is never the identity: the order is prime and both factors are not zero.
    let point = Zeroizing::new(shared.as_bytes().to_vec());
    Ok(Zeroizing::new(sha256(point.get(1..).unwrap_or_default())))
}

pub(crate) fn uncompressed(key: &p256::PublicKey) -> Vec<u8> {
    key.to_sec1_point(false).as_bytes().to_vec()
}

/// A context as a config carries it. The hashes are those of `ZCert.certHash`, 16 bytes.
pub fn context(
    id: &str,
    device_cert_hash: &[u8],
    controller_cert_hash: &[u8],
) -> model::secret::CipherContext {
    model::secret::CipherContext {
        id: id.into(),
        device_cert_hash: device_cert_hash.to_vec(),
        controller_cert_hash: controller_cert_hash.to_vec(),
    }
}

pub(crate) fn context_to_wire(context: &model::secret::CipherContext) -> CipherContext {
    CipherContext {
        context_id: context.id.clone(),
        hash_scheme: HashAlgorithm::Sha25616bytes.into(),
        key_exchange_scheme: KeyExchangeScheme::KeaEcdh.into(),
        encryption_scheme: EncryptionScheme::SaAes256Cfb.into(),
        device_cert_hash: context.device_cert_hash.clone(),
        controller_cert_hash: context.controller_cert_hash.clone(),
    }
}

pub(crate) fn context_from_wire(wire: &CipherContext) -> Result<model::secret::CipherContext, CipherError> {
    if wire.key_exchange_scheme != i32::from(KeyExchangeScheme::KeaEcdh)
        || wire.encryption_scheme != i32::from(EncryptionScheme::SaAes256Cfb)
    {
        return Err(CipherError::Scheme);
    }
    Ok(context(&wire.context_id, &wire.device_cert_hash, &wire.controller_cert_hash))
}

/// The secrets an encryption block holds that this software knows. Not printable, wiped when dropped.
#[derive(Default)]
pub struct ObjectSecrets {
    /// User name of a datastore.
    pub datastore_user: Zeroizing<String>,
    /// Password of a datastore.
    pub datastore_password: Zeroizing<String>,
    /// User data of an app, decoded: the cloud-init text itself.
    pub user_data: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ObjectSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectSecrets(…)")
    }
}

impl ObjectSecrets {
    /// The clear text for [`encrypt`].
    pub fn to_clear(&self) -> Zeroizing<Vec<u8>> {
        let mut block = Wiped(EncryptionBlock {
            ds_api_key: self.datastore_user.to_string(),
            ds_password: self.datastore_password.to_string(),
            ..EncryptionBlock::default()
        });
        if !self.user_data.is_empty() {
            block.0.protected_user_data = STANDARD.encode(&*self.user_data);
        }
        Zeroizing::new(block.0.encode_to_vec())
    }

    /// Reads what [`decrypt`] gave. User data that is no base64 is taken as the text itself.
    pub fn from_clear(clear: &[u8]) -> Result<ObjectSecrets, CipherError> {
        let mut block = Wiped(EncryptionBlock::decode(clear).map_err(|_| CipherError::Malformed)?);
        let text = Zeroizing::new(std::mem::take(&mut block.0.protected_user_data));
        Ok(ObjectSecrets {
            datastore_user: Zeroizing::new(std::mem::take(&mut block.0.ds_api_key)),
            datastore_password: Zeroizing::new(std::mem::take(&mut block.0.ds_password)),
            user_data: Zeroizing::new(
                STANDARD.decode(text.as_bytes()).unwrap_or_else(|_| text.as_bytes().to_vec()),
            ),
        })
    }
}

/// Wipes the texts of a block that this module touches.
struct Wiped(EncryptionBlock);

impl Drop for Wiped {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        let block = &mut self.0;
        for text in [
            &mut block.ds_api_key,
            &mut block.ds_password,
            &mut block.wifi_user_name,
            &mut block.wifi_password,
            &mut block.protected_user_data,
            &mut block.cellular_net_username,
            &mut block.cellular_net_password,
            &mut block.cluster_token,
            &mut block.encrypted_data,
            &mut block.cellular_net_attach_username,
            &mut block.cellular_net_attach_password,
            &mut block.scep_challenge_password,
        ] {
            text.zeroize();
        }
        block.gzip_registration_manifest_yaml.zeroize();
    }
}

/// PEM of a certificate, checked to hold a P-256 key: what an ECDH certificate must be.
pub fn check_ecdh_cert(pem: &[u8]) -> Result<(), CipherError> {
    match PublicKey::from_der(&certs::first_der(pem)?)? {
        PublicKey::P256(_) => Ok(()),
        _ => Err(CipherError::PeerKey),
    }
}
