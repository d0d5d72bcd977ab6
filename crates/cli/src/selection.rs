// SPDX-License-Identifier: Apache-2.0
//! `-l`: which objects of a kind are meant.

use anyhow::anyhow;
use controller_core::resource::Kind;
use serde_json::Value;

use crate::client::{Client, parse_object};
use crate::output::cell;

/// `key=value,key=value` as the query of a list; empty when there is no selector.
pub(crate) fn query(selector: Option<&str>) -> anyhow::Result<String> {
    let Some(text) = selector else { return Ok(String::new()) };
    let pairs: Vec<&str> = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).collect();
    if pairs.is_empty() {
        return Err(anyhow!("-l chooses nothing; write -l key=value"));
    }
    for pair in &pairs {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() || key.ends_with('!') || value.contains('=') || !pair.contains('=') {
            return Err(anyhow!("'{pair}' is no label to choose by; write key=value, several with commas"));
        }
    }
    Ok(format!("labelSelector={}", escape(&pairs.join(","))))
}

/// Text as a value in the query of a URL.
pub(crate) fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'/' | b',');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Objects of a kind as the controller has them.
pub(crate) fn list(client: &Client, kind: Kind, selector: Option<&str>) -> anyhow::Result<Vec<Value>> {
    let query = query(selector)?;
    let mark = if query.is_empty() { "" } else { "?" };
    let list = client.get(&format!("{}{mark}{query}", kind.plural()))?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// What `KIND/NAME…`, or `KIND -l LABELS`, means.
pub(crate) fn names(
    client: &Client,
    words: &[String],
    selector: Option<&str>,
) -> anyhow::Result<Vec<(Kind, String)>> {
    if let Some(selector) = selector {
        let (kind, None) = parse_object(words)? else {
            return Err(anyhow!("give either names or -l, not both"));
        };
        let items = list(client, kind, Some(selector))?;
        if items.is_empty() {
            return Err(anyhow!("no {} carries {selector}", kind.singular()));
        }
        return Ok(items.iter().map(|item| (kind, cell(item, "/metadata/name"))).collect());
    }
    if let [kind, rest @ ..] = words
        && !rest.is_empty()
        && !words.iter().any(|word| word.contains('/'))
    {
        return rest.iter().map(|name| named(&format!("{kind}/{name}"))).collect();
    }
    words.iter().map(|word| named(word)).collect()
}

fn named(word: &str) -> anyhow::Result<(Kind, String)> {
    match parse_object(&[word.to_owned()])? {
        (kind, Some(name)) => Ok((kind, name)),
        (kind, None) => {
            let kind = kind.singular();
            Err(anyhow!("name the {kind}: {kind}/NAME, or choose several with {kind} -l key=value"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_escaped_and_its_mistakes_are_said() {
        assert_eq!(query(Some("site=berlin, a/b=x y")).unwrap(), "labelSelector=site%3Dberlin,a/b%3Dx%20y");
        assert_eq!(query(None).unwrap(), "");
        for bad in ["site", "site!=x", "=x", "a==b", "", ","] {
            assert!(query(Some(bad)).is_err(), "{bad}");
        }
    }
}
