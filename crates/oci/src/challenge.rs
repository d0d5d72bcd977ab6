// SPDX-License-Identifier: Apache-2.0
//! What a registry demands before it answers: the `WWW-Authenticate` header (RFC 9110 §11, distribution spec's token
//! flow). Both who pull read it: the node's fetch and the controller's mirror.

use std::collections::BTreeMap;

/// Longest header read.
const MAX_HEADER_BYTES: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The strongest challenge of the headers that we can answer.
    pub fn choose<'a>(untrusted_headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let mut basic = false;
        for header in untrusted_headers.filter(|header| header.len() <= MAX_HEADER_BYTES) {
            for (scheme, mut parameters) in challenges(header) {
                if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameters.remove("realm")
                {
                    let service = parameters.remove("service");
                    let scope = parameters.remove("scope");
                    return Some(Challenge::Bearer { realm, service, scope });
                }
                basic |= scheme.eq_ignore_ascii_case("basic");
            }
        }
        basic.then_some(Challenge::Basic)
    }
}

/// Schemes and their parameters. Commas separate both parameters and challenges: a word without `=` begins a challenge.
fn challenges(mut text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut out: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',', '\t']);
        if text.is_empty() {
            return out;
        }
        let end = text.find([' ', ',', '=', '\t']).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let rest = rest.trim_start();
        let Some(value) = rest.strip_prefix('=') else {
            out.push((word.into(), BTreeMap::new()));
            text = rest;
            continue;
        };
        let (value, rest) = read_value(value.trim_start());
        if let Some((_, parameters)) = out.last_mut() {
            parameters.insert(word.to_ascii_lowercase(), value);
        }
        text = rest;
    }
}

fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].into(), &text[end..]);
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
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        })
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let scope = "repository:a/b:pull,push";
        for (headers, expected) in [
            (&[r#"Basic realm="x""#][..], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#],
                bearer("https://a/t", Some("s"), Some(scope)),
            ),
            (&[r#"Basic realm="x", Bearer realm="y""#], bearer("y", None, None)),
            (&[r#"Basic realm="x""#, "BEARER Realm=y , service=z"], bearer("y", Some("z"), None)),
            (&[r#"Bearer realm="a\"b""#], bearer("a\"b", None, None)),
            (&["Negotiate", "Bearer", ""], None),
            (&[r#"Bearer realm="open"#], bearer("open", None, None)),
        ] {
            assert_eq!(Challenge::choose(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(escape("repository:a/b:pull,push é"), "repository%3Aa%2Fb%3Apull%2Cpush%20%C3%A9");
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read_or_refused(text in ".{0,200}") {
            let _ = Challenge::choose([text.as_str()].into_iter());
        }
    }
}
