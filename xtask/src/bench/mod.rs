// SPDX-License-Identifier: Apache-2.0
//! Measures what the project promises, and prints one table.
//!
//! A gate fails the run. A ratio to another program is taken side by side in one run, in turns, of medians; a goal is an
//! absolute figure, which depends on the machine. Neither fails the run, since a busy machine is no bug.

mod api;
mod app;
mod boxes;
mod fleet;
mod hold;
mod image;
mod memory;
mod node;
mod pull;
mod push;
mod sim;
mod start;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tests::command;
use tests::lab::{bin_dir, target_dir};
use tests::packages;
use tests::progress::step;

pub(crate) use start::TimeArgs;
pub(crate) use start::time_starts;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only measurements whose name contains this.
    filter: Option<String>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// One measured figure.
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    bound: Bound,
    kind: Kind,
    /// What the value contains, and the values it was made of.
    how: String,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gate,
    Ratio,
    Goal,
}

/// What is measured together, and under which names.
struct Group {
    names: &'static [&'static str],
    measure: fn(&Bench) -> anyhow::Result<Vec<Figure>>,
}

const GROUPS: &[Group] = &[
    Group { names: &[start::NAME], measure: start::measure },
    Group { names: node::NAMES, measure: node::measure },
    Group { names: hold::NAMES, measure: hold::measure },
    Group { names: &[pull::NAME], measure: pull::measure },
    Group { names: api::NAMES, measure: api::measure },
    Group { names: fleet::NAMES, measure: fleet::measure },
    Group { names: sim::NAMES, measure: sim::measure },
    Group { names: boxes::NAMES, measure: boxes::measure },
];

/// Examples of the crates that measure one part alone.
const EXAMPLES: &[&str] = &["run_bundle", "pull", "device_load", "device_watch", "worlds"];

/// Where a measurement finds its programs and what is asked of it.
struct Bench {
    filter: String,
    examples: PathBuf,
    /// Kept from run to run.
    cache: PathBuf,
    /// Emptied by each measurement that uses it.
    dir: PathBuf,
}

impl Bench {
    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    fn example(&self, name: &str) -> PathBuf {
        self.examples.join(name)
    }

    /// An empty directory of this name.
    fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        command::run(command::root("rm").arg("-rf").arg(&dir))?;
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let filter = args.filter.clone().unwrap_or_default();
    let groups: Vec<&Group> =
        GROUPS.iter().filter(|group| group.names.iter().any(|name| name.contains(&filter))).collect();
    if groups.is_empty() {
        let all: Vec<&str> = GROUPS.iter().flat_map(|group| group.names).copied().collect();
        bail!("no measurement is named like {filter:?}; there are {}", all.join(", "));
    }
    command::prepare_root()?;
    packages::ensure(packages::DEMO)?;
    packages::ensure(packages::HOSTED)?;
    build()?;
    let target = std::path::absolute(target_dir()?)?;
    let bench = Bench {
        filter,
        examples: std::path::absolute(bin_dir()?)?.join("examples"),
        cache: target.join("cache"),
        dir: target.join("bench"),
    };
    std::fs::create_dir_all(&bench.cache)?;
    let before = load_average();
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    for group in groups {
        match (group.measure)(&bench) {
            Ok(measured) => figures.extend(measured),
            Err(error) => failures.push(format!("{}: {error:#}", group.names.join(", "))),
        }
    }
    let machine = format!(
        "load average {before} before and {} after, {} processors",
        load_average(),
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    match args.output {
        Format::Table => print_table(&figures, &machine),
        Format::Json => println!("{:#}", json(&figures, &machine)),
    }
    let short: Vec<&str> =
        figures.iter().filter(|f| f.kind == Kind::Gate && !f.is_ok()).map(|f| f.name).collect();
    if !failures.is_empty() {
        bail!("not measured:\n{}", failures.join("\n"));
    }
    if !short.is_empty() {
        bail!("gates failed: {}", short.join(", "));
    }
    Ok(())
}

/// Products and examples, in one go so that both are made of the same parts.
fn build() -> anyhow::Result<()> {
    step("building (the first time takes minutes)");
    let mut command = crate::cargo()?;
    command.args([
        "build",
        "--release",
        "--quiet",
        "--workspace",
        "--exclude",
        "xtask",
        "--exclude",
        "tests",
    ]);
    command.arg("--bins");
    for name in EXAMPLES {
        command.args(["--example", name]);
    }
    command::show(&mut command)
}

impl Figure {
    fn is_ok(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
        }
    }

    fn verdict(&self) -> &'static str {
        if self.is_ok() { "ok" } else { "short" }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtMost(most) => write!(f, "<= {most}"),
            Bound::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Gate => "gate",
            Kind::Ratio => "ratio",
            Kind::Goal => "goal",
        }
    }
}

/// Three significant digits, and no fraction of large figures.
fn show(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn print_table(figures: &[Figure], machine: &str) {
    println!("{:<20} {:>8} {:<5} {:<9} {:<6} {:<6} how", "name", "value", "unit", "bound", "", "kind");
    for figure in figures {
        println!(
            "{:<20} {:>8} {:<5} {:<9} {:<6} {:<6} {}",
            figure.name,
            show(figure.value),
            figure.unit,
            figure.bound.to_string(),
            figure.verdict(),
            figure.kind.name(),
            figure.how
        );
    }
    println!("{machine}");
}

fn json(figures: &[Figure], machine: &str) -> serde_json::Value {
    let figures: Vec<_> = figures
        .iter()
        .map(|figure| {
            serde_json::json!({
                "name": figure.name,
                "value": figure.value,
                "unit": figure.unit,
                "bound": figure.bound.to_string(),
                "verdict": figure.verdict(),
                "kind": figure.kind.name(),
                "how": figure.how,
            })
        })
        .collect();
    serde_json::json!({ "machine": machine, "figures": figures })
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

/// The value that a share of all does not exceed.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(f64::NAN)
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Seconds a command takes to its good end.
fn timed_s(command: &mut std::process::Command) -> anyhow::Result<f64> {
    let start = Instant::now();
    command::run(command)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Waits until `ready` gives something, looking often enough for milliseconds.
fn wait_closely<T>(
    what: &str,
    timeout: Duration,
    mut ready: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {} s", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(median(&values), 100.0);
        assert_eq!(percentile(&values, 0.99), 198.0);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[1.0, 2.0, 3.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!([0.3333, 1.005, 14.26, 4_017.3].map(show), ["0.333", "1.00", "14.3", "4017"]);
    }
}
