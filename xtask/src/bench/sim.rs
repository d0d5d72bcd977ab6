// SPDX-License-Identifier: Apache-2.0
//! Simulated worlds: how fast virtual time passes.

use std::process::Command;

use anyhow::Context as _;
use tests::command;

use super::{Bench, Bound, Figure, Kind};

const DAYS_NAME: &str = "sim-node-days";
const SEEDS_NAME: &str = "sim-200-seeds";
pub(super) const NAMES: &[&str] = &[DAYS_NAME, SEEDS_NAME];

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let output = command::run(Command::new(bench.example("worlds")).args(["seeds", "1", "200", "7"]))?;
    let figure = |key: &str| -> anyhow::Result<f64> {
        let text = output.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        text.and_then(|text| text.parse().ok()).with_context(|| format!("no {key} in {output:?}"))
    };
    let how = format!("{} node days, {} s of processor time", figure("node_days")?, figure("cpu_s")?);
    Ok(vec![
        Figure {
            name: DAYS_NAME,
            value: figure("node_days_per_cpu_minute")?,
            unit: "days",
            bound: Bound::AtLeast(1_000.0),
            kind: Kind::Goal,
            how: format!("per minute of processor time: {how}"),
        },
        Figure {
            name: SEEDS_NAME,
            value: figure("took_s")?,
            unit: "s",
            bound: Bound::AtMost(60.0),
            kind: Kind::Goal,
            how: format!("200 seeds of one week, all processors: {how}"),
        },
    ])
}
