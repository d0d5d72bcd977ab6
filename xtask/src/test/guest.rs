// SPDX-License-Identifier: Apache-2.0
//! Container, network and node tests inside the emulated guest of [`tests::guest`]: one boot for all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tests::guest::{Job, Load};
use tests::progress::step;
use tests::{command, guest, image, packages, toolbox};

/// Crates whose tests with root run inside.
const ROOMS: &[&str] = &["node-run", "node-net", "node-init"];
/// Executables that tests of rooms start from their own build.
const OF_ROOMS: [&str; 4] = ["selvedge-bus", "selvedge-init", "selvedge-log", "selvedge-shim"];
/// Tests of the whole node that run inside: those on control groups, and the plain life of an app.
const WHOLE: &[&str] = &["limits"];

pub(super) fn run(filter: Option<&str>) -> anyhow::Result<()> {
    packages::ensure(packages::GUEST)?;
    step("building the guest's tests");
    // of the whole workspace: a part of it would be built with other features, and anew
    let base = ["build", "--quiet", "--workspace", "--exclude", "tests"];
    command::show(crate::cargo()?.args(base).args(["--bins", "--example", "test-*"]))?;
    let (target, release) = (tests::lab::target_dir()?, tests::lab::bin_dir()?);
    let debug = release.with_file_name("debug");
    let cache = target.join("cache");
    std::fs::create_dir_all(&cache)?;
    let workspace = crate::workspace()?;
    let mut load = Load {
        jobs: jobs(filter)?,
        programs: programs(&release)?,
        files: vec![
            toolbox::layout(&cache)?,
            image::web_server(&cache)?,
            workspace.join("services"),
            workspace.join("examples"),
            // its tests find the manifests by a way that leads through their own directory
            workspace.join("crates/node-init/Cargo.toml"),
        ],
        environment: vec![
            ("SELVEDGE_BIN".to_owned(), release.display().to_string()),
            ("CARGO_TARGET_DIR".to_owned(), target.display().to_string()),
            // the services of node-init's test are built
            ("SELVEDGE_BUILT".to_owned(), "yes".to_owned()),
        ],
    };
    load.programs.extend(OF_ROOMS.map(|name| debug.join(name)));
    load.programs.extend(programs(&debug.join("examples"))?);
    load.programs.sort();
    load.programs.dedup();
    let failed = guest::boot(&cache, &target.join("lab/guest"), &load)?;
    if !failed.is_empty() {
        bail!("failed inside the guest: {}", failed.join(", "));
    }
    Ok(())
}

fn jobs(filter: Option<&str>) -> anyhow::Result<Vec<Job>> {
    let base = ["--ignored", "--test-threads", "1"].map(str::to_owned);
    let mut jobs = Vec::new();
    for (package, program) in super::built(&["--workspace", "--exclude", "tests", "--tests"])? {
        let room = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if ROOMS.contains(&room.as_str()) {
            let mut arguments = base.to_vec();
            arguments.extend(filter.map(str::to_owned));
            jobs.push(Job { name: format!("{room} {}", stem(&program)), program, arguments });
        }
    }
    for program in super::executables(&["--package", "tests", "--test", "lifecycle"])? {
        let mut arguments = base.to_vec();
        arguments.push("--nocapture".to_owned());
        match filter {
            Some(filter) => arguments.push(filter.to_owned()),
            None => arguments.extend(WHOLE.iter().map(|name| (*name).to_owned())),
        }
        jobs.push(Job { name: stem(&program), program, arguments });
    }
    Ok(jobs)
}

/// `container` of `container-0123456789abcdef`.
fn stem(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.rsplit_once('-').map_or(name.clone(), |(stem, _)| stem.to_owned())
}

/// Our own executables in a directory of a build.
fn programs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_tool = name.starts_with("test-") && !name.contains('.') && name.matches('-').count() == 1;
        path.is_file() && !name.contains('.') && (name.starts_with("selvedge") || is_tool)
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_ours).collect())
}
