// SPDX-License-Identifier: Apache-2.0
//! Requests of the device API per second of the controller's processor time: signed, over TLS.

use std::path::Path;

use anyhow::{Context as _, bail};
use tests::command::{output, root};
use tests::lab::{Controller, Place};
use tests::progress::step;

use super::{Bench, Bound, Figure, Kind, median};

pub(super) const NAMES: &[&str] = &["api-new", "api-resumed", "api-kept"];

/// By name: how the load generator calls it, and what is asked.
const FIGURES: [(&str, &str, f64); 3] = [
    (NAMES[0], "new connections, full handshake", 1_500.0),
    (NAMES[1], "new connections, resumed", 1_500.0),
    (NAMES[2], "kept connections", 4_000.0),
];

const ROUNDS: usize = 3;
const SECONDS: &str = "4";
const PORT: u16 = 18_441;
/// Of no use here: there is no namespace.
const NUMBER: u8 = 42;

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let place = Place::new("bench-api", NUMBER)?;
    place.clear()?;
    let mut controller = Controller::start_at(&place, format!("127.0.0.1:{PORT}").parse()?, &[])?;
    let bundle = place.dir.join("config");
    controller.bundle(&bundle)?;
    step("measuring requests");
    let pid = controller.process().pid();
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    // One round to warm up counts for nothing.
    for round in 0..=ROUNDS {
        let figures = load(bench, &bundle, round, pid)?;
        if round > 0 {
            rounds.push(figures);
        }
    }
    let figures = FIGURES.iter().enumerate().map(|(index, (name, what, least))| Figure {
        name,
        value: median(&rounds.iter().map(|round| round[index]).collect::<Vec<_>>()),
        unit: "/s",
        bound: Bound::AtLeast(*least),
        kind: Kind::Goal,
        how: format!(
            "{what}: config polls (304) per second of the controller's processor time, median of {ROUNDS}"
        ),
    });
    Ok(figures.filter(|figure| bench.is_wanted(figure.name)).collect())
}

fn load(bench: &Bench, bundle: &Path, round: usize, pid: u32) -> anyhow::Result<[f64; 3]> {
    // The bundle is readable to root only.
    let mut command = root(bench.example("device_load"));
    command.arg(format!("127.0.0.1:{PORT}")).arg(bundle);
    command.args([format!("load-{round}"), pid.to_string(), SECONDS.to_owned()]);
    let out = output(&mut command)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!("device_load ended with {}: {text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    let figure = |what: &str| -> anyhow::Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
        let word = line.and_then(|line| line.split_whitespace().next());
        Ok(word.with_context(|| format!("device_load says nothing of {what}"))?.parse()?)
    };
    Ok([figure(FIGURES[0].1)?, figure(FIGURES[1].1)?, figure(FIGURES[2].1)?])
}
