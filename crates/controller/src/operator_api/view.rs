// SPDX-License-Identifier: Apache-2.0
//! What the operator sees of objects and devices: status and conditions, and what devices reported.
//!
//! Status is computed at each look from what devices said last; nothing of it is stored.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use controller_core::compute::{app_id, wire_id};
use controller_core::intent::{Object, is_chosen};
use controller_core::resource::{AppSpec, Attestation, DeviceSpec, Kind};
use eve_api::newlogs::LogEntry;
use model::id::{AppId, DeviceId, VolumeId};
use model::reason::{Fault, Reason};
use model::report::{DeviceStatus, Info};
use model::status::{AppStatus, SwState};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answered, Api, PathParts, Problem, blocking, find, part};
use crate::node::{ConfigState, NodeRecord};
use crate::objects::Stored;
use crate::observed::{DeviceView, Latest, Record, StreamName};
use crate::state::{Controller, now_ms};

/// A device that was not heard for this long is shown as not connected: two held polls and a pause.
pub(crate) const SILENCE_MS: i64 = 120_000;
/// Log lines in one answer.
const MAX_LOG_LINES: usize = 5000;

/// A condition as Kubernetes users know it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Condition {
    r#type: &'static str,
    /// `True`, `False` or `Unknown`.
    status: &'static str,
    reason: String,
    message: String,
}

pub(super) fn condition(
    r#type: &'static str,
    is_true: bool,
    reason: &str,
    message: impl Into<String>,
) -> Condition {
    Condition {
        r#type,
        status: if is_true { "True" } else { "False" },
        reason: reason.into(),
        message: message.into(),
    }
}

pub(super) fn time(ms: i64) -> Option<String> {
    (ms > 0).then(|| jiff::Timestamp::from_millisecond(ms).ok().map(|at| at.to_string()))?
}

/// An object with its status.
pub(super) async fn document(api: &Api, stored: &Stored) -> Result<Value, Problem> {
    let status = match stored.kind() {
        Kind::Device => Some(device_status(api, stored).await?),
        Kind::App => Some(app_status(api, stored).await?),
        Kind::JoinToken => Some(join_token_status(api, stored)),
        Kind::Secret => {
            let keys: Vec<&String> = stored
                .spec
                .get("data")
                .and_then(Value::as_object)
                .map(|data| data.keys().collect())
                .unwrap_or_default();
            Some(json!({ "keys": keys }))
        }
        Kind::Volume => Some(volume_status(api, stored).await?),
        Kind::BaseOs => Some(super::base_os::status(api, stored).await?),
        Kind::Network | Kind::Registry | Kind::Datastore => None,
    };
    Ok(stored.document(status))
}

pub(super) async fn view_of(api: &Api, device: Uuid) -> Result<DeviceView, Problem> {
    api.observed.view(device).await.map_err(|error| {
        tracing::error!(%device, %error, "cannot read what a device reported");
        Problem::internal()
    })
}

/// The newest metrics of a device.
pub(super) async fn newest_metrics(api: &Api, device: Uuid) -> Result<Option<Latest>, Problem> {
    Ok(view_of(api, device).await?.metrics)
}

/// Infos whose object has a key that begins so: reading all of a device for one of them is slow.
fn infos(view: &DeviceView, prefix: &str) -> impl Iterator<Item = (Info, i64)> {
    view.info
        .range(prefix.to_owned()..)
        .take_while(move |(object, _)| object.starts_with(prefix))
        .filter_map(|(_, latest)| Some((eve_api::parse::info(&latest.bytes).ok()?.info, latest.at_ms)))
}

pub(super) fn reported_device(view: &DeviceView) -> Option<Box<DeviceStatus>> {
    infos(view, "device")
        .find_map(|(info, _)| if let Info::Device(device) = info { Some(device) } else { None })
}

fn reported_apps(view: &DeviceView) -> BTreeMap<AppId, AppStatus> {
    infos(view, "app/")
        .filter_map(|(info, _)| if let Info::App(app) = info { Some((app.app, app)) } else { None })
        .filter(|(_, app)| !app.is_gone())
        .collect()
}

fn attested(record: Option<&NodeRecord>, policy: Attestation) -> Condition {
    let Some(record) = record else {
        return condition("Attested", false, "NotRegistered", "the device has not registered yet");
    };
    let at = &record.attest;
    if at.is_proven {
        condition(
            "Attested",
            true,
            "QuoteVerified",
            "a quote was verified; the endorsement key is not proven",
        )
    } else if at.token.is_some() {
        condition("Attested", false, "NoTpm", "not attested: no TPM")
    } else if at.at_ms > 0 {
        condition("Attested", false, "Refused", at.message.clone())
    } else if policy == Attestation::None {
        condition("Attested", false, "NotAsked", "not attested: the policy asks for nothing")
    } else {
        condition("Attested", false, "Waiting", "no quote yet")
    }
}

async fn device_status(api: &Api, stored: &Stored) -> Result<Value, Problem> {
    let node = api.node(stored.uid);
    let record = node.as_ref().map(|node| node.record());
    let of_device = stored.spec.get("attestation").and_then(|v| serde_json::from_value(v.clone()).ok());
    let policy = of_device.or(record.as_ref().map(|r| r.attestation)).unwrap_or_default();
    let view = view_of(api, stored.uid).await?;
    let reported = reported_device(&view);
    let newest = view.info.values().chain(&view.metrics).map(|latest| latest.at_ms).max().unwrap_or(0);
    let seen_ms = node.as_ref().map_or(0, |node| node.last_seen_ms()).max(newest);
    let mut conditions = vec![match &record {
        Some(record) => {
            condition("Registered", true, "Registered", format!("with jointoken/{}", record.join_token))
        }
        None => condition("Registered", false, "Waiting", "no node with this serial has registered"),
    }];
    conditions.push(if seen_ms > 0 && now_ms() - seen_ms < SILENCE_MS {
        condition("Connected", true, "Heard", "")
    } else {
        condition("Connected", false, "Silent", "not heard for two minutes or more")
    });
    conditions.push(attested(record.as_ref(), policy));
    let published = match node.as_ref().map(|node| node.config.borrow().clone()) {
        Some(ConfigState::Published(published)) => Some(published),
        _ => None,
    };
    let metrics = view.metrics.as_ref().and_then(|m| eve_api::parse::metrics(&m.bytes).ok());
    let applied = metrics.as_ref().and_then(|m| m.node.processed_config);
    if let Some(published) = &published {
        let is_applied = applied.is_some() && applied >= published.config.timestamp;
        let reason = if is_applied { "Processed" } else { "Pending" };
        let version = &published.config.version;
        conditions.push(condition("ConfigApplied", is_applied, reason, format!("version {version}")));
    }
    let apps: Vec<Value> = reported_apps(&view).values().map(|app| app_line(api, stored.uid, app)).collect();
    let facts = reported.as_ref().map(|device| {
        json!({
            "architecture": device.architecture,
            "manufacturer": device.manufacturer,
            "product": device.product,
            "cpus": device.cpus,
            "memoryBytes": device.memory_bytes,
            "state": format!("{:?}", device.state),
            "version": device.software.iter().find(|s| s.is_running).or(device.software.first()).map(|s| &s.version),
            "addresses": device.ports.iter().flat_map(|p| p.observed.addresses.iter().map(ToString::to_string)).collect::<Vec<_>>(),
        })
    });
    Ok(json!({
        "id": stored.uid,
        "attestationPolicy": policy,
        "serial": record.as_ref().map(|r| &r.serial),
        "softSerial": record.as_ref().map(|r| &r.soft_serial),
        "joinToken": record.as_ref().map(|r| &r.join_token),
        "registered": record.as_ref().and_then(|r| time(r.registered_ms)),
        "lastSeen": time(seen_ms),
        "configHash": published.as_ref().map(|p| &p.hash),
        "configVersion": published.as_ref().map(|p| &p.config.version),
        "apps": apps,
        "reported": facts,
        "conditions": conditions,
    }))
}

fn fault_lines(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// State as eve-api names it.
fn state_name(state: SwState) -> String {
    let mut out = String::new();
    for (index, c) in format!("{state:?}").chars().enumerate() {
        if c.is_ascii_uppercase() && index > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

fn app_line(api: &Api, device: Uuid, app: &AppStatus) -> Value {
    let name = api.with_project(|project| {
        project
            .intent
            .apps
            .values()
            .find(|object| app_id(object.uid, DeviceId(device)) == app.app)
            .map(|object| object.name.clone())
    });
    json!({
        "name": name.unwrap_or_else(|| app.name.clone()),
        "id": app.app,
        "state": state_name(app.state),
        "faults": fault_lines(&app.faults),
    })
}

async fn app_status(api: &Api, stored: &Stored) -> Result<Value, Problem> {
    let devices = devices_of(api, stored, None);
    let (networks, is_wanted): (Vec<String>, bool) = api.with_project(|project| {
        let Some(app) = project.intent.apps.get(&stored.name) else { return (Vec::new(), true) };
        (app.spec.networks.iter().map(|on| on.network.clone()).collect(), app.spec.activate)
    });
    let mut lines = Vec::new();
    let mut seen = Sum { total: devices.len(), ..Sum::default() };
    for (name, device, id) in &devices {
        let id = AppId(*id);
        let view = view_of(api, *device).await?;
        let app = reported_apps(&view).remove(&id);
        let state = app.as_ref().map(|app| app.state);
        let is_sick = |app: &AppStatus| app.faults.iter().any(|fault| fault.reason == Reason::AppUnhealthy);
        let is_healthy = !app.as_ref().is_some_and(is_sick);
        seen.running += usize::from(state == Some(SwState::Running) && is_healthy);
        seen.stopped += usize::from(matches!(state, Some(SwState::Halted | SwState::Installed)));
        let list = app.as_ref().map(|app| fault_lines(&app.faults)).unwrap_or_default();
        seen.faults.extend(list.iter().map(|fault| format!("{name}: {fault}")));
        let is_behind = app.as_ref().is_some_and(|app| is_behind(api, *device, app));
        if is_behind {
            seen.behind.push(name.clone());
        }
        let addresses: Vec<String> = app
            .iter()
            .flat_map(|app| &app.vifs)
            .filter_map(|vif| vif.address.map(|address| address.to_string()))
            .collect();
        lines.push(json!({
            "device": name,
            "id": id,
            "state": state.map_or_else(|| "UNKNOWN".into(), state_name),
            "addresses": addresses,
            "interfaces": app.as_ref().map(|app| interfaces(&networks, app)),
            "faults": list,
        }));
    }
    let ready = app_ready(&seen, is_wanted);
    Ok(json!({ "running": seen.running, "total": seen.total, "devices": lines, "conditions": [ready] }))
}

/// Each interface of an app, as its device reports it. The network is what stands at its place in the app's order.
fn interfaces(networks: &[String], app: &AppStatus) -> Vec<Value> {
    let network = |name: &str| {
        let place: usize = name.strip_prefix("eth")?.parse().ok()?;
        networks.get(place)
    };
    let line = |vif: &model::status::VifStatus| {
        json!({
            "name": vif.name,
            "network": network(&vif.name),
            "mac": vif.mac.to_string(),
            "address": vif.address.map(|address| address.to_string()),
            "up": vif.is_up,
        })
    };
    app.vifs.iter().map(line).collect()
}

/// How a volume stands on each device that an app which uses it is chosen for.
async fn volume_status(api: &Api, stored: &Stored) -> Result<Value, Problem> {
    let devices: Vec<(String, Uuid)> = api.with_project(|project| {
        let uses =
            |app: &AppSpec| app.volumes.iter().any(|used| used.volume.as_deref() == Some(&stored.name));
        let runs_user =
            |device: &Object<DeviceSpec>| project.intent.apps_of(device).any(|app| uses(&app.spec));
        let devices = project.intent.devices.values().filter(|device| runs_user(device));
        devices.map(|device| (device.name.clone(), device.uid)).collect()
    });
    let mut lines = Vec::new();
    for (name, device) in &devices {
        let id = VolumeId(wire_id(stored.uid, DeviceId(*device), "volume"));
        let view = view_of(api, *device).await?;
        let seen = infos(&view, "volume/").filter_map(|(info, _)| match info {
            Info::Volume(volume) if volume.key.id == id => Some(volume),
            _ => None,
        });
        let seen = seen.max_by_key(|volume| volume.key.generation);
        lines.push(json!({
            "device": name,
            "id": id,
            "generation": seen.as_ref().map(|volume| volume.key.generation),
            "state": seen.as_ref().map_or_else(|| "UNKNOWN".into(), |volume| state_name(volume.state)),
            "usedBytes": seen.as_ref().map(|volume| volume.used_bytes),
            "faults": seen.as_ref().map(|volume| fault_lines(&volume.faults)).unwrap_or_default(),
        }));
    }
    Ok(json!({ "total": devices.len(), "devices": lines }))
}

/// What a device reported of an app was said of an older order than the newest.
fn is_behind(api: &Api, device: Uuid, app: &AppStatus) -> bool {
    let Some(node) = api.node(device) else { return false };
    let ConfigState::Published(published) = &*node.config.borrow() else { return false };
    let ordered = published.config.apps.iter().find(|ordered| ordered.id == app.app);
    // a device that does not tell the version is taken at its word
    !app.version.is_empty() && ordered.is_some_and(|ordered| ordered.version != app.version)
}

/// What the devices of one app report, together.
#[derive(Debug, Default)]
struct Sum {
    total: usize,
    running: usize,
    stopped: usize,
    /// Devices that have not said anything of the newest order.
    behind: Vec<String>,
    faults: Vec<String>,
}

fn app_ready(seen: &Sum, is_wanted: bool) -> Condition {
    let Sum { total, running, stopped, behind, faults } = seen;
    let count = format!("{running} of {total} running");
    match (total, is_wanted) {
        (0, _) => condition("Ready", false, "NoDevice", "chosen for no device"),
        _ if !behind.is_empty() => {
            let names = behind.join(", ");
            condition(
                "Ready",
                false,
                "Progressing",
                format!("{count}; the newest order has not reached {names}"),
            )
        }
        (_, true) if running == total => condition("Ready", true, "Running", count),
        (_, false) if stopped == total => {
            condition("Ready", false, "Deactivated", "stopped on every device, as ordered")
        }
        _ if faults.is_empty() => condition("Ready", false, "Progressing", count),
        _ => condition("Ready", false, "Faulty", format!("{count}; {}", faults.join("; "))),
    }
}

fn join_token_status(api: &Api, stored: &Stored) -> Value {
    let nodes = api.all_nodes();
    let joined = nodes.iter().filter(|node| node.with_record(|r| r.join_token == stored.name)).count();
    let attestation = stored.spec.get("attestation").cloned().unwrap_or_else(|| json!("software"));
    json!({ "devices": joined, "attestationPolicy": attestation })
}

// What devices reported, as JSON of the wire format.

fn message(name: &str) -> Option<MessageDescriptor> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(eve_api::DESCRIPTORS).ok());
    pool.as_ref()?.get_message_by_name(name)
}

/// A stored message as protobuf JSON; what cannot be shown so comes as base64.
fn to_json(name: &str, bytes: &[u8]) -> Value {
    message(name)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok())
        .and_then(|message| serde_json::to_value(&message).ok())
        .unwrap_or_else(|| json!({ "raw": base64::engine::general_purpose::STANDARD.encode(bytes) }))
}

const INFO_MESSAGE: &str = "org.lfedge.eve.info.ZInfoMsg";
const METRIC_MESSAGE: &str = "org.lfedge.eve.metrics.ZMetricMsg";
const CONFIG_MESSAGE: &str = "org.lfedge.eve.config.EdgeDevConfig";

/// Every info message that is kept, oldest first.
pub(super) async fn history(State(api): State<Api>, path: PathParts) -> Answered {
    let device = find(&api, Kind::Device, part(&path, "name"))?;
    let records = read(&api, device.uid, StreamName::Info).await?;
    let items: Vec<Value> = records
        .iter()
        .map(|r| json!({ "sequence": r.sequence, "at": time(r.at_ms), "message": to_json(INFO_MESSAGE, &r.bytes) }))
        .collect();
    Ok(Json(json!({ "items": items })).into_response())
}

pub(super) async fn read(api: &Api, device: Uuid, stream: StreamName) -> Result<Vec<Record>, Problem> {
    api.observed.history(device, stream).await.map_err(|error| {
        tracing::error!(%device, %error, "cannot read what a device reported");
        Problem::internal()
    })
}

/// The newest info of each object.
pub(super) async fn info(State(api): State<Api>, path: PathParts) -> Answered {
    let device = find(&api, Kind::Device, part(&path, "name"))?;
    let view = view_of(&api, device.uid).await?;
    let items: Vec<Value> = view
        .info
        .iter()
        .map(|(object, latest)| {
            json!({ "object": object, "at": time(latest.at_ms), "message": to_json(INFO_MESSAGE, &latest.bytes) })
        })
        .collect();
    Ok(Json(json!({ "items": items })).into_response())
}

pub(super) async fn metrics(State(api): State<Api>, path: PathParts) -> Answered {
    let device = find(&api, Kind::Device, part(&path, "name"))?;
    let view = view_of(&api, device.uid).await?;
    let latest = view.metrics.ok_or_else(|| {
        let detail = format!("device/{} has sent no metrics since the start", device.name);
        Problem::new(StatusCode::NOT_FOUND, "NotFound", detail)
    })?;
    let body = json!({ "at": time(latest.at_ms), "message": to_json(METRIC_MESSAGE, &latest.bytes) });
    Ok(Json(body).into_response())
}

/// The config as the device gets it.
pub(super) async fn config(State(api): State<Api>, path: PathParts) -> Answered {
    let device = find(&api, Kind::Device, part(&path, "name"))?;
    let computed = blocking(&api, move |controller: &Controller| {
        let computed = controller.with_project(|p| controller.compute(&p.intent, &p.ledgers, &device.name));
        computed.ok_or_else(|| Problem::no_object(Kind::Device, &device.name))
    })
    .await?;
    use eve_api::Message as _;
    let bytes = eve_api::render::device_config(&computed.config).encode_to_vec();
    Ok(Json(to_json(CONFIG_MESSAGE, &bytes)).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LogQuery {
    /// Only lines with a higher sequence number; with several devices those of each.
    after: u64,
    /// The last so many lines.
    tail: Option<usize>,
    /// Only from this device.
    device: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LogLine {
    sequence: u64,
    device: String,
    #[serde(flatten)]
    entry: LogEntry,
}

fn lines(records: Vec<Record>, device: &str, query: &LogQuery) -> Vec<LogLine> {
    let read = |record: Record| {
        let entry = serde_json::from_slice(&record.bytes).ok()?;
        Some(LogLine { sequence: record.sequence, device: device.into(), entry })
    };
    let mut out: Vec<LogLine> =
        records.into_iter().filter(|record| record.sequence > query.after).filter_map(read).collect();
    let keep = query.tail.unwrap_or(MAX_LOG_LINES).min(MAX_LOG_LINES);
    if query.after == 0 {
        out.drain(..out.len().saturating_sub(keep));
    } else {
        out.truncate(keep);
    }
    out
}

fn respond(mut lines: Vec<LogLine>) -> Response {
    lines.sort_by_key(|line| line.entry.timestamp);
    Json(json!({ "items": lines })).into_response()
}

pub(super) async fn device_logs(
    State(api): State<Api>,
    path: PathParts,
    Query(query): Query<LogQuery>,
) -> Answered {
    let device = find(&api, Kind::Device, part(&path, "name"))?;
    let records = read(&api, device.uid, StreamName::DeviceLog).await?;
    Ok(respond(lines(records, &device.name, &query)))
}

pub(super) async fn app_logs(
    State(api): State<Api>,
    path: PathParts,
    Query(query): Query<LogQuery>,
) -> Answered {
    let app = find(&api, Kind::App, part(&path, "name"))?;
    let mut all = Vec::new();
    for (name, device, id) in devices_of(&api, &app, query.device.as_deref()) {
        all.extend(lines(read(&api, device, StreamName::AppLog(id)).await?, &name, &query));
    }
    Ok(respond(all))
}

/// Devices an app is on: name, uid, and the app's id there.
pub(super) fn devices_of(api: &Api, app: &Stored, only: Option<&str>) -> Vec<(String, Uuid, Uuid)> {
    api.with_project(|project| {
        let Some(object) = project.intent.apps.get(&app.name) else { return Vec::new() };
        let is_wanted = |name: &str| only.is_none_or(|only| only == name);
        let devices = project.intent.devices.values();
        let chosen = devices.filter(|device| is_chosen(&object.spec, device) && is_wanted(&device.name));
        chosen.map(|d| (d.name.clone(), d.uid, app_id(app.uid, DeviceId(d.uid)).0)).collect()
    })
}

/// What a node needs to join: the files of its configuration directory.
pub(super) async fn bundle(State(api): State<Api>, path: PathParts) -> Answered {
    let token = find(&api, Kind::JoinToken, part(&path, "name"))?;
    let (name, uid) = (token.name.clone(), token.uid);
    let key = blocking(&api, move |controller| {
        controller.onboarding_of(uid).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot read an onboarding key");
            Problem::internal()
        })
    })
    .await?;
    let key = key.ok_or_else(|| {
        let detail = format!("jointoken/{name} has a certificate of its own; only its owner has the key");
        Problem::new(StatusCode::CONFLICT, "NoKey", detail)
    })?;
    Ok(Json(json!({
        "server": api.site.advertise,
        "root-certificate.pem": api.ca.root_pem,
        "v2tlsbaseroot-certificates.pem": api.ca.root_pem,
        "onboard.cert.pem": key.cert_pem,
        "onboard.key.pem": key.key_pem,
    }))
    .into_response())
}
