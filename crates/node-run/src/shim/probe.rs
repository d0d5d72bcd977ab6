// SPDX-License-Identifier: Apache-2.0
//! Asks the app's probe: one connection at a time, to the app's own loopback, never waiting.
//!
//! The shim stands in the app's network namespace, so it reaches what the app itself reaches and nothing else. What comes
//! back is foreign: of it only the first line of an HTTP answer is looked at, and never more than
//! [`MAX_ANSWER_BYTES`] read.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use model::desired::{Probe, ProbeKind};
use model::observed::Health;
use model::time::MonoMs;
use node_core::run::health::Watch;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Enough for the first line of any answer.
const MAX_ANSWER_BYTES: usize = 512;
/// While a connection is being made it is looked at this often; on loopback it stands at once or not at all.
const CONNECT_LOOK_MS: u64 = 20;
/// Good answers of HTTP.
const GOOD: std::ops::RangeInclusive<u16> = 200..=399;

/// The probe of the app that runs.
#[derive(Debug)]
pub(super) struct Prober {
    watch: Watch,
    asking: Option<Asking>,
}

#[derive(Debug)]
struct Asking {
    socket: OwnedFd,
    give_up_at: MonoMs,
    is_sent: bool,
    look_at: MonoMs,
    answer: Vec<u8>,
}

/// What became of a step.
enum Step {
    Waits,
    /// The socket is to be watched for an answer.
    Sent(OwnedFd),
    Answered(Result<(), String>),
}

impl Prober {
    pub(super) fn new(probe: Probe, now: MonoMs) -> Prober {
        Prober { watch: Watch::new(probe, now), asking: None }
    }

    pub(super) fn health(&self) -> Health {
        self.watch.health().clone()
    }

    pub(super) fn deadline(&self) -> MonoMs {
        match &self.asking {
            None => self.watch.ask_at(),
            Some(asking) if asking.is_sent => asking.give_up_at,
            Some(asking) => asking.look_at.min(asking.give_up_at),
        }
    }

    /// Does what is due, or takes what came. `watch` and `unwatch` have the service look at a socket for an answer.
    /// True when the health is another now.
    pub(super) fn advance(
        &mut self,
        now: MonoMs,
        is_readable: bool,
        mut watch: impl FnMut(Option<OwnedFd>),
    ) -> bool {
        let probe = self.watch.probe().clone();
        let step = match &mut self.asking {
            None if self.watch.ask_at() <= now => match Asking::begin(&probe, now) {
                Ok(asking) => self.asking.insert(asking).look(&probe, now),
                Err(errno) => Step::Answered(Err(format!("no socket: {errno}"))),
            },
            None => Step::Waits,
            Some(asking) if is_readable => asking.take(),
            Some(asking) if asking.give_up_at <= now => {
                Step::Answered(Err(format!("no answer within {} s", probe.timeout_s)))
            }
            Some(asking) if !asking.is_sent && asking.look_at <= now => asking.look(&probe, now),
            Some(_) => Step::Waits,
        };
        match step {
            Step::Waits => false,
            Step::Sent(socket) => {
                watch(Some(socket));
                false
            }
            Step::Answered(answer) => {
                watch(None);
                self.asking = None;
                let answer = answer.map_err(|why| format!("{} {why}", place(&probe)));
                self.watch.answered(now, answer)
            }
        }
    }
}

fn place(probe: &Probe) -> String {
    match &probe.kind {
        ProbeKind::Tcp => format!("tcp :{}", probe.port),
        ProbeKind::Http { path } => format!("http :{}{path}", probe.port),
    }
}

impl Asking {
    fn begin(probe: &Probe, now: MonoMs) -> Result<Asking, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        let give_up_at = now.plus_s(u64::from(probe.timeout_s));
        Ok(Asking { socket, give_up_at, is_sent: false, look_at: now, answer: Vec::new() })
    }

    /// Connects, or sees whether it is connected, and then asks.
    fn look(&mut self, probe: &Probe, now: MonoMs) -> Step {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, probe.port);
        match rustix::net::connect(&self.socket, &address) {
            Ok(()) | Err(Errno::ISCONN) => {}
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => {
                self.look_at = now.plus_ms(CONNECT_LOOK_MS);
                return Step::Waits;
            }
            Err(errno) => return Step::Answered(Err(refusal(errno))),
        }
        let path = match &probe.kind {
            ProbeKind::Tcp => return Step::Answered(Ok(())),
            ProbeKind::Http { path } => path,
        };
        let question = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: selvedge-probe\r\nConnection: close\r\n\r\n",
            probe.port
        );
        // An empty buffer takes it whole.
        match rustix::net::send(&self.socket, question.as_bytes(), rustix::net::SendFlags::NOSIGNAL) {
            Ok(count) if count == question.len() => {}
            Ok(_) => return Step::Answered(Err("takes no question".into())),
            Err(errno) => return Step::Answered(Err(refusal(errno))),
        }
        self.is_sent = true;
        match self.socket.as_fd().try_clone_to_owned() {
            Ok(socket) => Step::Sent(socket),
            Err(error) => Step::Answered(Err(format!("cannot be watched: {error}"))),
        }
    }

    fn take(&mut self) -> Step {
        let mut buffer = [0; MAX_ANSWER_BYTES];
        let room = MAX_ANSWER_BYTES - self.answer.len();
        match rustix::io::read(&self.socket, &mut buffer[..room]) {
            Ok(count) => {
                self.answer.extend_from_slice(&buffer[..count]);
                let is_whole = count == 0 || self.answer.contains(&b'\n') || count == room;
                if is_whole { Step::Answered(judge(&self.answer)) } else { Step::Waits }
            }
            Err(Errno::AGAIN | Errno::INTR) => Step::Waits,
            Err(errno) => Step::Answered(Err(refusal(errno))),
        }
    }
}

fn refusal(errno: Errno) -> String {
    match errno {
        Errno::CONNREFUSED => "refuses connections".into(),
        Errno::CONNRESET | Errno::PIPE => "closes the connection".into(),
        errno => format!("fails: {errno}"),
    }
}

/// The status of an HTTP answer (RFC 9112 §4).
fn judge(untrusted_answer: &[u8]) -> Result<(), String> {
    let line = untrusted_answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let is_http = words.next().is_some_and(|version| version.starts_with(b"HTTP/1."));
    let status = words.next().and_then(|word| std::str::from_utf8(word).ok()?.trim_end().parse::<u16>().ok());
    match status.filter(|status| is_http && (100..1000).contains(status)) {
        Some(status) if GOOD.contains(&status) => Ok(()),
        Some(status) => Err(format!("answers {status}")),
        None if untrusted_answer.is_empty() => Err("answers nothing".into()),
        None => Err("answers no HTTP".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::desired::ProbeAction;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn answers_are_judged_by_their_status() {
        for (answer, good) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], true),
            (b"HTTP/1.0 302 Found\r\n", true),
            (b"HTTP/1.1 204\r\n", true),
            (b"HTTP/1.1 400 Bad Request\r\n", false),
            (b"HTTP/1.1 503 Service Unavailable\r\n", false),
            (b"HTTP/2 200\n", false),
            (b"200 OK", false),
            (b"HTTP/1.1 ok", false),
            (b"HTTP/1.1 99999 OK", false),
            (b"", false),
            (b"\xff\xfe\xfd", false),
        ] {
            assert_eq!(judge(answer).is_ok(), good, "{answer:?}");
        }
    }

    fn ask(kind: ProbeKind, port: u16) -> Health {
        let action = ProbeAction::Report;
        let probe = Probe { kind, port, every_s: 1, timeout_s: 5, failures: 1, grace_s: 1, action };
        let mut prober = Prober::new(probe, MonoMs(10_000));
        let mut now = 20_000;
        let mut socket = None;
        while !prober.advance(MonoMs(now), socket.is_some(), |watched| socket = watched) {
            // The peer is another thread of this process.
            std::thread::yield_now();
            now += 1;
            assert!(now < 10_000_000, "{prober:?}");
        }
        prober.health()
    }

    #[test]
    fn a_listening_port_is_good_and_a_closed_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(ask(ProbeKind::Tcp, port), Health::Good);
        drop(listener);
        assert_eq!(ask(ProbeKind::Tcp, port), Health::Bad(format!("tcp :{port} refuses connections")));
    }

    #[test]
    fn an_http_server_is_asked_for_the_path() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 256];
            let count = stream.read(&mut question).unwrap();
            stream.write_all(b"HTTP/1.1 500 No\r\n\r\n").unwrap();
            String::from_utf8_lossy(&question[..count]).into_owned()
        });
        let health = ask(ProbeKind::Http { path: "/ready".into() }, port);
        assert_eq!(health, Health::Bad(format!("http :{port}/ready answers 500")));
        assert!(server.join().unwrap().starts_with("GET /ready HTTP/1.1\r\n"));
    }
}
