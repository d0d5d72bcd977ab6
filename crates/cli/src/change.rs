// SPDX-License-Identifier: Apache-2.0
//! `plan`, `apply`, `delete`, `app restart` and `app purge`.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::advice::Advice;
use crate::args::{AppCommand, ApplyArgs, ChangeArgs, DeleteArgs, Format};
use crate::client::{ApiError, Client, parse_named};
use crate::documents::{Document, locate, read_all};
use crate::output::{print_json, print_yaml, put, shorten};
use crate::{DIFFERENT, DONE, selection};

fn body(documents: &[Document], delete: &[String]) -> anyhow::Result<Value> {
    let objects: Vec<Value> = documents.iter().map(Document::value).collect::<Result<_, _>>()?;
    for name in delete {
        parse_named(name)?;
    }
    Ok(json!({ "objects": objects, "delete": delete }))
}

pub(crate) fn send(
    client: &Client,
    path: &str,
    body: &Value,
    documents: &[Document],
) -> anyhow::Result<Value> {
    client.post(path, body).map_err(|error| match error.downcast::<ApiError>() {
        Ok(mut refused) => {
            locate(&mut refused.problem, documents);
            refused.into()
        }
        Err(other) => other,
    })
}

fn is_nothing(args: &ChangeArgs) -> bool {
    args.files.is_empty() && args.delete.is_empty()
}

pub(crate) fn plan(client: &Client, args: &ChangeArgs) -> anyhow::Result<u8> {
    if is_nothing(args) {
        let next = "selvedge explain app shows how a file is written";
        return Err(Advice::new("say what to plan: -f FILE or --delete KIND/NAME", next).into());
    }
    let documents = read_all(&args.files)?;
    let plan = send(client, "plan", &body(&documents, &args.delete)?, &documents)?;
    show(&plan, args.output, Tense::Would)?;
    Ok(if is_empty(&plan) { DONE } else { DIFFERENT })
}

pub(crate) fn apply(client: &Client, args: &ApplyArgs) -> anyhow::Result<u8> {
    if is_nothing(&args.change) && args.plan.is_none() {
        let next = "selvedge explain app shows how a file is written";
        return Err(Advice::new("say what to apply: -f FILE, --delete KIND/NAME or --plan HASH", next).into());
    }
    let documents = read_all(&args.change.files)?;
    let mut body = body(&documents, &args.change.delete)?;
    if let Some(hash) = &args.plan {
        body["plan"] = json!(hash);
    }
    let plan = send(client, "apply", &body, &documents)?;
    show(&plan, args.change.output, Tense::Did)?;
    Ok(DONE)
}

pub(crate) fn delete(client: &Client, args: &DeleteArgs) -> anyhow::Result<u8> {
    let names = selection::names(client, &args.objects, args.selector.as_deref())?;
    let names: Vec<String> = names.iter().map(|(kind, name)| format!("{}/{name}", kind.singular())).collect();
    let (path, tense) = if args.dry_run { ("plan", Tense::Would) } else { ("apply", Tense::Did) };
    let plan = send(client, path, &body(&[], &names)?, &[])?;
    show(&plan, args.output, tense)?;
    Ok(if args.dry_run && !is_empty(&plan) { DIFFERENT } else { DONE })
}

pub(crate) fn app(client: &Client, command: &AppCommand) -> anyhow::Result<u8> {
    let (name, counter) = match command {
        AppCommand::Restart { name } => (name, "restartCounter"),
        AppCommand::Purge { name } => (name, "purgeCounter"),
    };
    let (_, name) = parse_named(&format!("app/{name}"))?;
    let mut object = client.get(&format!("apps/{name}"))?;
    let next = object["spec"][counter].as_u64().unwrap_or(0) + 1;
    object["spec"][counter] = json!(next);
    let map = object.as_object_mut().context("the controller's answer is no object")?;
    map.remove("status");
    // The version that was read goes along: two restarts at once are one refused.
    let plan = send(client, "apply", &json!({ "objects": [object] }), &[])?;
    show(&plan, Format::Table, Tense::Did)?;
    Ok(DONE)
}

pub(crate) fn is_empty(plan: &Value) -> bool {
    ["objects", "devices"].iter().all(|key| plan[key].as_array().is_none_or(Vec::is_empty))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tense {
    Would,
    Did,
}

pub(crate) fn show(plan: &Value, format: Format, tense: Tense) -> anyhow::Result<()> {
    for warning in plan["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("warning: {warning}");
    }
    match format {
        Format::Json => print_json(plan),
        Format::Yaml => print_yaml(plan),
        Format::Name => put(&names(plan)),
        Format::Table => put(&text(plan, tense, false)),
        Format::Wide => put(&text(plan, tense, true)),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn names(plan: &Value) -> String {
    list(plan, "objects")
        .map(|object| format!("{}/{}\n", string(object, "kind").to_lowercase(), string(object, "name")))
        .collect()
}

fn sign(op: &str) -> &'static str {
    match op {
        "add" => "+",
        "remove" => "-",
        _ => "~",
    }
}

/// A plan for people. Fields of added and removed objects are left out unless `is_wide`.
fn text(plan: &Value, tense: Tense, is_wide: bool) -> String {
    let mut out = String::new();
    if is_empty(plan) {
        out.push_str("nothing changes\n");
    }
    for object in list(plan, "objects") {
        let op = string(object, "op");
        out.push_str(&format!(
            "{} {}/{}\n",
            sign(op),
            string(object, "kind").to_lowercase(),
            string(object, "name")
        ));
        fields(object, "    ", is_wide || op == "change", &mut out);
    }
    for device in list(plan, "devices") {
        let deleted =
            if device["isDeleted"] == true { " (deleted: it keeps running what it has)" } else { "" };
        out.push_str(&format!("device {}{deleted}\n", string(device, "name")));
        for change in list(device, "changes") {
            let op = string(change, "op");
            out.push_str(&format!("  {} {} {}\n", sign(op), string(change, "kind"), string(change, "name")));
            fields(change, "      ", is_wide || op == "change", &mut out);
        }
    }
    if tense == Tense::Would {
        out.push_str(&format!("plan {}\n", string(plan, "hash")));
    }
    out
}

fn fields(change: &Value, indent: &str, is_shown: bool, out: &mut String) {
    for field in list(change, "fields").filter(|_| is_shown) {
        let path = string(field, "path");
        let side = |key: &str| field[key].as_str().map(shorten);
        let line = match (side("from"), side("to")) {
            (None, Some(to)) => format!("{indent}{path}: {to}\n"),
            (Some(from), None) => format!("{indent}{path}: {from} → (none)\n"),
            (from, to) => {
                format!("{indent}{path}: {} → {}\n", from.unwrap_or_default(), to.unwrap_or_default())
            }
        };
        out.push_str(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_from_objects_to_devices_to_fields() {
        let plan = json!({
            "hash": "abc",
            "objects": [{ "op": "change", "kind": "App", "name": "hello", "fields": [
                { "path": "spec.image", "from": "hello:1", "to": "hello:2" } ] }],
            "devices": [{ "name": "d1", "changes": [
                { "op": "remove", "kind": "volume", "name": "hello root", "fields": [{ "path": "key", "from": "1" }] },
                { "op": "change", "kind": "app", "name": "hello", "fields": [
                    { "path": "purge_counter", "from": "0", "to": "1" },
                    { "path": "user_data", "from": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff00112233" } ] } ] }],
        });
        expect_test::expect![[r#"
            ~ app/hello
                spec.image: hello:1 → hello:2
            device d1
              - volume hello root
              ~ app hello
                  purge_counter: 0 → 1
                  user_data: 00112233445566778899aabb… (72 characters) → (none)
            plan abc
        "#]]
        .assert_eq(&text(&plan, Tense::Would, false));
    }
}
