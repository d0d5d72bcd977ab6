// SPDX-License-Identifier: Apache-2.0
//! The names of the distribution API: repository, tag, digest. Parsing is the only way to get one, so
//! whatever holds one of these types may be joined to a path: none contains `..`, a leading dot or a
//! byte outside the grammar of the OCI Distribution Spec.
//!
//! Limits: repository names have at most [`MAX_REPOSITORY_NAME_BYTES`] bytes, tags 128.

use model::id::Digest;
use std::fmt;

/// What Docker clients can address, host name included, is 255; we take it for the name alone, which
/// also keeps every component a legal file name.
pub const MAX_REPOSITORY_NAME_BYTES: usize = 255;
/// From the grammar of tags in the Distribution Spec.
pub const MAX_TAG_BYTES: usize = 128;

/// Why a string is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` in components separated by `/`, or too long.
    #[error("invalid repository name")]
    Repository,
    /// Neither a tag nor a digest.
    #[error("invalid tag or digest")]
    Reference,
    /// Not `ALGORITHM:HEX`.
    #[error("malformed digest")]
    Digest,
    /// A well-formed digest of an algorithm other than SHA-256.
    #[error("digest algorithm {0} is not supported, use sha256")]
    Algorithm(String),
}

/// A repository name such as `library/nginx`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// Takes a name that follows the grammar of the Distribution Spec.
    pub fn parse(untrusted: &str) -> Result<Self, NameError> {
        let fits = untrusted.len() <= MAX_REPOSITORY_NAME_BYTES;
        if fits && untrusted.split('/').all(is_component) {
            Ok(Self(untrusted.to_owned()))
        } else {
            Err(NameError::Repository)
        }
    }

    /// The name as it stands in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`: runs of letters and digits with one separator between them.
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(|&b| alphanumeric(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

/// A tag such as `v1.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    pub fn parse(untrusted: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = untrusted.as_bytes();
        let fits = (1..=MAX_TAG_BYTES).contains(&bytes.len());
        if fits && word(bytes[0]) && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-') {
            Ok(Self(untrusted.to_owned()))
        } else {
            Err(NameError::Reference)
        }
    }

    /// The tag as it stands in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Takes `sha256:` and 64 lower-case hexadecimal digits: stricter than the model's own reading, since one
/// content must have one name in URLs.
pub fn parse_digest(untrusted: &str) -> Result<Digest, NameError> {
    let (algorithm, encoded) = untrusted.split_once(':').ok_or(NameError::Digest)?;
    if algorithm != "sha256" {
        let known = matches!(algorithm, "sha512" | "sha384" | "blake3");
        return Err(if known { NameError::Algorithm(algorithm.to_owned()) } else { NameError::Digest });
    }
    let mut bytes = [0; 32];
    let lower = !encoded.bytes().any(|b| b.is_ascii_uppercase());
    if !lower || hex::decode_to_slice(encoded, &mut bytes).is_err() {
        return Err(NameError::Digest);
    }
    Ok(Digest(bytes))
}

/// The digest of bytes in memory.
pub fn digest_of(bytes: &[u8]) -> Digest {
    finished_digest(&ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// The digest a streaming computation ended with; the algorithm must have been SHA-256.
pub(super) fn finished_digest(value: &ring::digest::Digest) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(value.as_ref());
    Digest(bytes)
}

/// The 64 digits alone, as file names hold them.
pub(super) fn digest_hex(digest: Digest) -> String {
    hex::encode(digest.0)
}

/// How a manifest is named in a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// By the name a person gave.
    Tag(Tag),
    /// By content.
    Digest(Digest),
}

impl Reference {
    /// A string with a colon is a digest, all others are tags.
    pub fn parse(untrusted: &str) -> Result<Self, NameError> {
        if untrusted.contains(':') {
            parse_digest(untrusted).map(Self::Digest)
        } else {
            Tag::parse(untrusted).map(Self::Tag)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for good in ["a", "library/nginx", "a.b/c_d/e__f/g---h", "0/1/2", &"a".repeat(255)] {
            assert!(RepositoryName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "..",
            "a/../b",
            ".a",
            "a.",
            "_blobs",
            "a/_tags",
            "a___b",
            "a..b",
            "a._b",
            "A",
            "a b",
            "a%2fb",
            "ä",
            "a\0b",
            "a\\b",
            "-a",
            &"a".repeat(256),
        ] {
            assert_eq!(RepositoryName::parse(bad), Err(NameError::Repository), "{bad}");
        }
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "_", "v1.2-rc_3", "A", &"t".repeat(128)] {
            assert!(Tag::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", ".a", "a/b", "a b", "a:b", &"t".repeat(129)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_sha256_digests_are_taken() {
        let hex = "ab".repeat(32);
        assert_eq!(parse_digest(&format!("sha256:{hex}")).unwrap().to_string(), format!("sha256:{hex}"));
        for bad in [
            "sha256:".to_owned(),
            format!("sha256:{}", "ab".repeat(31)),
            format!("sha256:{}", "AB".repeat(32)),
            format!("sha256:{}", "xy".repeat(32)),
            format!("md5:{hex}"),
            hex,
        ] {
            assert_eq!(parse_digest(&bad), Err(NameError::Digest), "{bad}");
        }
        let long = format!("sha512:{}", "ab".repeat(64));
        assert_eq!(parse_digest(&long), Err(NameError::Algorithm("sha512".to_owned())));
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b"").to_string(), empty);
    }

    proptest! {
        #[test]
        fn no_accepted_name_can_leave_its_directory(text in "\\PC{0,40}") {
            if RepositoryName::parse(&text).is_ok() {
                prop_assert!(text.split('/').all(|c| !c.is_empty() && !c.starts_with(['.', '_'])));
            }
            if Tag::parse(&text).is_ok() {
                prop_assert!(!text.starts_with('.') && !text.contains('/'));
            }
            let _ = Reference::parse(&text);
        }
    }
}
