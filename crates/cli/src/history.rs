// SPDX-License-Identifier: Apache-2.0
//! `history`: the revisions of one object, oldest first: who changed what, when, by which plan. It is read from the
//! controller's audit, which keeps the last 10,000 changes; of an object that was deleted and made again all lives are told.

use serde_json::Value;

use crate::DONE;
use crate::advice::Advice;
use crate::args::Format;
use crate::client::{Client, parse_object};
use crate::output::{cell, print_json, print_yaml, put, shorten};

#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    /// KIND/NAME, also of one that was deleted
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME", add = crate::completion::objects())]
    object: Vec<String>,
    /// Only the last so many revisions
    #[arg(short = 'n', long, value_name = "COUNT")]
    lines: Option<usize>,
    /// Form of the output; name lists the numbers
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) fn history(client: &Client, args: &HistoryArgs) -> anyhow::Result<u8> {
    let (kind, name) = parse_object(&args.object)?;
    let kind = kind.singular();
    let Some(name) = name else {
        let next = format!("selvedge get {kind}");
        return Err(Advice::new(format!("name the {kind}: history {kind}/NAME"), next).into());
    };
    let object = format!("{kind}/{name}");
    let entries = entries(client, &object)?;
    if entries.is_empty() {
        // Somebody may have mistyped it, or it is older than what is kept.
        client.get(&format!("{}/{name}", parse_object(&args.object)?.0.plural()))?;
        eprintln!("no change of {object} is kept");
        return Ok(DONE);
    }
    let first = entries.len().saturating_sub(args.lines.unwrap_or(usize::MAX));
    let shown = &entries[first..];
    match args.output {
        Format::Json => print_json(&Value::from(shown.to_vec()))?,
        Format::Yaml => print_yaml(&Value::from(shown.to_vec()))?,
        Format::Name => {
            put(&shown.iter().map(|entry| format!("{}\n", cell(entry, "/sequence"))).collect::<String>())?
        }
        Format::Table | Format::Wide => {
            let is_wide = args.output == Format::Wide;
            put(&shown.iter().map(|entry| text(entry, &object, is_wide)).collect::<String>())?;
        }
    }
    Ok(DONE)
}

/// All entries about an object, page by page.
fn entries(client: &Client, object: &str) -> anyhow::Result<Vec<Value>> {
    let mut all: Vec<Value> = Vec::new();
    let mut after = 0;
    loop {
        let page = client.get(&format!("audit?object={object}&after={after}"))?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        let reached: u64 = cell(&page, "/metadata/resourceVersion").parse().unwrap_or(after);
        let is_end = items.is_empty() || reached <= after;
        all.extend(items);
        if is_end {
            return Ok(all);
        }
        after = reached;
    }
}

/// A revision: a line, and one for each field of a change; of what was added and removed only when wide.
fn text(entry: &Value, object: &str, is_wide: bool) -> String {
    let about = entry["objects"].as_array().into_iter().flatten().find(|one| one["object"] == object);
    let op = about.and_then(|one| one["op"].as_str()).unwrap_or_default();
    let verb = match op {
        "add" => "created",
        "remove" => "deleted",
        _ => "changed",
    };
    let mut out = format!(
        "{:<5} {}  {verb} by {} ({})",
        cell(entry, "/sequence"),
        cell(entry, "/at"),
        cell(entry, "/who"),
        cell(entry, "/role")
    );
    for (key, before, after) in
        [("/from", " from ", ""), ("/devices", ", ", " devices got another config"), ("/plan", ", plan ", "")]
    {
        let text = cell(entry, key);
        if !text.is_empty() && (key != "/plan" || is_wide) {
            out.push_str(&format!("{before}{text}{after}"));
        }
    }
    out.push('\n');
    let Some(about) = about.filter(|_| is_wide || op == "change") else { return out };
    for field in about["fields"].as_array().into_iter().flatten() {
        let side = |key: &str| field[key].as_str().map_or_else(|| "(none)".to_owned(), shorten);
        out.push_str(&format!("      {}: {} → {}\n", cell(field, "/path"), side("from"), side("to")));
    }
    if let Some(more) = about["moreFields"].as_u64().filter(|more| *more > 0) {
        out.push_str(&format!("      and {more} more fields\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_revision_tells_who_when_and_what() {
        let entry = |op: &str| {
            json!({ "sequence": 12, "at": "2026-01-01T00:00:00Z", "who": "alice", "role": "operator", "from": "192.0.2.7",
                "action": "apply", "plan": "abc", "devices": 3, "objects": [
                    { "op": "change", "object": "app/other", "fields": [] },
                    { "op": op, "object": "app/shop", "fields": [{ "path": "spec.image", "from": "shop:1", "to": "shop:2" }] },
                ] })
        };
        let all = format!(
            "{}{}",
            text(&entry("add"), "app/shop", false),
            text(&entry("change"), "app/shop", false)
        );
        expect_test::expect![[r#"
            12    2026-01-01T00:00:00Z  created by alice (operator) from 192.0.2.7, 3 devices got another config
            12    2026-01-01T00:00:00Z  changed by alice (operator) from 192.0.2.7, 3 devices got another config
                  spec.image: shop:1 → shop:2
        "#]].assert_eq(&all);
    }
}
