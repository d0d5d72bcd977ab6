// SPDX-License-Identifier: Apache-2.0
//! Flow logs.

use model::flow::{Flow, FlowAction, FlowReport, Lookup};
use prost::Message;

use super::info::device_id;
use super::timestamp;
use crate::wire::flowlog as wire;

/// The payload of `POST /flowlog`.
pub fn flows(report: &FlowReport) -> Vec<u8> {
    let scope = &report.scope;
    wire::FlowMessage {
        dev_id: device_id(report.device),
        scope: Some(wire::ScopeInfo {
            uuid: scope.app.to_string(),
            intf: scope.interface.clone(),
            local_intf: scope.host_name.clone(),
            net_inst_uuid: scope.network.to_string(),
        }),
        flows: report.flows.iter().map(flow).collect(),
        dns_reqs: report.lookups.iter().map(lookup).collect(),
    }
    .encode_to_vec()
}

/// Source is the app in flows of both directions, as EVE writes them.
fn flow(flow: &Flow) -> wire::FlowRecord {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    wire::FlowRecord {
        flow: Some(wire::IpFlow {
            src: flow.local.to_string(),
            src_port: flow.local_port.into(),
            dest: flow.remote.to_string(),
            dest_port: flow.remote_port.into(),
            protocol: flow.protocol.into(),
        }),
        inbound: flow.is_inbound,
        acl_id: flow.acl_id,
        start_time: flow.started.map(timestamp),
        end_time: flow.ended.map(timestamp),
        tx_bytes: number(flow.tx_bytes),
        tx_pkts: number(flow.tx_packets),
        rx_bytes: number(flow.rx_bytes),
        rx_pkts: number(flow.rx_packets),
        action: match flow.action {
            FlowAction::Unknown => wire::AclAction::ActionUnknown,
            FlowAction::Dropped => wire::AclAction::ActionDrop,
            FlowAction::Accepted => wire::AclAction::ActionAccept,
        }
        .into(),
        ..Default::default()
    }
}

fn lookup(lookup: &Lookup) -> wire::DnsRequest {
    wire::DnsRequest {
        host_name: lookup.name.clone(),
        addrs: lookup.addresses.iter().map(ToString::to_string).collect(),
        request_time: lookup.at.map(timestamp),
        ..Default::default()
    }
}
