// SPDX-License-Identifier: Apache-2.0
//! `export`: what is wanted, as documents that can be applied again. Status and what the controller enters are left out;
//! applying an export changes nothing. Of secrets only the names are there: a Secret without `spec` keeps its values.

use controller_core::resource::Kind;
use serde_json::{Value, json};

use crate::DONE;
use crate::args::Format;
use crate::client::{Client, parse_object};
use crate::output::{cell, print_json, put};
use crate::selection;

#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// KIND or KIND/NAME; left out: everything
    #[arg(value_name = "KIND[/NAME]", add = crate::completion::objects())]
    objects: Vec<String>,
    /// Only objects with these labels: key=value,key=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// yaml or json
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

/// An object as an operator writes it.
pub(crate) fn written(object: &Value) -> Value {
    let mut metadata = json!({ "name": object["metadata"]["name"] });
    if let Some(labels) = object["metadata"]["labels"].as_object().filter(|labels| !labels.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    let mut out = json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata });
    if object["kind"] != Kind::Secret.name() {
        out["spec"] = object["spec"].clone();
    }
    out
}

pub(crate) fn export(client: &Client, args: &ExportArgs) -> anyhow::Result<u8> {
    let mut objects = Vec::new();
    if args.objects.is_empty() {
        for kind in Kind::ALL {
            objects.extend(selection::list(client, kind, args.selector.as_deref())?);
        }
    }
    for word in &args.objects {
        match parse_object(std::slice::from_ref(word))? {
            (kind, None) => objects.extend(selection::list(client, kind, args.selector.as_deref())?),
            (kind, Some(name)) => objects.push(client.get(&format!("{}/{name}", kind.plural()))?),
        }
    }
    let secrets = objects.iter().filter(|object| object["kind"] == Kind::Secret.name()).count();
    if secrets > 0 {
        eprintln!("values of secrets are not exported ({secrets}): where they are missing, write spec.data");
    }
    match args.output {
        Format::Json => {
            let items: Vec<Value> = objects.iter().map(written).collect();
            print_json(&json!(items))?;
        }
        Format::Name => {
            let name =
                |o: &Value| format!("{}/{}\n", cell(o, "/kind").to_lowercase(), cell(o, "/metadata/name"));
            put(&objects.iter().map(name).collect::<String>())?;
        }
        Format::Yaml | Format::Table | Format::Wide => put(&yaml(&objects)?)?,
    }
    Ok(DONE)
}

fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let mut out = String::new();
    for object in objects {
        out.push_str("---\n");
        if object["kind"] == Kind::Secret.name() {
            let keys = cell(object, "/status/keys");
            out.push_str(&format!(
                "# keys: {keys}\n# values are not exported; without spec they stay as they are\n"
            ));
        }
        out.push_str(serde_saphyr::to_string(&written(object))?.trim_end());
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_what_an_operator_writes() {
        let app = json!({
            "apiVersion": "selvedge/v1alpha1", "kind": "App",
            "metadata": { "name": "shop", "labels": { "site": "no" }, "uid": "u", "resourceVersion": "3", "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "image": "shop:1", "env": { "A": "yes", "PORT": "80", "MULTI": "a\nb\n" }, "ports": ["8080:80"] },
            "status": { "running": 0 },
        });
        let secret = json!({
            "apiVersion": "selvedge/v1alpha1", "kind": "Secret", "metadata": { "name": "db", "uid": "u" },
            "spec": {}, "status": { "keys": ["password", "user"] },
        });
        let text = yaml(&[app.clone(), secret]).unwrap();
        expect_test::expect![[r#"
            ---
            apiVersion: selvedge/v1alpha1
            kind: App
            metadata:
              name: shop
              labels:
                site: "no"
            spec:
              image: shop:1
              env:
                A: "yes"
                PORT: "80"
                MULTI: |
                  a
                  b
              ports:
              - 8080:80
            ---
            # keys: password,user
            # values are not exported; without spec they stay as they are
            apiVersion: selvedge/v1alpha1
            kind: Secret
            metadata:
              name: db
        "#]]
        .assert_eq(&text);
        let back: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        assert_eq!(back[0], written(&app), "texts that look like numbers or truth stay texts");
    }
}
