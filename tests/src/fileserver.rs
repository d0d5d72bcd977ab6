// SPDX-License-Identifier: Apache-2.0
//! A web server for files that is not ours: Python's, with certificates made by openssl.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Background, run};
use crate::progress::wait_for;

/// One at an address, serving the files of `DIR/files`.
#[derive(Debug)]
pub struct FileServer {
    dir: PathBuf,
    /// The CA its certificate is of, when it speaks TLS.
    pub ca_pem: String,
    process: Background,
}

impl FileServer {
    /// Plain HTTP, with more arguments of the program.
    pub fn start(dir: &Path, address: SocketAddr, more: &[&str]) -> anyhow::Result<FileServer> {
        FileServer::start_with(dir, address, more, String::new())
    }

    /// HTTPS under a CA of its own.
    pub fn start_tls(dir: &Path, address: SocketAddr, more: &[&str]) -> anyhow::Result<FileServer> {
        fs::create_dir_all(dir)?;
        let ip = address.ip();
        let script = format!(
            "set -e; cd '{}'
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.pem -subj '/CN=files ca'
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj '/CN=files'
            printf 'subjectAltName=IP:{ip}\\nextendedKeyUsage=serverAuth\\n' > server.ext
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem",
            dir.display()
        );
        run(Command::new("bash").arg("-c").arg(script))?;
        let ca_pem = fs::read_to_string(dir.join("ca.pem"))?;
        let (cert, key) = (dir.join("server.pem"), dir.join("server.key"));
        let tls = ["--cert", &cert.to_string_lossy(), "--key", &key.to_string_lossy()].map(str::to_owned);
        let all: Vec<&str> = tls.iter().map(String::as_str).chain(more.iter().copied()).collect();
        FileServer::start_with(dir, address, &all, ca_pem)
    }

    fn start_with(
        dir: &Path,
        address: SocketAddr,
        more: &[&str],
        ca_pem: String,
    ) -> anyhow::Result<FileServer> {
        fs::create_dir_all(dir.join("files"))?;
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/fileserver.py");
        let mut command = Command::new("python3");
        command.arg(program).arg(address.to_string()).arg(dir.join("files")).args(more);
        let process = Background::start("the file server", &dir.join("server.log"), &mut command)?;
        let mut server = FileServer { dir: dir.to_owned(), ca_pem, process };
        wait_for("the file server listens", Duration::from_secs(20), || {
            let listens = TcpStream::connect(address).is_ok();
            (listens || server.process.check().is_err()).then_some(())
        })?;
        server.process.check()?;
        Ok(server)
    }

    /// Puts a file there; says its sha256 in hex.
    pub fn put(&self, name: &str, content: &[u8]) -> anyhow::Result<String> {
        let path = self.dir.join("files").join(name);
        fs::write(&path, content)?;
        let said = run(Command::new("sha256sum").arg(&path))?;
        Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// Requests so far: status, path, range and bytes of each.
    pub fn requests(&self) -> Vec<String> {
        let text = fs::read_to_string(self.process.log_path()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
