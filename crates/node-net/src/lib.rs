// SPDX-License-Identifier: Apache-2.0
//! The process net: ports are observed, networks of apps are made, names are answered.
//!
//! What shall be is decided by `node_core::net`; here it is compared with the kernel and brought about. [`kernel`] is the
//! only place that changes anything. It never speaks to a controller and runs no program.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod dhcp;
pub mod dns;
pub mod kernel;
mod listen;
pub mod net;
mod netlink;
mod nft;
mod process;
mod route;
mod uplinks;

pub use netlink::NetlinkError;
pub use process::{ProcessError, run};
