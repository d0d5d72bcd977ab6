// SPDX-License-Identifier: Apache-2.0
//! The recipe as written, in YAML. Unknown fields are refused with their line.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use disk::partitions::{Architecture, Layout};
use serde::Deserialize;

pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub format: u32,
    /// Name of the product: of files and of the system.
    pub name: String,
    pub archive: Archive,
    pub kernel: Kernel,
    pub boot: Boot,
    /// Executables of ours, from the directory of a build.
    pub programs: Vec<String>,
    /// Parts of Debian packages in the root.
    pub packages: Vec<Part>,
    #[serde(default)]
    pub files: Vec<File>,
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// Empty directories, mostly to mount on.
    pub directories: Vec<String>,
    /// Packages with programs that build the image; never inside it.
    pub tools: Vec<String>,
    #[serde(with = "Partitions")]
    pub partitions: Layout,
}

/// Where packages come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    pub mirror: String,
    pub suite: String,
    pub component: String,
    /// Keys that sign the archive, as Debian installs them.
    pub keyring: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// By architecture; a package that stands for the newest kernel is followed.
    pub package: BTreeMap<String, String>,
    /// Console devices, by architecture; the last one is where messages of init go.
    pub console: BTreeMap<String, String>,
    pub command_line: Vec<String>,
    /// Modules of the initrd: names, or directories with a slash at the end. What they depend on comes along.
    pub initrd_modules: Vec<String>,
    pub modules: Vec<String>,
    /// Loaded at every boot, whatever devices there are.
    pub load: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    pub package: String,
    /// Seconds that the boot loader waits for a key.
    pub timeout_s: u32,
}

/// Files of one package; a path with a slash at the end is a directory with all that is in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub name: String,
    /// `{triplet}` is the directory of libraries of the architecture.
    pub files: Vec<String>,
    /// The files, one after the other in the order of their names, as one file of this path instead.
    #[serde(default)]
    pub joined: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: String,
    pub content: String,
}

/// MiB each.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, remote = "Layout")]
struct Partitions {
    esp: u32,
    root: u32,
    root_verity: u32,
    config: u32,
    reserved: u32,
}

impl Recipe {
    pub fn read(path: &Path) -> anyhow::Result<Recipe> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read recipe {}", path.display()))?;
        Recipe::parse(&text).with_context(|| format!("recipe {}", path.display()))
    }

    pub fn parse(text: &str) -> anyhow::Result<Recipe> {
        let recipe: Recipe = serde_saphyr::from_str(text)?;
        if recipe.format != FORMAT {
            bail!("format {} is not known, only {FORMAT}", recipe.format);
        }
        let paths = recipe.packages.iter().flat_map(|part| part.files.iter().chain(&part.joined));
        let paths = paths.chain(recipe.files.iter().map(|file| &file.path));
        let paths = paths.chain(recipe.links.keys()).chain(&recipe.directories);
        if let Some(bad) = paths.into_iter().find(|path| !is_inside(path)) {
            bail!(
                "path {bad:?} is not relative to the root and plain: write usr/bin, not /usr/bin or ../bin"
            );
        }
        for arch in recipe.kernel.package.keys().chain(recipe.kernel.console.keys()) {
            architecture(arch)?;
        }
        Ok(recipe)
    }

    /// Kernel package and console of an architecture.
    pub fn kernel_of(&self, arch: Architecture) -> anyhow::Result<(&str, &str)> {
        let of = |map: &BTreeMap<String, String>| map.get(arch.name()).map(String::as_str).map(str::to_owned);
        if of(&self.kernel.package).is_none() || of(&self.kernel.console).is_none() {
            bail!("the recipe names no kernel package or no console for {}", arch.name());
        }
        Ok((&self.kernel.package[arch.name()], &self.kernel.console[arch.name()]))
    }

    /// All architectures it can be built for.
    pub fn architectures(&self) -> anyhow::Result<Vec<Architecture>> {
        self.kernel.package.keys().map(|name| architecture(name)).collect()
    }
}

pub fn architecture(name: &str) -> anyhow::Result<Architecture> {
    match name {
        "amd64" | "x86_64" => Ok(Architecture::Amd64),
        "arm64" | "aarch64" => Ok(Architecture::Arm64),
        other => bail!("architecture {other:?} is not known: amd64 or arm64"),
    }
}

/// Directory of libraries of Debian's packages.
pub fn triplet(arch: Architecture) -> &'static str {
    match arch {
        Architecture::Amd64 => "x86_64-linux-gnu",
        Architecture::Arm64 => "aarch64-linux-gnu",
    }
}

fn is_inside(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('/') && path.split('/').all(|part| part != ".." && part != ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = include_str!("../../../image/node.yml");

    #[test]
    fn the_recipe_of_the_node_is_valid() {
        let recipe = Recipe::parse(NODE).unwrap();
        assert!(recipe.architectures().unwrap().contains(&Architecture::Amd64));
    }

    #[test]
    fn mistakes_are_named() {
        let broken = |from: &str, to: &str| {
            assert!(NODE.contains(from), "{from}");
            format!("{:#}", Recipe::parse(&NODE.replacen(from, to, 1)).unwrap_err())
        };
        assert!(broken("format: 1", "format: 9").contains("format 9 is not known"));
        assert!(broken("\ntools:", "\ntoolz:").contains("toolz"));
        assert!(broken("[usr/sbin/mke2fs", "[/usr/sbin/mke2fs").contains("write usr/bin"));
    }
}
