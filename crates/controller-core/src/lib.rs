// SPDX-License-Identifier: Apache-2.0
//! All decisions of the controller: what an operator's intent means for each device.
//!
//! The data flow reads *[`resource`] (what was written) → [`intent`] (all of it, resolved and validated) →
//! [`compute`] (one device's config) → [`plan`] (the exact difference)*. [`attest`] decides about quotes and tokens,
//! [`onboard`] about registrations. Pure: no clock, no store, no cryptography of secrets (a trait does that).
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
extern crate alloc;

pub mod affected;
pub mod attest;
pub mod compute;
pub mod flatten;
pub mod image;
pub mod intent;
pub mod ledger;
pub mod onboard;
pub mod plan;
pub mod resource;
pub mod restore;
pub mod validate;
