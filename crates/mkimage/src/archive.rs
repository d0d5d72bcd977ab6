// SPDX-License-Identifier: Apache-2.0
//! The index of a Debian archive, believed because its Release file is signed.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use disk::partitions::Architecture;

use crate::fetch::{get, sha256};
use crate::lock::Package;
use crate::recipe::Recipe;
use crate::step;

/// The mirror named by the environment instead of the recipe's.
pub const MIRROR_VARIABLE: &str = "SELVEDGE_MIRROR";
/// How many packages that only stand for another one are followed.
const FOLLOWED_MAX: usize = 4;

/// Newest versions of all packages.
#[derive(Debug, Default)]
pub struct Index {
    pub signed_at: i64,
    packages: BTreeMap<(String, &'static str), Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    package: Package,
    depends: String,
}

/// The mirror to use: of the environment, else of the recipe.
pub fn mirror(recipe: &Recipe) -> String {
    std::env::var(MIRROR_VARIABLE).unwrap_or_else(|_| recipe.archive.mirror.clone())
}

impl Index {
    /// Gets the lists of all architectures of the recipe and checks them.
    pub fn fetch(recipe: &Recipe, mirror: &str, cache: &Path) -> anyhow::Result<Index> {
        let archive = &recipe.archive;
        let base = format!("{}/dists/{}", mirror.trim_end_matches('/'), archive.suite);
        step(format_args!("getting the index of {}", archive.suite));
        let url = format!("{base}/InRelease");
        let signed = get(&url)?.with_context(|| format!("there is no {url}"))?;
        let release = verified(&signed, &archive.keyring, cache)?;
        let mut index = Index { signed_at: signed_at(&release)?, packages: BTreeMap::new() };
        let mut architectures = recipe.architectures()?;
        if !architectures.contains(&Architecture::OWN) {
            architectures.push(Architecture::OWN);
        }
        for arch in architectures {
            let name = format!("{}/binary-{}/Packages.xz", archive.component, arch.name());
            let sum = sum_of(&release, &name).with_context(|| format!("the Release file lists no {name}"))?;
            let url = format!("{base}/{name}");
            let packed = get(&url)?.with_context(|| format!("there is no {url}"))?;
            if sha256(&packed) != sum {
                bail!(
                    "{url} is not what the signed Release file says: the mirror is being changed, try again"
                );
            }
            let mut text = String::new();
            lzma_rust2::XzReader::new(packed.as_slice(), true).read_to_string(&mut text)?;
            index.add(&text, arch);
        }
        Ok(index)
    }

    fn add(&mut self, text: &str, arch: Architecture) {
        for stanza in text.split("\n\n") {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let package = || {
                Some(Package {
                    name: field("Package:")?.into(),
                    architecture: field("Architecture:")?.into(),
                    version: field("Version:")?.into(),
                    sha256: field("SHA256:")?.into(),
                    bytes: field("Size:")?.parse().ok()?,
                    file: field("Filename:")?.into(),
                })
            };
            let Some(package) = package() else { continue };
            let key = (package.name.clone(), arch.name());
            let entry = Entry { package, depends: field("Depends:").unwrap_or_default().into() };
            // Several versions of one package are rare and stand one behind the other, the newest last.
            self.packages.insert(key, entry);
        }
    }

    pub fn newest(&self, name: &str, arch: Architecture) -> anyhow::Result<Package> {
        Ok(self.entry(name, arch)?.package.clone())
    }

    /// The kernel that a package without content stands for.
    pub fn followed(&self, name: &str, arch: Architecture) -> anyhow::Result<Package> {
        let mut entry = self.entry(name, arch)?;
        for _ in 0..FOLLOWED_MAX {
            let first = entry.depends.split([',', ' ', '|']).next().unwrap_or_default();
            if !first.starts_with("linux-image-") {
                break;
            }
            entry = self.entry(first, arch)?;
        }
        Ok(entry.package.clone())
    }

    fn entry(&self, name: &str, arch: Architecture) -> anyhow::Result<&Entry> {
        let found = self.packages.get(&(name.to_owned(), arch.name()));
        found.with_context(|| format!("the archive has no package {name} for {}", arch.name()))
    }
}

/// The text that the keys of the archive have signed.
fn verified(signed: &[u8], keyring: &str, cache: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let dir = tempfile::tempdir_in(cache)?;
    let (input, output) = (dir.path().join("InRelease"), dir.path().join("Release"));
    std::fs::write(&input, signed)?;
    let result = Command::new("gpgv")
        .args(["--quiet", "--keyring", keyring, "--output"])
        .arg(&output)
        .arg(&input)
        .output()
        .context("cannot run gpgv, which checks the signature of the archive: install the package gpgv")?;
    if !result.status.success() {
        bail!(
            "the index of the archive is not signed by a key of {keyring}:\n{}",
            String::from_utf8_lossy(&result.stderr)
        );
    }
    Ok(std::fs::read_to_string(output)?)
}

fn signed_at(release: &str) -> anyhow::Result<i64> {
    let text = release.lines().find_map(|line| line.strip_prefix("Date:")).context("Release has no date")?;
    let text = text.trim().replace("UTC", "+0000");
    let time = jiff::fmt::rfc2822::parse(&text).context("date of the Release file")?;
    Ok(time.timestamp().as_second())
}

/// The sha256 of a file as the Release file lists it.
fn sum_of(release: &str, name: &str) -> Option<String> {
    let list = release.split_once("\nSHA256:")?.1;
    let lines = list.lines().skip(1).take_while(|line| line.starts_with(' '));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).find_map(|words| match words.as_slice() {
        [sum, _, found] if *found == name => Some((*sum).to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "Suite: stable\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nMD5Sum:\n 11 5 main/a\nSHA256:\n 22 5 main/a\n 33 6 main/b\n";

    #[test]
    fn a_release_file_tells_date_and_sums() {
        assert_eq!(signed_at(RELEASE).unwrap(), 1_795_252_544);
        assert_eq!(sum_of(RELEASE, "main/a").as_deref(), Some("22"));
        assert_eq!(sum_of(RELEASE, "main/c"), None);
    }

    #[test]
    fn a_package_without_content_is_followed_to_the_kernel() {
        let mut index = Index::default();
        let stanza = |name: &str, depends: &str| {
            format!(
                "Package: {name}\nArchitecture: amd64\nVersion: 1\nSHA256: 0\nSize: 1\nFilename: f\nDepends: {depends}\n"
            )
        };
        let text = [
            stanza("linux-image-amd64", "linux-image-6.12-amd64 (= 1)"),
            stanza("linux-image-6.12-amd64", "kmod"),
        ];
        index.add(&text.join("\n"), Architecture::Amd64);
        let kernel = index.followed("linux-image-amd64", Architecture::Amd64).unwrap();
        assert_eq!(kernel.name, "linux-image-6.12-amd64");
        assert!(index.newest("none", Architecture::Amd64).is_err());
    }
}
