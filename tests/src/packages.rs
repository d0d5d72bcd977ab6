// SPDX-License-Identifier: Apache-2.0
//! System packages the demo and the tests need beyond Rust, git and a C linker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::command::{has, root, show};
use crate::debian::Archive;
use crate::progress::step;

/// A program, and the Debian package that has it.
pub type Program = (&'static str, &'static str);

/// For the demo: namespaces, and the standard tools that make and push its image.
pub const DEMO: &[Program] = &[("ip", "iproute2"), ("skopeo", "skopeo"), ("umoci", "umoci")];

/// What the referees need.
pub const REFEREES: &[Program] = &[("python3", "python3"), ("ensurepip-probe", "python3-venv")];

/// What the hosted tests and benches compare with.
pub const HOSTED: &[Program] = &[
    ("docker-registry", "docker-registry"),
    ("crun", "crun"),
    ("nft", "nftables"),
    ("getfattr", "attr"),
    ("groff", "groff-base"),
    ("mkfs.ext4", "e2fsprogs"),
    // clients and a server of DHCP to be judged by
    ("udhcpc", "udhcpc"),
    ("dhclient", "isc-dhcp-client"),
    ("dhcpcd", "dhcpcd-base"),
    ("dnsmasq", "dnsmasq-base"),
];

/// What makes and runs the emulated guest.
pub const GUEST: &[Program] =
    &[(QEMU.0, QEMU.1), ("mke2fs", "e2fsprogs"), ("xz", "xz-utils"), ("strip", "binutils")];

/// What builds images, runs boxes, and judges what was built.
pub const BOX: &[Program] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    ("swtpm", "swtpm"),
    ("sgdisk", "gdisk"),
    ("veritysetup", "cryptsetup-bin"),
    ("fsck.vfat", "dosfstools"),
    ("openssl", "openssl"),
    ("mke2fs", "e2fsprogs"),
    ("xorriso", "xorriso"),
    ("qemu-storage-daemon", "qemu-system-common"),
];

#[cfg(target_arch = "aarch64")]
const QEMU: Program = ("qemu-system-aarch64", "qemu-system-arm");
#[cfg(not(target_arch = "aarch64"))]
const QEMU: Program = ("qemu-system-x86_64", "qemu-system-x86");

/// Installs what is missing; asks nothing.
pub fn ensure(programs: &[Program]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !has("apt-get") {
        bail!("these programs are missing and this is no Debian: install {}", missing.join(", "));
    }
    step(format_args!("installing {}", missing.join(", ")));
    show(root("apt-get").args(["-qq", "update"]))?;
    show(
        root("env")
            .args([
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "-qq",
                "-y",
                "--no-install-recommends",
                "install",
            ])
            .args(&missing)
            .stdout(std::process::Stdio::null()),
    )
}

fn is_there(program: &str) -> bool {
    if program == "ensurepip-probe" {
        // Debian splits venv off; python3 alone does not tell
        return Command::new("python3")
            .args(["-c", "import ensurepip"])
            .output()
            .is_ok_and(|o| o.status.success());
    }
    // a file that is no program goes by its path
    if program.starts_with('/') { Path::new(program).exists() } else { has(program) }
}

/// Directory of the `oras` program. Debian has it since 13: on 12 the one of 13 is unpacked into the cache. `None` where
/// there is neither.
pub fn oras(cache: &Path) -> anyhow::Result<Option<PathBuf>> {
    let dir = cache.join("oras");
    let bin = dir.join("usr/bin");
    if bin.join("oras").is_file() {
        return Ok(Some(bin));
    }
    if has("oras") {
        return Ok(Some(PathBuf::from("/usr/bin")));
    }
    step("getting oras");
    let got = Archive::open(&cache.join("debian")).and_then(|archive| archive.unpack(&["oras"], &dir));
    Ok((got.is_ok() && bin.join("oras").is_file()).then_some(bin))
}
