// SPDX-License-Identifier: Apache-2.0
//! What is wrong with a field, and where: the path grows from the inside out.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use model::net::Prefix4;
use model::reason::{Fault, Reason};

/// A field that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) reason: Reason,
    path: String,
    what: String,
}

pub(super) type Read<T> = Result<T, Bad>;

impl Bad {
    pub(super) fn new(reason: Reason, field: impl Into<String>, what: impl Into<String>) -> Bad {
        Bad { reason, path: field.into(), what: what.into() }
    }

    pub(super) fn invalid(field: impl Into<String>, what: impl Into<String>) -> Bad {
        Bad::new(Reason::InvalidConfig, field, what)
    }

    pub(super) fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Bad {
        Bad::new(Reason::Unsupported, field, what)
    }

    pub(super) fn missing(field: impl Into<String>, what: impl Into<String>) -> Bad {
        Bad::new(Reason::MissingReference, field, what)
    }

    /// The same below `parent`.
    pub(super) fn at(mut self, parent: impl fmt::Display) -> Bad {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.path = format!("{parent}{dot}{}", self.path);
        self
    }

    /// As the model carries it: `apps[0].interfaces[1].addr: not an IPv4 address`.
    pub(super) fn into_fault(self) -> Fault {
        Fault::new(self.reason, format!("{}: {}", self.path, self.what))
    }
}

/// Longest piece of foreign text repeated in a message.
const QUOTE_CHARS: usize = 60;

/// Foreign text for a message: short and printable.
pub(super) fn quote(text: &str) -> String {
    let short: String = text.chars().take(QUOTE_CHARS).collect();
    format!("{short:?}")
}

pub(super) fn uuid<T: FromStr>(field: &str, text: &str) -> Read<T> {
    // The forms in braces or without hyphens that the reader also knows are not those of the wire.
    if text.len() != 36 {
        return Err(Bad::invalid(field, format!("{} is no UUID", quote(text))));
    }
    text.parse().map_err(|_| Bad::invalid(field, format!("{} is no UUID", quote(text))))
}

pub(super) fn ipv4(field: &str, text: &str) -> Read<Ipv4Addr> {
    text.parse().map_err(|_| Bad::invalid(field, format!("{} is no IPv4 address", quote(text))))
}

pub(super) fn prefix4(field: &str, text: &str) -> Read<Prefix4> {
    text.parse().map_err(|_| Bad::invalid(field, format!("{} is no IPv4 prefix", quote(text))))
}

/// Empty text is `None`.
pub(super) fn non_empty<T>(text: &str, read: impl FnOnce(&str) -> Read<T>) -> Read<Option<T>> {
    if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

/// The IPv4 addresses of a list; those of IPv6 are passed over, anything else is refused.
pub(super) fn ipv4_list(field: &str, texts: &[String]) -> Read<Vec<Ipv4Addr>> {
    let mut out = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(std::net::IpAddr::V4(address)) => out.push(address),
            Ok(std::net::IpAddr::V6(_)) => {}
            Err(_) => {
                return Err(Bad::invalid(
                    format!("{field}[{index}]"),
                    format!("{} is no address", quote(text)),
                ));
            }
        }
    }
    Ok(out)
}
