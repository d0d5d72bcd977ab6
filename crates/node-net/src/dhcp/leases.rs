// SPDX-License-Identifier: Apache-2.0
//! Addresses from outside: asks DHCP servers for apps on switches that have no rights to ask themselves, and for the ports of a
//! box that is ours.
//!
//! An app's socket was opened inside the app's network namespace, so what is said travels the app's own way and is judged by
//! its rules. One thread drives all clients; the main loop is told by a descriptor. A client whose app is gone is
//! dropped, and with it the last hold on the app's namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use model::net::Mac;
use model::time::{MonoMs, Now, Wall};
use node_core::net::dhcp::client::{Client, Input, Lease, Output};
use node_core::net::dhcp::message::MAX_MESSAGE_BYTES;
use node_core::net::dhcp::{CLIENT_PORT, SERVER_PORT};
use reconcile::{Chance, Machine, Outbox};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::kernel::Kernel;
use crate::netlink::Socket;

/// Datagrams read from one socket before the others have their turn.
const DATAGRAMS_PER_TURN: usize = 16;

/// An interface, as far as an address matters to it.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    /// In its own network namespace.
    pub(crate) name: String,
    pub(crate) mac: Mac,
    /// It takes a way out when it is told one.
    pub(crate) has_default: bool,
    /// Of the way out; 0: the kernel's.
    pub(crate) metric: u32,
    /// Any other address on it is an old one.
    pub(crate) is_ours_alone: bool,
}

/// An interface that needs an address from outside.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) seat: Seat,
    /// Opened inside the network namespace of the interface.
    pub(crate) datagrams: OwnedFd,
    pub(crate) routes: Socket,
}

/// Handle of the clients; their thread ends with it.
#[derive(Debug)]
pub(crate) struct Leases {
    order: Arc<Order>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Order {
    /// New ones by node's end, and all that shall be.
    asked: Mutex<BTreeMap<String, Asked>>,
    wanted: Mutex<Vec<String>>,
    held: Mutex<BTreeMap<String, Lease>>,
    is_over: AtomicBool,
    /// For the thread, and for the main loop.
    wake: OwnedFd,
    changed: OwnedFd,
}

impl Leases {
    pub(crate) fn start() -> io::Result<Leases> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let order = Arc::new(Order {
            asked: Mutex::default(),
            wanted: Mutex::default(),
            held: Mutex::default(),
            is_over: false.into(),
            wake: event()?,
            changed: event()?,
        });
        let of_thread = order.clone();
        let thread =
            std::thread::Builder::new().name("leases".to_string()).spawn(move || serve(&of_thread))?;
        Ok(Leases { order, thread: Some(thread) })
    }

    /// Begins to ask for an interface, instead of an earlier one of the same name.
    pub(crate) fn ask(&self, link: &str, asked: Asked) {
        lock(&self.order.held).remove(link);
        lock(&self.order.wanted).push(link.to_string());
        lock(&self.order.asked).insert(link.to_string(), asked);
        signal(&self.order.wake);
    }

    /// Goes on for these interfaces only.
    pub(crate) fn keep(&self, is_wanted: impl Fn(&str) -> bool) {
        let mut wanted = lock(&self.order.wanted);
        let before = wanted.len();
        wanted.retain(|link| is_wanted(link));
        if wanted.len() != before {
            signal(&self.order.wake);
        }
    }

    pub(crate) fn held(&self) -> BTreeMap<String, Lease> {
        lock(&self.order.held).clone()
    }

    /// Can be read when leases have changed; [`Leases::seen`] makes it quiet again.
    pub(crate) fn fd(&self) -> io::Result<OwnedFd> {
        self.order.changed.try_clone()
    }

    /// Says whether there was anything to see.
    pub(crate) fn seen(&self) -> bool {
        rustix::io::read(&self.order.changed, &mut [0; 8]).is_ok()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.order.is_over.store(true, Ordering::SeqCst);
        signal(&self.order.wake);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn signal(event: &OwnedFd) {
    // A full counter wakes as well.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Live {
    seat: Seat,
    client: Client,
    socket: UdpSocket,
    routes: Socket,
    lease: Option<Lease>,
}

fn serve(order: &Order) {
    let started = Instant::now();
    let now = || Now {
        mono: MonoMs(started.elapsed().as_millis().try_into().unwrap_or(u64::MAX)),
        wall: Wall::Unset,
    };
    let mut live: BTreeMap<String, Live> = BTreeMap::new();
    loop {
        wait(order, &live, now().mono);
        if order.is_over.load(Ordering::SeqCst) {
            return;
        }
        for (link, asked) in std::mem::take(&mut *lock(&order.asked)) {
            match begin(asked) {
                Ok(mut one) => {
                    turn(&link, &mut one, now(), Some(Input::Start), order);
                    live.insert(link, one);
                }
                Err(error) => {
                    service::log::warn(format_args!("{link} gets no address from outside: {error}"))
                }
            }
        }
        let wanted = lock(&order.wanted).clone();
        live.retain(|link, _| wanted.contains(link));
        lock(&order.held).retain(|link, _| wanted.contains(link));
        for (link, one) in &mut live {
            let mut buffer = [0; MAX_MESSAGE_BYTES];
            for _ in 0..DATAGRAMS_PER_TURN {
                let Ok(length) = one.socket.recv(&mut buffer) else { break };
                turn(link, one, now(), Some(Input::Heard(buffer[..length].to_vec())), order);
            }
            turn(link, one, now(), None, order);
        }
    }
}

fn wait(order: &Order, live: &BTreeMap<String, Live>, now: MonoMs) {
    let mut fds = vec![PollFd::new(&order.wake, PollFlags::IN)];
    fds.extend(live.values().map(|one| PollFd::from_borrowed_fd(one.socket.as_fd(), PollFlags::IN)));
    let left = live.values().filter_map(|one| one.client.deadline()).min().map(|at| at.since_ms(now));
    let left = left.map(|ms| Timespec {
        tv_sec: (ms / 1000).cast_signed(),
        tv_nsec: ((ms % 1000) * 1_000_000).cast_signed(),
    });
    let _ = poll(&mut fds, left.as_ref());
    let _ = rustix::io::read(&order.wake, &mut [0; 8]);
}

fn begin(asked: Asked) -> io::Result<Live> {
    let socket = socket2::Socket::from(asked.datagrams);
    socket.bind_device(Some(asked.seat.name.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
    let mut seed = [0; 8];
    let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    let client = Client::new(asked.seat.mac, Chance::new(u64::from_ne_bytes(seed)));
    Ok(Live { seat: asked.seat, client, socket: socket.into(), routes: asked.routes, lease: None })
}

/// One input, or a look at the clock.
fn turn(link: &str, one: &mut Live, now: Now, input: Option<Input>, order: &Order) {
    let mut outbox = Outbox::new();
    match input {
        Some(input) => one.client.handle(now, input, &mut outbox),
        None => one.client.wake(now, &mut outbox),
    }
    for output in outbox.drain() {
        match output {
            Output::Send(bytes) => {
                // What is lost is said again.
                let _ = one.socket.send_to(&bytes, (Ipv4Addr::BROADCAST, SERVER_PORT));
            }
            Output::Bound(lease) => set(link, one, Some(lease), order),
            Output::Lost => set(link, one, None, order),
        }
    }
}

fn set(link: &str, one: &mut Live, lease: Option<Lease>, order: &Order) {
    if let Err(fault) = Kernel::lease(&mut one.routes, &one.seat, one.lease.as_ref(), lease.as_ref()) {
        service::log::warn(format_args!("{link}: {fault}"));
        return;
    }
    match &lease {
        Some(new) if one.lease != lease => {
            service::log::info(format_args!("{link} has the address {} from outside", new.address));
        }
        None => service::log::warn(format_args!("{link} has lost its address from outside")),
        Some(_) => {}
    }
    match &lease {
        Some(new) => lock(&order.held).insert(link.to_string(), new.clone()),
        None => lock(&order.held).remove(link),
    };
    one.lease = lease;
    signal(&order.changed);
}
