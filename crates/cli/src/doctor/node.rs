// SPDX-License-Identifier: Apache-2.0
//! A node's host: what the kernel must have, the directories, the way to the controller, the clock.

use std::fs;
use std::path::Path;

use super::{Findings, host, tls};

/// The first kernel with everything the node uses: Landlock's refer right, mount_setattr, pidfd, cgroup.kill.
const KERNEL_MIN: (u32, u32) = (5, 19);
/// User namespaces a node makes: one for its store and one per app.
const USER_NAMESPACES_MIN: u64 = 64;
/// Before this no build of the software exists, so such a clock is wrong.
const BUILT_AFTER_S: u64 = 1_767_225_600;
const SKEW_ODD_S: i64 = 60;
const CGROUP: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Directories of the node, as far as they were given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    pub(super) config: Option<&'a Path>,
    pub(super) persist: Option<&'a Path>,
    pub(super) run: Option<&'a Path>,
}

pub(super) fn look(places: Places<'_>, findings: &mut Findings) {
    if rustix::process::geteuid().is_root() {
        findings.good("user", "root, as a hosted node needs");
    } else {
        findings.bad("user", "not root", "a hosted node is started by root; run this with sudo");
    }
    kernel(findings);
    user_namespaces(findings);
    confinement(findings);
    cgroups(findings);
    modules(findings);
    virtualization(findings);
    clock(findings);
    if let Some(persist) = places.persist {
        directory("persist", persist, findings);
        overlay(persist, findings);
    }
    if let Some(run) = places.run {
        directory("run", run, findings);
    }
    match places.config {
        Some(config) => controller(config, findings),
        None => findings.odd("controller", "not tried", "give --config DIR, the node's config directory"),
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel(findings: &mut Findings) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version = (numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0));
    let (major, minor) = KERNEL_MIN;
    if version >= KERNEL_MIN {
        findings.good("kernel", release);
    } else {
        findings.bad(
            "kernel",
            format!("{release} is too old"),
            format!("boot Linux {major}.{minor} or newer"),
        );
    }
}

fn user_namespaces(findings: &mut Findings) {
    let topic = "user namespaces";
    match read("/proc/sys/user/max_user_namespaces").and_then(|text| text.parse::<u64>().ok()) {
        None => findings.bad(topic, "the kernel has none", "boot a kernel with CONFIG_USER_NS"),
        Some(most) if most < USER_NAMESPACES_MIN => findings.bad(
            topic,
            format!("at most {most} are allowed"),
            "sysctl -w user.max_user_namespaces=10000, and keep it in /etc/sysctl.d",
        ),
        Some(most) => findings.good(topic, format!("up to {most}")),
    }
}

fn confinement(findings: &mut Findings) {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.contains("kill_process") {
        findings.good("seccomp", "filters can be set");
    } else {
        findings.bad("seccomp", "the kernel has no filters", "boot a kernel with CONFIG_SECCOMP_FILTER");
    }
    match read("/sys/kernel/security/lsm") {
        Some(modules) if modules.split(',').any(|name| name == "landlock") => {
            findings.good("Landlock", "is on");
        }
        Some(modules) => findings.odd(
            "Landlock",
            format!(
                "is off (on are {modules}); services are kept to their own root directories all the same"
            ),
            "add landlock to the kernel's lsm= option",
        ),
        // Without securityfs nobody can tell.
        None => {}
    }
}

fn cgroups(findings: &mut Findings) {
    let topic = "control groups";
    if let Some(text) = read(&format!("{CGROUP}/cgroup.controllers")) {
        let have: Vec<&str> = text.split(' ').collect();
        let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !have.contains(name)).collect();
        if missing.is_empty() {
            return findings.good(topic, format!("version 2 with {}", CONTROLLERS.join(", ")));
        }
        let next = "hand them down: write them with + into cgroup.subtree_control of the group above";
        return findings.odd(topic, format!("version 2 without {}", missing.join(", ")), next);
    }
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !Path::new(CGROUP).join(name).is_dir()).collect();
    if missing.len() == CONTROLLERS.len() {
        let next = "mount -t cgroup2 none /sys/fs/cgroup";
        findings.bad(topic, format!("none at {CGROUP}"), next);
    } else if missing.is_empty() {
        let next = "version 2 limits better: systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
        findings.odd(topic, "version 1", next);
    } else {
        let next = "version 2 has them: systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
        findings.odd(topic, format!("version 1 without {}", missing.join(", ")), next);
    }
}

/// What apps and their networks need from the kernel, built in or loadable.
fn modules(findings: &mut Findings) {
    let filesystems = read("/proc/filesystems").unwrap_or_default();
    let has_overlay = filesystems.lines().any(|line| line.trim_end().ends_with("overlay"));
    let wanted = [
        ("overlay", has_overlay, "layers of images"),
        ("nf_tables", Path::new("/sys/module/nf_tables").exists(), "access rules and port maps"),
        ("bridge", Path::new("/sys/module/bridge").exists(), "networks of apps"),
        ("veth", Path::new("/sys/module/veth").exists(), "interfaces of apps"),
    ];
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let lists: String = ["modules.builtin", "modules.dep"]
        .iter()
        .filter_map(|name| fs::read_to_string(format!("/lib/modules/{release}/{name}")).ok())
        .collect();
    let config = fs::read_to_string(format!("/boot/config-{release}")).unwrap_or_default();
    for (name, is_there, what) in wanted {
        let file = format!("/{name}.ko");
        if is_there || lists.contains(&file) {
            findings.good("kernel", format!("{name}, for {what}"));
        } else if lists.is_empty() && config.is_empty() {
            // Built in, perhaps; a kernel that has neither list nor config cannot be asked without trying.
            findings.odd(
                "kernel",
                format!("cannot tell whether there is {name}, for {what}"),
                format!("try: modprobe {name}"),
            );
        } else {
            findings.bad(
                "kernel",
                format!("no {name}, for {what}"),
                format!("install the kernel's modules, then: modprobe {name}"),
            );
        }
    }
}

fn virtualization(findings: &mut Findings) {
    if Path::new("/dev/kvm").exists() {
        findings
            .good("virtualization", "/dev/kvm is there; whether guests run is tried when an app needs it");
    } else {
        let next = "turn virtualization on in the firmware and load kvm_intel or kvm_amd, when apps need VMs";
        findings.odd("virtualization", "no /dev/kvm: virtual machines would be emulated", next);
    }
    if Path::new("/dev/tpmrm0").exists() {
        findings.good("TPM", "/dev/tpmrm0 is there");
    }
}

fn clock(findings: &mut Findings) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if now < BUILT_AFTER_S {
        findings.odd(
            "clock",
            "is before this software was made",
            "set it (timedatectl); a node starts its apps all the same and takes the time of its controller",
        );
    }
}

fn directory(topic: &'static str, path: &Path, findings: &mut Findings) {
    if !path.is_dir() {
        let next = format!("the node makes it; to check the disk now: mkdir -p {}", path.display());
        return findings.odd(topic, format!("{} is not there yet", path.display()), next);
    }
    host::space(topic, path, "free some space, or put the directory on a larger disk", findings);
}

/// Apps' writable layers are overlays in persist, and an overlay on an overlay does not work.
fn overlay(persist: &Path, findings: &mut Findings) {
    const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
    let Ok(stat) = rustix::fs::statfs(persist) else { return };
    if u64::try_from(stat.f_type).is_ok_and(|magic| magic == OVERLAYFS_MAGIC) {
        let next = "put it on a real file system: in a container, mount a volume there";
        findings.bad("persist", format!("{} lies on an overlay", persist.display()), next);
    }
}

fn controller(config: &Path, findings: &mut Findings) {
    let text = |name: &str| fs::read_to_string(config.join(name)).ok().map(|text| text.trim().to_owned());
    let Some(server) = text("server").filter(|text| !text.is_empty()) else {
        let what = format!("{} names no controller", config.join("server").display());
        return findings.bad("controller", what, "make the directory with: selvedge node bundle --out DIR");
    };
    let server = if server.contains(':') { server } else { format!("{server}:443") };
    // EVE trusts the second file for TLS where it is there.
    let roots =
        text("v2tlsbaseroot-certificates.pem").or_else(|| text("root-certificate.pem")).unwrap_or_default();
    for name in ["onboard.cert.pem", "onboard.key.pem"] {
        if text(name).is_none() && text("device.cert.pem").is_none() {
            let what = format!("{} is missing, and so is a device certificate", config.join(name).display());
            findings.odd(
                "controller",
                what,
                "a new node cannot join without it: selvedge node bundle --out DIR",
            );
        }
    }
    match tls::reach(&server, &roots) {
        Err(failed) => findings.bad("controller", format!("{server}: {failed}"), failed.next()),
        Ok(reached) => {
            let ms = reached.round_trip.as_millis();
            findings.good("controller", format!("{server} answers, {ms} ms away"));
            match reached.skew_s {
                Some(skew) if skew.abs() > SKEW_ODD_S => {
                    let next =
                        "start NTP here; the node takes the controller's time as long as none is trusted";
                    findings.odd("clock", format!("the controller's differs by {skew} s from ours"), next);
                }
                Some(skew) => {
                    findings.good("clock", format!("the controller's differs by {skew} s from ours"))
                }
                None => {}
            }
        }
    }
}
