// SPDX-License-Identifier: Apache-2.0
//! What every process of the node shares: taking over the process from init, the loop, topics, calls, log, confinement.
//!
//! A process is one main loop ([`Service::next`]) and worker threads where something must block; no async runtime.
//! It owns no decision. Its world is what init handed over: channels, directories and settings; it opens no socket.
//!
//! ```text
//! main ─ Service::start ─ launch message, log, landlock, seccomp ─┬─ next() → Event ─ decide ─ publish, call, reply ─┐
//!                                                                └──────────────────────────────────────────────────┘
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bus;
mod call;
pub mod clock;
mod confine;
mod control;
pub mod durable;
pub mod files;
pub mod flight;
pub mod log;
mod numbers;
mod run;
mod start;

pub use call::{CallError, Caller, IncomingCall};
pub use confine::{ConfineError, confine};
pub use run::{ChannelEvent, Event, Poster, Service};
pub use start::{Dirs, Launched, Outcome, StartError, main};
