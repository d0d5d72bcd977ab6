// SPDX-License-Identifier: Apache-2.0
//! Reads from /proc what a process may really do, and compares it with what its manifest grants.
//!
//! Knows nothing of how the confinement is made: an independent judge of the running system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use ipc::manifest::{Manifest, Network};

/// First uid of the range that apps, and the store's user namespace, map to.
const APP_UID_BASE: u32 = 1_000_000;

/// What /proc says of one process.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    /// Fields of `status` by name.
    pub status: BTreeMap<String, String>,
    /// Namespace by kind: `net` → `net:[4026531840]`.
    pub namespaces: BTreeMap<String, String>,
    /// Mount points with their options and file system type.
    pub mounts: Vec<Mount>,
    /// What each descriptor points to.
    pub fds: BTreeMap<u32, String>,
    pub uid_map: String,
    pub sockets: Vec<Socket>,
}

/// A socket the process holds, as its network namespace lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A unix socket; the name it is bound to, if any.
    Unix {
        name: Option<String>,
    },
    /// TCP or UDP; the port it waits at for whoever comes, if it does.
    Inet {
        protocol: &'static str,
        waits_at: Option<u16>,
    },
    Netlink,
    /// Raw and packet sockets.
    Raw,
}

#[derive(Clone, Debug)]
pub struct Mount {
    pub point: String,
    pub options: BTreeSet<String>,
    pub kind: String,
}

impl Process {
    /// Needs root.
    pub fn read(pid: u32) -> anyhow::Result<Process> {
        let dir = format!("/proc/{pid}");
        let text = |name: &str| {
            fs::read_to_string(format!("{dir}/{name}")).with_context(|| format!("cannot read {dir}/{name}"))
        };
        let status = text("status")?
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
            .collect();
        let fds: BTreeMap<u32, String> = links(&format!("{dir}/fd"))?
            .into_iter()
            .filter_map(|(k, v)| Some((k.parse().ok()?, v)))
            .collect();
        let inodes: BTreeSet<&str> =
            fds.values().filter_map(|target| target.strip_prefix("socket:[")?.strip_suffix(']')).collect();
        let sockets = sockets(&dir, &inodes);
        Ok(Process {
            sockets,
            pid,
            status,
            namespaces: links(&format!("{dir}/ns"))?,
            mounts: text("mountinfo")?.lines().filter_map(mount).collect(),
            fds: fds.clone(),
            uid_map: text("uid_map")?.split_whitespace().collect::<Vec<_>>().join(" "),
        })
    }

    pub fn field(&self, name: &str) -> &str {
        self.status.get(name).map_or("", String::as_str)
    }

    /// Bits of a capability set such as `CapEff`.
    pub fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).unwrap_or(u64::MAX)
    }
}

fn links(dir: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {dir}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(target) = fs::read_link(&path) {
            found.insert(name, target.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Looks the inodes up in the tables of the process's network namespace, see proc(5).
fn sockets(dir: &str, inodes: &BTreeSet<&str>) -> Vec<Socket> {
    let mut found = Vec::new();
    let mut table = |name: &str, column: usize, read: &dyn Fn(&[&str]) -> Socket| {
        let text = fs::read_to_string(format!("{dir}/net/{name}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.get(column).is_some_and(|inode| inodes.contains(inode)) {
                found.push(read(&words));
            }
        }
    };
    table("unix", 6, &|words| Socket::Unix { name: words.get(7).map(|name| (*name).to_owned()) });
    let port = |words: &[&str]| u16::from_str_radix(words.get(1)?.rsplit_once(':')?.1, 16).ok();
    let is = |words: &[&str], state: &str| words.get(3).is_some_and(|s| *s == state);
    /// TCP_LISTEN, and for UDP the state of a socket that is not connected.
    const LISTENS: &str = "0A";
    const UNCONNECTED: &str = "07";
    for (name, protocol, waits) in [
        ("tcp", "tcp", LISTENS),
        ("tcp6", "tcp", LISTENS),
        ("udp", "udp", UNCONNECTED),
        ("udp6", "udp", UNCONNECTED),
    ] {
        table(name, 9, &|words| Socket::Inet {
            protocol,
            waits_at: port(words).filter(|_| is(words, waits)),
        });
    }
    table("netlink", 9, &|_| Socket::Netlink);
    table("raw", 9, &|_| Socket::Raw);
    table("packet", 8, &|_| Socket::Raw);
    found
}

/// A line of mountinfo, see proc(5).
fn mount(line: &str) -> Option<Mount> {
    let (own, file_system) = line.split_once(" - ")?;
    let own: Vec<&str> = own.split(' ').collect();
    Some(Mount {
        point: own.get(4)?.to_string(),
        options: own.get(5)?.split(',').map(str::to_owned).collect(),
        kind: file_system.split(' ').next()?.to_owned(),
    })
}

/// Everything in which a running service differs from its manifest; nothing is expected.
pub fn differences(manifest: &Manifest, process: &Process, init: &Process) -> Vec<String> {
    let mut out = Vec::new();
    let name = &manifest.name;
    let mut expect = |what: &str, is: &str, should: &str| {
        if is != should {
            out.push(format!("{name}: {what} is {is:?}, should be {should:?}"));
        }
    };
    let four = [manifest.uid; 4].map(|id| id.to_string()).join(" ");
    expect("Uid", process.field("Uid"), &four);
    expect("Gid", process.field("Gid"), &four);
    expect("Groups", process.field("Groups"), "");
    expect("NoNewPrivs", process.field("NoNewPrivs"), "1");
    let filtered = if manifest.is_exempt() { process.field("Seccomp") } else { "2" };
    expect("Seccomp", process.field("Seccomp"), filtered);
    let granted = capability_bits(manifest);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let is = process.capabilities(set);
        if is & !granted != 0 {
            out.push(format!("{name}: {set} holds {:#x} beyond the manifest", is & !granted));
        }
    }
    out.extend(namespace_differences(manifest, process, init));
    out.extend(mount_differences(manifest, process));
    out.extend(descriptor_differences(manifest, process));
    out.extend(socket_differences(manifest, process, init));
    out
}

fn capability_bits(manifest: &Manifest) -> u64 {
    let numbers = manifest.capabilities.iter().filter_map(|c| ipc::manifest::capability_number(&c.name));
    numbers.fold(0, |bits, number| bits | 1 << number)
}

fn namespace_differences(manifest: &Manifest, process: &Process, init: &Process) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut own = vec!["mnt", "ipc", "uts"];
    let mut shared = Vec::new();
    match manifest.network {
        Network::None => own.push("net"),
        // a shim leaves for its app's
        Network::Node if manifest.is_exempt() => {}
        Network::Node => shared.push("net"),
    }
    if manifest.has_user_namespace() {
        own.push("user")
    } else {
        shared.push("user")
    }
    let differs = |kind: &str| process.namespaces.get(kind) != init.namespaces.get(kind);
    let missing = own
        .iter()
        .filter(|kind| !differs(kind))
        .map(|kind| format!("{}: shares the {kind} namespace of init", manifest.name));
    let extra = shared
        .iter()
        .filter(|kind| differs(kind))
        .map(|kind| format!("{}: has a {kind} namespace of its own", manifest.name));
    wrong.extend(missing.chain(extra));
    wrong
}

fn mount_differences(manifest: &Manifest, process: &Process) -> Vec<String> {
    let mut granted: BTreeMap<String, bool> =
        BTreeMap::from([("/".into(), false), (format!("/bin/{}", manifest.bin), false)]);
    for file in &manifest.files {
        granted.insert(file.inside(), file.mode == ipc::manifest::Mode::Rw);
    }
    for device in &manifest.devices {
        granted.insert(device.path.clone(), device.mode == ipc::manifest::Mode::Rw);
    }
    let mut out = Vec::new();
    for mount in &process.mounts {
        match granted.get(&mount.point) {
            // below a granted directory there may be mounts of the host: /proc and /sys of a shim
            None if manifest.is_exempt() => {}
            None => out.push(format!("{}: {} is mounted", manifest.name, mount.point)),
            Some(false) if !mount.options.contains("ro") => {
                out.push(format!("{}: {} is writable", manifest.name, mount.point))
            }
            Some(_) => {}
        }
    }
    out
}

fn descriptor_differences(manifest: &Manifest, process: &Process) -> Vec<String> {
    let granted: Vec<String> = manifest.files.iter().map(|f| f.inside()).collect();
    let is_granted = |target: &str| {
        ["socket:[", "pipe:[", "anon_inode:", "/memfd:"].iter().any(|prefix| target.starts_with(prefix))
            // the null device, opened on a file system of devices that is mounted nowhere here
            || target == "/null"
            || target == "/dev/null"
            || granted.iter().any(|path| Path::new(target).starts_with(path))
            || process_control_group(target)
    };
    process
        .fds
        .iter()
        .filter(|(_, target)| !is_granted(target))
        .map(|(fd, target)| format!("{}: descriptor {fd} is {target}", manifest.name))
        .collect()
}

/// Nobody has a named socket. Who has no network has only unix sockets. Of the others only the one that may bind a
/// service's port waits for strangers, and only there; on a box of its own that is also where answers of DHCP servers come.
fn socket_differences(manifest: &Manifest, process: &Process, init: &Process) -> Vec<String> {
    const DNS_AND_DHCP: [u16; 2] = [53, 67];
    const DHCP_CLIENT: u16 = 68;
    let is_box = init.pid == 1;
    let has_network = manifest.network == Network::Node;
    let may = |name: &str| manifest.capabilities.iter().any(|c| c.name == name);
    let is_granted = |socket: &Socket| match socket {
        Socket::Unix { name } => name.is_none(),
        Socket::Inet { waits_at: None, .. } => has_network,
        Socket::Inet { waits_at: Some(port), .. } => {
            let is_ours = DNS_AND_DHCP.contains(port) || (is_box && *port == DHCP_CLIENT);
            has_network && may("NET_BIND_SERVICE") && is_ours
        }
        Socket::Netlink => may("NET_ADMIN"),
        Socket::Raw => false,
    };
    let strange = process.sockets.iter().filter(|socket| !is_granted(socket));
    strange.map(|socket| format!("{}: holds the socket {socket:?}", manifest.name)).collect()
}

/// init hands shims and run the directories of apps' control groups.
fn process_control_group(target: &str) -> bool {
    target.starts_with("/sys/fs/cgroup/") || target.starts_with("/selvedge-") || target.contains("/app-")
}

/// What must hold for every app that runs as a native container.
pub fn app_differences(process: &Process, init: &Process) -> Vec<String> {
    /// The bounding set of the OCI default: chown, dac_override, fsetid, fowner, net_raw, setgid, setuid, setfcap,
    /// setpcap, net_bind_service, sys_chroot, kill, audit_write, mknod.
    const CAPABILITIES: u64 = 0xa80425fb;
    let mut out = Vec::new();
    if process.field("Seccomp") != "2" {
        out.push(format!("app: Seccomp is {}", process.field("Seccomp")));
    }
    if process.field("NoNewPrivs") != "1" {
        out.push("app: may gain privileges".into());
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let extra = process.capabilities(set) & !CAPABILITIES;
        if extra != 0 {
            out.push(format!("app: {set} holds {extra:#x} beyond the default"));
        }
    }
    if process.uid_map != format!("0 {APP_UID_BASE} 65536") {
        out.push(format!("app: uid map is {:?}", process.uid_map));
    }
    for kind in ["mnt", "ipc", "uts", "net", "pid", "user", "cgroup"] {
        if process.namespaces.get(kind) == init.namespaces.get(kind) {
            out.push(format!("app: shares the {kind} namespace of the node"));
        }
    }
    for mount in &process.mounts {
        let is_view = mount.point.starts_with("/sys")
            || ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"]
                .contains(&mount.point.as_str());
        if is_view && !mount.options.contains("ro") {
            out.push(format!("app: {} is writable", mount.point));
        }
    }
    for needed in ["/proc/kcore", "/proc/keys", "/proc/sys"] {
        if Path::new(needed).exists() && !process.mounts.iter().any(|mount| mount.point == needed) {
            out.push(format!("app: {needed} is not masked"));
        }
    }
    for (fd, target) in &process.fds {
        let known = ["pipe:[", "socket:[", "anon_inode:"].iter().any(|p| target.starts_with(p))
            || target.starts_with("/dev/")
            || *fd > 2;
        if !known {
            out.push(format!("app: descriptor {fd} is {target}"));
        }
    }
    out
}

/// All manifests of the project.
pub fn manifests() -> anyhow::Result<Vec<Manifest>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the package lies in the workspace")?
        .join("services");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            found.push(
                Manifest::parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?,
            );
        }
    }
    if found.is_empty() {
        bail!("no manifests in {}", dir.display());
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
