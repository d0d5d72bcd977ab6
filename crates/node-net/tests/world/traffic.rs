// SPDX-License-Identifier: Apache-2.0
//! Small servers and clients that run inside namespaces.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::Namespace;

/// Long enough for a loaded machine to answer, short enough to find that nobody does.
const PATIENCE: Duration = Duration::from_millis(700);

/// Says to each connection who it comes from, then repeats what it hears.
pub fn serve_tcp(inside: &Namespace, port: u16) {
    let listener = inside.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let Ok(from) = stream.peer_addr() else { return };
                let IpAddr::V4(from) = from.ip() else { return };
                let mut buffer = [0; 64];
                let _ = stream.write_all(&from.octets());
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

pub fn serve_udp(inside: &Namespace, port: u16) {
    let socket = inside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
}

/// Who the server sees, when it can be reached.
pub fn tcp(inside: &Namespace, to: &str, port: u16) -> Option<Ipv4Addr> {
    let to = to.parse().unwrap();
    inside.run(|| connect(to, port))
}

pub fn connect(to: IpAddr, port: u16) -> Option<Ipv4Addr> {
    greeted(TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE).ok()?)
}

fn greeted(mut stream: TcpStream) -> Option<Ipv4Addr> {
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.read_exact(&mut greeting).ok()?;
    Some(Ipv4Addr::from(greeting))
}

/// Says whether a datagram came since the last time it was asked, after waiting for one.
pub fn listen_udp(inside: &Namespace, port: u16) -> impl Fn() -> bool + use<> {
    let socket = inside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    move || socket.recv(&mut [0; 64]).is_ok()
}

/// One datagram from a given address of its own.
pub fn send_udp_from(inside: &Namespace, from: &str, to: &str, port: u16) {
    let (from, to): (Ipv4Addr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    inside.run(|| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(b"hello", (to, port)).unwrap();
    });
}

pub fn udp(inside: &Namespace, to: &str, port: u16) -> bool {
    let to: IpAddr = to.parse().unwrap();
    inside.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 8];
        socket.connect((to, port)).is_ok()
            && socket.send(b"hello").is_ok()
            && socket.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"hello")
    })
}

/// One echo request of ICMP; this machine may have no program for it.
pub fn ping(inside: &Namespace, to: &str) -> bool {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt,
    };
    let to: IpAddr = to.parse().unwrap();
    inside.run(|| {
        let fd = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        // Type 8, code 0, checksum, then an identity and a number; the checksum is of these words alone.
        let (identity, number) = (0x5e1f_u16, 1_u16);
        let sum = !(0x0800 + identity + number);
        let request: Vec<u8> = [0x0800, sum, identity, number].iter().flat_map(|w| w.to_be_bytes()).collect();
        if sendto(&fd, &request, SendFlags::empty(), &SocketAddr::from((to, 0))).is_err() {
            return false;
        }
        let (mut buffer, until) = ([0_u8; 128], Instant::now() + PATIENCE);
        while Instant::now() < until {
            let Ok((length, _)) = recv(&fd, &mut buffer[..], RecvFlags::empty()) else { return false };
            // Behind the IPv4 header of 20 bytes: an answer (type 0) with our identity.
            if length >= 28 && buffer[20] == 0 && buffer[24..26] == identity.to_be_bytes() {
                return true;
            }
        }
        false
    })
}

/// Repeats short exchanges over one connection until told to end: how many, and the longest.
pub fn flow(inside: &Namespace, to: &str, port: u16, over: &Arc<AtomicBool>) -> JoinHandle<(u32, Duration)> {
    let (to, over): (IpAddr, _) = (to.parse().unwrap(), over.clone());
    inside.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (mut exchanges, mut longest, mut buffer) = (0, Duration::ZERO, [0; 4]);
        stream.read_exact(&mut buffer).unwrap();
        while !over.load(Ordering::SeqCst) {
            let started = Instant::now();
            stream.write_all(b"abcd").unwrap();
            stream.read_exact(&mut buffer).unwrap();
            exchanges += 1;
            longest = longest.max(started.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        (exchanges, longest)
    })
}

/// A connection that stands.
pub struct Standing(TcpStream);

pub fn hold(inside: &Namespace, to: &str, port: u16) -> Standing {
    let to: IpAddr = to.parse().unwrap();
    let stream = inside.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream
    });
    Standing(stream)
}

impl Standing {
    pub fn works(&self) -> bool {
        let mut stream = &self.0;
        stream.write_all(b"abcd").is_ok() && stream.read_exact(&mut [0; 4]).is_ok()
    }
}

/// A name server of the world.
pub fn serve_dns(inside: &Namespace, names: &[(&str, &str)]) {
    let names: Vec<(Name, Ipv4Addr)> = names
        .iter()
        .map(|(name, a)| (Name::from_ascii(format!("{name}.")).unwrap(), a.parse().unwrap()))
        .collect();
    let (udp, tcp) = inside.run(|| {
        // The world's first address, so that others may serve beside it.
        let at = (Ipv4Addr::new(192, 0, 2, 1), 53);
        (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap())
    });
    let answer = Arc::new(move |question: &[u8]| {
        let mut message = Message::from_vec(question).unwrap();
        message.set_message_type(MessageType::Response);
        let asked = message.queries()[0].name().clone();
        for (name, address) in names.iter().filter(|(name, _)| *name == asked) {
            message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A(*address))));
        }
        message.to_vec().unwrap()
    });
    let of_udp = answer.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&of_udp(&buffer[..length]), from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let question = framed_read(&mut stream).unwrap();
            framed_write(&mut stream, &answer(&question));
        }
    });
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::new();
    message.set_id(77).set_recursion_desired(true);
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn addresses(message: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let message = Message::from_vec(message).ok().filter(|message| message.id() == 77)?;
    let address = |record: &Record| match record.data() {
        RData::A(A(address)) => Some(*address),
        _ => None,
    };
    Some(message.answers().iter().filter_map(address).collect())
}

/// Addresses of a name; `None`: no server answered.
pub fn lookup(inside: &Namespace, server: &str, name: &str) -> Option<Vec<Ipv4Addr>> {
    lookup_within(inside, server, name, PATIENCE)
}

fn lookup_within(inside: &Namespace, server: &str, name: &str, patience: Duration) -> Option<Vec<Ipv4Addr>> {
    let server: IpAddr = server.parse().unwrap();
    inside.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.connect((server, 53)).ok()?;
        socket.send(&question(name)).ok()?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).ok()?;
        addresses(&buffer[..length])
    })
}

/// The same for a server that has to ask several others.
pub fn lookup_patiently(inside: &Namespace, server: &str, name: &str) -> Option<Vec<Ipv4Addr>> {
    lookup_within(inside, server, name, Duration::from_secs(20))
}

/// A name server that cannot answer anything.
pub fn refuse_dns(inside: &Namespace, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let udp = inside.run(|| UdpSocket::bind(at).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            message.set_message_type(MessageType::Response).set_response_code(ResponseCode::ServFail);
            let _ = udp.send_to(&message.to_vec().unwrap(), from);
        }
    });
}

pub fn lookup_tcp(inside: &Namespace, server: &str, name: &str) -> Option<Vec<Ipv4Addr>> {
    let server: IpAddr = server.parse().unwrap();
    inside.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, 53)), PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        framed_write(&mut stream, &question(name));
        addresses(&framed_read(&mut stream)?)
    })
}

fn framed_read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn framed_write(stream: &mut TcpStream, message: &[u8]) {
    let length = (message.len() as u16).to_be_bytes();
    stream.write_all(&[&length[..], message].concat()).unwrap();
}
