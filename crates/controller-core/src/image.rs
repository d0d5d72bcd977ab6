// SPDX-License-Identifier: Apache-2.0
//! Small texts inside resources: image references, quantities, port maps. Parsed once, in [`crate::intent`].

use alloc::string::String;

use model::config::{AclProtocol, DatastoreKind, PortRange};
use model::id::Digest;

/// Longest image reference.
const MAX_REFERENCE_CHARS: usize = 512;
/// Longest repository name the distribution standard's tools take.
const MAX_REPOSITORY_CHARS: usize = 255;
/// Longest tag by the standard.
const MAX_TAG_CHARS: usize = 128;

/// Why a text of a resource cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("is no image reference like hello:1 or hello@sha256:<64 hex digits>")]
    Image,
    #[error("names a registry host; put that into a Registry and name it in spec.registry")]
    ImageHost,
    #[error("is no amount of memory like 256Mi")]
    Memory,
    #[error("is no port map like 8080:80 or 5353:53/udp")]
    PortMap,
    #[error("is no port or range like 80 or 8000-8010")]
    PortRange,
    #[error("is no protocol: tcp, udp, icmp or a number to 255")]
    Protocol,
    #[error("is no registry address like registry.example:5000")]
    Registry,
    #[error("is no URL like https://files.example/path")]
    Server,
    #[error("is no absolute path inside an app like /data")]
    MountPath,
}

/// An image by tag or digest, inside a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// As the content tree's URL carries it.
    pub text: String,
    pub digest: Option<Digest>,
}

/// Reads `repository:tag`, `repository@sha256:…` or `repository` (tag `latest`).
pub fn parse_image(text: &str) -> Result<ImageRef, TextError> {
    if text.is_empty() || text.len() > MAX_REFERENCE_CHARS {
        return Err(TextError::Image);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") => {
            (rest, Some(digest.parse::<Digest>().map_err(|_| TextError::Image)?))
        }
        Some(_) => return Err(TextError::Image),
        None => (text, None),
    };
    let first = rest.split('/').next().unwrap_or_default();
    if rest.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost") {
        return Err(TextError::ImageHost);
    }
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
    };
    let is_tag = |tag: &str| {
        (1..=MAX_TAG_CHARS).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if repository.len() > MAX_REPOSITORY_CHARS
        || !repository.split('/').all(is_part)
        || !tag.is_none_or(is_tag)
    {
        return Err(TextError::Image);
    }
    let mut out = String::from(repository);
    match (&digest, tag) {
        (Some(digest), _) => {
            out.push('@');
            out.push_str(&alloc::format!("{digest}"));
        }
        (None, tag) => {
            out.push(':');
            out.push_str(tag.unwrap_or("latest"));
        }
    }
    Ok(ImageRef { text: out, digest })
}

/// Reads `268435456`, `256Mi`, `1Gi`, `512Ki`, `1M`, `1G`. Never 0.
pub fn parse_memory(text: &str) -> Result<u64, TextError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" | "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(TextError::Memory),
    };
    let number: u64 = digits.parse().map_err(|_| TextError::Memory)?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or(TextError::Memory)
}

/// A port of the node that leads to a port of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMap {
    pub host: u16,
    pub app: u16,
    pub protocol: AclProtocol,
}

/// Reads `8080:80`, `8080:80/tcp`, `53:53/udp`.
pub fn parse_port_map(text: &str) -> Result<PortMap, TextError> {
    let (ports, protocol) = match text.split_once('/') {
        None => (text, AclProtocol::Tcp),
        Some((ports, "tcp")) => (ports, AclProtocol::Tcp),
        Some((ports, "udp")) => (ports, AclProtocol::Udp),
        Some(_) => return Err(TextError::PortMap),
    };
    let (host, app) = ports.split_once(':').ok_or(TextError::PortMap)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|p| *p != 0).ok_or(TextError::PortMap);
    Ok(PortMap { host: port(host)?, app: port(app)?, protocol })
}

/// Reads `80` or `8000-8010`.
pub fn parse_port_range(text: &str) -> Result<PortRange, TextError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|p| *p != 0).ok_or(TextError::PortRange);
    let range = PortRange { first: port(first)?, last: port(last)? };
    if range.first <= range.last { Ok(range) } else { Err(TextError::PortRange) }
}

/// Reads `tcp`, `udp`, `icmp` or a number.
pub fn parse_protocol(text: &str) -> Result<AclProtocol, TextError> {
    Ok(match text {
        "tcp" => AclProtocol::Tcp,
        "udp" => AclProtocol::Udp,
        "icmp" => AclProtocol::Icmp,
        number => AclProtocol::Number(number.parse().map_err(|_| TextError::Protocol)?),
    })
}

/// Splits the URL of a web server into its kind, its scheme with host, and its path.
pub fn parse_server(url: &str) -> Result<(DatastoreKind, String, String), TextError> {
    let (scheme, rest) = url.split_once("://").ok_or(TextError::Server)?;
    let kind = match scheme {
        "http" => DatastoreKind::Http,
        "https" => DatastoreKind::Https,
        _ => return Err(TextError::Server),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_host_char =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_');
    if host.is_empty() || !host.bytes().all(is_host_char) || !is_url_path(path) || path.contains('?') {
        return Err(TextError::Server);
    }
    Ok((kind, alloc::format!("{scheme}://{host}"), path.trim_end_matches('/').into()))
}

/// Whether a text can stand behind the host of a URL.
pub fn is_url_path(path: &str) -> bool {
    path.len() <= MAX_REFERENCE_CHARS
        && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'@' | b'\\'))
}

/// Longest path inside an app: `PATH_MAX` of Linux.
const MAX_PATH_CHARS: usize = 4095;

/// Checks a directory inside an app; the app's own root is none.
pub fn check_mount_path(path: &str) -> Result<(), TextError> {
    let is_path = path.starts_with('/')
        && path.len() <= MAX_PATH_CHARS
        && !path.contains(char::is_control)
        && path.split('/').all(|part| part != "..")
        && path.split('/').any(|part| !part.is_empty() && part != ".");
    if is_path { Ok(()) } else { Err(TextError::MountPath) }
}

/// Splits a registry's address into what a datastore carries: scheme with host, and path.
pub fn parse_registry(url: &str, insecure: bool) -> Result<(String, String), TextError> {
    let mut rest = url;
    let mut is_plain = insecure;
    for (scheme, plain) in [("https://", false), ("docker://", false), ("oci://", false), ("http://", true)] {
        if let Some(tail) = url.strip_prefix(scheme) {
            rest = tail;
            is_plain |= plain;
        }
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_host_char =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_');
    if host.is_empty() || !host.bytes().all(is_host_char) || path.contains([' ', '@', '?', '#']) {
        return Err(TextError::Registry);
    }
    let scheme = if is_plain { "http://" } else { "docker://" };
    Ok((alloc::format!("{scheme}{host}"), path.trim_end_matches('/').into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn image_references_keep_tag_or_digest() {
        let digest = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        for (text, url) in [
            ("hello", "hello:latest"),
            ("team/hello:1.2", "team/hello:1.2"),
            (&format!("hello@{digest}"), &format!("hello@{digest}")),
            (&format!("hello:1@{digest}"), &format!("hello@{digest}")),
        ] {
            assert_eq!(parse_image(text).unwrap().text, url);
        }
        for bad in ["", "Hello", "hello:", "hello@md5:1", "a//b", "hello:-x", "-a", "a b"] {
            assert_eq!(parse_image(bad), Err(TextError::Image), "{bad}");
        }
        assert_eq!(parse_image("registry.example:5000/a:1"), Err(TextError::ImageHost));
    }

    #[test]
    fn quantities_and_ports_are_exact() {
        assert_eq!(parse_memory("256Mi"), Ok(256 << 20));
        assert_eq!(parse_memory("1"), Ok(1));
        for bad in ["", "Mi", "0", "1.5Gi", "-1", "99999999999999999999", "999999999999Gi", "1X"] {
            assert_eq!(parse_memory(bad), Err(TextError::Memory), "{bad}");
        }
        let map = PortMap { host: 8080, app: 80, protocol: AclProtocol::Tcp };
        assert_eq!(parse_port_map("8080:80"), Ok(map));
        for bad in ["80", "0:80", "80:0", "80:80/sctp", "70000:1", ":", "1:2:3"] {
            assert_eq!(parse_port_map(bad), Err(TextError::PortMap), "{bad}");
        }
        assert!(parse_port_range("9-8").is_err());
    }

    #[test]
    fn servers_become_datastores() {
        use DatastoreKind::{Http, Https};
        for (url, parts) in [
            ("https://f.example", (Https, "https://f.example", "")),
            ("http://10.0.0.1:8080/a/b/", (Http, "http://10.0.0.1:8080", "a/b")),
        ] {
            assert_eq!(parse_server(url), Ok((parts.0, parts.1.into(), parts.2.into())));
        }
        for bad in
            ["", "f.example", "ftp://a", "https://", "https://u@f.example", "http://a/b c", "http://a/?x"]
        {
            assert_eq!(parse_server(bad), Err(TextError::Server), "{bad}");
        }
        for (path, good) in [
            ("/data", true),
            ("/a/./b", true),
            ("", false),
            ("/", false),
            ("//.", false),
            ("a", false),
            ("/a/../b", false),
        ] {
            assert_eq!(check_mount_path(path).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn registries_become_datastores() {
        assert_eq!(
            parse_registry("r.example:5000/x/", false),
            Ok(("docker://r.example:5000".into(), "x".into()))
        );
        assert_eq!(
            parse_registry("http://127.0.0.1:5000", false),
            Ok(("http://127.0.0.1:5000".into(), "".into()))
        );
        assert_eq!(parse_registry("r.example", true), Ok(("http://r.example".into(), "".into())));
        assert!(parse_registry("u@r.example", false).is_err());
        assert!(parse_registry("", false).is_err());
    }
}
