// SPDX-License-Identifier: Apache-2.0
//! What can be said of the sources without running them.

mod specification;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use ipc::manifest::Manifest;
use tests::command;
use tests::progress::step;

/// A longer source file is to be split.
const FILE_LINES_MAX: usize = 800;
const LICENCE_LINE: &str = "SPDX-License-Identifier: Apache-2.0";
const PRIVILEGES: &str = "docs/privileges.md";

/// What each room may use of the others. Everything points one way; the node's shells never depend on one another.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("reconcile", &["model"]),
    ("trust", &["model"]),
    ("eve-api", &["model"]),
    ("oci", &["model"]),
    ("ipc", &["model"]),
    ("service", &["model", "reconcile", "ipc"]),
    ("node-core", &["model", "reconcile", "trust"]),
    ("controller-core", &["model", "reconcile", "trust"]),
    ("node-init", &["model", "reconcile", "ipc", "service", "disk"]),
    ("node-base", &["model", "reconcile", "ipc", "service", "node-core"]),
    ("node-agent", &["model", "reconcile", "eve-api", "oci", "ipc", "service", "node-core"]),
    ("node-vault", &["model", "reconcile", "trust", "eve-api", "ipc", "service", "node-core"]),
    ("node-net", &["model", "reconcile", "ipc", "service", "node-core"]),
    ("node-store", &["model", "reconcile", "oci", "ipc", "service", "node-core", "disk"]),
    ("node-run", &["model", "reconcile", "ipc", "service", "node-core"]),
    ("controller", &["model", "reconcile", "trust", "eve-api", "oci", "controller-core"]),
    ("disk", &[]),
    ("mkimage", &["disk"]),
    ("cli", &["model", "controller", "controller-core", "mkimage"]),
    // Never linked into a product: it holds the shells' pure parts of both sides.
    (
        "sim",
        &[
            "model",
            "reconcile",
            "eve-api",
            "ipc",
            "service",
            "node-core",
            "node-base",
            "node-agent",
            "node-store",
            "controller-core",
        ],
    ),
    ("tests", &["model", "ipc", "disk"]),
    ("attacker", &["model", "ipc", "service", "node-run"]),
    (
        "fuzz",
        &[
            "model",
            "disk",
            "trust",
            "eve-api",
            "oci",
            "ipc",
            "service",
            "node-core",
            "controller-core",
            "node-base",
            "node-agent",
            "node-vault",
            "node-net",
            "node-store",
            "node-run",
            "controller",
        ],
    ),
    ("xtask", &["ipc", "tests"]),
];

/// Rooms without std, and what they may use from outside, without its default features. An optional dependency is not
/// built into the node or the cores' own tests; it may bring std to those who ask for it.
const CORES: &[(&str, &[&str])] = &[
    ("model", &["serde", "uuid", "thiserror"]),
    ("reconcile", &["serde"]),
    ("trust", &["thiserror", "sha2", "ring"]),
    ("node-core", &["serde", "thiserror", "uuid"]),
    ("controller-core", &["serde", "thiserror", "uuid", "sha2", "hmac"]),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write generated documents anew instead of comparing them.
    #[arg(long)]
    fix: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    step("licence lines and file lengths");
    sources(&mut problems)?;
    step("dependency directions");
    directions(&mut problems)?;
    step("service manifests");
    manifests(args, &mut problems)?;
    step("promises");
    specification::check(&mut problems)?;
    if !problems.is_empty() {
        bail!("{} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    step("formatting");
    let mut format = crate::cargo()?;
    format.args(["fmt", "--all"]);
    if !args.fix {
        format.args(["--", "--check"]);
    }
    command::show(&mut format)?;
    step("lints");
    command::show(crate::cargo()?.args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("all good");
    Ok(())
}

fn sources(problems: &mut Vec<String>) -> anyhow::Result<()> {
    let root = crate::workspace()?;
    let listed = command::run(crate::git()?.args(["ls-files", "*.rs", "*.proto", "*.toml"]))?;
    for name in listed.lines() {
        let path = root.join(name);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let wants_licence =
            name.ends_with(".rs") || name.ends_with(".proto") || name.starts_with("services/");
        if wants_licence && !text.lines().take(3).any(|line| line.contains(LICENCE_LINE)) {
            problems.push(format!("{name}: no line {LICENCE_LINE:?} at its head"));
        }
        let lines = text.lines().count();
        if name.ends_with(".rs") && lines > FILE_LINES_MAX {
            problems.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}: split it"));
        }
    }
    Ok(())
}

fn directions(problems: &mut Vec<String>) -> anyhow::Result<()> {
    let text = command::run(crate::cargo()?.args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let rooms: BTreeMap<&str, &[&str]> = DIRECTIONS.iter().copied().collect();
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().context("a package has a name")?;
        let Some(allowed) = rooms.get(name) else {
            problems.push(format!("{name}: not in the table of directions"));
            continue;
        };
        let core = CORES.iter().find(|(core, _)| *core == name).map(|(_, outside)| *outside);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let is_optional_outside = dependency["optional"] == true && !names.contains(used);
            if dependency["kind"] == "dev" || is_optional_outside {
                continue;
            }
            if names.contains(used) {
                if !allowed.contains(&used) {
                    problems.push(format!("{name} may not depend on {used}"));
                }
            } else if let Some(outside) = core {
                if !outside.contains(&used) {
                    problems.push(format!("core {name} may not depend on {used}"));
                }
                if dependency["uses_default_features"] != false {
                    problems.push(format!("core {name} uses {used} with its default features"));
                }
            }
        }
        if core.is_some() {
            check_core(name, problems)?;
        }
    }
    Ok(())
}

/// A core is no_std, and does not bring std in by another door.
fn check_core(name: &str, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let dir = crate::workspace()?.join("crates").join(name).join("src");
    let head = fs::read_to_string(dir.join("lib.rs"))?;
    if !head.contains("#![no_std]") {
        problems.push(format!("core {name} is not no_std"));
    }
    for path in files_below(&dir)? {
        let text = fs::read_to_string(&path)?;
        let in_tests = path.file_name().is_some_and(|n| n == "tests.rs")
            || path.components().any(|c| c.as_os_str() == "tests");
        for (number, line) in text.lines().enumerate() {
            if line.contains("#[cfg(test)]") {
                break;
            }
            if !in_tests && (line.contains("extern crate std") || line.contains("hashbrown")) {
                problems.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    Ok(())
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn manifests(args: &Args, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let root = crate::workspace()?;
    let mut manifests = Vec::new();
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root.join("services"))?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "toml")) {
        match Manifest::parse(&fs::read_to_string(path)?) {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    if let Err(error) = ipc::manifest::check_set(&manifests) {
        problems.push(format!("services: {error}"));
    }
    let fresh = ipc::manifest::privilege_matrix(&manifests);
    let path = root.join(PRIVILEGES);
    if args.fix {
        fs::write(&path, fresh)?;
    } else if fs::read_to_string(&path).unwrap_or_default() != fresh {
        problems.push(format!("{PRIVILEGES} is not fresh: run cargo xtask check --fix"));
    }
    Ok(())
}
