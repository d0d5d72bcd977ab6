// SPDX-License-Identifier: Apache-2.0
//! Names to addresses, asked from the servers of the node's ports.
//!
//! Our programs are static, so the C library's resolver (and its files and plug-ins) is not there, and the servers come
//! from topic `port-observed`. A stub: it asks recursive servers over UDP, over TCP when the answer is cut, each server
//! in turn, and keeps nothing. Addresses and `localhost` need no server.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Wait for one server before the next is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Times every server is asked.
const ROUNDS: usize = 2;
/// Servers asked at most.
const MAX_SERVERS: usize = 6;
/// Addresses of one name at most: what the HTTP client keeps.
const MAX_ADDRESSES: usize = 16;
/// Largest answer: over UDP without EDNS 512 bytes, over TCP this.
const MAX_ANSWER_BYTES: usize = 16 << 10;
const PORT: u16 = 53;

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("{0:?} is no host name")]
    Name(String),
    #[error("no name server is known to resolve {0}")]
    NoServer(String),
    #[error("no name server answered for {0}")]
    NoAnswer(String),
    #[error("name {0} does not exist")]
    NotFound(String),
}

/// The stub; clones share their servers.
#[derive(Clone, Debug, Default)]
pub struct Dns {
    servers: Arc<RwLock<Vec<SocketAddr>>>,
}

impl Dns {
    /// Servers to ask from now on, the best first.
    pub fn set_servers(&self, servers: impl IntoIterator<Item = Ipv4Addr>) {
        let mut list: Vec<SocketAddr> = Vec::new();
        for server in servers {
            let server = SocketAddr::from((server, PORT));
            if !list.contains(&server) && list.len() < MAX_SERVERS {
                list.push(server);
            }
        }
        *self.servers.write().unwrap_or_else(PoisonError::into_inner) = list;
    }

    /// Addresses of a host, IPv4 before IPv6.
    pub fn lookup(&self, host: &str, timeout: Duration) -> Result<Vec<IpAddr>, ResolveError> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let mut name = Name::from_ascii(host).map_err(|_| ResolveError::Name(host.into()))?;
        name.set_fqdn(true);
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner).clone();
        if servers.is_empty() {
            return Err(ResolveError::NoServer(host.into()));
        }
        let deadline = Instant::now() + timeout;
        let mut exists = false;
        for kind in [RecordType::A, RecordType::AAAA] {
            match self.ask(&servers, &name, kind, deadline) {
                Some(Answer::Addresses(addresses)) if !addresses.is_empty() => return Ok(addresses),
                Some(Answer::Addresses(_)) => exists = true,
                Some(Answer::NoSuchName) => return Err(ResolveError::NotFound(host.into())),
                None => return Err(ResolveError::NoAnswer(host.into())),
            }
        }
        // The name is there and has no address.
        Err(if exists { ResolveError::NotFound(host.into()) } else { ResolveError::NoAnswer(host.into()) })
    }

    fn ask(
        &self,
        servers: &[SocketAddr],
        name: &Name,
        kind: RecordType,
        deadline: Instant,
    ) -> Option<Answer> {
        for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
            let left = deadline.checked_duration_since(Instant::now())?;
            let exchange = || -> io::Result<Option<Answer>> {
                let (id, question) = question(name, kind)?;
                let answer = over_udp(*server, &question, left.min(ATTEMPT), id)?;
                if answer.truncated() {
                    let answer = over_tcp(*server, &question, left.min(ATTEMPT))?;
                    return Ok(Answer::of(&answer, id, name, kind));
                }
                Ok(Answer::of(&answer, id, name, kind))
            };
            // Whatever a server does wrong, the next one is asked.
            if let Ok(Some(answer)) = exchange() {
                return Some(answer);
            }
        }
        None
    }
}

enum Answer {
    Addresses(Vec<IpAddr>),
    NoSuchName,
}

impl Answer {
    /// `None`: no answer to this question, or the server could not answer.
    fn of(message: &Message, id: u16, name: &Name, kind: RecordType) -> Option<Answer> {
        let asked = message.queries().first()?;
        if message.id() != id || asked.name() != name || asked.query_type() != kind {
            return None;
        }
        match message.response_code() {
            ResponseCode::NoError => {}
            ResponseCode::NXDomain => return Some(Answer::NoSuchName),
            _ => return None,
        }
        // A recursive server sends the whole chain of aliases; its end has the addresses.
        let addresses = message.answers().iter().filter_map(|record| match record.data() {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        });
        Some(Answer::Addresses(addresses.take(MAX_ADDRESSES).collect()))
    }
}

/// Addresses in a server's answer to a question for `host`; `None`: it is no answer to it.
pub(crate) fn read_answer(host: &str, untrusted_message: &[u8]) -> Option<Vec<IpAddr>> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    let message = Message::from_vec(untrusted_message).ok()?;
    [RecordType::A, RecordType::AAAA].into_iter().find_map(|kind| {
        match Answer::of(&message, message.id(), &name, kind)? {
            Answer::Addresses(addresses) => Some(addresses),
            Answer::NoSuchName => Some(Vec::new()),
        }
    })
}

fn question(name: &Name, kind: RecordType) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = u16::from_ne_bytes(id);
    let mut message = Message::new();
    message.set_id(id).set_recursion_desired(true).add_query(Query::query(name.clone(), kind));
    Ok((id, message.to_vec().map_err(io::Error::other)?))
}

fn over_udp(server: SocketAddr, question: &[u8], timeout: Duration, id: u16) -> io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    // Connected: the kernel drops what others send.
    socket.connect(server)?;
    socket.send(question)?;
    let deadline = Instant::now() + timeout;
    let mut bytes = [0; 4096];
    loop {
        let left = deadline.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let len = socket.recv(&mut bytes)?;
        // A late answer to an earlier question, or a forged one, does not end the wait.
        if let Ok(message) = Message::from_vec(&bytes[..len])
            && message.id() == id
        {
            return Ok(message);
        }
    }
}

fn over_tcp(server: SocketAddr, question: &[u8], timeout: Duration) -> io::Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), question].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(len)).min(MAX_ANSWER_BYTES)];
    stream.read_exact(&mut bytes)?;
    Message::from_vec(&bytes).map_err(io::Error::other)
}

impl Resolver for Dns {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or_else(|| ureq::Error::BadUri(uri.to_string()))?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let addresses =
            self.lookup(host, *timeout.after).map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let mut out = self.empty();
        for address in addresses {
            out.push(SocketAddr::new(address, port));
        }
        Ok(out)
    }
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.servers.read().unwrap_or_else(PoisonError::into_inner).iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use hickory_proto::op::MessageType;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    /// A server on loopback that answers by a function, as often as asked for.
    fn server(count: usize, answer: impl Fn(&Message) -> Message + Send + 'static) -> Dns {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let dns = Dns::default();
        dns.servers.write().unwrap().push(socket.local_addr().unwrap());
        thread::spawn(move || {
            for _ in 0..count {
                let mut bytes = [0; 512];
                let (len, from) = socket.recv_from(&mut bytes).unwrap();
                let reply = answer(&Message::from_vec(&bytes[..len]).unwrap());
                // Something forged comes first.
                let mut forged = reply.clone();
                forged.set_id(reply.id().wrapping_add(1));
                socket.send_to(&forged.to_vec().unwrap(), from).unwrap();
                socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
            }
        });
        dns
    }

    fn reply(to: &Message) -> Message {
        let mut message = Message::new();
        message.set_id(to.id()).set_message_type(MessageType::Response).add_queries(to.queries().to_vec());
        message
    }

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn addresses_need_no_server() {
        let dns = Dns::default();
        for (host, address) in [("10.1.2.3", "10.1.2.3"), ("[::1]", "::1"), ("LocalHost", "127.0.0.1")] {
            assert_eq!(dns.lookup(host, TIMEOUT).unwrap(), [address.parse::<IpAddr>().unwrap()]);
        }
        assert!(matches!(dns.lookup("a.example", TIMEOUT), Err(ResolveError::NoServer(_))));
        assert!(matches!(dns.lookup(&"a".repeat(70), TIMEOUT), Err(ResolveError::Name(_))));
    }

    #[test]
    fn aliases_lead_to_addresses() {
        let dns = server(1, |question| {
            let mut message = reply(question);
            let name = question.queries()[0].name().clone();
            let alias = Name::from_ascii("b.example.").unwrap();
            message.add_answer(Record::from_rdata(name, 60, RData::CNAME(CNAME(alias.clone()))));
            message.add_answer(Record::from_rdata(alias, 60, RData::A(A::new(192, 0, 2, 7))));
            message
        });
        assert_eq!(dns.lookup("a.example", TIMEOUT).unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_name_that_does_not_exist_is_not_asked_twice() {
        let dns = server(1, |question| {
            let mut message = reply(question);
            message.set_response_code(ResponseCode::NXDomain);
            message
        });
        assert!(matches!(dns.lookup("a.example", TIMEOUT), Err(ResolveError::NotFound(_))));
    }

    #[test]
    fn a_name_without_addresses_is_not_found() {
        let dns = server(2, reply);
        assert!(matches!(dns.lookup("a.example", TIMEOUT), Err(ResolveError::NotFound(_))));
    }
}
