// SPDX-License-Identifier: Apache-2.0
//! The first stage: finds the root whose hash the kernel image names, has the kernel check it, and goes there.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use disk::firmware;
use disk::gpt::Table;
use disk::partitions::{Architecture, ESP, ids_of_root};
use disk::verity::{self, hex};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use uuid::Uuid;

use super::dm::{self, Access};
use super::install::{self, VARIABLES};
use super::modules::{DIRECTORY, Modules};
use super::storage::{self, Disk};
use super::{BootError, SECOND_STAGE, at, call, second};

const ROOT: &str = "/sysroot";
/// Disks on USB take some seconds to be there.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn run() -> Result<Infallible, BootError> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("proc", "/proc", "proc", quiet, None).map_err(call("mounting /proc"))?;
    mount("sysfs", "/sys", "sysfs", quiet, None).map_err(call("mounting /sys"))?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"mode=0755"))
        .map_err(call("mounting /dev"))?;
    let run = MountFlags::NOSUID | MountFlags::NODEV;
    mount("run", "/run", "tmpfs", run, Some(c"mode=0755,size=25%")).map_err(call("mounting /run"))?;
    let line = fs::read_to_string("/proc/cmdline").map_err(at("cannot read", "/proc/cmdline"))?;
    let root = root_of(&line)?;
    let mut modules = Modules::open(DIRECTORY)?;
    modules.load_named("dm_verity");
    modules.load_named("erofs");
    let started_from = match install::medium(&line) {
        Some(esp) => From::Medium(esp),
        None => loader_partition(&mut modules).map_or(From::Unknown, From::Disk),
    };
    let disk = find(&root, started_from, &mut modules)?;
    let name = disk.name.clone();
    let (data, tree) = root_of_disk(&disk, &root)?;
    let root_device = dm::verity("root", root.data_blocks, &verity::target(&root, &data, &tree))?;
    mount(storage::device(&root_device), ROOT, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None)
        .map_err(call("mounting the root"))?;
    for path in ["/proc", "/sys", "/dev", "/run"] {
        mount_move(path, format!("{ROOT}{path}")).map_err(call("moving mounts into the root"))?;
    }
    empty_initrd();
    rustix::process::chdir(ROOT).map_err(call("entering the root"))?;
    mount_move(".", "/").map_err(call("moving the root"))?;
    rustix::process::chroot(".").map_err(call("entering the root"))?;
    rustix::process::chdir("/").map_err(call("entering the root"))?;
    let source = Command::new(SECOND_STAGE).arg0("init").args([second::ARGUMENT, &name]).exec();
    Err(BootError::Path { what: "cannot run", path: SECOND_STAGE.into(), source })
}

/// The root that the signed command line names.
pub(super) fn root_of(line: &str) -> Result<verity::Root, BootError> {
    let value = |name: &'static str| {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.ok_or(BootError::CommandLine(name))
    };
    let hash = verity::parse_hash(value("selvedge.roothash")?);
    let blocks = value("selvedge.rootblocks")?.parse().ok();
    Ok(verity::Root {
        hash: hash.ok_or(BootError::CommandLine("selvedge.roothash"))?,
        data_blocks: blocks.ok_or(BootError::CommandLine("selvedge.rootblocks"))?,
    })
}

/// Where the kernel image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// The installation medium with this ESP, which may be a CD.
    Medium(Uuid),
    /// The disk with this ESP, as the boot loader says.
    Disk(Uuid),
    /// No boot loader said it: over the network, by a firmware without variables.
    Unknown,
}

/// Waits for the disk with the root that this kernel image came from. Another disk may carry the same version, and never is taken:
/// where it cannot be told which is which the box does not start.
fn find(root: &verity::Root, started_from: From, modules: &mut Modules) -> Result<Disk, BootError> {
    let start = Instant::now();
    loop {
        modules.load_for_devices();
        let names = match started_from {
            From::Medium(_) => storage::media(),
            From::Disk(_) | From::Unknown => storage::names(),
        };
        let disks: Vec<Disk> = names.iter().filter_map(|name| Disk::open(name).ok()).collect();
        let mut found: Vec<Disk> =
            disks.into_iter().filter(|disk| is_it(&disk.table, root, started_from)).collect();
        if found.len() > 1 {
            let names: Vec<&str> = found.iter().map(|disk| disk.name.as_str()).collect();
            return Err(BootError::SameDisks(names.join(", ")));
        }
        if let Some(disk) = found.pop() {
            return Ok(disk);
        }
        if start.elapsed() > PATIENCE {
            let looked = if names.is_empty() { "no disk at all".to_owned() } else { names.join(", ") };
            return Err(BootError::NoRoot { hash: hex(&root.hash), looked });
        }
        std::thread::sleep(PAUSE);
    }
}

fn is_it(table: &Table, root: &verity::Root, started_from: From) -> bool {
    let has_esp = |id: Uuid| table.partitions.values().any(|p| p.kind == ESP && p.id == id);
    let is_from = match started_from {
        From::Medium(id) | From::Disk(id) => has_esp(id),
        From::Unknown => true,
    };
    is_from && numbers_of_root(table, root).is_some()
}

/// Numbers of the partitions of the root and of its tree.
fn numbers_of_root(table: &Table, root: &verity::Root) -> Option<(u32, u32)> {
    let (root_id, tree_id) = ids_of_root(&root.hash);
    let number_of = |kind, id| {
        let mut all = table.partitions.iter();
        all.find(|(_, p)| p.kind == kind && p.id == id).map(|(number, _)| *number)
    };
    let architecture = Architecture::OWN;
    Some((number_of(architecture.root(), root_id)?, number_of(architecture.root_verity(), tree_id)?))
}

/// Numbers of the devices.
fn root_of_disk(disk: &Disk, root: &verity::Root) -> Result<(String, String), BootError> {
    let no = || BootError::NoRoot { hash: hex(&root.hash), looked: disk.name.clone() };
    let (data, tree) = numbers_of_root(&disk.table, root).ok_or_else(no)?;
    let device = |number| storage::numbers(&disk.part(number, Access::ReadOnly)?).ok_or_else(no);
    Ok((device(data)?, device(tree)?))
}

/// The partition that the boot loader was read from, as it says itself.
fn loader_partition(modules: &mut Modules) -> Option<Uuid> {
    modules.load_named("efivarfs");
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV | MountFlags::RDONLY;
    mount("efivarfs", VARIABLES, "efivarfs", quiet, None).ok()?;
    let path = format!("{VARIABLES}/{}-{}", firmware::LOADER_PARTITION, firmware::LOADER);
    let found = fs::read(path).ok().and_then(|bytes| firmware::loader_partition(&bytes));
    let _ = unmount(VARIABLES, UnmountFlags::DETACH);
    found
}

/// Gives the memory back that the initrd takes. What cannot be taken away only costs memory.
fn empty_initrd() {
    let _ = fs::remove_dir_all("/usr");
    let _ = fs::remove_file(Path::new("/init"));
}

#[cfg(test)]
mod tests {
    use disk::partitions::Layout;

    use super::*;

    #[test]
    fn of_two_disks_with_the_same_version_the_one_is_taken_that_was_started_from() {
        let root = verity::Root { hash: [7; 32], data_blocks: 1 };
        let layout = Layout { esp: 1, root: 1, root_verity: 1, config: 1, reserved: 1 };
        let table = |id: u128| {
            let sectors = layout.mib() * 2048;
            layout.table(Architecture::OWN, &root.hash, (512, sectors), |_| Uuid::from_u128(id)).unwrap()
        };
        let from = From::Disk(Uuid::from_u128(1));
        assert!(is_it(&table(1), &root, from) && !is_it(&table(2), &root, from));
        assert!(is_it(&table(2), &root, From::Unknown));
        let other = verity::Root { hash: [8; 32], data_blocks: 1 };
        assert!(!is_it(&table(1), &other, from) && !is_it(&table(1), &other, From::Unknown));
    }

    #[test]
    fn the_root_stands_on_the_command_line() {
        let hash = "ab".repeat(32);
        let root = root_of(&format!("quiet selvedge.roothash={hash} selvedge.rootblocks=7\n")).unwrap();
        assert_eq!((hex(&root.hash), root.data_blocks), (hash, 7));
        for bad in ["", "selvedge.roothash=ab selvedge.rootblocks=7", "selvedge.roothash.x=1"] {
            assert!(root_of(bad).is_err(), "{bad}");
        }
    }
}
