// SPDX-License-Identifier: Apache-2.0
//! Names over TCP: one short-lived thread per connection, few at once, every wait bounded. RFC 7766.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use node_core::net::names::Zone;

use super::answer::{Accepted, Question, Todo, Transport, consider};
use super::server::{Learn, SERVER_TIMEOUT, random_id, record_local, tell};

/// Connections at once, over all networks; more are closed.
const MAX_CONNECTIONS: usize = 8;
/// Questions of one connection.
const MAX_QUESTIONS: usize = 64;
/// An app that says nothing is not waited for longer.
const IDLE: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 128 * 1024;
const PORT: u16 = 53;

pub(super) fn spawn(stream: TcpStream, zone: Arc<Zone>, learn: Arc<dyn Learn>, open: &Arc<AtomicUsize>) {
    if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let of_thread = open.clone();
    let work = move || {
        // A connection that fails ends; the app connects again.
        let _ = converse(stream, &zone, learn.as_ref());
        of_thread.fetch_sub(1, Ordering::SeqCst);
    };
    let builder = std::thread::Builder::new().name("dns-tcp".to_string()).stack_size(STACK_BYTES);
    if builder.spawn(work).is_err() {
        open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn converse(mut stream: TcpStream, zone: &Zone, learn: &dyn Learn) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let from = stream.peer_addr()?.ip();
    for _ in 0..MAX_QUESTIONS {
        let untrusted_message = read(&mut stream)?;
        let reply = match consider(zone, &untrusted_message, Transport::Tcp) {
            Todo::Reply(bytes) => {
                record_local(zone, from, &bytes, learn);
                bytes
            }
            Todo::Forward(question) => {
                let mut refusal = None;
                let answer = zone.servers.iter().find_map(|server| {
                    let answer = ask(*server, &question).ok().flatten()?;
                    if answer.is_failure {
                        refusal = Some(answer.bytes);
                        return None;
                    }
                    Some(answer)
                });
                let resolved = answer.as_ref().map(|answer| &answer.resolved[..]).unwrap_or_default();
                tell(zone, &question, from, resolved, learn);
                let refused = || refusal.or_else(|| question.failure(Transport::Tcp)).unwrap_or_default();
                answer.map_or_else(refused, |answer| answer.bytes)
            }
            Todo::Ignore => return Ok(()),
        };
        write(&mut stream, &reply)?;
    }
    Ok(())
}

fn ask(server: Ipv4Addr, question: &Question) -> io::Result<Option<Accepted>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, PORT)), SERVER_TIMEOUT)?;
    stream.set_read_timeout(Some(SERVER_TIMEOUT))?;
    stream.set_write_timeout(Some(SERVER_TIMEOUT))?;
    let id = random_id();
    write(&mut stream, &question.numbered(id))?;
    Ok(question.accept(id, &read(&mut stream)?))
}

fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}
