// SPDX-License-Identifier: Apache-2.0
//! Debian 13's archive, from the same server the machine uses, without touching the machine: package lists and state of
//! apt lie in a directory of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{has, root, run};

/// Release whose kernel, tools and libraries our users have.
const SUITE: &str = "trixie";

/// An own root of apt.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Makes it below `dir` and fetches the package lists, unless they are there.
    pub fn open(dir: &Path) -> anyhow::Result<Archive> {
        let archive = Archive { dir: dir.to_owned() };
        let ready = dir.join(".ready");
        if ready.exists() {
            return Ok(archive);
        }
        if !has("apt-get") {
            bail!("this is no Debian: there is no apt-get");
        }
        for sub in ["lists/partial", "sources", "archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(dir.join("status"), "")?;
        let sources = sources().context("the machine names no archive of Debian")?;
        fs::write(dir.join("sources/suite.sources"), sources)?;
        run(archive.apt("apt-get").args(["-qq", "update"]))?;
        fs::write(ready, "")?;
        Ok(archive)
    }

    /// Unpacks exactly these packages into a directory.
    pub fn unpack(&self, packages: &[&str], into: &Path) -> anyhow::Result<()> {
        let work = tempfile::tempdir_in(&self.dir)?;
        run(self.apt("apt-get").args(["-qq", "download"]).args(packages).current_dir(work.path()))?;
        unpack_all(work.path(), into)
    }

    /// Unpacks packages and all they depend on, as if nothing were installed. Their scripts do not run.
    pub fn unpack_with_dependencies(&self, packages: &[&str], into: &Path) -> anyhow::Result<()> {
        let work = tempfile::tempdir_in(&self.dir)?;
        fs::create_dir_all(work.path().join("partial"))?;
        run(self
            .apt("apt-get")
            .args(["-qq", "-y", "--no-install-recommends", "--download-only"])
            .args(["-o", &format!("Dir::Cache::archives={}/", work.path().display())])
            .arg("install")
            .args(packages))?;
        unpack_all(work.path(), into)
    }

    /// The package that a package without content stands for, e.g. the newest kernel's.
    pub fn newest(&self, package: &str) -> anyhow::Result<String> {
        let text = run(self.apt("apt-cache").args(["depends", package]))?;
        let first = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(first.with_context(|| format!("{package} depends on nothing"))?.to_owned())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = root(program);
        for (name, value) in [
            ("Dir::Etc::sourcelist", PathBuf::from("/dev/null")),
            ("Dir::Etc::sourceparts", self.dir.join("sources")),
            ("Dir::State::lists", self.dir.join("lists")),
            ("Dir::State::status", self.dir.join("status")),
            ("Dir::Cache", self.dir.clone()),
        ] {
            command.args(["-o", &format!("{name}={}", value.display())]);
        }
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"]);
        command
    }
}

fn unpack_all(from: &Path, into: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(into)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(root("dpkg-deb").arg("-x").arg(&path).arg(into))?;
        }
    }
    Ok(())
}

/// The machine's own archive with [`SUITE`] in place of its suite.
fn sources() -> Option<String> {
    let own = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let field =
        |name: &str| own.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let uri = match field("URIs") {
        Some(uri) => uri.split_whitespace().next()?.to_owned(),
        None => {
            let list = fs::read_to_string("/etc/apt/sources.list").ok()?;
            let line = list.lines().find(|line| line.starts_with("deb ") && line.contains("debian"))?;
            line.split_whitespace().find(|word| word.contains("://"))?.to_owned()
        }
    };
    let signed = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Some(format!("Types: deb\nURIs: {uri}\nSuites: {SUITE}\nComponents: main\nSigned-By: {signed}\n"))
}
