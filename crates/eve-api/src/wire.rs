// SPDX-License-Identifier: Apache-2.0
//! The message types of eve-api, one module per protobuf package, generated from `proto/`.
//!
//! Nothing is decided here. The types stop at this crate's edge: `parse` and `render` stand between
//! them and the model. Unknown fields are skipped by the decoder, never refused.
#![allow(
    deprecated,
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated code, and it must know the fields that the standard deprecates"
)]

/// `google.protobuf.Timestamp`: seconds and nanoseconds since 1970 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ::prost::Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

macro_rules! packages {
    ($($module:ident = $package:literal),* $(,)?) => {
        $(pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/org.lfedge.eve.", $package, ".rs"));
        })*
    };
}

packages! {
    attest = "attest",
    auth = "auth",
    certs = "certs",
    common = "common",
    config = "config",
    flowlog = "flowlog",
    hardwarehealth = "hardwarehealth",
    info = "info",
    logs = "logs",
    metrics = "metrics",
    nestedappinstancemetrics = "nestedappinstancemetrics",
    profile = "profile",
    proxy = "proxy",
    register = "register",
    uuid = "uuid",
}
