// SPDX-License-Identifier: Apache-2.0
//! The flow log: what becomes of ended flows, dropped packets and name lookups until the controller takes them.
//!
//! Flows of the kernel are told from each app's side: a flow between two apps stands in both their logs. Reports are of
//! one interface and hold at most [`MAX_RECORDS`] records, as EVE's do. Everything is in memory and bounded: when nobody
//! takes reports, the newest records are dropped and counted.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::flow::{Flow, FlowAction, FlowCounters, FlowReport, FlowScope, Lookup};
use model::time::{MonoMs, WallTime};

use super::Intent;
use super::rules::Half;

/// Flows and lookups of one message.
pub const MAX_RECORDS: usize = 125;
/// Messages that wait, EVE's number as well.
pub const MAX_REPORTS: usize = 100;
/// Records are gathered this long before they become a message.
const GATHER_MS: u64 = 10_000;
/// Dropped packets of the same flow are one record while they come.
const MAX_DROPPED_FLOWS: usize = 512;
/// Longest name, RFC 1035 §2.3.4, and addresses of one lookup.
const MAX_NAME_BYTES: usize = 253;
const MAX_ADDRESSES: usize = 16;

/// An ended flow as the kernel tells it. The reply is what came back, so its source is where packets really went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFlow {
    pub protocol: u8,
    pub asked: (Ipv4Addr, Ipv4Addr),
    pub asked_ports: (u16, u16),
    pub reply: (Ipv4Addr, Ipv4Addr),
    pub reply_ports: (u16, u16),
    pub mark: u32,
    pub zone: u16,
    pub sent: Count,
    pub returned: Count,
    pub started: Option<WallTime>,
    pub ended: Option<WallTime>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// A dropped packet, as far as it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppedPacket {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

impl DroppedPacket {
    /// Reads it from its IPv4 header on.
    pub fn parse(untrusted_packet: &[u8]) -> Option<(DroppedPacket, u64)> {
        let header = usize::from(untrusted_packet.first()? & 0x0f) * 4;
        if untrusted_packet.first()? >> 4 != 4 || header < 20 {
            return None;
        }
        let half = |at: usize| {
            untrusted_packet.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes)
        };
        let address = |at: usize| -> Option<Ipv4Addr> {
            let bytes: [u8; 4] = untrusted_packet.get(at..at + 4)?.try_into().ok()?;
            Some(bytes.into())
        };
        let protocol = *untrusted_packet.get(9)?;
        let has_ports = protocol == super::rules::TCP || protocol == super::rules::UDP;
        let port = |at| if has_ports { half(header + at).unwrap_or(0) } else { 0 };
        let packet = DroppedPacket {
            source: address(12)?,
            destination: address(16)?,
            protocol,
            source_port: port(0),
            destination_port: port(2),
        };
        Some((packet, half(2)?.into()))
    }
}

/// What waits for the controller.
#[derive(Clone, Debug, Default)]
pub struct FlowLog {
    gathering: BTreeMap<FlowScope, (Vec<Flow>, Vec<Lookup>)>,
    /// By interface and whether the packet was for it.
    dropped: BTreeMap<(FlowScope, bool, DroppedPacket), Flow>,
    since: Option<MonoMs>,
    reports: VecDeque<(u64, FlowReport)>,
    next_batch: u64,
    lost: FlowCounters,
}

impl FlowLog {
    /// A flow ended. Flows of nobody, or of networks that keep no log, are nothing.
    pub fn ended(&mut self, now: MonoMs, intent: &Intent, flow: &KernelFlow) {
        for (scope, record) in from_both_sides(intent, flow) {
            self.add(now, scope, Some(record), None);
        }
    }

    /// A packet was dropped by a rule of an interface.
    pub fn dropped(
        &mut self,
        now: (MonoMs, Option<WallTime>),
        intent: &Intent,
        (link, half, acl_id): (&str, Half, i32),
        (packet, bytes): (DroppedPacket, u64),
    ) {
        let Some(scope) = scope_of(intent, link) else { return };
        let is_inbound = half == Half::In;
        let key = (scope, is_inbound, packet);
        if self.dropped.len() >= MAX_DROPPED_FLOWS && !self.dropped.contains_key(&key) {
            self.lost.flows.dropped += 1;
            return;
        }
        let (app, other) = if is_inbound {
            ((packet.destination, packet.destination_port), (packet.source, packet.source_port))
        } else {
            ((packet.source, packet.source_port), (packet.destination, packet.destination_port))
        };
        let flow = self.dropped.entry(key).or_insert(Flow {
            local: app.0,
            local_port: app.1,
            remote: other.0,
            remote_port: other.1,
            protocol: packet.protocol,
            is_inbound,
            acl_id,
            action: FlowAction::Dropped,
            started: now.1,
            ended: now.1,
            tx_bytes: 0,
            tx_packets: 0,
            rx_bytes: 0,
            rx_packets: 0,
        });
        flow.ended = now.1;
        if is_inbound {
            (flow.rx_packets, flow.rx_bytes) = (flow.rx_packets + 1, flow.rx_bytes + bytes);
        } else {
            (flow.tx_packets, flow.tx_bytes) = (flow.tx_packets + 1, flow.tx_bytes + bytes);
        }
        self.since.get_or_insert(now.0);
    }

    /// An app asked for a name; `link` is the node's end of the interface it asked through.
    pub fn asked(&mut self, now: MonoMs, intent: &Intent, link: &str, lookup: Lookup) {
        let Some(scope) = scope_of(intent, link) else { return };
        let mut lookup = lookup;
        lookup.addresses.truncate(MAX_ADDRESSES);
        lookup.name = lookup.name.chars().take(MAX_NAME_BYTES).collect();
        self.add(now, scope, None, Some(lookup));
    }

    fn add(&mut self, now: MonoMs, scope: FlowScope, flow: Option<Flow>, lookup: Option<Lookup>) {
        self.since.get_or_insert(now);
        let (flows, lookups) = self.gathering.entry(scope.clone()).or_default();
        flows.extend(flow);
        lookups.extend(lookup);
        if flows.len() + lookups.len() >= MAX_RECORDS {
            self.close(&scope);
        }
    }

    fn close(&mut self, scope: &FlowScope) {
        let Some((flows, lookups)) = self.gathering.remove(scope) else { return };
        if self.reports.len() >= MAX_REPORTS {
            self.lost.messages.dropped += 1;
            self.lost.flows.dropped += flows.len() as u64;
            self.lost.lookups.dropped += lookups.len() as u64;
            return;
        }
        self.next_batch += 1;
        let report = FlowReport { device: None, scope: scope.clone(), flows, lookups };
        self.reports.push_back((self.next_batch, report));
    }

    /// When records that were gathered become messages.
    pub fn deadline(&self) -> Option<MonoMs> {
        self.since.map(|since| since.plus_ms(GATHER_MS))
    }

    pub fn wake(&mut self, now: MonoMs) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        for ((scope, _, _), flow) in core::mem::take(&mut self.dropped) {
            self.add(now, scope, Some(flow), None);
        }
        let scopes: Vec<FlowScope> = self.gathering.keys().cloned().collect();
        for scope in scopes {
            self.close(&scope);
        }
        self.since = None;
    }

    /// What nobody took in time, since the start.
    pub fn lost(&self) -> FlowCounters {
        self.lost
    }

    /// The oldest report.
    pub fn next(&self) -> Option<&(u64, FlowReport)> {
        self.reports.front()
    }

    pub fn taken(&mut self, batch: u64) {
        self.reports.retain(|(number, _)| *number > batch);
    }
}

fn scope_of(intent: &Intent, link: &str) -> Option<FlowScope> {
    let vif = intent.vifs.get(link).filter(|vif| vif.is_flow_logged)?;
    Some(FlowScope {
        app: vif.app,
        interface: vif.inner_name.clone(),
        host_name: link.to_string(),
        network: vif.network,
    })
}

/// The flow as each app that took part has it.
fn from_both_sides(intent: &Intent, flow: &KernelFlow) -> Vec<(FlowScope, Flow)> {
    let (out, into) = intent.numbers.of_mark(flow.mark);
    let mut sides = Vec::new();
    let record = |local, remote, is_inbound, acl_id| {
        let ((local, local_port), (remote, remote_port)): ((Ipv4Addr, u16), (Ipv4Addr, u16)) =
            (local, remote);
        let (tx, rx) = if is_inbound { (flow.returned, flow.sent) } else { (flow.sent, flow.returned) };
        Flow {
            local,
            local_port,
            remote,
            remote_port,
            protocol: flow.protocol,
            is_inbound,
            acl_id,
            action: FlowAction::Accepted,
            started: flow.started,
            ended: flow.ended,
            tx_bytes: tx.bytes,
            tx_packets: tx.packets,
            rx_bytes: rx.bytes,
            rx_packets: rx.packets,
        }
    };
    if let Some((scope, rule)) = out.and_then(|rule| Some((scope_of(intent, &rule.link)?, rule))) {
        let (local, remote) = ((flow.asked.0, flow.asked_ports.0), (flow.asked.1, flow.asked_ports.1));
        sides.push((scope, record(local, remote, false, rule.id)));
    }
    if let Some((scope, rule)) = into.and_then(|rule| Some((scope_of(intent, &rule.link)?, rule))) {
        let (local, remote) = ((flow.reply.0, flow.reply_ports.0), (flow.asked.0, flow.asked_ports.0));
        sides.push((scope, record(local, remote, true, rule.id)));
    }
    sides
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::format;
    use alloc::string::String;

    use model::id::{AppId, NetworkInstanceId};
    use model::net::Mac;
    use uuid::Uuid;

    use crate::net::{Addressing, Vif};

    fn intent() -> Intent {
        let vif = Vif {
            app: AppId(Uuid::from_u128(1)),
            network: NetworkInstanceId(Uuid::nil()),
            bridge: "bn1".to_string(),
            inner_name: "eth0".to_string(),
            mac: Mac([2; 6]),
            mtu: 1500,
            is_default: true,
            is_flow_logged: true,
            addressing: Addressing::Outside,
        };
        let silent = Vif { is_flow_logged: false, ..vif.clone() };
        let vifs = BTreeMap::from([("a".to_string(), vif), ("b".to_string(), silent)]);
        Intent { vifs, ..Intent::default() }
    }

    fn lookup(number: usize) -> Lookup {
        Lookup { name: format!("n{number}.example"), addresses: Vec::new(), at: None }
    }

    #[test]
    fn messages_are_full_or_due_and_what_nobody_takes_is_counted() {
        let (intent, mut log) = (intent(), FlowLog::default());
        log.asked(MonoMs(5), &intent, "b", lookup(0));
        log.asked(MonoMs(5), &intent, "gone", lookup(0));
        assert_eq!(log.deadline(), None, "nobody asked for these");
        for number in 0..MAX_RECORDS + 3 {
            log.asked(MonoMs(5), &intent, "a", lookup(number));
        }
        assert_eq!(log.next().map(|(_, report)| report.lookups.len()), Some(MAX_RECORDS));
        assert_eq!(log.deadline(), Some(MonoMs(5 + GATHER_MS)));
        log.wake(MonoMs(5 + GATHER_MS - 1));
        let batch = log.next().map_or(0, |(batch, _)| *batch);
        assert_eq!(log.next().map(|(batch, _)| *batch), Some(batch), "until it is taken it is the same");
        log.taken(batch);
        assert_eq!(log.next(), None);
        log.wake(MonoMs(5 + GATHER_MS));
        assert_eq!(log.next().map(|(_, report)| report.lookups.len()), Some(3));
        for number in 0..MAX_RECORDS * (MAX_REPORTS + 4) {
            log.asked(MonoMs(9), &intent, "a", lookup(number));
        }
        let lost = log.lost();
        assert_eq!((lost.messages.dropped, lost.lookups.dropped), (5, 5 * MAX_RECORDS as u64));
    }

    #[test]
    fn dropped_packets_of_one_flow_are_one_record() {
        let (intent, mut log) = (intent(), FlowLog::default());
        let packet = DroppedPacket {
            source: Ipv4Addr::new(10, 1, 0, 2),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            protocol: 17,
            source_port: 5,
            destination_port: 53,
        };
        for bytes in [60, 40] {
            log.dropped((MonoMs(1), None), &intent, ("a", Half::Out, 9), (packet, bytes));
        }
        for port in 0..MAX_DROPPED_FLOWS as u16 + 10 {
            let other = DroppedPacket { source_port: 1000 + port, ..packet };
            log.dropped((MonoMs(1), None), &intent, ("a", Half::In, 0), (other, 28));
        }
        log.wake(MonoMs(1 + GATHER_MS));
        let mut flows = Vec::new();
        while let Some((batch, report)) = log.next().cloned() {
            assert!(report.flows.len() <= MAX_RECORDS);
            flows.extend(report.flows);
            log.taken(batch);
        }
        let first = flows.iter().find(|flow| !flow.is_inbound).unwrap();
        assert_eq!((first.tx_packets, first.tx_bytes, first.acl_id), (2, 100, 9));
        assert_eq!((first.local, first.remote_port, first.action), (packet.source, 53, FlowAction::Dropped));
        assert_eq!((flows.len(), log.lost().flows.dropped), (MAX_DROPPED_FLOWS, 11));
        let word = String::from("drop nbu1x2 in -4");
        assert_eq!(crate::net::read_drop_word(&word), Some(("nbu1x2", Half::In, -4)));
        assert_eq!(crate::net::read_drop_word("arp nbu1x2"), None);
    }
}
