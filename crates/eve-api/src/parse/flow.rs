// SPDX-License-Identifier: Apache-2.0
//! Flow logs, as a controller reads them. Entries without readable addresses are left out.

use model::flow::{Flow, FlowAction, FlowReport, FlowScope, Lookup};
use prost::Message;

use super::{ParseError, wall_time};
use crate::wire::flowlog as wire;

/// Reads a `FlowMessage`; `None` where it does not say whose flows these are.
pub fn flows(untrusted_payload: &[u8]) -> Result<Option<FlowReport>, ParseError> {
    let message = wire::FlowMessage::decode(untrusted_payload).map_err(|_| ParseError::Malformed)?;
    let scope = message.scope.as_ref().and_then(|scope| {
        Some(FlowScope {
            app: scope.uuid.parse().ok()?,
            interface: scope.intf.clone(),
            host_name: scope.local_intf.clone(),
            network: scope.net_inst_uuid.parse().ok()?,
        })
    });
    Ok(scope.map(|scope| FlowReport {
        device: message.dev_id.parse().ok(),
        scope,
        flows: message.flows.iter().filter_map(flow).collect(),
        lookups: message.dns_reqs.iter().map(lookup).collect(),
    }))
}

fn flow(wire: &wire::FlowRecord) -> Option<Flow> {
    let flow = wire.flow.as_ref()?;
    let number = |count: i64| u64::try_from(count).unwrap_or(0);
    Some(Flow {
        local: flow.src.parse().ok()?,
        local_port: u16::try_from(flow.src_port).unwrap_or(0),
        remote: flow.dest.parse().ok()?,
        remote_port: u16::try_from(flow.dest_port).unwrap_or(0),
        protocol: u8::try_from(flow.protocol).ok()?,
        is_inbound: wire.inbound,
        acl_id: wire.acl_id,
        action: match wire::AclAction::try_from(wire.action) {
            Ok(wire::AclAction::ActionDrop) => FlowAction::Dropped,
            Ok(wire::AclAction::ActionAccept) => FlowAction::Accepted,
            Ok(wire::AclAction::ActionUnknown) | Err(_) => FlowAction::Unknown,
        },
        started: wire.start_time.as_ref().map(wall_time),
        ended: wire.end_time.as_ref().map(wall_time),
        tx_bytes: number(wire.tx_bytes),
        tx_packets: number(wire.tx_pkts),
        rx_bytes: number(wire.rx_bytes),
        rx_packets: number(wire.rx_pkts),
    })
}

fn lookup(wire: &wire::DnsRequest) -> Lookup {
    Lookup {
        name: wire.host_name.clone(),
        addresses: wire.addrs.iter().filter_map(|text| text.parse().ok()).collect(),
        at: wire.request_time.as_ref().map(wall_time),
    }
}
