// SPDX-License-Identifier: Apache-2.0
//! Frames: one value and a few file descriptors per packet of a Unix SEQPACKET socket pair.
//!
//! Owns the byte layout. A packet is one tag byte and a body: tag 0, the value in postcard; tag 1, the length of the
//! value (u32, little endian) while the value itself is in a sealed memfd, the packet's last descriptor. The receiver
//! trusts nothing: tag, lengths, seals and the number of descriptors are checked before anything is decoded.
//! Never opens, names or listens on a socket: both ends of every pair are made by init and handed over.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::{MAX_FRAME_FDS, MAX_INLINE_BYTES, MAX_VALUE_BYTES, MEMFD_COST_BYTES};

const TAG_INLINE: u8 = 0;
const TAG_MEMFD: u8 = 1;
/// Tag and the largest inline body.
const MAX_PACKET_BYTES: usize = 1 + MAX_INLINE_BYTES;
/// A memfd is not writable, not growable and not shrinkable any more when it carries a value.
const VALUE_SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the other end of the channel is gone")]
    Closed,
    #[error("the channel did not move in time")]
    TimedOut,
    #[error("value of {bytes} bytes is over the limit of {MAX_VALUE_BYTES}")]
    TooLarge { bytes: usize },
    #[error("{count} file descriptors are over the limit of {MAX_FRAME_FDS}")]
    TooManyFds { count: usize },
    #[error("the packet is no frame: {what}")]
    Malformed { what: &'static str },
    #[error("the value cannot be encoded or decoded")]
    Codec(#[from] postcard::Error),
    #[error("the channel failed in {call}")]
    Os { call: &'static str, source: Errno },
}

/// The bytes of a value as they lie in memory or travel: small ones inline, large ones in a sealed memfd that may be
/// passed on without copying.
#[derive(Clone, Debug)]
pub enum Payload {
    Inline(std::sync::Arc<[u8]>),
    Memfd { fd: std::sync::Arc<OwnedFd>, bytes: usize },
}

impl Payload {
    /// Takes over encoded bytes.
    pub fn new(encoded: Vec<u8>) -> Result<Payload, FrameError> {
        if encoded.len() <= MAX_INLINE_BYTES {
            return Ok(Payload::Inline(encoded.into()));
        }
        let bytes = encoded.len();
        Ok(Payload::Memfd { fd: std::sync::Arc::new(seal_in_memfd(&encoded)?), bytes })
    }

    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Payload, FrameError> {
        Payload::new(postcard::to_allocvec(value)?)
    }

    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        Ok(postcard::from_bytes(&self.bytes()?)?)
    }

    /// The encoded value; read out of the memfd where it is in one.
    pub fn bytes(&self) -> Result<std::borrow::Cow<'_, [u8]>, FrameError> {
        Ok(match self {
            Payload::Inline(bytes) => bytes.as_ref().into(),
            Payload::Memfd { fd, bytes } => read_memfd(fd.as_fd(), *bytes)?.into(),
        })
    }

    pub fn len(&self) -> usize {
        match self {
            Payload::Inline(bytes) => bytes.len(),
            Payload::Memfd { bytes, .. } => *bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it costs to keep: the pages of a memfd are its writer's.
    pub fn cost_bytes(&self) -> usize {
        match self {
            Payload::Inline(bytes) => bytes.len(),
            Payload::Memfd { .. } => MEMFD_COST_BYTES,
        }
    }
}

impl PartialEq for Payload {
    /// Two memfds are equal only when they are the same one: comparing must not cost reading them.
    fn eq(&self, other: &Payload) -> bool {
        match (self, other) {
            (Payload::Inline(a), Payload::Inline(b)) => a == b,
            (Payload::Memfd { fd: a, .. }, Payload::Memfd { fd: b, .. }) => std::sync::Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// One end of a pair.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Channel {
        Channel { fd }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.fd
    }
}

impl Channel {
    /// Two connected ends, both closed on exec.
    pub fn pair() -> Result<(Channel, Channel), FrameError> {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|source| FrameError::Os { call: "socketpair", source })?;
        Ok((Channel { fd: a }, Channel { fd: b }))
    }

    /// Sends, waiting while the channel is full, at most `timeout`.
    pub fn send<T: Serialize + ?Sized>(
        &self,
        value: &T,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(), FrameError> {
        let payload = Payload::encode(value)?;
        let deadline = Instant::now() + timeout;
        while !self.try_send_payload(&payload, fds)? {
            self.wait(PollFlags::OUT, deadline)?;
        }
        Ok(())
    }

    /// Sends unless the channel is full; says whether it was sent.
    pub fn try_send<T: Serialize + ?Sized>(
        &self,
        value: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<bool, FrameError> {
        self.try_send_payload(&Payload::encode(value)?, fds)
    }

    /// The same with an encoded value.
    pub fn try_send_payload(&self, payload: &Payload, fds: &[BorrowedFd<'_>]) -> Result<bool, FrameError> {
        if payload.len() > MAX_VALUE_BYTES {
            return Err(FrameError::TooLarge { bytes: payload.len() });
        }
        if fds.len() > MAX_FRAME_FDS {
            return Err(FrameError::TooManyFds { count: fds.len() });
        }
        let mut all = fds.to_vec();
        let mut packet = Vec::with_capacity(1 + 4);
        match payload {
            Payload::Inline(bytes) => {
                packet.reserve(bytes.len());
                packet.push(TAG_INLINE);
                packet.extend_from_slice(bytes);
            }
            Payload::Memfd { fd, bytes } => {
                packet.push(TAG_MEMFD);
                packet.extend_from_slice(&(*bytes as u32).to_le_bytes());
                all.push(fd.as_fd());
            }
        }
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
            return Err(FrameError::TooManyFds { count: all.len() });
        }
        loop {
            return match rustix::net::sendmsg(
                &self.fd,
                &[std::io::IoSlice::new(&packet)],
                &mut control,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(_) => Ok(true),
                Err(Errno::INTR) => continue,
                // The kernel has no memory for the packet just now: the same as a full channel.
                Err(Errno::AGAIN | Errno::NOBUFS) => Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET) => Err(FrameError::Closed),
                Err(source) => Err(FrameError::Os { call: "sendmsg", source }),
            };
        }
    }

    /// Receives, waiting at most `timeout`.
    pub fn recv<T: DeserializeOwned>(&self, timeout: Duration) -> Result<(T, Vec<OwnedFd>), FrameError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(received) = self.try_recv()? {
                return Ok(received);
            }
            self.wait(PollFlags::IN, deadline)?;
        }
    }

    /// Receives what is there; nothing when nothing is.
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        match self.try_recv_payload()? {
            Some((payload, fds)) => Ok(Some((payload.decode()?, fds))),
            None => Ok(None),
        }
    }

    /// The same without decoding the value.
    pub fn try_recv_payload(&self) -> Result<Option<(Payload, Vec<OwnedFd>)>, FrameError> {
        let mut packet = vec![0_u8; MAX_PACKET_BYTES];
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(
                &self.fd,
                &mut [std::io::IoSliceMut::new(&mut packet)],
                &mut control,
                RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Err(FrameError::Closed),
                Err(source) => return Err(FrameError::Os { call: "recvmsg", source }),
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(FrameError::Malformed { what: "longer than a frame can be" });
        }
        // No frame is empty: nothing means the end.
        let Some((tag, body)) = packet[..received.bytes].split_first() else {
            return Err(FrameError::Closed);
        };
        match *tag {
            TAG_INLINE => Ok(Some((Payload::Inline(body.into()), fds))),
            TAG_MEMFD => {
                let bytes = <[u8; 4]>::try_from(body)
                    .map_err(|_| FrameError::Malformed { what: "no length of the memfd" })?;
                let bytes = u32::from_le_bytes(bytes) as usize;
                let fd = fds.pop().ok_or(FrameError::Malformed { what: "the memfd is missing" })?;
                check_memfd(fd.as_fd(), bytes)?;
                Ok(Some((Payload::Memfd { fd: std::sync::Arc::new(fd), bytes }, fds)))
            }
            _ => Err(FrameError::Malformed { what: "unknown tag" }),
        }
    }

    /// The other end is closed and nothing waits to be received.
    pub fn is_closed(&self) -> bool {
        let mut byte = [0_u8; 1];
        matches!(
            rustix::net::recv(&self.fd, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT),
            Ok((_, 0)) | Err(Errno::CONNRESET)
        )
    }

    /// Ends it for both sides, whoever else holds an end.
    pub fn shut(&self) {
        // One that is closed already needs no end.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    /// Waits until the channel can be read or written, at most to the deadline.
    pub fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), FrameError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FrameError::TimedOut);
        }
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        match poll(&mut [PollFd::new(&self.fd, flags)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(source) => Err(FrameError::Os { call: "poll", source }),
        }
    }
}

fn seal_in_memfd(bytes: &[u8]) -> Result<OwnedFd, FrameError> {
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(FrameError::TooLarge { bytes: bytes.len() });
    }
    let os = |call| move |source| FrameError::Os { call, source };
    let fd = rustix::fs::memfd_create("selvedge-value", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(os("memfd_create"))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest).map_err(os("write"))?;
        rest = &rest[written..];
    }
    rustix::fs::fcntl_add_seals(&fd, VALUE_SEALS).map_err(os("fcntl"))?;
    Ok(fd)
}

fn check_memfd(fd: BorrowedFd<'_>, bytes: usize) -> Result<(), FrameError> {
    if bytes > MAX_VALUE_BYTES {
        return Err(FrameError::TooLarge { bytes });
    }
    let seals = rustix::fs::fcntl_get_seals(fd)
        .map_err(|_| FrameError::Malformed { what: "the large value is in no memfd" })?;
    if !seals.contains(VALUE_SEALS) {
        return Err(FrameError::Malformed { what: "the memfd is not sealed" });
    }
    let stat = rustix::fs::fstat(fd).map_err(|source| FrameError::Os { call: "fstat", source })?;
    if stat.st_size as usize != bytes {
        return Err(FrameError::Malformed { what: "the memfd has another length" });
    }
    Ok(())
}

fn read_memfd(fd: BorrowedFd<'_>, bytes: usize) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; bytes];
    let mut at = 0;
    while at < bytes {
        match rustix::io::pread(fd, &mut out[at..], at as u64) {
            Ok(0) => return Err(FrameError::Malformed { what: "the memfd ends early" }),
            Ok(count) => at += count,
            Err(Errno::INTR) => {}
            Err(source) => return Err(FrameError::Os { call: "pread", source }),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn values_of_every_size_arrive_with_their_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        for size in [0, 1, MAX_INLINE_BYTES - 4, MAX_INLINE_BYTES, MAX_INLINE_BYTES + 1, 1 << 20] {
            let value = vec![7_u8; size];
            let (r, _w) = rustix::pipe::pipe().unwrap();
            a.send(&value, &[r.as_fd()], SOON).unwrap();
            let (got, fds) = b.recv::<Vec<u8>>(SOON).unwrap();
            assert_eq!((got.len(), fds.len()), (size, 1));
            assert_eq!(got, value);
        }
    }

    #[test]
    fn what_is_over_a_limit_is_refused_before_it_is_sent() {
        let (a, b) = Channel::pair().unwrap();
        let large = vec![0_u8; MAX_VALUE_BYTES + 1];
        assert!(matches!(a.try_send(&large, &[]), Err(FrameError::TooLarge { .. })));
        let many = vec![b.as_fd(); MAX_FRAME_FDS + 1];
        assert!(matches!(a.try_send(&1, &many), Err(FrameError::TooManyFds { count: 17 })));
        assert!(b.try_recv::<u8>().unwrap().is_none());
    }

    #[test]
    fn a_full_channel_says_so_and_a_closed_one_too() {
        let (a, b) = Channel::pair().unwrap();
        let value = vec![1_u8; 32 * 1024];
        let mut sent = 0;
        while a.try_send(&value, &[]).unwrap() {
            sent += 1;
        }
        assert!(sent > 0);
        assert!(matches!(a.send(&value, &[], Duration::from_millis(1)), Err(FrameError::TimedOut)));
        drop(a);
        for _ in 0..sent {
            assert!(!b.is_closed());
            b.recv::<Vec<u8>>(SOON).unwrap();
        }
        assert!(b.is_closed());
        assert!(matches!(b.try_recv::<u8>(), Err(FrameError::Closed)));
        assert!(matches!(b.try_send(&1, &[]), Err(FrameError::Closed)));
    }

    #[test]
    fn foreign_bytes_are_refused_without_a_panic() {
        let (a, b) = Channel::pair().unwrap();
        let raw = |bytes: &[u8], fds: &[BorrowedFd<'_>]| {
            let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(17))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            }
            rustix::net::sendmsg(&a, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::empty())
                .unwrap();
        };
        let unsealed = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        let sealed = seal_in_memfd(b"abc").unwrap();
        let (pipe, _w) = rustix::pipe::pipe().unwrap();
        for (bytes, fds) in [
            (&[9_u8, 1][..], &[][..]),
            (&[TAG_MEMFD], &[]),
            (&[TAG_MEMFD, 3, 0, 0, 0], &[]),
            (&[TAG_MEMFD, 0, 0, 0, 0], &[unsealed.as_fd()]),
            (&[TAG_MEMFD, 4, 0, 0, 0], &[sealed.as_fd()]),
            (&[TAG_MEMFD, 255, 255, 255, 255], &[sealed.as_fd()]),
            (&[TAG_MEMFD, 3, 0, 0, 0], &[pipe.as_fd()]),
            (&[TAG_INLINE], &[]),
            (&[TAG_INLINE, 255, 255], &[]),
        ] {
            raw(bytes, fds);
            assert!(b.try_recv::<String>().is_err(), "{bytes:?}");
        }
        raw(&[TAG_MEMFD, 3, 0, 0, 0], &[sealed.as_fd()]);
        assert!(matches!(b.try_recv_payload(), Ok(Some((Payload::Memfd { bytes: 3, .. }, _)))));
    }
}
