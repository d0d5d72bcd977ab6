// SPDX-License-Identifier: Apache-2.0
//! The OpenAPI 3.1 document of the operator API, made from the types themselves.

use controller_core::resource::{API_VERSION, Kind, Metadata};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{BASE, Problem};
use crate::access::TokenRequest;
use crate::change::Plan;
use crate::objects::spec_schema;

/// The whole document.
pub fn document() -> Value {
    let mut schemas = Map::new();
    schemas.insert("Metadata".into(), schema_of::<Metadata>());
    schemas.insert("Plan".into(), schema_of::<Plan>());
    schemas.insert("Problem".into(), schema_of::<Problem>());
    schemas.insert("Change".into(), change_schema());
    schemas.insert("WatchLine".into(), watch_line_schema());
    let mut paths = Map::new();
    for kind in Kind::ALL {
        let spec = format!("{}Spec", kind.name());
        schemas.insert(spec.clone(), plain(spec_schema(kind).to_value()));
        schemas.insert(kind.name().into(), object_schema(kind, &spec));
        let base = format!("{BASE}/projects/{{project}}/{}", kind.plural());
        paths.insert(base.clone(), json!({ "get": list_operation(kind), "parameters": [project()] }));
        paths.insert(format!("{base}/{{name}}"), one_operations(kind));
    }
    schemas.insert("TokenRequest".into(), schema_of::<TokenRequest>());
    let project_path = format!("{BASE}/projects/{{project}}");
    access_paths(&project_path, &mut paths);
    for (path, what) in [("plan", "What a change would do"), ("apply", "Does a change, all of it or nothing")]
    {
        paths.insert(
            format!("{project_path}/{path}"),
            json!({ "parameters": [project()], "post": {
                "summary": what, "operationId": path,
                "requestBody": { "required": true, "content": json_of("Change") },
                "responses": answers("Plan", "200"),
            }}),
        );
    }
    paths.insert(format!("{project_path}/events"), events_operation());
    for (path, what) in [
        ("top", "What devices and apps use"),
        ("devices/{name}/history", "Every info message that is kept"),
        ("devices/{name}/info", "The newest info of each object"),
        ("devices/{name}/metrics", "The newest metrics"),
        ("devices/{name}/config", "The config as the device gets it"),
        ("devices/{name}/logs", "Log lines of the device's services"),
        ("apps/{name}/logs", "Log lines of an app"),
        ("apps/{name}/flows", "What an app talked to, and the names it looked up"),
        ("jointokens/{name}/bundle", "Files a node needs to join"),
    ] {
        let mut parameters = vec![project()];
        if path.contains("{name}") {
            parameters.push(name());
        }
        paths.insert(
            format!("{project_path}/{path}"),
            json!({ "parameters": parameters, "get": {
                "summary": what,
                "responses": { "200": { "description": "ok", "content": { "application/json": { "schema": {} } } }, "default": problem() },
            }}),
        );
    }
    paths.insert(
        format!("{project_path}/registry/gc"),
        json!({ "parameters": [project()], "post": {
            "summary": "Collects images that nobody can reach", "operationId": "collectRegistryGarbage",
            "parameters": [
                { "name": "dryRun", "in": "query", "schema": { "type": "boolean", "default": false } },
                { "name": "graceS", "in": "query", "schema": { "type": "integer", "minimum": 3600, "default": 86400 } },
            ],
            "responses": { "200": { "description": "ok", "content": { "application/json": { "schema": {} } } }, "default": problem() },
        }}),
    );
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Selvedge operator API", "version": "v1alpha1", "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// Tokens, and who did what.
fn access_paths(base: &str, paths: &mut Map<String, Value>) {
    let object = || read_answers(json!({ "type": "object" }));
    let list = || read_answers(list_schema(json!({ "type": "object" })));
    paths.insert(
        format!("{base}/tokens"),
        json!({
            "parameters": [project()],
            "get": { "summary": "All tokens, without their secrets", "operationId": "listToken", "responses": list() },
            "post": {
                "summary": "Makes a token; its secret is in this answer and nowhere else",
                "operationId": "createToken",
                "requestBody": { "required": true, "content": json_of("TokenRequest") },
                "responses": { "201": { "description": "made" }, "default": problem() },
            },
        }),
    );
    paths.insert(
        format!("{base}/tokens/{{name}}"),
        json!({ "parameters": [project(), name()], "delete": {
            "summary": "Revokes a token", "operationId": "revokeToken",
            "responses": { "204": { "description": "revoked" }, "default": problem() },
        }}),
    );
    paths.insert(
        format!("{base}/whoami"),
        json!({ "parameters": [project()], "get": {
            "summary": "Name and role of the token of this request", "operationId": "whoami", "responses": object(),
        }}),
    );
    let parameters = [project(), query("images", "boolean", "with the images of the registry")];
    paths.insert(
        format!("{base}/backup"),
        json!({ "parameters": parameters, "get": {
            "summary": "One file with everything that cannot be made anew; as secret as the data directory",
            "operationId": "backup",
            "responses": { "200": { "description": "ok", "content": { "application/x-tar": {} } }, "default": problem() },
        }}),
    );
    paths.insert(
        "/metrics".into(),
        json!({ "get": {
            "summary": "Figures of the controller and of all nodes in the text format of Prometheus",
            "operationId": "metrics",
            "responses": { "200": { "description": "ok", "content": { "text/plain": {} } }, "default": problem() },
        }}),
    );
    let mut parameters = vec![
        query("after", "integer", "only entries with a higher sequence number"),
        query("tail", "integer", "the last so many"),
        query("limit", "integer", "at most so many"),
        query("object", "string", "only what was done to this object, KIND/NAME"),
        query("who", "string", "only what this token did"),
    ];
    parameters.extend(watch_parameters());
    paths.insert(
        format!("{base}/audit"),
        json!({ "parameters": [project()], "get": {
            "summary": "Who changed what, when, by which plan, from where; and who was refused",
            "operationId": "listAuditEntry", "parameters": parameters, "responses": list(),
        }}),
    );
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    plain(SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value())
}

/// OpenAPI names the dialect once for the whole document.
fn plain(mut schema: Value) -> Value {
    if let Some(map) = schema.as_object_mut() {
        map.remove("$schema");
    }
    schema
}

fn object_schema(kind: Kind, spec: &str) -> Value {
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": { "const": API_VERSION },
            "kind": { "const": kind.name() },
            "metadata": { "$ref": "#/components/schemas/Metadata" },
            "spec": { "$ref": format!("#/components/schemas/{spec}") },
            "status": { "type": "object", "readOnly": true },
        },
        "additionalProperties": false,
    })
}

fn change_schema() -> Value {
    let objects: Vec<Value> =
        Kind::ALL.iter().map(|k| json!({ "$ref": format!("#/components/schemas/{}", k.name()) })).collect();
    json!({
        "type": "object",
        "properties": {
            "objects": { "type": "array", "items": { "oneOf": objects } },
            "delete": { "type": "array", "items": { "type": "string", "description": "KIND/NAME" } },
            "plan": { "type": "string", "description": "hash of the plan that may be carried out" },
        },
        "additionalProperties": false,
    })
}

fn json_of(schema: &str) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
}

fn problem() -> Value {
    json!({ "description": "a problem (RFC 9457)", "content": {
        "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } })
}

fn answers(schema: &str, code: &str) -> Value {
    json!({ code: { "description": "ok", "content": json_of(schema) }, "default": problem() })
}

fn project() -> Value {
    json!({ "name": "project", "in": "path", "required": true, "schema": { "type": "string", "default": "default" } })
}

fn name() -> Value {
    json!({ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } })
}

fn watch_line_schema() -> Value {
    json!({
        "type": "object",
        "description": "One line of a watch. ADDED, MODIFIED, DELETED (of an object: metadata only), BOOKMARK (everything up to \
            this version was said), ERROR (the object is a Problem; the watch ends).",
        "required": ["type", "object"],
        "properties": {
            "type": { "enum": ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"] },
            "object": { "type": "object" },
            "resourceVersion": { "type": "string", "description": "where a later watch goes on" },
        },
    })
}

fn query(name: &str, schema: &str, description: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": { "type": schema }, "description": description })
}

fn watch_parameters() -> [Value; 2] {
    [
        query("watch", "boolean", "changes as they come, one JSON document a line, instead of what is there"),
        query(
            "resourceVersion",
            "string",
            "of a watch: where it goes on; left out: what is there comes first. 410 when it is too old: list again",
        ),
    ]
}

/// What is there, or a watch.
fn read_answers(schema: Value) -> Value {
    json!({
        "200": { "description": "ok", "content": {
            "application/json": { "schema": schema },
            "application/jsonl": { "schema": { "$ref": "#/components/schemas/WatchLine" } },
        } },
        "default": problem(),
    })
}

fn list_schema(item: Value) -> Value {
    json!({
        "type": "object",
        "properties": {
            "metadata": { "type": "object", "properties": { "resourceVersion": { "type": "string" } } },
            "items": { "type": "array", "items": item },
        },
    })
}

fn events_operation() -> Value {
    let mut parameters = vec![
        query("object", "string", "only of this object, KIND/NAME"),
        query("after", "integer", "only with a higher sequence number"),
    ];
    parameters.extend(watch_parameters());
    json!({ "parameters": [project()], "get": {
        "summary": "What happened",
        "operationId": "listEvent",
        "parameters": parameters,
        "responses": read_answers(list_schema(json!({ "type": "object" }))),
    }})
}

fn list_operation(kind: Kind) -> Value {
    let mut parameters = vec![query("labelSelector", "string", "key=value,key=value")];
    parameters.extend(watch_parameters());
    json!({
        "operationId": format!("list{}", kind.name()),
        "parameters": parameters,
        "responses": read_answers(list_schema(json!({ "$ref": format!("#/components/schemas/{}", kind.name()) }))),
    })
}

fn one_operations(kind: Kind) -> Value {
    let version = json!({ "name": "If-Match", "in": "header", "schema": { "type": "string" },
        "description": "resourceVersion the object must have" });
    json!({
        "parameters": [project(), name()],
        "get": { "operationId": format!("get{}", kind.name()), "parameters": watch_parameters(),
            "responses": read_answers(json!({ "$ref": format!("#/components/schemas/{}", kind.name()) })) },
        "put": { "operationId": format!("put{}", kind.name()), "parameters": [version.clone()],
            "requestBody": { "required": true, "content": json_of(kind.name()) },
            "responses": answers(kind.name(), "200") },
        "delete": { "operationId": format!("delete{}", kind.name()), "parameters": [version],
            "responses": answers("Plan", "200") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_paths_and_every_reference_resolves() {
        let document = document();
        for kind in Kind::ALL {
            let path = format!("{BASE}/projects/{{project}}/{}/{{name}}", kind.plural());
            assert!(document["paths"][&path]["put"].is_object(), "{path}");
        }
        let text = document.to_string();
        for reference in text.split("\"#/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(&format!("/{reference}")).is_some(), "{reference}");
        }
    }
}
