// SPDX-License-Identifier: Apache-2.0
//! The root of a process: a fresh read-only tmpfs with nothing but what its manifest names.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use ipc::manifest::Mode;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::{Bind, Cage, What};

/// Directories, mount points and copies of CONFIG.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=4m,mode=0755";
/// CONFIG holds a dozen certificates and keys; other files in it are not for us.
const MAX_COPIED_FILES: usize = 64;
const MAX_COPIED_BYTES: u64 = 256 * 1024;

/// Builds the root, moves into it and leaves the host's behind.
pub(super) fn build(cage: &Cage) -> Result<(), String> {
    let root = &cage.mount_point;
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("private mounts"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(cage.name.as_str(), root, "tmpfs", flags, ROOT_OPTIONS).map_err(failed("tmpfs"))?;
    for bind in &cage.binds {
        place(bind, root, cage.uid).map_err(|error| format!("{}: {error}", bind.inside.display()))?;
    }
    mount_remount(root, flags | MountFlags::NOEXEC | MountFlags::RDONLY, ROOT_OPTIONS)
        .map_err(failed("read-only root"))?;
    rustix::process::chdir(root).map_err(failed("chdir"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("old root"))?;
    rustix::process::chdir("/").map_err(failed("chdir"))
}

fn place(bind: &Bind, root: &Path, uid: u32) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let os = |error: rustix::io::Errno| error.to_string();
    let relative = bind.inside.strip_prefix("/").map_err(|error| error.to_string())?;
    let target = root.join(relative);
    let base = MountFlags::NOSUID | MountFlags::NODEV;
    let read_only = if bind.mode == Mode::Ro { MountFlags::RDONLY } else { MountFlags::empty() };
    match &bind.what {
        What::Proc => {
            fs::create_dir_all(&target).map_err(io)?;
            mount("proc", &target, "proc", base | MountFlags::NOEXEC | read_only, None).map_err(os)
        }
        What::Sys => {
            fs::create_dir_all(&target).map_err(io)?;
            mount("sysfs", &target, "sysfs", base | MountFlags::NOEXEC | read_only, None).map_err(os)
        }
        What::Copies(source) => copy(source, &target, uid).map_err(io),
        What::Path(source) | What::Program(source) | What::Device(source) => {
            let Ok(kind) = fs::metadata(source) else {
                return if bind.is_optional { Ok(()) } else { Err(missing(source)) };
            };
            let is_device = kind.file_type().is_char_device() || kind.file_type().is_block_device();
            let flags = match bind.what {
                What::Program(_) => base,
                What::Device(_) if is_device => MountFlags::NOSUID | MountFlags::NOEXEC,
                What::Device(_) => return Err(format!("{} is no device", source.display())),
                _ => base | MountFlags::NOEXEC,
            };
            make_target(&target, kind.is_dir()).map_err(io)?;
            // Below /proc and /sys other file systems may be mounted, and are wanted.
            if source.starts_with("/proc") || source.starts_with("/sys") {
                mount_bind_recursive(source, &target).map_err(os)?;
            } else {
                mount_bind(source, &target).map_err(os)?;
            }
            // A device opened for writing is no write to the file system: it may always be read-only.
            let read_only = if is_device { MountFlags::RDONLY } else { read_only };
            mount_remount(&target, MountFlags::BIND | flags | read_only, c"").map_err(os)
        }
    }
}

fn missing(path: &Path) -> String {
    format!("{} does not exist", path.display())
}

fn make_target(target: &Path, is_dir: bool) -> std::io::Result<()> {
    if is_dir {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if target.exists() { Ok(()) } else { fs::File::create(target).map(drop) }
}

/// Plain files of the directory, and nothing else of it.
fn copy(source: &Path, target: &Path, uid: u32) -> std::io::Result<()> {
    fs::create_dir_all(target)?;
    let mut files: Vec<PathBuf> =
        fs::read_dir(source)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    let mut copied = 0;
    for file in files {
        let Some(name) = file.file_name() else { continue };
        let kind = fs::metadata(&file)?;
        if !kind.is_file() || kind.len() > MAX_COPIED_BYTES || copied == MAX_COPIED_FILES {
            continue;
        }
        let copy = target.join(name);
        fs::write(&copy, fs::read(&file)?)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o400))?;
        chown(&copy, Some(uid), Some(uid))?;
        copied += 1;
    }
    fs::set_permissions(target, fs::Permissions::from_mode(0o500))?;
    chown(target, Some(uid), Some(uid))
}
