// SPDX-License-Identifier: Apache-2.0
//! The entry by which the firmware starts the new disk before all others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use disk::firmware::{self, Entry, GLOBAL};
use disk::gpt::Table;
use disk::partitions::{Architecture, NUMBER_ESP};
use rustix::mount::{MountFlags, mount};

use super::VARIABLES;
use crate::boot::modules::Modules;
use crate::boot::{BootError, at, call};

const TITLE: &str = "Selvedge";

/// Writes it in place of an earlier one of ours; gives its name.
pub(super) fn set(table: &Table, modules: &mut Modules) -> Result<String, BootError> {
    let no_esp = || BootError::Table { disk: "the target".into(), what: "there is no ESP".into() };
    let partition = table.partitions.get(&NUMBER_ESP).ok_or_else(no_esp)?;
    let file = match Architecture::OWN {
        Architecture::Amd64 => "\\EFI\\BOOT\\BOOTX64.EFI",
        Architecture::Arm64 => "\\EFI\\BOOT\\BOOTAA64.EFI",
    };
    let entry = Entry { title: TITLE, number: NUMBER_ESP, partition, file };
    modules.load_named("efivarfs");
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("efivarfs", VARIABLES, "efivarfs", quiet, None)
        .map_err(call("reaching the firmware's variables"))?;
    let dir = Path::new(VARIABLES);
    let number = choose(&titles(dir)?);
    let name = format!("Boot{number:04X}");
    let path = |name: &str| dir.join(format!("{name}-{GLOBAL}"));
    write(&path(&name), &entry.variable())?;
    let order = path("BootOrder");
    let before = fs::read(&order).unwrap_or_default();
    write(&order, &firmware::first_in_order(&before, number))?;
    Ok(name)
}

fn titles(dir: &Path) -> Result<BTreeMap<u16, String>, BootError> {
    let entries = fs::read_dir(dir).map_err(at("cannot read", dir))?.flatten();
    let numbered =
        entries.filter_map(|entry| Some((firmware::number(entry.file_name().to_str()?)?, entry.path())));
    let title = |path: PathBuf| firmware::title(&fs::read(path).ok()?);
    Ok(numbered.map(|(number, path)| (number, title(path).unwrap_or_default())).collect())
}

/// Ours, else the first that is free.
fn choose(titles: &BTreeMap<u16, String>) -> u16 {
    let own = titles.iter().find(|(_, title)| *title == TITLE).map(|(number, _)| *number);
    own.or_else(|| (0..u16::MAX).find(|number| !titles.contains_key(number))).unwrap_or(0)
}

/// In one call, as the kernel wants it.
fn write(path: &Path, content: &[u8]) -> Result<(), BootError> {
    fs::write(path, content).map_err(at("cannot write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_entry_of_ours_is_replaced_and_no_other() {
        let titles = |all: &[(u16, &str)]| all.iter().map(|(n, title)| (*n, (*title).to_owned())).collect();
        assert_eq!(choose(&titles(&[(0, "UiApp"), (1, "disk")])), 2);
        assert_eq!(choose(&titles(&[(0, "UiApp"), (5, "Selvedge")])), 5);
        assert_eq!(choose(&titles(&[])), 0);
    }
}
