// SPDX-License-Identifier: Apache-2.0
//! Owner, mode, extended attributes and time of an unpacked file, in the one order that works: a change of owner takes
//! set-uid bits and capabilities away, and everything changes the time.

use std::os::fd::BorrowedFd;

use rustix::fs::{
    Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod, fchown, fsetxattr, futimens,
};
use rustix::io::Errno;

use super::{Owners, UnpackError, show};
use crate::tar::Entry;

const CAPABILITY: &[u8] = b"security.capability";
/// `vfs_cap_data`: magic, two times permitted and inheritable, and in revision 3 the root id.
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const LEN_2: usize = 20;
const LEN_3: usize = 24;

/// Sets all of them; returns how many extended attributes were left out.
pub(super) fn set(
    file: BorrowedFd<'_>,
    entry: &Entry,
    owner: Option<(u32, u32)>,
    owners: Owners,
) -> Result<usize, UnpackError> {
    let failed = |what| move |source: Errno| UnpackError::Disk { what, path: show(&entry.path), source };
    if let Some((uid, gid)) = owner {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(failed("change owner of"))?;
    }
    fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(failed("set mode of"))?;
    let mut left_out = 0;
    for (name, value) in &entry.xattrs {
        let capability;
        let value = if is_of_user(name) {
            value
        } else if name == CAPABILITY
            && let Some(converted) = capability_for(value, owners)
        {
            capability = converted;
            &capability
        } else {
            left_out += 1;
            continue;
        };
        match fsetxattr(file, &name[..], value, XattrFlags::empty()) {
            Ok(()) => {}
            // The file system cannot hold it, or not this much.
            Err(Errno::NOTSUP | Errno::RANGE | Errno::TOOBIG) => left_out += 1,
            Err(error) => return Err(failed("set attribute of")(error)),
        }
    }
    futimens(file, &times(entry.mtime)).map_err(failed("set time of"))?;
    Ok(left_out)
}

/// An attribute any owner may set. Those of overlayfs are the store's to set: an image that brought its own could make
/// a layer show what lies elsewhere.
fn is_of_user(name: &[u8]) -> bool {
    name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
}

/// A file capability as the kernel wants it from whoever unpacks. Root of a user namespace writes revision 2, to which
/// the kernel adds who root is; root of the host adds it. `None`: not to be set.
fn capability_for(value: &[u8], owners: Owners) -> Option<Vec<u8>> {
    let magic = u32::from_le_bytes(value.get(..4)?.try_into().ok()?);
    let data = match (magic & REVISION_MASK, value.len()) {
        (REVISION_2, LEN_2) | (REVISION_3, LEN_3) => &value[4..LEN_2],
        _ => return None,
    };
    let flags = magic & !REVISION_MASK;
    match owners {
        Owners::AsIs { .. } => Some([&(REVISION_2 | flags).to_le_bytes()[..], data].concat()),
        Owners::Shifted { base, .. } => {
            Some([&(REVISION_3 | flags).to_le_bytes()[..], data, &base.to_le_bytes()[..]].concat())
        }
        Owners::Ignored => None,
    }
}

pub(super) fn times(mtime: (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_get_the_root_they_are_for() {
        let two = [&REVISION_2.to_le_bytes()[..], &[1; 16]].concat();
        let three = [&(REVISION_3 | 1).to_le_bytes()[..], &[1; 16], &7u32.to_le_bytes()].concat();
        let inside = Owners::AsIs { limit: 1 };
        let outside = Owners::Shifted { base: 1_000_000, limit: 1 };
        assert_eq!(capability_for(&two, inside), Some(two.clone()));
        assert_eq!(capability_for(&three, inside).unwrap()[..4], (REVISION_2 | 1).to_le_bytes());
        assert_eq!(capability_for(&two, outside).unwrap()[20..], 1_000_000u32.to_le_bytes());
        assert_eq!(capability_for(&three, outside).unwrap().len(), LEN_3);
        for broken in [&two[..19], &three[..20], &[0; 20], &[]] {
            assert_eq!(capability_for(broken, inside), None);
        }
    }
}
