// SPDX-License-Identifier: Apache-2.0
//! Service manifests: what each process of the node may do, and why. The single source for init, bus and docs.
//!
//! Owns the TOML schema (`services/NAME.toml`), its strict validation and the privilege matrix. What a manifest does
//! not name, the process does not have. Never touches the system: init and crate `service` enforce.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::limits::SERVICE_UIDS;
use crate::syscalls;
use crate::topics;

/// Services that others may call, besides init.
const INIT: &str = "init";
/// Words in front of a path of the node's roots. `{state}` is the service's own directory `<persist>/NAME`.
const ROOTS: [&str; 4] = ["{config}", "{state}", "{persist}", "{run}"];

/// What one process may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    /// File name of the executable, found beside init.
    pub bin: String,
    /// What the process is for, one line.
    pub job: String,
    /// Uid and gid. 0 only with [`Manifest::exempt_why`].
    pub uid: u32,
    #[serde(default)]
    pub instances: Instances,
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    pub network: Network,
    #[serde(default)]
    pub network_why: String,
    #[serde(default)]
    pub files: Vec<FileGrant>,
    #[serde(default)]
    pub devices: Vec<DeviceGrant>,
    /// What init hands over open when it is asked to, and what the process could not open itself.
    #[serde(default)]
    pub descriptors: Vec<DescriptorGrant>,
    pub syscalls: Syscalls,
    /// Topics it may read.
    #[serde(default)]
    pub reads: Vec<String>,
    /// Services it may call.
    #[serde(default)]
    pub calls: Vec<String>,
    /// It answers calls.
    #[serde(default)]
    pub answers: bool,
    /// Why the process runs as root of a user namespace of its own over the apps' ids
    /// ([`crate::limits::APP_UID_BASE`]); its capabilities then count there and nowhere else.
    #[serde(default)]
    pub user_namespace_why: String,
    /// Why neither landlock nor seccomp is put on this process: they are inherited for ever and forbid mounts.
    #[serde(default)]
    pub exempt_why: String,
    pub limits: Limits,
    #[serde(default)]
    pub restart: Restart,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instances {
    #[default]
    One,
    /// A template: one process per app, started when run asks for it, never restarted by itself.
    PerApp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// An empty network namespace.
    None,
    /// The network namespace of the node.
    Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// As in capabilities(7), without `CAP_`.
    pub name: String,
    pub why: String,
}

/// A file or directory of the node, bound into the process's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileGrant {
    /// Absolute, or below `{config}`, `{state}`, `{persist}`, `{run}`.
    pub path: String,
    pub mode: Mode,
    pub why: String,
    /// Name for `Dirs::path`; such a file lies at `/<name>` inside, others at the path they have outside.
    #[serde(default)]
    pub name: String,
    /// Not there on every machine.
    #[serde(default)]
    pub optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceGrant {
    pub path: String,
    pub mode: Mode,
    pub why: String,
    #[serde(default)]
    pub optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorGrant {
    pub name: String,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Ro,
    Rw,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Syscalls {
    /// Names of [`syscalls::GROUPS`].
    pub groups: Vec<String>,
    #[serde(default)]
    pub extra: Vec<ExtraSyscalls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraSyscalls {
    pub names: Vec<String>,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub memory_max_mib: u32,
    /// Never taken from it for others while it is used, see `memory.min` of cgroup v2.
    #[serde(default = "default_memory_min_mib")]
    pub memory_min_mib: u32,
    pub pids_max: u32,
    /// As cgroup v2 has it: 100 is the default of the system.
    #[serde(default = "default_cpu_weight")]
    pub cpu_weight: u32,
}

/// What an idle service works in: its heap, its stacks and the pages of its executable.
const fn default_memory_min_mib() -> u32 {
    8
}

const fn default_cpu_weight() -> u32 {
    100
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Before the first restart; doubles from there.
    pub backoff_ms: u32,
}

impl Default for Restart {
    fn default() -> Restart {
        Restart { backoff_ms: 100 }
    }
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}")]
    Syntax(String),
    #[error("service {service}: {what}")]
    Invalid { service: String, what: String },
}

impl Manifest {
    /// Reads and validates one manifest; unknown fields are refused.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let manifest: Manifest =
            toml::from_str(text).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Topics it writes: the map of topics says so, not the manifest.
    pub fn writes(&self) -> Vec<&'static str> {
        let own = topics::ALL.iter().filter(|(_, writer)| *writer == self.name);
        own.map(|(topic, _)| *topic).collect()
    }

    pub fn is_exempt(&self) -> bool {
        !self.exempt_why.is_empty()
    }

    /// It goes on without init, and the next init takes it over: it keeps an app.
    pub fn outlives_init(&self) -> bool {
        self.instances == Instances::PerApp
    }

    pub fn has_user_namespace(&self) -> bool {
        !self.user_namespace_why.is_empty()
    }

    /// Every system call it may make.
    pub fn allowed_syscalls(&self) -> BTreeSet<&str> {
        let groups = self.syscalls.groups.iter().filter_map(|name| syscalls::group(name));
        let extra = self.syscalls.extra.iter().flat_map(|extra| extra.names.iter());
        groups.flat_map(|names| names.iter().copied()).chain(extra.map(String::as_str)).collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        let fail = |what: String| Err(ManifestError::Invalid { service: self.name.clone(), what });
        let is_word = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !is_word(&self.name) || self.name == INIT {
            return fail("its name is no word of a-z, 0-9 and -".into());
        }
        if !is_word(&self.bin) {
            return fail(format!("bin {:?} is no plain file name", self.bin));
        }
        if self.job.is_empty() {
            return fail("it has no job".into());
        }
        let is_exempt_root = self.uid == 0 && self.is_exempt();
        if !SERVICE_UIDS.contains(&self.uid) && !is_exempt_root {
            return fail(format!("uid {} is outside of {SERVICE_UIDS:?}", self.uid));
        }
        if self.network == Network::Node && self.network_why.is_empty() {
            return fail("network = \"node\" without network_why".into());
        }
        if self.is_exempt() && self.instances == Instances::One {
            return fail("only the template of a shim may be exempt from confinement".into());
        }
        for capability in &self.capabilities {
            if capability_number(&capability.name).is_none() {
                return fail(format!("unknown capability {:?}", capability.name));
            }
            if capability.why.is_empty() {
                return fail(format!("capability {} without why", capability.name));
            }
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if file.why.is_empty() {
                return fail(format!("file {} without why", file.path));
            }
            let below_root = ROOTS.iter().find_map(|root| file.path.strip_prefix(root));
            let rest = below_root.unwrap_or(&file.path);
            let is_clean = rest.is_empty() && below_root.is_some()
                || rest.starts_with('/')
                    && rest.len() > 1
                    && rest[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
            if !is_clean {
                return fail(format!("file path {:?} is not absolute and plain", file.path));
            }
            if file.name.is_empty() && below_root.is_some() && default_name(&file.path).is_none() {
                return fail(format!("file {} needs a name", file.path));
            }
            let name = file.dir_name();
            if !name.is_empty() && (!is_word(name) || !names.insert(name)) {
                return fail(format!("name {name:?} of a file is no word or not unique"));
            }
        }
        for device in &self.devices {
            if device.why.is_empty() {
                return fail(format!("device {} without why", device.path));
            }
            if !device.path.starts_with("/dev/") || device.path.contains("..") {
                return fail(format!("device path {:?} is not below /dev", device.path));
            }
        }
        for descriptor in &self.descriptors {
            if descriptor.why.is_empty() || !is_word(&descriptor.name) {
                return fail(format!("descriptor {:?} without why, or its name is no word", descriptor.name));
            }
        }
        for group in &self.syscalls.groups {
            if syscalls::group(group).is_none() {
                return fail(format!("unknown group of system calls {group:?}"));
            }
        }
        for extra in &self.syscalls.extra {
            if extra.why.is_empty() {
                return fail(format!("system calls {:?} without why", extra.names));
            }
            if let Some(name) = extra.names.iter().find(|name| !syscalls::is_known(name)) {
                return fail(format!("unknown system call {name:?}"));
            }
        }
        for topic in &self.reads {
            if !topics::ALL.iter().any(|(name, _)| name == topic) {
                return fail(format!("unknown topic {topic:?}"));
            }
        }
        if self.limits.memory_max_mib == 0 || self.limits.pids_max == 0 {
            return fail("limits of 0 let nothing run".into());
        }
        if self.limits.memory_min_mib > self.limits.memory_max_mib {
            return fail("memory_min_mib is more than memory_max_mib".into());
        }
        if !(1..=10_000).contains(&self.limits.cpu_weight) {
            return fail("cpu_weight is outside of 1..=10000".into());
        }
        Ok(())
    }
}

impl FileGrant {
    /// Its name for `Dirs`, empty when it lies inside where it lies outside.
    pub fn dir_name(&self) -> &str {
        if self.name.is_empty() { default_name(&self.path).unwrap_or("") } else { &self.name }
    }

    /// Where it lies inside the process's root.
    pub fn inside(&self) -> String {
        match self.dir_name() {
            "" => self.path.clone(),
            name => format!("/{name}"),
        }
    }
}

fn default_name(path: &str) -> Option<&'static str> {
    match path {
        "{config}" => Some("config"),
        "{state}" => Some("state"),
        _ => None,
    }
}

/// What does not fit together in a whole set: equal names or uids, calls of services that do not answer.
pub fn check_set(manifests: &[Manifest]) -> Result<(), ManifestError> {
    let mut by_name: BTreeMap<&str, &Manifest> = BTreeMap::new();
    let mut uids = BTreeSet::new();
    for manifest in manifests {
        let fail = |what: String| Err(ManifestError::Invalid { service: manifest.name.clone(), what });
        if by_name.insert(&manifest.name, manifest).is_some() {
            return fail("there are two of it".into());
        }
        if !uids.insert(manifest.uid) {
            return fail(format!("uid {} has another owner already", manifest.uid));
        }
    }
    for manifest in manifests {
        for callee in &manifest.calls {
            if callee != INIT && !by_name.get(callee.as_str()).is_some_and(|m| m.answers) {
                let what = format!("it calls {callee}, which answers nobody");
                return Err(ManifestError::Invalid { service: manifest.name.clone(), what });
            }
        }
    }
    Ok(())
}

/// Number of a capability by its name without `CAP_`.
pub fn capability_number(name: &str) -> Option<u32> {
    CAPABILITIES.iter().position(|known| *known == name).map(|at| at as u32)
}

/// In the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `docs/privileges.md`: a table over all processes and a section for each, in the order given.
pub fn privilege_matrix(manifests: &[Manifest]) -> String {
    let mut out = String::from(
        "# Privileges of the node's processes\n\n\
         Made from `services/*.toml`; `cargo xtask check` refuses a stale copy. init itself is root: it makes the\n\
         mounts, namespaces and control groups of all others and parses nothing foreign.\n\n\
         | process | uid | network | capabilities | disk, writable | devices | calls | system calls | memory |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let or_dash = |text: String| if text.is_empty() { "–".to_string() } else { text };
    for m in manifests {
        let capabilities: Vec<&str> = m.capabilities.iter().map(|c| c.name.as_str()).collect();
        let mut capabilities = capabilities.join(" ");
        if m.has_user_namespace() && !capabilities.is_empty() {
            capabilities.push_str(" (own user namespace)");
        }
        let writable: Vec<String> = m
            .files
            .iter()
            .filter(|file| file.mode == Mode::Rw)
            .map(|file| format!("`{}`", file.path))
            .collect();
        let devices: Vec<String> = m.devices.iter().map(|d| format!("`{}`", d.path)).collect();
        let syscalls =
            if m.is_exempt() { "all (exempt)".to_string() } else { m.allowed_syscalls().len().to_string() };
        let network = match m.network {
            Network::None => "–",
            Network::Node => "node",
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} MiB |",
            m.name,
            m.uid,
            network,
            or_dash(capabilities),
            or_dash(writable.join(" ")),
            or_dash(devices.join(" ")),
            or_dash(m.calls.join(" ")),
            syscalls,
            m.limits.memory_max_mib,
        );
    }
    for m in manifests {
        let _ = write!(out, "\n## {}\n\n{}\n\n", m.name, m.job);
        let mut line = |text: String| {
            let _ = writeln!(out, "- {text}");
        };
        if m.instances == Instances::PerApp {
            line("one process per app".into());
        }
        if m.is_exempt() {
            line(format!("**exempt from landlock and seccomp**: {}", m.exempt_why));
        }
        if m.has_user_namespace() {
            line(format!("own user namespace: {}", m.user_namespace_why));
        }
        if m.network == Network::Node {
            line(format!("network of the node: {}", m.network_why));
        }
        for capability in &m.capabilities {
            line(format!("CAP_{}: {}", capability.name, capability.why));
        }
        let mode = |mode: Mode| match mode {
            Mode::Ro => "read",
            Mode::Rw => "write",
        };
        for file in &m.files {
            line(format!("{} `{}`: {}", mode(file.mode), file.path, file.why));
        }
        for device in &m.devices {
            line(format!("{} device `{}`: {}", mode(device.mode), device.path, device.why));
        }
        for descriptor in &m.descriptors {
            line(format!("descriptor {}: {}", descriptor.name, descriptor.why));
        }
        if !m.is_exempt() {
            line(format!("system calls: groups {}", m.syscalls.groups.join(", ")));
            for extra in &m.syscalls.extra {
                line(format!("system calls {}: {}", extra.names.join(", "), extra.why));
            }
        }
        if !m.writes().is_empty() {
            line(format!("writes topics {}", m.writes().join(", ")));
        }
        if !m.reads.is_empty() {
            line(format!("reads topics {}", m.reads.join(", ")));
        }
        if !m.calls.is_empty() {
            line(format!("calls {}", m.calls.join(", ")));
        }
        if m.answers {
            line("answers calls".into());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        name = "vault"
        bin = "selvedge-vault"
        job = "Holds keys."
        uid = 900003
        network = "none"
        files = [{ path = "{state}", mode = "rw", why = "keys" }]
        syscalls = { groups = ["base", "fs"] }
        reads = ["config"]
        answers = true
        limits = { memory_max_mib = 16, pids_max = 8 }
    "#;

    #[test]
    fn a_manifest_says_what_a_process_may_do() {
        let manifest = Manifest::parse(SMALL).unwrap();
        assert_eq!(manifest.writes(), ["vault-observed"]);
        assert_eq!(manifest.files[0].inside(), "/state");
        assert!(manifest.allowed_syscalls().contains("openat"));
        assert!(!manifest.allowed_syscalls().contains("socket"));
        assert_eq!(manifest.restart.backoff_ms, 100);
    }

    #[test]
    fn a_manifest_that_says_more_or_less_than_it_may_is_refused() {
        for (old, new, what) in [
            ("name =", "nmae =", "unknown field"),
            ("job =", "jobs = 1\njob =", "unknown field"),
            ("\"vault\"", "\"Vault\"", "its name is no word"),
            ("\"vault\"", "\"init\"", "its name is no word"),
            ("selvedge-vault", "../x", "no plain file name"),
            ("900003", "0", "uid 0 is outside"),
            ("900003", "1000", "uid 1000 is outside"),
            ("\"none\"", "\"node\"", "without network_why"),
            ("\"none\"", "\"host\"", "unknown variant"),
            ("why = \"keys\"", "why = \"\"", "without why"),
            (", why = \"keys\"", "", "missing field"),
            ("{state}", "{state}/../x", "not absolute and plain"),
            ("{state}", "relative", "not absolute and plain"),
            ("{state}", "{persist}/store", "needs a name"),
            ("\"fs\"", "\"all\"", "unknown group"),
            ("\"config\"", "\"confg\"", "unknown topic"),
            ("pids_max = 8", "pids_max = 0", "let nothing run"),
            ("answers", "exempt_why = \"x\"\nanswers", "only the template of a shim"),
            ("answers", "capabilities = [{ name = \"ALL\", why = \"x\" }]\nanswers", "unknown capability"),
        ] {
            let text = SMALL.replacen(old, new, 1);
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains(what), "{new}: {error}");
        }
    }

    #[test]
    fn a_set_has_one_owner_per_uid_and_only_calls_that_are_answered() {
        let vault = Manifest::parse(SMALL).unwrap();
        let mut agent = Manifest { name: "agent".into(), ..vault.clone() };
        agent.calls = vec!["vault".into(), "init".into()];
        assert!(check_set(&[vault.clone(), agent.clone()]).is_err());
        agent.uid += 1;
        check_set(&[vault.clone(), agent.clone()]).unwrap();
        let silent = Manifest { answers: false, ..vault };
        assert!(check_set(&[silent, agent]).is_err());
    }

    #[test]
    fn the_manifests_of_the_node_are_valid_and_fit_together() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
        let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let parse = |path: &std::path::PathBuf| {
            let manifest = Manifest::parse(&std::fs::read_to_string(path).unwrap());
            manifest.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let manifests: Vec<Manifest> = files.iter().map(parse).collect();
        check_set(&manifests).unwrap();
        for (topic, writer) in topics::ALL {
            let is_known = *writer == INIT || manifests.iter().any(|m| m.name == *writer);
            assert!(is_known, "{topic} has no writer");
        }
        let matrix = privilege_matrix(&manifests);
        for m in &manifests {
            assert!(matrix.contains(&format!("\n## {}\n", m.name)));
            assert!(m.capabilities.iter().all(|c| matrix.contains(&c.why)));
        }
    }

    /// No process may hold two of network, long-lived keys and disk; keys are with vault, which has no network.
    #[test]
    fn no_service_has_both_the_network_and_disk_beyond_its_own_directory() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
        for entry in std::fs::read_dir(dir).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let m = Manifest::parse(&text).unwrap();
            let writes_disk = m.files.iter().any(|file| {
                file.mode == Mode::Rw && file.path != "{state}" && !file.path.starts_with("/proc")
            });
            assert!(m.is_exempt() || m.network == Network::None || !writes_disk, "{}", m.name);
        }
    }

    #[test]
    fn capabilities_have_the_numbers_of_the_kernel() {
        for (name, number) in [("CHOWN", 0), ("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("BPF", 39)] {
            assert_eq!(capability_number(name), Some(number));
        }
    }
}
