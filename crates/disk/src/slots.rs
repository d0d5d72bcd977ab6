// SPDX-License-Identifier: Apache-2.0
//! Which of the two slots an update goes into.

use alloc::vec::Vec;

use crate::entry::Entry;
use crate::gpt::Table;
use crate::partitions::{NUMBERS_SLOTS, ids_of_root};
use crate::verity::Hash;

/// A version on the ESP: its boot entry, and the root its kernel image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub entry: Entry,
    pub root: Hash,
}

impl Installed {
    /// All its tries are used: the boot loader takes it last.
    fn is_bad(&self) -> bool {
        self.entry.tries.is_some_and(|tries| tries.left == 0)
    }
}

/// Where an update goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// 0: A, 1: B.
    pub slot: usize,
    /// The version whose root it takes the place of; its boot entry goes first.
    pub replaced: Option<Entry>,
}

/// The slot that no version uses, else that of a bad version. Nothing: both hold a version that may be needed.
pub fn idle(table: &Table, installed: &[Installed]) -> Option<Choice> {
    let user = |slot: usize| {
        let id = table.partitions.get(&NUMBERS_SLOTS[slot].0).map(|partition| partition.id);
        installed.iter().find(|version| Some(ids_of_root(&version.root).0) == id)
    };
    let users: Vec<(usize, Option<&Installed>)> =
        (0..NUMBERS_SLOTS.len()).map(|slot| (slot, user(slot))).collect();
    let unused = users.iter().find(|(_, user)| user.is_none());
    let bad = || users.iter().find(|(_, user)| user.is_some_and(Installed::is_bad));
    unused
        .or_else(bad)
        .map(|(slot, user)| Choice { slot: *slot, replaced: user.map(|user| user.entry.clone()) })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::gpt::Partition;

    fn table(roots: [&Hash; 2]) -> Table {
        let mut table = Table::new(Uuid::from_u128(1), 512, 20_000);
        for ((number, _), root) in NUMBERS_SLOTS.into_iter().zip(roots) {
            let id = ids_of_root(root).0;
            let partition =
                Partition { kind: Uuid::from_u128(2), id, first: 0, last: 0, attributes: 0, name: "".into() };
            table.append(number, 2048, partition).unwrap();
        }
        table
    }

    fn version(name: &str, root: Hash) -> Installed {
        Installed { entry: Entry::parse(name).unwrap(), root }
    }

    #[test]
    fn the_slot_of_a_version_that_may_be_needed_is_never_taken() {
        let (a, b) = ([1; 32], [2; 32]);
        let table = table([&a, &b]);
        let good = version("selvedge_1.efi", a);
        assert_eq!(idle(&table, core::slice::from_ref(&good)), Some(Choice { slot: 1, replaced: None }));
        let tried = version("selvedge_2+1-2.efi", b);
        assert_eq!(idle(&table, &[good.clone(), tried]), None);
        let bad = version("selvedge_2+0-3.efi", b);
        let choice = Choice { slot: 1, replaced: Some(bad.entry.clone()) };
        assert_eq!(idle(&table, &[good, bad]), Some(choice));
        assert_eq!(idle(&table, &[version("selvedge_2.efi", b)]), Some(Choice { slot: 0, replaced: None }));
    }
}
