// SPDX-License-Identifier: Apache-2.0
//! The words of Selvedge: validated domain types that every room shares.
//!
//! The data flow reads *config → desired → observed → status*: [`config`] is what a controller orders for one device,
//! [`desired`] what the planner asks of a single process, [`observed`] what a process saw, [`status`] what is reported
//! to the controller. [`reason`] is the one catalogue of reasons. No wire format, no I/O, no clock.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod config;
pub mod desired;
pub mod flow;
pub mod id;
pub mod log;
pub mod net;
pub mod observed;
pub mod reason;
pub mod report;
pub mod secret;
pub mod status;
pub mod time;
