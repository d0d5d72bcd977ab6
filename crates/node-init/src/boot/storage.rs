// SPDX-License-Identifier: Apache-2.0
//! Disks and their partitions, as the kernel shows them and as their tables say.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk::gpt::{Copies, Table, Write};

use super::{BootError, at};

const CLASS: &str = "/sys/class/block";
/// Sizes in /sys are in these, whatever the disk's own are.
const SYS_SECTOR: u64 = 512;

/// A disk with a partition table.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) table: Table,
    pub(super) copies: Copies,
}

/// Names of all disks that have a size: no partitions, no devices made of others.
pub(super) fn names() -> Vec<String> {
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_disk = |name: &String| {
        let made = ["loop", "ram", "dm-", "zram", "sr", "md"];
        !made.iter().any(|kind| name.starts_with(kind))
            && !Path::new(CLASS).join(name).join("partition").exists()
            && number(&Path::new(CLASS).join(name).join("size")).is_some_and(|size| size > 0)
    };
    let mut names: Vec<String> = names.filter(is_disk).collect();
    names.sort();
    names
}

impl Disk {
    pub(super) fn open(name: &str) -> Result<Disk, BootError> {
        let path = Path::new(CLASS).join(name);
        let sector_bytes = number(&path.join("queue/logical_block_size")).unwrap_or(SYS_SECTOR);
        let bytes = number(&path.join("size")).unwrap_or(0) * SYS_SECTOR;
        let device = device(name);
        let file = File::open(&device).map_err(at("cannot open", &device))?;
        let sector = u32::try_from(sector_bytes).unwrap_or(0);
        let read = Table::read(sector, bytes / sector_bytes.max(1), |at, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            Ok::<_, std::io::Error>(bytes)
        });
        let (table, copies) = read.map_err(|error| BootError::Table {
            disk: name.to_owned(),
            what: crate::supervise::chain(&error),
        })?;
        Ok(Disk { name: name.to_owned(), table, copies })
    }

    /// The kernel's name of a partition.
    pub(super) fn partition(&self, wanted: u32) -> Option<String> {
        let entries = fs::read_dir(Path::new(CLASS).join(&self.name)).ok()?.flatten();
        let is_it = |path: &PathBuf| number(&path.join("partition")) == Some(wanted.into());
        let found = entries.map(|entry| entry.path()).find(is_it)?;
        Some(found.file_name()?.to_str()?.to_owned())
    }

    /// `major:minor` of a partition.
    pub(super) fn numbers(&self, wanted: u32) -> Option<String> {
        let path = Path::new(CLASS).join(self.partition(wanted)?).join("dev");
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    }

    pub(super) fn file(&self) -> Result<File, BootError> {
        let device = device(&self.name);
        File::options().read(true).write(true).open(&device).map_err(at("cannot open", &device))
    }

    /// Writes the table; whenever power goes, one copy is whole.
    pub(super) fn write_table(&self, file: &File) -> Result<(), BootError> {
        for write in self.table.writes() {
            match write {
                Write::At { offset, bytes } => file.write_all_at(&bytes, offset),
                Write::Flush => file.sync_all(),
            }
            .map_err(at("cannot write the partition table of", &self.name))?;
        }
        Ok(())
    }
}

pub(super) fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
