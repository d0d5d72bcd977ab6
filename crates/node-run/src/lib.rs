// SPDX-License-Identifier: Apache-2.0
//! Running apps: process `run`, which decides through `node-core` and holds no capability, and the shim, one small
//! process per app that starts it, keeps it and tells how it ended.
//!
//! Reading order: [`run`], [`shim`], [`container`] (the executor: what a container is and how it comes to be),
//! [`userdata`], [`output`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod container;
pub mod output;
pub mod quota;
pub mod run;
pub mod shim;
#[doc(hidden)]
pub mod untrusted;
pub mod userdata;
