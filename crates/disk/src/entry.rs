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
use alloc::vec::Vec;
use core::cmp::Ordering;

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

/// Which of two versions the boot loader takes for the newer one (UAPI Version Format Specification): number by number, `~` is
/// before everything, also before the end; letters after the end.
pub fn compare(a: &str, b: &str) -> Ordering {
    let is_part = |c: &u8| c.is_ascii_alphanumeric() || b"~-^.".contains(c);
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let skip = |text: &mut &[u8]| {
            while let Some((first, rest)) = text.split_first().filter(|(first, _)| !is_part(first)) {
                debug_assert!(!is_part(first));
                *text = rest;
            }
        };
        skip(&mut a);
        skip(&mut b);
        // what comes before the end, in this order; then the end; then what comes after it
        for mark in *b"~" {
            match (a.first() == Some(&mark), b.first() == Some(&mark)) {
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                _ => {}
            }
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        for mark in *b"-^." {
            match (a.first() == Some(&mark), b.first() == Some(&mark)) {
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                _ => {}
            }
        }
        if !a[0].is_ascii_alphanumeric() {
            (a, b) = (&a[1..], &b[1..]);
            continue;
        }
        let is_number = a[0].is_ascii_digit() || b[0].is_ascii_digit();
        let (one, other) = (run(&mut a, is_number), run(&mut b, is_number));
        let order = if is_number {
            let strip = |digits: &'_ [u8]| {
                digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<u8>>()
            };
            let (one, other) = (strip(one), strip(other));
            one.len().cmp(&other.len()).then(one.cmp(&other))
        } else {
            one.cmp(other)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the digits, or the letters, that a text begins with.
fn run<'t>(text: &mut &'t [u8], is_number: bool) -> &'t [u8] {
    let fits = |c: &u8| if is_number { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
    let length = text.iter().take_while(|c| fits(c)).count();
    let (taken, rest) = text.split_at(length);
    *text = rest;
    taken
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
    fn versions_are_ordered_as_the_boot_loader_orders_them() {
        // the specification's own examples that our versions can be
        for (lower, higher) in [
            ("0.1", "0.2"),
            ("1.9", "1.10"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0.1"),
            ("1.0", "2.0"),
            ("122.1", "123~rc1-1"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-1"),
            ("123-1", "123.1-1"),
            ("007", "8"),
            ("", "1"),
            ("a", "1"),
        ] {
            assert_eq!(compare(lower, higher), Ordering::Less, "{lower} {higher}");
            assert_eq!(compare(higher, lower), Ordering::Greater, "{lower} {higher}");
            assert_eq!(compare(lower, lower), Ordering::Equal);
        }
        assert_eq!(compare("1.01", "1.1"), Ordering::Equal);
    }

    #[test]
    fn names_of_others_are_left_alone() {
        for name in ["debian.efi", "selvedge_.efi", "selvedge_1+x.efi", "selvedge_a/b.efi", "selvedge_1+3"] {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }
}
