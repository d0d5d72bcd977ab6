// SPDX-License-Identifier: Apache-2.0
//! A hash tree that was read from a disk and is what its root hash says: with it, block after block of a root can be judged
//! without the kernel.

use alloc::vec::Vec;

use crate::verity::{BLOCK_BYTES, HASH_BYTES, Root, hash, leaves, tree_bytes};

/// The leaves of a tree whose every block was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaves {
    root: Root,
    hashes: Vec<u8>,
}

impl Leaves {
    /// Of a tree at the beginning of a partition.
    pub fn of(root: &Root, untrusted_partition: &[u8]) -> Option<Leaves> {
        if root.data_blocks <= 1 {
            return Some(Leaves { root: root.clone(), hashes: root.hash.to_vec() });
        }
        let tree = untrusted_partition.get(..usize::try_from(tree_bytes(root.data_blocks)).ok()?)?;
        Some(Leaves { root: root.clone(), hashes: leaves(tree, root)?.to_vec() })
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
            assert_eq!(hashes.len() as u64, tree_bytes(root.data_blocks), "{blocks}");
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
