// SPDX-License-Identifier: Apache-2.0
//! Netlink: building messages, reading attributes, and a blocking socket that waits for its answer.
//!
//! Written here and not taken from a library because rtnetlink is the small part of what we say: nf_tables has no
//! library for its batches, and both share this page. Every wait ends after [`ANSWER_TIMEOUT`].

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The kernel answers at once; a socket handed in by someone else may never.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Room for a batch of rules in one datagram.
/// Room for what comes while the main loop is busy.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;
const SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Datagrams of one dump; 1024 interfaces need about 60.
const MAX_DATAGRAMS: usize = 4096;
/// A dump that others disturbed is asked again this often.
const DUMP_TRIES: usize = 5;

/// Errors are small negative numbers.
const MAX_ERRNO: i32 = 4095;

const HEADER_BYTES: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const FLAG_DUMP_DISTURBED: u16 = 0x10;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot speak with the kernel")]
    Socket(#[source] Errno),
    #[error("the socket is not one of routes")]
    NotRoute,
    #[error("the kernel refused")]
    Refused(#[source] Errno),
    #[error("the kernel's answer is malformed")]
    Malformed,
    #[error("others change what is being listed all the time")]
    Disturbed,
}

impl NetlinkError {
    pub fn refusal(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused(errno) => Some(*errno),
            _ => None,
        }
    }
}

/// One message in the making.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `fixed` is what stands between the netlink header and the attributes.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut message = Message { bytes: vec![0; HEADER_BYTES] };
        message.bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        message.raw(fixed);
        message
    }

    /// Bytes without an attribute around them.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad()
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(&value[..usize::from(length) - 4])
    }

    /// In the byte order of the network, as nf_tables wants it.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// In the byte order of the machine, as rtnetlink wants it.
    pub(crate) fn ne32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Message)) -> &mut Self {
        let start = self.bytes.len();
        self.attr(kind | NESTED, &[]);
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// One attribute inside another.
    pub(crate) fn nest_attr(&mut self, kind: u16, inner_kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |inner| {
            inner.attr(inner_kind, value);
        })
    }

    fn finish(&mut self, seq: u32, more_flags: u16) -> &[u8] {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | more_flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        &self.bytes
    }
}

/// One message of an answer, without its netlink header.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
}

/// Attributes behind a fixed part of `skip` bytes. What is malformed ends the walk.
pub(crate) fn attributes(bytes: &[u8], skip: usize) -> Attributes<'_> {
    Attributes { rest: bytes.get(skip.next_multiple_of(4)..).unwrap_or_default() }
}

#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes(self.rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.rest.get(2..4)?.try_into().ok()?) & KIND_MASK;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    pub(crate) fn value_of(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(k, _)| *k == kind).map(|(_, value)| value)
    }
}

pub(crate) fn read_u32(value: &[u8]) -> Option<u32> {
    value.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(crate) fn read_ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

pub(crate) fn read_text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
}

impl Socket {
    /// Socket for links, addresses and routes of the caller's network namespace.
    pub(crate) fn route() -> Result<Socket, NetlinkError> {
        Socket::open(None)
    }

    /// Socket for nf_tables of the caller's network namespace.
    pub(crate) fn netfilter() -> Result<Socket, NetlinkError> {
        Socket::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Socket, NetlinkError> {
        let fd =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
                .map_err(NetlinkError::Socket)?;
        let socket = Socket::with_timeouts(fd)?;
        // Beyond the system's limit: needs the capability we have. Without it large rulesets fail with their own error.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket.fd, SEND_BUFFER_BYTES);
        Ok(socket)
    }

    /// Takes a socket someone else opened in another network namespace.
    pub(crate) fn from_untrusted(fd: OwnedFd) -> Result<Socket, NetlinkError> {
        let is_route = sockopt::socket_domain(&fd) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(&fd) == Ok(None);
        if is_route { Socket::with_timeouts(fd) } else { Err(NetlinkError::NotRoute) }
    }

    fn with_timeouts(fd: OwnedFd) -> Result<Socket, NetlinkError> {
        for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&fd, direction, Some(ANSWER_TIMEOUT))
                .map_err(NetlinkError::Socket)?;
        }
        Ok(Socket { fd, seq: 0 })
    }

    /// Joins multicast groups, given as a bit mask. Such a socket is for listening only.
    pub(crate) fn listen(groups: u32) -> Result<Socket, NetlinkError> {
        let socket = Socket::route()?;
        rustix::net::bind(&socket.fd, &SocketAddrNetlink::new(0, groups)).map_err(NetlinkError::Socket)?;
        Ok(socket)
    }

    /// Listens to what netfilter tells of its own accord.
    pub(crate) fn netfilter_listen(groups: u32) -> Result<Socket, NetlinkError> {
        let socket = Socket::netfilter()?;
        socket.join(groups)?;
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket.fd, RECEIVE_BUFFER_BYTES);
        Ok(socket)
    }

    /// Listens to these groups, and no more to others.
    pub(crate) fn join(&self, groups: u32) -> Result<(), NetlinkError> {
        // Once it has a number the kernel wants to hear it again.
        let own = rustix::net::getsockname(&self.fd).map_err(NetlinkError::Socket)?;
        let number = SocketAddrNetlink::try_from(own).map_or(0, |own| own.pid());
        rustix::net::bind(&self.fd, &SocketAddrNetlink::new(number, groups)).map_err(NetlinkError::Socket)
    }

    /// A second descriptor of the same socket, to wait on.
    pub(crate) fn try_clone_fd(&self) -> Result<OwnedFd, NetlinkError> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map_err(NetlinkError::Socket)
    }

    /// Takes what was told, without waiting, until there is no more or `limit` datagrams were read. Says whether some was
    /// lost because nobody read it in time.
    pub(crate) fn told(&self, limit: usize, mut each: impl FnMut(u16, &[u8])) -> bool {
        let mut buffer = vec![0_u8; RECEIVE_BYTES];
        let mut is_some_lost = false;
        for _ in 0..limit {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            let length = match rustix::net::recv(&self.fd, &mut buffer[..], flags) {
                Ok((_, length)) => length,
                Err(Errno::NOBUFS) => {
                    is_some_lost = true;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(header) = Header::read(rest) {
                let Some(body) = rest.get(HEADER_BYTES..header.length) else { break };
                each(header.kind, body);
                rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        is_some_lost
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends one message and waits for the kernel's consent.
    pub(crate) fn request(&mut self, mut message: Message) -> Result<(), NetlinkError> {
        let seq = self.next_seq();
        self.send(message.finish(seq, ACK))?;
        self.until_ack(seq, seq)
    }

    /// Sends messages as one datagram that the kernel takes as a whole or not at all (nf_tables).
    pub(crate) fn batch(&mut self, messages: Vec<Message>) -> Result<(), NetlinkError> {
        let first = self.seq.wrapping_add(1);
        // The frame's last message is not acknowledged by all kernels, the one before it is.
        let acked = messages.len().saturating_sub(2);
        let (mut bytes, mut acked_seq) = (Vec::new(), first);
        for (index, mut message) in messages.into_iter().enumerate() {
            let seq = self.next_seq();
            if index == acked {
                acked_seq = seq;
            }
            bytes.extend_from_slice(message.finish(seq, if index == acked { ACK } else { 0 }));
        }
        self.send(&bytes)?;
        self.until_ack(first, acked_seq)
    }

    /// Asks for a list.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Answer>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let seq = self.next_seq();
            self.send(message.clone().finish(seq, DUMP))?;
            let (mut answers, mut is_disturbed) = (Vec::new(), false);
            let mut is_done = false;
            for _ in 0..MAX_DATAGRAMS {
                self.receive(|header, body| {
                    if header.seq != seq {
                        return Ok(());
                    }
                    is_disturbed |= header.flags & FLAG_DUMP_DISTURBED != 0;
                    match header.kind {
                        KIND_DONE => is_done = true,
                        KIND_ERROR => {
                            is_done = true;
                            refusal(body)?;
                        }
                        _ => answers.push(Answer { body: body.to_vec() }),
                    }
                    Ok(())
                })?;
                if is_done {
                    break;
                }
            }
            if is_done && !is_disturbed {
                return Ok(answers);
            }
        }
        Err(NetlinkError::Disturbed)
    }

    fn until_ack(&mut self, first: u32, last: u32) -> Result<(), NetlinkError> {
        let (mut is_done, mut refused) = (false, None);
        while !is_done {
            self.receive(|header, body| {
                let place = header.seq.wrapping_sub(first);
                if header.kind != KIND_ERROR || place > last.wrapping_sub(first) {
                    return Ok(());
                }
                if let Err(error) = refusal(body) {
                    refused.get_or_insert(error);
                    // Failing as a whole is reported on the first message, the only report there is then.
                    is_done |= place == 0;
                }
                is_done |= header.seq == last;
                Ok(())
            })?;
        }
        refused.map_or(Ok(()), Err)
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// With the kernel's address written out, the kernel asks for our privileges and not for those of the process that
    /// opened the socket.
    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NetlinkError::Socket(errno)),
            }
        }
    }

    fn receive(
        &self,
        mut each: impl FnMut(&Header, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let mut buffer = vec![0_u8; RECEIVE_BYTES];
        let length = loop {
            match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length)) => break length,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NetlinkError::Socket(errno)),
            }
        };
        let mut rest = buffer.get(..length).ok_or(NetlinkError::Malformed)?;
        while !rest.is_empty() {
            let header = Header::read(rest).ok_or(NetlinkError::Malformed)?;
            let body = rest.get(HEADER_BYTES..header.length).ok_or(NetlinkError::Malformed)?;
            each(&header, body)?;
            rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    seq: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Header> {
        let length = usize::try_from(read_u32(bytes)?).ok()?;
        let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let header = Header { length, kind: half(4)?, flags: half(6)?, seq: read_u32(bytes.get(8..)?)? };
        (length >= HEADER_BYTES).then_some(header)
    }
}

/// Reads an error message; 0 is consent.
fn refusal(body: &[u8]) -> Result<(), NetlinkError> {
    match read_u32(body).ok_or(NetlinkError::Malformed)?.cast_signed() {
        0 => Ok(()),
        code if (-MAX_ERRNO..0).contains(&code) => {
            Err(NetlinkError::Refused(Errno::from_raw_os_error(-code)))
        }
        _ => Err(NetlinkError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_are_read_back() {
        let mut message = Message::new(1, 0, &[9; 5]);
        message.text(3, "eth0").nest(18, |inner| {
            inner.attr(1, b"abc").be32(2, 7);
        });
        let body = &message.finish(1, ACK)[HEADER_BYTES..];
        let all: Vec<_> = attributes(body, 5).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(read_text(all[0].1), "eth0");
        assert_eq!(attributes(all[1].1, 0).value_of(2), Some(&[0, 0, 0, 7][..]));
        assert_eq!(attributes(all[1].1, 0).value_of(1), Some(&b"abc"[..]));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_walked(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), skip in 0..300_usize) {
            let _ = attributes(&bytes, skip).map(|(_, value)| value.len()).sum::<usize>();
            let _ = Header::read(&bytes).map(|h| h.length);
            let _ = refusal(&bytes);
        }
    }
}
