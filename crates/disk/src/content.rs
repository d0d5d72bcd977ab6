// SPDX-License-Identifier: Apache-2.0
//! What a disk carries, by its beginning and its end: whether an installer may take it without being told.
//!
//! Every table of partitions, file system and array that is in use marks the first or the last MiB. Only a disk where both
//! hold nothing at all is called empty: what nobody here knows by name is data too.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::gpt::Write;

/// Bytes to be read at either end.
pub const LOOK_BYTES: usize = 1 << 20;
/// What an installer writes over the first sector before anything else, and takes away last. No firmware starts such a disk.
pub const UNFINISHED: &[u8; 32] = b"selvedge: unfinished installatio";
const SECTOR: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Nothing,
    /// An installation of ours that was cut off: it may be begun again.
    Unfinished,
    /// Its name, for people.
    Data(String),
}

/// Marks by which most disks are known: place, bytes, name. More telling ones first.
const MARKS: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "a physical volume (LVM)"),
    (0, b"XFSB", "a file system (XFS)"),
    (1024 + 56, b"\x53\xef", "a file system (ext4)"),
    (64 * 1024 + 64, b"_BHRfS_M", "a file system (btrfs)"),
    (1024, b"\xe2\xe1\xf5\xe0", "a file system (erofs)"),
    (1024, b"\x10\x20\xf5\xf2", "a file system (f2fs)"),
    (0, b"hsqs", "a file system (squashfs)"),
    (32 * 1024 + 1, b"CD001", "a file system (ISO 9660)"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (3, b"NTFS", "a file system (NTFS)"),
    (510, b"\x55\xaa", "a partition table (MBR) or a file system (FAT)"),
];

/// Judges the first and the last [`LOOK_BYTES`] of a disk.
pub fn look(untrusted_first: &[u8], untrusted_last: &[u8]) -> Content {
    if untrusted_first.starts_with(UNFINISHED) {
        return Content::Unfinished;
    }
    let has = |at: usize, mark: &[u8]| untrusted_first.get(at..).is_some_and(|rest| rest.starts_with(mark));
    if let Some((_, _, name)) = MARKS.iter().find(|(at, mark, _)| has(*at, mark)) {
        return Content::Data((*name).to_string());
    }
    let is_table = |sector: usize| {
        let at = untrusted_last.len().checked_sub(sector);
        at.and_then(|at| untrusted_last.get(at..)).is_some_and(|rest| rest.starts_with(b"EFI PART"))
    };
    if is_table(SECTOR) || is_table(4096) {
        return Content::Data("the second copy of a partition table (GPT)".to_string());
    }
    // flash that was erased reads as ones
    let is_blank =
        |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0) || bytes.iter().all(|byte| *byte == 0xff);
    if is_blank(untrusted_first) && is_blank(untrusted_last) {
        return Content::Nothing;
    }
    Content::Data("data of an unknown kind".to_string())
}

/// The steps of writing a table with the first sector behind all others and a flush between: it replaces the mark of the
/// unfinished, and makes the disk one that a firmware starts.
pub fn first_sector_last(writes: Vec<Write>) -> Vec<Write> {
    let is_first_sector = |write: &Write| matches!(write, Write::At { offset: 0, .. });
    let (first, mut ordered): (Vec<Write>, Vec<Write>) = writes.into_iter().partition(is_first_sector);
    ordered.push(Write::Flush);
    ordered.extend(first);
    ordered.push(Write::Flush);
    ordered
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn blank() -> Vec<u8> {
        vec![0; LOOK_BYTES]
    }

    #[test]
    fn only_a_blank_disk_and_an_unfinished_one_may_be_taken() {
        assert_eq!(look(&blank(), &blank()), Content::Nothing);
        assert_eq!(look(&vec![0xff; LOOK_BYTES], &blank()), Content::Nothing);
        for (at, mark, name) in MARKS {
            let mut first = blank();
            first[*at..at + mark.len()].copy_from_slice(mark);
            assert_eq!(look(&first, &blank()), Content::Data((*name).to_string()));
        }
        let mut unknown = blank();
        unknown[700_000] = 1;
        assert!(matches!(look(&unknown, &blank()), Content::Data(_)));
        assert!(matches!(look(&blank(), &unknown), Content::Data(_)));
        let mut begun = unknown.clone();
        begun[..UNFINISHED.len()].copy_from_slice(UNFINISHED);
        assert_eq!(look(&begun, &unknown), Content::Unfinished);
    }

    #[test]
    fn the_second_copy_of_a_table_is_seen_at_the_end() {
        let mut last = blank();
        let at = LOOK_BYTES - SECTOR;
        last[at..at + 8].copy_from_slice(b"EFI PART");
        let Content::Data(name) = look(&blank(), &last) else { panic!("not seen") };
        assert!(name.contains("second copy"), "{name}");
    }

    #[test]
    fn the_first_sector_is_written_when_all_else_is_kept() {
        let table = crate::gpt::Table::new(uuid::Uuid::nil(), 512, 20_000);
        let places: Vec<Option<u64>> = first_sector_last(table.writes())
            .iter()
            .map(|write| match write {
                Write::At { offset, .. } => Some(*offset),
                Write::Flush => None,
            })
            .collect();
        assert!(places.ends_with(&[None, Some(0), None]), "{places:?}");
        assert_eq!(places.iter().filter(|place| **place == Some(0)).count(), 1);
        assert!(places.contains(&Some(512)) && places.contains(&Some(1024)));
    }

    proptest! {
        #[test]
        fn a_disk_with_any_byte_set_is_never_empty(at in 0..LOOK_BYTES, byte in 1_u8.., is_last: bool) {
            let (mut first, mut last) = (blank(), blank());
            if is_last { last[at] = byte } else { first[at] = byte }
            prop_assert_ne!(look(&first, &last), Content::Nothing);
        }
    }
}
