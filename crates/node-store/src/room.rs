// SPDX-License-Identifier: Apache-2.0
//! Who takes too much of the disk: a pure judgement of measured sizes.
//!
//! Where the file system has project quotas the kernel holds every volume to its size and this finds nothing to do. Where
//! it has none a volume is measured, and one that holds more than its size gets a fault that stops its apps. In both cases
//! the last [`RESERVE_BYTES`] of the disk are the node's own: when they are touched, the volume that grew most is stopped,
//! so that what one app writes never keeps the node or another app from working. A volume that holds less than what is
//! missing is spared: then it was not the apps who filled the disk.
//!
//! Nothing is deleted. A volume is free again when it is purged or its size is raised; one that was stopped for the disk
//! also when there is room again.

use std::collections::BTreeMap;

use model::id::VolumeKey;
use model::reason::{Fault, Reason};
use model::time::MonoMs;

/// Room that is kept for the node's services, logs and pulls: the same that a pull leaves to others.
pub const RESERVE_BYTES: u64 = crate::pull::RESERVED_BYTES;
/// On a small disk the reserve is at most this part of it.
const RESERVE_PART: u64 = 10;
/// An app that is told to stop may go on for its stop time; only then another one is.
const STOP_MS: u64 = 15_000;
/// The fastest disk writes so much in a millisecond: nothing passes a limit unseen for longer than a look takes.
const FASTEST_BYTES_PER_MS: u64 = 2 << 20;
/// Between two looks, at least and at most.
const LOOK_MS: (u64, u64) = (250, 10_000);

/// The file system below the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub total_bytes: u64,
    /// For those who are not root.
    pub free_bytes: u64,
}

impl Disk {
    fn reserve_bytes(self) -> u64 {
        RESERVE_BYTES.min(self.total_bytes / RESERVE_PART)
    }
}

/// A volume that apps write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub used_bytes: u64,
    /// At the measurement before.
    pub before_bytes: u64,
    /// 0: no limit of its own.
    pub max_bytes: u64,
}

/// The faults that stand.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    faults: BTreeMap<VolumeKey, Fault>,
    /// Before, nobody else is stopped for the disk.
    next_stop_at: MonoMs,
}

impl Judge {
    pub fn fault(&self, key: VolumeKey) -> Option<&Fault> {
        self.faults.get(&key)
    }

    /// Takes in what was measured.
    pub fn judge(&mut self, now: MonoMs, disk: Disk, sizes: &BTreeMap<VolumeKey, Size>) {
        let has_room = disk.free_bytes >= 2 * disk.reserve_bytes();
        self.faults.retain(|key, fault| match sizes.get(key) {
            None => false,
            Some(_) if fault.reason == Reason::DiskFull => !has_room,
            Some(size) => is_over(*size),
        });
        for (key, size) in sizes.iter().filter(|(_, size)| is_over(**size)) {
            if self.faults.get(key).is_none_or(|fault| fault.reason != Reason::VolumeFull) {
                let message =
                    format!("volume {key} holds {} bytes, {} are allowed", size.used_bytes, size.max_bytes);
                self.faults.insert(*key, Fault::new(Reason::VolumeFull, message));
            }
        }
        if disk.free_bytes >= disk.reserve_bytes() || now < self.next_stop_at {
            return;
        }
        // Stopping one that holds less than what is missing helps nobody: then others filled the disk, and apps run on.
        let missing = disk.reserve_bytes() - disk.free_bytes;
        let running =
            sizes.iter().filter(|(key, size)| size.used_bytes >= missing && !self.faults.contains_key(key));
        let grew = |size: &Size| size.used_bytes.saturating_sub(size.before_bytes);
        let Some((key, size)) = running.max_by_key(|(_, size)| (grew(size), size.used_bytes)) else { return };
        let message = format!(
            "the disk has {} bytes left, and volume {key} grew most, to {} bytes",
            disk.free_bytes, size.used_bytes
        );
        self.faults.insert(*key, Fault::new(Reason::DiskFull, message));
        self.next_stop_at = now.plus_ms(STOP_MS);
    }

    /// How long nothing can pass a limit.
    pub fn next_look_ms(&self, disk: Disk, sizes: &BTreeMap<VolumeKey, Size>) -> u64 {
        let running = || sizes.iter().filter(|(key, _)| !self.faults.contains_key(key)).map(|(_, size)| size);
        let limited = running().filter(|size| size.max_bytes > 0);
        let left = limited.map(|size| size.max_bytes.saturating_sub(size.used_bytes)).min();
        let on_disk = running().next().map(|_| disk.free_bytes.saturating_sub(disk.reserve_bytes()));
        let left = left.into_iter().chain(on_disk).min().unwrap_or(u64::MAX);
        (left / FASTEST_BYTES_PER_MS).clamp(LOOK_MS.0, LOOK_MS.1)
    }
}

fn is_over(size: Size) -> bool {
    size.max_bytes > 0 && size.used_bytes > size.max_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::VolumeId;

    const GIB: u64 = 1 << 30;

    fn key(number: u8) -> VolumeKey {
        let id: VolumeId = format!("00000000-0000-4000-8000-{number:012x}").parse().unwrap();
        VolumeKey { id, generation: 0 }
    }

    fn size(used_bytes: u64, before_bytes: u64, max_bytes: u64) -> Size {
        Size { used_bytes, before_bytes, max_bytes }
    }

    fn disk(free_bytes: u64) -> Disk {
        Disk { total_bytes: 100 * GIB, free_bytes }
    }

    fn reasons(judge: &Judge, sizes: &BTreeMap<VolumeKey, Size>) -> Vec<Option<Reason>> {
        sizes.keys().map(|key| judge.fault(*key).map(|fault| fault.reason)).collect()
    }

    #[test]
    fn a_volume_over_its_size_stands_still_until_that_is_raised() {
        let mut judge = Judge::default();
        let mut sizes = BTreeMap::from([(key(1), size(11, 0, 10)), (key(2), size(10, 0, 10))]);
        judge.judge(MonoMs(0), disk(GIB), &sizes);
        assert_eq!(reasons(&judge, &sizes), [Some(Reason::VolumeFull), None]);
        let told = judge.fault(key(1)).cloned();
        sizes.insert(key(1), size(12, 11, 10));
        judge.judge(MonoMs(1), disk(GIB), &sizes);
        assert_eq!(judge.fault(key(1)).cloned(), told, "told once");
        sizes.insert(key(1), size(12, 11, 12));
        judge.judge(MonoMs(2), disk(GIB), &sizes);
        assert_eq!(reasons(&judge, &sizes), [None, None]);
    }

    #[test]
    fn the_one_that_grows_is_stopped_for_the_disk_and_one_at_a_time() {
        let mut judge = Judge::default();
        let sizes = BTreeMap::from([
            (key(1), size(9 * GIB, 9 * GIB, 0)),
            (key(2), size(GIB, 0, 0)),
            (key(3), size(0, 0, 0)),
        ]);
        judge.judge(MonoMs(0), disk(RESERVE_BYTES), &sizes);
        assert_eq!(reasons(&judge, &sizes), [None, None, None]);
        judge.judge(MonoMs(1), disk(RESERVE_BYTES - 1), &sizes);
        judge.judge(MonoMs(2), disk(RESERVE_BYTES / 2), &sizes);
        assert_eq!(reasons(&judge, &sizes), [None, Some(Reason::DiskFull), None]);
        judge.judge(MonoMs(1 + STOP_MS), disk(RESERVE_BYTES / 2), &sizes);
        assert_eq!(reasons(&judge, &sizes), [Some(Reason::DiskFull), Some(Reason::DiskFull), None]);
        judge.judge(MonoMs(40_000), disk(2 * RESERVE_BYTES - 1), &sizes);
        assert!(judge.fault(key(1)).is_some());
        judge.judge(MonoMs(41_000), disk(2 * RESERVE_BYTES), &sizes);
        assert_eq!(reasons(&judge, &sizes), [None, None, None]);
    }

    #[test]
    fn a_disk_that_others_filled_stops_no_app() {
        let mut judge = Judge::default();
        let sizes = BTreeMap::from([(key(1), size(1 << 20, 0, 0)), (key(2), size(1 << 10, 1 << 10, 0))]);
        judge.judge(MonoMs(0), disk(0), &sizes);
        assert_eq!(reasons(&judge, &sizes), [None, None]);
        judge.judge(MonoMs(1), disk(RESERVE_BYTES - (1 << 20)), &sizes);
        assert_eq!(reasons(&judge, &sizes), [Some(Reason::DiskFull), None]);
    }

    #[test]
    fn looks_are_as_frequent_as_the_room_is_small() {
        let judge = Judge::default();
        let look = |free, sizes: &[(VolumeKey, Size)]| {
            judge.next_look_ms(disk(free), &sizes.iter().copied().collect())
        };
        assert_eq!(look(0, &[]), LOOK_MS.1);
        assert_eq!(look(90 * GIB, &[(key(1), size(1, 0, 0))]), LOOK_MS.1);
        assert_eq!(look(RESERVE_BYTES + 2 * GIB, &[(key(1), size(1, 0, 0))]), 1024);
        assert_eq!(look(90 * GIB, &[(key(1), size(1, 0, 1 << 20))]), LOOK_MS.0);
    }
}
