// SPDX-License-Identifier: Apache-2.0
//! How the node's processes speak to each other: topics, calls, framing, the broker's logic and service manifests.
//!
//! No business rules. Read [`topics`] first: it is the map of the running system.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod boot;
pub mod broker;
pub mod calls;
pub mod client;
pub mod frame;
pub mod limits;
pub mod manifest;
pub mod outbox;
pub mod shim;
pub mod syscalls;
pub mod topics;
