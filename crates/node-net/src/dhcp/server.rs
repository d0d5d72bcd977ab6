// SPDX-License-Identifier: Apache-2.0
//! The sockets of the DHCP server: one for each bridge, bound to it, one thread for all. Everything is bounded by what the
//! rules for frames let through; a datagram that is no message is dropped.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use node_core::net::dhcp::message::{MAX_MESSAGE_BYTES, Message};
use node_core::net::dhcp::server::{Scope, answer};
use node_core::net::dhcp::{CLIENT_PORT, SERVER_PORT};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use socket2::{Domain, Protocol, Socket, Type};

/// Datagrams read from one socket before the others have their turn.
const DATAGRAMS_PER_TURN: usize = 32;

/// Handle of the server; its thread ends with it.
#[derive(Debug)]
pub struct DhcpServer {
    order: Arc<Order>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Order {
    scopes: Mutex<Option<BTreeMap<String, Scope>>>,
    is_over: AtomicBool,
    wake: OwnedFd,
    faults: Mutex<BTreeMap<String, String>>,
}

impl DhcpServer {
    pub fn start() -> io::Result<DhcpServer> {
        let order = Arc::new(Order {
            scopes: Mutex::new(None),
            is_over: false.into(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            faults: Mutex::default(),
        });
        let of_thread = order.clone();
        let thread = std::thread::Builder::new().name("dhcp".to_string()).spawn(move || serve(&of_thread))?;
        Ok(DhcpServer { order, thread: Some(thread) })
    }

    /// Serves exactly these networks, by bridge. One whose bridge is not there yet is tried again at the next call.
    pub fn set_scopes(&self, scopes: &BTreeMap<String, Scope>) {
        *lock(&self.order.scopes) = Some(scopes.clone());
        self.order.wake();
    }

    /// Networks whose addresses are not handed out, by bridge, and why.
    pub fn faults(&self) -> BTreeMap<String, String> {
        lock(&self.order.faults).clone()
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        self.order.is_over.store(true, Ordering::SeqCst);
        self.order.wake();
        // Its sockets are free when this returns.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Order {
    fn wake(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Live {
    scope: Scope,
    socket: UdpSocket,
}

fn serve(order: &Order) {
    let mut live: BTreeMap<String, Live> = BTreeMap::new();
    loop {
        let mut fds = vec![PollFd::new(&order.wake, PollFlags::IN)];
        fds.extend(live.values().map(|one| PollFd::from_borrowed_fd(one.socket.as_fd(), PollFlags::IN)));
        let _ = poll(&mut fds, None);
        let mut count = [0; 8];
        let _ = rustix::io::read(&order.wake, &mut count);
        if order.is_over.load(Ordering::SeqCst) {
            return;
        }
        if let Some(scopes) = lock(&order.scopes).take() {
            *lock(&order.faults) = adopt(&mut live, scopes);
        }
        live.retain(|_, one| reply(one));
    }
}

/// Keeps the sockets of networks that stay.
fn adopt(live: &mut BTreeMap<String, Live>, scopes: BTreeMap<String, Scope>) -> BTreeMap<String, String> {
    live.retain(|bridge, _| scopes.contains_key(bridge));
    let mut faults = BTreeMap::new();
    for (bridge, scope) in scopes {
        match live.get_mut(&bridge) {
            Some(one) => one.scope = scope,
            None => match listen(&bridge) {
                Ok(socket) => {
                    live.insert(bridge, Live { scope, socket });
                }
                Err(error) => {
                    let text = format!("addresses are not handed out on {}: {error}", scope.gateway);
                    faults.insert(bridge, text);
                }
            },
        }
    }
    faults
}

/// A socket that hears broadcasts on this link, and nothing from others.
fn listen(link: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(link.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).into())?;
    Ok(socket.into())
}

/// Answers what is there. False: the link of the socket is gone.
fn reply(one: &Live) -> bool {
    let mut buffer = [0; MAX_MESSAGE_BYTES];
    for _ in 0..DATAGRAMS_PER_TURN {
        let (length, from) = match one.socket.recv_from(&mut buffer) {
            Ok((length, SocketAddr::V4(from))) => (length, *from.ip()),
            Ok((_, SocketAddr::V6(_))) => continue,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        let Some(asked) = Message::parse(&buffer[..length]) else { continue };
        if let Some(reply) = answer(&one.scope, &asked, from) {
            let to = SocketAddrV4::new(reply.to.unwrap_or(Ipv4Addr::BROADCAST), CLIENT_PORT);
            // What is lost is asked for again.
            let _ = one.socket.send_to(&reply.encode(), to);
        }
    }
    true
}
