// SPDX-License-Identifier: Apache-2.0
//! `explain`: what a kind and each of its fields mean, from the schema that the OpenAPI document is made of.
//!
//! The example of a field is the part of its kind's example file that stands at the same path, so examples are documents
//! the controller takes.

mod schema;

use anyhow::anyhow;
use controller::operator_api::openapi_document;
use controller_core::resource::Kind;
use serde_json::Value;

use crate::DONE;
use crate::nearest::nearest;
use crate::output::{put, table};
use schema::{Field, Shape};

/// Depth to which `--recursive` goes.
const MAX_DEPTH: usize = 12;

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// KIND or KIND.field.path, as app.spec.resources.memory; `spec` may be left out. Left out: all kinds
    #[arg(value_name = "KIND[.FIELD]", add = crate::completion::kinds())]
    path: Option<String>,
    /// All fields below, as a tree
    #[arg(short, long)]
    recursive: bool,
}

/// One example per kind, by its name.
const EXAMPLES: &[(&str, &str)] = &[
    ("Device", include_str!("device.yaml")),
    ("JoinToken", include_str!("jointoken.yaml")),
    ("App", include_str!("app.yaml")),
    ("Network", include_str!("network.yaml")),
    ("Registry", include_str!("registry.yaml")),
    ("Secret", include_str!("secret.yaml")),
    ("Volume", include_str!("volume.yaml")),
    ("Datastore", include_str!("datastore.yaml")),
    ("BaseOS", include_str!("baseos.yaml")),
];

fn example(kind: Kind) -> Option<Value> {
    let (_, text) = EXAMPLES.iter().find(|(name, _)| *name == kind.name())?;
    serde_saphyr::from_str(text).ok()
}

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<u8> {
    match &args.path {
        Some(path) => put(&text(path, args.recursive)?)?,
        None => put(&all_kinds()?)?,
    }
    Ok(DONE)
}

/// Every kind with what it is.
fn all_kinds() -> anyhow::Result<String> {
    let document = openapi_document();
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let what = first_sentence(&Field::root(&document, kind)?.description());
        rows.push(vec![kind.singular().to_owned(), kind.plural().to_owned(), what]);
    }
    Ok(table(&["KIND", "SEVERAL", "WHAT"], &rows))
}

fn text(path: &str, is_recursive: bool) -> anyhow::Result<String> {
    let mut words = path.split('.').filter(|word| !word.is_empty());
    let word = words.next().unwrap_or_default();
    let kind = Kind::parse(word).ok_or_else(|| {
        let all = Kind::ALL.map(Kind::singular);
        let guess = nearest(word, all).map(|name| format!("; did you mean '{name}'?")).unwrap_or_default();
        anyhow!("there is no kind called '{word}'{guess}\nkinds are {}", all.join(", "))
    })?;
    let document = openapi_document();
    let mut field = Field::root(&document, kind)?;
    let mut sample = example(kind);
    let words: Vec<&str> = words.collect();
    let is_short = words.first().is_some_and(|first| field.child(first).is_none())
        && field.child("spec").is_some_and(|spec| words.first().is_some_and(|w| spec.child(w).is_some()));
    for word in is_short.then_some("spec").into_iter().chain(words) {
        let word = word.split('[').next().unwrap_or(word);
        let below = field.child(word).ok_or_else(|| unknown(&field, word))?;
        sample = sample.and_then(|value| at(&value, word));
        field = below;
    }
    Ok(if is_recursive { tree(&field) } else { page(&field, sample.as_ref()) })
}

/// The part of an example below a field; of a list its first element.
fn at(value: &Value, word: &str) -> Option<Value> {
    match value {
        Value::Array(items) => items.iter().find_map(|item| at(item, word)),
        Value::Object(map) => map.get(word).cloned().or_else(|| {
            // Below a map of names every value has the same fields.
            map.values().find_map(|value| value.get(word).cloned())
        }),
        _ => None,
    }
}

fn unknown(field: &Field<'_>, word: &str) -> anyhow::Error {
    let names: Vec<String> = field.children().into_iter().map(|child| child.name).collect();
    if names.is_empty() {
        return anyhow!("{} is {} and has no field '{word}'", field.path, field.shape());
    }
    let guess = nearest(word, names.iter().map(String::as_str));
    let guess = guess.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default();
    anyhow!("{} has no field '{word}'{guess}\nfields are {}", field.path, names.join(", "))
}

fn page(field: &Field<'_>, sample: Option<&Value>) -> String {
    let mut out = format!("{}  <{}>\n", field.path, field.shape());
    for line in wrap(&field.description(), 100) {
        out.push_str(&format!("  {line}\n"));
    }
    let facts: Vec<(&str, String)> = [
        ("required", field.is_required.then(|| "yes".to_owned())),
        ("default", field.default()),
        ("values", field.limits()),
    ]
    .into_iter()
    .filter_map(|(name, text)| Some((name, text?)))
    .collect();
    if !facts.is_empty() {
        out.push('\n');
    }
    for (name, text) in facts {
        out.push_str(&format!("{name:<9} {text}\n"));
    }
    let choices = field.choices();
    if !choices.is_empty() {
        out.push_str("\nallowed values\n");
        let width = choices.iter().map(|(value, _)| value.chars().count()).max().unwrap_or(0);
        for (value, what) in &choices {
            out.push_str(format!("  {value:<width$}  {what}").trim_end());
            out.push('\n');
        }
    }
    let children = field.children();
    if !children.is_empty() {
        out.push_str("\nfields\n");
        let cells: Vec<(String, String)> = children
            .iter()
            .map(|child| {
                let mark = if child.is_required { "*" } else { "" };
                (format!("{}{mark}", child.name), child.shape().to_string())
            })
            .collect();
        let name_width = cells.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let type_width = cells.iter().map(|(_, shape)| shape.chars().count()).max().unwrap_or(0);
        for (child, (name, shape)) in children.iter().zip(&cells) {
            let what = first_sentence(&child.description());
            out.push_str(format!("  {name:<name_width$}  {shape:<type_width$}  {what}").trim_end());
            out.push('\n');
        }
        if children.iter().any(|child| child.is_required) {
            out.push_str("  * must be given\n");
        }
    }
    if let Some(sample) = sample.filter(|sample| !sample.is_null()) {
        out.push_str("\nexample\n");
        let yaml = serde_saphyr::to_string(&wrapped(field, sample)).unwrap_or_default();
        for line in yaml.trim_end().lines() {
            out.push_str(&format!("  {line}\n"));
        }
    }
    out
}

/// A field's example with its name before it, as it stands in a file.
fn wrapped(field: &Field<'_>, sample: &Value) -> Value {
    if field.is_root {
        return sample.clone();
    }
    let mut map = serde_json::Map::new();
    map.insert(field.name.clone(), sample.clone());
    Value::Object(map)
}

fn tree(field: &Field<'_>) -> String {
    let mut out = format!("{}  <{}>\n", field.path, field.shape());
    branch(field, 1, &mut out);
    out
}

fn branch(field: &Field<'_>, depth: usize, out: &mut String) {
    if depth > MAX_DEPTH {
        return;
    }
    for child in field.children() {
        let mark = if child.is_required { "*" } else { "" };
        out.push_str(&format!("{}{}{mark}  <{}>\n", "  ".repeat(depth), child.name, child.shape()));
        branch(&child, depth + 1, out);
    }
}

fn first_sentence(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let end = line.find(". ").unwrap_or(line.len());
    line[..end].trim_end_matches('.').to_owned()
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut out = Vec::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                out.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        out.push(line);
    }
    out
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Plain(name) => f.write_str(name),
            Shape::List(of) => write!(f, "list of {of}"),
            Shape::Map(of) => write!(f, "map of {of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_tells_type_default_and_example() {
        expect_test::expect![[r#"
            app.spec.resources.memory  <text>
              Limit of memory: bytes, or with Ki, Mi, Gi; default 256Mi.

            default   256Mi

            example
              memory: 512Mi
        "#]]
        .assert_eq(&text("app.spec.resources.memory", false).unwrap());
    }

    #[test]
    fn a_choice_tells_its_values() {
        expect_test::expect![[r#"
            app.spec.isolation  <choice>
              What stands between the app and the node.

            default   container

            allowed values
              container  A native container: namespaces, seccomp, no hypervisor.
              vm         A virtual machine of its own.

            example
              isolation: container
        "#]]
        .assert_eq(&text("app.isolation", false).unwrap());
        expect_test::expect![[r#"
            device.spec.ports.addressing  <choice or object>
              Left out: DHCP.

            default   dhcp

            allowed values
              dhcp  From a DHCP server.
              none  No address.

            fields
              static*  object  As written here
              * must be given

            example
              addressing:
                static:
                  address: 192.0.2.10/24
                  gateway: "192.0.2.1"
                  dns:
                  - "192.0.2.53"
        "#]]
        .assert_eq(&text("device.ports.addressing", false).unwrap());
    }

    #[test]
    fn an_object_lists_its_fields() {
        expect_test::expect![[r#"
            app.spec.networks  <list of object>
              Networks in the order of the app's interfaces.

            fields
              network*  text            Name of a Network
              address   IPv4 address    Fixed address; left out: handed out by the node
              mac       text            Fixed Ethernet address; left out: made by the node
              acl       list of object  What the app may talk to through this network, instead of the app's `acl`
              * must be given

            example
              networks:
              - network: apps
                address: "10.11.0.20"
                mac: 02:16:3e:00:00:20
        "#]]
        .assert_eq(&text("app.networks", false).unwrap());
        expect_test::expect![[r#"
            secret  <object>
              Values that are delivered encrypted. Never returned by the API.

            fields
              apiVersion*  choice  Version of the operator API
              kind*        choice  Kind of the object
              metadata*    object  What every object carries
              spec         object  Values that are delivered encrypted
              status       object  What the controller knows of it; shown, never written
              * must be given

            example
              apiVersion: selvedge/v1alpha1
              kind: Secret
              metadata:
                name: shop-db
              spec:
                data:
                  password: change-me
        "#]]
        .assert_eq(&text("secret", false).unwrap());
        expect_test::expect![[r#"
            network  <object>
              apiVersion*  <choice>
              kind*  <choice>
              metadata*  <object>
                name*  <text>
                labels  <map of text>
                uid  <UUID>
                resourceVersion  <text>
                generation  <number>
                creationTimestamp  <text>
              spec  <object>
                kind  <choice>
                port  <text>
                subnet  <text>
                gateway  <IPv4 address>
                dns  <list of IPv4 address>
                hosts  <map of list of IPv4 address>
                domain  <text>
                ntp  <list of IPv4 address>
                routes  <list of text>
                mtu  <number>
                flowLog  <true or false>
              status  <object>
        "#]]
        .assert_eq(&text("network", true).unwrap());
    }

    #[test]
    fn all_kinds_are_listed_with_what_they_are() {
        let text = all_kinds().unwrap();
        assert_eq!(text.lines().count(), 1 + Kind::ALL.len());
        assert!(
            text.contains("app        apps        An app: one image that runs on every device"),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_one() {
        let said = |path: &str| text(path, false).unwrap_err().to_string();
        expect_test::expect![[r#"
            there is no kind called 'ap'; did you mean 'app'?
            kinds are device, jointoken, app, network, registry, datastore, volume, secret, baseos"#]]
        .assert_eq(&said("ap.spec"));
        expect_test::expect![[r#"
            app.spec has no field 'prots'; did you mean 'ports'?
            fields are image, registry, devices, selector, networks, ports, acl, volumes, env, secretEnv, userData, resources, isolation, activate, probe, startDelaySeconds, restartCounter, purgeCounter"#]].assert_eq(&said("app.spec.prots"));
        expect_test::expect!["app.spec.image is text and has no field 'tag'"]
            .assert_eq(&said("app.image.tag"));
    }

    #[test]
    fn examples_have_no_field_that_is_not_in_the_schema() {
        fn check(field: &Field<'_>, value: &Value) {
            match value {
                Value::Array(items) => items.iter().for_each(|item| check(field, item)),
                Value::Object(map) if !field.children().is_empty() => {
                    for (key, value) in map {
                        match field.child(key) {
                            Some(child) => check(&child, value),
                            // A map of names to objects.
                            None => {
                                assert!(
                                    matches!(field.shape(), Shape::Map(_)),
                                    "{} has no {key}",
                                    field.path
                                );
                                check(field, value);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        let document = openapi_document();
        for kind in Kind::ALL {
            check(&Field::root(&document, kind).unwrap(), &example(kind).unwrap());
        }
    }

    #[test]
    fn every_kind_has_an_example_and_every_field_a_description() {
        let document = openapi_document();
        let mut silent = Vec::new();
        for kind in Kind::ALL {
            assert!(example(kind).is_some(), "write crates/cli/src/explain/{}.yaml", kind.singular());
            let spec = Field::root(&document, kind).unwrap().child("spec").unwrap();
            let mut pending = spec.children();
            while let Some(field) = pending.pop() {
                if field.description().is_empty() {
                    silent.push(field.path.clone());
                }
                pending.extend(field.children());
            }
        }
        assert!(silent.is_empty(), "fields without a comment in controller_core::resource: {silent:?}");
    }
}
