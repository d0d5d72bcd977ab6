// SPDX-License-Identifier: Apache-2.0
//! One connection to a server, step by step, so that it can be said which step fails.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

const TIMEOUT: Duration = Duration::from_secs(5);
/// The head of an answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What was learned.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) address: SocketAddr,
    pub(super) days_left: Option<i64>,
    /// Their clock minus ours.
    pub(super) skew_s: Option<i64>,
    pub(super) round_trip: Duration,
}

/// The step that failed.
#[derive(Debug)]
pub(super) enum Failed {
    Address(String),
    Resolve(String),
    Connect(SocketAddr, std::io::Error),
    Roots,
    Handshake(String),
    Answer(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Address(text) => write!(f, "'{text}' is no host:port"),
            Failed::Resolve(text) => write!(f, "{text}"),
            Failed::Connect(address, error) => write!(f, "{address} does not answer: {error}"),
            Failed::Roots => f.write_str("the root certificate is no PEM"),
            Failed::Handshake(text) => write!(f, "TLS: {text}"),
            Failed::Answer(text) => write!(f, "no HTTP answer: {text}"),
        }
    }
}

impl Failed {
    /// What to do about it.
    pub(super) fn next(&self) -> &'static str {
        match self {
            Failed::Address(_) => "write it as https://HOST:PORT",
            Failed::Resolve(_) => "check the name and this machine's DNS (getent hosts NAME)",
            Failed::Connect(_, error) => match error.kind() {
                std::io::ErrorKind::ConnectionRefused => {
                    "nothing listens there: start it with 'selvedge serve', or give the right --server"
                }
                _ => "check the network, routes and firewalls between here and there",
            },
            Failed::Roots => "give the controller's pki/root-certificate.pem with --ca",
            // Roots of two controllers have one name, so one is tried with the key of the other.
            Failed::Handshake(text) if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
                "this root certificate is of another controller: give the right one with --ca"
            }
            Failed::Handshake(text) if text.contains("NotValidForName") => {
                "the certificate has other names: start the controller with --advertise or --san for this one"
            }
            Failed::Handshake(text) if text.contains("Expired") || text.contains("NotValidYet") => {
                "compare both clocks; the controller renews its certificate by itself when its clock is right"
            }
            Failed::Handshake(_) => "something else listens there, or a proxy is in between",
            Failed::Answer(_) => "something else listens there, or a proxy is in between",
        }
    }
}

pub(super) fn reach(host_port: &str, roots_pem: &str) -> Result<Reached, Failed> {
    let (host, port) = host_port.rsplit_once(':').ok_or_else(|| Failed::Address(host_port.into()))?;
    let port: u16 = port.parse().map_err(|_| Failed::Address(host_port.into()))?;
    let host = host.trim_matches(['[', ']']);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(certificate.map_err(|_| Failed::Roots)?).map_err(|_| Failed::Roots)?;
    }
    if roots.is_empty() {
        return Err(Failed::Roots);
    }
    let addresses =
        (host, port).to_socket_addrs().map_err(|error| Failed::Resolve(format!("{host}: {error}")))?;
    let mut failed = Failed::Resolve(format!("{host} has no address"));
    for address in addresses {
        let start = std::time::Instant::now();
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return talk(stream, address, host, roots, start.elapsed()),
            Err(error) => failed = Failed::Connect(address, error),
        }
    }
    Err(failed)
}

fn talk(
    mut socket: TcpStream,
    address: SocketAddr,
    host: &str,
    roots: RootCertStore,
    round_trip: Duration,
) -> Result<Reached, Failed> {
    let broken = |error: &dyn fmt::Display| Failed::Handshake(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| broken(&error))?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|error| broken(&error))?;
    socket.set_read_timeout(Some(TIMEOUT)).map_err(|error| broken(&error))?;
    socket.set_write_timeout(Some(TIMEOUT)).map_err(|error| broken(&error))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(|error| broken(&error))?;
    }
    let days_left =
        connection.peer_certificates().and_then(|chain| controller::examine::days_left_der(chain.first()?));
    let mut stream = Stream::new(&mut connection, &mut socket);
    let head = ask(&mut stream, host).map_err(|error| Failed::Answer(error.to_string()))?;
    Ok(Reached { address, days_left, skew_s: skew(&head), round_trip })
}

fn ask(stream: &mut (impl Read + Write), host: &str) -> std::io::Result<String> {
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() < MAX_HEAD_BYTES && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => break,
            length => head.extend_from_slice(&chunk[..length]),
        }
    }
    if !head.starts_with(b"HTTP/") {
        return Err(std::io::Error::other("what came is not HTTP"));
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// From the `Date` of an answer.
fn skew(head: &str) -> Option<i64> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("date:"))?;
    let theirs = http_date(line.split_once(':')?.1.trim())?;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(theirs - i64::try_from(ours).ok()?)
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = 1 + i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()?;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days from 1970 in the proleptic Gregorian calendar, years beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(http_date("yesterday"), None);
    }
}
