// SPDX-License-Identifier: Apache-2.0
//! Control groups of the node's processes, on cgroup v2 and on v1 (also hybrid).
//!
//! ```text
//! v2   /sys/fs/cgroup/selvedge-<instance>/NAME              app-<id>/{shim,app}
//! v1   /sys/fs/cgroup/<controller>/selvedge-<instance>/…    the same below each controller
//! ```
//!
//! Memory a service works in is kept for it (v2, `memory.min`) however short memory is: the kernel takes from apps. A parent
//! protects no more than its children claim together, so that nothing is left over for apps to share.
//!
//! Limits that the machine cannot set (a controller is missing) are said once and left out: hosted mode takes what
//! the host has. Groups are removed with everything that still runs in them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc::calls::AppLimits;
use ipc::manifest::Limits;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

const MOUNT: &str = "/sys/fs/cgroup";
const V1_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];
const V2_CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Period of CPU limits, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Pause between two looks at a group that is being emptied, and how often.
const EMPTY_PAUSE: Duration = Duration::from_millis(2);
const EMPTY_TRIES: u32 = 250;

/// The groups of one node.
#[derive(Debug)]
pub struct Cgroups {
    version: Version,
    instance: String,
    /// What could not be set, said once.
    missing: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Why a group could not be made.
#[derive(Debug, thiserror::Error)]
#[error("control group {}", path.display())]
pub struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

/// Whether memory may go to a swap device, where the machine has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Swap {
    #[default]
    Allowed,
    /// Its limit is for all it has: beyond it there is no slow second memory to fill.
    Never,
}

/// What a group may use. 0: no limit.
#[derive(Clone, Copy, Debug, Default)]
struct Quota {
    memory_bytes: u64,
    /// Not to be taken away while it is used.
    memory_min_bytes: u64,
    swap: Swap,
    pids_max: u32,
    cpu_weight: u32,
    vcpus: u32,
}

impl Cgroups {
    /// Finds out what the machine has and makes the node's group, if an earlier init did not leave one.
    pub fn open(instance: &str) -> Result<Cgroups, CgroupError> {
        let is_v2 = Path::new(MOUNT).join("cgroup.controllers").exists();
        let version = if is_v2 { Version::V2 } else { Version::V1 };
        let mut groups = Cgroups { version, instance: format!("selvedge-{instance}"), missing: Vec::new() };
        groups.make("", Quota::default())?;
        groups.delegate(Path::new(MOUNT));
        for dir in groups.dirs("") {
            groups.delegate(&dir);
        }
        Ok(groups)
    }

    /// What this machine cannot limit, since the last question.
    pub fn missing(&mut self) -> Vec<String> {
        std::mem::take(&mut self.missing)
    }

    /// Makes the group of a service.
    pub fn make_service(&mut self, name: &str, limits: Limits) -> Result<(), CgroupError> {
        let quota = Quota {
            memory_bytes: u64::from(limits.memory_max_mib) << 20,
            memory_min_bytes: u64::from(limits.memory_min_mib) << 20,
            swap: Swap::Allowed,
            pids_max: limits.pids_max,
            cpu_weight: limits.cpu_weight,
            vcpus: 0,
        };
        self.make(name, quota)?;
        self.keep_for_children(name);
        Ok(())
    }

    /// What is above a group protects what the groups in it claim together.
    fn keep_for_children(&mut self, name: &str) {
        if self.version == Version::V1 {
            return;
        }
        let above = Path::new(name).ancestors().skip(1);
        let dirs: Vec<PathBuf> = above.flat_map(|above| self.dirs(&above.to_string_lossy())).collect();
        for dir in dirs {
            let claims = fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(|entry| {
                fs::read_to_string(entry.path().join("memory.min")).ok()?.trim().parse::<u64>().ok()
            });
            let path = dir.join("memory.min");
            let bytes: u64 = claims.sum();
            if let Err(error) = fs::write(&path, bytes.to_string()) {
                self.missing.push(format!("{} = {bytes}: {error}", path.display()));
            }
        }
    }

    /// Makes the groups of an app: `app-<id>/shim` and `app-<id>/app`. The shim may put processes into `app`.
    pub fn make_app(
        &mut self,
        app: &str,
        shim: Limits,
        limits: AppLimits,
        shim_uid: u32,
    ) -> Result<(), CgroupError> {
        let top = format!("app-{app}");
        self.make(&top, Quota::default())?;
        for dir in self.dirs(&top) {
            self.delegate(&dir);
        }
        self.make_service(&format!("{top}/shim"), shim)?;
        let quota = Quota {
            memory_bytes: limits.memory_bytes,
            memory_min_bytes: 0,
            swap: Swap::Never,
            pids_max: limits.pids_max,
            cpu_weight: 0,
            vcpus: limits.vcpus,
        };
        self.make(&format!("{top}/app"), quota)?;
        // A move needs both the target and, on v2, what source and target have in common.
        for name in [top.clone(), format!("{top}/app")] {
            for path in self.dirs(&name).into_iter().map(|dir| dir.join("cgroup.procs")) {
                std::os::unix::fs::chown(&path, Some(shim_uid), Some(shim_uid))
                    .map_err(|source| CgroupError { path, source })?;
            }
        }
        Ok(())
    }

    /// Files to write `0` into, to enter the group.
    pub fn procs_files(&self, name: &str) -> Vec<PathBuf> {
        self.dirs(name).into_iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Directories of the group, by the names under which a shim gets them.
    pub fn open_dirs(&self, name: &str) -> Result<Vec<(String, OwnedFd)>, CgroupError> {
        let names = match self.version {
            Version::V2 => vec!["cgroup".to_string()],
            Version::V1 => V1_CONTROLLERS
                .iter()
                .filter(|controller| Path::new(MOUNT).join(controller).exists())
                .map(|controller| format!("cgroup.{controller}"))
                .collect(),
        };
        let mut out = Vec::new();
        for (as_name, path) in names.into_iter().zip(self.dirs(name)) {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&path, flags, Mode::empty())
                .map_err(|errno| CgroupError { path, source: errno.into() })?;
            out.push((as_name, fd));
        }
        Ok(out)
    }

    /// Ends what runs in the group and below, and removes it. An empty name is the whole node.
    pub fn remove(&self, name: &str) -> Result<(), CgroupError> {
        for dir in self.dirs(name) {
            if dir.exists() {
                remove_tree(&dir).map_err(|source| CgroupError { path: dir.clone(), source })?;
            }
        }
        Ok(())
    }

    /// Names of the groups in the node's.
    pub fn children(&self) -> BTreeSet<String> {
        let entries = self.dirs("").into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Processes that are in the group in every hierarchy, not counting groups below it.
    pub fn members(&self, name: &str) -> BTreeSet<i32> {
        let numbers = |dir: PathBuf| pids(&dir).into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let sets = self.dirs(name).into_iter().map(numbers);
        sets.reduce(|all: BTreeSet<i32>, one| all.intersection(&one).copied().collect()).unwrap_or_default()
    }

    /// Nothing runs in the group and below it.
    pub fn is_empty(&self, name: &str) -> bool {
        self.dirs(name).iter().all(|dir| is_empty_tree(dir))
    }

    /// A directory that stands for the node as a whole.
    pub fn top(&self) -> PathBuf {
        self.dirs("").into_iter().next().unwrap_or_else(|| PathBuf::from(MOUNT))
    }

    /// CPU time the group used.
    pub fn cpu_ns(&self, name: &str) -> u64 {
        let dirs = self.dirs(name);
        let number = |text: &str| text.trim().parse::<u64>().ok();
        dirs.iter()
            .find_map(|dir| match self.version {
                Version::V1 => number(&fs::read_to_string(dir.join("cpuacct.usage")).ok()?),
                Version::V2 => fs::read_to_string(dir.join("cpu.stat"))
                    .ok()?
                    .lines()
                    .find_map(|line| number(line.strip_prefix("usage_usec ")?))
                    .map(|us| us * 1000),
            })
            .unwrap_or(0)
    }

    fn dirs(&self, name: &str) -> Vec<PathBuf> {
        let below = |root: PathBuf| {
            let node = root.join(&self.instance);
            if name.is_empty() { node } else { node.join(name) }
        };
        match self.version {
            Version::V2 => vec![below(PathBuf::from(MOUNT))],
            Version::V1 => V1_CONTROLLERS
                .iter()
                .map(|controller| Path::new(MOUNT).join(controller))
                .filter(|root| root.exists())
                .map(below)
                .collect(),
        }
    }

    fn make(&mut self, name: &str, quota: Quota) -> Result<(), CgroupError> {
        for dir in self.dirs(name) {
            fs::create_dir_all(&dir).map_err(|source| CgroupError { path: dir.clone(), source })?;
        }
        for (file, value) in self.settings(quota) {
            let mut last = None;
            let is_set =
                self.dirs(name).iter().map(|dir| dir.join(file)).any(|path| {
                    path.exists() && fs::write(&path, &value).map_err(|e| last = Some(e)).is_ok()
                });
            if !is_set {
                let why = last.map_or("no such controller".to_string(), |error| error.to_string());
                self.missing.push(format!("{name}: {file} = {value}: {why}"));
            }
        }
        if quota.swap == Swap::Never {
            // Without the file there is no accounting of swap, which machines without swap turn off.
            for path in self.dirs(name).into_iter().map(|dir| dir.join("memory.swap.max")) {
                if path.exists()
                    && let Err(error) = fs::write(&path, "0")
                {
                    self.missing.push(format!("{} = 0: {error}", path.display()));
                }
            }
        }
        Ok(())
    }

    fn settings(&self, quota: Quota) -> Vec<(&'static str, String)> {
        let (memory, pids, cpu, weight) = match self.version {
            Version::V1 => {
                let shares = u64::from(quota.cpu_weight) * 1024 / 100;
                let limit = u64::from(quota.vcpus) * CPU_PERIOD_US;
                (
                    "memory.limit_in_bytes",
                    "pids.max",
                    ("cpu.cfs_quota_us", limit.to_string()),
                    ("cpu.shares", shares.max(2).to_string()),
                )
            }
            Version::V2 => {
                let limit = u64::from(quota.vcpus) * CPU_PERIOD_US;
                (
                    "memory.max",
                    "pids.max",
                    ("cpu.max", format!("{limit} {CPU_PERIOD_US}")),
                    ("cpu.weight", quota.cpu_weight.to_string()),
                )
            }
        };
        let mut out = Vec::new();
        if self.version == Version::V2 && quota.memory_min_bytes > 0 {
            out.push(("memory.min", quota.memory_min_bytes.to_string()));
        }
        if quota.memory_bytes > 0 {
            out.push((memory, quota.memory_bytes.to_string()));
        }
        if quota.pids_max > 0 {
            out.push((pids, quota.pids_max.to_string()));
        }
        if quota.vcpus > 0 {
            out.push(cpu);
        }
        if quota.cpu_weight > 0 {
            out.push(weight);
        }
        out
    }

    /// On v2 a group's children have only the controllers that it passes on.
    fn delegate(&mut self, dir: &Path) {
        if self.version == Version::V1 {
            return;
        }
        let file = dir.join("cgroup.subtree_control");
        for controller in V2_CONTROLLERS {
            if let Err(error) = fs::write(&file, format!("+{controller}")) {
                self.missing.push(format!("{}: +{controller}: {error}", dir.display()));
            }
        }
    }
}

/// Kills and removes a group with its children, deepest first.
fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let kill = dir.join("cgroup.kill");
    for _ in 0..EMPTY_TRIES {
        if kill.exists() {
            fs::write(&kill, "1")?;
        } else {
            for pid in pids(dir) {
                // It may be gone already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Killed processes leave the group a moment later.
            Err(_) => std::thread::sleep(EMPTY_PAUSE),
        }
    }
    fs::remove_dir(dir)
}

fn is_empty_tree(dir: &Path) -> bool {
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut groups = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    pids(dir).is_empty() && groups.all(|entry| is_empty_tree(&entry.path()))
}

fn pids(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(version: Version) -> Cgroups {
        Cgroups { version, instance: "x".into(), missing: Vec::new() }
    }

    #[test]
    fn limits_have_the_files_of_their_version() {
        let of = |version| {
            let groups = groups(version);
            let quota = Quota {
                memory_bytes: 1 << 20,
                memory_min_bytes: 1 << 19,
                swap: Swap::Never,
                pids_max: 8,
                cpu_weight: 200,
                vcpus: 2,
            };
            let files = groups.settings(quota).into_iter();
            files.map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>()
        };
        let v1 =
            ["memory.limit_in_bytes=1048576", "pids.max=8", "cpu.cfs_quota_us=200000", "cpu.shares=2048"];
        assert_eq!(of(Version::V1), v1);
        let v2 = [
            "memory.min=524288",
            "memory.max=1048576",
            "pids.max=8",
            "cpu.max=200000 100000",
            "cpu.weight=200",
        ];
        assert_eq!(of(Version::V2), v2);
        let groups = groups(Version::V1);
        assert!(groups.settings(Quota::default()).is_empty());
    }
}
