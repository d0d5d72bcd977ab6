// SPDX-License-Identifier: Apache-2.0
//! The vault: the only process that holds the node's long-lived keys. It has no network.
//!
//! Reads CONFIG and its own directory, answers calls ([`vault`]), publishes nothing but whether it is open. Secrets
//! leave it only as the reply to the one service that needs them. Software keys today; a TPM takes the place of
//! [`keys::SoftwareKeys`] behind [`keys::Keys`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod certs;
pub mod config_dir;
pub mod durable;
pub mod identity;
pub mod keys;
mod run;
pub mod seal;
pub mod trusted;
pub mod vault;

pub use run::{BUILD_DATE_S, OpenError, run};
