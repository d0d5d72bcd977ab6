// SPDX-License-Identifier: Apache-2.0
//! Disks and their partitions, as the kernel shows them and as their tables say.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk::gpt::{Copies, Table, Write};

use super::dm::{self, Access, Target};
use super::{BootError, at};

const CLASS: &str = "/sys/class/block";
/// Sizes in /sys are in these, whatever the disk's own are.
const SYS_SECTOR: u64 = 512;
/// Of a CD. Its table of partitions is that of a stick.
const CD_SECTOR: u64 = 2048;
const CD: &str = "sr";

/// A disk with a partition table.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) table: Table,
    pub(super) copies: Copies,
}

/// Names of all disks that have a size: no partitions, no devices made of others.
pub(super) fn names() -> Vec<String> {
    named(|name| !name.starts_with(CD))
}

/// The same, and CDs: what an installation medium may be in.
pub(super) fn media() -> Vec<String> {
    named(|_| true)
}

fn named(is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_disk = |name: &String| {
        let made = ["loop", "ram", "dm-", "zram", "md"];
        !made.iter().any(|kind| name.starts_with(kind))
            && !Path::new(CLASS).join(name).join("partition").exists()
            && number(&Path::new(CLASS).join(name).join("size")).is_some_and(|size| size > 0)
    };
    let mut names: Vec<String> = names.filter(|name| is_wanted(name) && is_disk(name)).collect();
    names.sort();
    names
}

impl Disk {
    pub(super) fn open(name: &str) -> Result<Disk, BootError> {
        let device = device(name);
        // before its size: that of a CD is only known once it was opened
        let file = File::open(&device).map_err(at("cannot open", &device))?;
        let sector_bytes = sector_bytes(name);
        let bytes = bytes(name);
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

    /// The kernel's name of a partition; where the kernel shows none, of a device made for it, now or before.
    pub(super) fn part(&self, wanted: u32, access: Access) -> Result<String, BootError> {
        if let Some(name) = self.partition(wanted).or_else(|| made(&self.mapped_name(wanted))) {
            return Ok(name);
        }
        self.mapped(wanted, access)
    }

    /// A device made for a partition that the kernel does not know, or knows from an older table.
    pub(super) fn mapped(&self, wanted: u32, access: Access) -> Result<String, BootError> {
        let no = |what: &str| BootError::Table {
            disk: self.name.clone(),
            what: format!("partition {wanted}: {what}"),
        };
        let partition = self.table.partitions.get(&wanted).ok_or_else(|| no("there is none"))?;
        let disk = numbers(&self.name).ok_or_else(|| no("its disk has no number"))?;
        let per = u64::from(self.table.sector_bytes) / SYS_SECTOR;
        let parameters = format!("{disk} {}", partition.first * per);
        let target =
            Target { kind: "linear", sectors: partition.sectors() * per, parameters: &parameters, access };
        dm::make(&self.mapped_name(wanted), target)
    }

    fn mapped_name(&self, wanted: u32) -> String {
        format!("{}-{wanted}", self.name)
    }

    pub(super) fn file(&self) -> Result<File, BootError> {
        let device = device(&self.name);
        File::options().read(true).write(true).open(&device).map_err(at("cannot open", &device))
    }

    /// Writes the table; whenever power goes, one copy is whole.
    pub(super) fn write_table(&self, file: &File) -> Result<(), BootError> {
        perform(self.table.writes(), file, &self.name)
    }
}

/// Writes to a disk in order.
pub(super) fn perform(writes: Vec<Write>, file: &File, name: &str) -> Result<(), BootError> {
    for write in writes {
        match write {
            Write::At { offset, bytes } => file.write_all_at(&bytes, offset),
            Write::Flush => file.sync_all(),
        }
        .map_err(at("cannot write the partition table of", name))?;
    }
    Ok(())
}

pub(super) fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

/// The device of the device mapper that has this name.
fn made(name: &str) -> Option<String> {
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    let is_it =
        |path: &PathBuf| fs::read_to_string(path.join("dm/name")).is_ok_and(|text| text.trim() == name);
    let found = entries.map(|entry| entry.path()).find(is_it)?;
    Some(found.file_name()?.to_str()?.to_owned())
}

/// `major:minor` of a disk, a partition, a device made of others.
pub(super) fn numbers(name: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new(CLASS).join(name).join("dev")).ok()?.trim().to_owned())
}

/// Of its table.
pub(super) fn sector_bytes(name: &str) -> u64 {
    let own = number(&Path::new(CLASS).join(name).join("queue/logical_block_size"));
    own.filter(|bytes| *bytes != CD_SECTOR).unwrap_or(SYS_SECTOR)
}

/// Of a disk.
pub(super) fn bytes(name: &str) -> u64 {
    number(&Path::new(CLASS).join(name).join("size")).unwrap_or(0) * SYS_SECTOR
}

/// A part of a disk, or of a device made of others.
pub(super) fn read(name: &str, at_byte: u64, length: usize) -> Result<Vec<u8>, BootError> {
    let device = device(name);
    let file = File::open(&device).map_err(at("cannot open", &device))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at_byte).map_err(at("cannot read", &device))?;
    Ok(bytes)
}

pub(super) fn is_read_only(name: &str) -> bool {
    number(&Path::new(CLASS).join(name).join("ro")) == Some(1)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
