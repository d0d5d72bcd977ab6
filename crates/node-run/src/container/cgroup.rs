// SPDX-License-Identifier: Apache-2.0
//! The app's control group: joining it, and what its files say of use and of kills for memory.
//!
//! init makes the group with its limits and hands directories over; nothing is made or limited here. Both hierarchies
//! are known: the unified one (v2) and one directory per controller (v1).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Directories of the group.
#[derive(Debug, Default)]
pub enum Cgroup {
    /// Stay in the caller's.
    #[default]
    None,
    V2(OwnedFd),
    /// A directory per controller: `memory`, `cpu`, `cpuacct`, `pids`.
    V1(Vec<OwnedFd>),
}

impl Cgroup {
    pub(super) fn is_v2(&self) -> bool {
        matches!(self, Cgroup::V2(_))
    }

    /// Where a child may be born into.
    pub(super) fn v2(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Cgroup::V2(dir) => Some(dir.as_fd()),
            Cgroup::None | Cgroup::V1(_) => None,
        }
    }

    /// Moves the calling process; in v2 it was born there.
    pub(super) fn join(&self) -> Result<(), Errno> {
        let Cgroup::V1(dirs) = self else { return Ok(()) };
        for dir in dirs {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, "cgroup.procs", flags, Mode::empty())?;
            rustix::io::write(&fd, b"0")?;
        }
        Ok(())
    }

    fn dirs(&self) -> &[OwnedFd] {
        match self {
            Cgroup::None => &[],
            Cgroup::V2(dir) => std::slice::from_ref(dir),
            Cgroup::V1(dirs) => dirs,
        }
    }
}

/// What an app used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    pub memory_used_bytes: u64,
    pub memory_peak_bytes: u64,
    /// 0: no limit.
    pub memory_limit_bytes: u64,
    pub pids: u32,
}

/// Open files of a group, so that a confined process can go on reading them.
#[derive(Debug, Default)]
pub struct Gauges {
    cpu: Option<OwnedFd>,
    memory: Option<OwnedFd>,
    memory_stat: Option<OwnedFd>,
    peak: Option<OwnedFd>,
    limit: Option<OwnedFd>,
    pids: Option<OwnedFd>,
    pids_limit: Option<OwnedFd>,
    pids_events: Option<OwnedFd>,
    kills: Option<OwnedFd>,
    kills_at_start: u64,
}

/// More than any of these files holds.
const MAX_FILE_BYTES: usize = 8 * 1024;
/// What v1 says for "no limit" is the largest page-aligned number; nothing real comes near.
const NO_LIMIT_FROM_BYTES: u64 = 1 << 62;

impl Gauges {
    /// What is missing on this kernel counts as 0.
    pub fn open(cgroup: &Cgroup) -> Gauges {
        let open = |names: &[&str]| {
            let places = names.iter().flat_map(|name| cgroup.dirs().iter().map(move |dir| (dir, name)));
            places.into_iter().find_map(|(dir, name)| {
                rustix::fs::openat(dir, *name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
            })
        };
        let mut gauges = Gauges {
            cpu: open(&["cpuacct.usage", "cpu.stat"]),
            memory: open(&["memory.usage_in_bytes", "memory.current"]),
            memory_stat: open(&["memory.stat"]),
            peak: open(&["memory.max_usage_in_bytes", "memory.peak"]),
            limit: open(&["memory.limit_in_bytes", "memory.max"]),
            pids: open(&["pids.current"]),
            pids_limit: open(&["pids.max"]),
            pids_events: open(&["pids.events"]),
            kills: open(&["memory.oom_control", "memory.events"]),
            kills_at_start: 0,
        };
        gauges.kills_at_start = gauges.kills();
        gauges
    }

    pub fn read(&self) -> Usage {
        let number = |fd: &Option<OwnedFd>| parse_number(&read(fd));
        let limit = number(&self.limit);
        let used = number(&self.memory);
        Usage {
            cpu_ns: parse_cpu_ns(&read(&self.cpu)),
            memory_used_bytes: used.saturating_sub(parse_inactive_file(&read(&self.memory_stat))),
            memory_peak_bytes: number(&self.peak).max(used),
            memory_limit_bytes: if limit >= NO_LIMIT_FROM_BYTES { 0 } else { limit },
            pids: u32::try_from(number(&self.pids)).unwrap_or(u32::MAX),
        }
    }

    /// Something in the group was killed for memory since [`Gauges::open`].
    pub fn saw_memory_kill(&self) -> bool {
        self.kills() > self.kills_at_start
    }

    /// Processes that were refused so far, and whether there are as many now as there may be.
    pub fn pids_refused(&self) -> (u64, bool) {
        let refused = parse_field(&read(&self.pids_events), "max").unwrap_or(0);
        let limit = parse_number(&read(&self.pids_limit));
        (refused, limit > 0 && parse_number(&read(&self.pids)) >= limit)
    }

    fn kills(&self) -> u64 {
        parse_field(&read(&self.kills), "oom_kill").unwrap_or(0)
    }
}

fn read(fd: &Option<OwnedFd>) -> String {
    let Some(fd) = fd else { return String::new() };
    let mut buffer = vec![0; MAX_FILE_BYTES];
    let count = rustix::io::pread(fd, &mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

/// `max` is [`NO_LIMIT_FROM_BYTES`] and more.
fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn parse_field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `cpu.stat` (v2, µs) or `cpuacct.usage` (v1, ns).
fn parse_cpu_ns(text: &str) -> u64 {
    match parse_field(text, "usage_usec") {
        Some(microseconds) => microseconds.saturating_mul(1000),
        None => parse_number(text),
    }
}

/// Page cache that goes when memory is wanted is not counted as used.
fn parse_inactive_file(text: &str) -> u64 {
    parse_field(text, "total_inactive_file").or_else(|| parse_field(text, "inactive_file")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hierarchies_are_read() {
        assert_eq!(parse_cpu_ns("usage_usec 1500\nuser_usec 1\n"), 1_500_000);
        assert_eq!(parse_cpu_ns("1234\n"), 1234);
        assert_eq!(parse_number("max\n"), u64::MAX);
        assert_eq!(parse_number("9223372036854771712\n"), 9_223_372_036_854_771_712);
        assert_eq!(parse_inactive_file("inactive_file 5\ntotal_inactive_file 7\n"), 7);
        assert_eq!(parse_inactive_file("anon 1\ninactive_file 5\n"), 5);
        let v2 = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(parse_field(v2, "oom_kill"), Some(2));
        assert_eq!(parse_field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(parse_field("oom_kill\noom_kill x", "oom_kill"), None);
        assert_eq!(parse_field("max 31\n", "max"), Some(31));
    }

    #[test]
    fn a_group_without_files_counts_nothing() {
        let gauges = Gauges::open(&Cgroup::None);
        assert_eq!(gauges.read(), Usage::default());
        assert!(!gauges.saw_memory_kill());
        assert_eq!(gauges.pids_refused(), (0, false));
    }
}
