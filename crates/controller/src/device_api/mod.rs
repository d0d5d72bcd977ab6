// SPDX-License-Identifier: Apache-2.0
//! The device API (eve-api v2): what nodes ask and report.
//!
//! ```text
//! path → method → body (bounded) → envelope → known signer → path's UUID is the signer's → signature → the call
//! ```
//! Answers 4xx to what is the sender's fault and 503 to what may be ours: real nodes drop a report for ever after a 4xx.
//! Nothing here touches the store on the way of a poll or a report.

mod attest;
mod config;
mod register;
mod report;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use eve_api::envelope::{DeviceEnvelope, EnvelopeError};
use eve_api::paths::{DeviceCall, Endpoint, MAX_REQUEST_BYTES, MIME_PROTO};
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};

use crate::node::Node;
use crate::state::{Controller, StateError};

/// How long a request's body may take to arrive: a slow link needs 30 s for 64 KiB at 17 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// What is still read of a body that is too large, so that its sender gets to see the answer.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;

/// Seconds after which a device that was sent away may come again.
const RETRY_S: u64 = 5;

/// An answer before it becomes HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    content_type: &'static str,
}

impl Answer {
    /// A signed envelope.
    fn envelope(status: StatusCode, body: Bytes) -> Answer {
        Answer { status, body, content_type: MIME_PROTO }
    }

    /// Done. The content type stands there although there is no content: EVE does not count the answer without.
    fn done(status: StatusCode) -> Answer {
        Answer::envelope(status, Bytes::new())
    }

    /// Refused; the text is for whoever reads the device's log.
    fn refuse(status: StatusCode, why: impl Into<String>) -> Answer {
        Answer { status, body: Bytes::from(why.into()), content_type: "text/plain; charset=utf-8" }
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_S));
        }
        if self.status != StatusCode::NOT_MODIFIED {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        response
    }
}

/// Refusals short-cut the way through the calls.
type Outcome = Result<Answer, Answer>;

impl From<StateError> for Answer {
    fn from(error: StateError) -> Answer {
        tracing::error!(error = &error as &dyn std::error::Error, "a device's request failed on this side");
        Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, "try again later")
    }
}

impl From<tokio::task::JoinError> for Answer {
    fn from(error: tokio::task::JoinError) -> Answer {
        tracing::error!(%error, "a device's request ended in a panic");
        Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, "try again later")
    }
}

fn malformed(why: impl Into<String>) -> Answer {
    Answer::refuse(StatusCode::BAD_REQUEST, why)
}

/// Answers a request below `/api/v2/edgedevice`.
pub(crate) async fn answer<B>(controller: &Arc<Controller>, request: Request<B>) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let (parts, body) = request.into_parts();
    let outcome = route(controller, &parts.method, parts.uri.path(), &parts.headers, body).await;
    outcome.unwrap_or_else(|refusal| refusal).into_response()
}

async fn route<B>(
    controller: &Arc<Controller>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: B,
) -> Outcome
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let Some(endpoint) = Endpoint::parse(path) else {
        return Err(Answer::refuse(StatusCode::NOT_FOUND, "no such path"));
    };
    let is_right_method = if endpoint.is_get() { method == Method::GET } else { method == Method::POST };
    if !is_right_method {
        return Err(Answer::refuse(StatusCode::METHOD_NOT_ALLOWED, "wrong method"));
    }
    match endpoint {
        Endpoint::Ping => Ok(Answer::done(StatusCode::OK)),
        Endpoint::Certs => Ok(Answer::envelope(StatusCode::OK, controller.certs_body.clone())),
        Endpoint::Register => register::register(controller, envelope(read(body).await?)?).await,
        Endpoint::Uuid => {
            let (node, _) = authenticate(controller, read(body).await?, None)?;
            register::uuid(controller, &node)
        }
        Endpoint::AppNewlogs { app } => {
            let (node, payload) = authenticate(controller, read(body).await?, None)?;
            report::app_newlogs(controller, node, app, payload).await
        }
        Endpoint::Device { device, call } => {
            let bytes = read(body).await?;
            let is_config = matches!(call, DeviceCall::Config);
            let (node, payload) = authenticate(controller, bytes, Some(device)).map_err(|refusal| {
                // A device that was deleted asks for its UUID again after a 404 here.
                if is_config && refusal.status == StatusCode::UNAUTHORIZED && refusal.body == UNKNOWN {
                    Answer { status: StatusCode::NOT_FOUND, ..refusal }
                } else {
                    refusal
                }
            })?;
            match call {
                DeviceCall::Config => config::config(controller, &node, headers, &payload).await,
                DeviceCall::Attest => attest::attest(controller, node, payload).await,
                DeviceCall::Info => report::info(controller, &node, &payload).await,
                DeviceCall::Metrics => report::metrics(controller, &node, &payload).await,
                DeviceCall::Newlogs => report::newlogs(controller, node, payload).await,
                DeviceCall::AppNewlogs { app } => report::app_newlogs(controller, node, app, payload).await,
                DeviceCall::Flowlog => report::flowlog(controller, &node, &payload).await,
                DeviceCall::HardwareHealth => report::hardware_health(&payload),
                DeviceCall::ProxyScep => report::scep(&payload),
                DeviceCall::Logs => Err(Answer::refuse(StatusCode::NOT_FOUND, "old form of logs")),
            }
        }
    }
}

const UNKNOWN: &str = "unknown sender";

/// Reads a body up to the limit; one that is larger is read on for a while and thrown away.
async fn read<B>(mut body: B) -> Result<Bytes, Answer>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let all = async {
        let mut out = BytesMut::new();
        let mut thrown_away = 0;
        while let Some(frame) = body.frame().await {
            let data = frame.ok().and_then(|frame| frame.into_data().ok());
            let data = data.ok_or_else(|| malformed("the body broke off"))?;
            if thrown_away == 0 && out.len() + data.len() <= MAX_REQUEST_BYTES {
                out.extend_from_slice(&data);
            } else {
                thrown_away += data.len();
                if thrown_away > DRAIN_BYTES {
                    break;
                }
            }
        }
        if thrown_away > 0 {
            return Err(Answer::refuse(StatusCode::PAYLOAD_TOO_LARGE, "more than 1 MiB"));
        }
        Ok(out.freeze())
    };
    let late = || Answer::refuse(StatusCode::REQUEST_TIMEOUT, "the body came too slowly");
    tokio::time::timeout(BODY_TIMEOUT, all).await.map_err(|_| late())?
}

fn envelope(body: Bytes) -> Result<DeviceEnvelope, Answer> {
    DeviceEnvelope::parse(&body).map_err(|error| {
        let status = match error {
            EnvelopeError::Malformed | EnvelopeError::NoPayload | EnvelopeError::Encrypted => {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::UNAUTHORIZED,
        };
        Answer::refuse(status, error.to_string())
    })
}

/// The signer of a request and its payload. `device`: the UUID of the path, which must be the signer's.
fn authenticate(
    controller: &Controller,
    body: Bytes,
    device: Option<&str>,
) -> Result<(Arc<Node>, Vec<u8>), Answer> {
    let envelope = envelope(body)?;
    let Some(node) = controller.node_by_cert(envelope.sender_hash()) else {
        return Err(Answer::refuse(StatusCode::UNAUTHORIZED, UNKNOWN));
    };
    let payload = envelope
        .verify_with(&node.cert_hash, &node.key)
        .map_err(|error| Answer::refuse(StatusCode::UNAUTHORIZED, error.to_string()))?;
    if device.is_some_and(|device| !is_id(device, &node)) {
        return Err(Answer::refuse(StatusCode::FORBIDDEN, "the path is another device's"));
    }
    controller.seen(&node);
    Ok((node, payload))
}

/// Only the one text form that the controller gave out.
fn is_id(text: &str, node: &Node) -> bool {
    let mut buffer = uuid::Uuid::encode_buffer();
    text == &*node.id.hyphenated().encode_lower(&mut buffer)
}
