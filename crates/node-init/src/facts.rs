// SPDX-License-Identifier: Apache-2.0
//! Facts of the box and of running processes, as the kernel tells them. Text is cut and cleaned, never trusted.

use std::fs;
use std::path::Path;

use model::observed::{BoxMetrics, DiskFacts, Firmware, NodeObserved};
use model::time::WallTime;
use service::durable;

use crate::disk::Disk;
use crate::heartbeat::State;

/// Bytes taken of one fact.
const MAX_FACT_BYTES: usize = 128;

/// Of the box. `restart_counter` is counted by [`count_start`]; `given_serial` comes from [`given_serial`] and stands in
/// where the firmware tells none; `disk` is the one under the node's data.
pub fn node(restart_counter: u32, given_serial: String, disk: Option<DiskFacts>) -> NodeObserved {
    let uname = rustix::system::uname();
    let text = |value: &std::ffi::CStr| clean(&value.to_string_lossy());
    let dmi = |name: &str| read(&format!("/sys/class/dmi/id/{name}"));
    let firmware_serial = dmi("product_serial");
    let or = |first: String, second: &str| if first.is_empty() { read(second) } else { first };
    NodeObserved {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: text(uname.release()),
        architecture: text(uname.machine()),
        hostname: text(uname.nodename()),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        booted_at: booted_at(),
        cpus: cpus(),
        memory_bytes: memory_bytes(),
        manufacturer: dmi("sys_vendor"),
        product: or(dmi("product_name"), "/proc/device-tree/model"),
        serial: Some(or(firmware_serial, "/proc/device-tree/serial-number"))
            .filter(|serial| !serial.is_empty())
            .unwrap_or(given_serial),
        firmware: Firmware {
            product_version: dmi("product_version"),
            product_uuid: dmi("product_uuid"),
            compatible: compatible(&fs::read("/proc/device-tree/compatible").unwrap_or_default()),
            bios_vendor: dmi("bios_vendor"),
            bios_version: dmi("bios_version"),
            bios_date: dmi("bios_date"),
        },
        has_watchdog: fs::read_dir("/sys/class/watchdog").is_ok_and(|mut all| all.next().is_some()),
        disk,
        is_hosted: true,
        restart_counter,
    }
}

/// Adds one to the starts counted in the node's own directory under persist. One that could not be written down counts for
/// this start alone.
pub fn count_start(dir: &Path) -> (u32, std::io::Result<()>) {
    let before = fs::read_to_string(dir.join("starts")).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let count = before.map_or(0, |before| before.saturating_add(1));
    (count, durable::replace(dir, "starts", format!("{count}\n").as_bytes()))
}

/// A serial number of our own, made once and kept: machines without firmware tables have none, and a node that names
/// none cannot register. One that could not be written down is not used, as the next start would make another.
pub fn given_serial(dir: &Path) -> (String, std::io::Result<()>) {
    let kept = read(&dir.join("serial").to_string_lossy());
    if !kept.is_empty() {
        return (kept, Ok(()));
    }
    let made = read("/proc/sys/kernel/random/uuid");
    match durable::replace(dir, "serial", format!("{made}\n").as_bytes()) {
        Ok(()) => (made, Ok(())),
        Err(error) => (String::new(), Err(error)),
    }
}

/// Of its main thread.
pub fn state_of(pid: i32) -> State {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything, parentheses too.
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('T') => State::Stopped,
        Some('D') => State::WaitsForDisk,
        _ => State::Other,
    }
}

/// Of the process that is told of its end.
pub fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The four user ids and the four group ids of a process.
pub fn ids_of(pid: i32) -> Option<[u32; 8]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let ids = line("Uid:")?.split_whitespace().chain(line("Gid:")?.split_whitespace());
    ids.map(|id| id.parse().ok()).collect::<Option<Vec<u32>>>()?.try_into().ok()
}

/// Resident bytes of a process.
pub fn memory_of(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

fn booted_at() -> Option<WallTime> {
    let now = service::clock::now();
    let wall = now.wall.time()?;
    Some(WallTime { seconds: wall.seconds - (now.mono.0 / 1000) as i64, nanos: 0 })
}

/// `0-3,8`: all that are on, whatever this process may use.
fn cpus() -> u32 {
    count_list(&read("/sys/devices/system/cpu/online")).unwrap_or(1)
}

fn count_list(text: &str) -> Option<u32> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    text.split(',').map(count).sum()
}

/// The first of several texts that each end with a zero byte.
fn compatible(untrusted_list: &[u8]) -> String {
    clean(&String::from_utf8_lossy(untrusted_list.split(|byte| *byte == 0).next().unwrap_or_default()))
}

/// What the whole box uses now.
pub fn box_metrics(disk: Option<&Disk>) -> BoxMetrics {
    BoxMetrics { memory_available_bytes: meminfo("MemAvailable:"), disk: disk.and_then(Disk::counters) }
}

fn memory_bytes() -> u64 {
    meminfo("MemTotal:")
}

fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

pub(crate) fn read(path: &str) -> String {
    clean(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()))
}

pub(crate) fn clean(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = text.trim();
    text[..text.floor_char_boundary(MAX_FACT_BYTES)].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (text, count) in
            [("0", Some(1)), ("0-3", Some(4)), ("0-1,4,6-7", Some(5)), ("", None), ("3-0", None)]
        {
            assert_eq!(count_list(text), count, "{text}");
        }
    }

    #[test]
    fn facts_are_one_short_line() {
        assert_eq!(clean(" QEMU\0\n"), "QEMU");
        assert_eq!(clean(&"é".repeat(100)).len(), MAX_FACT_BYTES);
    }

    #[test]
    fn starts_are_counted_from_zero() {
        let dir = tempfile::tempdir().unwrap();
        let count = || {
            let (count, written) = count_start(dir.path());
            written.unwrap();
            count
        };
        assert_eq!([count(), count(), count()], [0, 1, 2]);
        fs::write(dir.path().join("starts"), "torn").unwrap();
        assert_eq!(count(), 0);
    }

    #[test]
    fn this_box_has_facts() {
        let node = node(3, "given".into(), None);
        assert!(node.cpus > 0 && node.memory_bytes > 0 && !node.kernel.is_empty());
        assert_eq!(node.restart_counter, 3);
        assert!(memory_of(std::process::id() as i32) > 0);
    }
    #[test]
    fn of_a_device_tree_the_first_name_counts() {
        assert_eq!(compatible(b"acme,box-2\0acme,box\0"), "acme,box-2");
        assert_eq!(compatible(b""), "");
    }

    #[test]
    fn memory_that_is_available_is_less_than_all() {
        let metrics = box_metrics(None);
        assert!(metrics.memory_available_bytes > 0 && metrics.memory_available_bytes < memory_bytes());
        assert_eq!(metrics.disk, None);
    }
}
