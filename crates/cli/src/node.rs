// SPDX-License-Identifier: Apache-2.0
//! `node bundle`: the configuration directory of a node, in the form EVE reads.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::DONE;
use crate::advice::Advice;
use crate::args::{BundleArgs, NodeCommand};
use crate::client::{ApiError, Client};

pub(crate) fn run(client: &Client, command: NodeCommand) -> anyhow::Result<u8> {
    match command {
        NodeCommand::Bundle(args) => bundle(client, &args),
    }
}

fn bundle(client: &Client, args: &BundleArgs) -> anyhow::Result<u8> {
    ensure_token(client, args)?;
    let bundle = client.get(&format!("jointokens/{}/bundle", args.join_token));
    let mut files = bundle.map_err(|error| {
        let is_missing = error.downcast_ref::<ApiError>().is_some_and(|api| api.problem.status == 404);
        if !is_missing {
            return error;
        }
        let next = "make it in the same go: --serial SERIAL, or --serial '*' to let any box join";
        Advice::new(format!("jointoken/{} does not exist", args.join_token), next).into()
    })?;
    if let Some(server) = &args.node_server {
        files["server"] = json!(server);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    for (name, text) in files.as_object().context("the controller's answer is no object")? {
        // Names are those of the bundle's format; anything with a slash is not one of them.
        if !name.contains('/') {
            write(&args.out.join(name), text.as_str().unwrap_or_default())?;
        }
    }
    if let [soft_serial] = args.soft_serial.as_slice()
        && soft_serial != "*"
    {
        write(&args.out.join("soft_serial"), soft_serial)?;
    }
    eprintln!("wrote {} for jointoken/{}", args.out.display(), args.join_token);
    Ok(DONE)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the join token, or adds the serials to it, when some were given.
fn ensure_token(client: &Client, args: &BundleArgs) -> anyhow::Result<()> {
    if args.serial.is_empty() && args.soft_serial.is_empty() {
        return Ok(());
    }
    let mut token = match client.get(&format!("jointokens/{}", args.join_token)) {
        Ok(token) => token,
        Err(error) if error.downcast_ref::<ApiError>().is_some_and(|e| e.problem.status == 404) => json!({
            "apiVersion": controller_core::resource::API_VERSION,
            "kind": "JoinToken",
            "metadata": { "name": args.join_token },
            "spec": {},
        }),
        Err(other) => return Err(other),
    };
    if let Some(map) = token.as_object_mut() {
        map.remove("status");
    }
    for (key, serials) in [("serials", &args.serial), ("softSerials", &args.soft_serial)] {
        let mut all: Vec<Value> = token["spec"][key].as_array().cloned().unwrap_or_default();
        for serial in serials {
            if !all.iter().any(|known| known == serial.as_str()) {
                all.push(json!(serial));
            }
        }
        if !all.is_empty() {
            token["spec"][key] = Value::Array(all);
        }
    }
    client.post("apply", &json!({ "objects": [token] })).map(|_| ())
}
