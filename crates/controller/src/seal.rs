// SPDX-License-Identifier: Apache-2.0
//! Encrypts the secrets of one device's config.
//!
//! The initial value is an HMAC over device, object and the digest of the clear text: the same intent gives the same
//! bytes after a restart, and no initial value serves two texts.

use controller_core::compute::{Clear, Seal};
use eve_api::cipher::{IV_BYTES, ObjectSecrets, encrypt};
use model::secret::{CipherBlock, CipherContext};
use ring::hmac;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ca::Ca;
use crate::node::{Node, lock};

/// Blocks remembered per device: its objects, in their present and their planned form.
const MAX_SEALED: usize = 64;

/// Keys of one device's secrets.
pub(crate) struct DeviceSeal<'a> {
    ca: &'a Ca,
    device: Uuid,
    /// As the device published it.
    device_pem: &'a [u8],
    node: &'a Node,
    context: CipherContext,
}

impl std::fmt::Debug for DeviceSeal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceSeal").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<'a> DeviceSeal<'a> {
    pub(crate) fn new(ca: &'a Ca, node: &'a Node, device_pem: &'a [u8]) -> DeviceSeal<'a> {
        let device = node.id;
        let device_hash = eve_api::certs::cert_hash(device_pem);
        let controller_hash = eve_api::certs::cert_hash(&ca.ecdh_pem);
        let name = Uuid::new_v5(&device, &[device_hash, controller_hash].concat());
        let context = eve_api::cipher::context(&name.to_string(), &device_hash, &controller_hash);
        DeviceSeal { ca, device, device_pem, node, context }
    }
}

impl Seal for DeviceSeal<'_> {
    fn context(&self) -> CipherContext {
        self.context.clone()
    }

    fn seal(&self, object: Uuid, clear: &Clear) -> Option<CipherBlock> {
        let secrets = ObjectSecrets {
            datastore_user: Zeroizing::new(clear.user.clone()),
            datastore_password: Zeroizing::new(clear.password.clone()),
            user_data: Zeroizing::new(clear.user_data.clone().into_bytes()),
        };
        let clear = secrets.to_clear();
        let mut digest = [0; 32];
        digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &clear).as_ref());
        if let Some(block) = lock(&self.node.sealed).get(&(object, digest)) {
            return Some(block.clone());
        }
        let mut mac = hmac::Context::with_key(&self.ca.iv_key);
        mac.update(self.device.as_bytes());
        mac.update(object.as_bytes());
        mac.update(&digest);
        let tag = mac.sign();
        let mut iv = [0; IV_BYTES];
        iv.copy_from_slice(&tag.as_ref()[..IV_BYTES]);
        let block = encrypt(&clear, &self.ca.ecdh_key, self.device_pem, &self.context.id, &iv).ok()?;
        let mut sealed = lock(&self.node.sealed);
        if sealed.len() >= MAX_SEALED {
            sealed.clear();
        }
        sealed.insert((object, digest), block.clone());
        Some(block)
    }
}
