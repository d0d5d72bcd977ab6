// SPDX-License-Identifier: Apache-2.0
//! Measures what the project promises; ratios are taken side by side in one run.

#[derive(clap::Args)]
pub struct Args {
    /// Only measurements whose name contains this.
    filter: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let _ = &args.filter;
    anyhow::bail!("no measurement is there yet")
}
