// SPDX-License-Identifier: Apache-2.0
//! Addresses for apps: [`server`] answers DHCP on the bridges of local networks, [`leases`] asks servers outside for apps
//! on switches and for ports. What is said is decided by `node_core::net::dhcp`; here are sockets and threads, one each.

mod leases;
mod server;

pub(crate) use leases::{Asked, Leases, Seat};
pub use server::DhcpServer;
