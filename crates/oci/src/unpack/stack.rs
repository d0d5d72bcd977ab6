// SPDX-License-Identifier: Apache-2.0
//! Layers seen as a stack: what a directory that a layer only implies looks like in the layers below.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, fgetxattr, fstat,
    futimens, openat, statat,
};
use rustix::io::Errno;

use super::tree::OPAQUE_XATTR;
use super::{UnpackError, show};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Gives implied directories of a layer ([`super::Report::implied`]) owner, mode and time of the same directories in the
/// layers below it, the nearest first: overlayfs shows the attributes of the uppermost.
pub fn adopt_attributes(
    layer: BorrowedFd<'_>,
    implied: &[Vec<u8>],
    below: &[BorrowedFd<'_>],
) -> Result<(), UnpackError> {
    // Parents come first in the list and children must not disturb their times: go backwards.
    for path in implied.iter().rev() {
        let failed = |source| UnpackError::Disk { what: "adopt attributes of", path: show(path), source };
        let Some(model) = nearest(below, path).map_err(failed)? else { continue };
        let Found::Directory(directory) = find(layer, path).map_err(failed)? else { continue };
        let stat = fstat(&model).map_err(failed)?;
        fchown(&directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .map_err(failed)?;
        fchmod(&directory, Mode::from_raw_mode(stat.st_mode)).map_err(failed)?;
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        futimens(&directory, &Timestamps { last_access: time, last_modification: time }).map_err(failed)?;
    }
    Ok(())
}

enum Found {
    Directory(OwnedFd),
    /// Nothing here; a directory on the way may be opaque.
    Absent {
        is_opaque: bool,
    },
    /// Something that is no directory, or a whiteout.
    Hidden,
}

fn nearest(below: &[BorrowedFd<'_>], path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    for layer in below {
        match find(*layer, path)? {
            Found::Directory(directory) => return Ok(Some(directory)),
            Found::Absent { is_opaque: false } => {}
            Found::Absent { is_opaque: true } | Found::Hidden => return Ok(None),
        }
    }
    Ok(None)
}

fn find(layer: BorrowedFd<'_>, path: &[u8]) -> Result<Found, Errno> {
    let mut at = openat(layer, ".", DIRECTORY, Mode::empty())?;
    let mut is_opaque = false;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        match statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Ok(_) => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Absent { is_opaque }),
            Err(error) => return Err(error),
        }
        at = openat(at.as_fd(), name, DIRECTORY, Mode::empty())?;
        is_opaque |= matches!(fgetxattr(&at, OPAQUE_XATTR, &mut [0u8; 8][..]), Ok(len) if len > 0);
    }
    Ok(Found::Directory(at))
}
