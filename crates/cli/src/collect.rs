// SPDX-License-Identifier: Apache-2.0
//! `collect`: a support bundle of one device, as a tar file.
//!
//! What the controller knows of it comes through the operator API, which gives no secret; of a node's own disk, when its
//! persist directory is given, only the services' flight records are taken, which carry secrets as sealed handles.

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use controller_core::resource::Kind;
use serde_json::{Value, json};

use crate::DONE;
use crate::client::{Client, parse_named};

/// Lines of log taken at most.
const LOG_LINES: usize = 5_000;
/// A larger file is no flight record.
const MAX_RECORD_BYTES: u64 = 8 * 1024 * 1024;
/// Services of a node, generously.
const MAX_SERVICES: usize = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct CollectArgs {
    /// device/NAME
    #[arg(value_name = "device/NAME")]
    object: String,
    /// File to write; default: NAME-support.tar
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Persist directory of the node, when it is on this machine: its flight records are added
    #[arg(long, value_name = "DIR")]
    persist: Option<PathBuf>,
}

pub(crate) fn run(client: &Client, args: &CollectArgs) -> anyhow::Result<u8> {
    let (kind, name) = parse_named(&args.object)?;
    if kind != Kind::Device {
        bail!("'{}' is no device: collect device/NAME", args.object);
    }
    let path = args.file.clone().unwrap_or_else(|| format!("{name}-support.tar").into());
    let entries = gather(client, &name, args.persist.as_deref())?;
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    write(file, &name, &entries).with_context(|| format!("cannot write {}", path.display()))?;
    for entry in &entries {
        eprintln!("{:>9} {}", entry.bytes.len(), entry.name);
    }
    println!("{}", path.display());
    Ok(DONE)
}

/// One file of the bundle.
struct Entry {
    name: String,
    bytes: Vec<u8>,
}

fn gather(client: &Client, device: &str, persist: Option<&Path>) -> anyhow::Result<Vec<Entry>> {
    let object = client.get(&format!("devices/{device}"))?;
    let mut entries = vec![entry("device.json", &object)];
    let mut missing = Vec::new();
    for part in ["config", "info", "history", "metrics", "logs"] {
        let query = if part == "logs" { format!("?tail={LOG_LINES}") } else { String::new() };
        match client.get(&format!("devices/{device}/{part}{query}")) {
            Ok(value) => entries.push(entry(&format!("{part}.json"), &value)),
            Err(error) => missing.push(format!("{part}: {error:#}")),
        }
    }
    let apps = client.get("apps")?;
    let on_device: Vec<&Value> = list(&apps).iter().filter(|app| names_device(app, device)).collect();
    let app_names: Vec<&str> =
        on_device.iter().filter_map(|app| app.pointer("/metadata/name")?.as_str()).collect();
    for app in &app_names {
        match client.get(&format!("apps/{app}/logs?tail={LOG_LINES}&device={device}")) {
            Ok(value) => entries.push(entry(&format!("apps/{app}/logs.json"), &value)),
            Err(error) => missing.push(format!("logs of app/{app}: {error:#}")),
        }
    }
    entries.push(entry("apps.json", &json!(on_device)));
    let events = client.get("events")?;
    let objects: Vec<String> =
        app_names.iter().map(|app| format!("app/{app}")).chain([format!("device/{device}")]).collect();
    let of_device: Vec<&Value> = list(&events)
        .iter()
        .filter(|event| objects.iter().any(|object| event["object"] == **object))
        .collect();
    entries.push(entry("events.json", &json!(of_device)));
    if let Some(persist) = persist {
        records(persist, &mut entries)?;
    }
    let about = json!({
        "format": 1,
        "device": device,
        "madeBy": concat!("selvedge ", env!("CARGO_PKG_VERSION")),
        "missing": missing,
        "replay": "cargo xtask sim replay flight/SERVICE/flight.N",
    });
    entries.insert(0, entry("about.json", &about));
    Ok(entries)
}

fn list(value: &Value) -> &[Value] {
    value["items"].as_array().or_else(|| value.as_array()).map(Vec::as_slice).unwrap_or_default()
}

/// The app's status names the devices it is on.
fn names_device(app: &Value, device: &str) -> bool {
    let devices = app.pointer("/status/devices").and_then(Value::as_array);
    devices
        .into_iter()
        .flatten()
        .any(|one| one["name"] == device || one["device"] == device || *one == device)
}

fn entry(name: &str, value: &Value) -> Entry {
    Entry { name: name.into(), bytes: format!("{value:#}\n").into_bytes() }
}

/// The flight records below a persist directory. Nothing else is read there.
fn records(persist: &Path, entries: &mut Vec<Entry>) -> anyhow::Result<()> {
    let dirs = std::fs::read_dir(persist)
        .with_context(|| format!("cannot read {}; give the node's persist directory", persist.display()))?;
    let mut services: Vec<PathBuf> =
        dirs.flatten().map(|dir| dir.path()).filter(|path| path.is_dir()).collect();
    services.sort();
    let before = entries.len();
    for dir in services.iter().take(MAX_SERVICES) {
        let Some(service) = dir.file_name().and_then(|name| name.to_str()) else { continue };
        for number in [0, 1] {
            let path = dir.join(format!("flight.{number}"));
            let is_file = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
            if !is_file {
                continue;
            }
            let mut bytes = Vec::new();
            File::open(&path)
                .and_then(|file| file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes))
                .with_context(|| format!("cannot read {}", path.display()))?;
            entries.push(Entry { name: format!("flight/{service}/flight.{number}"), bytes });
        }
    }
    if entries.len() == before {
        bail!("no flight record below {}; give the node's persist directory", persist.display());
    }
    Ok(())
}

fn write(file: impl Write, device: &str, entries: &[Entry]) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(file);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(
            &mut header,
            format!("{device}-support/{}", entry.name),
            entry.bytes.as_slice(),
        )?;
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_services_are_taken_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for (service, file) in
            [("planner", "flight.0"), ("planner", "state"), ("vault", "key.pem"), ("run", "flight.1")]
        {
            std::fs::create_dir_all(dir.path().join(service)).unwrap();
            std::fs::write(dir.path().join(service).join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("key.pem", dir.path().join("vault/flight.0")).unwrap();
        let mut entries = Vec::new();
        records(dir.path(), &mut entries).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["flight/planner/flight.0", "flight/run/flight.1"]);
        let mut bundle = Vec::new();
        write(&mut bundle, "edge", &entries).unwrap();
        let mut archive = tar::Archive::new(bundle.as_slice());
        let paths: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(paths[1], Path::new("edge-support/flight/run/flight.1"));
    }

    #[test]
    fn a_directory_without_records_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(records(dir.path(), &mut Vec::new()).unwrap_err().to_string().contains("no flight record"));
    }
}
