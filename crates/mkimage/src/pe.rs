// SPDX-License-Identifier: Apache-2.0
//! A unified kernel image: systemd's stub with sections appended (UAPI specification, unified kernel image).

use anyhow::{Context as _, bail};

/// Readable data that is there from the start.
const INITIALIZED_READ: u32 = 0x4000_0040;
const SECTION_HEADER_BYTES: usize = 40;
const NAME_BYTES: usize = 8;
/// Offsets in the optional header of a 64-bit image.
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const SIZE_OF_INITIALIZED_DATA: usize = 8;

/// A section to append.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'static str,
    pub(crate) content: &'a [u8],
    /// In memory; at least as much as its content.
    pub(crate) memory_bytes: usize,
}

impl<'a> Section<'a> {
    pub(crate) fn new(name: &'static str, content: &'a [u8]) -> Section<'a> {
        Section { name, content, memory_bytes: content.len() }
    }
}

/// Where the headers of an image lie.
struct Layout {
    coff: usize,
    optional: usize,
    sections: usize,
    count: usize,
}

impl Layout {
    fn of(image: &[u8]) -> anyhow::Result<Layout> {
        let pe = u32_at(image, 0x3c)? as usize;
        if image.get(pe..pe + 4) != Some(b"PE\0\0") {
            bail!("it is no PE image");
        }
        let coff = pe + 4;
        let optional = coff + 20;
        if u16_at(image, optional)? != 0x20b {
            bail!("it is no 64-bit PE image");
        }
        let sections = optional + usize::from(u16_at(image, coff + 16)?);
        Ok(Layout { coff, optional, sections, count: u16_at(image, coff + 2)?.into() })
    }
}

/// How much memory an image takes once it is loaded.
pub(crate) fn memory_bytes(image: &[u8]) -> anyhow::Result<usize> {
    let layout = Layout::of(image)?;
    Ok(u32_at(image, layout.optional + SIZE_OF_IMAGE)? as usize)
}

/// Content of a section as it lies in memory: cut or filled with zeros to its length there.
pub(crate) fn section_in_memory(image: &[u8], name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let layout = Layout::of(image)?;
    for index in 0..layout.count {
        let at = layout.sections + index * SECTION_HEADER_BYTES;
        let own = image.get(at..at + NAME_BYTES).context("a cut section header")?;
        if own.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            let (in_memory, in_file) = (u32_at(image, at + 8)? as usize, u32_at(image, at + 16)? as usize);
            let offset = u32_at(image, at + 20)? as usize;
            let content = image.get(offset..offset + in_file).context("a section beyond the file")?;
            let mut content = content.to_vec();
            content.resize(in_memory, 0);
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// The stub with the sections behind its own, in their order.
pub(crate) fn append(stub: &[u8], sections: &[Section<'_>]) -> anyhow::Result<Vec<u8>> {
    let mut image = stub.to_vec();
    let layout = Layout::of(&image)?;
    let memory_alignment = u32_at(&image, layout.optional + SECTION_ALIGNMENT)? as usize;
    let file_alignment = u32_at(&image, layout.optional + FILE_ALIGNMENT)? as usize;
    if !memory_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
        bail!("its alignments are no powers of two");
    }
    let headers_end = layout.sections + (layout.count + sections.len()) * SECTION_HEADER_BYTES;
    if headers_end > u32_at(&image, layout.optional + SIZE_OF_HEADERS)? as usize {
        bail!("its header has no room for {} more sections", sections.len());
    }
    let mut memory_at =
        (u32_at(&image, layout.optional + SIZE_OF_IMAGE)? as usize).next_multiple_of(memory_alignment);
    let mut initialized = u32_at(&image, layout.optional + SIZE_OF_INITIALIZED_DATA)? as usize;
    for (index, section) in sections.iter().enumerate() {
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let offset = image.len();
        image.extend_from_slice(section.content);
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let in_file = image.len() - offset;
        let in_memory = section.memory_bytes.max(section.content.len());
        let at = layout.sections + (layout.count + index) * SECTION_HEADER_BYTES;
        let header = image.get_mut(at..at + SECTION_HEADER_BYTES).context("a cut header")?;
        header.fill(0);
        header[..section.name.len()].copy_from_slice(section.name.as_bytes());
        for (place, value) in [(8, in_memory), (12, memory_at), (16, in_file), (20, offset)] {
            header[place..place + 4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
        }
        header[36..40].copy_from_slice(&INITIALIZED_READ.to_le_bytes());
        memory_at = (memory_at + in_memory).next_multiple_of(memory_alignment);
        initialized += in_file;
    }
    let count = u16::try_from(layout.count + sections.len())?;
    image[layout.coff + 2..layout.coff + 4].copy_from_slice(&count.to_le_bytes());
    for (place, value) in [(SIZE_OF_IMAGE, memory_at), (SIZE_OF_INITIALIZED_DATA, initialized), (CHECKSUM, 0)]
    {
        let at = layout.optional + place;
        image[at..at + 4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
    }
    Ok(image)
}

fn u16_at(bytes: &[u8], at: usize) -> anyhow::Result<u16> {
    let bytes = bytes.get(at..at + 2).context("a cut image")?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let bytes = bytes.get(at..at + 4).context("a cut image")?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest image with one section and room for more.
    fn stub() -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x3c] = 0x40;
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x46] = 1;
        image[0x54] = 112;
        let optional = 0x58;
        image[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
        for (place, value) in [
            (SECTION_ALIGNMENT, 4096_u32),
            (FILE_ALIGNMENT, 512),
            (SIZE_OF_IMAGE, 8192),
            (SIZE_OF_HEADERS, 512),
        ] {
            image[optional + place..optional + place + 4].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    #[test]
    fn sections_are_found_again_and_do_not_overlap() {
        let big = Section { name: ".linux", content: b"kernel", memory_bytes: 10_000 };
        let image = append(&stub(), &[Section::new(".osrel", b"ID=x"), big]).unwrap();
        assert_eq!(section_in_memory(&image, ".osrel").unwrap().unwrap(), b"ID=x");
        let kernel = section_in_memory(&image, ".linux").unwrap().unwrap();
        assert_eq!((kernel.len(), &kernel[..7]), (10_000, &b"kernel\0"[..]));
        assert_eq!(section_in_memory(&image, ".none").unwrap(), None);
        assert_eq!(memory_bytes(&image).unwrap(), 8192 + 4096 + 12_288);
    }

    #[test]
    fn what_is_no_image_or_has_no_room_is_refused() {
        assert!(append(b"MZ", &[]).is_err());
        let many: Vec<_> = (0..20).map(|_| Section::new(".x", b"")).collect();
        assert!(append(&stub(), &many).unwrap_err().to_string().contains("no room"));
    }
}
