// SPDX-License-Identifier: Apache-2.0
//! The first stage: finds the root whose hash the kernel image names, has the kernel check it, and goes there.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use disk::partitions::{Architecture, ids_of_root};
use disk::verity::{self, hex};
use rustix::mount::{MountFlags, mount, mount_move};

use super::modules::{DIRECTORY, Modules};
use super::storage::{self, Disk};
use super::{BootError, SECOND_STAGE, at, call, dm, second};

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
    let (disk, data, tree) = find(&root, &mut modules)?;
    let device = dm::verity("root", root.data_blocks, &verity::target(&root, &data, &tree))?;
    mount(&device, ROOT, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None)
        .map_err(call("mounting the root"))?;
    for path in ["/proc", "/sys", "/dev", "/run"] {
        mount_move(path, format!("{ROOT}{path}")).map_err(call("moving mounts into the root"))?;
    }
    empty_initrd();
    rustix::process::chdir(ROOT).map_err(call("entering the root"))?;
    mount_move(".", "/").map_err(call("moving the root"))?;
    rustix::process::chroot(".").map_err(call("entering the root"))?;
    rustix::process::chdir("/").map_err(call("entering the root"))?;
    let source = Command::new(SECOND_STAGE).arg0("init").args([second::ARGUMENT, &disk]).exec();
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

/// Waits for the disk that has the root; gives its name and the numbers of the two partitions.
fn find(root: &verity::Root, modules: &mut Modules) -> Result<(String, String, String), BootError> {
    let (root_id, tree_id) = ids_of_root(&root.hash);
    let (root_kind, tree_kind) = (Architecture::OWN.root(), Architecture::OWN.root_verity());
    let start = Instant::now();
    loop {
        modules.load_for_devices();
        let names = storage::names();
        for name in &names {
            let Ok(disk) = Disk::open(name) else { continue };
            let number_of = |kind, id| {
                let mut all = disk.table.partitions.iter();
                all.find(|(_, p)| p.kind == kind && p.id == id).and_then(|(number, _)| disk.numbers(*number))
            };
            if let (Some(data), Some(tree)) = (number_of(root_kind, root_id), number_of(tree_kind, tree_id)) {
                return Ok((name.clone(), data, tree));
            }
        }
        if start.elapsed() > PATIENCE {
            let looked = if names.is_empty() { "no disk at all".to_owned() } else { names.join(", ") };
            return Err(BootError::NoRoot { hash: hex(&root.hash), looked });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Gives the memory back that the initrd takes. What cannot be taken away only costs memory.
fn empty_initrd() {
    let _ = fs::remove_dir_all("/usr");
    let _ = fs::remove_file(Path::new("/init"));
}

#[cfg(test)]
mod tests {
    use super::*;

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
