// SPDX-License-Identifier: Apache-2.0
//! The second stage, in the verified root: everything that services expect of a system, then the supervisor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use disk::partitions::CONFIG;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::dm::Access;
use super::machine::{self, Ending, Machine};
use super::modules::{DIRECTORY, Modules};
use super::storage::{Disk, device};
use super::{BootError, at, call, first, install, ioctl, persist};
use crate::args::Options;
use crate::supervise;

/// The first argument of this stage; the second is the disk.
pub(super) const ARGUMENT: &str = "--booted";
pub(super) const CONFIG_MOUNT: &str = "/run/config";
pub(super) const MEDIUM: &str = "/run/medium";
const SELVEDGE_RUN: &str = "/run/selvedge";
/// A bundle is a dozen small files.
const CONFIG_FILES_MAX: usize = 64;
const CONFIG_FILE_BYTES_MAX: u64 = 256 * 1024;
const HOST_NAME: &str = "selvedge";

pub(super) fn run(arguments: &[String]) -> Result<Ending, BootError> {
    let disk_name = arguments.get(1).ok_or(BootError::CommandLine("name of the disk"))?;
    mounts()?;
    eprintln!("selvedge: version {} on {disk_name}", machine::version());
    // a key on the keyboard asks init, it does not cut the power
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    rustix::system::sethostname(HOST_NAME.as_bytes()).map_err(call("naming the host"))?;
    ioctl::set_up("lo").map_err(call("setting up the loopback"))?;
    let mut modules = Modules::open(DIRECTORY)?;
    modules.load_always();
    modules.load_for_devices();
    let mut disk = Disk::open(disk_name)?;
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(order) = install::ordered(&line) {
        return Ok(install::run(&disk, &order, &mut modules));
    }
    if let Err(error) = config(&disk) {
        // without one the box has nobody to ask; it says so and runs what it has
        eprintln!("selvedge: CONFIG cannot be read: {}", supervise::chain(&error));
    }
    persist::open(&mut disk)?;
    let server = fs::read_to_string(Path::new(CONFIG_MOUNT).join("server")).unwrap_or_default();
    let root = first::root_of(&line)?;
    let options = Options {
        config: CONFIG_MOUNT.into(),
        persist: persist::MOUNT.into(),
        run: SELVEDGE_RUN.into(),
        settings: BTreeMap::new(),
        services: None,
        manifests: None,
        bins: None,
        instance: "0".into(),
        is_verbose: line.split_whitespace().any(|word| word == "selvedge.verbose"),
    };
    let ending = supervise::run_booted(options, Machine::new(disk, server.trim(), &root.hash))?;
    eprintln!("selvedge: all services have ended");
    if let Err(error) = unmount(persist::MOUNT, UnmountFlags::empty()) {
        eprintln!("selvedge: P3 is still in use: {error}");
        let _ = mount_remount(persist::MOUNT, MountFlags::RDONLY, c"");
    }
    Ok(ending)
}

fn mounts() -> Result<(), BootError> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    for path in ["/dev/pts", "/dev/shm", CONFIG_MOUNT, MEDIUM, SELVEDGE_RUN] {
        fs::create_dir_all(path).map_err(at("cannot make", path))?;
    }
    let devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", "/dev/pts", "devpts", devices, Some(c"mode=0620,ptmxmode=0666"))
        .map_err(call("mounting /dev/pts"))?;
    mount("shm", "/dev/shm", "tmpfs", quiet, Some(c"mode=1777,size=16m"))
        .map_err(call("mounting /dev/shm"))?;
    mount("tmp", "/tmp", "tmpfs", quiet, Some(c"mode=1777,size=16m")).map_err(call("mounting /tmp"))?;
    let groups = Some(c"nsdelegate,memory_recursiveprot");
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, groups).map_err(call("mounting control groups"))
}

/// Copies CONFIG into memory, where nothing can change it. The partition is left alone afterwards.
pub(super) fn config(disk: &Disk) -> Result<(), BootError> {
    let number = disk.table.partitions.iter().find(|(_, p)| p.kind == CONFIG).map(|(number, _)| *number);
    let number = number
        .ok_or_else(|| BootError::Table { disk: disk.name.clone(), what: "there is no CONFIG".into() })?;
    let node = disk.part(number, Access::ReadOnly)?;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let memory = c"mode=0700,size=20m";
    mount("config", CONFIG_MOUNT, "tmpfs", quiet, Some(memory))
        .map_err(call("mounting memory for CONFIG"))?;
    mount(device(&node), MEDIUM, "vfat", quiet | MountFlags::RDONLY, Some(c"umask=0077"))
        .map_err(call("mounting CONFIG"))?;
    let copied = copy(Path::new(MEDIUM), Path::new(CONFIG_MOUNT));
    unmount(MEDIUM, UnmountFlags::empty()).map_err(call("unmounting CONFIG"))?;
    let read_only = quiet | MountFlags::RDONLY;
    mount_remount(CONFIG_MOUNT, read_only, memory).map_err(call("closing CONFIG"))?;
    copied
}

fn copy(from: &Path, to: &Path) -> Result<(), BootError> {
    let entries = fs::read_dir(from).map_err(at("cannot read", from))?.flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    let is_wanted = |path: &PathBuf| {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= CONFIG_FILE_BYTES_MAX)
    };
    for file in files.iter().filter(|path| is_wanted(path)).take(CONFIG_FILES_MAX) {
        if let Some(name) = file.file_name() {
            fs::copy(file, to.join(name)).map_err(at("cannot copy", file))?;
        }
    }
    Ok(())
}
