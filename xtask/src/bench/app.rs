// SPDX-License-Identifier: Apache-2.0
//! From a config in the agent's hand to the app's process running.

use std::time::Duration;

use anyhow::Context as _;
use tests::lab::Lab;
use tests::progress::step;

use super::node::NodeLog;
use super::{Bound, Figure, Kind, median, percentile};

pub(super) const NAME: &str = "app-start";

const STARTS: usize = 20;
const APP_PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(30);
/// Everything that a stop sets in motion has ended.
const SETTLE: Duration = Duration::from_millis(700);

/// What agent and shim say.
const CAME: &str = "a config came";
const IN_FORCE: &str = " in force: ";
const RUNS: &str = "app hello: runs";
const ENDED: &str = "app hello: ended";

pub(super) fn measure(lab: &mut Lab) -> anyhow::Result<Figure> {
    step(format_args!("measuring {STARTS} starts by a config"));
    let examples = crate::workspace()?.join("examples/hello");
    lab.controller.cli(&["apply", "-f", &examples.to_string_lossy()])?;
    lab.wait_app(APP_PORT, Duration::from_secs(60))?;
    let mut log = NodeLog::follow(lab.node.process().log_path())?;
    let (mut times, mut judged) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        activate(lab, false)?;
        log.until(ENDED, PATIENCE)?;
        std::thread::sleep(SETTLE);
        log.read()?;
        activate(lab, true)?;
        let lines = log.until(RUNS, PATIENCE)?;
        let came = lines.iter().find(|line| line.text.contains(CAME)).context("no config came")?.at;
        let runs = lines.last().context("a line was waited for")?.at;
        times.push(runs.since_ms(came));
        let in_force =
            lines.iter().find(|line| line.text.contains(IN_FORCE)).context("no config in force")?.at;
        judged.push(in_force.since_ms(came));
    }
    Ok(Figure {
        name: NAME,
        value: median(&times),
        unit: "ms",
        bound: Bound::AtMost(150.0),
        kind: Kind::Goal,
        how: format!(
            "p50 of {STARTS} activations, image and volume there: signed config in the agent's hand to the shim's word that the process runs (p99 {:.0} ms); in it config verified, saved and published {:.0} ms; network, name service, port map, control group and log included",
            percentile(&times, 0.99),
            median(&judged)
        ),
    })
}

fn activate(lab: &Lab, is_active: bool) -> anyhow::Result<()> {
    let path = crate::workspace()?.join("examples/hello");
    let mut text = String::new();
    for entry in std::fs::read_dir(&path)? {
        let file = std::fs::read_to_string(entry?.path())?;
        if file.contains("kind: App") {
            text = format!("{}\n  activate: {is_active}\n", file.trim_end());
        }
    }
    lab.controller.apply("toggled.yaml", &text).map(drop)
}
