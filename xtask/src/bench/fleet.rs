// SPDX-License-Identifier: Apache-2.0
//! A fleet of 10,000 devices: how long plan and apply of an app for all of them take, and what the controller needs.

use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::command::{output, run};
use tests::lab::{Controller, Place};
use tests::progress::step;

use super::{Bench, Bound, Figure, Kind};

pub(super) const NAMES: &[&str] = &["fleet-plan", "fleet-apply", "fleet-memory", "fleet-peak"];

const DEVICES: usize = 10_000;
/// Of them connected, each with a held poll.
const CONNECTED: usize = 1_000;
/// Objects the controller takes in one change.
const BATCH: usize = 5_000;
const PORT: u16 = 18_445;
/// Of no use here: there is no namespace.
const NUMBER: u8 = 43;
/// After an apply: devices fetch, status is compared.
const SETTLE: Duration = Duration::from_secs(20);

/// Stopped by the end of its standard input.
struct Devices(Child);

impl Drop for Devices {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let place = Place::new("bench-fleet", NUMBER)?;
    place.clear()?;
    let address = format!("127.0.0.1:{PORT}");
    let mut controller = Controller::start_at(&place, address.parse()?, &[])?;
    let bundle = place.dir.join("config");
    controller.bundle(&bundle)?;
    step(format_args!("{CONNECTED} devices connect"));
    let devices = Command::new(bench.example("device_watch"))
        .args([&address, &*bundle.to_string_lossy(), "fleet", &CONNECTED.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start device_watch")?;
    let _devices = Devices(devices);
    step(format_args!("{DEVICES} devices in the intent"));
    for first in (CONNECTED..DEVICES).step_by(BATCH) {
        let mut text = String::new();
        for number in first..DEVICES.min(first + BATCH) {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "---\napiVersion: selvedge/v1alpha1\nkind: Device\nmetadata: {{ name: absent-{number} }}\nspec: {{ serial: A{number} }}\n"
            );
        }
        controller.apply("devices.yaml", &text)?;
    }
    let end = Instant::now() + Duration::from_secs(300);
    while controller.cli(&["get", "devices", "-o", "name"])?.lines().count() < DEVICES && Instant::now() < end
    {
        std::thread::sleep(Duration::from_secs(1));
    }
    let app = place.dir.join("app.yaml");
    fs::write(&app, APP)?;
    let file = app.to_string_lossy().into_owned();
    step("plan and apply");
    let (plan_s, plan) = timed(&controller, &["plan", "-f", &file, "-o", "json"])?;
    let (apply_s, _) = timed(&controller, &["apply", "-f", &file, "-o", "json"])?;
    std::thread::sleep(SETTLE);
    let status = fs::read_to_string(format!("/proc/{}/status", controller.process().pid()))?;
    let mib = |key: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no memory in status")?;
        Ok(line.split_whitespace().next().context("no number")?.parse::<f64>()? / 1024.0)
    };
    let what = format!("an app for {DEVICES} devices, {CONNECTED} of them connected");
    let figure = |name, value, unit, most, how: String| Figure {
        name,
        value,
        unit,
        bound: Bound::AtMost(most),
        kind: Kind::Goal,
        how,
    };
    let figures = vec![
        figure(
            NAMES[0],
            plan_s,
            "s",
            5.0,
            format!("{what}; the answer has {:.1} MB", plan.len() as f64 / 1e6),
        ),
        figure(NAMES[1], apply_s, "s", 10.0, format!("{what}; stored, signed and published")),
        figure(NAMES[2], mib("VmRSS:")?, "MB", 512.0, format!("resident after {what}")),
        figure(NAMES[3], mib("VmHWM:")?, "MB", 512.0, format!("highest resident during {what}")),
    ];
    Ok(figures.into_iter().filter(|figure| bench.is_wanted(figure.name)).collect())
}

fn timed(controller: &Controller, args: &[&str]) -> anyhow::Result<(f64, String)> {
    let start = Instant::now();
    let mut command = controller.command(args);
    // A plan that would do something ends with 2.
    let out = output(&mut command)?;
    let took = start.elapsed().as_secs_f64();
    if !matches!(out.status.code(), Some(0 | 2)) {
        run(&mut command)?;
    }
    Ok((took, String::from_utf8_lossy(&out.stdout).into_owned()))
}

const APP: &str = "
apiVersion: selvedge/v1alpha1
kind: Network
metadata: { name: lan }
spec: { subnet: 10.72.0.0/24 }
---
apiVersion: selvedge/v1alpha1
kind: App
metadata: { name: web }
spec:
  image: hello/web:1
  selector: {}
  networks: [{ network: lan }]
  ports: ['8080:80']
  env: { GREETING: hello }
";
