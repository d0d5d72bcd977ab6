// SPDX-License-Identifier: Apache-2.0
//! Puts an update file into the idle slot of a disk that no box uses at the moment, as a version that has not been tried.
//!
//! Order: the update is checked against its own root hash; the boot entry of what it replaces goes; root and hash tree are
//! written; the table gets their ids; the new boot entry comes last. Whenever it is cut off, the other version boots.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use disk::entry::{self, Entry};
use disk::gpt::{Partition, Table, Write};
use disk::partitions::{ESP, NAMES_SLOTS, NUMBERS_SLOTS, ids_of_root};
use disk::slots::{Installed, idle};
use disk::update::{self, Manifest};
use disk::verity::{self, Hash, parse_hash};

use crate::fat::{FirstDay, Window};
use crate::pe;

const SECTOR: u32 = 512;
type Fat<'f> = fatfs::FileSystem<Window<'f>>;

/// What was done, for people.
#[derive(Debug)]
pub struct Done {
    pub version: String,
    pub slot: &'static str,
    pub replaced: Option<String>,
}

struct Update {
    manifest: Manifest,
    /// Root and kernel image, as they lie in a slot.
    data: Vec<u8>,
    trees: Vec<u8>,
}

impl Update {
    fn kernel(&self) -> &[u8] {
        let at = self.manifest.slot().kernel_at as usize;
        &self.data[at..at + self.manifest.kernel_bytes as usize]
    }
}

pub fn write(image: &Path, update: &Path) -> anyhow::Result<Done> {
    let update = Update::read(update).with_context(|| format!("update {}", update.display()))?;
    let file = File::options().read(true).write(true).open(image);
    let file = file.with_context(|| format!("cannot open {}", image.display()))?;
    let mut table = table(&file).with_context(|| format!("{} is no raw disk image", image.display()))?;
    let esp = table.partitions.values().find(|partition| partition.kind == ESP).cloned();
    let esp = esp.with_context(|| format!("{} has no ESP", image.display()))?;
    let options = || fatfs::FsOptions::new().update_accessed_date(false).time_provider(&FirstDay);
    let installed = installed(&fatfs::FileSystem::new(window(&file, &esp), options())?)?;
    if installed.iter().any(|version| version.entry.version == update.manifest.version) {
        bail!("version {} is on the disk already", update.manifest.version);
    }
    let Some(choice) = idle(&table, &installed) else {
        bail!("both slots hold a version that may be needed: let the box try the last update first");
    };
    let (root_number, tree_number) = NUMBERS_SLOTS[choice.slot];
    for (number, content) in [(root_number, &update.data), (tree_number, &update.trees)] {
        let room = table.partitions.get(&number).map_or(0, Partition::sectors) * u64::from(SECTOR);
        if content.len() as u64 > room {
            bail!("partition {number} has {room} bytes, the update needs {}", content.len());
        }
    }
    if let Some(replaced) = &choice.replaced {
        let system: Fat<'_> = fatfs::FileSystem::new(window(&file, &esp), options())?;
        system.root_dir().open_dir(entry::DIRECTORY)?.remove(&replaced.file_name())?;
        system.unmount()?;
        file.sync_all()?;
    }
    let (root_id, tree_id) = ids_of_root(&update.manifest.root.hash);
    for (number, id, content) in [(root_number, root_id, &update.data), (tree_number, tree_id, &update.trees)]
    {
        let partition =
            table.partitions.get_mut(&number).with_context(|| format!("no partition {number}"))?;
        partition.id = id;
        write_at(&file, partition.first * u64::from(SECTOR), content)?;
    }
    file.sync_all()?;
    for write in table.writes() {
        match write {
            Write::At { offset, bytes } => write_at(&file, offset, &bytes)?,
            Write::Flush => file.sync_all()?,
        }
    }
    let system: Fat<'_> = fatfs::FileSystem::new(window(&file, &esp), options())?;
    let dir = system.root_dir().open_dir(entry::DIRECTORY)?;
    // no boot loader takes a file of this name
    let (unfinished, name) =
        (format!("{}.new", update.manifest.version), Entry::fresh(&update.manifest.version).file_name());
    let mut new = dir.create_file(&unfinished)?;
    new.truncate()?;
    new.write_all(update.kernel()).context("the ESP has no room for the kernel image")?;
    new.flush()?;
    drop(new);
    file.sync_all()?;
    dir.rename(&unfinished, &dir, &name)?;
    drop(dir);
    system.unmount()?;
    file.sync_all()?;
    let replaced = choice.replaced.map(|entry| entry.version);
    Ok(Done { version: update.manifest.version, slot: NAMES_SLOTS[choice.slot].0, replaced })
}

impl Update {
    fn read(path: &Path) -> anyhow::Result<Update> {
        let file = File::open(path)?;
        let table = table(&file).context("it is no update file")?;
        let content = |number: u32| {
            let partition = table.partitions.get(&number).context("it is no update file")?;
            read_at(&file, partition)
        };
        let manifest = Manifest::parse(&content(update::MANIFEST)?)?.manifest;
        manifest.places(&table)?;
        let (mut data, mut trees) = (Vec::new(), Vec::new());
        for (tree, part, root) in [
            (update::ROOT_TREE, update::ROOT, &manifest.root),
            (update::KERNEL_TREE, update::KERNEL, &manifest.kernel),
        ] {
            let (tree, part) = (content(tree)?, content(part)?);
            let leaves = verity::leaves(&tree, root).context("a hash tree is damaged")?;
            let is_whole = |(block, leaf): (&[u8], &[u8])| verity::hash(block) == *leaf;
            if !part.chunks(verity::BLOCK_BYTES).zip(leaves.chunks(verity::HASH_BYTES)).all(is_whole) {
                bail!("a block is not the one of its hash tree: the file is damaged");
            }
            data.extend_from_slice(&part);
            trees.extend_from_slice(&tree);
        }
        let update = Update { manifest, data, trees };
        if root_hash(update.kernel())? != update.manifest.root.hash {
            bail!("its kernel image names another root");
        }
        Ok(update)
    }
}

/// The root that a kernel image names on its command line.
fn root_hash(uki: &[u8]) -> anyhow::Result<Hash> {
    let line = section_line(uki, ".cmdline", "")?;
    let word = line.split_whitespace().find_map(|word| word.strip_prefix("selvedge.roothash="));
    word.and_then(parse_hash).context("its kernel image names no root")
}

/// Of a section of text, what follows a beginning.
fn section_line(uki: &[u8], section: &str, start: &str) -> anyhow::Result<String> {
    let bytes = pe::section_in_memory(uki, section)?.with_context(|| format!("no section {section}"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let found = text.lines().find_map(|line| line.strip_prefix(start));
    Ok(found.with_context(|| format!("no {start} in {section}"))?.trim().to_owned())
}

/// Versions of ours on an ESP. A kernel image that cannot be read holds no slot.
fn installed(system: &Fat<'_>) -> anyhow::Result<Vec<Installed>> {
    let mut found = Vec::new();
    for file in system.root_dir().open_dir(entry::DIRECTORY).context("the ESP has no boot entries")?.iter() {
        let file = file?;
        let Some(entry) = Entry::parse(&file.file_name()) else { continue };
        let mut uki = Vec::new();
        file.to_file().read_to_end(&mut uki)?;
        if let Ok(root) = root_hash(&uki) {
            found.push(Installed { entry, root });
        }
    }
    Ok(found)
}

pub(crate) fn table(mut file: &File) -> anyhow::Result<Table> {
    let bytes = file.seek(SeekFrom::End(0))?;
    let (table, _) = Table::read(SECTOR, bytes / u64::from(SECTOR), |at, length| {
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    })?;
    Ok(table)
}

fn window<'f>(file: &'f File, partition: &Partition) -> Window<'f> {
    Window::new(file, partition.first * u64::from(SECTOR), partition.sectors() * u64::from(SECTOR))
}

pub(crate) fn read_at(mut file: &File, partition: &Partition) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(partition.sectors() * u64::from(SECTOR))?];
    file.seek(SeekFrom::Start(partition.first * u64::from(SECTOR)))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write_at(mut file: &File, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(bytes)?)
}
