// SPDX-License-Identifier: Apache-2.0
//! What an upstream registry demands before it answers: `WWW-Authenticate` (RFC 9110 §11.6.1).

/// Longest header read.
const MAX_HEADER_BYTES: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The one of a header that we can answer; a token rather than a password.
    pub(super) fn parse(untrusted: &str) -> Option<Challenge> {
        if untrusted.len() > MAX_HEADER_BYTES {
            return None;
        }
        let mut found = None;
        // (scheme, parameters): commas separate both, and a word without `=` begins a challenge.
        let mut rest = untrusted;
        let mut scheme = String::new();
        let (mut realm, mut service, mut scope) = (None, None, None);
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            let end = rest.find([' ', ',', '=', '\t']).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            if word.is_empty() && tail.is_empty() {
                break;
            }
            match tail.trim_start().strip_prefix('=') {
                None => {
                    if scheme == "bearer" && realm.is_some() {
                        break;
                    }
                    scheme = word.to_ascii_lowercase();
                    if scheme == "basic" {
                        found = Some(Challenge::Basic);
                    }
                    rest = tail;
                }
                Some(value) => {
                    let (text, tail) = value_of(value.trim_start());
                    if scheme == "bearer" {
                        match word.to_ascii_lowercase().as_str() {
                            "realm" => realm = Some(text),
                            "service" => service = Some(text),
                            "scope" => scope = Some(text),
                            _ => {}
                        }
                    }
                    rest = tail;
                }
            }
        }
        match realm {
            Some(realm) => Some(Challenge::Bearer { realm, service, scope }),
            None => found,
        }
    }
}

/// A quoted text or a word, and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// Text as a value in the query of a URL.
pub(super) fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        for (header, expected) in [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#,
                bearer("https://a/t", Some("s"), Some("repository:a/b:pull,push")),
            ),
            (r#"Basic realm="x", Bearer realm="y""#, bearer("y", None, None)),
            (r#"Bearer realm="y", Basic realm="x""#, bearer("y", None, None)),
            (r#"Bearer realm="a\"b""#, bearer("a\"b", None, None)),
            ("Negotiate", None),
            ("Bearer", None),
            ("", None),
            ("=", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
        assert_eq!(escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(text in "[ =,\"\\\\a-z]{0,60}") {
            let _ = Challenge::parse(&text);
        }
    }
}
