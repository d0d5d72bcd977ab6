// SPDX-License-Identifier: Apache-2.0
//! Files from a mirror, kept in a cache by their hash.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::lock::Package;
use crate::step;

/// Longest silence of a mirror.
const SILENCE: Duration = Duration::from_secs(30);
/// No package and no list is larger.
const BYTES_MAX: u64 = 512 << 20;

/// Gets a file whole. `None`: the mirror does not have it.
pub(crate) fn get(url: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let mut answer = agent.get(url).call().with_context(|| format!("cannot reach {url}"))?;
    match answer.status().as_u16() {
        200 => {}
        404 | 410 => return Ok(None),
        status => bail!("{url} answers with status {status}"),
    }
    let mut bytes = Vec::new();
    let body = answer.body_mut().as_reader();
    body.take(BYTES_MAX).read_to_end(&mut bytes).with_context(|| format!("reading {url}"))?;
    Ok(Some(bytes))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A package from the cache, else from the mirror.
pub(crate) fn package(package: &Package, mirror: &str, cache: &Path) -> anyhow::Result<Vec<u8>> {
    let path = place(package, cache);
    if let Ok(bytes) = fs::read(&path)
        && sha256(&bytes) == package.sha256
    {
        return Ok(bytes);
    }
    let (name, version) = (&package.name, &package.version);
    step(format_args!("getting {name} {version} ({} KiB)", package.bytes / 1024));
    let url = format!("{}/{}", mirror.trim_end_matches('/'), package.file);
    let Some(bytes) = get(&url)? else {
        bail!(
            "{name} {version} has vanished from {mirror} and is not in the cache {}: renew the lock with selvedge image \
             lock, or bring the file with sha256 {} to {}",
            cache.display(),
            package.sha256,
            path.display()
        );
    };
    let found = sha256(&bytes);
    if found != package.sha256 {
        bail!("{name} {version} of {url} has the sha256 {found}, but the lock says {}", package.sha256);
    }
    keep(&path, &bytes)?;
    Ok(bytes)
}

fn place(package: &Package, cache: &Path) -> PathBuf {
    cache.join("packages").join(format!("{}_{}.deb", package.name, package.sha256))
}

/// Whole or not there.
pub(crate) fn keep(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().context("a file has a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let fresh = tempfile::NamedTempFile::new_in(dir)?;
    fs::write(fresh.path(), bytes).with_context(|| format!("cannot write below {}", dir.display()))?;
    fresh.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(bytes: &[u8]) -> Package {
        Package {
            name: "x".into(),
            architecture: "all".into(),
            version: "1".into(),
            sha256: sha256(bytes),
            bytes: bytes.len() as u64,
            file: "pool/x.deb".into(),
        }
    }

    /// A mirror that answers once.
    fn mirror(answer: &'static str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            let _ = std::io::Read::read(&mut stream, &mut buffer);
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        });
        url
    }

    #[test]
    fn a_package_comes_from_the_cache_without_a_mirror() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(b"content");
        keep(&place(&wanted, dir.path()), b"content").unwrap();
        assert_eq!(package(&wanted, "http://127.0.0.1:1", dir.path()).unwrap(), b"content");
    }

    #[test]
    fn another_hash_is_refused_by_name_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(b"content");
        let url = mirror("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nCONTENT");
        let error = package(&wanted, &url, dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("x 1 of ") && error.contains("but the lock says"), "{error}");
        assert!(!place(&wanted, dir.path()).exists());
    }

    #[test]
    fn a_version_that_vanished_is_said_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let url = mirror("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let error = package(&wanted(b"content"), &url, dir.path()).unwrap_err().to_string();
        assert!(error.contains("x 1 has vanished") && error.contains("selvedge image lock"), "{error}");
    }
}
