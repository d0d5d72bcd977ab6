// SPDX-License-Identifier: Apache-2.0
//! The hash tree of dm-verity, format 1: SHA-256 over the salt and a block of 4 KiB, 128 hashes in a block, the highest level
//! first. As the kernel reads it and `veritysetup` writes it, superblock included.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use sha2::{Digest, Sha256};
use uuid::Uuid;

pub const BLOCK_BYTES: usize = 4096;
pub const HASH_BYTES: usize = 32;
const PER_BLOCK: usize = BLOCK_BYTES / HASH_BYTES;
/// The tree begins behind the block of the superblock.
pub const TREE_BLOCK: u64 = 1;

/// One for all images of this product: equal blocks have equal hashes in all versions, so that an update can tell from two
/// trees which blocks differ. A salt per image would only hinder precomputed collisions, which SHA-256 has none of.
pub const SALT: [u8; 32] = *b"selvedge root image, all version";

pub type Hash = [u8; HASH_BYTES];

/// What the kernel needs to know of a tree besides the two devices; stands on its signed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub hash: Hash,
    pub data_blocks: u64,
}

/// The tree over data of whole blocks: what lies on the hash partition, and its root.
pub fn tree(data: &[u8], id: Uuid) -> (Vec<u8>, Root) {
    let mut levels = vec![level(data)];
    while levels.last().is_some_and(|last| last.len() > BLOCK_BYTES) {
        let next = levels.last().map(|last| level(last)).unwrap_or_default();
        levels.push(next);
    }
    let data_blocks = (data.len() / BLOCK_BYTES) as u64;
    let mut out = superblock(data_blocks, id);
    for level in levels.iter().rev() {
        out.extend_from_slice(level);
    }
    // of one block of data the kernel takes the hash itself as the root, without a level
    let hash = match levels.last() {
        Some(top) if data_blocks > 1 => hash(top),
        _ => hash(data),
    };
    if data_blocks <= 1 {
        out.truncate(BLOCK_BYTES);
    }
    (out, Root { hash, data_blocks })
}

/// Bytes of what [`tree`] makes over so many blocks of data, superblock included.
pub fn tree_bytes(data_blocks: u64) -> u64 {
    let mut blocks = TREE_BLOCK;
    let mut level = data_blocks;
    while level > 1 {
        level = level.div_ceil(PER_BLOCK as u64);
        blocks = blocks.saturating_add(level);
    }
    blocks.saturating_mul(BLOCK_BYTES as u64)
}

/// The hashes of the blocks of data out of a whole tree, once all of it is seen to be one with this root. The superblock says
/// nothing that the kernel looks at.
pub fn leaves<'t>(untrusted_tree: &'t [u8], root: &Root) -> Option<&'t [u8]> {
    let blocks = untrusted_tree.get(TREE_BLOCK as usize * BLOCK_BYTES..)?;
    if untrusted_tree.len() as u64 != tree_bytes(root.data_blocks) || root.data_blocks < 2 {
        return None;
    }
    let count = root.data_blocks.div_ceil(PER_BLOCK as u64) as usize;
    let at = blocks.len() - count * BLOCK_BYTES;
    let leaves = &blocks[at..];
    let mut levels = vec![leaves.to_vec()];
    while levels.last().is_some_and(|last| last.len() > BLOCK_BYTES) {
        let next = levels.last().map(|last| level(last)).unwrap_or_default();
        levels.push(next);
    }
    let is_one =
        levels.iter().rev().flatten().eq(blocks) && levels.last().map(|top| hash(top)) == Some(root.hash);
    is_one.then(|| &leaves[..root.data_blocks as usize * HASH_BYTES])
}

/// How many blocks of data the superblock of a tree speaks of.
pub fn data_blocks(untrusted_superblock: &[u8]) -> Option<u64> {
    let bytes: [u8; 8] = untrusted_superblock.get(72..80)?.try_into().ok()?;
    untrusted_superblock.starts_with(b"verity\0\0").then(|| u64::from_le_bytes(bytes))
}

/// Hash of one block, the salt before it.
pub fn hash(block: &[u8]) -> Hash {
    let mut sum = Sha256::new();
    sum.update(SALT);
    sum.update(block);
    sum.finalize().into()
}

/// Parameters of the kernel's target `verity`. Devices as `major:minor`.
pub fn target(root: &Root, data_device: &str, hash_device: &str) -> String {
    format!(
        "1 {data_device} {hash_device} {BLOCK_BYTES} {BLOCK_BYTES} {} {TREE_BLOCK} sha256 {} {} 1 panic_on_corruption",
        root.data_blocks,
        hex(&root.hash),
        hex(&SALT)
    )
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 64 hexadecimal digits.
pub fn parse_hash(text: &str) -> Option<Hash> {
    if text.len() != 2 * HASH_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; HASH_BYTES];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(out)
}

/// Hashes of all blocks, to a whole block.
fn level(data: &[u8]) -> Vec<u8> {
    let blocks = data.len().div_ceil(BLOCK_BYTES);
    let mut out = Vec::with_capacity(blocks.div_ceil(PER_BLOCK) * BLOCK_BYTES);
    for block in data.chunks(BLOCK_BYTES) {
        out.extend_from_slice(&hash(block));
    }
    out.resize(blocks.div_ceil(PER_BLOCK).max(1) * BLOCK_BYTES, 0);
    out
}

fn superblock(data_blocks: u64, id: Uuid) -> Vec<u8> {
    let mut out = vec![0; BLOCK_BYTES];
    out[..6].copy_from_slice(b"verity");
    for at in [8, 12] {
        out[at..at + 4].copy_from_slice(&1_u32.to_le_bytes());
    }
    out[16..32].copy_from_slice(id.as_bytes());
    out[32..38].copy_from_slice(b"sha256");
    for at in [64, 68] {
        out[at..at + 4].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    }
    out[72..80].copy_from_slice(&data_blocks.to_le_bytes());
    out[80..82].copy_from_slice(&(SALT.len() as u16).to_le_bytes());
    out[88..88 + SALT.len()].copy_from_slice(&SALT);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = hash(b"x");
        assert_eq!(parse_hash(&hex(&hash)), Some(hash));
        for bad in ["", "é", &"0".repeat(63), &"é".repeat(32)] {
            assert_eq!(parse_hash(bad), None, "{bad}");
        }
    }

    #[test]
    fn leaves_are_given_only_of_a_tree_that_is_whole() {
        for blocks in [2_usize, 128, 129, 300] {
            let data: Vec<u8> = (0..blocks * BLOCK_BYTES).map(|at| (at / 1000) as u8).collect();
            let (mut tree, root) = tree(&data, Uuid::nil());
            assert_eq!(tree.len() as u64, tree_bytes(blocks as u64));
            assert_eq!(data_blocks(&tree), Some(blocks as u64));
            let leaves_found = leaves(&tree, &root).unwrap();
            assert_eq!(leaves_found.len(), blocks * HASH_BYTES);
            assert_eq!(leaves_found[..HASH_BYTES], hash(&data[..BLOCK_BYTES]));
            assert_eq!(leaves(&tree[..tree.len() - 1], &root), None);
            let last = tree.len() - 1;
            for at in [BLOCK_BYTES, last] {
                tree[at] ^= 1;
                assert_eq!(leaves(&tree, &root), None, "{blocks} {at}");
                tree[at] ^= 1;
            }
            assert_eq!(leaves(&tree, &Root { hash: [0; 32], ..root }), None);
        }
    }

    #[test]
    fn levels_are_stacked_highest_first() {
        let data = vec![7; 129 * BLOCK_BYTES];
        let (tree, root) = tree(&data, Uuid::nil());
        assert_eq!((tree.len(), root.data_blocks), (4 * BLOCK_BYTES, 129));
        assert_eq!(root.hash, hash(&tree[BLOCK_BYTES..2 * BLOCK_BYTES]));
        assert_eq!(tree[BLOCK_BYTES..][..32], hash(&tree[2 * BLOCK_BYTES..3 * BLOCK_BYTES]));
        assert_eq!(tree[2 * BLOCK_BYTES..][..32], hash(&data[..BLOCK_BYTES]));
    }
}
