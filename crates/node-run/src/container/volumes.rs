// SPDX-License-Identifier: Apache-2.0
//! Volumes of the app: taken while the node's file systems are in reach, mounted once the container's root is.
//!
//! Between the two they are mounts without a place. What the image has at a mount point is looked up below the
//! container's root, whatever links it holds; a mount point on one of the kernel's own file systems, or the root itself,
//! is refused.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::step::{Step, StepError};
use super::{IdRange, VolumeMount, VolumeSource, files, mounts};

/// Inside the container whatever the path says.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// Magic numbers of proc, sysfs and cgroup2 (`linux/magic.h`).
const KERNEL_FS: [u32; 3] = [0x9fa0, 0x6265_6572, 0x6367_7270];

/// A mount for each volume, in their order.
pub(super) fn take(volumes: &[VolumeMount]) -> Result<Vec<OwnedFd>, StepError> {
    volumes.iter().map(take_one).collect()
}

fn take_one(volume: &VolumeMount) -> Result<OwnedFd, StepError> {
    let failed = |path: &Path| {
        let path = path.to_string_lossy().into_owned();
        move |errno| StepError::at(Step::Volume, &path)(errno)
    };
    let mount = match &volume.source {
        VolumeSource::Directory(path) => take_path(path, OFlags::DIRECTORY).map_err(failed(path))?,
        VolumeSource::File(path) => take_path(path, OFlags::empty()).map_err(failed(path))?,
        VolumeSource::Overlay { layers, upper, work, at } => {
            mounts::mount_overlay(layers, Some((upper, work)), at).map_err(failed(at))?;
            take_path(at, OFlags::DIRECTORY).map_err(failed(at))?
        }
        VolumeSource::Layers { layers, at } => match layers.as_slice() {
            // Overlayfs wants two.
            [layer] => take_path(layer, OFlags::DIRECTORY).map_err(failed(layer))?,
            layers => {
                mounts::mount_overlay(layers, None, at).map_err(failed(at))?;
                take_path(at, OFlags::DIRECTORY).map_err(failed(at))?
            }
        },
    };
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if volume.is_read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    mounts::set_attributes(mount.as_fd(), attributes)
        .map_err(|errno| StepError::at(Step::Volume, "attributes")(errno))?;
    Ok(mount)
}

fn take_path(path: &Path, kind: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
    let place = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    copy(place.as_fd())
}

fn copy(of: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(of, "", flags)
}

/// Mounts what was [taken](take) below the root of this mount namespace, outer places before inner ones.
pub(super) fn mount(taken: Vec<OwnedFd>, volumes: &[VolumeMount], ids: IdRange) -> Result<(), StepError> {
    let root = files::open_root()?;
    let mut places: Vec<(&String, &OwnedFd, bool)> = Vec::new();
    for (mount, volume) in taken.iter().zip(volumes) {
        places.extend(volume.targets.iter().map(|target| (target, mount, volume.source.is_file())));
    }
    places.sort_by(|a, b| a.0.cmp(b.0));
    for (target, mount, is_file) in places {
        let failed = |errno| StepError::at(Step::MountPoint, target)(errno);
        let place = mount_point(root.as_fd(), target, is_file, ids).map_err(failed)?;
        let mount = copy(mount.as_fd()).map_err(failed)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(mount.as_fd(), "", place.as_fd(), "", flags).map_err(failed)?;
    }
    Ok(())
}

/// Opens a mount point; what is missing of it is made and belongs to the container's root.
fn mount_point(root: BorrowedFd<'_>, path: &str, is_file: bool, ids: IdRange) -> Result<OwnedFd, Errno> {
    let open =
        |path: &str| rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE);
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.is_empty() || names.contains(&"..") {
        return Err(Errno::INVAL);
    }
    let (owner, group) = (Uid::from_raw(ids.base), Gid::from_raw(ids.base));
    let mut reached = String::from("/");
    let mut place = open("/")?;
    for (number, name) in names.iter().enumerate() {
        let parent = place;
        reached.push_str(name);
        place = match open(&reached) {
            Ok(place) => place,
            Err(Errno::NOENT) => {
                if is_kernels(parent.as_fd())? {
                    return Err(Errno::PERM);
                }
                if is_file && number + 1 == names.len() {
                    let flags =
                        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    drop(rustix::fs::openat(&parent, *name, flags, Mode::from_raw_mode(0o644))?);
                } else {
                    rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
                }
                rustix::fs::chownat(&parent, *name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                open(&reached)?
            }
            Err(errno) => return Err(errno),
        };
        reached.push('/');
    }
    let (top, found) = (rustix::fs::fstat(root)?, rustix::fs::fstat(&place)?);
    let is_root = (top.st_dev, top.st_ino) == (found.st_dev, found.st_ino);
    if is_root || is_kernels(place.as_fd())? { Err(Errno::PERM) } else { Ok(place) }
}

fn is_kernels(place: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(place)?.f_type;
    Ok(KERNEL_FS.iter().any(|known| i64::from(*known) == kind as i64))
}
