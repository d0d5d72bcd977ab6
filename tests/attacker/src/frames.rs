// SPDX-License-Identifier: Apache-2.0
//! Frames as a machine would send them that belongs to an attacker: by root in the network of an app, which an app of
//! its own cannot do, but a virtual machine could.

use std::ffi::CString;
use std::time::{Duration, Instant};

/// Marks every frame of ours.
const MARK: &[u8] = b"selvedge-forged-";
const ETHERTYPE_IP: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IP6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_OTHER: u16 = 0x88b5;
/// Port that nothing of the test listens at.
const PORT: u16 = 9;

fn socket(interface: &str) -> i32 {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointer is passed.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all)) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    let name = CString::new(interface).unwrap();
    // SAFETY: all zero is a valid address; the name is a C string.
    let (address, index) = unsafe {
        let index = libc::if_nametoindex(name.as_ptr());
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index as i32;
        (address, index)
    };
    assert!(index > 0, "no interface {interface}");
    let length = std::mem::size_of_val(&address) as u32;
    // SAFETY: an address of the length given.
    assert!(unsafe { libc::bind(socket, (&raw const address).cast(), length) } == 0);
    socket
}

/// `INTERFACE KIND OWN-MAC OTHER-MAC SOURCE-IP DESTINATION-IP` sends three frames of a kind.
pub(crate) fn send(words: &[String]) {
    let [interface, kind, own, other, source, destination] = words else { panic!("send needs six words") };
    let (own, other) = (mac(own), mac(other));
    let (source, destination): (std::net::Ipv4Addr, std::net::Ipv4Addr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mark = [MARK, kind.as_bytes()].concat();
    let mut frame = [&other[..], &own[..]].concat();
    let ip = |payload: &[u8]| ip_udp(source, destination, payload);
    match kind.as_str() {
        "honest" | "straight" | "mac" | "ip" | "gateway" => {
            frame.extend(ETHERTYPE_IP.to_be_bytes());
            frame.extend(ip(&mark));
        }
        "arp" => {
            frame.extend(ETHERTYPE_ARP.to_be_bytes());
            frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            frame.extend(own);
            frame.extend(source.octets());
            frame.extend(other);
            frame.extend(destination.octets());
            frame.extend(&mark);
        }
        "vlan" => {
            frame.extend(ETHERTYPE_VLAN.to_be_bytes());
            frame.extend([0, 7]);
            frame.extend(ETHERTYPE_IP.to_be_bytes());
            frame.extend(ip(&mark));
        }
        "ip6" => {
            frame.extend(ETHERTYPE_IP6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0, 0, mark.len() as u8, 59, 64]);
            frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2));
            frame.extend(&mark);
        }
        _ => {
            frame.extend(ETHERTYPE_OTHER.to_be_bytes());
            frame.extend(&mark);
        }
    }
    frame.resize(frame.len().max(60), 0);
    let socket = socket(interface);
    for _ in 0..3 {
        // SAFETY: the frame lives across the call.
        let sent = unsafe { libc::send(socket, frame.as_ptr().cast(), frame.len(), 0) };
        assert!(sent > 0, "{}", std::io::Error::last_os_error());
    }
}

/// `INTERFACE MILLISECONDS`: kinds of marked frames that arrive.
pub(crate) fn watch(words: &[String]) {
    let [interface, time] = words else { panic!("watch needs two words") };
    let socket = socket(interface);
    crate::tell!("watching");
    let until = Instant::now() + Duration::from_millis(time.parse().unwrap());
    let mut buffer = vec![0; 4096];
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let mut polled = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd; then room of the length given.
        let length = unsafe {
            if libc::poll(&raw mut polled, 1, left.as_millis() as i32) < 1 {
                continue;
            }
            libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0)
        };
        let frame = &buffer[..length.max(0) as usize];
        if let Some(at) = frame.windows(MARK.len()).position(|window| window == MARK) {
            let kind: String = frame[at + MARK.len()..]
                .iter()
                .take_while(|b| b.is_ascii_alphanumeric())
                .map(|b| *b as char)
                .collect();
            crate::tell!("frame {kind}");
        }
    }
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn ip_udp(source: std::net::Ipv4Addr, destination: std::net::Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = (20 + 8 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum =
        packet.chunks(2).fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = (sum & 0xffff) + (sum >> 16);
    let check = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet.extend(PORT.to_be_bytes().repeat(2));
    packet.extend(((8 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
