// SPDX-License-Identifier: Apache-2.0
//! `label`: sets and takes away labels. A label may choose apps, so what it does to devices is shown like any change.

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value, json};

use crate::args::Format;
use crate::change::{Tense, send, show};
use crate::client::{Client, parse_object};
use crate::export::written;
use crate::selection;
use crate::{DIFFERENT, DONE};

#[derive(Debug, clap::Args)]
pub(crate) struct LabelArgs {
    /// KIND/NAME, or KIND with -l
    #[arg(value_name = "KIND/NAME", add = crate::completion::objects())]
    object: String,
    /// key=value sets, key- takes away
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    changes: Vec<String>,
    /// All objects of the kind with these labels: key=value,key=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Only show what would change; exit code 2 when something would
    #[arg(long)]
    dry_run: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, PartialEq, Eq)]
enum Edit {
    Set(String, String),
    Drop(String),
}

fn parse(text: &str) -> anyhow::Result<Edit> {
    if let Some((key, value)) = text.split_once('=') {
        return if key.is_empty() { Err(wrong(text)) } else { Ok(Edit::Set(key.into(), value.into())) };
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok(Edit::Drop(key.into())),
        _ => Err(wrong(text)),
    }
}

fn wrong(text: &str) -> anyhow::Error {
    anyhow!("'{text}' changes no label; write key=value to set one, key- to take it away")
}

pub(crate) fn label(client: &Client, args: &LabelArgs) -> anyhow::Result<u8> {
    let edits: Vec<Edit> = args.changes.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
    let mut objects = Vec::new();
    if args.selector.is_some() {
        let (kind, None) = parse_object(std::slice::from_ref(&args.object))? else {
            return Err(anyhow!("give either a name or -l, not both"));
        };
        objects = selection::list(client, kind, args.selector.as_deref())?;
        if objects.is_empty() {
            let selector = args.selector.as_deref().unwrap_or_default();
            return Err(anyhow!("no {} carries {selector}", kind.singular()));
        }
    } else {
        for (kind, name) in selection::names(client, std::slice::from_ref(&args.object), None)? {
            objects.push(client.get(&format!("{}/{name}", kind.plural()))?);
        }
    }
    let documents: Vec<Value> =
        objects.iter().map(|object| relabelled(object, &edits)).collect::<Result<_, _>>()?;
    let body = json!({ "objects": documents });
    let (path, tense) = if args.dry_run { ("plan", Tense::Would) } else { ("apply", Tense::Did) };
    let plan = send(client, path, &body, &[])?;
    show(&plan, args.output, tense)?;
    let is_different = args.dry_run && !crate::change::is_empty(&plan);
    Ok(if is_different { DIFFERENT } else { DONE })
}

/// The document that changes the labels and nothing else. The version that was read goes along.
fn relabelled(object: &Value, edits: &[Edit]) -> anyhow::Result<Value> {
    let mut document = written(object);
    let metadata = document["metadata"].as_object_mut().context("the controller's answer is no object")?;
    metadata.insert("resourceVersion".into(), object["metadata"]["resourceVersion"].clone());
    let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
    let labels = labels.as_object_mut().context("the controller's answer has odd labels")?;
    for edit in edits {
        match edit {
            Edit::Set(key, value) => {
                labels.insert(key.clone(), json!(value));
            }
            Edit::Drop(key) => {
                labels.shift_remove(key);
            }
        }
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away_and_nothing_else_is_touched() {
        let object = json!({
            "apiVersion": "selvedge/v1alpha1", "kind": "App",
            "metadata": { "name": "a", "labels": { "old": "1", "kept": "2" }, "resourceVersion": "7", "uid": "u" },
            "spec": { "image": "a:1" }, "status": { "running": 1 },
        });
        let edits = [Edit::Set("new".into(), "x=y".into()), Edit::Drop("old".into())];
        assert_eq!(
            relabelled(&object, &edits).unwrap(),
            json!({
                "apiVersion": "selvedge/v1alpha1", "kind": "App",
                "metadata": { "name": "a", "labels": { "kept": "2", "new": "x=y" }, "resourceVersion": "7" },
                "spec": { "image": "a:1" },
            })
        );
    }

    #[test]
    fn what_is_no_change_of_a_label_is_said() {
        assert_eq!(parse("a=b=c").unwrap(), Edit::Set("a".into(), "b=c".into()));
        assert_eq!(parse("a=").unwrap(), Edit::Set("a".into(), String::new()));
        assert_eq!(parse("a-").unwrap(), Edit::Drop("a".into()));
        for bad in ["a", "-", "=b", ""] {
            assert!(parse(bad).unwrap_err().to_string().contains("key- to take it away"), "{bad}");
        }
    }
}
