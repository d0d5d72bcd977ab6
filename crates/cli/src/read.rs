// SPDX-License-Identifier: Apache-2.0
//! `get`, `describe`, `events`, `logs`, `wait`.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use controller_core::resource::Kind;
use serde_json::Value;

use crate::advice::Advice;
use crate::args::{DescribeArgs, EventsArgs, Format, GetArgs, LogsArgs, WaitArgs};
use crate::client::{ApiError, Client, parse_named, parse_object};
use crate::output::{cell, line, print_json, print_yaml, put, table, widths};
use crate::watch::{Told, follow};
use crate::{DIFFERENT, DONE, selection};

/// Between two looks while waiting or following.
const PAUSE: Duration = Duration::from_millis(300);

pub(crate) fn get(client: &Client, args: &GetArgs) -> anyhow::Result<u8> {
    let (kind, name) = parse_object(&args.object)?;
    let reports =
        [("history", args.history), ("info", args.info), ("metrics", args.metrics), ("config", args.config)];
    if let Some((report, _)) = reports.iter().find(|(_, wanted)| *wanted) {
        let (Kind::Device, Some(name)) = (kind, &name) else {
            return Err(anyhow!("--{report} wants a device: get device/NAME --{report}"));
        };
        print_json(&client.get(&format!("devices/{name}/{report}"))?)?;
        return Ok(DONE);
    }
    if args.flows {
        let (Kind::App, Some(name)) = (kind, &name) else {
            return Err(anyhow!("--flows wants an app: get app/NAME --flows"));
        };
        print_json(&client.get(&format!("apps/{name}/flows"))?)?;
        return Ok(DONE);
    }
    if name.is_some() && args.selector.is_some() {
        return Err(anyhow!("give either a name or -l, not both"));
    }
    let query = selection::query(args.selector.as_deref())?;
    if args.watch {
        if let Some(name) = &name {
            // A mistyped name would be waited for in vain.
            client.get(&format!("{}/{name}", kind.plural()))?;
        }
        let path = match &name {
            Some(name) => format!("{}/{name}", kind.plural()),
            None if query.is_empty() => kind.plural().to_owned(),
            None => format!("{}?{query}", kind.plural()),
        };
        return watch_objects(client, kind, &path, args.output);
    }
    let (items, whole) = match &name {
        Some(name) => {
            let one = client.get(&format!("{}/{name}", kind.plural()))?;
            (vec![one.clone()], one)
        }
        None => {
            let mark = if query.is_empty() { "" } else { "?" };
            let list = client.get(&format!("{}{mark}{query}", kind.plural()))?;
            (list["items"].as_array().cloned().unwrap_or_default(), list)
        }
    };
    match args.output {
        Format::Json => print_json(&whole)?,
        Format::Yaml => print_yaml(&whole)?,
        Format::Name => {
            put(&items
                .iter()
                .map(|i| format!("{}/{}\n", kind.singular(), cell(i, "/metadata/name")))
                .collect::<String>())?;
        }
        Format::Table | Format::Wide => {
            if items.is_empty() {
                eprintln!("no {}", kind.plural());
            } else {
                put(&objects_table(kind, &items, args.output == Format::Wide))?;
            }
        }
    }
    Ok(DONE)
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == name)
}

fn condition_text(object: &Value, name: &str) -> String {
    condition(object, name).map_or_else(String::new, |c| match c["status"].as_str() {
        Some("True") => "yes".into(),
        _ => format!("no ({})", c["reason"].as_str().unwrap_or_default()),
    })
}

/// Columns by kind: title, and a path or the name of a condition; the last ones only when wide.
fn columns(kind: Kind) -> (&'static [(&'static str, &'static str)], usize) {
    match kind {
        Kind::Device => (
            &[
                ("NAME", "/metadata/name"),
                ("CONNECTED", "Connected"),
                ("ATTESTED", "Attested"),
                ("CONFIG", "ConfigApplied"),
                ("LAST SEEN", "/status/lastSeen"),
                ("SERIAL", "/status/serial"),
                ("ID", "/status/id"),
                ("ADDRESSES", "/status/reported/addresses"),
                ("LABELS", "/metadata/labels"),
            ],
            5,
        ),
        Kind::App => (
            &[
                ("NAME", "/metadata/name"),
                ("READY", "Ready"),
                ("RUNNING", "/status/running"),
                ("DEVICES", "/status/total"),
                ("IMAGE", "/spec/image"),
                ("PORTS", "/spec/ports"),
                ("LABELS", "/metadata/labels"),
            ],
            5,
        ),
        Kind::JoinToken => (
            &[
                ("NAME", "/metadata/name"),
                ("DEVICES", "/status/devices"),
                ("ATTESTATION", "/status/attestationPolicy"),
                ("SERIALS", "/spec/serials"),
                ("SOFT SERIALS", "/spec/softSerials"),
            ],
            3,
        ),
        Kind::Network => (
            &[
                ("NAME", "/metadata/name"),
                ("KIND", "/spec/kind"),
                ("SUBNET", "/spec/subnet"),
                ("PORT", "/spec/port"),
            ],
            3,
        ),
        Kind::Registry => (
            &[
                ("NAME", "/metadata/name"),
                ("URL", "/spec/url"),
                ("CREDENTIALS", "/spec/credentials"),
                ("MIRROR", "/spec/mirror/quota"),
            ],
            4,
        ),
        Kind::Datastore => {
            (&[("NAME", "/metadata/name"), ("URL", "/spec/url"), ("CREDENTIALS", "/spec/credentials")], 3)
        }
        Kind::Volume => (
            &[
                ("NAME", "/metadata/name"),
                ("SIZE", "/spec/size"),
                ("READ ONLY", "/spec/readOnly"),
                ("DEVICES", "/status/total"),
                ("FILE", "/spec/file/path"),
                ("IMAGE", "/spec/image/reference"),
            ],
            4,
        ),
        Kind::BaseOs => (
            &[
                ("NAME", "/metadata/name"),
                ("READY", "Ready"),
                ("VERSION", "/spec/version"),
                ("RUNNING", "/status/running"),
                ("DEVICES", "/status/total"),
                ("FILE", "/spec/file/path"),
                ("IMAGE", "/spec/image/reference"),
            ],
            5,
        ),
        Kind::Secret => (&[("NAME", "/metadata/name"), ("KEYS", "/status/keys")], 2),
    }
}

/// Heads and rows of a table of objects.
fn rows(kind: Kind, items: &[Value], is_wide: bool) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let (all, narrow) = columns(kind);
    let columns = if is_wide { all } else { &all[..narrow.min(all.len())] };
    let rows = items
        .iter()
        .map(|item| {
            let text = |path: &str| {
                if path.starts_with('/') { cell(item, path) } else { condition_text(item, path) }
            };
            columns.iter().map(|(_, path)| text(path)).collect()
        })
        .collect();
    (columns.iter().map(|(title, _)| *title).collect(), rows)
}

fn objects_table(kind: Kind, items: &[Value], is_wide: bool) -> String {
    let (head, rows) = rows(kind, items, is_wide);
    table(&head, &rows)
}

/// What is there, then every change as it comes, until interrupted.
fn watch_objects(client: &Client, kind: Kind, path: &str, format: Format) -> anyhow::Result<u8> {
    let is_wide = format == Format::Wide;
    // What is there at the start is one table; what comes later is as wide as that.
    let mut first: Option<Vec<Value>> = Some(Vec::new());
    let mut columns: Vec<usize> = Vec::new();
    let mut last: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    follow(client, path, |told| {
        match format {
            Format::Json | Format::Yaml => print_told(&told, format)?,
            Format::Name => {
                if let Told::Object(object) = &told {
                    put(&format!("{}/{}\n", kind.singular(), cell(object, "/metadata/name")))?;
                }
            }
            Format::Table | Format::Wide => match (told, &mut first) {
                (Told::Object(object), Some(items)) => items.push(object),
                (Told::UpToDate, Some(items)) => {
                    let (head, rows) = rows(kind, items, is_wide);
                    columns = widths(&head, &rows);
                    put(&table(&head, &rows))?;
                    last =
                        rows.into_iter().map(|row| (row.first().cloned().unwrap_or_default(), row)).collect();
                    first = None;
                }
                (Told::Object(object), None) => {
                    let row = rows(kind, &[object], is_wide).1.pop().unwrap_or_default();
                    let name = row.first().cloned().unwrap_or_default();
                    // Changes of what the table does not show are no news.
                    if last.get(&name) != Some(&row) {
                        put(&line(row.iter().map(String::as_str), &columns))?;
                        last.insert(name, row);
                    }
                }
                (Told::Deleted(object), _) => {
                    let name = cell(&object, "/metadata/name");
                    last.remove(&name);
                    put(&line([name.as_str(), "(deleted)"].into_iter(), &columns))?;
                }
                (Told::UpToDate, None) => {}
            },
        }
        Ok(true)
    })?;
    Ok(DONE)
}

/// One document per change.
fn print_told(told: &Told, format: Format) -> anyhow::Result<()> {
    let (kind, object) = match told {
        Told::Object(object) => ("CHANGED", object),
        Told::Deleted(object) => ("DELETED", object),
        Told::UpToDate => return Ok(()),
    };
    let document = serde_json::json!({ "type": kind, "object": object });
    match format {
        Format::Yaml => put(&format!("---\n{}\n", serde_saphyr::to_string(&document)?.trim_end())),
        _ => put(&format!("{document}\n")),
    }
}

pub(crate) fn describe(client: &Client, args: &DescribeArgs) -> anyhow::Result<u8> {
    let (kind, name) = parse_object(&args.object)?;
    let name = name.ok_or_else(|| {
        let (kind, plural) = (kind.singular(), kind.plural());
        Advice::new(format!("name the {kind}: describe {kind}/NAME"), format!("selvedge get {plural}"))
    })?;
    let object = client.get(&format!("{}/{name}", kind.plural()))?;
    let conditions: Vec<Vec<String>> = object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|c| ["/type", "/status", "/reason", "/message"].iter().map(|key| cell(c, key)).collect())
        .collect();
    let mut rest = object.clone();
    if let Some(status) = rest.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
    }
    print_yaml(&rest)?;
    if !conditions.is_empty() {
        put(&format!("\n{}", table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], &conditions)))?;
    }
    let real_name = cell(&object, "/metadata/name");
    let events = client.get(&format!("events?object={}/{real_name}", kind.singular()))?;
    let items = events["items"].as_array().cloned().unwrap_or_default();
    if !items.is_empty() {
        let last = &items[items.len().saturating_sub(10)..];
        put(&format!("\n{}", table(EVENT_HEAD, &last.iter().map(event_row).collect::<Vec<_>>())))?;
    }
    Ok(DONE)
}

const EVENT_HEAD: &[&str] = &["TIME", "OBJECT", "REASON", "MESSAGE"];

fn event_row(event: &Value) -> Vec<String> {
    vec![cell(event, "/at"), cell(event, "/object"), cell(event, "/reason"), cell(event, "/message")]
}

pub(crate) fn events(client: &Client, args: &EventsArgs) -> anyhow::Result<u8> {
    let object = args.object.as_deref().map(parse_named).transpose()?;
    if args.history {
        let Some((Kind::Device, name)) = object else {
            return Err(anyhow!("--history wants a device: events device/NAME --history"));
        };
        print_json(&client.get(&format!("devices/{name}/history"))?)?;
        return Ok(DONE);
    }
    let filter = object.map(|(kind, name)| format!("object={}/{name}", kind.singular())).unwrap_or_default();
    let mark = if filter.is_empty() { "" } else { "?" };
    let path = format!("events{mark}{filter}");
    if args.follow || args.watch {
        follow(client, &path, |told| {
            let Told::Object(event) = told else { return Ok(true) };
            put(&match args.output {
                Format::Json => format!("{event}\n"),
                Format::Yaml => format!("---\n{}\n", serde_saphyr::to_string(&event)?.trim_end()),
                Format::Name => format!("{}\n", cell(&event, "/object")),
                Format::Table | Format::Wide => format!("{}\n", event_row(&event).join("  ")),
            })?;
            Ok(true)
        })?;
        return Ok(DONE);
    }
    let list = client.get(&path)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    match args.output {
        Format::Json => print_json(&list)?,
        Format::Yaml => print_yaml(&list)?,
        Format::Name => {
            let objects: BTreeSet<String> = items.iter().map(|item| cell(item, "/object")).collect();
            put(&objects.iter().map(|object| format!("{object}\n")).collect::<String>())?;
        }
        Format::Table | Format::Wide if items.is_empty() => eprintln!("no events"),
        Format::Table | Format::Wide => {
            put(&table(EVENT_HEAD, &items.iter().map(event_row).collect::<Vec<_>>()))?;
        }
    }
    Ok(DONE)
}

pub(crate) fn logs(client: &Client, args: &LogsArgs) -> anyhow::Result<u8> {
    let object = if args.object.contains('/') { args.object.clone() } else { format!("app/{}", args.object) };
    let (kind, name) = parse_named(&object)?;
    if !matches!(kind, Kind::App | Kind::Device) {
        return Err(anyhow!("logs are of app/NAME or device/NAME"));
    }
    let device = args.device.as_ref().map(|device| format!("&device={device}")).unwrap_or_default();
    // Numbers rise per device, so what was shown is remembered per device.
    let mut seen: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    loop {
        // With one device the controller can leave out what was shown.
        let from = match (seen.len(), seen.values().next()) {
            (0, _) => format!("tail={}", args.tail),
            (1, Some(last)) if kind == Kind::Device || args.device.is_some() => format!("after={last}"),
            _ => String::new(),
        };
        let list = client.get(&format!("{}/{name}/logs?{from}{device}", kind.plural()))?;
        for line in list["items"].as_array().into_iter().flatten() {
            let device = cell(line, "/device");
            let number = line["sequence"].as_u64().unwrap_or(0);
            let last = seen.entry(device).or_default();
            if number <= *last {
                continue;
            }
            *last = number;
            put(&log_line(line, args.output))?;
        }
        if !args.follow {
            return Ok(DONE);
        }
        sleep(PAUSE);
    }
}

fn log_line(line: &Value, format: Format) -> String {
    match format {
        Format::Json | Format::Yaml => format!("{line}\n"),
        Format::Wide => format!(
            "{}  {}  {}  {}  {}\n",
            cell(line, "/timestamp/seconds"),
            cell(line, "/device"),
            cell(line, "/source"),
            cell(line, "/severity"),
            cell(line, "/content").trim_end()
        ),
        Format::Table | Format::Name => format!("{}\n", cell(line, "/content").trim_end()),
    }
}

pub(crate) fn wait(client: &Client, args: &WaitArgs) -> anyhow::Result<u8> {
    let end = Instant::now() + args.timeout;
    let targets = match &args.selector {
        None => vec![parse_named(&args.object)?],
        Some(_) => selection::names(client, std::slice::from_ref(&args.object), args.selector.as_deref())?,
    };
    for (kind, name) in targets {
        if !wait_for(client, kind, &name, args, end)? {
            return Ok(DIFFERENT);
        }
    }
    Ok(DONE)
}

fn wait_for(client: &Client, kind: Kind, name: &str, args: &WaitArgs, end: Instant) -> anyhow::Result<bool> {
    let wanted = args.condition.strip_prefix("condition=").unwrap_or(&args.condition);
    let (condition_name, status) = wanted.split_once('=').unwrap_or((wanted, "True"));
    let object = format!("{}/{name}", kind.singular());
    let mut last = String::new();
    loop {
        let (is_true, why) = match client.get(&format!("{}/{name}", kind.plural())) {
            Ok(object) => look(&object, condition_name, status)?,
            Err(error) => match error.downcast_ref::<ApiError>() {
                Some(api) if api.problem.status == 404 => (wanted == "deleted", "it does not exist".into()),
                _ => return Err(error),
            },
        };
        if is_true {
            return Ok(true);
        }
        if why != last {
            eprintln!("waiting for {object}: {why}");
            last = why;
        }
        if Instant::now() >= end {
            eprintln!("{object} is not {wanted} after {} s", args.timeout.as_secs());
            eprintln!("next:  selvedge describe {object}");
            return Ok(false);
        }
        sleep(PAUSE);
    }
}

fn look(object: &Value, name: &str, status: &str) -> anyhow::Result<(bool, String)> {
    match name {
        "exists" => return Ok((true, String::new())),
        "deleted" => return Ok((false, "it still exists".into())),
        _ => {}
    }
    let Some(found) = condition(object, name) else {
        let known: Vec<String> = object
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|c| cell(c, "/type"))
            .collect();
        // Some conditions appear later; a kind without any never gets one.
        if known.is_empty() {
            return Err(anyhow!("this kind has no conditions to wait for"));
        }
        return Ok((false, format!("no condition {name} yet (there are {})", known.join(", "))));
    };
    let why = format!(
        "{name} is {} ({}) {}",
        cell(found, "/status"),
        cell(found, "/reason"),
        cell(found, "/message")
    );
    Ok((found["status"] == status, why))
}
