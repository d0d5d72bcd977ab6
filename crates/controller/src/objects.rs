// SPDX-License-Identifier: Apache-2.0
//! Objects as they are stored and shown: JSON documents, and their typed form.
//!
//! What an operator sends must have no unknown field: the message names the field and those that are allowed. What is
//! stored keeps unknown fields, and reading it back ignores them: a newer version may have written it.

use std::collections::BTreeMap;

use controller_core::intent::Object;
use controller_core::resource::{
    API_VERSION, AppSpec, BaseOsSpec, DatastoreSpec, DeviceSpec, JoinTokenSpec, Kind, Metadata, NetworkSpec,
    RegistrySpec, SecretSpec, Spec, VolumeSpec,
};
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Version of the stored form.
const FORMAT: u32 = 1;
/// Depth to which documents are looked into.
const MAX_DEPTH: usize = 32;

/// An object as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    format: u32,
    api_version: String,
    kind: Kind,
    pub name: String,
    pub uid: Uuid,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub generation: u64,
    pub creation_timestamp: String,
    pub spec: Value,
    /// Of the store; not part of the stored bytes.
    #[serde(skip)]
    pub revision: u64,
}

/// An object as an operator sent it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub kind: Kind,
    pub metadata: Metadata,
    pub spec: Value,
    /// A Secret without `spec` keeps the values it has: exports and changes of labels do not know them.
    pub keeps_spec: bool,
}

/// Why a document is refused. The path is that of the field, e.g. `spec.ports[0]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct DocumentError {
    pub path: String,
    pub message: String,
}

fn wrong(path: impl Into<String>, message: impl Into<String>) -> DocumentError {
    DocumentError { path: path.into(), message: message.into() }
}

impl Stored {
    pub fn new(sent: &Sent, uid: Uuid, now: String) -> Stored {
        Stored {
            format: FORMAT,
            api_version: API_VERSION.into(),
            kind: sent.kind,
            name: sent.metadata.name.clone(),
            uid,
            labels: sent.metadata.labels.clone(),
            generation: 1,
            creation_timestamp: now,
            spec: sent.spec.clone(),
            revision: 0,
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// This object with what was sent for it; `None` when nothing changes.
    pub fn updated(&self, sent: &Sent) -> Option<Stored> {
        let spec = if sent.keeps_spec { &self.spec } else { &sent.spec };
        let is_same_spec = self.spec == *spec;
        (!is_same_spec || self.labels != sent.metadata.labels).then(|| Stored {
            labels: sent.metadata.labels.clone(),
            generation: self.generation + u64::from(!is_same_spec),
            spec: spec.clone(),
            ..self.clone()
        })
    }

    /// The typed form.
    pub fn object(&self) -> Result<Object<Spec>, DocumentError> {
        Ok(Object {
            name: self.name.clone(),
            uid: self.uid,
            labels: self.labels.clone(),
            generation: self.generation,
            spec: spec(self.kind, &self.spec)?,
        })
    }

    /// The document the API shows. Values of secrets are left out.
    pub fn document(&self, status: Option<Value>) -> Value {
        let metadata = Metadata {
            name: self.name.clone(),
            labels: self.labels.clone(),
            uid: Some(self.uid),
            resource_version: Some(self.revision.to_string()),
            generation: Some(self.generation),
            creation_timestamp: Some(self.creation_timestamp.clone()),
        };
        let spec = if self.kind == Kind::Secret { json!({}) } else { self.spec.clone() };
        let mut out = json!({
            "apiVersion": self.api_version,
            "kind": self.kind.name(),
            "metadata": metadata,
            "spec": spec,
        });
        if let (Some(status), Some(map)) = (status, out.as_object_mut()) {
            map.insert("status".into(), status);
        }
        out
    }

    /// The spec as plans compare it: values of secrets are replaced by a digest that only this controller can make.
    pub fn plan_spec(&self, key: &ring::hmac::Key) -> Value {
        let mut spec = self.spec.clone();
        if self.kind == Kind::Secret
            && let Some(data) = spec.get_mut("data").and_then(Value::as_object_mut)
        {
            for value in data.values_mut() {
                let tag = ring::hmac::sign(key, value.as_str().unwrap_or_default().as_bytes());
                *value = Value::String(format!("(secret {})", hex::encode(&tag.as_ref()[..4])));
            }
        }
        spec
    }
}

fn spec(kind: Kind, value: &Value) -> Result<Spec, DocumentError> {
    fn read<T: DeserializeOwned>(value: &Value) -> Result<T, DocumentError> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = match error.path().to_string().as_str() {
                "." | "" => "spec".into(),
                path => format!("spec.{path}"),
            };
            let message = error.inner().to_string();
            // YAML takes yes, no and 80 for what they look like.
            let is_unquoted = message.ends_with("expected a string")
                && ["boolean", "integer", "floating point"].iter().any(|name| message.contains(name));
            let advice = if is_unquoted { "; put it in quotes" } else { "" };
            wrong(path, format!("{message}{advice}"))
        })
    }
    Ok(match kind {
        Kind::Device => Spec::Device(read::<DeviceSpec>(value)?),
        Kind::JoinToken => Spec::JoinToken(read::<JoinTokenSpec>(value)?),
        Kind::App => Spec::App(read::<AppSpec>(value)?),
        Kind::Network => Spec::Network(read::<NetworkSpec>(value)?),
        Kind::Registry => Spec::Registry(read::<RegistrySpec>(value)?),
        Kind::Datastore => Spec::Datastore(read::<DatastoreSpec>(value)?),
        Kind::Volume => Spec::Volume(read::<VolumeSpec>(value)?),
        Kind::Secret => Spec::Secret(read::<SecretSpec>(value)?),
        Kind::BaseOs => Spec::BaseOs(read::<BaseOsSpec>(value)?),
    })
}

/// JSON Schema of a kind's spec.
pub(crate) fn spec_schema(kind: Kind) -> Schema {
    fn of<T: JsonSchema>() -> Schema {
        schemars::generate::SchemaSettings::draft2020_12()
            .with(|settings| settings.inline_subschemas = true)
            .into_generator()
            .into_root_schema_for::<T>()
    }
    match kind {
        Kind::Device => of::<DeviceSpec>(),
        Kind::JoinToken => of::<JoinTokenSpec>(),
        Kind::App => of::<AppSpec>(),
        Kind::Network => of::<NetworkSpec>(),
        Kind::Registry => of::<RegistrySpec>(),
        Kind::Datastore => of::<DatastoreSpec>(),
        Kind::Volume => of::<VolumeSpec>(),
        Kind::Secret => of::<SecretSpec>(),
        Kind::BaseOs => of::<BaseOsSpec>(),
    }
}

/// Reads a document that an operator sent.
pub(crate) fn parse(untrusted: &Value) -> Result<Sent, DocumentError> {
    let map = untrusted
        .as_object()
        .ok_or_else(|| wrong("", "an object is wanted: apiVersion, kind, metadata, spec"))?;
    known(map, "", &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    match text("apiVersion") {
        Some(API_VERSION) => {}
        Some(other) => return Err(wrong("apiVersion", format!("'{other}' is not {API_VERSION}"))),
        None => return Err(wrong("apiVersion", format!("is missing; write {API_VERSION}"))),
    }
    let names = || Kind::ALL.map(Kind::name).join(", ");
    let kind = text("kind").ok_or_else(|| wrong("kind", format!("is missing; one of {}", names())))?;
    let kind = Kind::ALL
        .into_iter()
        .find(|k| k.name() == kind)
        .ok_or_else(|| wrong("kind", format!("'{kind}' is none of {}", names())))?;
    let metadata = map.get("metadata").ok_or_else(|| wrong("metadata", "is missing"))?;
    if let Some(map) = metadata.as_object() {
        let all = ["name", "labels", "uid", "resourceVersion", "generation", "creationTimestamp"];
        known(map, "metadata", &all)?;
    }
    let metadata: Metadata = serde_path_to_error::deserialize(metadata)
        .map_err(|e| wrong(format!("metadata.{}", e.path()), e.inner().to_string()))?;
    let keeps_spec = kind == Kind::Secret && !map.contains_key("spec");
    let sent = map.get("spec").cloned().unwrap_or_else(|| json!({}));
    if let Some(unknown) = unknown_field(spec_schema(kind).as_value(), &sent, "spec", 0) {
        return Err(unknown);
    }
    spec(kind, &sent)?;
    Ok(Sent { kind, metadata, spec: sent, keeps_spec })
}

fn known(map: &Map<String, Value>, path: &str, allowed: &[&str]) -> Result<(), DocumentError> {
    match map.keys().find(|key| !allowed.contains(&key.as_str())) {
        Some(key) => Err(unknown(path, key, allowed.iter().map(ToString::to_string).collect())),
        None => Ok(()),
    }
}

fn unknown(path: &str, key: &str, mut allowed: Vec<String>) -> DocumentError {
    allowed.sort();
    let dot = if path.is_empty() { "" } else { "." };
    wrong(format!("{path}{dot}{key}"), format!("unknown field; allowed here: {}", allowed.join(", ")))
}

/// Whether a value is meant by this choice of a schema: it has a key of it.
fn is_choice(schema: &Value, value: &Value) -> bool {
    let nested = ["anyOf", "oneOf", "allOf"].iter().filter_map(|word| schema.get(word)?.as_array()).flatten();
    match (value, schema.get("properties").and_then(Value::as_object)) {
        (Value::Object(map), Some(properties)) => map.keys().any(|key| properties.contains_key(key)),
        (Value::Object(_), None) => {
            schema.get("additionalProperties").is_some_and(Value::is_object)
                || nested.into_iter().any(|choice| is_choice(choice, value))
        }
        (_, properties) => properties.is_none(),
    }
}

/// The first field that the schema does not know.
fn unknown_field(schema: &Value, value: &Value, path: &str, depth: usize) -> Option<DocumentError> {
    if depth > MAX_DEPTH {
        return Some(wrong(path, "nested too deep"));
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        let Some(choices) = schema.get(word).and_then(Value::as_array) else { continue };
        let choice = choices.iter().find(|choice| is_choice(choice, value))?;
        return unknown_field(choice, value, path, depth + 1);
    }
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let more = schema.get("additionalProperties");
            for (key, value) in map {
                let below = format!("{path}.{key}");
                if let Some(schema) = properties.and_then(|p| p.get(key)) {
                    if let Some(error) = unknown_field(schema, value, &below, depth + 1) {
                        return Some(error);
                    }
                } else if let Some(schema) = more.filter(|schema| schema.is_object()) {
                    if let Some(error) = unknown_field(schema, value, &below, depth + 1) {
                        return Some(error);
                    }
                } else if let Some(properties) = properties {
                    return Some(unknown(path, key, properties.keys().cloned().collect()));
                }
            }
            None
        }
        Value::Array(items) => {
            let schema = schema.get("items")?;
            items
                .iter()
                .enumerate()
                .find_map(|(index, item)| unknown_field(schema, item, &format!("{path}[{index}]"), depth + 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(spec: Value) -> Value {
        json!({"apiVersion": API_VERSION, "kind": "App", "metadata": {"name": "a"}, "spec": spec})
    }

    fn refusal(document: &Value) -> String {
        parse(document).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path_and_what_is_allowed() {
        let mut lines = Vec::new();
        for spec in [
            json!({"image": "a:1", "img": "x"}),
            json!({"image": "a:1", "networks": [{"network": "n"}, {"netwrk": "n"}]}),
            json!({"image": "a:1", "resources": {"cpu": 1}}),
            json!({"image": "a:1", "userData": {"secretRef": {"name": "s", "field": "k"}}}),
            json!({"image": "a:1", "acl": [{"action": "allow", "port": 1}]}),
        ] {
            lines.push(refusal(&app(spec)));
        }
        expect_test::expect![[r#"
            [
                "spec.img: unknown field; allowed here: acl, activate, devices, env, image, isolation, networks, ports, probe, purgeCounter, registry, resources, restartCounter, secretEnv, selector, startDelaySeconds, userData, volumes",
                "spec.networks[1].netwrk: unknown field; allowed here: acl, address, mac, network",
                "spec.resources.cpu: unknown field; allowed here: cpus, disk, memory",
                "spec.userData.secretRef.field: unknown field; allowed here: key, name",
                "spec.acl[0].port: unknown field; allowed here: action, direction, limit, localPort, protocol, remote, remotePort",
            ]
        "#]]
        .assert_debug_eq(&lines);
        parse(&app(json!({"image": "a:1", "env": {"ANY": "x"}, "selector": {"any/label": "x"}}))).unwrap();
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let mut lines = Vec::new();
        for document in [
            app(json!({"image": 7})),
            app(json!({"image": "a:1", "resources": {"cpus": "two"}})),
            app(json!({})),
            json!({"kind": "App"}),
            json!({"apiVersion": API_VERSION, "kind": "Pod", "metadata": {"name": "a"}}),
            json!({"apiVersion": API_VERSION, "kind": "App"}),
            json!({"apiVersion": API_VERSION, "kind": "App", "metadata": {"nam": "a"}}),
            json!([]),
        ] {
            lines.push(refusal(&document));
        }
        expect_test::expect![[r#"
            [
                "spec.image: invalid type: integer `7`, expected a string; put it in quotes",
                "spec.resources.cpus: invalid type: string \"two\", expected u32",
                "spec: missing field `image`",
                "apiVersion: is missing; write selvedge/v1alpha1",
                "kind: 'Pod' is none of Device, JoinToken, App, Network, Registry, Datastore, Volume, Secret, BaseOS",
                "metadata: is missing",
                "metadata.nam: unknown field; allowed here: creationTimestamp, generation, labels, name, resourceVersion, uid",
                ": an object is wanted: apiVersion, kind, metadata, spec",
            ]
        "#]]
        .assert_debug_eq(&lines);
    }

    #[test]
    fn a_secret_that_is_sent_without_spec_keeps_its_values() {
        let mut document = json!({"apiVersion": API_VERSION, "kind": "Secret", "metadata": {"name": "s"},
            "spec": {"data": {"password": "hunter2"}}});
        let stored = Stored::new(&parse(&document).unwrap(), Uuid::nil(), "2026-01-01T00:00:00Z".into());
        document.as_object_mut().unwrap().remove("spec");
        assert_eq!(stored.updated(&parse(&document).unwrap()), None);
        document["metadata"]["labels"] = json!({"a": "b"});
        let labelled = stored.updated(&parse(&document).unwrap()).unwrap();
        assert_eq!((&labelled.spec, labelled.generation), (&stored.spec, 1));
        document["spec"] = json!({});
        assert_eq!(stored.updated(&parse(&document).unwrap()).unwrap().spec, json!({}));
    }

    #[test]
    fn values_of_secrets_are_never_shown() {
        let document = json!({"apiVersion": API_VERSION, "kind": "Secret", "metadata": {"name": "s"},
            "spec": {"data": {"password": "hunter2"}}});
        let stored = Stored::new(&parse(&document).unwrap(), Uuid::nil(), "2026-01-01T00:00:00Z".into());
        assert!(!stored.document(None).to_string().contains("hunter2"));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"k");
        assert!(!stored.plan_spec(&key).to_string().contains("hunter2"));
    }
}
