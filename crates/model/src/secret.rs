// SPDX-License-Identifier: Apache-2.0
//! Secrets in two forms: sealed (may travel, only the vault opens them) and open (never leaves the process that asked).

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// An encrypted object as it stands in a device config (eve-api `CipherBlock`). Only the vault can open it; the block
/// itself may be stored, logged and published, and so serves as the handle by which a secret is passed around.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CipherBlock {
    pub context_id: String,
    /// 16 bytes.
    pub initial_value: Vec<u8>,
    pub cipher_data: Vec<u8>,
    pub clear_text_sha256: Vec<u8>,
}

/// Which keys a [`CipherBlock`] was made with (eve-api `CipherContext`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CipherContext {
    pub id: String,
    /// First 16 bytes of SHA-256 over the device's ECDH certificate as published.
    pub device_cert_hash: Vec<u8>,
    /// The same of the controller's ECDH certificate.
    pub controller_cert_hash: Vec<u8>,
}

/// A secret that only the vault can open: the handle that config, topics and recorders carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretHandle {
    /// As the controller sent it: an encrypted object and the context it needs.
    Object { block: CipherBlock, context: CipherContext },
    /// Sent in clear text by the controller and sealed by the vault before anything was published.
    /// Deterministic: the same text gives the same handle on the same node.
    Sealed { sealed: Vec<u8> },
}
