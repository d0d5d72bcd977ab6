// SPDX-License-Identifier: Apache-2.0
//! `/register` and `/uuid`.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller_core::attest::AttestRecord;
use controller_core::onboard::{Decision, Registered, Request, decide, device_name};
use controller_core::resource::{Kind, Metadata};
use eve_api::Message as _;
use eve_api::certs;
use eve_api::envelope::{DeviceEnvelope, EnvelopeError};
use eve_api::register::{RegisterError, Registration, parse_registration};
use eve_api::wire::uuid::UuidResponse;
use hyper::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::{Answer, Outcome, malformed};
use crate::node::{FORMAT, Node, NodeRecord};
use crate::objects::{Sent, Stored};
use crate::state::{Controller, Project, StateError, node_key, now_ms, object_key, to_bytes};
use crate::store::Txn;

/// Registers a node. The envelope is signed by the onboarding key and carries its certificate.
pub(super) async fn register(controller: &Arc<Controller>, envelope: DeviceEnvelope) -> Outcome {
    let unauthorized = |error: EnvelopeError| Answer::refuse(StatusCode::UNAUTHORIZED, error.to_string());
    let sender = envelope.sender_pem().map_err(|error| malformed(error.to_string()))?;
    let sender = sender.ok_or_else(|| malformed("senderCert is missing"))?;
    let sender = certs::first_der(&sender).map_err(|error| malformed(error.to_string()))?;
    let Some(onboarding) = controller.onboarding(&certs::der_hash(&sender)) else {
        let why = "the onboarding certificate is not known";
        return Err(refused(controller, "", StatusCode::FORBIDDEN, why));
    };
    let payload = envelope.verify(&onboarding.cert_der).map_err(unauthorized)?;
    if let Some(why) = age(&onboarding.cert_der, now_ms() / 1000) {
        let why = format!("the onboarding certificate {why}");
        return Err(refused(controller, &onboarding.token, StatusCode::FORBIDDEN, &why));
    }
    let registration = parse_registration(&payload).map_err(|error| {
        let status = match error {
            RegisterError::Malformed => StatusCode::BAD_REQUEST,
            RegisterError::Certificate | RegisterError::Serial => StatusCode::UNPROCESSABLE_ENTITY,
        };
        refused(controller, &onboarding.token, status, &error.to_string())
    })?;
    if let Some(why) = age(&registration.device_der, now_ms() / 1000) {
        let why = format!("the device certificate of serial '{}' {why}", registration.serial);
        return Err(refused(controller, &onboarding.token, StatusCode::UNPROCESSABLE_ENTITY, &why));
    }
    let controller = controller.clone();
    tokio::task::spawn_blocking(move || enroll(&controller, &onboarding.token, registration)).await?
}

/// A device's clock may be ahead of this one by so much when it makes its certificate.
const CLOCK_SLACK_S: i64 = 86_400;

/// What is wrong with the age of a certificate. It counts at the door alone: a device that is in is known by its key.
fn age(cert_der: &[u8], now_s: i64) -> Option<&'static str> {
    match certs::validity(cert_der) {
        Ok((_, end)) if end < now_s => Some("has expired"),
        Ok((start, _)) if start > now_s + CLOCK_SLACK_S => Some("is not valid yet"),
        Ok(_) => None,
        Err(_) => Some("cannot be read"),
    }
}

/// Refuses a registration, for the operator to see: on the token it came with, or, without one, on the list of events.
fn refused(controller: &Controller, token: &str, status: StatusCode, why: &str) -> Answer {
    let object = if token.is_empty() { "controller".to_owned() } else { format!("jointoken/{token}") };
    let now_ms = now_ms();
    if controller.refusals.is_news(now_ms, &object, why) {
        controller.observed.event(
            now_ms,
            object,
            "RegistrationRefused",
            format!("{} {why}", status.as_u16()),
        );
    }
    Answer::refuse(status, why)
}

fn enroll(controller: &Controller, token: &str, registration: Registration) -> Outcome {
    let changing = controller.changing();
    let status = changing.project(|project| {
        let Some(token) = project.intent.join_tokens.get(token) else {
            return Ok(StatusCode::FORBIDDEN);
        };
        let nodes = controller.all_nodes();
        let registered = nodes.iter().map(|node| Registered {
            cert_hash: node.cert_hash,
            serial: &node.serial,
            soft_serial: &node.soft_serial,
        });
        let request = Request {
            cert_hash: certs::der_hash(&registration.device_der),
            serial: &registration.serial,
            soft_serial: &registration.soft_serial,
        };
        match decide(&token.spec, &request, registered) {
            Decision::Known => Ok(StatusCode::OK),
            Decision::Conflict => Ok(StatusCode::CONFLICT),
            Decision::NotListed => Ok(StatusCode::FORBIDDEN),
            Decision::Join(_) => {
                let token = token.name.clone();
                join(controller, project, &token, &registration).map(|()| StatusCode::CREATED)
            }
        }
    })?;
    let serial = &registration.serial;
    tracing::info!(%serial, soft_serial = registration.soft_serial, %status, "registration");
    match status {
        StatusCode::FORBIDDEN => {
            Err(refused(controller, token, status, &format!("the serial '{serial}' is not listed")))
        }
        StatusCode::CONFLICT => {
            let why = format!("the serial '{serial}' belongs to another device");
            Err(refused(controller, token, status, &why))
        }
        done => Ok(Answer::done(done)),
    }
}

/// Enters a new node: as the Device that waits for its serial, or as a new one.
fn join(
    controller: &Controller,
    project: &mut Project,
    token: &str,
    registration: &Registration,
) -> Result<(), StateError> {
    let spec = project.intent.join_tokens.get(token).map(|token| token.spec.clone()).unwrap_or_default();
    let is_free = |uid: Uuid| controller.node(uid).is_none();
    let matches = |bound: &Option<String>, text: &str| !text.is_empty() && bound.as_deref() == Some(text);
    let waiting = project.intent.devices.values().find(|device| {
        is_free(device.uid)
            && (matches(&device.spec.serial, &registration.serial)
                || matches(&device.spec.soft_serial, &registration.soft_serial))
    });
    let mut txn = Txn::default();
    let (id, created) = match waiting {
        Some(device) => (device.uid, None),
        None => {
            let id = Uuid::new_v4();
            let taken = |name: &str| project.intent.devices.contains_key(name);
            let name = device_name(&registration.serial, &registration.soft_serial, &id.to_string(), taken);
            let stored = new_device(&name, id, registration, spec.device_labels);
            txn.compares.push((object_key(Kind::Device, &name), 0));
            txn.puts.push((object_key(Kind::Device, &name), to_bytes(&stored)));
            (id, Some(stored))
        }
    };
    let record = NodeRecord {
        format: FORMAT,
        device_pem: String::from_utf8_lossy(&registration.device_pem).into_owned(),
        serial: registration.serial.clone(),
        soft_serial: registration.soft_serial.clone(),
        join_token: token.into(),
        attestation: spec.attestation,
        registered_ms: now_ms(),
        certs: BTreeMap::new(),
        attest: AttestRecord::default(),
        escrow: Vec::new(),
    };
    txn.compares.push((node_key(id), 0));
    txn.puts.push((node_key(id), to_bytes(&record)));
    let node = Node::new(id, record).ok_or_else(|| StateError::Entry(node_key(id)))?;
    let revision = controller.commit(&txn)?;
    if let Some(mut stored) = created {
        stored.revision = revision;
        Arc::make_mut(&mut project.intent).put(Controller::typed(&stored)?);
        controller.feed.added(Kind::Device, id, &stored.name);
        Arc::make_mut(&mut project.stored).insert((Kind::Device, stored.name.clone()), stored);
    }
    if let Some(device) = project.intent.devices.values().find(|device| device.uid == id) {
        node.set_policy(device.spec.attestation);
        let name = device.name.clone();
        Arc::make_mut(&mut project.device_names).insert(id, name);
    }
    let name = project.device_names.get(&id).cloned().unwrap_or_default();
    controller.insert_node(Arc::new(node));
    controller.feed.touch(Kind::Device, id);
    if let Some(token) = project.intent.join_tokens.get(token) {
        controller.feed.touch(Kind::JoinToken, token.uid);
    }
    let message = format!("with jointoken/{token}, serial '{}'", registration.serial);
    controller.observed.event(now_ms(), format!("device/{name}"), "Registered", message);
    Ok(())
}

fn new_device(name: &str, id: Uuid, registration: &Registration, labels: BTreeMap<String, String>) -> Stored {
    let mut spec = json!({});
    for (key, text) in [("serial", &registration.serial), ("softSerial", &registration.soft_serial)] {
        if !text.is_empty() {
            spec[key] = json!(text);
        }
    }
    let metadata = Metadata {
        name: name.into(),
        labels,
        uid: None,
        resource_version: None,
        generation: None,
        creation_timestamp: None,
    };
    let sent = Sent { kind: Kind::Device, metadata, spec, keeps_spec: false };
    Stored::new(&sent, id, jiff::Timestamp::now().to_string())
}

/// Tells a node its UUID.
pub(super) fn uuid(controller: &Controller, node: &Node) -> Outcome {
    let answer = UuidResponse { uuid: node.id.to_string(), ..UuidResponse::default() };
    Ok(Answer::envelope(StatusCode::OK, controller.seal(answer.encode_to_vec())?))
}
