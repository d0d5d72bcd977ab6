// SPDX-License-Identifier: Apache-2.0
//! `tokens`, `whoami`, `audit`.

use std::collections::VecDeque;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::watch::{BOOKMARK, Lines, bookmark, error, line, respond, slot, still_allowed, version};
use super::{Answered, Api, PathParts, Problem, blocking, part, view};
use crate::access::{AccessError, Caller, Token, TokenRequest};
use crate::audit::Entry;
use crate::state::now_ms;

/// Entries in one answer, and taken at once by a watch.
const MAX_ENTRIES: usize = 500;

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Problem {
        let text = error.to_string();
        match error {
            AccessError::Name(_) | AccessError::Expiry => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", text)
            }
            AccessError::Taken(name) => Problem::new(StatusCode::CONFLICT, "Conflict", text)
                .next(format!("choose another name, or first: selvedge token revoke {name}")),
            AccessError::Unknown(_) => {
                Problem::new(StatusCode::NOT_FOUND, "NotFound", text).next("list them: selvedge token list")
            }
            AccessError::TooMany => Problem::new(StatusCode::CONFLICT, "Conflict", text)
                .next("revoke some that are over: selvedge token list"),
            AccessError::State(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a token cannot be changed");
                Problem::internal()
            }
        }
    }
}

fn token_document(token: &Token) -> Value {
    json!({
        "name": token.name,
        "role": token.role,
        "created": view::time(token.created_ms),
        "createdBy": token.created_by,
        "expires": token.expires_ms.and_then(view::time),
        "isExpired": token.expires_ms.is_some_and(|end_ms| end_ms <= now_ms()),
    })
}

pub(super) async fn list(State(api): State<Api>) -> Answered {
    let items: Vec<Value> = api.tokens.list().iter().map(|token| token_document(token)).collect();
    Ok(Json(json!({ "items": items })).into_response())
}

pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answered {
    let request: TokenRequest = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Malformed", error.to_string()))?;
    let (token, secret) =
        blocking(&api, move |c| c.create_token(&caller, &request).map_err(Problem::from)).await?;
    let mut document = token_document(&token);
    document["token"] = json!(secret);
    Ok((StatusCode::CREATED, Json(document)).into_response())
}

pub(super) async fn revoke(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> Answered {
    let name = part(&path, "name").to_owned();
    blocking(&api, move |c| c.revoke_token(&caller, &name).map_err(Problem::from)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn whoami(Extension(caller): Extension<Caller>) -> Answered {
    let from = caller.from.map(|address| address.to_string());
    Ok(Json(json!({ "name": &*caller.name, "role": caller.role, "from": from })).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AuditQuery {
    /// Only entries with a higher sequence number.
    after: Option<u64>,
    /// The last so many; with a watch: begin with them.
    tail: Option<usize>,
    /// At most so many.
    limit: Option<usize>,
    /// Only what was done to this object, `KIND/NAME`.
    object: Option<String>,
    /// Only what this token did.
    who: Option<String>,
    watch: bool,
    resource_version: Option<String>,
}

impl AuditQuery {
    fn wants(&self, entry: &Entry) -> bool {
        self.who.as_ref().is_none_or(|who| *who == entry.who)
            && self.object.as_ref().is_none_or(|object| entry.objects.iter().any(|o| o.object == *object))
    }
}

fn audit_document(entry: &Entry) -> Value {
    let mut out = serde_json::to_value(entry).unwrap_or_default();
    if let Some(map) = out.as_object_mut() {
        map.remove("format");
        map.remove("atMs");
        map.insert("at".into(), json!(view::time(entry.at_ms)));
    }
    out
}

async fn page(api: &Api, after: u64, limit: usize) -> Result<Vec<Entry>, Problem> {
    blocking(api, move |c| {
        c.audit.after(after, limit).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot read the audit");
            Problem::internal()
        })
    })
    .await
}

pub(super) async fn audit(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<AuditQuery>,
) -> Answered {
    let from = query.resource_version.as_deref().map(version).transpose()?.or(query.after);
    let mut after = match (from, query.tail) {
        (Some(from), _) => from,
        (None, Some(tail)) => api.audit.tail(tail),
        (None, None) => 0,
    };
    if query.watch {
        let changed = api.audit.subscribe();
        let slot = slot(&api)?;
        let (cursor, queue) = (after, VecDeque::new());
        return Ok(respond(Watch {
            api,
            caller,
            query,
            cursor,
            queue,
            changed,
            is_ended: false,
            _slot: slot,
        }));
    }
    let limit = query.limit.unwrap_or(MAX_ENTRIES).min(MAX_ENTRIES);
    let mut items = Vec::new();
    loop {
        let entries = page(&api, after, MAX_ENTRIES).await?;
        let is_last = entries.len() < MAX_ENTRIES;
        for entry in entries {
            if items.len() == limit {
                break;
            }
            after = entry.sequence;
            if query.wants(&entry) {
                items.push(audit_document(&entry));
            }
        }
        if is_last || items.len() == limit {
            break;
        }
    }
    // What follows is asked for with `after` this number.
    let metadata = json!({ "resourceVersion": after.to_string() });
    Ok(Json(json!({ "metadata": metadata, "items": items })).into_response())
}

struct Watch {
    api: Api,
    caller: Caller,
    query: AuditQuery,
    cursor: u64,
    queue: VecDeque<Entry>,
    changed: watch::Receiver<u64>,
    is_ended: bool,
    _slot: OwnedSemaphorePermit,
}

impl Watch {
    async fn fill(&mut self) -> Result<(), Problem> {
        still_allowed(&self.api, &self.caller)?;
        // Marks what is there as seen, so that an entry after the look wakes.
        self.changed.borrow_and_update();
        self.queue = page(&self.api, self.cursor, MAX_ENTRIES).await?.into();
        Ok(())
    }
}

impl Lines for Watch {
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_ended {
            return None;
        }
        loop {
            while let Some(entry) = self.queue.pop_front() {
                self.cursor = entry.sequence;
                if self.query.wants(&entry) {
                    return Some(line("ADDED", &audit_document(&entry), Some(entry.sequence)));
                }
            }
            if let Err(problem) = self.fill().await {
                self.is_ended = true;
                return Some(error(&problem));
            }
            if self.queue.is_empty() && tokio::time::timeout(BOOKMARK, self.changed.changed()).await.is_err()
            {
                return Some(bookmark("AuditEntry", self.cursor));
            }
        }
    }
}
