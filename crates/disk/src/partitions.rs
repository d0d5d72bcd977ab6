// SPDX-License-Identifier: Apache-2.0
//! The partitions of a node's disk. Kinds are those of the Discoverable Partitions Specification; CONFIG and P3 have the kinds
//! and names that EVE gives them.
//!
//! ```text
//! 1 ESP   2 root-A  3 root-A-verity   4 root-B  5 root-B-verity   6 CONFIG   7 reserved   9 P3 (the rest)
//! ```
//! A root is found by its hash alone: the ids of the root and of its hash tree are the two halves of the root hash. So a
//! kernel that knows its root hash finds its slot whatever the slot is called, and can find no other.

use uuid::{Uuid, uuid};

pub const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
pub const CONFIG: Uuid = uuid!("13307e62-cd9c-4920-8f9b-91b45828b798");
pub const PERSIST: Uuid = uuid!("5f24425a-2dfa-11e8-a270-7b663faccc2c");
pub const RESERVED: Uuid = uuid!("8da63339-0007-60c0-c436-083ac8230908");

pub const NUMBER_ESP: u32 = 1;
/// Root and hash tree of each slot.
pub const NUMBERS_SLOTS: [(u32, u32); 2] = [(2, 3), (4, 5)];
pub const NUMBER_CONFIG: u32 = 6;
pub const NUMBER_RESERVED: u32 = 7;
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
pub fn ids_of_root(root_hash: &[u8; 32]) -> (Uuid, Uuid) {
    let (mut root, mut tree) = ([0; 16], [0; 16]);
    root.copy_from_slice(&root_hash[..16]);
    tree.copy_from_slice(&root_hash[16..]);
    (Uuid::from_bytes(root), Uuid::from_bytes(tree))
}
