// SPDX-License-Identifier: Apache-2.0
//! Project quotas: the kernel holds what an app writes into a volume to the volume's size.
//!
//! All files of a volume belong to one project, whose number is the inode of the volume's directory: unique on ext4, and on
//! other file systems as good as. New files inherit it, and nobody inside a user namespace can leave it. A file system
//! without project quotas is no failure: then process store measures (docs/decisions/0056).

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR` of Linux.
const GET_ATTRIBUTES: u64 = 0x801c_581f;
const SET_ATTRIBUTES: u64 = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`.
const INHERIT: u32 = 0x200;
/// `QCMD(Q_SETQUOTA, PRJQUOTA)`.
const SET_QUOTA: u32 = 0x80_0008 << 8 | 2;
/// `QIF_BLIMITS | QIF_ILIMITS`.
const LIMITS: u32 = 1 | 4;
/// Unit of a block limit.
const BLOCK_BYTES: u64 = 1024;
/// A file for every so many bytes, as ext4 is made by default, so that empty files do not use up the disk's inodes.
const BYTES_PER_FILE: u64 = 16 << 10;
/// A small volume may have this many files nevertheless.
const MIN_FILES: u64 = 4096;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    unused: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Quota {
    block_hard_limit: u64,
    block_soft_limit: u64,
    used_bytes: u64,
    file_hard_limit: u64,
    file_soft_limit: u64,
    files: u64,
    block_grace: u64,
    file_grace: u64,
    valid: u32,
}

/// Holds the volume at `volume` to a size, 0 for none; `written` are the directories or files in it that the app writes.
/// Says whether the file system does that.
pub fn limit(volume: &Path, written: &[&str], max_bytes: u64) -> Result<bool, Errno> {
    let volume = open(volume)?;
    let inode = rustix::fs::fstat(&volume)?.st_ino;
    let project = (inode as u32).max(1);
    let quota = Quota {
        block_hard_limit: max_bytes.div_ceil(BLOCK_BYTES),
        file_hard_limit: if max_bytes == 0 { 0 } else { (max_bytes / BYTES_PER_FILE).max(MIN_FILES) },
        valid: LIMITS,
        ..Quota::default()
    };
    // SAFETY: the descriptor is open and the structure outlives the call.
    let set = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, volume.as_raw_fd(), SET_QUOTA, project, &raw const quota)
    };
    if set != 0 {
        return match last_errno() {
            // No quotas in this kernel, on this file system, or not turned on.
            Errno::NOSYS | Errno::SRCH | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY => Ok(false),
            errno => Err(errno),
        };
    }
    for name in written {
        let place = rustix::fs::openat(
            &volume,
            *name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        join(&place, project)?;
    }
    Ok(true)
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn join(place: &OwnedFd, project: u32) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode);
    let is_directory = kind == FileType::Directory;
    let mut attributes = Attributes::default();
    // SAFETY: both calls are given a structure of the size their number says, which outlives them.
    unsafe {
        if libc::ioctl(place.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) != 0 {
            return Err(last_errno());
        }
        attributes.project = project;
        attributes.flags |= if is_directory { INHERIT } else { 0 };
        match libc::ioctl(place.as_raw_fd(), SET_ATTRIBUTES as _, &raw const attributes) {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_size() {
        assert_eq!((size_of::<Attributes>(), size_of::<Quota>()), (28, 72));
    }

    #[test]
    fn a_file_system_without_project_quotas_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        // Whoever may not set quotas is refused, where there are some.
        assert!(matches!(
            limit(dir.path(), &["data"], 1 << 20),
            Ok(false) | Err(Errno::PERM | Errno::ACCESS)
        ));
    }
}
