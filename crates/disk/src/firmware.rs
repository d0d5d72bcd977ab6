// SPDX-License-Identifier: Apache-2.0
//! Variables of the firmware that say what it starts (UEFI specification, section 3.1), as Linux shows them: 4 bytes of
//! attributes, then the value.

use alloc::string::String;
use alloc::vec::Vec;

use uuid::{Uuid, uuid};

use crate::gpt::Partition;

/// Whose variables those of the boot manager are.
pub const GLOBAL: Uuid = uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");
/// Whose those are that a boot loader leaves for the system it starts (Boot Loader Interface).
pub const LOADER: Uuid = uuid!("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
/// Of [`LOADER`]: the id of the partition that the boot loader was read from.
pub const LOADER_PARTITION: &str = "LoaderDevicePartUUID";
/// Kept, and seen by the firmware and by the system.
const ATTRIBUTES: u32 = 7;
const ATTRIBUTE_BYTES: usize = 4;
const ACTIVE: u32 = 1;
const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE_PATH: u8 = 4;
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
const HARD_DRIVE_BYTES: u16 = 42;
/// Both the table and the id of a partition are of the kind GUID.
const GUID_TABLE: [u8; 2] = [2, 2];

/// A file on a partition, to be started by the firmware.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub title: &'a str,
    pub number: u32,
    pub partition: &'a Partition,
    /// With backslashes.
    pub file: &'a str,
}

impl Entry<'_> {
    /// The content of the variable `Boot####`.
    pub fn variable(&self) -> Vec<u8> {
        let file = wide(self.file);
        let mut path = Vec::new();
        path.extend([MEDIA, HARD_DRIVE]);
        path.extend(HARD_DRIVE_BYTES.to_le_bytes());
        path.extend(self.number.to_le_bytes());
        path.extend(self.partition.first.to_le_bytes());
        path.extend(self.partition.sectors().to_le_bytes());
        path.extend(self.partition.id.to_bytes_le());
        path.extend(GUID_TABLE);
        path.extend([MEDIA, FILE_PATH]);
        path.extend((file.len() as u16 + 4).to_le_bytes());
        path.extend(&file);
        path.extend(END);
        let mut out = Vec::from(ATTRIBUTES.to_le_bytes());
        out.extend(ACTIVE.to_le_bytes());
        out.extend((path.len() as u16).to_le_bytes());
        out.extend(wide(self.title));
        out.extend(path);
        out
    }
}

/// The title of an entry that is in a variable `Boot####`.
pub fn title(untrusted_variable: &[u8]) -> Option<String> {
    text(untrusted_variable.get(ATTRIBUTE_BYTES + 6..)?)
}

/// The id that [`LOADER_PARTITION`] holds.
pub fn loader_partition(untrusted_variable: &[u8]) -> Option<Uuid> {
    text(untrusted_variable.get(ATTRIBUTE_BYTES..)?)?.parse().ok()
}

/// The number in the name of a variable, `Boot0007-` and the owner's id.
pub fn number(untrusted_name: &str) -> Option<u16> {
    let digits = untrusted_name.strip_prefix("Boot")?.get(..4)?;
    let rest = untrusted_name.get(8..)?;
    let owner: Uuid = rest.strip_prefix('-')?.parse().ok()?;
    (owner == GLOBAL).then(|| u16::from_str_radix(digits, 16).ok())?
}

/// The content of the variable `BootOrder` with this entry before all others.
pub fn first_in_order(untrusted_variable: &[u8], number: u16) -> Vec<u8> {
    let mut out = Vec::from(ATTRIBUTES.to_le_bytes());
    out.extend(number.to_le_bytes());
    let others = untrusted_variable.get(ATTRIBUTE_BYTES..).unwrap_or_default().chunks_exact(2);
    for other in others.filter(|other| *other != number.to_le_bytes()) {
        out.extend(other);
    }
    out
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// To the zero, or to the end where there is none.
fn text(untrusted_units: &[u8]) -> Option<String> {
    let units = untrusted_units.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0)).collect::<Result<String, _>>().ok()
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    #[test]
    fn an_entry_is_what_the_specification_says() {
        let id = uuid!("00112233-4455-6677-8899-aabbccddeeff");
        let partition =
            Partition { kind: GLOBAL, id, first: 2048, last: 4095, attributes: 0, name: "".into() };
        let entry = Entry { title: "S", number: 1, partition: &partition, file: "\\a" };
        let mut expected = vec![7, 0, 0, 0, 1, 0, 0, 0, 42 + 10 + 4, 0, b'S', 0, 0, 0];
        expected.extend([4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0]);
        expected.extend([0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        expected.extend([0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 2, 2]);
        expected.extend([4, 4, 10, 0, b'\\', 0, b'a', 0, 0, 0, 0x7f, 0xff, 4, 0]);
        assert_eq!(entry.variable(), expected);
        assert_eq!(title(&expected), Some("S".to_string()));
    }

    #[test]
    fn an_entry_comes_first_and_once() {
        assert_eq!(first_in_order(&[], 3), [7, 0, 0, 0, 3, 0]);
        assert_eq!(first_in_order(&[7, 0, 0, 0, 1, 0, 3, 0, 2, 0], 3), [7, 0, 0, 0, 3, 0, 1, 0, 2, 0]);
    }

    #[test]
    fn variables_are_known_by_name() {
        assert_eq!(number("Boot001A-8be4df61-93ca-11d2-aa0d-00e098032b8c"), Some(26));
        for other in
            ["BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c", "Boot0001", "BootééÉ", "Boot000é-x", ""]
        {
            assert_eq!(number(other), None, "{other}");
        }
        let id = "00112233-4455-6677-8899-AABBCCDDEEFF";
        let mut variable = vec![6, 0, 0, 0];
        variable.extend(wide(id));
        assert_eq!(loader_partition(&variable), id.parse().ok());
        assert_eq!(loader_partition(&variable[..20]), None);
    }
}
