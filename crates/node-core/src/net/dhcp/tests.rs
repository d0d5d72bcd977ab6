// SPDX-License-Identifier: Apache-2.0
//! Conversations of server and client, options, and that foreign bytes do no harm.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::net::{Mac, Prefix4};
use model::time::{MonoMs, Now, Wall};
use proptest::prelude::*;
use reconcile::{Chance, Machine, Outbox};

use super::client::{self, Client, Output};
use super::message::{self, Kind, Message};
use super::server::{Host, Scope, answer};

const WEB: Mac = Mac([2, 0x16, 0x3e, 0, 0, 1]);
const DB: Mac = Mac([2, 0x16, 0x3e, 0, 0, 2]);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix4 {
    text.parse().unwrap()
}

fn scope() -> Scope {
    let host = |address: &str, name: &str, is_default| Host {
        address: ip(address),
        name: name.to_string(),
        is_default,
        routes: vec![prefix("192.168.0.0/16")],
    };
    Scope {
        gateway: ip("10.1.0.1"),
        subnet: prefix("10.1.0.0/24"),
        mtu: 1400,
        domain: "lab.example".to_string(),
        ntp: vec![ip("192.0.2.123")],
        hosts: BTreeMap::from([(WEB, host("10.1.0.2", "web", true)), (DB, host("10.1.0.3", "db", false))]),
    }
}

fn asked(kind: Kind, mac: Mac, options: &[(u8, &str)]) -> Message {
    let mut message = Message::new(kind, 7, mac);
    message.options = options.iter().map(|(code, address)| (*code, message::list(&[ip(address)]))).collect();
    message
}

#[test]
fn a_client_gets_its_address_and_all_it_needs_to_know() {
    let offer = answer(&scope(), &asked(Kind::Discover, WEB, &[]), NOBODY).unwrap();
    assert_eq!((offer.message.kind, offer.message.yours), (Kind::Offer, ip("10.1.0.2")));
    assert_eq!(offer.to, Some(ip("10.1.0.2")));
    let wire = offer.encode();
    assert!((300..=message::USUAL_BYTES).contains(&wire.len()), "{}", wire.len());
    let read = Message::parse(&wire).unwrap();
    assert_eq!(read, offer.message, "nothing was left out");
    let all = [
        (message::SUBNET_MASK, "255.255.255.0"),
        (message::BROADCAST, "10.1.0.255"),
        (message::ROUTER, "10.1.0.1"),
        (message::DNS, "10.1.0.1"),
        (message::SERVER_ID, "10.1.0.1"),
        (message::NTP, "192.0.2.123"),
    ];
    for (code, address) in all {
        assert_eq!(read.address(code), Some(ip(address)), "option {code}");
    }
    assert_eq!(read.seconds(message::LEASE_TIME), Some(3600));
    assert_eq!(read.half(message::MTU), Some(1400));
    assert_eq!(read.options[&message::DOMAIN], b"lab.example");
    assert_eq!(read.options[&message::HOST_NAME], b"web");
    let gateway = ip("10.1.0.1");
    let routes = [
        (prefix("10.1.0.1/32"), NOBODY),
        (prefix("10.1.0.0/24"), gateway),
        (prefix("192.168.0.0/16"), gateway),
        (prefix("0.0.0.0/0"), gateway),
    ];
    assert_eq!(read.routes(), routes);

    let second = answer(&scope(), &asked(Kind::Discover, DB, &[]), NOBODY).unwrap().message;
    assert_eq!(second.address(message::ROUTER), None, "its default route is another interface's");
    assert!(!second.routes().iter().any(|(to, _)| to.length == 0));
}

#[test]
fn requests_are_granted_refused_or_left_to_others() {
    use message::{REQUESTED_ADDRESS as WANTED, SERVER_ID};
    let says =
        |message: &Message, from: Ipv4Addr| answer(&scope(), message, from).map(|r| (r.message.kind, r.to));
    let request = |options: &[(u8, &str)]| asked(Kind::Request, WEB, options);
    let own = Some(ip("10.1.0.2"));
    assert_eq!(
        says(&request(&[(WANTED, "10.1.0.2"), (SERVER_ID, "10.1.0.1")]), NOBODY),
        Some((Kind::Ack, own))
    );
    assert_eq!(
        says(&request(&[(WANTED, "10.1.0.9")]), NOBODY),
        Some((Kind::Nak, None)),
        "kept from elsewhere"
    );
    assert_eq!(says(&request(&[(WANTED, "10.1.0.2"), (SERVER_ID, "10.1.0.7")]), NOBODY), None);
    let mut renewal = request(&[]);
    renewal.client = ip("10.1.0.2");
    assert_eq!(says(&renewal, ip("10.1.0.2")), Some((Kind::Ack, own)));
    assert_eq!(says(&renewal, ip("10.1.0.3")), None, "in another's name");
    let mut deaf = asked(Kind::Discover, WEB, &[]);
    deaf.wants_broadcast = true;
    assert_eq!(says(&deaf, NOBODY), Some((Kind::Offer, None)));
    let mut inform = asked(Kind::Inform, WEB, &[]);
    inform.client = ip("10.1.0.2");
    let told = answer(&scope(), &inform, ip("10.1.0.2")).unwrap().message;
    assert_eq!((told.yours, told.seconds(message::LEASE_TIME)), (NOBODY, None));
    for kind in [Kind::Decline, Kind::Release, Kind::Offer, Kind::Ack, Kind::Nak] {
        assert_eq!(says(&asked(kind, WEB, &[]), NOBODY), None);
    }
    assert_eq!(says(&asked(Kind::Discover, Mac([2; 6]), &[]), NOBODY), None, "unknown");
}

#[test]
fn options_come_in_pieces_in_other_fields_and_cut_short() {
    let mut message = asked(Kind::Discover, WEB, &[]);
    message.options.insert(message::CLIENT_ID, vec![7; 300]);
    let bytes = message.encode(&[], message::MAX_MESSAGE_BYTES);
    assert_eq!(Message::parse(&bytes).unwrap(), message);
    // A host name in the field for a file name, announced by option 52.
    let mut bytes = asked(Kind::Discover, WEB, &[]).encode(&[], 600);
    let end = bytes.iter().rposition(|byte| *byte == 255).unwrap();
    bytes[end..end + 4].copy_from_slice(&[52, 1, 1, 255]);
    bytes[108..112].copy_from_slice(&[12, 1, b'x', 255]);
    assert_eq!(
        Message::parse(&bytes).unwrap().options,
        BTreeMap::from([(message::HOST_NAME, b"x".to_vec())])
    );
    // Too much for the client: what matters most is kept.
    let mut large = scope();
    large.ntp = vec![ip("192.0.2.1"); 60];
    let reply = answer(&large, &asked(Kind::Discover, WEB, &[]), NOBODY).unwrap();
    let read = Message::parse(&reply.encode()).unwrap();
    assert!(read.address(message::ROUTER).is_some() && read.address(message::NTP).is_none());
}

fn at(ms: u64) -> Now {
    Now { mono: MonoMs(ms), wall: Wall::Unset }
}

fn turn(client: &mut Client, ms: u64, input: Option<client::Input>) -> Vec<Output> {
    let mut outbox = Outbox::new();
    match input {
        Some(input) => client.handle(at(ms), input, &mut outbox),
        None => client.wake(at(ms), &mut outbox),
    }
    outbox.drain().collect()
}

/// What the server says to the one message in these orders.
fn served(orders: &[Output]) -> Option<client::Input> {
    let [Output::Send(bytes)] = orders else { panic!("{orders:?}") };
    let asked = Message::parse(bytes).unwrap();
    assert!(asked.wants_broadcast);
    Some(client::Input::Heard(answer(&scope(), &asked, NOBODY)?.encode()))
}

#[test]
fn a_client_binds_renews_and_loses_its_address() {
    let mut client = Client::new(WEB, Chance::new(1));
    let discover = turn(&mut client, 0, Some(client::Input::Start));
    // Nobody answers; it asks again, ever more slowly.
    let again = client.deadline().unwrap();
    assert!(again >= MonoMs(1000) && turn(&mut client, again.0 - 1, None).is_empty());
    let discover = {
        drop(discover);
        turn(&mut client, again.0, None)
    };
    assert!(client.deadline().unwrap().0 - again.0 >= 2000);
    let request = turn(&mut client, again.0 + 5, served(&discover));
    let bound = turn(&mut client, again.0 + 9, served(&request));
    let [Output::Bound(lease)] = &bound[..] else { panic!("{bound:?}") };
    assert_eq!(lease.address, prefix("10.1.0.2/24"));
    assert_eq!((lease.gateway, lease.routes.len(), &lease.dns[..]), (None, 4, &[ip("10.1.0.1")][..]));
    let half = client.deadline().unwrap();
    assert_eq!(half.0, again.0 + 9 + 1_800_000);
    let renewal = turn(&mut client, half.0, None);
    assert!(matches!(turn(&mut client, half.0 + 1, served(&renewal))[..], [Output::Bound(_)]));
    // No server any more: at its end the address is given up, and looked for again.
    let end = half.0 + 1 + 3_600_000;
    let mut orders = Vec::new();
    while !orders.contains(&Output::Lost) {
        let next = client.deadline().unwrap();
        assert!(next.0 <= end + 1);
        orders = turn(&mut client, next.0, None);
    }
    assert!(matches!(orders[..], [Output::Lost, Output::Send(_)]));
    // An answer to someone else, or to an older question, is none.
    let mut other = Message::new(Kind::Offer, 1, WEB);
    other.options.insert(message::SERVER_ID, message::list(&[ip("10.1.0.1")]));
    assert!(turn(&mut client, end + 2, Some(client::Input::Heard(other.encode(&[], 600)))).is_empty());
}

/// Recorded from other people's programs.
const CORPUS: [(&str, &[u8], Kind); 4] = [
    ("dhclient", include_bytes!("../../../../../fuzz/corpus/net/dhcp/dhclient"), Kind::Discover),
    ("dhcpcd", include_bytes!("../../../../../fuzz/corpus/net/dhcp/dhcpcd"), Kind::Discover),
    ("offer of dnsmasq", include_bytes!("../../../../../fuzz/corpus/net/dhcp/offer"), Kind::Offer),
    ("ack of dnsmasq", include_bytes!("../../../../../fuzz/corpus/net/dhcp/ack"), Kind::Ack),
];

#[test]
fn messages_of_other_programs_are_read() {
    for (name, bytes, kind) in CORPUS {
        let message = Message::parse(bytes).unwrap();
        assert_eq!(message.kind, kind, "{name}");
        super::message::take_any_bytes(bytes);
    }
    let ack = Message::parse(CORPUS[3].1).unwrap();
    assert_eq!(ack.seconds(message::LEASE_TIME), Some(120));
    assert_eq!(ack.routes(), [(prefix("10.0.0.0/8"), ip("10.77.0.1"))]);
    assert!(ack.yours.octets()[3] >= 100);
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        super::message::take_any_bytes(&bytes);
    }

    #[test]
    fn damaged_messages_are_taken(hits in prop::collection::vec((0..320_usize, any::<u8>()), 0..9), cut in 0..340_usize) {
        let mut bytes = answer(&scope(), &asked(Kind::Discover, WEB, &[]), NOBODY).unwrap().encode();
        for (at, value) in hits {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(40)));
        super::message::take_any_bytes(&bytes);
    }
}
