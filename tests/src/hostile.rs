// SPDX-License-Identifier: Apache-2.0
//! A registry that nobody should trust: images that break every rule, bodies that break off, certificates of all ages.
//!
//! Images are made in memory; what is wrong with each is said by its [`Flaw`]. Serves plain HTTP or TLS, a thread per
//! connection, without authentication.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Longest wait for a client that has connected.
const PATIENCE: Duration = Duration::from_secs(30);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing: proof that the rest is refused for its flaw alone.
    None,
    /// The layer's body ends half way, each time.
    Truncated,
    /// The layer's bytes are others than its digest says.
    OtherBytes,
    /// A manifest asked for by digest is another one.
    OtherManifest,
    /// The archive is not the one the config names.
    OtherArchive,
    /// The layer is no archive.
    Garbage,
    /// The manifest is no JSON.
    NoManifest,
    /// Entries above, outside and behind links that lead outside.
    Traversal,
    /// Nodes of devices of the host.
    Devices,
    /// Much from little.
    Bomb,
    /// Another machine's program.
    Architecture,
    /// Larger than small disks, and no compression helps.
    Large,
    /// A layer that is hundreds of directories deep.
    Deep,
}

/// Size of what a [`Flaw::Bomb`] unpacks to.
pub const BOMB_BYTES: u64 = 2 << 30;
/// Size of the file of a [`Flaw::Large`].
pub const LARGE_BYTES: usize = 48 << 20;
/// A file that no unpacking may make, wherever it looks for it.
pub const ESCAPED: &str = "selvedge-escaped";

struct Image {
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    flaw: Flaw,
}

/// Runs until the process ends.
#[derive(Debug)]
pub struct Hostile {
    pub address: SocketAddr,
    /// Of the manifests, by the names of the images.
    pub digests: BTreeMap<String, String>,
}

impl Hostile {
    /// Serves the images, each as `NAME:1`; every one of them is `program` (busybox) that sleeps, but for its flaw.
    pub fn start(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        program: &[u8],
        images: &[(&str, Flaw)],
    ) -> anyhow::Result<Hostile> {
        let made = images.iter().map(|(name, flaw)| Ok(((*name).to_owned(), image(program, *flaw)?)));
        let made = Arc::new(made.collect::<anyhow::Result<BTreeMap<String, Image>>>()?);
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let digests = made.iter().map(|(name, image)| (name.clone(), digest(&image.manifest))).collect();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (made, tls) = (made.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    let _ = stream.set_write_timeout(Some(PATIENCE));
                    // a client that refuses us is what tests want to see
                    let _ = serve(stream, tls, &made);
                });
            }
        });
        Ok(Hostile { address, digests })
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    images: &BTreeMap<String, Image>,
) -> anyhow::Result<()> {
    match tls {
        None => Ok(answer_all(stream, images)?),
        Some(config) => Ok(answer_all(StreamOwned::new(ServerConnection::new(config)?, stream), images)?),
    }
}

fn answer_all(stream: impl Read + Write, images: &BTreeMap<String, Image>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (is_head, path) = (words.next() == Some("HEAD"), words.next().unwrap_or("/").to_owned());
        let mut from = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header)?;
            let header = header.trim_end().to_ascii_lowercase();
            if let Some(range) = header.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap_or(0);
            }
            if header.is_empty() {
                break;
            }
        }
        let is_over = answer(stream.get_mut(), images, &path, is_head, from)?;
        stream.get_mut().flush()?;
        if is_over {
            return Ok(());
        }
    }
}

/// Says whether the connection ends with it.
fn answer(
    to: &mut impl Write,
    images: &BTreeMap<String, Image>,
    path: &str,
    is_head: bool,
    from: usize,
) -> io::Result<bool> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let found = match parts[..] {
        ["v2"] => Some((b"{}".to_vec(), "application/json", Flaw::None)),
        ["v2", name, "manifests", reference] => images.get(name).and_then(|image| {
            if reference.starts_with("sha256:") && reference != digest(&image.manifest) {
                return None;
            }
            let other = image.flaw == Flaw::OtherManifest && reference.starts_with("sha256:");
            let bytes = if other { b"{}".to_vec() } else { image.manifest.clone() };
            Some((bytes, MANIFEST, Flaw::None))
        }),
        ["v2", name, "blobs", digest] => images.get(name).and_then(|image| {
            Some((image.blobs.get(digest)?.clone(), "application/octet-stream", image.flaw))
        }),
        _ => None,
    };
    let Some((mut bytes, kind, flaw)) = found else {
        write!(to, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(false);
    };
    let is_layer = bytes.len() > 4096;
    if is_layer && flaw == Flaw::OtherBytes {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
    }
    let total = bytes.len();
    let from = from.min(total);
    let status = if from == 0 { "200 OK" } else { "206 Partial Content" };
    let mut head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", total - from);
    if from > 0 {
        let _ = write!(head, "Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
    }
    head.push_str("\r\n");
    to.write_all(head.as_bytes())?;
    if is_head {
        return Ok(false);
    }
    let is_broken_off = is_layer && flaw == Flaw::Truncated;
    let end = if is_broken_off { from.max(total / 2) } else { total };
    to.write_all(&bytes[from..end])?;
    Ok(is_broken_off)
}

fn image(program: &[u8], flaw: Flaw) -> anyhow::Result<Image> {
    let archive = archive(program, flaw)?;
    let layer = if flaw == Flaw::Garbage { program.to_vec() } else { gzip(&archive)? };
    let diff_id = if flaw == Flaw::Bomb { digest(b"never reached") } else { digest(&archive) };
    let diff_id = if flaw == Flaw::OtherArchive { digest(b"another one") } else { diff_id };
    let architecture = match (flaw, std::env::consts::ARCH) {
        (Flaw::Architecture, _) => "s390x",
        (_, "aarch64") => "arm64",
        _ => "amd64",
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": ["/busybox", "sleep", "100000"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string()
    .into_bytes();
    let layer = if flaw == Flaw::Bomb { bomb()? } else { layer };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&layer), "size": layer.len(),
        }],
    })
    .to_string()
    .into_bytes();
    let manifest = if flaw == Flaw::NoManifest { b"<html>please log in</html>".to_vec() } else { manifest };
    let blobs = BTreeMap::from([(digest(&config), config), (digest(&layer), layer)]);
    Ok(Image { manifest, blobs, flaw })
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

/// An archive with one file of zeros, compressed a member at a time: gzip may hold many, and each is the same.
fn bomb() -> anyhow::Result<Vec<u8>> {
    const MEMBER_BYTES: usize = 64 << 20;
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros")?;
    header.set_size(BOMB_BYTES);
    header.set_mode(0o644);
    header.set_cksum();
    let mut out = gzip(header.as_bytes())?;
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    member.write_all(&vec![0; MEMBER_BYTES])?;
    let member = member.finish()?;
    for _ in 0..BOMB_BYTES / MEMBER_BYTES as u64 {
        out.extend_from_slice(&member);
    }
    Ok(out)
}

fn archive(program: &[u8], flaw: Flaw) -> anyhow::Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    match flaw {
        Flaw::Traversal => {
            let outside = format!("/tmp/{ESCAPED}");
            link(&mut out, "way", tar::EntryType::Symlink, "../../../../../../../../tmp")?;
            link(&mut out, "straight", tar::EntryType::Symlink, "/tmp")?;
            raw(&mut out, &format!("way/{ESCAPED}"), tar::EntryType::Regular, b"out")?;
            raw(&mut out, &format!("straight/{ESCAPED}"), tar::EntryType::Regular, b"out")?;
            raw(&mut out, &format!("../../../../../../../..{outside}"), tar::EntryType::Regular, b"out")?;
            raw(&mut out, &outside, tar::EntryType::Regular, b"out")?;
            link(&mut out, "stolen", tar::EntryType::Link, "../../../../../../../../etc/passwd")?;
        }
        Flaw::Devices => {
            for (name, kind, major, minor) in
                [("dev/disk", tar::EntryType::Block, 8, 0), ("dev/memory", tar::EntryType::Char, 1, 1)]
            {
                let mut header = header(name, kind, 0)?;
                header.set_device_major(major)?;
                header.set_device_minor(minor)?;
                header.set_cksum();
                out.append(&header, io::empty())?;
            }
        }
        Flaw::Large => {
            let mut bytes = vec![0; LARGE_BYTES];
            std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            raw(&mut out, "large", tar::EntryType::Regular, &bytes)?;
        }
        Flaw::Deep => {
            let path = "d/".repeat(2_000);
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            out.append_data(&mut header, path.trim_end_matches('/'), io::empty())?;
        }
        _ => {}
    }
    // layers that are the same would be taken from the store
    raw(&mut out, "flaw", tar::EntryType::Regular, format!("{flaw:?}").as_bytes())?;
    let mut header = header("busybox", tar::EntryType::Regular, program.len() as u64)?;
    header.set_mode(0o755);
    header.set_cksum();
    out.append(&header, program)?;
    Ok(out.into_inner()?)
}

fn header(name: &str, kind: tar::EntryType, size: u64) -> anyhow::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    // not by `set_path`, which refuses what this is about
    let place = &mut header.as_old_mut().name;
    place[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn raw(
    out: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    content: &[u8],
) -> anyhow::Result<()> {
    Ok(out.append(&header(name, kind, content.len() as u64)?, content)?)
}

fn link(out: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, to: &str) -> anyhow::Result<()> {
    let mut header = header(name, kind, 0)?;
    header.set_link_name_literal(to)?;
    header.set_cksum();
    Ok(out.append(&header, io::empty())?)
}
