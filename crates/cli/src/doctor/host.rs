// SPDX-License-Identifier: Apache-2.0
//! Checks that a controller's host and a node's host share: disk space and modes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::Findings;
use crate::output::size;

/// Below this the registry refuses pushes and a node refuses pulls before long.
const FREE_BYTES_BAD: u64 = 256 * 1024 * 1024;
/// Below this share of a file system somebody should look.
const FREE_PERCENT_ODD: u64 = 10;
/// Bits that let others than the owner in.
const OTHERS: u32 = 0o077;

pub(super) fn space(topic: &'static str, path: &Path, next: &'static str, findings: &mut Findings) {
    let Ok(space) = rustix::fs::statvfs(path) else {
        let what = format!("{} cannot be looked at", path.display());
        return findings.bad(topic, what, "run doctor as the user who owns it, or as root");
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let total = space.f_blocks.saturating_mul(space.f_frsize).max(1);
    let percent = free.saturating_mul(100) / total;
    // Some file systems do not count inodes.
    let inodes_percent = space.f_favail.saturating_mul(100).checked_div(space.f_files).unwrap_or(100);
    let what = format!("{}: {} of {} free ({percent} %)", path.display(), size(free), size(total));
    if free < FREE_BYTES_BAD {
        findings.bad(topic, what, "free some space, or move the directory to a larger disk");
    } else if percent < FREE_PERCENT_ODD {
        findings.odd(topic, what, next);
    } else if inodes_percent < FREE_PERCENT_ODD {
        findings.odd(
            topic,
            format!("{}: {inodes_percent} % of the inodes free", path.display()),
            "remove small files",
        );
    } else {
        findings.good(topic, what);
    }
}

/// Files and directories that nobody but their owner may look into. True when all are so.
pub(super) fn private(topic: &'static str, base: &Path, names: &[&str], findings: &mut Findings) -> bool {
    let mut is_good = true;
    for name in names {
        let path = base.join(name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let mode = metadata.permissions().mode();
        if metadata.is_symlink() || mode & OTHERS == 0 {
            continue;
        }
        is_good = false;
        let wanted = if metadata.is_dir() { "700" } else { "600" };
        let shown = path.display();
        findings.bad(
            topic,
            format!("{shown} has mode {:o}", mode & 0o777),
            format!("chmod {wanted} {shown}"),
        );
    }
    is_good
}

/// The user a path belongs to.
pub(super) fn owner(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|metadata| metadata.uid())
}
