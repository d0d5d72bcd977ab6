// SPDX-License-Identifier: Apache-2.0
//! Debian's `docker-registry`: a registry that is not ours.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{Background, run};
use crate::progress::wait_for;

/// One on a plain HTTP port, with its content in a directory.
#[derive(Debug)]
pub struct Registry {
    pub address: SocketAddr,
    _process: Background,
}

impl Registry {
    pub fn start(dir: &Path, address: SocketAddr) -> anyhow::Result<Registry> {
        fs::create_dir_all(dir)?;
        let config = dir.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
                dir.join("content").display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let process = Background::start("docker-registry", &dir.join("log"), &mut command)?;
        wait_for("docker-registry listens", Duration::from_secs(10), || TcpStream::connect(address).ok())?;
        Ok(Registry { address, _process: process })
    }

    /// Pushes an image of an OCI layout.
    pub fn push(&self, layout: &Path, tag: &str, to: &str) -> anyhow::Result<()> {
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{to}", self.address)))
        .map(drop)
    }
}
