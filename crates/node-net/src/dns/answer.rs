// SPDX-License-Identifier: Apache-2.0
//! What to do with a question, and whether an answer from outside fits it. Bytes in, bytes out; foreign bytes never panic.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use node_core::net::names::{Answer, Zone};

/// Apps move: what we say of them is not kept long.
const LOCAL_TTL_S: u32 = 10;
/// Header of a message, RFC 1035 §4.1.1.
const HEADER_BYTES: usize = 12;
/// Without EDNS a datagram carries this much.
const PLAIN_UDP_BYTES: usize = 512;

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Todo {
    Reply(Vec<u8>),
    /// Ask the servers, unchanged but for its number.
    Forward(Question),
    /// No question, or nothing one could answer to.
    Ignore,
}

/// A question on its way to the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The app's message as it came.
    pub bytes: Vec<u8>,
    /// As the app numbered it.
    pub id: u16,
    /// Lower case, without the final dot.
    pub name: String,
    query: Query,
}

/// How many bytes the asker's transport takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// An address a name resolved to, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub address: Ipv4Addr,
    pub ttl_s: u32,
}

/// Decides on one message of an app.
pub fn consider(zone: &Zone, untrusted_message: &[u8], transport: Transport) -> Todo {
    let Ok(message) = Message::from_vec(untrusted_message) else {
        return refuse(untrusted_message, ResponseCode::FormErr);
    };
    if message.message_type() != MessageType::Query {
        return Todo::Ignore;
    }
    if message.op_code() != OpCode::Query {
        return reply(&message, ResponseCode::NotImp, Vec::new(), transport);
    }
    let [query] = message.queries() else {
        return reply(&message, ResponseCode::FormErr, Vec::new(), transport);
    };
    let name = plain_name(query);
    if query.query_type() == RecordType::PTR
        && let Some(known) = reversed(&name).and_then(|address| zone.reverse(address))
    {
        return pointer(&message, query, known, transport);
    }
    let is_address = matches!(query.query_type(), RecordType::A | RecordType::AAAA | RecordType::ANY);
    match zone.lookup(&name) {
        Answer::Here(addresses) => {
            let is_v4 = matches!(query.query_type(), RecordType::A | RecordType::ANY)
                && query.query_class() == DNSClass::IN;
            let record = |address: &Ipv4Addr| {
                Record::from_rdata(query.name().clone(), LOCAL_TTL_S, RData::A(A(*address)))
            };
            let answers = if is_v4 { addresses.iter().map(record).collect() } else { Vec::new() };
            reply(&message, ResponseCode::NoError, answers, transport)
        }
        Answer::Nowhere if is_address => reply(&message, ResponseCode::NXDomain, Vec::new(), transport),
        Answer::Nowhere | Answer::Elsewhere if zone.servers.is_empty() => {
            reply(&message, ResponseCode::ServFail, Vec::new(), transport)
        }
        Answer::Nowhere | Answer::Elsewhere => Todo::Forward(Question {
            bytes: untrusted_message.to_vec(),
            id: message.id(),
            name,
            query: query.clone(),
        }),
    }
}

/// The address a name below `in-addr.arpa` stands for, RFC 1035 §3.5.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let labels: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.rsplit('.').collect();
    if labels.len() != 4 { None } else { labels.join(".").parse().ok() }
}

/// Says the name of an address of this network: nobody else knows it, or that it has none.
fn pointer(message: &Message, query: &Query, known: Option<&str>, transport: Transport) -> Todo {
    let name = known.and_then(|name| Name::from_ascii(format!("{name}.")).ok());
    let Some(name) = name else { return reply(message, ResponseCode::NXDomain, Vec::new(), transport) };
    let record = Record::from_rdata(query.name().clone(), LOCAL_TTL_S, RData::PTR(PTR(name)));
    reply(message, ResponseCode::NoError, vec![record], transport)
}

/// An answer for the app, and whether another server might know better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub bytes: Vec<u8>,
    pub resolved: Vec<Resolved>,
    /// The server could not or would not answer.
    pub is_failure: bool,
}

impl Question {
    /// The message under another number.
    pub fn numbered(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// Takes a server's message for this question sent as `sent_id`: the bytes for the app, and the addresses within.
    /// `None`: it is no answer to this question.
    pub fn accept(&self, sent_id: u16, untrusted_message: &[u8]) -> Option<Accepted> {
        let message = Message::from_vec(untrusted_message).ok()?;
        let is_answer = message.id() == sent_id
            && message.message_type() == MessageType::Response
            && message.queries().iter().all(|query| *query == self.query)
            && (message.queries().len() == 1 || message.response_code() != ResponseCode::NoError);
        if !is_answer {
            return None;
        }
        let resolved = message.answers().iter().filter_map(|record| match record.data() {
            RData::A(A(address)) => Some(Resolved { address: *address, ttl_s: record.ttl() }),
            _ => None,
        });
        let mut bytes = untrusted_message.to_vec();
        bytes[..2].copy_from_slice(&self.id.to_be_bytes());
        let is_failure = matches!(message.response_code(), ResponseCode::ServFail | ResponseCode::Refused);
        Some(Accepted { bytes, resolved: resolved.collect(), is_failure })
    }

    /// What the app hears when no server answered.
    /// It repeats the question: resolvers do not believe a refusal without.
    pub fn failure(&self, transport: Transport) -> Option<Vec<u8>> {
        let asked = Message::from_vec(&self.bytes).ok()?;
        match reply(&asked, ResponseCode::ServFail, Vec::new(), transport) {
            Todo::Reply(bytes) => Some(bytes),
            Todo::Forward(_) | Todo::Ignore => None,
        }
    }
}

fn plain_name(query: &Query) -> String {
    query.name().to_lowercase().to_ascii().trim_end_matches('.').to_string()
}

fn reply(asked: &Message, code: ResponseCode, answers: Vec<Record>, transport: Transport) -> Todo {
    let mut message = Message::new();
    message
        .set_id(asked.id())
        .set_message_type(MessageType::Response)
        .set_op_code(asked.op_code())
        .set_recursion_desired(asked.recursion_desired())
        .set_recursion_available(true)
        .set_authoritative(code == ResponseCode::NoError || code == ResponseCode::NXDomain)
        .set_response_code(code);
    message.add_queries(asked.queries().iter().take(1).cloned());
    message.add_answers(answers);
    let Ok(bytes) = message.to_vec() else { return Todo::Ignore };
    let room = match transport {
        Transport::Udp => usize::from(asked.max_payload()).max(PLAIN_UDP_BYTES),
        Transport::Tcp => usize::from(u16::MAX),
    };
    if bytes.len() <= room {
        return Todo::Reply(bytes);
    }
    message.truncate().to_vec().map_or(Todo::Ignore, Todo::Reply)
}

/// What a reply of ours says about which name.
pub fn told(reply: &[u8]) -> Option<(String, Vec<Ipv4Addr>)> {
    let message = Message::from_vec(reply).ok()?;
    let addresses = message.answers().iter().filter_map(|record| match record.data() {
        RData::A(A(address)) => Some(*address),
        _ => None,
    });
    Some((plain_name(message.queries().first()?), addresses.collect()))
}

/// Says no to a message of which only the header can be read.
fn refuse(untrusted_message: &[u8], code: ResponseCode) -> Todo {
    let Some(header) = untrusted_message.get(..HEADER_BYTES) else { return Todo::Ignore };
    if header[2] & 0x80 != 0 {
        return Todo::Ignore;
    }
    // Number, then "response" with opcode and "recursion desired" as asked, "recursion available" with the code.
    let mut bytes = vec![header[0], header[1], 0x80 | header[2] & 0x79, 0x80 | code.low()];
    bytes.resize(HEADER_BYTES, 0);
    Todo::Reply(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::str::FromStr;

    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        Zone {
            listen: Ipv4Addr::new(10, 1, 0, 1),
            subnet: "10.1.0.0/24".parse().unwrap(),
            recorded: BTreeMap::new(),
            names: BTreeMap::from([(
                "web".to_string(),
                BTreeSet::from([Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 3)]),
            )]),
            servers: vec![Ipv4Addr::new(192, 0, 2, 53)],
            learn: BTreeMap::new(),
        }
    }

    fn ask(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new();
        message.set_id(0x1234).set_recursion_desired(true);
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn replied(todo: Todo) -> Message {
        match todo {
            Todo::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("no reply: {other:?}"),
        }
    }

    #[test]
    fn names_of_apps_are_answered_here() {
        let message = replied(consider(&zone(), &ask("WEB.", RecordType::A), Transport::Udp));
        assert_eq!((message.id(), message.response_code()), (0x1234, ResponseCode::NoError));
        assert_eq!(message.answers().len(), 2);
        let message = replied(consider(&zone(), &ask("web.", RecordType::AAAA), Transport::Udp));
        assert_eq!((message.answers().len(), message.response_code()), (0, ResponseCode::NoError));
        let message = replied(consider(&zone(), &ask("other.", RecordType::A), Transport::Udp));
        assert_eq!(message.response_code(), ResponseCode::NXDomain);
    }

    #[test]
    fn addresses_of_the_network_have_names_nobody_else_is_asked_for() {
        let asked = |name: &str| consider(&zone(), &ask(name, RecordType::PTR), Transport::Udp);
        let message = replied(asked("2.0.1.10.in-addr.arpa."));
        assert_eq!(message.answers()[0].data().to_string(), "web.");
        assert_eq!(replied(asked("9.0.1.10.in-addr.arpa.")).response_code(), ResponseCode::NXDomain);
        for elsewhere in ["1.2.0.192.in-addr.arpa.", "x.0.1.10.in-addr.arpa.", "10.in-addr.arpa."] {
            assert!(matches!(asked(elsewhere), Todo::Forward(_)), "{elsewhere}");
        }
    }

    #[test]
    fn answers_must_fit_their_question() {
        let Todo::Forward(question) = consider(&zone(), &ask("a.Example.", RecordType::A), Transport::Udp)
        else {
            panic!("not forwarded");
        };
        assert_eq!(question.name, "a.example");
        let answer = |name: &str, id: u16, kind: MessageType| {
            let mut message = Message::from_vec(&question.numbered(id)).unwrap();
            message.set_message_type(kind);
            message.queries_mut()[0].set_name(Name::from_str(name).unwrap());
            message.add_answer(Record::from_rdata(
                Name::from_str(name).unwrap(),
                60,
                RData::A(A::new(203, 0, 113, 1)),
            ));
            message.to_vec().unwrap()
        };
        let good = answer("a.example.", 7, MessageType::Response);
        let Accepted { bytes, resolved, is_failure } = question.accept(7, &good).unwrap();
        assert!(!is_failure);
        assert_eq!(bytes[..2], [0x12, 0x34]);
        assert_eq!(resolved, [Resolved { address: Ipv4Addr::new(203, 0, 113, 1), ttl_s: 60 }]);
        assert_eq!(question.accept(8, &good), None);
        assert_eq!(question.accept(7, &answer("b.example.", 7, MessageType::Response)), None);
        assert_eq!(question.accept(7, &answer("a.example.", 7, MessageType::Query)), None);
        let failure = Message::from_vec(&question.failure(Transport::Udp).unwrap()).unwrap();
        assert_eq!((failure.id(), failure.response_code()), (0x1234, ResponseCode::ServFail));
        assert_eq!(failure.queries().len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = consider(&zone(), &bytes, Transport::Udp);
            if let Todo::Forward(question) = consider(&zone(), &ask("a.example.", RecordType::A), Transport::Tcp) {
                let _ = question.accept(1, &bytes);
            }
        }

        #[test]
        fn damaged_questions_are_taken(at in 0..40_usize, value: u8, cut in 0..40_usize) {
            let mut bytes = ask("some.name.example.", RecordType::A);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Todo::Forward(question) = consider(&zone(), &bytes, Transport::Udp) {
                let _ = (question.numbered(9), question.failure(Transport::Udp), question.accept(9, &bytes));
            }
        }
    }
}
