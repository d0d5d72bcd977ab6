// SPDX-License-Identifier: Apache-2.0
//! The firewall in the kernel: one batch of nf_tables messages takes it from whatever it is to the intended ruleset.
//!
//! A batch is one transaction: packets see the old rules or the new ones, nothing between, and flows that stand keep
//! standing. Rules are always replaced as a whole; chains, counters and host sets that stay are left in place, so
//! counters count on and learned addresses stay learned. An empty chain whose name holds the ruleset's fingerprint says
//! what is in force: a restarted process compares it and touches nothing when it is right.

mod expr;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use node_core::net::rules::{Chain, Family, HOST_SET_SIZE, Hook, HookPoint, Ruleset, TABLE};
use rustix::io::Errno;

use crate::netlink::{APPEND, Answer, CREATE, EXCL, Message, NetlinkError, Socket, attributes, read_text};
use expr::{AnonymousSet, Encoder, KEY_IPV4, KEY_LINK, KEY_MARK, anonymous_name, goto_data};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DEL_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DEL_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const GET_SET: u16 = SUBSYSTEM | 10;
const DEL_SET: u16 = SUBSYSTEM | 11;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const DEL_ELEMENT: u16 = SUBSYSTEM | 14;
const NEW_OBJECT: u16 = SUBSYSTEM | 18;
const GET_OBJECT: u16 = SUBSYSTEM | 19;
const DEL_OBJECT: u16 = SUBSYSTEM | 20;

const SET_ANONYMOUS_CONSTANT: u32 = 3;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const DATA_VERDICT: u32 = 0xffff_ff00;
const OBJECT_COUNTER: u32 = 1;
const POLICY_ACCEPT: u32 = 1;
/// Bytes of `struct nfgenmsg`.
const GENERIC_BYTES: usize = 4;
/// Elements of one message: an attribute holds 64 KiB, an element of a verdict map about 80 bytes.
const ELEMENTS_PER_MESSAGE: usize = 256;
const FINGERPRINT: &str = "fingerprint-";

/// What of ours is in the kernel, without the rules.
#[derive(Debug, Default)]
struct TableSeen {
    chains: BTreeMap<String, Option<Hook>>,
    sets: BTreeSet<String>,
    counters: BTreeSet<String>,
}

/// Families of the rules that judge, and of those that lead frames past.
pub(crate) const JUDGES: &[Family] = &[Family::Inet, Family::Bridge];
pub(crate) const TAPS: &[Family] = &[Family::Netdev];

/// Brings the kernel's rules of these families to the intended ones. Says whether anything had to change. `links` are the
/// kernel's numbers of links that rules send frames to.
pub(crate) fn apply(
    socket: &mut Socket,
    families: &[Family],
    ruleset: &Ruleset,
    links: &BTreeMap<String, u32>,
) -> Result<bool, NetlinkError> {
    let mark = format!("{FINGERPRINT}{:032x}", ruleset.fingerprint(links));
    let seen = observe(socket, families)?;
    let is_in_force =
        seen.keys().eq(ruleset.tables.keys()) && seen.values().all(|table| table.chains.contains_key(&mark));
    if is_in_force {
        return Ok(false);
    }
    socket.batch(replacement(&seen, ruleset, &mark, links))?;
    Ok(true)
}

/// Links whose frames are led elsewhere.
pub(crate) fn tapped(socket: &mut Socket) -> Result<Vec<String>, NetlinkError> {
    let tables = observe(socket, TAPS)?;
    Ok(tables.into_values().flat_map(|table| table.chains).filter_map(|(_, hook)| hook?.link).collect())
}

/// Packets that named counters counted.
pub(crate) fn counters(socket: &mut Socket) -> Result<BTreeMap<String, u64>, NetlinkError> {
    let list = list(socket, GET_OBJECT, family_number(Family::Inet), 1)?;
    let packets = |answer: &Answer| {
        let data = attributes(&answer.body, GENERIC_BYTES).value_of(4)?;
        attributes(data, 0).value_of(2)?.try_into().ok().map(u64::from_be_bytes)
    };
    Ok(list.iter().filter_map(|answer| Some((name_of(answer, 2)?, packets(answer)?))).collect())
}

/// Puts an address into a host set for a time; an address that is there already stays for the new time.
pub(crate) fn learn(
    socket: &mut Socket,
    set: &str,
    address: Ipv4Addr,
    lasts: Duration,
) -> Result<(), NetlinkError> {
    let element = |kind, flags| {
        let mut message = of_table(kind, flags, Family::Inet);
        message.text(2, set).nest(3, |list| {
            list.nest(1, |element| {
                element.nest_attr(1, 1, &address.octets());
                if kind == NEW_ELEMENT {
                    element.be64(4, lasts.as_millis().try_into().unwrap_or(u64::MAX));
                }
            });
        });
        message
    };
    match socket.batch(framed(vec![element(NEW_ELEMENT, CREATE | EXCL)])) {
        Err(error) if error.refusal() == Some(Errno::EXIST) => {
            socket.batch(framed(vec![element(DEL_ELEMENT, 0), element(NEW_ELEMENT, CREATE | EXCL)]))
        }
        result => result,
    }
}

fn observe(socket: &mut Socket, families: &[Family]) -> Result<BTreeMap<Family, TableSeen>, NetlinkError> {
    let mut seen = BTreeMap::new();
    for family in families.iter().copied() {
        let number = family_number(family);
        // Tables stand in the list of each family alone; a name is in attribute 1 there.
        let get_tables = Message::new(GET_TABLE, 0, &[number, 0, 0, 0]);
        let tables = socket.dump(&get_tables)?;
        if !tables.iter().any(|answer| name_of(answer, 1).as_deref() == Some(TABLE)) {
            continue;
        }
        let mut table = TableSeen::default();
        for answer in list(socket, GET_CHAIN, number, 1)? {
            if let Some(name) = name_of(&answer, 3) {
                table.chains.insert(name, hook_seen(&answer));
            }
        }
        let is_named = |name: &String| !name.starts_with("__");
        let sets = list(socket, GET_SET, number, 1)?;
        table.sets = sets.iter().filter_map(|answer| name_of(answer, 2)).filter(is_named).collect();
        let objects = list(socket, GET_OBJECT, number, 1)?;
        table.counters = objects.iter().filter_map(|answer| name_of(answer, 2)).collect();
        seen.insert(family, table);
    }
    Ok(seen)
}

/// Objects of a kind in our table of this family.
fn list(
    socket: &mut Socket,
    kind: u16,
    family: u8,
    table_attribute: u16,
) -> Result<Vec<Answer>, NetlinkError> {
    let mut message = Message::new(kind, 0, &[family, 0, 0, 0]);
    message.text(1, TABLE);
    let mut answers = socket.dump(&message)?;
    answers.retain(|answer| {
        answer.body.first() == Some(&family) && name_of(answer, table_attribute).as_deref() == Some(TABLE)
    });
    Ok(answers)
}

fn name_of(answer: &Answer, attribute: u16) -> Option<String> {
    attributes(&answer.body, GENERIC_BYTES).value_of(attribute).map(read_text)
}

fn hook_seen(answer: &Answer) -> Option<Hook> {
    use node_core::net::rules::HookKind;
    let hook = attributes(&answer.body, GENERIC_BYTES).value_of(4)?;
    let be32 = |kind| attributes(hook, 0).value_of(kind)?.try_into().ok().map(u32::from_be_bytes);
    let number = be32(1)?;
    Some(Hook {
        kind: if name_of(answer, 7)? == "nat" { HookKind::Nat } else { HookKind::Filter },
        // The one place frames enter a link has the number of the first one packets pass.
        point: if answer.body.first() == Some(&family_number(Family::Netdev)) {
            HookPoint::Ingress
        } else {
            POINTS.into_iter().find(|point| point_number(*point) == number)?
        },
        priority: be32(2)?.cast_signed(),
        link: attributes(hook, 0).value_of(3).map(read_text),
    })
}

/// The whole way from what was seen to the ruleset, as one transaction.
fn replacement(
    seen: &BTreeMap<Family, TableSeen>,
    ruleset: &Ruleset,
    mark: &str,
    links: &BTreeMap<String, u32>,
) -> Vec<Message> {
    let mut batch = Vec::new();
    let mut next_set = 0;
    for family in seen.keys().filter(|family| !ruleset.tables.contains_key(family)) {
        batch.push(of_table(DEL_TABLE, 0, *family));
    }
    for (family, table) in &ruleset.tables {
        let family = *family;
        let empty = TableSeen::default();
        let old = match seen.get(&family) {
            Some(old) => old,
            None => {
                batch.push(of_table(NEW_TABLE, CREATE, family));
                &empty
            }
        };
        if seen.contains_key(&family) {
            batch.push(of_table(DEL_RULE, 0, family));
        }
        let mark_chain = Chain::default();
        let chains: BTreeMap<&str, &Chain> = table
            .chains
            .iter()
            .map(|(name, chain)| (name.as_str(), chain))
            .chain([(mark, &mark_chain)])
            .collect();
        let stays = |name: &str, hook: &Option<Hook>| chains.get(name).is_some_and(|c| c.hook == *hook);
        for (name, _) in old.chains.iter().filter(|(name, hook)| !stays(name, hook)) {
            batch.push(named(DEL_CHAIN, 0, family, 3, name));
        }
        for name in old.sets.difference(&table.host_sets) {
            batch.push(named(DEL_SET, 0, family, 2, name));
        }
        for name in old.counters.difference(&table.counters) {
            let mut message = named(DEL_OBJECT, 0, family, 2, name);
            message.be32(3, OBJECT_COUNTER);
            batch.push(message);
        }
        for name in table.counters.difference(&old.counters) {
            let mut message = named(NEW_OBJECT, CREATE, family, 2, name);
            message.be32(3, OBJECT_COUNTER).nest(4, |_| {});
            batch.push(message);
        }
        for name in table.host_sets.difference(&old.sets) {
            next_set += 1;
            batch.push(host_set(family, name, next_set));
        }
        for (name, chain) in &chains {
            if !old.chains.get(*name).is_some_and(|hook| stays(name, hook)) {
                batch.push(new_chain(family, name, chain.hook.as_ref()));
            }
        }
        for (name, chain) in &table.chains {
            for rule in &chain.rules {
                let mut sets = Vec::new();
                let mut message = named(NEW_RULE, CREATE | APPEND, family, 2, name);
                message.nest(4, |list| {
                    Encoder::new(list, family, &mut sets, &mut next_set, links).rule(rule);
                });
                for set in &sets {
                    anonymous_set(&mut batch, family, set);
                }
                batch.push(message);
            }
        }
    }
    framed(batch)
}

fn new_chain(family: Family, name: &str, hook: Option<&Hook>) -> Message {
    let mut message = named(NEW_CHAIN, CREATE, family, 3, name);
    if let Some(hook) = hook {
        message
            .nest(4, |data| {
                data.be32(1, point_number(hook.point)).be32(2, hook.priority.cast_unsigned());
                if let Some(link) = &hook.link {
                    data.text(3, link);
                }
            })
            .be32(5, POLICY_ACCEPT)
            .text(7, hook.kind.name());
    }
    message
}

fn host_set(family: Family, name: &str, id: u32) -> Message {
    let mut message = named(NEW_SET, CREATE, family, 2, name);
    message.be32(3, SET_TIMEOUT).be32(4, KEY_IPV4.0).be32(5, KEY_IPV4.1);
    message.nest_attr(9, 1, &HOST_SET_SIZE.to_be_bytes()).be32(10, id);
    message
}

fn anonymous_set(batch: &mut Vec<Message>, family: Family, set: &AnonymousSet) {
    let name = anonymous_name(set.is_verdict_map);
    let mut message = named(NEW_SET, CREATE, family, 2, name);
    let flags = SET_ANONYMOUS_CONSTANT | if set.is_verdict_map { SET_MAP } else { 0 };
    message.be32(3, flags).be32(4, set.key.0).be32(5, set.key.1);
    if set.is_verdict_map {
        message.be32(6, DATA_VERDICT).be32(7, 0);
    }
    message.nest_attr(9, 1, &(set.elements.len() as u32).to_be_bytes()).be32(10, set.id);
    message.attr(13, &byte_order(set.key));
    batch.push(message);
    for elements in set.elements.chunks(ELEMENTS_PER_MESSAGE) {
        let mut message = named(NEW_ELEMENT, CREATE, family, 2, name);
        message.be32(4, set.id).nest(3, |list| {
            for element in elements {
                list.nest(1, |data| {
                    data.nest_attr(1, 1, &element.key);
                    if let Some(chain) = &element.chain {
                        data.nest(2, |value| goto_data(value, chain));
                    }
                });
            }
        });
        batch.push(message);
    }
}

/// User data that lets nft print the keys: a field of type 0 and 4 bytes, 1 for the machine's byte order, 2 for the
/// network's. The kernel keeps it unread.
fn byte_order(key: (u32, u32)) -> [u8; 6] {
    let order: u32 = if key == KEY_LINK || key == KEY_MARK { 1 } else { 2 };
    let [a, b, c, d] = order.to_ne_bytes();
    [0, 4, a, b, c, d]
}

/// A message about our table; its name is attribute 1 in all of them.
fn of_table(kind: u16, flags: u16, family: Family) -> Message {
    let mut message = Message::new(kind, flags, &[family_number(family), 0, 0, 0]);
    message.text(1, TABLE);
    message
}

fn named(kind: u16, flags: u16, family: Family, attribute: u16, name: &str) -> Message {
    let mut message = of_table(kind, flags, family);
    message.text(attribute, name);
    message
}

fn framed(messages: Vec<Message>) -> Vec<Message> {
    // Family unspecified, version 0, and in network byte order the subsystem the batch is for.
    let edge = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
    [vec![edge(BATCH_BEGIN)], messages, vec![edge(BATCH_END)]].concat()
}

const POINTS: [HookPoint; 5] =
    [HookPoint::Prerouting, HookPoint::Input, HookPoint::Forward, HookPoint::Output, HookPoint::Postrouting];

const fn point_number(point: HookPoint) -> u32 {
    match point {
        HookPoint::Ingress | HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    }
}

const fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Bridge => 7,
        Family::Netdev => 5,
    }
}
