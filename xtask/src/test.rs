// SPDX-License-Identifier: Apache-2.0
//! The tests: units without root and network, the referees, the hosted node as a whole, and the same in an emulated guest.

mod fuzz;
mod guest;

pub(crate) use fuzz::as_compiler;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use tests::command;
use tests::packages;
use tests::progress::step;

/// Longest time the unit tests may take once built.
const UNIT_S_MAX: u64 = 60;

/// Ignored functions that are tools and no tests: one writes files of the source tree, one only measures.
const NO_TESTS: &[&str] = &["seeds", "500_megabytes"];

/// Is there where control groups are of version 2. Tests that need it and have it in their name run in the guest elsewhere.
const CGROUP_V2: &str = "/sys/fs/cgroup/cgroup.controllers";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Unit tests: no root, no network, no sleep.
    #[arg(long)]
    unit: bool,
    /// Simulated worlds of many seeds.
    #[arg(long)]
    sim: bool,
    /// The independent referees against the controller and against the node.
    #[arg(long)]
    referees: bool,
    /// A hosted node with real images, registries and kills; needs root (by sudo).
    #[arg(long)]
    hosted: bool,
    /// Services and init of a hosted node killed and stopped under an app that is watched; the controller killed under
    /// devices that report, and restored; needs root (by sudo).
    #[arg(long)]
    faults: bool,
    /// What a service or an app must not be able to do once it was taken over; needs root (by sudo).
    #[arg(long)]
    attack: bool,
    /// A coverage-guided fuzzer against every parser of foreign bytes, a minute for each group of them.
    #[arg(long)]
    fuzz: bool,
    /// Many more rounds where there are rounds: half an hour instead of minutes.
    #[arg(long)]
    long: bool,
    /// Mistakes of operators, registries, apps and strangers; needs root (by sudo).
    #[arg(long)]
    input: bool,
    /// The hosted node in an emulated guest with Debian's kernel, which has cgroup v2; needs root (by sudo).
    #[arg(long)]
    guest: bool,
    /// The node as the operating system of a box: images are built, and booted under QEMU with UEFI.
    #[arg(long = "box")]
    boxes: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let hosts = args.hosted || args.faults || args.input || args.guest || args.attack || args.boxes;
    let all = !(args.unit || args.referees || args.sim || args.fuzz || hosts);
    if args.unit || all {
        unit(args.filter.as_deref())?;
    }
    if args.sim || all {
        crate::sim::test()?;
    }
    if args.referees || hosts || all {
        command::prepare_root()?;
        packages::ensure(packages::DEMO)?;
        packages::ensure(packages::HOSTED)?;
        if args.guest {
            packages::ensure(packages::GUEST)?;
        }
        if args.boxes {
            packages::ensure(packages::BOX)?;
        }
        crate::build_products()?;
    }
    if args.hosted || all {
        rooms(args)?;
        whole("hosted", args)?;
        whole("lifecycle", args)?;
        whole("flight", args)?;
    }
    if args.faults || all {
        whole("faults", args)?;
        packages::ensure(packages::REFEREES)?;
        whole("controller_faults", args)?;
    }
    if args.attack || all {
        crate::build_attacker()?;
        whole("attack", args)?;
    }
    if args.input || all {
        whole("bad_input", args)?;
    }
    if args.referees || all {
        whole("referee", args)?;
    }
    // Not part of the plain run: the emulation takes minutes, and a machine that is not busy with something else.
    if args.guest {
        guest::run(args.filter.as_deref())?;
    }
    // Not part of the plain run either: what boots and onboards a box there is the demo.
    if args.boxes {
        // each boots machines of one or two processors: two at once keep this machine busy
        whole_at_once("box", "2", args)?;
    }
    if args.fuzz || all {
        fuzz::run(args.filter.as_deref(), args.long)?;
    }
    Ok(())
}

fn unit(filter: Option<&str>) -> anyhow::Result<()> {
    step("building the unit tests");
    let base = ["test", "--quiet", "--workspace", "--lib", "--bins", "--tests", "--exclude", "tests"];
    command::show(crate::cargo()?.args(base).arg("--no-run"))?;
    step("unit tests");
    let start = Instant::now();
    command::show(crate::cargo()?.args(base).args(filter))?;
    let took_s = start.elapsed().as_secs();
    step(format_args!("unit tests took {took_s} s"));
    if took_s > UNIT_S_MAX {
        bail!("the unit tests took {took_s} s, {UNIT_S_MAX} s are allowed");
    }
    Ok(())
}

/// Tests of single rooms that need root or real programs: the ignored ones of each crate.
fn rooms(args: &Args) -> anyhow::Result<()> {
    step("tests of single rooms with real programs");
    let cache = tests::lab::target_dir()?.join("cache");
    let oras = packages::oras(&cache)?;
    let has_oras = oras.is_some();
    let helpers = Helpers { programs: oras, busybox: Some(tests::toolbox::busybox(&cache)?) };
    let mut arguments = vec!["--ignored", "--test-threads", "1"];
    for name in NO_TESTS {
        arguments.extend(["--skip", name]);
    }
    if !has_oras {
        step("oras is not to be had here: its test is left out");
        arguments.extend(["--skip", "oras"]);
    }
    for executable in executables(&["--workspace", "--exclude", "tests", "--tests"])? {
        run_as_root(&executable, &arguments, args, &helpers)?;
    }
    Ok(())
}

/// Whole-system tests whose file has this name.
fn whole(file: &str, args: &Args) -> anyhow::Result<()> {
    whole_at_once(file, "1", args)
}

/// The same with so many at once, each in a laboratory of its own.
fn whole_at_once(file: &str, at_once: &str, args: &Args) -> anyhow::Result<()> {
    step(format_args!("whole-system tests: {file}"));
    for executable in executables(&["--package", "tests", "--test", file])? {
        let mut arguments = vec!["--ignored", "--test-threads", at_once, "--nocapture"];
        if !Path::new(CGROUP_V2).exists() {
            arguments.extend(["--skip", "cgroup_v2"]);
        }
        run_as_root(&executable, &arguments, args, &Helpers::default())?;
    }
    Ok(())
}

/// Builds test executables and says where they are.
fn executables(selection: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    Ok(built(selection)?.into_iter().map(|(_, executable)| executable).collect())
}

/// The same with the directory of each one's package.
fn built(selection: &[&str]) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let output = crate::cargo()?
        .args(["test", "--quiet", "--no-run", "--message-format", "json-render-diagnostics"])
        .args(selection)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let mut found = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let is_integration = message["target"]["kind"][0] == "test";
        if let (true, Some(path)) = (is_integration, message["executable"].as_str()) {
            let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
            found.push((manifest.parent().unwrap_or(manifest).to_owned(), PathBuf::from(path)));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// What tests of single rooms use beside installed programs.
#[derive(Default)]
struct Helpers {
    /// Directory of programs to be found first.
    programs: Option<PathBuf>,
    /// A static one: what the machine has may be linked to its libraries.
    busybox: Option<PathBuf>,
}

fn run_as_root(executable: &Path, arguments: &[&str], args: &Args, helpers: &Helpers) -> anyhow::Result<()> {
    let mut command: Command = command::root("env");
    command
        .arg(format!("SELVEDGE_BIN={}", tests::lab::bin_dir()?.display()))
        .arg(format!("CARGO_TARGET_DIR={}", tests::lab::target_dir()?.display()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = helpers.programs.clone().into_iter().chain(std::env::split_paths(&path));
    command.arg(format!("PATH={}", std::env::join_paths(path)?.to_string_lossy()));
    if let Some(busybox) = &helpers.busybox {
        command.arg(format!("SELVEDGE_BUSYBOX={}", busybox.display()));
    }
    if args.long {
        command.arg("SELVEDGE_LONG=1");
    }
    for name in [
        "HOME",
        tests::referee::VARIABLE,
        "SELVEDGE_LAB",
        "SELVEDGE_SEED",
        "EVE_API_TABLES",
        "PIP_CERT",
        "SSL_CERT_FILE",
    ] {
        if let Ok(value) = std::env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    command.arg(executable).args(arguments).args(&args.filter).current_dir(crate::workspace()?);
    command::show(&mut command)
}
