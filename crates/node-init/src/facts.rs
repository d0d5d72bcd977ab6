// SPDX-License-Identifier: Apache-2.0
//! Facts of the box and of running processes, as the kernel tells them. Text is cut and cleaned, never trusted.

use std::fs;
use std::path::Path;

use model::observed::NodeObserved;
use model::time::WallTime;

/// Bytes taken of one fact.
const MAX_FACT_BYTES: usize = 128;

/// Of the box. `restart_counter` is counted by [`count_start`]; `given_serial` comes from [`given_serial`] and stands in
/// where the firmware tells none.
pub fn node(restart_counter: u32, given_serial: String) -> NodeObserved {
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
        is_hosted: true,
        restart_counter,
    }
}

/// Adds one to the starts counted in the node's own directory under persist.
pub fn count_start(dir: &Path) -> std::io::Result<u32> {
    let path = dir.join("starts");
    let before = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let count = before.map_or(0, |before| before.saturating_add(1));
    let new = dir.join("starts.new");
    fs::write(&new, format!("{count}\n"))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, path)?;
    Ok(count)
}

/// A serial number of our own, made once and kept: machines without firmware tables have none, and a node that names
/// none cannot register.
pub fn given_serial(dir: &Path) -> std::io::Result<String> {
    let path = dir.join("serial");
    let kept = read(&path.to_string_lossy());
    if !kept.is_empty() {
        return Ok(kept);
    }
    let made = read("/proc/sys/kernel/random/uuid");
    let new = dir.join("serial.new");
    fs::write(&new, format!("{made}\n"))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, path)?;
    Ok(made)
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

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn read(path: &str) -> String {
    clean(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()))
}

fn clean(text: &str) -> String {
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
        let count = || count_start(dir.path()).unwrap();
        assert_eq!([count(), count(), count()], [0, 1, 2]);
        fs::write(dir.path().join("starts"), "torn").unwrap();
        assert_eq!(count(), 0);
    }

    #[test]
    fn this_box_has_facts() {
        let node = node(3, "given".into());
        assert!(node.cpus > 0 && node.memory_bytes > 0 && !node.kernel.is_empty());
        assert_eq!(node.restart_counter, 3);
        assert!(memory_of(std::process::id() as i32) > 0);
    }
}
