// SPDX-License-Identifier: Apache-2.0
//! The node's processes that touch neither network nor keys: bus, log, planner.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bus;
pub mod log;
pub mod planner;
#[doc(hidden)]
pub mod untrusted;
