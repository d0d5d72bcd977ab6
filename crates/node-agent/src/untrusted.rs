// SPDX-License-Identifier: Apache-2.0
//! Doors to the private parsers of this crate for whoever attacks them (package `fuzz`). No product uses them.

use std::net::IpAddr;

use oci::challenge::{Challenge, escape};

use crate::resolve;

/// What a registry demands, read from its headers. What is sent back must not break out of its place.
pub fn challenge(untrusted_headers: &[&str]) {
    if let Some(Challenge::Bearer { realm, service, scope }) =
        Challenge::choose(untrusted_headers.iter().copied())
    {
        for text in [Some(realm), service, scope].into_iter().flatten() {
            let escaped = escape(&text);
            assert!(escaped.bytes().all(|byte| byte.is_ascii_graphic()), "{escaped:?}");
            assert!(!escaped.contains(['&', '#', '?', '=']), "{escaped:?}");
        }
    }
}

/// Addresses a name server's answer to a question for `host` holds.
pub fn name_answer(host: &str, untrusted_message: &[u8]) -> Option<Vec<IpAddr>> {
    resolve::read_answer(host, untrusted_message)
}
