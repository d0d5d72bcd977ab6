// SPDX-License-Identifier: Apache-2.0
//! Registrations: may this node join, and which device is it?
//!
//! Identity is the node's key. A serial number only opens the door: whoever came first with it keeps it, another key with
//! the same serial is refused.

use alloc::string::String;
use alloc::vec::Vec;

use crate::resource::JoinTokenSpec;

/// Allows every serial when it stands in a list.
pub const ANY: &str = "*";
/// Longest name made from a serial.
const MAX_NAME_CHARS: usize = 63;

/// A node that has registered before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered<'a> {
    /// SHA-256 of its certificate.
    pub cert_hash: [u8; 32],
    pub serial: &'a str,
    pub soft_serial: &'a str,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub cert_hash: [u8; 32],
    pub serial: &'a str,
    pub soft_serial: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The same node again.
    Known,
    /// A new node; by what it was let in.
    Join(MatchedBy),
    /// Another node has this serial.
    Conflict,
    NotListed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedBy {
    Serial,
    SoftSerial,
    /// A list with `*`.
    Any,
}

/// Decides about a registration whose signature by the token's onboarding key was checked.
pub fn decide<'a>(
    token: &JoinTokenSpec,
    request: &Request<'_>,
    registered: impl Iterator<Item = Registered<'a>> + Clone,
) -> Decision {
    let Some(matched) = matched_by(token, request) else { return Decision::NotListed };
    if registered.clone().any(|node| node.cert_hash == request.cert_hash) {
        return Decision::Known;
    }
    let is_taken = registered.clone().any(|node| match matched {
        MatchedBy::Serial => node.serial == request.serial,
        MatchedBy::SoftSerial => node.soft_serial == request.soft_serial,
        // Boxes of one make often share a serial like "Default string": only the pair tells them apart, and two
        // without any are two.
        MatchedBy::Any => {
            (node.serial, node.soft_serial) == (request.serial, request.soft_serial)
                && !(request.serial.is_empty() && request.soft_serial.is_empty())
        }
    });
    if is_taken { Decision::Conflict } else { Decision::Join(matched) }
}

fn matched_by(token: &JoinTokenSpec, request: &Request<'_>) -> Option<MatchedBy> {
    let lists = |list: &[String], text: &str| !text.is_empty() && list.iter().any(|entry| entry == text);
    if lists(&token.serials, request.serial) {
        Some(MatchedBy::Serial)
    } else if lists(&token.soft_serials, request.soft_serial) {
        Some(MatchedBy::SoftSerial)
    } else if token.serials.iter().any(|s| s == ANY)
        || (token.soft_serials.iter().any(|s| s == ANY) && !request.soft_serial.is_empty())
    {
        Some(MatchedBy::Any)
    } else {
        None
    }
}

/// A name for a device that nobody named: from its soft serial, its serial, or the start of its id.
pub fn device_name(serial: &str, soft_serial: &str, id: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let base = [soft_serial, serial].into_iter().map(to_name).find(|name| !name.is_empty());
    let short_id: String = id.chars().take(8).collect();
    let base = base.unwrap_or_else(|| alloc::format!("device-{short_id}"));
    if !is_taken(&base) {
        return base;
    }
    let head: String = base.chars().take(MAX_NAME_CHARS - 9).collect();
    alloc::format!("{}-{short_id}", head.trim_end_matches(['-', '.']))
}

fn to_name(text: &str) -> String {
    let parts: Vec<char> = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' })
        .take(MAX_NAME_CHARS)
        .collect();
    let text: String = parts.into_iter().collect();
    text.trim_matches(['-', '.']).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(serials: &[&str], soft: &[&str]) -> JoinTokenSpec {
        JoinTokenSpec {
            serials: serials.iter().map(|s| (*s).into()).collect(),
            soft_serials: soft.iter().map(|s| (*s).into()).collect(),
            ..JoinTokenSpec::default()
        }
    }

    fn ask<'a>(cert: u8, serial: &'a str, soft_serial: &'a str) -> Request<'a> {
        Request { cert_hash: [cert; 32], serial, soft_serial }
    }

    #[test]
    fn the_first_key_keeps_a_serial() {
        let listed = token(&["S1"], &["F1"]);
        let any = token(&["*"], &[]);
        let known = [Registered { cert_hash: [1; 32], serial: "S1", soft_serial: "" }];
        let decide =
            |token: &JoinTokenSpec, request: Request<'_>| decide(token, &request, known.iter().cloned());
        assert_eq!(decide(&listed, ask(1, "S1", "")), Decision::Known);
        assert_eq!(decide(&listed, ask(2, "S1", "")), Decision::Conflict);
        assert_eq!(decide(&listed, ask(2, "S2", "")), Decision::NotListed);
        assert_eq!(decide(&listed, ask(2, "S2", "F1")), Decision::Join(MatchedBy::SoftSerial));
        assert_eq!(decide(&listed, ask(1, "S2", "")), Decision::NotListed);
        assert_eq!(decide(&any, ask(2, "S1", "")), Decision::Conflict);
        assert_eq!(decide(&any, ask(2, "S1", "F9")), Decision::Join(MatchedBy::Any));
        assert_eq!(decide(&any, ask(2, "", "")), Decision::Join(MatchedBy::Any));
        assert_eq!(decide(&token(&[], &["*"]), ask(2, "S9", "")), Decision::NotListed);
    }

    #[test]
    fn names_come_from_serials() {
        let free = |_: &str| false;
        assert_eq!(device_name("SN 12/3", "", "0123456789", free), "sn-12-3");
        assert_eq!(device_name("", "***", "0123456789", free), "device-01234567");
        assert_eq!(device_name("S1", "Soft_1", "0123456789", free), "soft-1");
        assert_eq!(device_name("S1", "", "0123456789", |name| name == "s1"), "s1-01234567");
    }
}
