// SPDX-License-Identifier: Apache-2.0
//! What a booted node and an installer read of disks that anybody may have written, and of the firmware: tables, hash trees, names
//! of boot entries, variables.

use std::collections::BTreeMap;

use disk::checked::Leaves;
use disk::content::{self, Content};
use disk::entry::Entry;
use disk::gpt::{Copies, ENTRIES, Table, Write};
use disk::partitions::{Layout, NUMBER_PERSIST};
use disk::slots::{Installed, idle};
use disk::verity::{BLOCK_BYTES, Root, hash, parse_hash};
use disk::{firmware, gpt};

const SECTOR: usize = 512;
const SECTORS: usize = 256;

/// A small disk that begins with these bytes behind its first sector. An odd first byte: checksums are made right, hardly any
/// change would survive them.
pub(crate) fn table(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let mut disk = vec![0; SECTORS * SECTOR];
    let length = data.len().min(disk.len() - SECTOR);
    disk[SECTOR..SECTOR + length].copy_from_slice(&data[..length]);
    if choice % 2 == 1 {
        mend(&mut disk);
    }
    let Ok((mut found, copies)) = read(&disk) else { return };
    let mut ranges: Vec<_> = found.partitions.values().map(|p| (p.first, p.last)).collect();
    ranges.sort_unstable();
    assert!(ranges.iter().all(|(first, last)| first <= last && *last < SECTORS as u64));
    assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
    let _ = idle(&found, &[Installed { entry: Entry::fresh("1"), root: [7; 32] }]);
    if found.partitions.keys().all(|number| *number <= ENTRIES) {
        for write in found.writes() {
            if let Write::At { offset, bytes } = write {
                let at = offset as usize;
                disk[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        assert_eq!(read(&disk), Ok((found.clone(), Copies::Whole)), "it was {copies:?}");
    }
    let _ = found.grow(NUMBER_PERSIST);
    let new =
        gpt::Partition { kind: found.id, id: found.id, first: 0, last: 0, attributes: 0, name: "x".into() };
    if found.append(NUMBER_PERSIST, 0, new).is_ok() {
        assert!(found.partitions[&NUMBER_PERSIST].last < SECTORS as u64);
    }
}

fn read(disk: &[u8]) -> Result<(Table, Copies), gpt::TableError<()>> {
    let part =
        |at: u64, length: usize| disk.get(at as usize..at as usize + length).map(<[u8]>::to_vec).ok_or(());
    Table::read(SECTOR as u32, SECTORS as u64, part)
}

/// A header that is one, of entries that lie behind it.
fn mend(disk: &mut [u8]) {
    disk[SECTOR..SECTOR + 8].copy_from_slice(b"EFI PART");
    for (at, value) in [(12, 92_u32), (84, 128)] {
        disk[SECTOR + at..SECTOR + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(24, 1_u64), (72, 2)] {
        disk[SECTOR + at..SECTOR + at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let entries = disk[SECTOR + 80] % 129;
    disk[SECTOR + 80..SECTOR + 84].copy_from_slice(&u32::from(entries).to_le_bytes());
    let table = sum(&disk[2 * SECTOR..2 * SECTOR + usize::from(entries) * 128]);
    disk[SECTOR + 88..SECTOR + 92].copy_from_slice(&table.to_le_bytes());
    disk[SECTOR + 16..SECTOR + 20].fill(0);
    let own = sum(&disk[SECTOR..SECTOR + 92]);
    disk[SECTOR + 16..SECTOR + 20].copy_from_slice(&own.to_le_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The first byte claims the blocks of the root; odd: the claimed hash is the one of the highest block.
pub(crate) fn tree(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let data_blocks = u64::from(*choice) * u64::from(*choice);
    let top = data.get(BLOCK_BYTES..2 * BLOCK_BYTES).filter(|_| choice % 2 == 1);
    let root = Root { hash: top.map_or([0; 32], hash), data_blocks };
    let Some(leaves) = Leaves::of(&root, data) else { return };
    assert!(!leaves.is_block(data_blocks, &[0; BLOCK_BYTES]));
    let _ = leaves.is_block(0, data.get(..BLOCK_BYTES).unwrap_or_default());
}

/// Names of boot entries, a layout, a hash.
pub(crate) fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(entry) = Entry::parse(&text) {
        assert_eq!(Entry::parse(&entry.file_name()), Some(entry.clone()));
        assert_eq!(Entry::parse(&entry.good().file_name()), Some(entry.good()));
    }
    if let Some(layout) = Layout::parse(&text) {
        assert_eq!(Layout::parse(&layout.line()), Some(layout));
        let _ =
            layout.table(disk::partitions::Architecture::OWN, &[1; 32], (512, layout.mib() * 2048), |_| {
                uuid::Uuid::nil()
            });
    }
    let _ = parse_hash(&text);
}

/// The beginning of a disk, and its end behind the first zero byte after a mark of our own.
pub(crate) fn look(data: &[u8]) {
    let (first, last) = data.split_at(data.len() / 2);
    if content::look(first, last) == Content::Nothing {
        for part in [first, last] {
            assert!(part.iter().all(|byte| *byte == part[0]));
        }
    }
}

/// Variables by name, as a file system of the kernel shows them.
pub(crate) fn variables(data: &[u8]) {
    let mut parts = super::parts(data);
    let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let number = firmware::number(&String::from_utf8_lossy(name));
    let _ = (firmware::title(data), firmware::loader_partition(data));
    let order = firmware::first_in_order(value, number.unwrap_or(7));
    let mut seen: BTreeMap<&[u8], usize> = BTreeMap::new();
    order[4..].chunks_exact(2).for_each(|entry| *seen.entry(entry).or_default() += 1);
    assert_eq!(seen[&number.unwrap_or(7).to_le_bytes()[..]], 1);
}
