// SPDX-License-Identifier: Apache-2.0
//! From the operator's command to the config at the device: our node, and devices that poll as stock EVE does.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tests::command::root;
use tests::lab::Lab;
use tests::progress::step;

use super::node::{NodeLog, TimeOfDay};
use super::{Bench, Bound, Figure, Kind, median, percentile};

pub(super) const NODE: &str = "push-node";
pub(super) const ECHO: &str = "push-echo";
pub(super) const EVE: &str = "push-eve";

const CHANGES: usize = 200;
/// One change of so many is followed to its echo at the controller.
const ECHO_EVERY: usize = 10;
const DEVICES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent says when a config has been verified, saved and published.
const IN_FORCE: &str = " in force: ";

pub(super) fn measure_node(lab: &mut Lab) -> anyhow::Result<Vec<Figure>> {
    step(format_args!("measuring {CHANGES} changes"));
    let mut device = device(lab)?;
    let mut log = NodeLog::follow(lab.node.process().log_path())?;
    let (mut sent, mut acknowledged, mut echoes) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let marker = format!("bench-{change}");
        device["spec"]["properties"]["test.marker"] = marker.as_str().into();
        let start = TimeOfDay::now();
        lab.controller.apply("device.yaml", &device.to_string())?;
        let end = TimeOfDay::now();
        let seen = log.until(IN_FORCE, PATIENCE)?;
        let seen = seen.last().context("a line was waited for")?.at;
        sent.push(seen.since_ms(start));
        acknowledged.push(seen.since_ms(end));
        if change % ECHO_EVERY == 0 {
            echoes.push(echo_s(lab, &device, &marker, start)?);
        }
    }
    let figures = vec![
        Figure {
            name: NODE,
            value: percentile(&sent, 0.99) / 1_000.0,
            unit: "s",
            bound: Bound::AtMost(1.0),
            kind: Kind::Gate,
            how: format!(
                "p99 of {CHANGES}, start of the apply command to config verified, saved and in force on the node (p50 {:.3} s; from its acknowledgement p50 {:.3} s, p99 {:.3} s)",
                median(&sent) / 1_000.0,
                median(&acknowledged) / 1_000.0,
                percentile(&acknowledged, 0.99) / 1_000.0
            ),
        },
        Figure {
            name: ECHO,
            value: median(&echoes),
            unit: "s",
            bound: Bound::AtMost(1.0),
            kind: Kind::Goal,
            how: format!(
                "p50 of {}, start of the apply command to the device's echo in get --info (worst {:.3} s)",
                echoes.len(),
                percentile(&echoes, 1.0)
            ),
        },
    ];
    Ok(figures)
}

/// The laboratory's device, as it can be applied.
fn device(lab: &Lab) -> anyhow::Result<serde_json::Value> {
    let name = lab.controller.cli(&["get", "devices", "-o", "name"])?;
    let name = name.lines().next().context("there is a device")?.rsplit('/').next().unwrap_or_default();
    let text = lab.controller.cli(&["get", &format!("device/{name}"), "-o", "json"])?;
    let mut device: serde_json::Value = serde_json::from_str(&text)?;
    let object = device.as_object_mut().context("a device is an object")?;
    object.remove("status");
    if let Some(metadata) = object.get_mut("metadata").and_then(|metadata| metadata.as_object_mut()) {
        metadata.remove("resourceVersion");
    }
    Ok(device)
}

fn echo_s(lab: &Lab, device: &serde_json::Value, marker: &str, start: TimeOfDay) -> anyhow::Result<f64> {
    let name = device["metadata"]["name"].as_str().context("a device has a name")?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let info = lab.controller.cli(&["get", &format!("device/{name}"), "--info"])?;
        if info.contains(marker) {
            return Ok(TimeOfDay::now().since_ms(start) / 1_000.0);
        }
    }
    bail!("the controller has no echo of {marker}");
}

/// The app goes to every device; stopped, its changes are the config's only.
fn app(marker: usize) -> String {
    format!(
        "apiVersion: selvedge/v1alpha1\nkind: App\nmetadata: {{name: marked}}\nspec:\n  image: hello/web:1\n  selector: {{}}\n  activate: false\n  env: {{MARKER: \"{marker}\"}}\n"
    )
}

pub(super) fn measure_eve(bench: &Bench, lab: &mut Lab) -> anyhow::Result<Figure> {
    step(format_args!("measuring changes with {DEVICES} devices that poll as stock EVE does"));
    lab.controller.apply("marked.yaml", &app(0))?;
    let mut devices = Devices::start(bench, lab)?;
    let mut times = Vec::new();
    for round in 1..=CHANGES / DEVICES {
        devices.all_ask()?;
        // The requests have arrived and are held.
        std::thread::sleep(Duration::from_millis(300));
        let start = TimeOfDay::now();
        lab.controller.apply("marked.yaml", &app(round))?;
        times.extend(devices.all_got(start)?);
    }
    Ok(Figure {
        name: EVE,
        value: percentile(&times, 0.99) / 1_000.0,
        unit: "s",
        bound: Bound::AtMost(1.0),
        kind: Kind::Gate,
        how: format!(
            "p99 of {}: {DEVICES} devices at once, each with a held request (new connection, no Prefer), start of the apply command to config verified (p50 {:.3} s); in its pause of 1.5 to 5 s EVE hears nothing",
            times.len(),
            median(&times) / 1_000.0
        ),
    })
}

enum Said {
    Asks(usize),
    Got(usize, TimeOfDay),
}

/// The played devices; they end when their standard input does.
struct Devices {
    child: Child,
    said: Receiver<Said>,
    /// Whether a device's newest word is that it asks.
    is_asking: [bool; DEVICES],
}

impl Devices {
    fn start(bench: &Bench, lab: &Lab) -> anyhow::Result<Devices> {
        let mut child = root(bench.example("device_watch"))
            .arg(lab.controller.address.to_string())
            .arg(lab.place.dir.join("config"))
            .args(["played", &DEVICES.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run device_watch")?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let said = match words[..] {
                    ["asks", device] => device.parse().ok().map(Said::Asks),
                    ["got", device, at] => device
                        .parse()
                        .ok()
                        .zip(at.parse().ok().map(TimeOfDay::of_epoch_us))
                        .map(|(device, at)| Said::Got(device, at)),
                    _ => None,
                };
                if said.is_some_and(|said| sender.send(said).is_err()) {
                    return;
                }
            }
        });
        Ok(Devices { child, said, is_asking: [false; DEVICES] })
    }

    fn next(&mut self) -> anyhow::Result<(usize, Option<TimeOfDay>)> {
        let said = self.said.recv_timeout(PATIENCE).context("device_watch is silent")?;
        let (device, got) = match said {
            Said::Asks(device) => (device, None),
            Said::Got(device, at) => (device, Some(at)),
        };
        *self.is_asking.get_mut(device).context("no such device")? = got.is_none();
        Ok((device, got))
    }

    fn all_ask(&mut self) -> anyhow::Result<()> {
        while !self.is_asking.iter().all(|is| *is) {
            self.next()?;
        }
        Ok(())
    }

    /// How long it took to each device, in milliseconds.
    fn all_got(&mut self, start: TimeOfDay) -> anyhow::Result<Vec<f64>> {
        let mut times = [None; DEVICES];
        while times.iter().any(Option::is_none) {
            if let (device, Some(at)) = self.next()? {
                times[device].get_or_insert(at.since_ms(start));
            }
        }
        Ok(times.into_iter().flatten().collect())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
