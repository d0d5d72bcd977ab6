// SPDX-License-Identifier: Apache-2.0
//! Kernel modules: those a recipe names and what they depend on, unpacked, with an index that init reads.
//!
//! The index is a text of lines, in the order in which nothing depends on what comes later:
//!
//! ```text
//! module NAME PATH DEPENDENCY,DEPENDENCY     path relative to the index; `-` for no dependency
//! alias PATTERN NAME                         a device, file system or protocol that wants the module
//! load NAME                                  loaded at every boot
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::deb::unxz;
use crate::elf::modinfo;
use crate::tree::{Node, Tree};

/// Directory of modules in an image. Nothing but our init loads any.
pub(crate) const DIRECTORY: &str = "usr/lib/modules";
pub(crate) const INDEX: &str = "usr/lib/modules/index";
/// A chain of dependencies is never longer.
const DEPTH_MAX: usize = 32;

/// All modules of a kernel package, packed as they come.
pub(crate) struct Modules {
    /// By name with underscores; path below `kernel/`.
    packed: BTreeMap<String, (String, Arc<[u8]>)>,
    built_in: BTreeSet<String>,
}

struct Chosen {
    path: String,
    content: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

impl Modules {
    pub(crate) fn of(kernel: &Tree) -> anyhow::Result<Modules> {
        let mut modules = Modules { packed: BTreeMap::new(), built_in: BTreeSet::new() };
        for (path, node) in kernel.matching("usr/lib/modules/") {
            let Node::File { content, .. } = node else { continue };
            if let Some((_, inner)) = path.split_once("/kernel/") {
                modules.packed.insert(name(inner), (inner.to_owned(), content.clone()));
            } else if path.ends_with("/modules.builtin") {
                modules.built_in.extend(String::from_utf8_lossy(content).lines().map(name));
            }
        }
        if modules.packed.is_empty() {
            bail!("the kernel package has no modules");
        }
        Ok(modules)
    }

    /// Puts the modules that are named, all they depend on, and their index into a tree.
    pub(crate) fn add(&self, wanted: &[String], load: &[String], tree: &mut Tree) -> anyhow::Result<()> {
        let (mut chosen, mut order) = (BTreeMap::new(), Vec::new());
        for wanted in wanted {
            if let Some(directory) = wanted.strip_suffix('/') {
                let below = format!("{directory}/");
                let inside = self.packed.iter().filter(|(_, (path, _))| path.starts_with(&below));
                let names: Vec<&String> = inside.map(|(name, _)| name).collect();
                if names.is_empty() {
                    bail!("the kernel has no modules below {wanted}");
                }
                for name in names {
                    self.choose(name, &mut chosen, &mut order, 0)?;
                }
            } else {
                let name = name(wanted);
                if !self.choose(&name, &mut chosen, &mut order, 0)? {
                    bail!("the kernel has no module {wanted}");
                }
            }
        }
        let mut index = String::new();
        for name in &order {
            let Some(module) = chosen.get(name) else { continue };
            let depends = if module.depends.is_empty() { "-".into() } else { module.depends.join(",") };
            writeln!(index, "module {name} {} {depends}", module.path)?;
        }
        for (name, module) in &chosen {
            for alias in &module.aliases {
                writeln!(index, "alias {alias} {name}")?;
            }
        }
        for wanted in load {
            let name = name(wanted);
            if chosen.contains_key(&name) {
                writeln!(index, "load {name}")?;
            } else if !self.built_in.contains(&name) {
                bail!("module {wanted} is to be loaded, but it is not among the modules of the recipe");
            }
        }
        tree.file(INDEX, index.into_bytes(), false);
        for module in chosen.into_values() {
            tree.file(&format!("{DIRECTORY}/{}", module.path), module.content, false);
        }
        Ok(())
    }

    /// False: neither a module nor built in.
    fn choose(
        &self,
        name: &str,
        chosen: &mut BTreeMap<String, Chosen>,
        order: &mut Vec<String>,
        depth: usize,
    ) -> anyhow::Result<bool> {
        if chosen.contains_key(name) || self.built_in.contains(name) {
            return Ok(true);
        }
        let Some((path, packed)) = self.packed.get(name) else { return Ok(false) };
        if depth > DEPTH_MAX {
            bail!("module {name} depends on itself");
        }
        let read = || -> anyhow::Result<_> {
            let content = if path.ends_with(".xz") { unxz(packed)? } else { packed.to_vec() };
            let info = modinfo(&content)?;
            Ok((content, info))
        };
        let (content, info) = read().with_context(|| format!("module {path}"))?;
        let mut depends = Vec::new();
        for (field, value) in &info {
            match field.as_str() {
                "depends" => depends.extend(value.split(',').filter(|name| !name.is_empty()).map(self::name)),
                // wished for: not a fault when the kernel has none
                "softdep" => depends.extend(soft(value).filter(|name| self.packed.contains_key(name))),
                _ => {}
            }
        }
        depends.retain(|other| other != name && !self.built_in.contains(other));
        depends.dedup();
        let aliases = info.into_iter().filter(|(field, value)| field == "alias" && !value.contains(' '));
        let aliases = aliases.map(|(_, value)| value).collect();
        for other in &depends {
            if !self.choose(other, chosen, order, depth + 1)? {
                bail!("module {name} depends on {other}, which the kernel does not have");
            }
        }
        let path = format!("kernel/{}", path.trim_end_matches(".xz"));
        chosen.insert(name.to_owned(), Chosen { path, content, depends, aliases });
        order.push(name.to_owned());
        Ok(true)
    }
}

/// `pre: a b post: c`: what is wished before.
fn soft(text: &str) -> impl Iterator<Item = String> {
    let pre = text.split("pre:").nth(1).unwrap_or_default().split("post:").next().unwrap_or_default();
    pre.split_whitespace().map(name).collect::<Vec<_>>().into_iter()
}

/// As the kernel calls it: the file's name with underscores.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.trim_end_matches(".xz").trim_end_matches(".ko").replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(name("drivers/net/virtio-net.ko.xz"), "virtio_net");
        assert_eq!(soft("pre: crc32c aes-x86 post: z").collect::<Vec<_>>(), ["crc32c", "aes_x86"]);
    }
}
