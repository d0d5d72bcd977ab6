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
    /// `USER:PASSWORD`.
    credentials: Option<String>,
    _process: Background,
}

impl Registry {
    pub fn start(dir: &Path, address: SocketAddr) -> anyhow::Result<Registry> {
        Registry::start_as(dir, address, "", None)
    }

    /// One that answers to one user only.
    pub fn start_with_user(
        dir: &Path,
        address: SocketAddr,
        user: &str,
        password: &str,
    ) -> anyhow::Result<Registry> {
        fs::create_dir_all(dir)?;
        // Perl is part of every Debian, a program that makes bcrypt hashes is not
        let hash = run(Command::new("perl").args([
            "-e",
            "print crypt($ARGV[0], '$2b$05$abcdefghijklmnopqrstuu')",
            password,
        ]))?;
        fs::write(dir.join("htpasswd"), format!("{user}:{hash}\n"))?;
        let auth = format!("auth: {{htpasswd: {{realm: lab, path: {}}}}}\n", dir.join("htpasswd").display());
        Registry::start_as(dir, address, &auth, Some(format!("{user}:{password}")))
    }

    fn start_as(
        dir: &Path,
        address: SocketAddr,
        auth: &str,
        credentials: Option<String>,
    ) -> anyhow::Result<Registry> {
        fs::create_dir_all(dir)?;
        let config = dir.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n{auth}",
                dir.join("content").display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let process = Background::start("docker-registry", &dir.join("log"), &mut command)?;
        wait_for("docker-registry listens", Duration::from_secs(10), || TcpStream::connect(address).ok())?;
        Ok(Registry { address, credentials, _process: process })
    }

    /// Pushes an image of an OCI layout.
    pub fn push(&self, layout: &Path, tag: &str, to: &str) -> anyhow::Result<()> {
        let credentials = self.credentials.iter().flat_map(|creds| ["--dest-creds", creds]);
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .args(credentials)
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{to}", self.address)))
        .map(drop)
    }
}
