// SPDX-License-Identifier: Apache-2.0
//! DHCP (RFC 2131): what the node answers to apps of its own networks, and how it gets an address from a server outside
//! for an app that cannot ask itself.
//!
//! [`message`] reads and writes datagrams, [`server`] decides on answers, [`client`] is the machine that asks. Addresses
//! are not made here: the planner chose and remembers them, so an app gets the same one for its whole life and nothing
//! needs to be kept. Never here: sockets and clocks.

pub mod client;
pub mod message;
pub mod server;

#[cfg(test)]
mod tests;

pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;
