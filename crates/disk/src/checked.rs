// SPDX-License-Identifier: Apache-2.0
//! A hash tree that was read from a disk and is what its root hash says: with it, block after block of a root can be judged
//! without the kernel.

use alloc::vec::Vec;

use crate::verity::{BLOCK_BYTES, HASH_BYTES, Root, hash};

const PER_BLOCK: u64 = (BLOCK_BYTES / HASH_BYTES) as u64;

/// The leaves of a tree whose every block was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaves {
    root: Root,
    hashes: Vec<u8>,
}

/// Blocks of a hash partition: superblock and tree.
pub fn tree_blocks(data_blocks: u64) -> u64 {
    let levels = levels(data_blocks);
    levels.iter().fold(1_u64, |sum, level| sum.saturating_add(*level))
}

/// Blocks of each level, the lowest first.
fn levels(data_blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(PER_BLOCK);
        levels.push(blocks);
    }
    levels
}

impl Leaves {
    /// Checks a tree from the root down. The superblock in front says nothing that anybody looks at.
    pub fn of(root: &Root, untrusted_partition: &[u8]) -> Option<Leaves> {
        if root.data_blocks <= 1 {
            return Some(Leaves { root: root.clone(), hashes: root.hash.to_vec() });
        }
        let levels = levels(root.data_blocks);
        let mut expected: Vec<u8> = root.hash.to_vec();
        let mut at = BLOCK_BYTES;
        for blocks in levels.iter().rev() {
            let bytes = usize::try_from(*blocks).ok()?.checked_mul(BLOCK_BYTES)?;
            let level = untrusted_partition.get(at..at.checked_add(bytes)?)?;
            let mut all = level.chunks_exact(BLOCK_BYTES).zip(expected.chunks_exact(HASH_BYTES));
            if !all.all(|(block, expected)| hash(block) == *expected) {
                return None;
            }
            expected = level.to_vec();
            at += bytes;
        }
        Some(Leaves { root: root.clone(), hashes: expected })
    }

    pub fn blocks(&self) -> u64 {
        self.root.data_blocks
    }

    /// Whether this is block `index` of the root.
    pub fn is_block(&self, index: u64, untrusted_block: &[u8]) -> bool {
        if index >= self.root.data_blocks || untrusted_block.len() != BLOCK_BYTES {
            return false;
        }
        let at = usize::try_from(index).ok().and_then(|index| index.checked_mul(HASH_BYTES));
        let leaf = at.and_then(|at| self.hashes.get(at..at + HASH_BYTES));
        leaf.is_some_and(|leaf| hash(untrusted_block) == *leaf)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use uuid::Uuid;

    use super::*;
    use crate::verity::tree;

    #[test]
    fn every_block_is_known_and_no_changed_one() {
        for blocks in [1, 2, 128, 129, 130 * 128 + 1] {
            let data: Vec<u8> = (0..blocks).flat_map(|block: usize| vec![block as u8; BLOCK_BYTES]).collect();
            let (mut hashes, root) = tree(&data, Uuid::nil());
            assert_eq!(hashes.len() as u64, tree_blocks(root.data_blocks) * BLOCK_BYTES as u64, "{blocks}");
            let leaves = Leaves::of(&root, &hashes).unwrap();
            let mut all = data.chunks_exact(BLOCK_BYTES).zip(0..);
            assert!(all.all(|(block, index)| leaves.is_block(index, block)));
            assert!(!leaves.is_block(blocks as u64, &data[..BLOCK_BYTES]));
            let mut changed = data[..BLOCK_BYTES].to_vec();
            changed[9] ^= 1;
            assert!(!leaves.is_block(0, &changed));
            if blocks > 1 {
                for at in (BLOCK_BYTES..hashes.len()).step_by(1999) {
                    hashes[at] ^= 1;
                    assert_eq!(Leaves::of(&root, &hashes), None, "{blocks} {at}");
                    hashes[at] ^= 1;
                }
                assert_eq!(Leaves::of(&root, &hashes[..hashes.len() - 1]), None);
            }
        }
    }

    #[test]
    fn a_claim_of_any_size_costs_nothing() {
        assert_eq!(Leaves::of(&Root { hash: [0; 32], data_blocks: u64::MAX }, &[0; 4096]), None);
    }
}
