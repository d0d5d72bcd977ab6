// SPDX-License-Identifier: Apache-2.0
//! The wire between a node and its controller: LF Edge eve-api, device API v2.
//!
//! Owns the schema (`wire`), the signed envelope (`envelope`), the rules for controller certificates
//! (`certs`), registration (`register`), object encryption (`cipher`), the log files that nodes upload (`newlogs`),
//! the table of endpoints (`paths`), the way between wire and model (`parse`, `render`), and what must hold before a
//! config is published (`problems`). Used by both sides; holds no state, opens no connection, reads no clock.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod certs;
pub mod cipher;
pub mod envelope;
pub mod newlogs;
pub mod parse;
pub mod paths;
pub mod problems;
pub mod register;
pub mod render;
mod states;
pub mod wire;

pub use prost::Message;

/// A protobuf `FileDescriptorSet` of the whole schema, for printing stored messages as JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/eve-api.bin"));
