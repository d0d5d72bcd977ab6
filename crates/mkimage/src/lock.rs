// SPDX-License-Identifier: Apache-2.0
//! The lock: exactly which packages an image is made of.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use disk::partitions::Architecture;
use serde::{Deserialize, Serialize};

use crate::archive::Index;
use crate::recipe::{Recipe, architecture};
use crate::step;

pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub format: u32,
    pub suite: String,
    /// When the archive was signed, seconds since 1970: the time of everything in the image.
    pub signed_at: i64,
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

/// One package of one architecture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub architecture: String,
    pub version: String,
    pub sha256: String,
    pub bytes: u64,
    /// Below the mirror.
    pub file: String,
}

impl Lock {
    pub fn read(path: &Path) -> anyhow::Result<Lock> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read lock {}: make it with selvedge image lock", path.display())
        })?;
        let lock: Lock = toml::from_str(&text).with_context(|| format!("lock {}", path.display()))?;
        if lock.format != FORMAT {
            bail!("lock {}: format {} is not known, only {FORMAT}", path.display(), lock.format);
        }
        Ok(lock)
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let head = "# SPDX-License-Identifier: Apache-2.0\n# Made by selvedge image lock.\n\n";
        let text = format!("{head}{}", toml::to_string(self)?);
        std::fs::write(path, text).with_context(|| format!("cannot write lock {}", path.display()))
    }

    /// Chooses the newest version of everything the recipe names.
    pub fn renew(recipe: &Recipe, index: &Index) -> anyhow::Result<Lock> {
        let mut packages = BTreeMap::new();
        let mut add = |package: Package| {
            packages.insert((package.name.clone(), package.architecture.clone()), package);
        };
        for arch in recipe.architectures()? {
            let (kernel, _) = recipe.kernel_of(arch)?;
            add(index.followed(kernel, arch)?);
            for part in &recipe.packages {
                add(index.newest(&part.name, arch)?);
            }
            add(index.newest(&recipe.boot.package, arch)?);
        }
        for tool in &recipe.tools {
            add(index.newest(tool, Architecture::OWN)?);
        }
        Ok(Lock {
            format: FORMAT,
            suite: recipe.archive.suite.clone(),
            signed_at: index.signed_at,
            packages: packages.into_values().collect(),
        })
    }

    /// A package of an architecture, or one that is the same for all.
    pub fn package(&self, name: &str, arch: Architecture) -> anyhow::Result<&Package> {
        let is_for = |package: &&Package| {
            package.name == name && (package.architecture == arch.name() || package.architecture == "all")
        };
        self.packages
            .iter()
            .find(is_for)
            .with_context(|| format!("the lock has no {name} for {}: run selvedge image lock", arch.name()))
    }

    /// The kernel that a name stands for: the only package of its kind.
    pub fn kernel(&self, recipe: &Recipe, arch: Architecture) -> anyhow::Result<&Package> {
        let (name, _) = recipe.kernel_of(arch)?;
        let is_kernel = |package: &&Package| {
            package.name.starts_with("linux-image-") && architecture(&package.architecture).ok() == Some(arch)
        };
        self.packages
            .iter()
            .find(is_kernel)
            .with_context(|| format!("the lock has no kernel for {name}: run selvedge image lock"))
    }

    /// What is new against an older one, a line each.
    pub fn differences(&self, old: &Lock) -> Vec<String> {
        let of = |lock: &Lock| -> BTreeMap<(String, String), String> {
            let all = lock.packages.iter();
            all.map(|p| ((p.name.clone(), p.architecture.clone()), p.version.clone())).collect()
        };
        let (before, now) = (of(old), of(self));
        let mut lines = Vec::new();
        for ((name, arch), version) in &now {
            match before.get(&(name.clone(), arch.clone())) {
                Some(old) if old == version => {}
                Some(old) => lines.push(format!("{name} {arch}: {old} → {version}")),
                None => lines.push(format!("{name} {arch}: new, {version}")),
            }
        }
        let gone = before.keys().filter(|key| !now.contains_key(*key));
        lines.extend(gone.map(|(name, arch)| format!("{name} {arch}: gone")));
        lines
    }
}

/// Renews the lock beside a recipe. Says what changed.
pub fn renew(recipe: &Recipe, lock: &Path, mirror: &str, cache: &Path) -> anyhow::Result<Vec<String>> {
    let index = Index::fetch(recipe, mirror, cache)?;
    let fresh = Lock::renew(recipe, &index)?;
    let lines = match Lock::read(lock) {
        Ok(old) => fresh.differences(&old),
        Err(_) => fresh.differences(&Lock { packages: Vec::new(), ..fresh.clone() }),
    };
    fresh.write(lock)?;
    step(format_args!("{} packages are in {}", fresh.packages.len(), lock.display()));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(version: &str) -> Lock {
        let package = Package {
            name: "libc6".into(),
            architecture: "amd64".into(),
            version: version.into(),
            sha256: "00".into(),
            bytes: 1,
            file: "pool/libc6.deb".into(),
        };
        Lock { format: FORMAT, suite: "trixie".into(), signed_at: 7, packages: vec![package] }
    }

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        lock("1").write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock("1"));
    }

    #[test]
    fn what_changed_is_said() {
        assert_eq!(lock("2").differences(&lock("1")), ["libc6 amd64: 1 → 2"]);
        assert!(lock("1").differences(&lock("1")).is_empty());
    }

    #[test]
    fn what_the_lock_lacks_is_named() {
        let error = lock("1").package("zlib", Architecture::Amd64).unwrap_err();
        assert_eq!(error.to_string(), "the lock has no zlib for amd64: run selvedge image lock");
    }
}
