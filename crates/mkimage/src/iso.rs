// SPDX-License-Identifier: Apache-2.0
//! The descriptors that make a disk image one of a CD too (ECMA-119, El Torito 1.0): they lie between the partition table and
//! the first partition, where a stick has nothing. A firmware reads from a CD only where the boot file system is; people who
//! look into it find a text.

/// Of a CD.
const SECTOR: usize = 2048;
/// Where descriptors begin, by the standard. The partition table before it is none of a CD's business.
const DESCRIPTORS: u32 = 16;
const CATALOG: u32 = 19;
const PATHS_LITTLE: u32 = 20;
const PATHS_BIG: u32 = 21;
const DIRECTORY: u32 = 22;
const TEXT: u32 = 23;
const PLATFORM_EFI: u8 = 0xef;
const BOOTABLE: u8 = 0x88;
const IS_DIRECTORY: u8 = 2;
/// A path table with a root alone.
const PATHS_BYTES: u32 = 10;
const TEXT_NAME: &[u8] = b"README.TXT;1";
const DIRECTORY_SELF: &[u8] = &[0];
const DIRECTORY_PARENT: &[u8] = &[1];

/// Where the descriptors belong in the image.
pub(crate) const OFFSET: u64 = DESCRIPTORS as u64 * SECTOR as u64;

/// What the image is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Medium<'a> {
    /// Capital letters, digits and underscores.
    pub(crate) volume: &'a str,
    pub(crate) bytes: u64,
    /// Offset and bytes of the file system that the firmware starts from.
    pub(crate) boot: (u64, u64),
    pub(crate) text: &'a str,
}

/// Everything from [`OFFSET`] on. Nothing in it has a time.
pub(crate) fn descriptors(medium: &Medium<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for block in [primary(medium), boot_record(), terminator(), catalog(medium.boot), paths(u32::to_le_bytes)]
    {
        add(&mut out, block);
    }
    add(&mut out, paths(u32::to_be_bytes));
    let mut directory = Vec::new();
    for name in [DIRECTORY_SELF, DIRECTORY_PARENT] {
        directory.extend(record(name, DIRECTORY, SECTOR, IS_DIRECTORY));
    }
    directory.extend(record(TEXT_NAME, TEXT, medium.text.len(), 0));
    add(&mut out, directory);
    add(&mut out, medium.text.as_bytes().to_vec());
    out
}

fn add(out: &mut Vec<u8>, block: Vec<u8>) {
    out.extend(block);
    out.resize(out.len().next_multiple_of(SECTOR), 0);
}

fn head(kind: u8) -> Vec<u8> {
    let mut out = vec![0; SECTOR];
    out[0] = kind;
    out[1..6].copy_from_slice(b"CD001");
    out[6] = 1;
    out
}

fn primary(medium: &Medium<'_>) -> Vec<u8> {
    let mut out = head(1);
    // names that nobody gave are spaces
    for range in [8..72, 190..813] {
        out[range].fill(b' ');
    }
    let volume = medium.volume.as_bytes();
    out[40..40 + volume.len()].copy_from_slice(volume);
    out[80..88].copy_from_slice(&both((medium.bytes / SECTOR as u64) as u32));
    for at in [120, 124] {
        out[at..at + 4].copy_from_slice(&both_short(1));
    }
    out[128..132].copy_from_slice(&both_short(SECTOR as u16));
    out[132..140].copy_from_slice(&both(PATHS_BYTES));
    out[140..144].copy_from_slice(&PATHS_LITTLE.to_le_bytes());
    out[148..152].copy_from_slice(&PATHS_BIG.to_be_bytes());
    out[156..190].copy_from_slice(&record(DIRECTORY_SELF, DIRECTORY, SECTOR, IS_DIRECTORY));
    // four times that nobody gave: digits, and a zone of zero
    for at in [813, 830, 847, 864] {
        out[at..at + 16].fill(b'0');
    }
    out[881] = 1;
    out
}

fn boot_record() -> Vec<u8> {
    let mut out = head(0);
    let system = b"EL TORITO SPECIFICATION";
    out[7..7 + system.len()].copy_from_slice(system);
    out[71..75].copy_from_slice(&CATALOG.to_le_bytes());
    out
}

fn terminator() -> Vec<u8> {
    head(255)
}

fn catalog((offset, bytes): (u64, u64)) -> Vec<u8> {
    let mut out = vec![0; 64];
    (out[0], out[1]) = (1, PLATFORM_EFI);
    out[30..32].copy_from_slice(&[0x55, 0xaa]);
    let sum = out[..32]
        .chunks_exact(2)
        .fold(0_u16, |sum, pair| sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]])));
    out[28..30].copy_from_slice(&0_u16.wrapping_sub(sum).to_le_bytes());
    out[32] = BOOTABLE;
    // in sectors of 512; where they cannot be counted, 0 says: to the end
    let sectors = u16::try_from(bytes / 512).unwrap_or(0);
    out[38..40].copy_from_slice(&sectors.to_le_bytes());
    out[40..44].copy_from_slice(&((offset / SECTOR as u64) as u32).to_le_bytes());
    out
}

fn paths(number: fn(u32) -> [u8; 4]) -> Vec<u8> {
    let is_little = number(1)[0] == 1;
    let mut out = vec![1, 0];
    out.extend(number(DIRECTORY));
    out.extend(if is_little { [1, 0] } else { [0, 1] });
    out.extend([0, 0]);
    out
}

fn record(name: &[u8], block: u32, bytes: usize, flags: u8) -> Vec<u8> {
    let mut out = vec![0; 33];
    out[2..10].copy_from_slice(&both(block));
    out[10..18].copy_from_slice(&both(bytes as u32));
    out[25] = flags;
    out[28..32].copy_from_slice(&both_short(1));
    out[32] = name.len() as u8;
    out.extend(name);
    out.resize(out.len().next_multiple_of(2), 0);
    out[0] = out.len() as u8;
    out
}

/// Both orders of bytes, one behind the other.
fn both(number: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&number.to_le_bytes());
    out[4..].copy_from_slice(&number.to_be_bytes());
    out
}

fn both_short(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_stand_where_they_say_and_the_catalog_sums_to_zero() {
        let medium = Medium { volume: "V", bytes: 64 << 20, boot: (1 << 20, 20 << 20), text: "hello\n" };
        let bytes = descriptors(&medium);
        let block = |number: u32| &bytes[(number - DESCRIPTORS) as usize * SECTOR..][..SECTOR];
        let catalog = block(CATALOG);
        let words = catalog[..32].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        assert_eq!(words.fold(0, u16::wrapping_add), 0);
        assert_eq!(catalog[38..44], [0, 160, 0, 2, 0, 0]);
        assert!(block(TEXT).starts_with(b"hello\n"));
        assert!(OFFSET as usize + bytes.len() < 1 << 20);
    }
}
