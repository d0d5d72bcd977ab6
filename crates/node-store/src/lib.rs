// SPDX-License-Identifier: Apache-2.0
//! Process store: verifies content, keeps it by digest, unpacks layers and makes volumes.
//!
//! ```text
//! content-desired ─▶ plan ─▶ pull (threads; bytes from fetch) ─▶ catalog ─▶ content-observed
//! update-desired ─▶ update (the idle slot of the operating system) ─────────▶ update-observed
//! volume-desired  ─┘   └──▶ volumes on disk ──────────────────────────────▶ volume-observed
//! ```
//!
//! It has no network and no key. [`catalog`] is what lies on the disk, [`pull`] brings one image or file there, [`room`]
//! judges who takes too much of the disk, [`plan`] decides what to do next, [`run`] is the process around them. Absent content is deleted only once the planner has said that all
//! it wants stands.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod catalog;
mod file;
pub mod plan;
pub mod pull;
pub mod room;
pub mod run;
pub mod source;
pub mod update;

pub use run::run;
