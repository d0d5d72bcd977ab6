// SPDX-License-Identifier: Apache-2.0
//! FAT file systems inside a part of an image file. Times are those of the day FAT begins with: no time at all would be no
//! valid one to a firmware, which then refuses to rename a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::Context as _;

#[derive(Debug)]
struct FirstDay;

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

/// Makes a file system with these files; paths with slashes, directories are made.
pub(crate) fn make(
    window: Window<'_>,
    label: &str,
    number: u32,
    files: &[(String, Vec<u8>)],
) -> anyhow::Result<()> {
    let mut window = window;
    let mut name = [b' '; 11];
    for (place, byte) in name.iter_mut().zip(label.bytes()) {
        *place = byte;
    }
    let options = fatfs::FormatVolumeOptions::new().volume_label(name).volume_id(number);
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_again_and_two_are_alike() {
        let make_one = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(17 << 20).unwrap();
            let files = [("EFI/Linux/selvedge_1.0+3.efi".to_owned(), vec![7; 10_000])];
            make(Window::new(&file, 1 << 20, 16 << 20), "CONFIG", 5, &files).unwrap();
            let mut bytes = Vec::new();
            (&file).seek(SeekFrom::Start(0)).unwrap();
            (&file).read_to_end(&mut bytes).unwrap();
            (file, bytes)
        };
        let ((file, bytes), (_, again)) = (make_one(), make_one());
        assert!(bytes == again && bytes[..1 << 20].iter().all(|byte| *byte == 0));
        let system =
            fatfs::FileSystem::new(Window::new(&file, 1 << 20, 16 << 20), fatfs::FsOptions::new()).unwrap();
        let mut found = Vec::new();
        let mut file = system.root_dir().open_file("EFI/Linux/selvedge_1.0+3.efi").unwrap();
        file.read_to_end(&mut found).unwrap();
        assert_eq!(found, vec![7; 10_000]);
    }
}
