// SPDX-License-Identifier: Apache-2.0
//! `top`: what devices and apps use, from their newest metrics. On a terminal the table is drawn anew every two seconds
//! until interrupted; anywhere else it is printed once.
//!
//! CPU is processors in use: since the metrics before, where this process saw them, else since the start of the device
//! or app.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{anyhow, bail};
use controller_core::resource::Kind;
use serde_json::Value;

use crate::DONE;
use crate::args::Format;
use crate::client::{Client, parse_object};
use crate::output::{cell, print_json, print_yaml, put, size, table};
use crate::selection;

const REFRESH: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct TopArgs {
    /// device or app, or one of them: device/NAME shows the apps on it
    #[arg(default_value = "device", value_name = "KIND[/NAME]", add = crate::completion::objects())]
    object: String,
    /// Only devices with these labels: key=value,key=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Print once, also on a terminal
    #[arg(long)]
    once: bool,
    /// Form of the output; json is the answer of the controller
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) fn top(client: &Client, args: &TopArgs) -> anyhow::Result<u8> {
    let (kind, name) = parse_object(std::slice::from_ref(&args.object))?;
    if !matches!(kind, Kind::Device | Kind::App) {
        bail!("{} use nothing; ask for: top device, top app, top device/NAME or top app/NAME", kind.plural());
    }
    let query = selection::query(args.selector.as_deref())?;
    let mark = if query.is_empty() { "" } else { "?" };
    let is_live =
        !args.once && std::io::stdout().is_terminal() && matches!(args.output, Format::Table | Format::Wide);
    let mut before = Samples::default();
    loop {
        let answer = client.get(&format!("top{mark}{query}"))?;
        let text = match args.output {
            Format::Json => return print_json(&answer).map(|()| DONE),
            Format::Yaml => return print_yaml(&answer).map(|()| DONE),
            Format::Name => names(&answer),
            Format::Table | Format::Wide => page(&answer, kind, name.as_deref(), &before)?,
        };
        before.take(&answer);
        if !is_live {
            put(&text)?;
            return Ok(DONE);
        }
        // Home, the text, and away with what was below.
        put(&format!("\x1b[H\x1b[2J{text}"))?;
        sleep(REFRESH);
    }
}

fn items(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["items"].as_array().into_iter().flatten()
}

fn names(answer: &Value) -> String {
    items(answer).map(|item| format!("device/{}\n", cell(item, "/device"))).collect()
}

/// CPU time and traffic of a device, or of an app on a device, at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample {
    at_ms: i64,
    cpu_ns: u64,
}

/// The samples before the newest ones, which stay until a device sends metrics again.
#[derive(Debug, Default)]
struct Samples {
    newest: BTreeMap<(String, String), Sample>,
    before: BTreeMap<(String, String), Sample>,
}

impl Samples {
    fn take(&mut self, answer: &Value) {
        for item in items(answer) {
            let at_ms = item["atMs"].as_i64().unwrap_or(0);
            let apps = item["apps"].as_array().into_iter().flatten();
            for (name, value) in apps.map(|app| (cell(app, "/name"), app)).chain([(String::new(), item)]) {
                let sample = Sample { at_ms, cpu_ns: value["cpuNs"].as_u64().unwrap_or(0) };
                let key = (cell(item, "/device"), name);
                let old = self.newest.insert(key.clone(), sample);
                if let Some(old) = old.filter(|old| old.at_ms < sample.at_ms) {
                    self.before.insert(key, old);
                }
            }
        }
    }

    /// Processors in use, with two digits.
    fn cpus(&self, device: &str, app: &str, at_ms: i64, value: &Value) -> String {
        let cpu_ns = value["cpuNs"].as_u64().unwrap_or(0);
        let key = (device.to_owned(), app.to_owned());
        let candidates = [self.newest.get(&key), self.before.get(&key)].into_iter().flatten();
        let old =
            candidates.filter(|old| old.at_ms < at_ms && old.cpu_ns <= cpu_ns).max_by_key(|old| old.at_ms);
        let (ns, ms) = match (old, value["upS"].as_i64()) {
            (Some(old), _) => (cpu_ns - old.cpu_ns, at_ms - old.at_ms),
            (None, Some(up_s)) if up_s > 0 => (cpu_ns, up_s * 1000),
            _ => return "-".into(),
        };
        format!("{:.2}", ns as f64 / 1e6 / ms as f64)
    }
}

fn share(value: &Value, used: &str, total: &str) -> String {
    match (value[used].as_u64(), value[total].as_u64().filter(|total| *total > 0)) {
        (Some(used), Some(total)) => {
            format!("{} ({:.0} %)", size(used), used as f64 * 100.0 / total as f64)
        }
        (Some(used), None) => size(used),
        _ => "-".into(),
    }
}

fn bytes(value: &Value, key: &str) -> String {
    value[key].as_u64().map_or_else(|| "-".into(), size)
}

fn up(value: &Value) -> String {
    let Some(seconds) = value["upS"].as_i64() else { return "-".into() };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn page(answer: &Value, kind: Kind, name: Option<&str>, samples: &Samples) -> anyhow::Result<String> {
    let is_apps = kind == Kind::App || name.is_some();
    let mut rows = Vec::new();
    for item in items(answer) {
        let device = cell(item, "/device");
        let at_ms = item["atMs"].as_i64().unwrap_or(0);
        if !is_apps {
            rows.push(vec![
                device.clone(),
                samples.cpus(&device, "", at_ms, item),
                share(item, "memoryUsedBytes", "memoryTotalBytes"),
                share(item, "diskUsedBytes", "diskTotalBytes"),
                bytes(item, "rxBytes"),
                bytes(item, "txBytes"),
                item["apps"].as_array().map_or(0, Vec::len).to_string(),
                up(item),
            ]);
            continue;
        }
        for app in item["apps"].as_array().into_iter().flatten() {
            let app_name = cell(app, "/name");
            let wanted = if kind == Kind::App { &app_name } else { &device };
            if name.is_some_and(|name| name != wanted) {
                continue;
            }
            rows.push(vec![
                app_name.clone(),
                device.clone(),
                samples.cpus(&device, &app_name, at_ms, app),
                share(app, "memoryUsedBytes", "memoryLimitBytes"),
                bytes(app, "rxBytes"),
                bytes(app, "txBytes"),
                up(app),
            ]);
        }
    }
    if rows.is_empty() {
        return match name {
            Some(name) => Err(anyhow!(
                "no metrics of {0}/{name} yet; a device sends them about once a minute: selvedge get {0}/{name}",
                kind.singular()
            )),
            None => Ok("no metrics yet; a device sends them about once a minute\n".into()),
        };
    }
    Ok(if is_apps {
        rows.sort();
        table(&["APP", "DEVICE", "CPU", "MEMORY", "RECEIVED", "SENT", "UP"], &rows)
    } else {
        table(&["DEVICE", "CPU", "MEMORY", "DISK", "RECEIVED", "SENT", "APPS", "UP"], &rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(at_ms: i64, cpu_ns: u64) -> Value {
        json!({ "items": [{ "device": "berlin-07", "atMs": at_ms, "cpuNs": cpu_ns, "upS": 7200,
            "memoryUsedBytes": 268_435_456_u64, "memoryTotalBytes": 1_073_741_824_u64,
            "diskUsedBytes": null, "diskTotalBytes": null, "rxBytes": 5_000_000, "txBytes": 70_000,
            "apps": [
                { "name": "shop", "cpuNs": 3_600_000_000_000_u64, "upS": 3600, "memoryUsedBytes": 33_554_432,
                    "memoryLimitBytes": 134_217_728, "rxBytes": 1000, "txBytes": 0 },
                { "name": "ads", "cpuNs": 0, "upS": null, "memoryUsedBytes": 0, "memoryLimitBytes": 0, "rxBytes": 0, "txBytes": 0 },
            ] }] })
    }

    #[test]
    fn devices_and_apps_have_a_line_each() {
        let none = Samples::default();
        let answer = answer(10_000, 720_000_000_000);
        expect_test::expect![[r#"
            DEVICE     CPU   MEMORY          DISK  RECEIVED  SENT    APPS  UP
            berlin-07  0.10  256 MiB (25 %)  -     4.8 MiB   68 KiB  2     2h
        "#]]
        .assert_eq(&page(&answer, Kind::Device, None, &none).unwrap());
        expect_test::expect![[r#"
            APP   DEVICE     CPU   MEMORY         RECEIVED  SENT  UP
            ads   berlin-07  -     0 B            0 B       0 B   -
            shop  berlin-07  1.00  32 MiB (25 %)  1000 B    0 B   1h
        "#]]
        .assert_eq(&page(&answer, Kind::App, None, &none).unwrap());
        assert!(page(&answer, Kind::Device, Some("paris"), &none).is_err());
    }

    #[test]
    fn processors_are_those_since_the_metrics_before() {
        let mut samples = Samples::default();
        samples.take(&answer(10_000, 1_000_000_000));
        let newer = answer(20_000, 6_000_000_000);
        let line = |samples: &Samples| page(&newer, Kind::Device, None, samples).unwrap();
        assert!(line(&samples).contains(" 0.50 "), "{}", line(&samples));
        // The same metrics looked at again show the same.
        samples.take(&newer);
        assert!(line(&samples).contains(" 0.50 "), "{}", line(&samples));
    }
}
