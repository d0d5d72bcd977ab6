// SPDX-License-Identifier: Apache-2.0
//! The controller: one process, one TLS port, one data directory.
//!
//! | path | what | module |
//! |---|---|---|
//! | `/api/v2/edgedevice/…` | what nodes ask and report (eve-api) | `device_api` |
//! | `/apis/selvedge/v1alpha1/…`, `/openapi.json`, `/healthz` | what operators ask | [`operator_api`] |
//! | `/v2/…` | the OCI registry | [`registry`] |
//!
//! Decisions are in `controller-core`; here are the store, keys, listener and what devices reported.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod audit;
pub mod backup;
mod ca;
mod change;
mod device_api;
pub mod examine;
mod feed;
mod files;
mod node;
mod notify;
mod objects;
mod observed;
pub mod operator_api;
mod refusals;
pub mod registry;
mod seal;
mod serve;
mod server;
mod settle;
mod state;
mod store;
pub mod telemetry;
#[cfg(test)]
mod tests;
#[doc(hidden)]
pub mod untrusted;

pub use serve::{Options, ServeError, serve};
