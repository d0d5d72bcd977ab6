// SPDX-License-Identifier: Apache-2.0
//! What an update consists of, and the key that stands for it.

use std::path::Path;

use anyhow::{Context as _, bail};
use disk::partitions::Architecture;
use disk::update::{Manifest, Signature, key_name};
use disk::verity::{self, hex};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::root::Root;

/// Where the public half lies in a root: the uncompressed point in hexadecimal digits.
pub(crate) const RELEASE_KEY: &str = "usr/lib/selvedge/release-key";

/// Root and kernel image of a version with the manifest of both.
pub(crate) struct Content {
    pub(crate) manifest: Manifest,
    /// Filled up to whole blocks.
    pub(crate) kernel: Vec<u8>,
    pub(crate) kernel_tree: Vec<u8>,
}

impl Content {
    pub(crate) fn of(uki: &[u8], root: &Root, arch: Architecture, version: &str) -> Content {
        let mut kernel = uki.to_vec();
        kernel.resize(kernel.len().next_multiple_of(verity::BLOCK_BYTES), 0);
        let sum = Sha256::digest(uki);
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, &sum);
        let (kernel_tree, kernel_root) = verity::tree(&kernel, id);
        let manifest = Manifest {
            version: version.to_owned(),
            architecture: arch.name().to_owned(),
            root: root.verity.clone(),
            kernel: kernel_root,
            kernel_bytes: uki.len() as u64,
            kernel_sha256: sum.into(),
        };
        Content { manifest, kernel, kernel_tree }
    }
}

/// The private key of releases.
pub(crate) struct ReleaseKey(EcdsaKeyPair);

impl ReleaseKey {
    pub(crate) fn read(path: &Path) -> anyhow::Result<ReleaseKey> {
        let named = || format!("release key {}", path.display());
        let der = PrivatePkcs8KeyDer::from_pem_file(path);
        let der = der.map_err(|error| anyhow::anyhow!("{error}")).with_context(named)?;
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random);
        let pair = pair.map_err(|_| anyhow::anyhow!("it is no P-256 key in PKCS #8")).with_context(named)?;
        Ok(ReleaseKey(pair))
    }

    /// As it lies in the root.
    pub(crate) fn public_text(&self) -> String {
        format!("{}\n", hex(self.0.public_key().as_ref()))
    }

    pub(crate) fn sign(&self, text: &str) -> anyhow::Result<Signature> {
        let made = self.0.sign(&SystemRandom::new(), text.as_bytes());
        let Some(made) = made.ok().and_then(|made| made.as_ref().try_into().ok()) else {
            bail!("the update cannot be signed");
        };
        Ok(Signature { key: key_name(self.0.public_key().as_ref()), bytes: made })
    }
}
