// SPDX-License-Identifier: Apache-2.0
//! What apps talked to, as their devices recorded it: kept by the line, as logs are.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::IntoResponse as _;
use controller_core::resource::Kind;
use model::flow::{Flow, FlowAction, FlowReport, Lookup};
use model::time::WallTime;
use serde::Deserialize;
use serde_json::{Value, json};

use super::view::{devices_of, read, time};
use super::{Answered, Api, PathParts, find, part};
use crate::observed::StreamName;

/// Lines in one answer: the newest.
const MAX_LINES: usize = 5000;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FlowQuery {
    /// Only from this device.
    device: Option<String>,
}

fn at(time_of: Option<WallTime>) -> Option<String> {
    let at = time_of?;
    time(at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos / 1_000_000)))
}

/// The lines a report is kept as.
pub(crate) fn lines(report: &FlowReport) -> Vec<Vec<u8>> {
    let scope = json!({ "interface": report.scope.interface, "network": report.scope.network.to_string() });
    let flows = report.flows.iter().map(flow).chain(report.lookups.iter().map(lookup));
    let whole = |mut line: Value| {
        if let (Some(line), Some(scope)) = (line.as_object_mut(), scope.as_object()) {
            line.extend(scope.clone());
        }
        serde_json::to_vec(&line).ok()
    };
    flows.filter_map(whole).collect()
}

fn flow(flow: &Flow) -> Value {
    let protocol = match flow.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    json!({
        "kind": "flow",
        "direction": if flow.is_inbound { "in" } else { "out" },
        "protocol": protocol,
        "local": format!("{}:{}", flow.local, flow.local_port),
        "remote": format!("{}:{}", flow.remote, flow.remote_port),
        "action": match flow.action {
            FlowAction::Accepted => "allow",
            FlowAction::Dropped => "deny",
            FlowAction::Unknown => "unknown",
        },
        "rule": flow.acl_id,
        "started": at(flow.started),
        "ended": at(flow.ended),
        "txBytes": flow.tx_bytes,
        "txPackets": flow.tx_packets,
        "rxBytes": flow.rx_bytes,
        "rxPackets": flow.rx_packets,
    })
}

fn lookup(lookup: &Lookup) -> Value {
    let addresses: Vec<String> = lookup.addresses.iter().map(ToString::to_string).collect();
    json!({ "kind": "lookup", "name": lookup.name, "addresses": addresses, "at": at(lookup.at) })
}

/// Flows and lookups of an app, newest last per device.
pub(super) async fn app_flows(
    State(api): State<Api>,
    path: PathParts,
    Query(query): Query<FlowQuery>,
) -> Answered {
    let app = find(&api, Kind::App, part(&path, "name"))?;
    let mut items = Vec::new();
    for (name, device, id) in devices_of(&api, &app, query.device.as_deref()) {
        for record in read(&api, device, StreamName::Flows(id)).await? {
            let Ok(mut line) = serde_json::from_slice::<Value>(&record.bytes) else { continue };
            if let Some(line) = line.as_object_mut() {
                line.insert("device".into(), json!(name));
                line.insert("sequence".into(), json!(record.sequence));
            }
            items.push(line);
        }
    }
    items.drain(..items.len().saturating_sub(MAX_LINES));
    Ok(Json(json!({ "items": items })).into_response())
}
