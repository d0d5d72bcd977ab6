// SPDX-License-Identifier: Apache-2.0
//! What comes over the network to net and agent that is no HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::net::Prefix4;
use node_core::net::names::Zone;
use node_net::dns::answer::{Question, Todo, Transport, consider};

fn zone(servers: &[Ipv4Addr]) -> Zone {
    let address = Ipv4Addr::new(10, 1, 0, 2);
    Zone {
        listen: Ipv4Addr::new(10, 1, 0, 1),
        subnet: Prefix4 { address: Ipv4Addr::new(10, 1, 0, 0), length: 24 },
        recorded: BTreeMap::new(),
        names: BTreeMap::from([("server".into(), BTreeSet::from([address]))]),
        servers: servers.to_vec(),
        learn: BTreeMap::from([("example".into(), "set".into())]),
    }
}

/// The first byte says how long the question is; what follows it is a server's answer.
pub(crate) fn message(data: &[u8]) {
    let Some((length, data)) = data.split_first() else { return };
    let (asked, answered) = data.split_at(usize::from(*length).min(data.len()));
    for transport in [Transport::Udp, Transport::Tcp] {
        for servers in [&[][..], &[Ipv4Addr::new(192, 0, 2, 1)]] {
            match consider(&zone(servers), asked, transport) {
                Todo::Reply(reply) => {
                    assert_eq!(reply.get(..2), asked.get(..2), "an answer to another question");
                    // Otherwise two servers could be made to answer each other for ever.
                    assert!(matches!(consider(&zone(servers), &reply, transport), Todo::Ignore));
                }
                Todo::Forward(question) => forward(&question, answered, transport),
                Todo::Ignore => {}
            }
        }
    }
    if let Some(addresses) = node_agent::untrusted::name_answer("registry.example", answered) {
        assert!(addresses.len() <= 16);
    }
}

fn forward(question: &Question, answered: &[u8], transport: Transport) {
    assert_eq!(question.numbered(7)[..2], [0, 7]);
    if let Some(id) = answered.first_chunk::<2>()
        && let Some(accepted) = question.accept(u16::from_be_bytes(*id), answered)
    {
        assert_eq!(accepted.bytes.len(), answered.len());
    }
    let _ = question.failure(transport);
}

/// Headers of a registry's refusal, one a line.
pub(crate) fn challenge(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let headers: Vec<&str> = text.lines().collect();
    node_agent::untrusted::challenge(&headers);
}

/// What a DHCP client or server sends, and any frame of a switch.
pub(crate) fn dhcp(data: &[u8]) {
    node_core::net::dhcp::message::take_any_bytes(data);
}
