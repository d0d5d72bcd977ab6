// SPDX-License-Identifier: Apache-2.0
//! The two slots of a running box: whose they are, handed out to be written, started into, blessed and given up.
//!
//! The ESP is mounted for the moment of each change and only then. What is in a slot is told by its boot entry; an entry of another
//! version than the one that runs is that of the other slot. Order of an update: the entry of what is replaced goes, store
//! writes, the table gets the new ids, the new entry comes last, and gets its tries right before the restart. A cut at any moment leaves the version that runs.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use disk::entry::{DIRECTORY, Entry, Tries, compare, is_version};
use disk::partitions::{ESP, NUMBERS_SLOTS, ids_of_root};
use disk::update::{KERNEL_BYTES_MAX, Sum};
use disk::verity::Hash;
use model::observed::{SlotObserved, SlotsObserved};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::second::MEDIUM;
use super::storage::{Disk, device};
use super::{BootError, at, call};

const CHUNK_BYTES: usize = 1 << 20;

/// A version that store has written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) version: String,
    pub(crate) root: Hash,
    pub(crate) kernel_sha256: Hash,
    /// In the partition of the root.
    pub(crate) kernel_at: u64,
    pub(crate) kernel_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Slots {
    /// Of the version that runs.
    running: usize,
    version: String,
    entries: Vec<Entry>,
}

impl Slots {
    pub(super) fn open(disk: &Disk, root: &Hash, version: &str) -> Result<Slots, BootError> {
        let id = ids_of_root(root).0;
        let is_own = |(number, _): &(u32, u32)| disk.table.partitions.get(number).is_some_and(|p| p.id == id);
        let running = NUMBERS_SLOTS.iter().position(is_own).unwrap_or(0);
        let entries = on_esp(disk, MountFlags::RDONLY, entries)?;
        Ok(Slots { running, version: version.to_owned(), entries })
    }

    fn own(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.version == self.version)
    }

    fn other(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.version != self.version)
    }

    /// The version that runs has not been found good.
    pub(crate) fn is_trial(&self) -> bool {
        self.own().is_some_and(|own| own.tries.is_some())
    }

    /// There is something to go back to.
    pub(crate) fn has_other(&self) -> bool {
        self.other().is_some()
    }

    pub(crate) fn has(&self, version: &str) -> bool {
        self.other().is_some_and(|other| other.version == version)
    }

    pub(crate) fn observed(&self, disk: &Disk, is_ready: bool) -> SlotsObserved {
        let tries = |entry: &Entry| entry.tries.map(|tries| (tries.left, tries.done));
        let slot = |index: usize| {
            let entry = if index == self.running { self.own() } else { self.other() };
            let own_version = (index == self.running).then(|| self.version.clone());
            SlotObserved {
                device: disk
                    .partition(NUMBERS_SLOTS[index].0)
                    .map_or(String::new(), |name| format!("/dev/{name}")),
                version: entry.map(|entry| entry.version.clone()).or(own_version).unwrap_or_default(),
                tries: entry.and_then(tries),
            }
        };
        SlotsObserved { slots: [slot(0), slot(1)], running: self.running as u8, is_ready }
    }

    /// Partitions of the root and of the hash tree: those of the other slot to write, those that run to read. What was in the
    /// other slot is started no more.
    pub(crate) fn hand_out(&mut self, disk: &Disk) -> Result<[File; 4], BootError> {
        let version = self.version.clone();
        if self.has_other() {
            let kept = on_esp(disk, MountFlags::empty(), |dir| {
                for entry in entries(dir)?.iter().filter(|entry| entry.version != version) {
                    let path = dir.join(entry.file_name());
                    fs::remove_file(&path).map_err(at("cannot remove", &path))?;
                }
                entries(dir)
            })?;
            self.entries = kept;
        }
        let open = |slot: usize, options: &fs::OpenOptions| {
            let (root, tree) = NUMBERS_SLOTS[slot];
            let one = |number: u32| {
                let name = disk.partition(number).ok_or_else(|| BootError::Table {
                    disk: disk.name.clone(),
                    what: format!("the kernel does not show partition {number}"),
                })?;
                options.open(device(&name)).map_err(at("cannot open", device(&name)))
            };
            Ok::<_, BootError>((one(root)?, one(tree)?))
        };
        let (root, tree) = open(1 - self.running, fs::OpenOptions::new().read(true).write(true))?;
        let (own_root, own_tree) = open(self.running, fs::OpenOptions::new().read(true))?;
        Ok([root, tree, own_root, own_tree])
    }

    /// Gives the written version its ids and its boot entry, which waits for [`Slots::prepare_start`].
    pub(crate) fn install(&mut self, disk: &mut Disk, written: &Written) -> Result<(), BootError> {
        let table = |what: String| BootError::Table { disk: disk.name.clone(), what };
        if !is_version(&written.version)
            || written.version == self.version
            || written.kernel_bytes > KERNEL_BYTES_MAX
        {
            return Err(table(format!("version {:?} cannot be put into a slot", written.version)));
        }
        let (root, tree) = NUMBERS_SLOTS[1 - self.running];
        let (root_id, tree_id) = ids_of_root(&written.root);
        let name = disk.partition(root).ok_or_else(|| table(format!("there is no partition {root}")))?;
        let slot = File::open(device(&name)).map_err(at("cannot open", device(&name)))?;
        for (number, id) in [(root, root_id), (tree, tree_id)] {
            if let Some(partition) = disk.table.partitions.get_mut(&number) {
                partition.id = id;
            }
        }
        disk.write_table(&disk.file()?)?;
        self.entries = on_esp(disk, MountFlags::empty(), |dir| {
            // no boot loader takes a file of this name
            let unfinished = dir.join(format!("{}.new", written.version));
            let copied = copy_kernel(&slot, written, &unfinished).map_err(at("cannot write", &unfinished))?;
            if copied != written.kernel_sha256 {
                let _ = fs::remove_file(&unfinished);
                return Err(table("the kernel image in the slot is not the one that was ordered".into()));
            }
            // with no try: whatever starts the box now, it starts the version that runs
            let entry = dir.join(used_up(&Entry::fresh(&written.version)).file_name());
            fs::rename(&unfinished, &entry).map_err(at("cannot rename", &unfinished))?;
            entries(dir)
        })?;
        Ok(())
    }

    /// Takes the counter from the entry of the version that runs; gives its name.
    pub(crate) fn bless(&mut self, disk: &Disk) -> Result<String, BootError> {
        let version = self.version.clone();
        self.entries = rename(disk, &version, Entry::good)?;
        Ok(self.own().map(Entry::file_name).unwrap_or_default())
    }

    /// The version is started no more.
    pub(crate) fn give_up(&mut self, disk: &Disk, version: &str) -> Result<(), BootError> {
        self.entries = rename(disk, version, used_up)?;
        Ok(())
    }

    /// Sees to it that the other version is the one that is started next. False: it is not there to be tried.
    pub(crate) fn prepare_start(&mut self, disk: &Disk, version: &str) -> Result<bool, BootError> {
        if self.other().is_none_or(|other| other.version != version) || self.is_trial() {
            return Ok(false);
        }
        self.entries = rename(disk, version, |entry| Entry::fresh(&entry.version))?;
        // the boot loader takes the highest version that has tries left
        if compare(version, &self.version) == Ordering::Less {
            let own = self.version.clone();
            self.give_up(disk, &own)?;
        }
        Ok(true)
    }
}

fn used_up(entry: &Entry) -> Entry {
    let done = entry.tries.map_or(0, |tries| tries.done);
    Entry { version: entry.version.clone(), tries: Some(Tries { left: 0, done }) }
}

/// Copies the kernel image out of its slot, and sums it up.
fn copy_kernel(slot: &File, written: &Written, to: &Path) -> std::io::Result<Hash> {
    let mut file = File::create(to)?;
    let (mut sum, mut at, mut rest) = (Sum::default(), written.kernel_at, written.kernel_bytes as usize);
    let mut chunk = vec![0; CHUNK_BYTES];
    while rest > 0 {
        let length = rest.min(CHUNK_BYTES);
        slot.read_exact_at(&mut chunk[..length], at)?;
        sum.add(&chunk[..length]);
        file.write_all(&chunk[..length])?;
        (at, rest) = (at + length as u64, rest - length);
    }
    file.sync_all()?;
    Ok(sum.hash())
}

fn rename(disk: &Disk, version: &str, to: impl Fn(&Entry) -> Entry) -> Result<Vec<Entry>, BootError> {
    on_esp(disk, MountFlags::empty(), |dir| {
        rename_in(dir, version, to)?;
        entries(dir)
    })
}

fn rename_in(dir: &Path, version: &str, to: impl Fn(&Entry) -> Entry) -> Result<(), BootError> {
    for entry in entries(dir)?.iter().filter(|entry| entry.version == version) {
        let (from, to) = (dir.join(entry.file_name()), dir.join(to(entry).file_name()));
        if from != to {
            fs::rename(&from, &to).map_err(at("cannot rename", &from))?;
        }
    }
    Ok(())
}

/// Ours in a directory, the highest version first.
fn entries(dir: &Path) -> Result<Vec<Entry>, BootError> {
    let files = fs::read_dir(dir).map_err(at("cannot read", dir))?.flatten();
    let mut found: Vec<Entry> = files.filter_map(|file| Entry::parse(file.file_name().to_str()?)).collect();
    found.sort_by(|a, b| compare(&b.version, &a.version));
    Ok(found)
}

/// Does something in the directory of boot entries.
fn on_esp<T>(
    disk: &Disk,
    mode: MountFlags,
    work: impl FnOnce(&Path) -> Result<T, BootError>,
) -> Result<T, BootError> {
    let number = disk.table.partitions.iter().find(|(_, p)| p.kind == ESP).map(|(number, _)| *number);
    let node = number
        .and_then(|number| disk.partition(number))
        .ok_or_else(|| BootError::Table { disk: disk.name.clone(), what: "there is no ESP".into() })?;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV | mode;
    mount(device(&node), MEDIUM, "vfat", quiet, Some(c"umask=0077")).map_err(call("mounting the ESP"))?;
    let done = work(&Path::new(MEDIUM).join(DIRECTORY));
    rustix::fs::sync();
    unmount(MEDIUM, UnmountFlags::empty()).map_err(call("unmounting the ESP"))?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_entry_of_the_version_meant_changes_its_counter() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["selvedge_1.0+2-1.efi", "selvedge_2.0+3.efi", "other.efi"];
        names.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
        rename_in(dir.path(), "1.0", Entry::good).unwrap();
        rename_in(dir.path(), "1.0", Entry::good).unwrap();
        assert_eq!(left(dir.path()), ["other.efi", "selvedge_1.0.efi", "selvedge_2.0+3.efi"]);
        rename_in(dir.path(), "2.0", used_up).unwrap();
        assert_eq!(left(dir.path()), ["other.efi", "selvedge_1.0.efi", "selvedge_2.0+0.efi"]);
        let found: Vec<String> =
            entries(dir.path()).unwrap().iter().map(|entry| entry.version.clone()).collect();
        assert_eq!(found, ["2.0", "1.0"]);
    }

    #[test]
    fn a_kernel_image_is_copied_out_of_its_slot_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (slot, to) = (dir.path().join("slot"), dir.path().join("to"));
        let content: Vec<u8> = (0..3 * CHUNK_BYTES).map(|at| (at / 7) as u8).collect();
        fs::write(&slot, &content).unwrap();
        let written = Written {
            version: "2".into(),
            root: [0; 32],
            kernel_sha256: [0; 32],
            kernel_at: 4096,
            kernel_bytes: (CHUNK_BYTES + 77) as u64,
        };
        let mut sum = Sum::default();
        let expected = &content[4096..4096 + CHUNK_BYTES + 77];
        sum.add(expected);
        assert_eq!(copy_kernel(&File::open(&slot).unwrap(), &written, &to).unwrap(), sum.hash());
        assert_eq!(fs::read(&to).unwrap(), expected);
    }
}
