// SPDX-License-Identifier: Apache-2.0
//! Errors of the operator API: problem+json (RFC 9457) with a stable code and what to do next.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use controller_core::resource::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::change::ChangeError;
use crate::objects::DocumentError;

/// Prefix of the `type` of every problem; the code follows.
pub(super) const TYPE_PREFIX: &str = "urn:selvedge:problem:";

/// An error as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `urn:selvedge:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    #[serde(default)]
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
    /// Fields that are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Seconds after which the same may be tried again; the header `Retry-After`.
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldError {
    /// `app/hello`; empty when the object has no readable name.
    pub object: String,
    /// Number of the document in the request, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
    /// `spec.ports[0]`.
    pub path: String,
    pub message: String,
}

impl Problem {
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Problem {
        Problem {
            kind: format!("{TYPE_PREFIX}{code}"),
            title: code.into(),
            status: status.as_u16(),
            detail: detail.into(),
            next_step: None,
            errors: Vec::new(),
            retry_after_s: None,
        }
    }

    pub fn retry_after(mut self, seconds: u64) -> Problem {
        self.retry_after_s = Some(seconds);
        self
    }

    pub fn next(mut self, step: impl Into<String>) -> Problem {
        self.next_step = Some(step.into());
        self
    }

    pub fn internal() -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", "this side failed; its log says more")
    }

    pub fn no_object(kind: Kind, name: &str) -> Problem {
        let detail = format!("{}/{name} does not exist", kind.singular());
        Problem::new(StatusCode::NOT_FOUND, "NotFound", detail)
            .next(format!("list them with: selvedge get {}", kind.plural()))
    }

    pub fn conflict(kind: Kind, name: &str, expected: &str, found: &str) -> Problem {
        let detail = format!("{}/{name} has resourceVersion {found}, not {expected}", kind.singular());
        Problem::new(StatusCode::CONFLICT, "Conflict", detail).next("read it again, then repeat the change")
    }

    /// A document that cannot be read.
    pub fn document(document: &Value, index: usize, error: &DocumentError) -> Problem {
        let text = |path: &str| document.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let kind =
            Kind::parse(text("/kind")).map_or_else(|| text("/kind").to_owned(), |k| k.singular().into());
        let object = match text("/metadata/name") {
            "" => String::new(),
            name => format!("{kind}/{name}"),
        };
        let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "1 field is wrong");
        problem.errors.push(FieldError {
            object,
            document: Some(index),
            path: error.path.clone(),
            message: error.message.clone(),
        });
        problem
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Problem {
        match error {
            ChangeError::Document { kind, name, source } => {
                let mut problem =
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "1 field is wrong");
                problem.errors.push(FieldError {
                    object: format!("{}/{name}", kind.singular()),
                    document: None,
                    path: source.path,
                    message: source.message,
                });
                problem
            }
            ChangeError::Twice { .. } | ChangeError::TooMany => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", error.to_string())
            }
            ChangeError::NotFound { kind, name } => Problem::no_object(kind, &name),
            ChangeError::Conflict { kind, name, expected, found } => {
                Problem::conflict(kind, &name, &expected, &found)
            }
            ChangeError::Unsound(problems) => {
                let detail = match problems.len() {
                    1 => "1 field is wrong".into(),
                    count => format!("{count} fields are wrong"),
                };
                let mut out = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", detail);
                out.errors = problems
                    .into_iter()
                    .map(|problem| FieldError {
                        object: format!("{}/{}", problem.kind.singular(), problem.name),
                        document: None,
                        path: problem.path,
                        message: problem.message,
                    })
                    .collect();
                out
            }
            ChangeError::Stale(plan) => {
                let detail =
                    format!("something the plan has read has changed; the plan is now {}", plan.hash);
                Problem::new(StatusCode::CONFLICT, "PlanStale", detail)
                    .next("run plan again, read it, and apply its hash")
            }
            ChangeError::State(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a change failed");
                Problem::internal()
            }
        }
    }
}

/// What to do about an error of which nothing more is known.
fn usual_step(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "send a token: Authorization: Bearer TOKEN",
        StatusCode::FORBIDDEN => "use a token whose role allows it: selvedge token list",
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            "see /openapi.json for the paths and methods there are"
        }
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => "read it again, then repeat the change",
        StatusCode::GONE => "list again, and watch from there",
        StatusCode::PAYLOAD_TOO_LARGE => "send less at once",
        StatusCode::UNPROCESSABLE_ENTITY => {
            "correct what the message or errors name; selvedge explain KIND says what is allowed"
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            "try again later"
        }
        status if status.is_server_error() => "read the controller's log; report it with selvedge collect",
        _ => "correct the request; /openapi.json describes what is taken",
    }
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Longest text of another's refusal that is passed on.
const MAX_DETAIL_BYTES: usize = 4096;

/// Errors that something below this API made (a body that is too large, a wrong method) have the form of all others.
pub(super) async fn uniform(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.headers().get(header::CONTENT_TYPE) == Some(&PROBLEM_JSON) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let detail = axum::body::to_bytes(body, MAX_DETAIL_BYTES).await.unwrap_or_default();
    let code: String = status.canonical_reason().unwrap_or("Refused").split_whitespace().collect();
    let mut out = Problem::new(status, &code, String::from_utf8_lossy(&detail)).into_response();
    if let Some(allowed) = parts.headers.get(header::ALLOW) {
        out.headers_mut().insert(header::ALLOW, allowed.clone());
    }
    out
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.retry_after_s;
        self.next_step.get_or_insert_with(|| usual_step(status).into());
        let mut response = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
        response
    }
}
