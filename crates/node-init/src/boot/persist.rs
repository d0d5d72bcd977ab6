// SPDX-License-Identifier: Apache-2.0
//! P3, the partition that keeps: found, made once, grown with its disk, repaired; never made again once it is finished.
//!
//! ```text
//! no P3 ─▶ "P3-unfinished" in the table ─▶ file system made and synced ─▶ renamed to "P3" ─▶ mounted
//! ```
//! Its name in the partition table says whether it is finished. Power may go at any point: an unfinished one is begun again, a
//! finished one is only ever mounted, whatever it holds.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use disk::gpt::{Copies, Partition};
use disk::partitions::{NAME_PERSIST, NAME_PERSIST_UNFINISHED, NUMBER_PERSIST, PERSIST};
use rustix::mount::{MountFlags, mount};
use uuid::Uuid;

use super::ioctl::{Change, change_partition, resize_ext4};
use super::storage::{Disk, device};
use super::{BootError, at, call};

pub(super) const MOUNT: &str = "/persist";
const BLOCK: u64 = 4096;
/// Of e2fsck: nothing to do, and all that was wrong is mended.
const MENDED: [i32; 4] = [0, 1, 2, 3];

/// Has P3 mounted.
pub(super) fn open(disk: &mut Disk) -> Result<(), BootError> {
    let file = disk.file()?;
    let number = place(disk, &file)?;
    let name = |disk: &Disk| disk.table.partitions.get(&number).map(|p| p.name.clone()).unwrap_or_default();
    let node = disk.partition(number).ok_or_else(|| BootError::Table {
        disk: disk.name.clone(),
        what: format!("the kernel does not show partition {number}"),
    })?;
    let node = device(&node);
    if name(disk) == NAME_PERSIST_UNFINISHED {
        eprintln!("selvedge: making the file system of P3");
        make(&node)?;
        if let Some(partition) = disk.table.partitions.get_mut(&number) {
            partition.name = NAME_PERSIST.into();
        }
        disk.write_table(&file)?;
    } else {
        check(&node)?;
    }
    mount(&node, MOUNT, "ext4", MountFlags::NODEV | MountFlags::NOATIME, Some(c"prjquota"))
        .or_else(|_| mount(&node, MOUNT, "ext4", MountFlags::NODEV | MountFlags::NOATIME, None))
        .map_err(call("mounting P3"))?;
    let bytes =
        disk.table.partitions.get(&number).map_or(0, Partition::sectors) * u64::from(disk.table.sector_bytes);
    let mounted = File::open(MOUNT).map_err(at("cannot open", MOUNT))?;
    let before = blocks(&mounted);
    match resize_ext4(&mounted, bytes / BLOCK) {
        Ok(()) if blocks(&mounted) > before => eprintln!("selvedge: P3 has grown to {} MiB", bytes >> 20),
        // as large already
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        // it goes on with the size it has
        Err(error) => eprintln!("selvedge: P3 cannot be made larger: {error}"),
    }
    Ok(())
}

/// Of the mounted file system; 0 where it does not say.
fn blocks(mounted: &File) -> u64 {
    rustix::fs::fstatvfs(mounted).map_or(0, |says| says.f_blocks)
}

/// The number of P3, which is put into the table where there is none, and made as large as the disk allows.
fn place(disk: &mut Disk, file: &File) -> Result<u32, BootError> {
    let table_error = |disk: &Disk, what: String| BootError::Table { disk: disk.name.clone(), what };
    let found =
        disk.table.partitions.iter().find(|(_, partition)| partition.kind == PERSIST).map(|(n, _)| *n);
    let (number, change) = match found {
        Some(number) => {
            let has_grown = disk.table.grow(number);
            (number, has_grown.then_some(Change::Resize))
        }
        None => {
            let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
            let partition = Partition {
                kind: PERSIST,
                id: id.trim().parse().unwrap_or(Uuid::from_u128(0x7033)),
                first: 0,
                last: 0,
                attributes: 0,
                name: NAME_PERSIST_UNFINISHED.into(),
            };
            let appended = disk.table.append(NUMBER_PERSIST, 0, partition);
            appended.map_err(|error| table_error(disk, format!("no room for P3: {error}")))?;
            (NUMBER_PERSIST, Some(Change::Add))
        }
    };
    if change.is_some() || disk.copies == Copies::OneIsLost {
        disk.write_table(file)?;
    }
    if let (Some(change), Some(partition)) = (change, disk.table.partitions.get(&number)) {
        change_partition(file, change, number, partition, disk.table.sector_bytes)
            .map_err(call("telling the kernel of P3"))?;
    }
    Ok(number)
}

fn make(node: &Path) -> Result<(), BootError> {
    let mut command = Command::new("/usr/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", NAME_PERSIST, "-b", "4096"]);
    command.args(["-O", "quota,project", "-E", "quotatype=prjquota,nodiscard"]).arg(node);
    let output = command.output().map_err(at("cannot run", "/usr/sbin/mke2fs"))?;
    if !output.status.success() {
        let what = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BootError::Program { program: "mke2fs", what });
    }
    let file = File::open(node).map_err(at("cannot open", node))?;
    file.sync_all().map_err(at("cannot sync", node))
}

/// Mends what is wrong with it. Never makes it anew.
fn check(node: &Path) -> Result<(), BootError> {
    let mut said = String::new();
    for way in ["-p", "-y"] {
        let output = Command::new("/usr/sbin/e2fsck").arg(way).arg(node).output();
        let output = output.map_err(at("cannot run", "/usr/sbin/e2fsck"))?;
        said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match output.status.code() {
            Some(0) => return Ok(()),
            Some(code) if MENDED.contains(&code) => {
                eprintln!("selvedge: P3 was mended: {said}");
                return Ok(());
            }
            _ => eprintln!("selvedge: e2fsck {way} of P3: {said}"),
        }
    }
    Err(BootError::Program { program: "e2fsck", what: said })
}
