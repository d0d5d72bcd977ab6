// SPDX-License-Identifier: Apache-2.0
//! Simulated worlds: many seeds, or the story of one.

use anyhow::{Context as _, bail};
use tests::command;
use tests::lab::bin_dir;
use tests::progress::step;

/// A seed's world lasts a week.
const DAYS: &str = "7";
/// What the tests live through.
pub(crate) const TEST_SEEDS: (u64, u64) = (1, 200);
const STORM_NODES: &str = "8";
/// Name of the example of crate `sim` that does the work.
const EXAMPLE: &str = "worlds";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Tell the whole story of this seed, one line per change; or `replay`.
    what: Option<String>,
    /// With `replay`: a flight record of a service.
    file: Option<std::path::PathBuf>,
    /// Live through these seeds: FIRST..LAST, both included.
    #[arg(long, conflicts_with = "what", value_name = "FIRST..LAST")]
    seeds: Option<String>,
    /// How long each world lasts.
    #[arg(long, default_value = DAYS)]
    days: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let days = args.days.to_string();
    let (first, last) = match (&args.what, &args.seeds) {
        (Some(what), None) if what == "replay" => {
            let file = args.file.as_ref().context("replay what? cargo xtask sim replay FILE")?;
            return worlds(&["replay", &file.to_string_lossy()]);
        }
        (Some(seed), None) => return worlds(&["one", seed, &days]),
        (None, Some(range)) => {
            let (first, last) =
                range.split_once("..").with_context(|| format!("{range:?} is not FIRST..LAST"))?;
            (first.to_owned(), last.trim_start_matches('=').to_owned())
        }
        _ => (TEST_SEEDS.0.to_string(), TEST_SEEDS.1.to_string()),
    };
    worlds(&["seeds", &first, &last, &days])
}

/// The seeds that are tests.
pub(crate) fn test() -> anyhow::Result<()> {
    step(format_args!("simulated worlds, seeds {} to {}", TEST_SEEDS.0, TEST_SEEDS.1));
    worlds(&["seeds", &TEST_SEEDS.0.to_string(), &TEST_SEEDS.1.to_string(), DAYS])?;
    step("a controller that is away for a week");
    worlds(&["storm", STORM_NODES])
}

/// Builds it once, optimized: virtual days pass forty times faster so.
fn worlds(arguments: &[&str]) -> anyhow::Result<()> {
    command::show(crate::build_of_products()?.args(["--example", EXAMPLE]))?;
    let program = bin_dir()?.join("examples").join(EXAMPLE);
    let status = std::process::Command::new(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("a world is not as it must be: cargo xtask sim SEED tells its story");
    }
    Ok(())
}
