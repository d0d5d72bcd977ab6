// SPDX-License-Identifier: Apache-2.0
//! System packages the demo and the tests need beyond Rust, git and a C linker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::command::{has, output, root, run, show};
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
    has(program)
}

/// Directory of the `oras` program. Debian has it since 13: on 12 the one of 13 is unpacked into the cache, from the same
/// archive the machine uses, without touching the machine. `None` where there is neither.
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
    let state = dir.join("apt");
    fs::create_dir_all(state.join("lists/partial"))?;
    fs::create_dir_all(state.join("sources"))?;
    fs::write(state.join("status"), "")?;
    let Some(sources) = next_suite() else { return Ok(None) };
    fs::write(state.join("sources/next.sources"), sources)?;
    let apt = |action: &[&str]| {
        let mut command = root("apt-get");
        command.arg("-qq").current_dir(&dir);
        for (name, value) in [
            ("Dir::Etc::sourcelist", "/dev/null".into()),
            ("Dir::Etc::sourceparts", state.join("sources")),
            ("Dir::State::lists", state.join("lists")),
            ("Dir::State::status", state.join("status")),
            ("Dir::Cache", state.join("cache")),
        ] {
            command.args(["-o", &format!("{name}={}", value.display())]);
        }
        command.args(["-o", "APT::Sandbox::User=root"]).args(action);
        command
    };
    let got = output(&mut apt(&["update"])).is_ok_and(|o| o.status.success())
        && output(&mut apt(&["download", "oras"])).is_ok_and(|o| o.status.success());
    if !got {
        return Ok(None);
    }
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(root("dpkg-deb").arg("-x").arg(&path).arg(&dir))?;
        }
    }
    Ok(bin.join("oras").is_file().then_some(bin))
}

/// The machine's own archive with Debian 13 in place of its suite.
fn next_suite() -> Option<String> {
    let own = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let field =
        |name: &str| own.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let uri = match field("URIs") {
        Some(uri) => uri.split_whitespace().next()?.to_owned(),
        None => {
            let list = fs::read_to_string("/etc/apt/sources.list").ok()?;
            let line = list.lines().find(|line| line.starts_with("deb ") && line.contains("debian"))?;
            line.split_whitespace().find(|word| word.contains("://"))?.to_owned()
        }
    };
    let signed = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Some(format!("Types: deb\nURIs: {uri}\nSuites: trixie\nComponents: main\nSigned-By: {signed}\n"))
}
