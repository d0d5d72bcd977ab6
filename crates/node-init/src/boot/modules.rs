// SPDX-License-Identifier: Apache-2.0
//! Kernel modules: those of the image and no others, by the index that the builder wrote (`mkimage`, modules).
//!
//! For each device that the kernel shows the modules are loaded that want it. Later the kernel asks by itself for file systems,
//! protocols and rules (`/proc/sys/kernel/modprobe`): the same executable answers, as a process of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::glob::fits;
use super::{BootError, at};

pub const DIRECTORY: &str = "/usr/lib/modules";
/// Modules of one chain of dependencies; the index has no longer one.
const DEPTH_MAX: usize = 32;
/// New drivers show new devices, which want new drivers.
const ROUNDS_MAX: usize = 8;
/// Directories of devices below each other.
const DEVICES_DEPTH_MAX: usize = 24;

#[derive(Debug, Default)]
pub struct Modules {
    directory: PathBuf,
    modules: BTreeMap<String, Module>,
    aliases: Vec<(String, String)>,
    always: Vec<String>,
    loaded: BTreeSet<String>,
    /// Devices that were looked at.
    seen: BTreeSet<String>,
}

#[derive(Debug)]
struct Module {
    path: String,
    depends: Vec<String>,
}

impl Modules {
    pub fn open(directory: &str) -> Result<Modules, BootError> {
        let path = Path::new(directory).join("index");
        let text = fs::read_to_string(&path).map_err(at("cannot read", &path))?;
        Ok(Modules::parse(directory, &text))
    }

    fn parse(directory: &str, text: &str) -> Modules {
        let mut modules = Modules { directory: directory.into(), ..Modules::default() };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["module", name, path, depends] => {
                    let depends = depends.split(',').filter(|name| *name != "-").map(str::to_owned).collect();
                    modules.modules.insert((*name).to_owned(), Module { path: (*path).to_owned(), depends });
                }
                ["alias", pattern, name] => modules.aliases.push(((*pattern).to_owned(), (*name).to_owned())),
                ["load", name] => modules.always.push((*name).to_owned()),
                _ => {}
            }
        }
        modules
    }

    /// Loads what the recipe wants at every boot. What fails is said and left out.
    pub fn load_always(&mut self) {
        for name in self.always.clone() {
            self.load_or_say(&name);
        }
    }

    /// Loads what the devices want that are there now. Says how many modules were new.
    pub fn load_for_devices(&mut self) -> usize {
        let before = self.loaded.len();
        for _ in 0..ROUNDS_MAX {
            let mut found = BTreeSet::new();
            collect(Path::new("/sys/devices"), DEVICES_DEPTH_MAX, &mut found);
            let fresh: Vec<String> = found.difference(&self.seen).cloned().collect();
            if fresh.is_empty() {
                break;
            }
            for device in fresh {
                for name in self.named(&device) {
                    self.load_or_say(&name);
                }
                self.seen.insert(device);
            }
        }
        self.loaded.len() - before
    }

    /// Loads the module of this name, or all that have the alias. Nothing of that name: false.
    pub fn load_named(&mut self, wanted: &str) -> bool {
        let plain = wanted.replace('-', "_");
        let names = if self.modules.contains_key(&plain) { vec![plain] } else { self.named(wanted) };
        names.iter().for_each(|name| self.load_or_say(name));
        !names.is_empty()
    }

    fn named(&self, alias: &str) -> Vec<String> {
        let fitting = self.aliases.iter().filter(|(pattern, _)| fits(pattern, alias));
        fitting.map(|(_, name)| name.clone()).collect()
    }

    fn load_or_say(&mut self, name: &str) {
        if let Err(error) = self.load(name, 0) {
            eprintln!("selvedge: {error}");
        }
    }

    fn load(&mut self, name: &str, depth: usize) -> Result<(), BootError> {
        let Some(module) = self.modules.get(name) else { return Ok(()) };
        if depth > DEPTH_MAX || !self.loaded.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.directory.join(&module.path);
        for other in module.depends.clone() {
            self.load(&other, depth + 1)?;
        }
        let file = File::open(&path).map_err(at("cannot open", &path))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // There already; or a driver for a processor that is another one.
            Ok(()) | Err(Errno::EXIST | Errno::NODEV) => Ok(()),
            Err(error) => Err(BootError::Module(format!("{name} cannot be loaded: {error}"))),
        }
    }
}

/// What each device is, as drivers know it.
fn collect(dir: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            collect(&entry.path(), depth - 1, found);
        } else if kind.is_file() && entry.file_name() == "modalias" {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            found.insert(text.trim_end().to_owned());
        }
    }
}

/// What the kernel asks for: `modprobe -q -- NAME`.
pub fn answer(arguments: &[String]) -> bool {
    let Some(name) = arguments.iter().find(|argument| !argument.starts_with('-')) else { return false };
    match Modules::open(DIRECTORY) {
        Ok(mut modules) => modules.load_named(name),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str =
        "module a kernel/a.ko -\nmodule b_c kernel/b-c.ko a\nalias pci:v1* b_c\nalias fs-b b_c\nload a\n";

    #[test]
    fn an_index_names_modules_by_device_and_alias() {
        let modules = Modules::parse("/m", INDEX);
        assert_eq!(modules.named("pci:v12"), ["b_c"]);
        assert_eq!(modules.named("fs-b"), ["b_c"]);
        assert!(modules.named("pci:v2").is_empty());
        assert_eq!(modules.modules["b_c"].depends, ["a"]);
        assert_eq!(modules.always, ["a"]);
    }
}
