// SPDX-License-Identifier: Apache-2.0
//! The disk under a directory, as the kernel tells it: name, file system, serial number, counters.

use std::fs;
use std::path::{Path, PathBuf};

use model::observed::{DiskCounters, DiskFacts};

use crate::facts;

/// The unit of `/proc/diskstats`, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// A block device with a file system on it.
#[derive(Debug)]
pub struct Disk {
    /// `major:minor`.
    number: String,
    pub facts: DiskFacts,
}

impl Disk {
    /// The one a directory lies on; `None` where it lies on none: in memory, in layers, on a server.
    pub fn below(dir: &Path) -> Option<Disk> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let Mount { number, filesystem, .. } = mount_of(&mounts, dir)?;
        let device = PathBuf::from("/sys/dev/block").join(&number);
        let event = fs::read_to_string(device.join("uevent")).ok()?;
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        let serial = |dir: &Path| facts::read(&dir.join("serial").to_string_lossy());
        // A partition is a directory inside that of its disk; buses keep the number in different places.
        let places = [".", "device", "..", "../device"].map(|place| serial(&device.join(place)));
        let facts = DiskFacts {
            device: format!("/dev/{}", facts::clean(name)),
            serial: places.into_iter().find(|serial| !serial.is_empty()).unwrap_or_default(),
            filesystem,
        };
        Some(Disk { number, facts })
    }

    pub fn counters(&self) -> Option<DiskCounters> {
        counters_of(&fs::read_to_string("/proc/diskstats").ok()?, &self.number)
    }
}

struct Mount {
    place: PathBuf,
    number: String,
    filesystem: String,
}

/// The mount a path lies on: of those above it the innermost, of several in one place the last.
fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (about, filesystem) = line.split_once(" - ")?;
        let mut fields = about.split(' ').skip(2);
        Some(Mount {
            number: fields.next()?.to_owned(),
            place: PathBuf::from(fields.nth(1)?),
            filesystem: facts::clean(filesystem.split(' ').next()?),
        })
    });
    mounts.filter(|mount| path.starts_with(&mount.place)).max_by_key(|mount| mount.place.components().count())
}

/// Fields as `Documentation/admin-guide/iostats.rst` of Linux lists them.
fn counters_of(diskstats: &str, number: &str) -> Option<DiskCounters> {
    let fields = diskstats.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (major, minor) = (fields.next()?, fields.next()?);
        (number.split_once(':') == Some((major, minor))).then(|| fields.skip(1))
    })?;
    let fields: Vec<u64> = fields.take(7).map(str::parse).collect::<Result<_, _>>().ok()?;
    let [reads, _, sectors_read, _, writes, _, sectors_written] = fields[..] else { return None };
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
    Some(DiskCounters {
        read_bytes: bytes(sectors_read),
        written_bytes: bytes(sectors_written),
        reads,
        writes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:5 / /proc rw,nosuid - proc proc rw
40 22 254:17 / /persist rw,noatime shared:3 - xfs /dev/vdb1 rw
41 40 0:40 / /persist/tmp rw - tmpfs tmpfs rw
";

    #[test]
    fn a_directory_lies_on_the_innermost_mount() {
        let found = |path: &str| {
            let mount = mount_of(MOUNTS, Path::new(path)).unwrap();
            (mount.number, mount.filesystem)
        };
        assert_eq!(found("/var/lib"), ("254:0".into(), "ext4".into()));
        assert_eq!(found("/persist/node"), ("254:17".into(), "xfs".into()));
        assert_eq!(found("/persisted"), ("254:0".into(), "ext4".into()));
        assert_eq!(found("/persist/tmp/x"), ("0:40".into(), "tmpfs".into()));
        assert!(mount_of("nonsense", Path::new("/")).is_none());
    }

    #[test]
    fn counters_are_those_of_the_disk_in_bytes() {
        let text = " 254       0 vda 10 1 16 5 20 2 32 6 0 7 8\n 254      16 vdb 1 0 2 0 3 0 4 0 0 0 0\n";
        let vdb = DiskCounters { read_bytes: 1_024, written_bytes: 2_048, reads: 1, writes: 3 };
        assert_eq!(counters_of(text, "254:16"), Some(vdb));
        assert_eq!(counters_of(text, "254:1"), None);
        assert_eq!(counters_of("254 16 vdb 1 0 x", "254:16"), None);
    }
}
