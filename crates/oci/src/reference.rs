// SPDX-License-Identifier: Apache-2.0
//! Image references as people write them: `registry/repository:tag@digest`.

use core::fmt;
use core::str::FromStr;

use model::id::Digest;

/// Longest text taken for a reference: 255 bytes of name (distribution spec), a tag, a digest.
pub const MAX_REFERENCE_BYTES: usize = 512;
/// Longest tag (distribution spec).
pub const MAX_TAG_BYTES: usize = 128;

/// Where an image lives. Without tag and digest the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host and port; `None` when the first part of the name does not look like a host.
    pub registry: Option<String>,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("reference is longer than {MAX_REFERENCE_BYTES} bytes")]
    TooLong,
    #[error("repository name is not lower-case parts separated by slashes")]
    Repository,
    #[error("tag is not 1 to {MAX_TAG_BYTES} letters, digits, dots, dashes and underscores")]
    Tag,
    #[error("digest is not a sha256 digest")]
    Digest,
    #[error("registry is not a host with an optional port")]
    Registry,
}

impl Reference {
    /// What a registry is asked for: the digest where there is one.
    pub fn asked_for(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(ReferenceError::TooLong);
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) if digest.starts_with("sha256:") => {
                (name, Some(digest.parse().map_err(|_| ReferenceError::Digest)?))
            }
            Some(_) => return Err(ReferenceError::Digest),
        };
        // A colon behind the last slash begins the tag; one before it the registry's port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag);
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
            _ => (None, name),
        };
        if let Some(host) = registry
            && !is_host(host)
        {
            return Err(ReferenceError::Registry);
        }
        if !is_repository(repository) {
            return Err(ReferenceError::Repository);
        }
        Ok(Reference {
            registry: registry.map(Into::into),
            repository: repository.into(),
            tag: tag.map(Into::into),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `[\w][\w.-]{0,127}`.
pub fn is_tag(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= MAX_TAG_BYTES
        && bytes.first().is_some_and(|first| word(*first))
        && bytes.iter().all(|c| word(*c) || matches!(c, b'.' | b'-'))
}

/// Lower-case parts, separated by slashes, each of letters and digits with `.`, `_`, `__` or dashes between.
pub fn is_repository(text: &str) -> bool {
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = bytes.first().is_some_and(|c| alnum(*c)) && bytes.last().is_some_and(|c| alnum(*c));
        ends && part
            .split(|c: char| c.is_ascii() && alnum(c as u8))
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|c| c == b'-'))
    };
    !text.is_empty() && text.split('/').all(is_part)
}

fn is_host(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((address, port)) => {
                address.parse::<core::net::Ipv6Addr>().is_ok()
                    && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
            }
            None => false,
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    !host.is_empty()
        && host.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
        && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn references_are_read_as_written() {
        type Row<'a> = (&'a str, Option<&'a str>, &'a str, Option<&'a str>, bool);
        let rows: [Row<'_>; 9] = [
            ("nginx", None, "nginx", None, false),
            ("library/nginx:1.27", None, "library/nginx", Some("1.27"), false),
            ("localhost/app", Some("localhost"), "app", None, false),
            ("localhost:5000/a/b:t", Some("localhost:5000"), "a/b", Some("t"), false),
            ("reg.example/a", Some("reg.example"), "a", None, false),
            ("[::1]:5000/a:x", Some("[::1]:5000"), "a", Some("x"), false),
            ("10.0.0.1:5000/a-b/c__d", Some("10.0.0.1:5000"), "a-b/c__d", None, false),
            (&format!("a@{DIGEST}"), None, "a", None, true),
            (&format!("r.x/a:t@{DIGEST}"), Some("r.x"), "a", Some("t"), true),
        ];
        for (text, registry, repository, tag, has_digest) in rows {
            let read: Reference = text.parse().unwrap();
            assert_eq!(read.registry.as_deref(), registry, "{text}");
            assert_eq!(read.repository, repository, "{text}");
            assert_eq!(read.tag.as_deref(), tag, "{text}");
            assert_eq!(read.digest.is_some(), has_digest, "{text}");
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn broken_references_are_refused() {
        for text in [
            "",
            "/",
            "a//b",
            "A",
            "a:",
            "a:b c",
            "a@sha256:12",
            "a@sha512:00",
            "-a",
            "a-",
            "a..b",
            "a/../b",
            "reg.example/",
            "reg.example:99999/a",
            "a:.b",
            "host:port/a",
            "é",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!("a".repeat(600).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            if let Ok(read) = text.parse::<Reference>() {
                prop_assert_eq!(read.to_string(), text);
            }
        }
    }
}
