// SPDX-License-Identifier: Apache-2.0
//! From the medium to the target: checked first, then written, what makes the disk start last.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use disk::checked::Leaves;
use disk::content::{LOOK_BYTES, UNFINISHED, first_sector_last};
use disk::gpt::{Copies, Partition, Table};
use disk::partitions::{Architecture, CONFIG, Layout, NEW_ESP, NUMBER_CONFIG, NUMBER_ESP, NUMBERS_SLOTS};
use disk::verity::{self, BLOCK_BYTES, hex};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::options::{self, Options};
use super::talk::Talk;
use super::target::Candidate;
use super::{InstallError, Order};
use crate::boot::dm::Access;
use crate::boot::storage::{self, Disk, device};
use crate::boot::{BootError, at, call, second};

/// Copied at once.
const CHUNK_BYTES: usize = 4 << 20;
/// Larger ones are nobody's: three kernel images and a boot loader.
const ESP_BYTES_MAX: u64 = 256 << 20;

/// All that is copied, checked.
#[derive(Debug)]
pub(super) struct Sources {
    esp: Vec<u8>,
    /// The device of the root that runs: the kernel checks it as it is read.
    root: PathBuf,
    root_bytes: u64,
    tree: Vec<u8>,
    root_hash: disk::verity::Hash,
    config: PathBuf,
}

impl Sources {
    pub(super) fn open(medium: &Disk, order: &Order) -> Result<Sources, InstallError> {
        let number = |kind: Uuid| {
            let mut all = medium.table.partitions.iter();
            all.find(|(_, partition)| partition.kind == kind).map(|(number, partition)| (*number, partition))
        };
        let part = |kind: Uuid, missing: &'static str| {
            let (number, partition) = number(kind).ok_or(InstallError::Medium(missing))?;
            let bytes = partition.sectors() * u64::from(medium.table.sector_bytes);
            Ok::<_, InstallError>((medium.part(number, Access::ReadOnly)?, bytes))
        };
        let (esp, esp_bytes) = part(NEW_ESP, "it has no boot file system for the target")?;
        if esp_bytes > ESP_BYTES_MAX {
            return Err(InstallError::Medium("the boot file system is too large"));
        }
        let esp = storage::read(&esp, 0, esp_bytes as usize)?;
        if hex(&Sha256::digest(&esp)) != order.esp_sha256 {
            return Err(InstallError::Medium("the boot file system is not the one that belongs to it"));
        }
        let (tree, tree_bytes) = part(Architecture::OWN.root_verity(), "it has no hash tree")?;
        let needed = verity::tree_bytes(order.root.data_blocks);
        if needed > tree_bytes {
            return Err(InstallError::Medium("the hash tree is cut off"));
        }
        let tree = storage::read(&tree, 0, needed as usize)?;
        if Leaves::of(&order.root, &tree).is_none() {
            return Err(InstallError::Medium("the hash tree is not the one of the root"));
        }
        let (config, _) = part(CONFIG, "it has no CONFIG")?;
        let own = rustix::fs::stat("/").map_err(call("asking for the device of the root"))?;
        Ok(Sources {
            esp,
            root: device(&format!("dm-{}", rustix::fs::minor(own.st_dev))),
            root_bytes: order.root.data_blocks * BLOCK_BYTES as u64,
            tree,
            root_hash: order.root.hash,
            config: device(&config),
        })
    }
}

/// Writes everything; gives the table of the finished disk.
pub(super) fn write(
    target: &Candidate,
    layout: &Layout,
    sources: &Sources,
    options: &Options,
    talk: &mut Talk,
) -> Result<Table, InstallError> {
    let sector_bytes = storage::sector_bytes(&target.name);
    let sectors = target.bytes / sector_bytes;
    let shape = (u32::try_from(sector_bytes).unwrap_or(0), sectors);
    // each disk its own ids: no other is ever taken for it
    let table = layout.table(Architecture::OWN, &sources.root_hash, shape, |_| random_id());
    let table_error = |what: String| BootError::Table { disk: target.name.clone(), what };
    let table = table.map_err(|error| table_error(error.to_string()))?;
    let disk = Disk { name: target.name.clone(), table, copies: Copies::Whole };
    let file = disk.file()?;
    let failed = || at("cannot write to", &target.name);
    let mut begin = vec![0; LOOK_BYTES];
    begin[..UNFINISHED.len()].copy_from_slice(UNFINISHED);
    file.write_all_at(&begin, 0).map_err(failed())?;
    file.write_all_at(&vec![0; LOOK_BYTES], target.bytes - LOOK_BYTES as u64).map_err(failed())?;
    file.sync_all().map_err(failed())?;

    let offset = |number: u32| disk.table.partitions.get(&number).map_or(0, |p| p.first * sector_bytes);
    let room = |number: u32| disk.table.partitions.get(&number).map_or(0, Partition::sectors) * sector_bytes;
    let (root, tree) = NUMBERS_SLOTS[0];
    for (number, bytes) in [
        (NUMBER_ESP, sources.esp.len() as u64),
        (root, sources.root_bytes),
        (tree, sources.tree.len() as u64),
    ] {
        if bytes > room(number) {
            return Err(table_error(format!("partition {number} is too small for {bytes} bytes")).into());
        }
    }
    talk.say(format_args!("writing the boot file system, {} MiB", sources.esp.len() >> 20));
    file.write_all_at(&sources.esp, offset(NUMBER_ESP)).map_err(failed())?;
    talk.say(format_args!("writing the root, {} MiB", sources.root_bytes >> 20));
    copy(&sources.root, sources.root_bytes, &file, offset(root), talk)?;
    file.write_all_at(&sources.tree, offset(tree)).map_err(failed())?;
    copy(&sources.config, room(NUMBER_CONFIG), &file, offset(NUMBER_CONFIG), talk)?;
    file.sync_all().map_err(failed())?;
    config(&disk, options)?;
    file.sync_all().map_err(failed())?;

    storage::perform(first_sector_last(disk.table.writes()), &file, &disk.name)?;
    Ok(disk.table)
}

/// What is read and written is the same file system on both sides, so a medium's CONFIG that is larger is refused by its size.
fn copy(from: &Path, bytes: u64, to: &File, offset: u64, talk: &mut Talk) -> Result<(), BootError> {
    let mut source = File::open(from).map_err(at("cannot open", from))?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut done, mut shown) = (0, 0);
    while done < bytes {
        let length = CHUNK_BYTES.min(usize::try_from(bytes - done).unwrap_or(CHUNK_BYTES));
        source.read_exact(&mut buffer[..length]).map_err(at("cannot read", from))?;
        to.write_all_at(&buffer[..length], offset + done).map_err(at("cannot write from", from))?;
        done += length as u64;
        let percent = done * 100 / bytes;
        if percent / 25 > shown && bytes > CHUNK_BYTES as u64 * 4 {
            shown = percent / 25;
            talk.say(format_args!("{percent} %"));
        }
    }
    Ok(())
}

/// What the options say of the new box, into its CONFIG.
fn config(disk: &Disk, options: &Options) -> Result<(), BootError> {
    let node = device(&disk.mapped(NUMBER_CONFIG, Access::ReadWrite)?);
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount(&node, second::MEDIUM, "vfat", quiet, Some(c"umask=0077"))
        .map_err(call("mounting the new CONFIG"))?;
    let changed = change(Path::new(second::MEDIUM), options);
    rustix::fs::sync();
    unmount(second::MEDIUM, UnmountFlags::empty()).map_err(call("unmounting the new CONFIG"))?;
    let file = File::open(&node).map_err(at("cannot open", &node))?;
    file.sync_all().map_err(at("cannot sync", &node))?;
    changed
}

fn change(dir: &Path, options: &Options) -> Result<(), BootError> {
    let words = dir.join(options::FILE);
    if words.exists() {
        fs::remove_file(&words).map_err(at("cannot remove", &words))?;
    }
    for (name, value) in [("server", &options.server), ("soft_serial", &options.soft_serial)] {
        if let Some(value) = value {
            let path = dir.join(name);
            fs::write(&path, format!("{value}\n")).map_err(at("cannot write", &path))?;
        }
    }
    Ok(())
}

/// The kernel makes one at each reading.
fn random_id() -> Uuid {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    text.trim().parse().unwrap_or(Uuid::nil())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_config_has_what_was_asked_for_and_not_the_asking() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(options::FILE), "x").unwrap();
        fs::write(dir.path().join("server"), "old\n").unwrap();
        let options = Options::parse("eve_soft_serial=S1").unwrap();
        change(dir.path(), &options).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("server").as_deref(), Some("old\n"));
        assert_eq!(read("soft_serial").as_deref(), Some("S1\n"));
        assert_eq!(read(options::FILE), None);
    }
}
