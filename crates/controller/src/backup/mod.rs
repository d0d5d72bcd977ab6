// SPDX-License-Identifier: Apache-2.0
//! A backup is one tar file with everything that cannot be made anew: intent, ledgers, nodes, tokens and the audit (all in the
//! store), keys and certificates, the admin token, and on wish the images of the registry. What devices reported is not in
//! it: they send it again.
//!
//! ```text
//! backup.json                  {"format":1,…}: first
//! intent.db                    the store as it was at one moment
//! admin-token pull-password pki/…
//! registry/…                   on wish; tags before what they name, so that nothing named is missing
//! end.json                     every file with its length and SHA-256: last; without it the backup is a torn one
//! ```
//! A backup is as secret as the data directory.

mod restore;
mod write;

use serde::{Deserialize, Serialize};

pub use restore::{Existing, RestoreError, Restored, restore, verify};
pub(crate) use write::{Images, write};

/// Version of the form.
const FORMAT: u32 = 1;
const HEAD: &str = "backup.json";
const END: &str = "end.json";
/// The store in the backup and in the data directory.
const STORE: &str = "intent.db";
const FILES: [&str; 2] = ["admin-token", "pull-password"];
const KEYS: &str = "pki";
const REGISTRY: &str = "registry";
/// Directory in which a restore unpacks; while it is there the data directory is not whole.
pub(crate) const RESTORING: &str = "restore.new";
/// Longest list of files: a million images have fewer.
const MAX_END_BYTES: u64 = 512 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    format: u32,
    created_ms: i64,
    has_images: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct End {
    files: Vec<Listed>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Listed {
    path: String,
    bytes: u64,
    sha256: String,
}
