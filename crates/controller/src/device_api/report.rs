// SPDX-License-Identifier: Apache-2.0
//! What nodes report: info, metrics, logs, flows, health. Kept as it came; only what is no message is refused.

use std::sync::Arc;

use controller_core::compute::app_id;
use controller_core::resource::Kind;
use eve_api::Message as _;
use eve_api::newlogs::{self, LogEntry};
use eve_api::wire::hardwarehealth::ZHardwareHealth;
use eve_api::wire::info::ZInfoMsg;
use eve_api::wire::metrics::ZMetricMsg;
use eve_api::wire::metrics::z_metric_msg::MetricContent;
use eve_api::wire::proxy::ScepProxyRequest;
use hyper::StatusCode;
use model::id::DeviceId;
use model::report::Info;
use uuid::Uuid;

use super::{Answer, Outcome, malformed};
use crate::node::Node;
use crate::observed::StreamName;
use crate::state::{Controller, now_ms};
use crate::telemetry::add;
use crate::telemetry::otlp::LogRecord;

/// More waits to be written than is good, or cannot be: the device keeps what it has and comes again.
fn later() -> Answer {
    Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, "try again later")
}

pub(super) async fn info(controller: &Controller, node: &Node, payload: &[u8]) -> Outcome {
    let message = ZInfoMsg::decode(payload).map_err(|_| malformed("not a ZInfoMsg"))?;
    let (before, receipt) =
        controller.observed.info(node.id, now_ms(), &message, payload).map_err(|_| later())?;
    add(&controller.counters.info_messages, 1);
    // Answered only when it outlives this process: after the answer the device forgets it.
    if !receipt.written().await {
        return Err(later());
    }
    controller.feed.touch(Kind::Device, node.id);
    tell_of_change(controller, node, before.as_ref().map(|latest| &*latest.bytes), payload);
    Ok(Answer::done(StatusCode::CREATED))
}

/// Makes an event of an app's new state.
fn tell_of_change(controller: &Controller, node: &Node, before: Option<&[u8]>, now: &[u8]) {
    let app = |bytes: &[u8]| match eve_api::parse::info(bytes).ok()?.info {
        Info::App(app) => Some(app),
        _ => None,
    };
    let Some(now) = app(now) else { return };
    let before = before.and_then(app);
    let is_same = |old: &model::status::AppStatus| old.state == now.state && old.faults == now.faults;
    if before.as_ref().is_some_and(is_same) {
        return;
    }
    if now.is_gone() {
        let name = before.map(|before| before.name).unwrap_or_default();
        controller.observed.event(now_ms(), format!("app/{name}"), "Gone", format!("gone from {}", node.id));
        return;
    }
    let faults: Vec<String> = now.faults.iter().map(ToString::to_string).collect();
    let colon = if faults.is_empty() { "" } else { ": " };
    let message = format!("{:?} on {}{colon}{}", now.state, node.id, faults.join("; "));
    controller.observed.event(now_ms(), format!("app/{}", now.name), "StateChanged", message);
}

pub(super) async fn metrics(controller: &Arc<Controller>, node: &Arc<Node>, payload: &[u8]) -> Outcome {
    let message = ZMetricMsg::decode(payload).map_err(|_| malformed("not a ZMetricMsg"))?;
    let processed = match &message.metric_content {
        Some(MetricContent::Dm(device)) => device.last_processed_config,
        _ => None,
    };
    let processed_ms = processed
        .map_or(0, |at| at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000));
    if node.is_ahead(processed_ms) {
        let (controller, node) = (controller.clone(), node.clone());
        tokio::task::spawn_blocking(move || controller.overtake(&node, processed_ms)).await??;
    }
    add(&controller.counters.metric_messages, 1);
    controller.observed.metrics(node.id, now_ms(), payload);
    controller.feed.touch(Kind::Device, node.id);
    Ok(Answer::done(StatusCode::CREATED))
}

pub(super) async fn newlogs(controller: &Arc<Controller>, node: Arc<Node>, payload: Vec<u8>) -> Outcome {
    store_logs(controller.clone(), node, StreamName::DeviceLog, payload).await
}

pub(super) async fn app_newlogs(
    controller: &Arc<Controller>,
    node: Arc<Node>,
    app: &str,
    payload: Vec<u8>,
) -> Outcome {
    let app: Uuid = app.parse().map_err(|_| malformed("the app's id is no UUID"))?;
    store_logs(controller.clone(), node, StreamName::AppLog(app), payload).await
}

/// Unpacks on a thread of its own: a file of 64 KiB may unpack to megabytes.
async fn store_logs(
    controller: Arc<Controller>,
    node: Arc<Node>,
    stream: StreamName,
    payload: Vec<u8>,
) -> Outcome {
    let receipt = tokio::task::spawn_blocking(move || {
        let file = newlogs::read(&payload).map_err(|error| malformed(error.to_string()))?;
        let lines =
            file.entries.iter().filter_map(|entry: &LogEntry| serde_json::to_vec(entry).ok()).collect();
        add(&controller.counters.log_lines, file.entries.len() as u64);
        let receipt = controller.observed.logs(node.id, stream, now_ms(), lines).map_err(|_| later())?;
        export(&controller, node.id, stream, &file.entries);
        Ok::<_, Answer>(receipt)
    })
    .await??;
    if receipt.written().await { Ok(Answer::done(StatusCode::CREATED)) } else { Err(later()) }
}

/// Hands log lines on to a collector, where there is one.
fn export(controller: &Controller, device: Uuid, stream: StreamName, entries: &[LogEntry]) {
    let Some(queue) = &controller.exported_logs else { return };
    let (name, app) = controller.with_project(|project| {
        let name = project.device_names.get(&device).cloned().unwrap_or_default();
        let app = match stream {
            StreamName::AppLog(app) => {
                let mut apps = project.intent.apps.values();
                let found = apps.find(|object| app_id(object.uid, DeviceId(device)).0 == app);
                Some(found.map_or_else(|| app.to_string(), |object| object.name.clone()))
            }
            _ => None,
        };
        (name, app)
    });
    for entry in entries {
        let at = entry.timestamp.unwrap_or_default();
        let mut attributes = vec![("device", name.clone())];
        attributes.extend(app.clone().map(|app| ("app", app)));
        attributes.extend((!entry.source.is_empty()).then(|| ("source", entry.source.clone())));
        queue.push(LogRecord {
            at_ns: i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos),
            severity: entry.severity.clone(),
            body: entry.content.trim_end().to_owned(),
            service: "selvedge-node",
            attributes,
        });
    }
}

/// Flows of an app, kept by the line. A report that names no app is nobody's.
pub(super) async fn flowlog(controller: &Controller, node: &Node, payload: &[u8]) -> Outcome {
    let report = eve_api::parse::flows(payload).map_err(|_| malformed("not a FlowMessage"))?;
    let Some(report) = report else { return Ok(Answer::done(StatusCode::CREATED)) };
    let stream = StreamName::Flows(report.scope.app.0);
    let lines = crate::operator_api::flows::lines(&report);
    let receipt = controller.observed.logs(node.id, stream, now_ms(), lines).map_err(|_| later())?;
    if receipt.written().await { Ok(Answer::done(StatusCode::CREATED)) } else { Err(later()) }
}

pub(super) fn hardware_health(payload: &[u8]) -> Outcome {
    ZHardwareHealth::decode(payload).map_err(|_| malformed("not a ZHardwareHealth"))?;
    Ok(Answer::done(StatusCode::CREATED))
}

/// No SCEP profile can be configured, so every one is unknown.
pub(super) fn scep(payload: &[u8]) -> Outcome {
    ScepProxyRequest::decode(payload).map_err(|_| malformed("not a SCEPProxyRequest"))?;
    Err(Answer::refuse(StatusCode::FORBIDDEN, "unknown SCEP profile"))
}
