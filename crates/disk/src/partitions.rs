// SPDX-License-Identifier: Apache-2.0
//! The partitions of a node's disk. Kinds are those of the Discoverable Partitions Specification; CONFIG and P3 have the kinds
//! and names that EVE gives them.
//!
//! ```text
//! 1 ESP   2 root-A  3 root-A-verity   4 root-B  5 root-B-verity   6 CONFIG   7 reserved   9 P3 (the rest)
//! ```
//! A root is found by its hash alone: the ids of the root and of its hash tree are the two halves of the root hash. So a
//! kernel that knows its root hash finds its slot whatever the slot is called, and can find no other.

use alloc::format;
use alloc::string::String;

use uuid::{Uuid, uuid};

use crate::gpt::{Partition, PlaceError, Table};
use crate::verity::Hash;

pub const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
pub const CONFIG: Uuid = uuid!("13307e62-cd9c-4920-8f9b-91b45828b798");
pub const PERSIST: Uuid = uuid!("5f24425a-2dfa-11e8-a270-7b663faccc2c");
pub const RESERVED: Uuid = uuid!("8da63339-0007-60c0-c436-083ac8230908");

/// Of an installation medium: the file system that becomes the ESP of the target.
pub const NEW_ESP: Uuid = uuid!("c3c5a9a4-6f0e-4f0b-9b3e-0d6d2f5f7a11");

pub const NUMBER_ESP: u32 = 1;
/// Root and hash tree of each slot.
pub const NUMBERS_SLOTS: [(u32, u32); 2] = [(2, 3), (4, 5)];
pub const NUMBER_CONFIG: u32 = 6;
pub const NUMBER_RESERVED: u32 = 7;
pub const NUMBER_NEW_ESP: u32 = 8;
pub const NUMBER_PERSIST: u32 = 9;

pub const NAME_CONFIG: &str = "CONFIG";
pub const NAME_PERSIST: &str = "P3";
/// Of a P3 whose file system is not finished: it may be made again. Once it is called [`NAME_PERSIST`] it never is.
pub const NAME_PERSIST_UNFINISHED: &str = "P3-unfinished";
pub const NAMES_SLOTS: [(&str, &str); 2] = [("root-A", "root-A-verity"), ("root-B", "root-B-verity")];

/// Which processor an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// That of this program.
    pub const OWN: Architecture =
        if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::Amd64 };

    /// As Debian and eve-api call it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    pub fn root(self) -> Uuid {
        match self {
            Architecture::Amd64 => uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
            Architecture::Arm64 => uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"),
        }
    }

    pub fn root_verity(self) -> Uuid {
        match self {
            Architecture::Amd64 => uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
            Architecture::Arm64 => uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
        }
    }
}

/// Ids of the root with this hash and of its hash tree.
pub fn ids_of_root(root_hash: &Hash) -> (Uuid, Uuid) {
    let (mut root, mut tree) = ([0; 16], [0; 16]);
    root.copy_from_slice(&root_hash[..16]);
    tree.copy_from_slice(&root_hash[16..]);
    (Uuid::from_bytes(root), Uuid::from_bytes(tree))
}

/// Sizes of the partitions in MiB, as the recipe has them and a root says them to an installer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub esp: u32,
    pub root: u32,
    pub root_verity: u32,
    pub config: u32,
    pub reserved: u32,
}

/// Where a root keeps its layout.
pub const LAYOUT: &str = "usr/lib/selvedge/layout";
const LAYOUT_FORMAT: u32 = 1;
const MIB: u64 = 1 << 20;

impl Layout {
    /// As a line of a file.
    pub fn line(&self) -> String {
        let Layout { esp, root, root_verity, config, reserved } = self;
        format!(
            "format={LAYOUT_FORMAT} esp={esp} root={root} root_verity={root_verity} config={config} reserved={reserved}\n"
        )
    }

    pub fn parse(line: &str) -> Option<Layout> {
        let value = |name: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<u32>().ok())
        };
        if value("format")? != LAYOUT_FORMAT {
            return None;
        }
        Some(Layout {
            esp: value("esp")?,
            root: value("root")?,
            root_verity: value("root_verity")?,
            config: value("config")?,
            reserved: value("reserved")?,
        })
    }

    /// Of a disk without P3: the partitions, and a MiB for the table at either end.
    pub fn mib(&self) -> u64 {
        let slots = 2 * (u64::from(self.root) + u64::from(self.root_verity));
        u64::from(self.esp) + slots + u64::from(self.config) + u64::from(self.reserved) + 2
    }

    /// The table of a disk whose slot A has this root. `id` gives the disk (`disk`) and each partition its own id, by name.
    pub fn table(
        &self,
        architecture: Architecture,
        root_hash: &Hash,
        (sector_bytes, sectors): (u32, u64),
        mut id: impl FnMut(&str) -> Uuid,
    ) -> Result<Table, PlaceError> {
        let mut table = Table::new(id("disk"), sector_bytes, sectors);
        let mut add = |number, kind, name: &str, id, mib: u32| {
            let partition = Partition { kind, id, first: 0, last: 0, attributes: 0, name: name.into() };
            table.append(number, u64::from(mib) * MIB / u64::from(sector_bytes), partition)
        };
        add(NUMBER_ESP, ESP, "ESP", id("ESP"), self.esp)?;
        for (slot, ((root, tree), (root_name, tree_name))) in
            NUMBERS_SLOTS.into_iter().zip(NAMES_SLOTS).enumerate()
        {
            let (root_id, tree_id) =
                if slot == 0 { ids_of_root(root_hash) } else { (id(root_name), id(tree_name)) };
            add(root, architecture.root(), root_name, root_id, self.root)?;
            add(tree, architecture.root_verity(), tree_name, tree_id, self.root_verity)?;
        }
        add(NUMBER_CONFIG, CONFIG, NAME_CONFIG, id(NAME_CONFIG), self.config)?;
        add(NUMBER_RESERVED, RESERVED, "reserved", id("reserved"), self.reserved)?;
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_read_as_it_is_written_and_fits_where_it_says() {
        let layout = Layout { esp: 512, root: 512, root_verity: 8, config: 16, reserved: 256 };
        assert_eq!(Layout::parse(&layout.line()), Some(layout));
        assert_eq!(Layout::parse("format=2 esp=1"), None);
        let sectors = layout.mib() * MIB / 512;
        let table = |sectors| layout.table(Architecture::Amd64, &[3; 32], (512, sectors), |_| Uuid::nil());
        assert_eq!(table(sectors).unwrap().partitions[&2].id, Uuid::from_bytes([3; 16]));
        assert!(table(sectors - 4096).is_err());
    }
}
