// SPDX-License-Identifier: Apache-2.0
//! The project's own chores: `cargo xtask demo`, `test`, `check`, `bench`.
//!
//! Each does all its own set-up and asks nothing; steps that need root call sudo themselves.

mod bench;
mod check;
mod demo;
mod sim;
mod test;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the Selvedge project", disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run a controller, a hosted node and a web server as its app on this machine.
    Demo(demo::Args),
    /// Run the tests: all, or the parts named.
    Test(test::Args),
    /// Formatting, lints, dependency directions, licences, manifests, generated documents.
    Check(check::Args),
    /// Simulated worlds: many seeds, the story of one, or a flight record made again.
    Sim(sim::Args),
    /// Measure what the project promises.
    Bench(bench::Args),
    /// For `bench`: runs a command again and again and prints how long each took to its first output.
    #[command(hide = true)]
    TimeStarts(bench::TimeArgs),
}

fn main() -> anyhow::Result<()> {
    if let Some(error) = test::as_compiler() {
        return Err(error).context("cannot run the compiler");
    }
    match Args::parse().chore {
        Chore::Demo(args) => demo::run(&args),
        Chore::Test(args) => test::run(&args),
        Chore::Check(args) => check::run(&args),
        Chore::Sim(args) => sim::run(&args),
        Chore::Bench(args) => bench::run(&args),
        Chore::TimeStarts(args) => bench::time_starts(&args),
    }
}

/// Top of the workspace.
fn workspace() -> anyhow::Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in the workspace")?.to_owned())
}

/// Cargo, in the workspace, as if it were called from a shell: without what the cargo that runs us says of us. Build
/// scripts that look at those variables (ring's does) would run again, and all that depends on them be built again, each time the
/// caller changes.
fn cargo() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ABOUT_US.iter().any(|about| text.starts_with(about)) {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// Beginnings of the variables by which `cargo run` tells a program of its package.
const ABOUT_US: &[&str] = &["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

/// Git, in the workspace.
fn git() -> anyhow::Result<Command> {
    let mut command = Command::new("git");
    command.current_dir(workspace()?);
    Ok(command)
}

/// Builds all executables of the product, unless `SELVEDGE_BIN` names a directory that has them.
fn build_products() -> anyhow::Result<()> {
    if let Some(dir) = std::env::var_os("SELVEDGE_BIN") {
        tests::progress::step(format_args!("taking the executables of {}", dir.display()));
        return Ok(());
    }
    tests::progress::step("building (the first time takes minutes)");
    tests::command::show(&mut build_of_products()?)
}

/// The build of them. What else is to be built optimized is added to it: another selection of packages would have other
/// features, and all below them be built twice.
fn build_of_products() -> anyhow::Result<Command> {
    let mut command = cargo()?;
    command.args(["build", "--release", "--quiet", "--bins", "--workspace"]);
    for package in ["xtask", "tests", "attacker", "fuzz"] {
        command.args(["--exclude", package]);
    }
    // played devices for the tests of the controller
    command.args(["--example", "device_reports"]);
    Ok(command)
}

/// Builds the program that stands in place of services and apps; beside those of the product, and not one of them.
fn build_attacker() -> anyhow::Result<()> {
    let mut command = cargo()?;
    tests::command::show(command.args(["build", "--release", "--quiet", "--package", "attacker"]))
}
