// SPDX-License-Identifier: Apache-2.0
//! The sockets behind the gateways' names: listens per network, asks servers, and gives up in time.
//!
//! One thread waits on all sockets. A question that goes on to a server has a socket of its own, so its port is the
//! kernel's choice and an answer finds it by itself; a server that stays silent is followed by the next.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use node_core::net::names::Zone;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::answer::{Question, Resolved, Todo, Transport, consider};
use super::tcp;

const PORT: u16 = 53;
/// Questions under way at once, over all networks and per network.
const MAX_PENDING: usize = 192;
const MAX_PENDING_PER_NETWORK: usize = 64;
/// Silence after which the next server is asked.
pub(super) const SERVER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Datagrams read from one socket before the others have their turn.
const DATAGRAMS_PER_TURN: usize = 32;
/// Larger ones come over TCP.
const MAX_DATAGRAM: usize = 4096;

/// Told before an app hears it which addresses a name has that its access rules speak of.
pub trait Learn: Send + Sync {
    fn learn(&self, set: &str, resolved: &[Resolved]);
    /// Told what was asked through an interface whose lookups are recorded.
    fn asked(&self, link: &str, name: &str, addresses: &[Ipv4Addr]);
}

/// Handle of the name server; its thread ends with it.
#[derive(Debug)]
pub struct Dns {
    order: Arc<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the main loop wants of the thread.
#[derive(Debug)]
struct Order {
    zones: Mutex<Option<BTreeMap<String, Zone>>>,
    is_over: AtomicBool,
    wake: OwnedFd,
    faults: Mutex<BTreeMap<String, String>>,
}

impl Dns {
    pub fn start(learn: Arc<dyn Learn>) -> io::Result<Dns> {
        let order = Arc::new(Order {
            zones: Mutex::new(None),
            is_over: false.into(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            faults: Mutex::default(),
        });
        let of_thread = order.clone();
        let thread =
            std::thread::Builder::new().name("dns".to_string()).spawn(move || serve(&of_thread, &learn))?;
        Ok(Dns { order, thread: Some(thread) })
    }

    /// Serves exactly these zones, by bridge. One whose address cannot be bound yet is tried again at the next call.
    pub fn set_zones(&self, zones: &BTreeMap<String, Zone>) {
        *lock(&self.order.zones) = Some(zones.clone());
        self.order.wake();
    }

    /// Networks whose names are not served, by bridge, and why.
    pub fn faults(&self) -> BTreeMap<String, String> {
        lock(&self.order.faults).clone()
    }
}

impl Drop for Dns {
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

/// A network being served.
struct Live {
    zone: Arc<Zone>,
    udp: UdpSocket,
    tcp: TcpListener,
}

/// A question a server was asked.
struct Pending {
    bridge: String,
    zone: Arc<Zone>,
    from: SocketAddr,
    question: Question,
    id: u16,
    /// Place of the asked server in its list.
    server: usize,
    socket: UdpSocket,
    until: Instant,
    /// What a server said that could not answer, for when nobody can.
    refusal: Option<Vec<u8>>,
}

fn serve(order: &Order, learn: &Arc<dyn Learn>) {
    let mut live: BTreeMap<String, Live> = BTreeMap::new();
    let mut pending: Vec<Pending> = Vec::new();
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        wait(order, &live, &pending);
        if order.is_over.load(Ordering::SeqCst) {
            return;
        }
        if let Some(zones) = lock(&order.zones).take() {
            let faults = adopt(&mut live, zones);
            *lock(&order.faults) = faults;
        }
        for (bridge, network) in &live {
            questions(bridge, network, learn.as_ref(), &mut pending);
            while let Ok((stream, _)) = network.tcp.accept() {
                tcp::spawn(stream, network.zone.clone(), learn.clone(), &connections);
            }
        }
        let now = Instant::now();
        pending = pending.into_iter().filter_map(|one| proceed(one, &live, learn.as_ref(), now)).collect();
    }
}

fn wait(order: &Order, live: &BTreeMap<String, Live>, pending: &[Pending]) {
    let readable = PollFlags::IN;
    let mut fds = vec![PollFd::new(&order.wake, readable)];
    for network in live.values() {
        fds.push(PollFd::from_borrowed_fd(network.udp.as_fd(), readable));
        fds.push(PollFd::from_borrowed_fd(network.tcp.as_fd(), readable));
    }
    fds.extend(pending.iter().map(|one| PollFd::from_borrowed_fd(one.socket.as_fd(), readable)));
    let left = pending.iter().map(|one| one.until).min().map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    let _ = poll(&mut fds, left.as_ref());
    let mut count = [0; 8];
    let _ = rustix::io::read(&order.wake, &mut count);
}

/// Keeps the sockets of networks that stay.
fn adopt(live: &mut BTreeMap<String, Live>, zones: BTreeMap<String, Zone>) -> BTreeMap<String, String> {
    live.retain(|bridge, network| zones.get(bridge).is_some_and(|zone| zone.listen == network.zone.listen));
    let mut faults = BTreeMap::new();
    for (bridge, zone) in zones {
        match live.get_mut(&bridge) {
            Some(network) if *network.zone == zone => {}
            Some(network) => network.zone = Arc::new(zone),
            None => match listen(zone.listen) {
                Ok((udp, tcp)) => {
                    live.insert(bridge, Live { zone: Arc::new(zone), udp, tcp });
                }
                Err(error) => {
                    faults.insert(bridge, format!("names are not served on {}: {error}", zone.listen));
                }
            },
        }
    }
    faults
}

fn listen(address: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind((address, PORT))?;
    udp.set_nonblocking(true)?;
    let tcp = TcpListener::bind((address, PORT))?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

fn questions(bridge: &str, network: &Live, learn: &dyn Learn, pending: &mut Vec<Pending>) {
    let mut buffer = [0; MAX_DATAGRAM];
    for _ in 0..DATAGRAMS_PER_TURN {
        let Ok((length, from)) = network.udp.recv_from(&mut buffer) else { return };
        match consider(&network.zone, &buffer[..length], Transport::Udp) {
            Todo::Reply(bytes) => {
                record_local(&network.zone, from.ip(), &bytes, learn);
                drop(network.udp.send_to(&bytes, from));
            }
            Todo::Forward(question) => {
                let of_network = pending.iter().filter(|one| one.bridge == bridge).count();
                if pending.len() >= MAX_PENDING || of_network >= MAX_PENDING_PER_NETWORK {
                    continue;
                }
                let id = random_id();
                match ask(&network.zone, &question, id, 0) {
                    Some((socket, server)) => pending.push(Pending {
                        bridge: bridge.to_string(),
                        zone: network.zone.clone(),
                        from,
                        question,
                        id,
                        server,
                        socket,
                        until: Instant::now() + SERVER_TIMEOUT,
                        refusal: None,
                    }),
                    None => {
                        let failure = question.failure(Transport::Udp).unwrap_or_default();
                        let _ = network.udp.send_to(&failure, from);
                    }
                }
            }
            Todo::Ignore => {}
        }
    }
}

/// Sends to the first server from `place` on that can be sent to.
fn ask(zone: &Zone, question: &Question, id: u16, place: usize) -> Option<(UdpSocket, usize)> {
    let send = |server: Ipv4Addr| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect((server, PORT))?;
        socket.send(&question.numbered(id))?;
        Ok(socket)
    };
    let servers = zone.servers.iter().enumerate().skip(place);
    servers.into_iter().find_map(|(place, server)| Some((send(*server).ok()?, place)))
}

/// One look at a question under way; `None` when it is done with.
fn proceed(
    mut one: Pending,
    live: &BTreeMap<String, Live>,
    learn: &dyn Learn,
    now: Instant,
) -> Option<Pending> {
    let network = live.get(&one.bridge)?;
    let mut buffer = [0; MAX_DATAGRAM];
    for _ in 0..DATAGRAMS_PER_TURN {
        match one.socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(answer) = one.question.accept(one.id, &buffer[..length]) {
                    if answer.is_failure {
                        one.refusal = Some(answer.bytes);
                        break;
                    }
                    tell(&one.zone, &one.question, one.from.ip(), &answer.resolved, learn);
                    let _ = network.udp.send_to(&answer.bytes, one.from);
                    return None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if now < one.until {
                    return Some(one);
                }
                break;
            }
            // Refused: nobody serves there.
            Err(_) => break,
        }
    }
    match ask(&one.zone, &one.question, one.id, one.server + 1) {
        Some((socket, server)) => {
            (one.socket, one.server, one.until) = (socket, server, now + SERVER_TIMEOUT);
            Some(one)
        }
        None => {
            let failure = one.refusal.or_else(|| one.question.failure(Transport::Udp)).unwrap_or_default();
            record(&one.zone, one.from.ip(), &one.question.name, &[], learn);
            let _ = network.udp.send_to(&failure, one.from);
            None
        }
    }
}

/// For the flow log: who asked for what, and what it was told.
fn record(zone: &Zone, from: IpAddr, name: &str, addresses: &[Ipv4Addr], learn: &dyn Learn) {
    if let IpAddr::V4(from) = from
        && let Some(link) = zone.recorded.get(&from)
    {
        learn.asked(link, name, addresses);
    }
}

/// The same for a name that was answered here.
pub(super) fn record_local(zone: &Zone, from: IpAddr, reply: &[u8], learn: &dyn Learn) {
    if !zone.recorded.is_empty()
        && let Some((name, addresses)) = super::answer::told(reply)
    {
        record(zone, from, &name, &addresses, learn);
    }
}

/// Lets the access rules know before the app does.
pub(super) fn tell(zone: &Zone, question: &Question, from: IpAddr, resolved: &[Resolved], learn: &dyn Learn) {
    let addresses: Vec<Ipv4Addr> = resolved.iter().map(|one| one.address).collect();
    record(zone, from, &question.name, &addresses, learn);
    if !resolved.is_empty() {
        zone.learners(&question.name).into_iter().for_each(|set| learn.learn(set, resolved));
    }
}

/// Unguessable, as RFC 5452 asks. Without random bytes the source port is what is left.
pub(super) fn random_id() -> u16 {
    let mut bytes = [0; 2];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u16::from_ne_bytes(bytes)
}
