// SPDX-License-Identifier: Apache-2.0
//! Writes an onboarding bundle into the CONFIG partition of an image.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, bail};
use disk::gpt::Table;
use disk::partitions::{CONFIG, NAME_CONFIG};

use crate::fat::{self, Window};
use crate::fetch::sha256;

const SECTOR: u32 = 512;
/// What init copies of it at the start, and no more.
const FILES_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Replaces all that is in CONFIG by the files of a directory.
pub fn write(image: &Path, bundle: &Path) -> anyhow::Result<usize> {
    let files = files(bundle)?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .with_context(|| format!("cannot open {}", image.display()))?;
    let bytes = file.seek(SeekFrom::End(0))?;
    let table = Table::read(SECTOR, bytes / u64::from(SECTOR), |at, length| {
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    });
    let (table, _) = table.with_context(|| format!("{} is no raw disk image", image.display()))?;
    let is_config = |partition: &&disk::gpt::Partition| partition.kind == CONFIG;
    let partition = table.partitions.values().find(is_config);
    let partition =
        partition.with_context(|| format!("{} has no partition {NAME_CONFIG}", image.display()))?;
    let start = partition.first * u64::from(SECTOR);
    let window = Window::new(&file, start, partition.sectors() * u64::from(SECTOR));
    // equal bundles give equal images
    let all: Vec<u8> = files.iter().flat_map(|(name, content)| [name.as_bytes(), content].concat()).collect();
    let number = u32::from_str_radix(&sha256(&all)[..8], 16)?;
    fat::make(window, fat::Volume::for_any_disk(NAME_CONFIG, number), &files)?;
    file.sync_all()?;
    Ok(files.len())
}

fn files(bundle: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(bundle).with_context(|| format!("cannot read {}", bundle.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a name that is no UTF-8")?;
        let meta = fs::metadata(entry.path())?;
        if !meta.is_file() {
            bail!("{name} is no file: a bundle is flat");
        }
        if meta.len() > FILE_BYTES_MAX {
            bail!("{name} has {} bytes, a node reads {FILE_BYTES_MAX} at most", meta.len());
        }
        files.push((name, fs::read(entry.path())?));
    }
    if files.is_empty() || files.len() > FILES_MAX {
        bail!("{} has {} files, 1 to {FILES_MAX} make a bundle", bundle.display(), files.len());
    }
    files.sort();
    Ok(files)
}
