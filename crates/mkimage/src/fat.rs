// SPDX-License-Identifier: Apache-2.0
//! FAT file systems inside a part of an image file. Times are those of the day FAT begins with: no time at all would be no
//! valid one to a firmware, which then refuses to rename a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::Context as _;

#[derive(Debug)]
pub(crate) struct FirstDay;

impl fatfs::TimeProvider for FirstDay {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime {
            date: self.get_current_date(),
            time: fatfs::Time { hour: 0, min: 0, sec: 0, millis: 0 },
        }
    }
}

/// A part of a file, as a file of its own.
#[derive(Debug)]
pub(crate) struct Window<'f> {
    file: &'f File,
    start: u64,
    bytes: u64,
    at: u64,
}

impl<'f> Window<'f> {
    pub(crate) fn new(file: &'f File, start: u64, bytes: u64) -> Window<'f> {
        Window { file, start, bytes, at: 0 }
    }

    fn rest(&self, wanted: usize) -> usize {
        usize::try_from(self.bytes.saturating_sub(self.at)).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.rest(buffer.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let count = self.file.read(&mut buffer[..length])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.rest(bytes.len());
        if length == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let count = self.file.write(&bytes[..length])?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => i128::from(at),
            SeekFrom::Current(by) => i128::from(self.at) + i128::from(by),
            SeekFrom::End(by) => i128::from(self.bytes) + i128::from(by),
        };
        self.at = u64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// How a file system is called, and its own sectors: no smaller than those of any disk that it may lie on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volume<'a> {
    pub(crate) label: &'a str,
    pub(crate) number: u32,
    pub(crate) sector_bytes: u16,
}

impl<'a> Volume<'a> {
    /// One that firmware reads: as it is used to.
    pub(crate) fn for_firmware(label: &'a str, number: u32) -> Volume<'a> {
        Volume { label, number, sector_bytes: 512 }
    }

    /// One that only Linux reads, also from a CD and from disks with large sectors.
    pub(crate) fn for_any_disk(label: &'a str, number: u32) -> Volume<'a> {
        Volume { label, number, sector_bytes: 4096 }
    }
}

/// Makes a file system with these files; paths with slashes, directories are made.
pub(crate) fn make(
    window: Window<'_>,
    volume: Volume<'_>,
    files: &[(String, Vec<u8>)],
) -> anyhow::Result<()> {
    let Volume { label, number, sector_bytes } = volume;
    let mut window = window;
    let mut name = [b' '; 11];
    for (place, byte) in name.iter_mut().zip(label.bytes()) {
        *place = byte;
    }
    let whole = Window { file: window.file, start: window.start, bytes: window.bytes, at: 0 };
    let options =
        fatfs::FormatVolumeOptions::new().volume_label(name).volume_id(number).bytes_per_sector(sector_bytes);
    fatfs::format_volume(&mut window, options).with_context(|| format!("making the file system {label}"))?;
    let options = fatfs::FsOptions::new().update_accessed_date(false).time_provider(&FirstDay);
    let system = fatfs::FileSystem::new(window, options)?;
    for (path, content) in files {
        let mut dir = system.root_dir();
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap_or_default();
        for part in parts {
            dir = dir.create_dir(part).with_context(|| format!("{label}: {path}"))?;
        }
        let mut file = dir.create_file(name).with_context(|| format!("{label}: {path}"))?;
        file.truncate()?;
        file.write_all(content).with_context(|| format!("{label} has no room for {path}"))?;
        file.flush()?;
    }
    system.unmount()?;
    mend_dots(whole)
}

const SLOT: usize = 32;
const DELETED: u8 = 0xe5;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// Directories below each other that are mended.
const DEPTH_MAX: usize = 8;

/// Where clusters lie, as the first sector says.
struct Geometry {
    data: u64,
    cluster_bytes: u64,
}

/// The crate writes the entries `.` and `..` of a directory with long names and in the wrong slots, and names the cluster of the
/// root where 0 stands for it. Firmware takes that; others call it damage, and rightly.
fn mend_dots(mut window: Window<'_>) -> anyhow::Result<()> {
    let boot = read(&mut window, 0, 512)?;
    let short = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
    let long =
        |at: usize| u64::from(u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]));
    let sector = short(11);
    let table = if short(22) == 0 { long(36) } else { short(22) };
    let root = (short(14) + u64::from(boot[16]) * table) * sector;
    let root_bytes = short(17) * SLOT as u64;
    let geometry = Geometry { data: root + root_bytes, cluster_bytes: u64::from(boot[13]) * sector };
    // FAT32 keeps its root in a cluster
    let (at, bytes) = match root_bytes {
        0 => (geometry.at(long(44)), geometry.cluster_bytes),
        bytes => (root, bytes),
    };
    let slots = read(&mut window, at, usize::try_from(bytes)?)?;
    for cluster in directories(&slots) {
        mend(&mut window, &geometry, cluster, 0, 0)?;
    }
    Ok(())
}

impl Geometry {
    fn at(&self, cluster: u64) -> u64 {
        self.data + cluster.saturating_sub(2) * self.cluster_bytes
    }
}

fn mend(
    window: &mut Window<'_>,
    geometry: &Geometry,
    cluster: u64,
    parent: u64,
    depth: usize,
) -> anyhow::Result<()> {
    anyhow::ensure!(depth < DEPTH_MAX, "directories lie too deep");
    let at = geometry.at(cluster);
    let mut slots = read(window, at, usize::try_from(geometry.cluster_bytes)?)?;
    let is_wrong = slots[11] == LONG_NAME && slots[SLOT] == b'.' && slots[3 * SLOT..].starts_with(b"..");
    if is_wrong {
        slots.copy_within(SLOT..2 * SLOT, 0);
        slots.copy_within(3 * SLOT..4 * SLOT, SLOT);
        let parent = u32::try_from(parent)?.to_le_bytes();
        slots[SLOT + 20..SLOT + 22].copy_from_slice(&parent[2..]);
        slots[SLOT + 26..SLOT + 28].copy_from_slice(&parent[..2]);
        for free in [2, 3] {
            slots[free * SLOT] = DELETED;
        }
        window.seek(SeekFrom::Start(at))?;
        window.write_all(&slots[..4 * SLOT])?;
    }
    for below in directories(&slots) {
        mend(window, geometry, below, cluster, depth + 1)?;
    }
    Ok(())
}

/// First clusters of the directories that are named in these slots.
fn directories(slots: &[u8]) -> Vec<u64> {
    let entries = slots.chunks_exact(SLOT).take_while(|slot| slot[0] != 0);
    let is_directory = |slot: &&[u8]| {
        slot[11] != LONG_NAME && slot[11] & DIRECTORY != 0 && slot[0] != DELETED && slot[0] != b'.'
    };
    let cluster = |slot: &[u8]| u32::from_le_bytes([slot[26], slot[27], slot[20], slot[21]]);
    entries.filter(is_directory).map(|slot| cluster(slot).into()).collect()
}

fn read(window: &mut Window<'_>, at: u64, length: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    window.seek(SeekFrom::Start(at))?;
    window.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_again_and_two_are_alike() {
        let make_one = |volume: Volume<'_>| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(17 << 20).unwrap();
            let files = [("EFI/Linux/selvedge_1.0+3.efi".to_owned(), vec![7; 10_000])];
            make(Window::new(&file, 1 << 20, 16 << 20), volume, &files).unwrap();
            let mut bytes = Vec::new();
            (&file).seek(SeekFrom::Start(0)).unwrap();
            (&file).read_to_end(&mut bytes).unwrap();
            (file, bytes)
        };
        make_one(Volume::for_any_disk("CONFIG", 5));
        let volume = Volume::for_firmware("ESP", 5);
        let ((file, bytes), (_, again)) = (make_one(volume), make_one(volume));
        assert!(bytes == again && bytes[..1 << 20].iter().all(|byte| *byte == 0));
        let system =
            fatfs::FileSystem::new(Window::new(&file, 1 << 20, 16 << 20), fatfs::FsOptions::new()).unwrap();
        let mut found = Vec::new();
        let mut file = system.root_dir().open_file("EFI/Linux/selvedge_1.0+3.efi").unwrap();
        file.read_to_end(&mut found).unwrap();
        assert_eq!(found, vec![7; 10_000]);
    }
}
