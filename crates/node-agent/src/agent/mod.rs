// SPDX-License-Identifier: Apache-2.0
//! The process agent: speaks with the controller. Owns no key and no disk but its own directory.
//!
//! Decisions are `node-core`'s machines; [`core`] wires them, [`http`] sends, [`ask`] writes and reads messages,
//! [`disk`] keeps, [`world`] and [`reports`] report, [`secrets`] seals, [`run`] is the process.

pub mod ask;
pub mod core;
pub mod disk;
pub mod http;
pub mod reports;
mod run;
pub mod secrets;
pub mod world;

pub use run::{RunError, run};
