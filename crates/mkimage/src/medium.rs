// SPDX-License-Identifier: Apache-2.0
//! The installation medium: one image for CD and for USB stick.
//!
//! ```text
//! 1 ESP: the installer's kernel image   2 root  3 hash tree   6 CONFIG   8 what becomes the ESP of the target
//! ```
//! The installer is the root of the node itself, started with other words on the command line of its kernel image: the id of
//! the medium, and the hash of what it puts onto the target's ESP. So all that is copied is checked before it is used.

use std::fs::File;
use std::path::Path;

use disk::gpt::{Partition, Table};
use disk::partitions::{self, Architecture, NAME_CONFIG};
use uuid::Uuid;

use crate::build::{MIB, SECTOR, offset, window, write_at, write_table};
use crate::fetch::sha256;
use crate::{fat, iso};

const VOLUME: &str = "SELVEDGE";
/// Of a file system beside its files: tables and directories.
const SLACK: usize = 1 << 20;
const TEXT: &str = "This medium installs Selvedge on a machine with UEFI.\r\n\
    It takes the only disk without data, or the one that is named in\r\n\
    installer.options on its partition CONFIG (selvedge image bundle).\r\n";

/// What lies on it.
#[derive(Debug)]
pub(crate) struct Medium<'a> {
    pub(crate) architecture: Architecture,
    pub(crate) root: &'a crate::root::Root,
    /// Of the node's ESP, without the zeros behind it.
    pub(crate) new_esp: &'a [u8],
    pub(crate) config_mib: u32,
}

impl Medium<'_> {
    fn id(&self, of: &str) -> Uuid {
        let hash = disk::verity::hex(&self.root.verity.hash);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("medium {of} {hash}").as_bytes())
    }

    /// What makes a kernel image the one of the installer.
    pub(crate) fn words(&self) -> Vec<String> {
        vec![
            format!("selvedge.install={}", sha256(self.new_esp)),
            format!("selvedge.medium={}", self.id("ESP")),
        ]
    }

    pub(crate) fn write(&self, path: &Path, installer: &[u8]) -> anyhow::Result<()> {
        let (root_id, tree_id) = partitions::ids_of_root(&self.root.verity.hash);
        let config_bytes = self.config_mib as usize * MIB as usize;
        let all = [
            (partitions::NUMBER_ESP, partitions::ESP, "ESP", self.id("ESP"), installer.len() + SLACK),
            (2, self.architecture.root(), "root", root_id, self.root.data.len()),
            (3, self.architecture.root_verity(), "root-verity", tree_id, self.root.tree.len()),
            (partitions::NUMBER_CONFIG, partitions::CONFIG, NAME_CONFIG, self.id(NAME_CONFIG), config_bytes),
            (
                partitions::NUMBER_NEW_ESP,
                partitions::NEW_ESP,
                "new-ESP",
                self.id("new-ESP"),
                self.new_esp.len(),
            ),
        ];
        let whole = |bytes: usize| (bytes as u64).next_multiple_of(MIB);
        let bytes = all.iter().map(|(.., bytes)| whole(*bytes)).sum::<u64>() + 2 * MIB;
        let mut table = Table::new(self.id("disk"), SECTOR, bytes / u64::from(SECTOR));
        for (number, kind, name, id, bytes) in all {
            let partition = Partition { kind, id, first: 0, last: 0, attributes: 0, name: name.into() };
            table.append(number, whole(bytes) / u64::from(SECTOR), partition)?;
        }
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(bytes)?;
        write_table(&file, &table)?;
        for (number, content) in
            [(2, &self.root.data[..]), (3, &self.root.tree), (partitions::NUMBER_NEW_ESP, self.new_esp)]
        {
            write_at(&file, offset(&table, number), content)?;
        }
        let volume_number =
            |id: Uuid| u32::from_le_bytes(id.into_bytes()[..4].try_into().unwrap_or_default());
        let esp = partitions::NUMBER_ESP;
        let files = [(removable(self.architecture).to_owned(), installer.to_vec())];
        let volume = fat::Volume::for_firmware("INSTALLER", volume_number(self.id("ESP")));
        fat::make(window(&file, &table, esp), volume, &files)?;
        let config = window(&file, &table, partitions::NUMBER_CONFIG);
        let volume = fat::Volume::for_any_disk(NAME_CONFIG, volume_number(self.id(NAME_CONFIG)));
        fat::make(config, volume, &[])?;
        let esp_bytes = table.partitions.get(&esp).map_or(0, Partition::sectors) * u64::from(SECTOR);
        let boot = (offset(&table, esp), esp_bytes);
        let descriptors = iso::descriptors(&iso::Medium { volume: VOLUME, bytes, boot, text: TEXT });
        write_at(&file, iso::OFFSET, &descriptors)?;
        file.sync_all()?;
        Ok(())
    }
}

/// What a firmware starts of a disk that it knows nothing about.
pub(crate) fn removable(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "EFI/BOOT/BOOTX64.EFI",
        Architecture::Arm64 => "EFI/BOOT/BOOTAA64.EFI",
    }
}
