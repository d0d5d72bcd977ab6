// SPDX-License-Identifier: Apache-2.0
//! Names for apps: each network's gateway answers on port 53.
//!
//! [`answer`] reads and writes messages and is pure. [`server`] has the sockets: one thread for all that comes over UDP,
//! a short-lived one for each TCP connection. Everything is bounded; a question too many is dropped, the app asks again.

pub mod answer;
mod server;
mod tcp;

pub use server::{Dns, Learn};
