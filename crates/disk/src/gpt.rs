// SPDX-License-Identifier: Apache-2.0
//! The GUID partition table (UEFI specification, section 5.3).
//!
//! The table lies on the disk twice, each copy with its checksums. [`Table::writes`] gives the order in which a change must
//! reach the disk: the copy at the end first, so that whenever power goes one copy is whole, and [`Table::read`] takes it.
//! A disk that was made larger has its second copy in the middle; writing the table moves it to the end.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use uuid::Uuid;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: usize = 92;
/// Entries of a table that we write, and the bytes of one. Every known tool takes these.
pub const ENTRIES: u32 = 128;
const ENTRY_BYTES: usize = 128;
/// Larger tables are legal and used by nobody: not read, so that a hostile disk costs no memory.
const ENTRIES_MAX: u32 = 1024;
const ENTRY_BYTES_MAX: u32 = 1024;
/// UTF-16 units of a name.
pub const NAME_UNITS: usize = 36;
const SECTORS: [u32; 2] = [512, 4096];

/// One partition. Sectors are counted from the start of the disk; `last` belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub kind: Uuid,
    pub id: Uuid,
    pub first: u64,
    pub last: u64,
    pub attributes: u64,
    pub name: String,
}

impl Partition {
    pub fn sectors(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// A valid table: partitions lie inside the disk and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub id: Uuid,
    pub sector_bytes: u32,
    /// Of the whole disk.
    pub sectors: u64,
    /// By number, from 1.
    pub partitions: BTreeMap<u32, Partition>,
}

/// Whether the table should be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    Whole,
    /// One copy is damaged or not where it belongs.
    OneIsLost,
}

/// Why a disk has no table that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError<E> {
    #[error("cannot read the disk")]
    Read(E),
    #[error("sectors of {0} bytes are not known")]
    Sectors(u32),
    #[error("the disk has no partition table, or both its copies are damaged")]
    NoTable,
}

/// Why a partition cannot be put on a disk.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("there is no room for {wanted} sectors")]
    NoRoom { wanted: u64 },
    #[error("partition number {0} is taken or above {ENTRIES}")]
    Number(u32),
    #[error("{0:?} is longer than {NAME_UNITS} characters")]
    Name(String),
}

impl Table {
    pub fn new(id: Uuid, sector_bytes: u32, sectors: u64) -> Table {
        Table { id, sector_bytes, sectors, partitions: BTreeMap::new() }
    }

    /// Reads the first copy that is valid. `read` takes an offset and a length in bytes.
    pub fn read<E>(
        sector_bytes: u32,
        sectors: u64,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<(Table, Copies), TableError<E>> {
        if !SECTORS.contains(&sector_bytes) {
            return Err(TableError::Sectors(sector_bytes));
        }
        let mut copy = |at: u64| -> Result<Option<(Table, u64)>, TableError<E>> {
            let Some(offset) = at.checked_mul(sector_bytes.into()).filter(|_| at < sectors) else {
                return Ok(None);
            };
            let untrusted_header = read(offset, sector_bytes as usize).map_err(TableError::Read)?;
            let Some(header) = Header::parse(&untrusted_header, at) else { return Ok(None) };
            let bytes = header.entries as usize * header.entry_bytes as usize;
            let Some(offset) = header.table_at.checked_mul(sector_bytes.into()) else { return Ok(None) };
            let disk_bytes = sectors.saturating_mul(sector_bytes.into());
            if offset.checked_add(bytes as u64).is_none_or(|end| end > disk_bytes) {
                return Ok(None);
            }
            let untrusted_entries = read(offset, bytes).map_err(TableError::Read)?;
            Ok(header.table(&untrusted_entries, sector_bytes, sectors).map(|table| (table, header.other)))
        };
        let last = sectors.saturating_sub(1);
        let first_copy = copy(1)?;
        let second_at = first_copy.as_ref().map_or(last, |(_, other)| *other);
        let second_copy = copy(second_at)?;
        match (first_copy, second_copy) {
            (Some((first, _)), Some((second, _))) => {
                let is_whole = first == second && second_at == last;
                Ok((first, if is_whole { Copies::Whole } else { Copies::OneIsLost }))
            }
            (Some((table, _)), None) | (None, Some((table, _))) => Ok((table, Copies::OneIsLost)),
            (None, None) => Err(TableError::NoTable),
        }
    }

    /// What to write, in this order, offsets in bytes. What is before a [`Write::Flush`] must be on the disk first.
    pub fn writes(&self) -> Vec<Write> {
        let entries = self.entries();
        let last = self.sectors.saturating_sub(1);
        let backup_table = last.saturating_sub(self.table_sectors());
        let byte = |sector: u64| sector * u64::from(self.sector_bytes);
        let at = |sector, bytes| Write::At { offset: byte(sector), bytes };
        vec![
            at(backup_table, entries.clone()),
            at(last, self.header(last, 1, backup_table, &entries)),
            Write::Flush,
            at(2, entries.clone()),
            at(1, self.header(1, last, 2, &entries)),
            at(0, self.protective()),
            Write::Flush,
        ]
    }

    /// First and last sector that a partition may have.
    pub fn usable(&self) -> (u64, u64) {
        let table = self.table_sectors();
        (2 + table, self.sectors.saturating_sub(2 + table))
    }

    /// Puts a partition behind all others, begun at a whole MiB. `sectors` of 0: all that is left, to a whole MiB.
    pub fn append(&mut self, number: u32, sectors: u64, partition: Partition) -> Result<(), PlaceError> {
        if number == 0 || number > ENTRIES || self.partitions.contains_key(&number) {
            return Err(PlaceError::Number(number));
        }
        if partition.name.encode_utf16().count() > NAME_UNITS {
            return Err(PlaceError::Name(partition.name));
        }
        let (lowest, _) = self.usable();
        let mib = self.mib();
        let behind = self.partitions.values().map(|other| other.last + 1).max().unwrap_or(lowest);
        let first = behind.div_ceil(mib) * mib;
        let end = self.end_of_room();
        let sectors = if sectors == 0 { end.saturating_sub(first) } else { sectors };
        if sectors == 0 || first.checked_add(sectors).is_none_or(|behind| behind > end) {
            return Err(PlaceError::NoRoom { wanted: sectors.max(1) });
        }
        self.partitions.insert(number, Partition { first, last: first + sectors - 1, ..partition });
        Ok(())
    }

    /// Makes the partition as large as the room behind it allows, to a whole MiB. False: it is so already.
    pub fn grow(&mut self, number: u32) -> bool {
        let end = self.end_of_room();
        let Some(own) = self.partitions.get(&number) else { return false };
        let behind = self.partitions.values().filter(|other| other.first > own.last).map(|other| other.first);
        let last = behind.min().unwrap_or(end).min(end).saturating_sub(1);
        if last <= own.last {
            return false;
        }
        self.partitions.get_mut(&number).map(|own| own.last = last).is_some()
    }

    /// First sector behind what partitions may take, a whole MiB.
    fn end_of_room(&self) -> u64 {
        let (_, highest) = self.usable();
        (highest + 1) / self.mib() * self.mib()
    }

    fn mib(&self) -> u64 {
        (1 << 20) / u64::from(self.sector_bytes)
    }

    fn table_sectors(&self) -> u64 {
        (u64::from(ENTRIES) * ENTRY_BYTES as u64).div_ceil(self.sector_bytes.into())
    }

    fn entries(&self) -> Vec<u8> {
        let mut out = vec![0; self.table_sectors() as usize * self.sector_bytes as usize];
        for (number, partition) in &self.partitions {
            let index = (*number as usize).saturating_sub(1);
            let Some(entry) = out.chunks_exact_mut(ENTRY_BYTES).nth(index) else { continue };
            entry[..16].copy_from_slice(&partition.kind.to_bytes_le());
            entry[16..32].copy_from_slice(&partition.id.to_bytes_le());
            entry[32..40].copy_from_slice(&partition.first.to_le_bytes());
            entry[40..48].copy_from_slice(&partition.last.to_le_bytes());
            entry[48..56].copy_from_slice(&partition.attributes.to_le_bytes());
            let units = partition.name.encode_utf16().take(NAME_UNITS);
            for (unit, place) in units.zip(entry[56..].chunks_exact_mut(2)) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        out
    }

    fn header(&self, at: u64, other: u64, table_at: u64, entries: &[u8]) -> Vec<u8> {
        let (lowest, highest) = self.usable();
        let mut out = vec![0; self.sector_bytes as usize];
        out[..8].copy_from_slice(SIGNATURE);
        out[8..12].copy_from_slice(&REVISION.to_le_bytes());
        out[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        for (place, value) in [(24, at), (32, other), (40, lowest), (48, highest), (72, table_at)] {
            out[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        out[56..72].copy_from_slice(&self.id.to_bytes_le());
        out[80..84].copy_from_slice(&ENTRIES.to_le_bytes());
        out[84..88].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        let of_entries = crc32fast::hash(&entries[..ENTRIES as usize * ENTRY_BYTES]);
        out[88..92].copy_from_slice(&of_entries.to_le_bytes());
        let own = crc32fast::hash(&out[..HEADER_BYTES]);
        out[16..20].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// An old table with one partition over everything, for tools that know no other.
    fn protective(&self) -> Vec<u8> {
        let mut out = vec![0; self.sector_bytes as usize];
        let sectors = u32::try_from(self.sectors.saturating_sub(1)).unwrap_or(u32::MAX);
        let entry = &mut out[446..462];
        entry[..8].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
        out[510..512].copy_from_slice(&[0x55, 0xaa]);
        out
    }
}

/// A step of writing a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    At { offset: u64, bytes: Vec<u8> },
    Flush,
}

struct Header {
    id: Uuid,
    other: u64,
    table_at: u64,
    entries: u32,
    entry_bytes: u32,
    checksum: u32,
}

impl Header {
    fn parse(untrusted_bytes: &[u8], at: u64) -> Option<Header> {
        let bytes = untrusted_bytes;
        let length = u32_at(bytes, 12)? as usize;
        if bytes.get(..8)? != SIGNATURE || length < HEADER_BYTES {
            return None;
        }
        let mut own = bytes.get(..length)?.to_vec();
        own.get_mut(16..20)?.fill(0);
        let entry_bytes = u32_at(bytes, 84)?;
        let header = Header {
            id: uuid_at(bytes, 56)?,
            other: u64_at(bytes, 32)?,
            table_at: u64_at(bytes, 72)?,
            entries: u32_at(bytes, 80)?,
            entry_bytes,
            checksum: u32_at(bytes, 88)?,
        };
        let is_valid = u32_at(bytes, 16)? == crc32fast::hash(&own)
            && u64_at(bytes, 24)? == at
            && header.entries <= ENTRIES_MAX
            && (ENTRY_BYTES as u32..=ENTRY_BYTES_MAX).contains(&entry_bytes);
        is_valid.then_some(header)
    }

    fn table(&self, untrusted_entries: &[u8], sector_bytes: u32, sectors: u64) -> Option<Table> {
        if crc32fast::hash(untrusted_entries) != self.checksum {
            return None;
        }
        let mut table = Table::new(self.id, sector_bytes, sectors);
        for (index, entry) in untrusted_entries.chunks_exact(self.entry_bytes as usize).enumerate() {
            let kind = uuid_at(entry, 0)?;
            if kind.is_nil() {
                continue;
            }
            let partition = Partition {
                kind,
                id: uuid_at(entry, 16)?,
                first: u64_at(entry, 32)?,
                last: u64_at(entry, 40)?,
                attributes: u64_at(entry, 48)?,
                name: name(entry.get(56..ENTRY_BYTES)?),
            };
            if partition.first > partition.last || partition.last >= sectors || partition.first < 2 {
                return None;
            }
            table.partitions.insert(u32::try_from(index).ok()? + 1, partition);
        }
        let mut ranges: Vec<(u64, u64)> = table.partitions.values().map(|p| (p.first, p.last)).collect();
        ranges.sort_unstable();
        let is_apart = ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        is_apart.then_some(table)
    }
}

fn name(units: &[u8]) -> String {
    let units = units.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn uuid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    Some(Uuid::from_bytes_le(bytes.get(at..at + 16)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn partition(name: &str) -> Partition {
        Partition {
            kind: Uuid::from_u128(1),
            id: Uuid::from_u128(2),
            first: 0,
            last: 0,
            attributes: 0,
            name: name.into(),
        }
    }

    fn table(sectors: u64) -> Table {
        let mut table = Table::new(Uuid::from_u128(7), 512, sectors);
        table.append(1, 2048, partition("one")).unwrap();
        table.append(9, 0, partition("rest")).unwrap();
        table
    }

    /// The disk after the first `count` writes.
    fn write(disk: &mut [u8], table: &Table, count: usize) {
        let writes = table.writes().into_iter();
        let places = writes.filter_map(|write| match write {
            Write::At { offset, bytes } => Some((offset as usize, bytes)),
            Write::Flush => None,
        });
        for (offset, bytes) in places.take(count) {
            disk[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn read(disk: &[u8]) -> Result<(Table, Copies), TableError<Infallible>> {
        Table::read(512, disk.len() as u64 / 512, |at, length| {
            Ok(disk[at as usize..at as usize + length].to_vec())
        })
    }

    #[test]
    fn what_was_written_is_read() {
        let (table, mut disk) = (table(20_000), vec![0; 20_000 * 512]);
        write(&mut disk, &table, 5);
        assert_eq!(read(&disk), Ok((table, Copies::Whole)));
    }

    #[test]
    fn power_may_go_at_any_write_and_sector() {
        let (old, mut disk) = (table(20_000), vec![0; 20_000 * 512]);
        write(&mut disk, &old, 5);
        let mut new = old.clone();
        new.partitions.get_mut(&9).unwrap().name = "P3".into();
        for count in 0..5 {
            for torn in [false, true] {
                let mut cut = disk.clone();
                write(&mut cut, &new, count);
                if torn {
                    let mut next = cut.clone();
                    write(&mut next, &new, count + 1);
                    // half of the sectors of the next write
                    for at in (0..cut.len()).step_by(1024) {
                        cut[at..at + 512].copy_from_slice(&next[at..at + 512]);
                    }
                }
                let (found, _) = read(&cut).unwrap();
                assert!(found == old || found == new, "cut at {count}");
            }
        }
    }

    #[test]
    fn a_larger_disk_takes_its_second_copy_along() {
        let (mut table, mut disk) = (table(20_000), vec![0; 20_000 * 512]);
        write(&mut disk, &table, 5);
        disk.resize(40_000 * 512, 0);
        let (found, copies) = read(&disk).unwrap();
        assert_eq!((copies, found.sectors), (Copies::OneIsLost, 40_000));
        table.sectors = 40_000;
        assert!(table.grow(9) && !table.grow(9) && !table.grow(1));
        write(&mut disk, &table, 5);
        assert_eq!(read(&disk), Ok((table.clone(), Copies::Whole)));
        // the last whole MiB before the second copy
        assert_eq!(table.partitions[&9].last, 19 * 2048 - 1);
    }

    #[test]
    fn one_copy_is_enough_and_none_is_said() {
        let (table, mut disk) = (table(20_000), vec![0; 20_000 * 512]);
        assert_eq!(read(&disk), Err(TableError::NoTable));
        write(&mut disk, &table, 5);
        disk[512 + 60] ^= 1;
        assert_eq!(read(&disk), Ok((table, Copies::OneIsLost)));
    }

    #[test]
    fn partitions_find_room_or_are_refused() {
        let mut table = Table::new(Uuid::from_u128(7), 4096, 1000);
        assert_eq!(table.append(1, 10_000, partition("big")), Err(PlaceError::NoRoom { wanted: 10_000 }));
        table.append(1, 256, partition("a")).unwrap();
        assert_eq!(table.append(1, 1, partition("b")), Err(PlaceError::Number(1)));
        assert_eq!((table.partitions[&1].first, table.partitions[&1].sectors()), (256, 256));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 4096), at in 0_usize..2048) {
            let mut disk = vec![0; 20_000 * 512];
            write(&mut disk, &table(20_000), 5);
            disk[at..at + bytes.len()].copy_from_slice(&bytes);
            let _ = read(&disk);
        }

        #[test]
        fn entries_with_right_sums_are_read_without_a_panic(kind: u128, first: u64, last: u64, number in 1_u32..128) {
            let mut table = table(20_000);
            let bad = Partition { kind: Uuid::from_u128(kind), first, last, ..partition("x") };
            table.partitions.insert(number, bad);
            let mut disk = vec![0; 20_000 * 512];
            write(&mut disk, &table, 5);
            if let Ok((found, _)) = read(&disk) {
                prop_assert!(found.partitions.values().all(|p| p.first <= p.last && p.last < 20_000));
            }
        }
    }
}
