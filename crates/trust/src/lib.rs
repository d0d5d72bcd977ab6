// SPDX-License-Identifier: Apache-2.0
//! Proofs of what a box booted: today the TPM quote.
//!
//! Used by both sides. Holds no key, opens no device, reads no clock.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
extern crate alloc;

pub mod quote;
