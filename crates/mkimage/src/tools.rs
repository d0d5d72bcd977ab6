// SPDX-License-Identifier: Apache-2.0
//! Programs that build the image: pinned by the lock like what goes into it, unpacked beside the cache, and run with their
//! own libraries. So an image does not depend on what this machine has installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use disk::partitions::Architecture;

use crate::deb;
use crate::fetch;
use crate::lock::Lock;
use crate::recipe::{Recipe, triplet};
use crate::tree::{Node, Tree};

#[derive(Debug)]
pub(crate) struct Tools {
    dir: PathBuf,
}

impl Tools {
    pub(crate) fn open(recipe: &Recipe, lock: &Lock, mirror: &str, cache: &Path) -> anyhow::Result<Tools> {
        let packages = recipe.tools.iter().map(|name| lock.package(name, Architecture::OWN));
        let packages = packages.collect::<anyhow::Result<Vec<_>>>()?;
        let sums: Vec<&str> = packages.iter().map(|package| package.sha256.as_str()).collect();
        let dir = cache.join("tools").join(&fetch::sha256(sums.join(" ").as_bytes())[..16]);
        if dir.exists() {
            return Ok(Tools { dir });
        }
        let parent = cache.join("tools");
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let work = tempfile::tempdir_in(&parent)?;
        for package in packages {
            let bytes = fetch::package(package, mirror, cache)?;
            let tree =
                deb::unpack(&bytes, |path| path.starts_with("usr/") && !path.starts_with("usr/share/"))
                    .with_context(|| format!("package {}", package.name))?;
            write(&tree, work.path())?;
        }
        let made = work.keep();
        // somebody else may have made it meanwhile, of the same packages
        if fs::rename(&made, &dir).is_err() {
            fs::remove_dir_all(&made)?;
        }
        Ok(Tools { dir })
    }

    /// One of the programs, by its path in its package.
    pub(crate) fn command(&self, program: &str) -> Command {
        let loader = match Architecture::OWN {
            Architecture::Amd64 => "ld-linux-x86-64.so.2",
            Architecture::Arm64 => "ld-linux-aarch64.so.1",
        };
        let libraries = self.dir.join("usr/lib").join(triplet(Architecture::OWN));
        let mut command = Command::new(libraries.join(loader));
        command
            .arg("--library-path")
            .arg(&libraries)
            .arg(self.dir.join(program))
            .env_clear()
            .env("LC_ALL", "C");
        command
    }
}

/// Runs to the end; a failure shows what it said.
pub(crate) fn run(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {what}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{what} ended with {}:\n{}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}

fn write(tree: &Tree, into: &Path) -> anyhow::Result<()> {
    for (path, node) in tree.nodes() {
        let target = into.join(path);
        let failed = || format!("cannot write {}", target.display());
        match node {
            Node::Directory => fs::create_dir_all(&target).with_context(failed)?,
            Node::File { content, is_executable } => {
                fs::write(&target, content).with_context(failed)?;
                let mode = if *is_executable { 0o755 } else { 0o644 };
                fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
            }
            Node::Link { to } => {
                let _ = fs::remove_file(&target);
                std::os::unix::fs::symlink(to, &target).with_context(failed)?;
            }
        }
    }
    Ok(())
}
