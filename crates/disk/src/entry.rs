// SPDX-License-Identifier: Apache-2.0
//! Names of boot entries on the ESP, with the counters of the Boot Loader Specification.
//!
//! ```text
//! selvedge_1.2.3+3.efi     three tries left, none done     the boot loader renames it at each try
//! selvedge_1.2.3+1-2.efi   one left, two done
//! selvedge_1.2.3.efi       good: no counter
//! selvedge_1.2.3+0-3.efi   bad: comes last
//! ```

use alloc::format;
use alloc::string::{String, ToString};

/// Directory on the ESP.
pub const DIRECTORY: &str = "EFI/Linux";
const PREFIX: &str = "selvedge_";
const SUFFIX: &str = ".efi";
/// Tries that a new version has.
pub const TRIES: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub version: String,
    /// Nothing: the version is good.
    pub tries: Option<Tries>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    pub left: u32,
    pub done: u32,
}

impl Entry {
    /// Of a version that has not been tried.
    pub fn fresh(version: &str) -> Entry {
        Entry { version: version.to_string(), tries: Some(Tries { left: TRIES, done: 0 }) }
    }

    pub fn good(&self) -> Entry {
        Entry { version: self.version.clone(), tries: None }
    }

    /// Not ours: nothing.
    pub fn parse(untrusted_name: &str) -> Option<Entry> {
        let rest = untrusted_name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let (version, tries) = match rest.split_once('+') {
            None => (rest, None),
            Some((version, tries)) => {
                let (left, done) = tries.split_once('-').unwrap_or((tries, "0"));
                (version, Some(Tries { left: left.parse().ok()?, done: done.parse().ok()? }))
            }
        };
        is_version(version).then(|| Entry { version: version.to_string(), tries })
    }

    pub fn file_name(&self) -> String {
        let counter = match self.tries {
            None => String::new(),
            Some(Tries { left, done: 0 }) => format!("+{left}"),
            Some(Tries { left, done }) => format!("+{left}-{done}"),
        };
        format!("{PREFIX}{}{counter}{SUFFIX}", self.version)
    }
}

/// What may stand in the name of a file on every file system, and in a version.
pub fn is_version(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-~".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "selvedge_1.2.3+3.efi",
            "selvedge_1.2.3+1-2.efi",
            "selvedge_1.2.3.efi",
            "selvedge_2-rc~1+0-3.efi",
        ] {
            assert_eq!(Entry::parse(name).unwrap().file_name(), name);
        }
        assert_eq!(Entry::fresh("1").file_name(), "selvedge_1+3.efi");
        assert_eq!(Entry::fresh("1").good().file_name(), "selvedge_1.efi");
    }

    #[test]
    fn names_of_others_are_left_alone() {
        for name in ["debian.efi", "selvedge_.efi", "selvedge_1+x.efi", "selvedge_a/b.efi", "selvedge_1+3"] {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }
}
