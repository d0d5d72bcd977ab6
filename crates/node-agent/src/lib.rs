// SPDX-License-Identifier: Apache-2.0
//! Processes agent (the controller's protocol), fetch (downloads) and metadata.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod fetch;
pub mod resolve;
#[doc(hidden)]
pub mod untrusted;
