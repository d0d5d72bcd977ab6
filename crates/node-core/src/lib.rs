// SPDX-License-Identifier: Apache-2.0
//! All decisions of the node, pure: no effect, no clock, no name of a Linux facility.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
extern crate alloc;

pub mod apps;
pub mod attest;
pub mod base_os;
pub mod config;
pub mod exchange;
pub mod items;
pub mod net;
pub mod onboard;
pub mod report;
pub mod run;
pub mod upload;
