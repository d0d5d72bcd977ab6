// SPDX-License-Identifier: Apache-2.0
//! System packages the demo and the tests need beyond Rust, git and a C linker.

use std::process::Command;

use anyhow::bail;

use crate::command::{has, root, show};
use crate::progress::step;

/// A program, and the Debian package that has it.
pub type Program = (&'static str, &'static str);

/// For the demo: namespaces, and the standard tools that make and push its image.
pub const DEMO: &[Program] = &[("ip", "iproute2"), ("skopeo", "skopeo"), ("umoci", "umoci")];

/// What the referees need.
pub const REFEREES: &[Program] = &[("python3", "python3"), ("ensurepip-probe", "python3-venv")];

/// What the hosted tests and benches compare with.
pub const HOSTED: &[Program] =
    &[("docker-registry", "docker-registry"), ("crun", "crun"), ("nft", "nftables"), ("getfattr", "attr")];

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
