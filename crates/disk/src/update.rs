// SPDX-License-Identifier: Apache-2.0
//! The update file: a version of the node as a disk image, and the text that says what is in it.
//!
//! ```text
//! table │ 1 manifest │ 2 hash tree of the root │ 3 hash tree of the kernel image │ 4 kernel image │ 5 root │ table again
//! ```
//! What tells which blocks differ comes before the blocks. Partitions begin at whole MiB; what lies between them is zero, so the
//! whole file can be summed up by who has the partitions alone. A slot keeps the same four parts: the root and behind it
//! the kernel image in one partition, both hash trees in the other.
//!
//! The manifest is a text of lines in this order, signed up to and without its last line. A signature is r and s of ECDSA
//! with P-256 over SHA-256.
//!
//! ```text
//! selvedge-update 1
//! version 2.0
//! architecture amd64
//! root HASH BLOCKS
//! kernel HASH BLOCKS BYTES SHA256
//! signature KEY R‖S          only where there is a release key
//! ```

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use uuid::{Uuid, uuid};

use crate::entry::is_version;
use crate::gpt::{Partition, Table};
use crate::verity::{BLOCK_BYTES, Hash, Root, hex, parse_hash, tree_bytes};

pub const MANIFEST: u32 = 1;
pub const ROOT_TREE: u32 = 2;
pub const KERNEL_TREE: u32 = 3;
pub const KERNEL: u32 = 4;
pub const ROOT: u32 = 5;

/// Kind of partitions that no standard knows.
pub const OTHER: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
pub const SECTOR_BYTES: u32 = 512;
/// Table and manifest: what is read before anything else.
pub const HEAD_BYTES: u64 = 34 * SECTOR_BYTES as u64;
/// The text and zeros behind it.
pub const MANIFEST_BYTES: usize = 4096;
/// Of a manifest; others are refused by name.
pub const FORMAT: u32 = 1;
/// A kernel image of ours has 15 MB; the ESP has room for three of this.
pub const KERNEL_BYTES_MAX: u64 = 128 << 20;
/// 16 GiB: no root of ours is larger, and a hash tree over it still fits into memory.
pub const BLOCKS_MAX: u64 = 4 << 20;
const SIGNATURE_BYTES: usize = 64;
/// Uncompressed: 4, x, y.
pub const KEY_BYTES: usize = 65;

/// What an update is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub version: String,
    /// As [`crate::partitions::Architecture::name`].
    pub architecture: String,
    pub root: Root,
    /// Hash tree over the kernel image, filled up with zeros to whole blocks.
    pub kernel: Root,
    pub kernel_bytes: u64,
    pub kernel_sha256: Hash,
}

/// Who stands for a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// First bytes of the hash of the public key: tells a foreign key from a wrong signature.
    pub key: String,
    pub bytes: [u8; SIGNATURE_BYTES],
}

/// A manifest as it lies in a file, what of it is signed, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub manifest: Manifest,
    pub signed: String,
    pub signature: Option<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    #[error("it is no update file of this product")]
    Foreign,
    #[error("its manifest has format {0}, this version reads {FORMAT}")]
    Format(u32),
    #[error("its manifest has no proper line {0:?}")]
    Line(&'static str),
    #[error("its partition {0} is missing or has another size than its manifest says")]
    Partition(u32),
}

impl Manifest {
    /// The signed part.
    pub fn text(&self) -> String {
        let Manifest { version, architecture, root, kernel, kernel_bytes, kernel_sha256 } = self;
        format!(
            "selvedge-update {FORMAT}\nversion {version}\narchitecture {architecture}\nroot {} {}\nkernel {} {} {kernel_bytes} {}\n",
            hex(&root.hash),
            root.data_blocks,
            hex(&kernel.hash),
            kernel.data_blocks,
            hex(kernel_sha256)
        )
    }

    /// The whole partition of it.
    pub fn to_bytes(&self, signature: Option<&Signature>) -> Vec<u8> {
        let mut text = self.text();
        if let Some(Signature { key, bytes }) = signature {
            text += &format!("signature {key} {}\n", hex(bytes));
        }
        let mut out = text.into_bytes();
        out.resize(MANIFEST_BYTES, 0);
        out
    }

    pub fn parse(untrusted_bytes: &[u8]) -> Result<Read, UpdateError> {
        let end = untrusted_bytes.iter().position(|byte| *byte == 0).unwrap_or(untrusted_bytes.len());
        let rest_is_zero = untrusted_bytes[end..].iter().all(|byte| *byte == 0);
        let text = core::str::from_utf8(&untrusted_bytes[..end]).map_err(|_| UpdateError::Foreign)?;
        let mut lines = text.lines();
        let format = lines.next().and_then(|line| line.strip_prefix("selvedge-update "));
        let format = format.ok_or(UpdateError::Foreign)?;
        let format: u32 = format.parse().map_err(|_| UpdateError::Foreign)?;
        if format != FORMAT {
            return Err(UpdateError::Format(format));
        }
        let mut words = |name: &'static str| -> Result<Vec<&str>, UpdateError> {
            let mut words = lines.next().unwrap_or_default().split(' ');
            if words.next() != Some(name) {
                return Err(UpdateError::Line(name));
            }
            Ok(words.collect())
        };
        let version = one(&words("version")?).filter(|text| is_version(text));
        let version = version.ok_or(UpdateError::Line("version"))?.to_string();
        let architecture = one(&words("architecture")?).filter(|text| is_version(text));
        let architecture = architecture.ok_or(UpdateError::Line("architecture"))?.to_string();
        let root = words("root")?;
        let root = tree(&root).filter(|_| root.len() == 2).ok_or(UpdateError::Line("root"))?;
        let line = words("kernel")?;
        let kernel = || {
            let bytes: u64 = line.get(2)?.parse().ok()?;
            let sum = parse_hash(line.get(3)?)?;
            let kernel = tree(&line).filter(|_| line.len() == 4)?;
            let is_fit =
                bytes.div_ceil(BLOCK_BYTES as u64) == kernel.data_blocks && bytes <= KERNEL_BYTES_MAX;
            is_fit.then_some((kernel, bytes, sum))
        };
        let (kernel, kernel_bytes, kernel_sha256) = kernel().ok_or(UpdateError::Line("kernel"))?;
        let manifest = Manifest { version, architecture, root, kernel, kernel_bytes, kernel_sha256 };
        let signed = manifest.text();
        // one form for one content: what is signed is what was read
        let behind = text.strip_prefix(&signed).filter(|_| rest_is_zero).ok_or(UpdateError::Foreign)?;
        let signature = match behind {
            "" => None,
            line => Some(signature(line).ok_or(UpdateError::Line("signature"))?),
        };
        Ok(Read { manifest, signed, signature })
    }

    /// Blocks of the four parts in a slot, and where they begin, in its two partitions.
    pub fn slot(&self) -> SlotLayout {
        SlotLayout {
            kernel_at: self.root.data_blocks * BLOCK_BYTES as u64,
            data_bytes: (self.root.data_blocks + self.kernel.data_blocks) * BLOCK_BYTES as u64,
            kernel_tree_at: tree_bytes(self.root.data_blocks),
            tree_bytes: tree_bytes(self.root.data_blocks) + tree_bytes(self.kernel.data_blocks),
        }
    }

    /// Sizes of the partitions of an update file.
    pub fn sizes(&self) -> [(u32, u64); 5] {
        [
            (MANIFEST, MANIFEST_BYTES as u64),
            (ROOT_TREE, tree_bytes(self.root.data_blocks)),
            (KERNEL_TREE, tree_bytes(self.kernel.data_blocks)),
            (KERNEL, self.kernel.data_blocks * BLOCK_BYTES as u64),
            (ROOT, self.root.data_blocks * BLOCK_BYTES as u64),
        ]
    }

    /// Offset of each partition of a file, in the order of the file. Sizes and order must be those of the manifest.
    pub fn places(&self, table: &Table) -> Result<[u64; 5], UpdateError> {
        let mut out = [0; 5];
        let mut behind = HEAD_BYTES;
        for ((number, bytes), out) in self.sizes().into_iter().zip(&mut out) {
            let wrong = UpdateError::Partition(number);
            let partition = table.partitions.get(&number).ok_or(wrong.clone())?;
            let at = partition.first * u64::from(table.sector_bytes);
            if partition.sectors() * u64::from(table.sector_bytes) != bytes || at < behind {
                return Err(wrong);
            }
            (*out, behind) = (at, at + bytes);
        }
        if table.partitions.len() != 5 {
            return Err(UpdateError::Foreign);
        }
        Ok(out)
    }
}

/// Where the parts of a version lie in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// In the partition of the root.
    pub kernel_at: u64,
    pub data_bytes: u64,
    /// In the partition of the hash tree.
    pub kernel_tree_at: u64,
    pub tree_bytes: u64,
}

/// The table of an update file with these partitions, in the order of their numbers.
pub fn table(id: Uuid, partitions: &[(Partition, u64)]) -> Option<Table> {
    const MIB: u64 = 1 << 20;
    let whole = partitions.iter().map(|(_, bytes)| bytes.next_multiple_of(MIB)).sum::<u64>();
    let mut table = Table::new(id, SECTOR_BYTES, (whole + 2 * MIB) / u64::from(SECTOR_BYTES));
    for (number, (partition, bytes)) in (1..).zip(partitions) {
        table.append(number, bytes.div_ceil(SECTOR_BYTES.into()), partition.clone()).ok()?;
    }
    Some(table)
}

/// How a public key is called: hash of the uncompressed point.
pub fn key_name(public: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    hex(&Sha256::digest(public)[..8])
}

/// SHA-256 of what comes in pieces.
#[derive(Clone, Default)]
pub struct Sum(sha2::Sha256);

impl core::fmt::Debug for Sum {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Sum")
    }
}

impl Sum {
    pub fn add(&mut self, bytes: &[u8]) {
        use sha2::Digest as _;
        self.0.update(bytes);
    }

    pub fn hash(self) -> Hash {
        use sha2::Digest as _;
        self.0.finalize().into()
    }
}

fn one<'t>(words: &[&'t str]) -> Option<&'t str> {
    match words {
        [word] => Some(word),
        _ => None,
    }
}

fn tree(words: &[&str]) -> Option<Root> {
    let hash = parse_hash(words.first()?)?;
    let data_blocks = words.get(1)?.parse().ok()?;
    // of a single block there is no tree
    (2..=BLOCKS_MAX).contains(&data_blocks).then_some(Root { hash, data_blocks })
}

fn signature(line: &str) -> Option<Signature> {
    let (key, text) = line.strip_prefix("signature ")?.strip_suffix('\n')?.split_once(' ')?;
    let (r, s) = text.split_at_checked(text.len() / 2)?;
    let mut bytes = [0; SIGNATURE_BYTES];
    bytes[..32].copy_from_slice(&parse_hash(r)?);
    bytes[32..].copy_from_slice(&parse_hash(s)?);
    let is_name = key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_name.then(|| Signature { key: key.to_string(), bytes })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: "2.0".into(),
            architecture: "amd64".into(),
            root: Root { hash: [1; 32], data_blocks: 300 },
            kernel: Root { hash: [2; 32], data_blocks: 3 },
            kernel_bytes: 9000,
            kernel_sha256: [3; 32],
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_is_written_and_in_no_other_form() {
        let signature = Signature { key: "0123456789abcdef".into(), bytes: [5; 64] };
        for signature in [None, Some(signature)] {
            let bytes = manifest().to_bytes(signature.as_ref());
            let read = Manifest::parse(&bytes).unwrap();
            assert_eq!((read.manifest, read.signature), (manifest(), signature));
            assert_eq!(read.signed, manifest().text());
        }
        let text = manifest().text();
        for bad in [
            text.replace("update 1", "update 2"),
            text.replace("2.0", "../2"),
            text.replace(" 300", " 0300"),
            text.replace(" 9000", " 20000"),
            text.replace("amd64\n", "amd64 \n"),
            format!("{text}signature x y\n"),
            format!("{text}\0more"),
            String::new(),
        ] {
            assert!(Manifest::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(Manifest::parse(b"selvedge-update 7\n"), Err(UpdateError::Format(7)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = Manifest::parse(&bytes);
        }

        #[test]
        fn a_changed_manifest_is_refused_or_says_what_was_signed(at in 0_usize..400, byte in proptest::num::u8::ANY) {
            let mut bytes = manifest().to_bytes(None);
            bytes[at] = byte;
            if let Ok(read) = Manifest::parse(&bytes) {
                proptest::prop_assert!(bytes.starts_with(read.signed.as_bytes()));
            }
        }
    }

    #[test]
    fn partitions_of_another_size_or_order_are_refused() {
        let partition = |(number, bytes): (u32, u64)| {
            let name = number.to_string();
            let id = Uuid::from_u128(number.into());
            (Partition { kind: OTHER, id, first: 0, last: 0, attributes: 0, name }, bytes)
        };
        let sizes = manifest().sizes().map(partition);
        let whole = table(Uuid::nil(), &sizes).unwrap();
        let places = manifest().places(&whole).unwrap();
        assert_eq!(places[0], 1 << 20);
        assert!(places.is_sorted());
        let mut wrong = whole.clone();
        wrong.partitions.remove(&KERNEL);
        assert_eq!(manifest().places(&wrong), Err(UpdateError::Partition(KERNEL)));
        let mut wrong = whole.clone();
        let first = wrong.partitions[&MANIFEST].clone();
        wrong.partitions.insert(9, first);
        assert_eq!(manifest().places(&wrong), Err(UpdateError::Foreign));
        let larger = Manifest { root: Root { hash: [1; 32], data_blocks: 301 }, ..manifest() };
        assert_eq!(larger.places(&whole), Err(UpdateError::Partition(ROOT)));
        assert_eq!(vec![places[4]], [whole.partitions[&ROOT].first * 512]);
    }
}
