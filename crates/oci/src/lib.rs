// SPDX-License-Identifier: Apache-2.0
//! OCI images: references, manifests, indexes and configs, the choice of a platform, and unpacking a layer into a
//! directory that overlayfs can use.
//!
//! Everything read here was written by strangers: it is bounded, checked and never trusted to end. No HTTP and no
//! mounts; bytes come from a reader, files go below a directory handle. Read [`layer`] first: it is the one pass in
//! which a blob is verified, decompressed and unpacked.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod challenge;
pub mod config;
pub mod digest;
pub mod layer;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod tar;
pub mod unpack;
