// SPDX-License-Identifier: Apache-2.0
//! Reading the JSON Schema of the operator API: a field, its type in a user's words, its choices and what is below it.

use anyhow::{Context as _, anyhow};
use controller_core::resource::Kind;
use serde_json::Value;

/// Type of a field in a user's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Plain(&'static str),
    List(Box<Shape>),
    Map(Box<Shape>),
}

/// A field and the schemas that describe it.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    document: &'a Value,
    schema: &'a Value,
    /// `app.spec.image`.
    pub(super) path: String,
    pub(super) name: String,
    pub(super) is_required: bool,
    pub(super) is_root: bool,
    /// Of a choice that has a value of its own: what that choice means.
    choice: Option<&'a str>,
}

impl<'a> Field<'a> {
    pub(super) fn root(document: &'a Value, kind: Kind) -> anyhow::Result<Field<'a>> {
        let schema = document.pointer(&format!("/components/schemas/{}", kind.name()));
        let schema = schema.ok_or_else(|| anyhow!("the schema of {} is missing", kind.name()));
        let schema = schema.context("this program is damaged; install it again")?;
        let name = kind.singular().to_owned();
        Ok(Field {
            document,
            schema,
            path: name.clone(),
            name,
            is_required: false,
            is_root: true,
            choice: None,
        })
    }

    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let reference = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
        reference.and_then(|pointer| self.document.pointer(pointer)).unwrap_or(schema)
    }

    /// The schema itself, or the alternatives of which one holds; "nothing" is none of them.
    fn alternatives(&self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolved(schema);
        let words = ["anyOf", "oneOf", "allOf"].into_iter();
        let Some(choices) = words.filter_map(|word| schema.get(word)?.as_array()).next() else {
            return vec![schema];
        };
        let is_nothing = |choice: &&Value| choice.get("type") == Some(&Value::from("null"));
        let choices = choices.iter().filter(|choice| !is_nothing(choice));
        choices.flat_map(|choice| self.alternatives(choice)).collect()
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape_of(self.schema, 0)
    }

    fn shape_of(&self, schema: &'a Value, depth: usize) -> Shape {
        let alternatives = self.alternatives(schema);
        let Some(first) = alternatives.first().filter(|_| depth < 8) else { return Shape::Plain("value") };
        let is_choice = |s: &&Value| s.get("enum").is_some() || s.get("const").is_some();
        let is_object = |s: &&Value| s.get("properties").is_some();
        if alternatives.iter().any(is_choice) {
            return Shape::Plain(if alternatives.iter().any(is_object) {
                "choice or object"
            } else {
                "choice"
            });
        }
        if alternatives.len() > 1 && alternatives.iter().all(is_object) {
            return Shape::Plain("object of one field");
        }
        let types = first.get("type");
        let name = match types {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).find(|name| *name != "null"),
            other => other.and_then(Value::as_str),
        };
        match name {
            Some("string") => Shape::Plain(match first.get("format").and_then(Value::as_str) {
                Some("ipv4") => "IPv4 address",
                Some("uuid") => "UUID",
                _ => "text",
            }),
            Some("integer") => Shape::Plain("number"),
            Some("number") => Shape::Plain("decimal number"),
            Some("boolean") => Shape::Plain("true or false"),
            Some("array") => {
                let of = first.get("items").map_or(Shape::Plain("value"), |s| self.shape_of(s, depth + 1));
                Shape::List(Box::new(of))
            }
            Some("object") => match first.get("additionalProperties").filter(|more| more.is_object()) {
                Some(more) => Shape::Map(Box::new(self.shape_of(more, depth + 1))),
                None => Shape::Plain("object"),
            },
            _ => Shape::Plain("value"),
        }
    }

    /// What the field is for; of one that says nothing itself, what its type is for.
    pub(super) fn description(&self) -> String {
        let of = |schema: &'a Value| schema.get("description").and_then(Value::as_str);
        let own = of(self.schema).or_else(|| of(self.resolved(self.schema)));
        let below = || self.alternatives(self.schema).into_iter().find_map(of);
        let status = "What the controller knows of it; shown, never written.";
        let known = match self.name.as_str() {
            _ if self.is_root => self.document_description(),
            "apiVersion" => Some("Version of the operator API."),
            "kind" => Some("Kind of the object."),
            "metadata" => Some("Name, labels, and what the controller enters."),
            "spec" => self.document_description(),
            "status" => Some(status),
            _ => None,
        };
        own.or_else(below).or(self.choice).or(known).unwrap_or_default().to_owned()
    }

    /// The description of the kind, which stands at its spec.
    fn document_description(&self) -> Option<&'a str> {
        let spec = self.schema.pointer("/properties/spec").unwrap_or(self.schema);
        self.resolved(spec).get("description").and_then(Value::as_str)
    }

    pub(super) fn default(&self) -> Option<String> {
        let value = self.schema.get("default").or_else(|| self.resolved(self.schema).get("default"))?;
        match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Object(map) if map.is_empty() => None,
            Value::Array(items) if items.is_empty() => None,
            other => Some(other.to_string()),
        }
    }

    /// Bounds of numbers.
    pub(super) fn limits(&self) -> Option<String> {
        let schema = *self.alternatives(self.schema).first()?;
        let bound = |word: &str| schema.get(word).map(ToString::to_string);
        let of_format = || match schema.get("format").and_then(Value::as_str)? {
            "uint8" => Some("255"),
            "uint16" => Some("65535"),
            "uint32" => Some("4294967295"),
            _ => None,
        };
        let highest = bound("maximum").or_else(|| of_format().map(str::to_owned));
        match (bound("minimum"), highest) {
            (Some(low), Some(high)) => Some(format!("{low} to {high}")),
            (Some(low), None) => Some(format!("{low} or more")),
            (None, Some(high)) => Some(format!("up to {high}")),
            (None, None) => None,
        }
    }

    /// Values of a choice, with what they mean.
    pub(super) fn choices(&self) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for schema in self.alternatives(self.schema) {
            let what = schema.get("description").and_then(Value::as_str).unwrap_or_default();
            let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
            for value in values.chain(schema.get("const")).filter_map(Value::as_str) {
                out.push((value.to_owned(), what.replace('\n', " ")));
            }
        }
        out
    }

    /// The schemas whose fields are those below: through lists and maps.
    fn holders(&self) -> Vec<&'a Value> {
        let mut out = Vec::new();
        let mut pending: Vec<(&'a Value, usize)> = vec![(self.schema, 0)];
        while let Some((schema, depth)) = pending.pop() {
            for schema in self.alternatives(schema).into_iter().filter(|_| depth < 8) {
                if schema.get("properties").is_some() {
                    out.push(schema);
                }
                let more = schema.get("additionalProperties").filter(|more| more.is_object());
                pending.extend(schema.get("items").into_iter().chain(more).map(|below| (below, depth + 1)));
            }
        }
        out
    }

    pub(super) fn children(&self) -> Vec<Field<'a>> {
        let mut out = Vec::new();
        for holder in self.holders() {
            let required: Vec<&str> = holder
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let properties = holder.get("properties").and_then(Value::as_object);
            let is_choice = properties.is_some_and(|properties| properties.len() == 1) && required.len() == 1;
            let choice = holder.get("description").and_then(Value::as_str).filter(|_| is_choice);
            for (name, schema) in properties.into_iter().flatten() {
                out.push(Field {
                    document: self.document,
                    schema,
                    path: format!("{}.{name}", self.path),
                    name: name.clone(),
                    is_required: required.contains(&name.as_str()),
                    is_root: false,
                    choice,
                });
            }
        }
        out
    }

    pub(super) fn child(&self, name: &str) -> Option<Field<'a>> {
        self.children().into_iter().find(|child| child.name == name)
    }
}
