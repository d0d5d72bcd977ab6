// SPDX-License-Identifier: Apache-2.0
//! The container's mount table: its root, /proc, /sys, /dev, and what of them is hidden or read-only.
//!
//! Runs in the child, in its own mount namespace, as root of the host's user namespace (docs/decisions/0003). After
//! [`enter_root`] the node's file systems are out of reach; only descriptors opened before remain. Targets inside the
//! image are opened without following any link and mounts are attached to descriptors, not to paths.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::step::{Step, StepError};
use super::{IdRange, RootFs, netns::last_errno};

/// Device nodes every container has; bound from the node's own.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];
/// Hidden: facts of the node that no app needs, some of which have led out of containers.
const MASKED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];
const READ_ONLY: &[&str] = &["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];
/// Room in /dev for directories and links, not for data.
const DEV_SIZE: &str = "size=64k";
/// As containers elsewhere have it; counts towards the app's memory limit.
const SHM_SIZE: &str = "size=64m";
/// Group `tty` in the images of all distributions.
const TTY_GID: u32 = 5;

const NO_EXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
const NO_EXEC_READ_ONLY: MountAttrFlags = NO_EXEC.union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// Copies of the node's device nodes, not attached anywhere, so that they survive the change of root.
pub(super) struct Devices(Vec<(&'static str, OwnedFd)>);

/// Nothing mounted from here on is seen by the node.
pub(super) fn make_private() -> Result<(), StepError> {
    let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation).map_err(StepError::at(Step::RootFs, "/"))
}

/// Makes `root` the root of this mount namespace, and nothing else is left in it.
pub(super) fn enter_root(root: &RootFs) -> Result<Devices, StepError> {
    let mut devices = Vec::with_capacity(DEVICES.len());
    for name in DEVICES {
        let path = format!("/dev/{name}");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match rustix::mount::open_tree(CWD, &path, flags) {
            Ok(copy) => devices.push((*name, copy)),
            // No app of ours has a controlling terminal to find there.
            Err(Errno::NOENT) if *name == "tty" => {}
            Err(errno) => return Err(StepError::at(Step::Devices, &path)(errno)),
        }
    }
    let at = match root {
        RootFs::Overlay { layers, upper, work, at } => {
            mount_overlay(layers, Some((upper, work)), at).map_err(failed_root(at))?;
            at
        }
        RootFs::Directory(path) => {
            rustix::mount::mount_bind_recursive(path, path).map_err(failed_root(path))?;
            path
        }
    };
    rustix::process::chdir(at).map_err(failed_root(at))?;
    rustix::process::pivot_root(".", ".").map_err(failed_root(at))?;
    // The node's root lies over the container's now; it goes, and "." is the container's.
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed_root(at))?;
    rustix::process::chdir("/").map_err(failed_root(at))?;
    Ok(Devices(devices))
}

fn failed_root(path: &Path) -> impl FnOnce(Errno) -> StepError + '_ {
    move |errno| StepError::at(Step::RootFs, &path.to_string_lossy())(errno)
}

/// Layers, lowest first; without a writable layer there are at least two.
pub(super) fn mount_overlay(
    layers: &[std::path::PathBuf],
    writable: Option<(&Path, &Path)>,
    at: &Path,
) -> Result<(), Errno> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    // Kept open until the mount stands: the options name them by number.
    let lowers = layers.iter().rev().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let writable = writable.map(|(upper, work)| Ok((open(upper)?, open(work)?))).transpose()?;
    let mut options = String::from("userxattr,index=off,lowerdir=");
    for (n, lower) in lowers.iter().enumerate() {
        let separator = if n == 0 { "" } else { ":" };
        let _ = write!(options, "{separator}/proc/self/fd/{}", lower.as_raw_fd());
    }
    if let Some((upper, work)) = &writable {
        let (upper, work) = (upper.as_raw_fd(), work.as_raw_fd());
        let _ = write!(options, ",upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work}");
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", at, "overlay", MountFlags::NODEV, options.as_c_str())
}

/// /proc, /sys and /dev of the container whose root is `/` now. Needs the new pid, ipc and network namespaces.
pub(super) fn mount_kernel_fs(devices: Devices, ids: IdRange, has_cgroup2: bool) -> Result<(), StepError> {
    let root = super::files::open_root()?;
    let root = root.as_fd();
    attach(&new_fs("proc", &[], NO_EXEC)?, target_dir(root, "proc", ids)?)?;
    attach(&new_fs("sysfs", &[], NO_EXEC_READ_ONLY)?, target_dir(root, "sys", ids)?)?;
    if has_cgroup2 {
        attach(&new_fs("cgroup2", &[], NO_EXEC_READ_ONLY)?, open_target(root, "sys/fs/cgroup")?)?;
    }
    mount_dev(root, devices, ids)?;
    read_only(root)?;
    mask(root)
}

fn mount_dev(root: BorrowedFd<'_>, devices: Devices, ids: IdRange) -> Result<(), StepError> {
    let failed = |what: &'static str| StepError::at(Step::Devices, what);
    let owner = format!("uid={0},gid={0}", ids.base);
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let fs = new_fs("tmpfs", &["mode=755", DEV_SIZE, &owner], no_exec)?;
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&fs, name, Mode::from_raw_mode(0o755)).map_err(failed(name))?;
        chown(&fs, name, ids).map_err(failed(name))?;
    }
    for (name, _) in &devices.0 {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&fs, *name, flags, Mode::from_raw_mode(0o666)).map_err(failed(name))?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(*target, &fs, *name).map_err(failed(name))?;
        chown(&fs, name, ids).map_err(failed(name))?;
    }
    attach(&fs, target_dir(root, "dev", ids)?)?;
    for (name, copy) in devices.0 {
        attach(&copy, open_target(root, &format!("dev/{name}"))?)?;
    }
    let tty = format!("gid={}", ids.base + TTY_GID);
    let pts = ["newinstance", "ptmxmode=0666", "mode=0620", &tty];
    attach(&new_fs("devpts", &pts, no_exec)?, open_target(root, "dev/pts")?)?;
    let shm = ["mode=1777", SHM_SIZE, &owner];
    attach(&new_fs("tmpfs", &shm, NO_EXEC)?, open_target(root, "dev/shm")?)?;
    attach(&new_fs("mqueue", &[], NO_EXEC)?, open_target(root, "dev/mqueue")?)
}

fn chown(dir: &OwnedFd, name: &str, ids: IdRange) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(ids.base), Gid::from_raw(ids.base));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn read_only(root: BorrowedFd<'_>) -> Result<(), StepError> {
    for path in READ_ONLY {
        let Some(target) = find_target(root, path)? else { continue };
        let copy = clone_tree(target.as_fd(), path)?;
        set_attributes(copy.as_fd(), NO_EXEC_READ_ONLY).map_err(StepError::at(Step::KernelFs, path))?;
        attach(&copy, target)?;
    }
    Ok(())
}

/// A file is covered by the null device, a directory by an empty one.
fn mask(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let null = open_target(root, "dev/null")?;
    let mut empty: Option<OwnedFd> = None;
    for path in MASKED {
        let Some(target) = find_target(root, path)? else { continue };
        let failed = StepError::at(Step::KernelFs, path);
        let stat = rustix::fs::fstat(&target).map_err(failed)?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let cover = match (is_dir, &empty) {
            (false, _) => clone_tree(null.as_fd(), path)?,
            (true, Some(mounted)) => clone_tree(mounted.as_fd(), path)?,
            (true, None) => new_fs("tmpfs", &["ro", "mode=555", "size=4k"], NO_EXEC_READ_ONLY)?,
        };
        attach(&cover, target)?;
        if is_dir {
            empty = Some(cover);
        }
    }
    Ok(())
}

/// A new file system, not attached yet. Options are `key=value` or `flag`.
fn new_fs(kind: &'static str, options: &[&str], attrs: MountAttrFlags) -> Result<OwnedFd, StepError> {
    let make = || {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for option in options.iter().flat_map(|option| option.split(',')) {
            match option.split_once('=') {
                Some((key, value)) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?,
                None => rustix::mount::fsconfig_set_flag(context.as_fd(), option)?,
            }
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs)
    };
    make().map_err(StepError::at(Step::KernelFs, kind))
}

fn clone_tree(of: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, StepError> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(of, "", flags).map_err(StepError::at(Step::KernelFs, path))
}

fn attach(mount: &OwnedFd, target: OwnedFd) -> Result<(), StepError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", target.as_fd(), "", flags)
        .map_err(StepError::at(Step::KernelFs, "into the image"))
}

/// A directory of the image to mount on, made when it is missing; a link in its place is refused.
fn target_dir(root: BorrowedFd<'_>, name: &str, ids: IdRange) -> Result<OwnedFd, StepError> {
    let failed = |errno| StepError::at(Step::KernelFs, &format!("/{name} of the image"))(errno);
    if let Some(found) = find_target(root, name)? {
        return Ok(found);
    }
    rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
    let (uid, gid) = (Uid::from_raw(ids.base), Gid::from_raw(ids.base));
    rustix::fs::chownat(root, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    open_target(root, name)
}

fn open_target(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, StepError> {
    find_target(root, path)?.ok_or_else(|| StepError::at(Step::KernelFs, path)(Errno::NOENT))
}

fn find_target(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>, StepError> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(StepError::at(Step::KernelFs, &format!("/{path} of the image"))(errno)),
    }
}

pub(super) fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> Result<(), Errno> {
    /// `struct mount_attr` of the kernel.
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr =
        MountAttr { attr_set: u64::from(attributes.bits()), attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, the attributes live across the call and their size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}
