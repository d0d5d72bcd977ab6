// SPDX-License-Identifier: Apache-2.0
//! The operator API v1alpha1: objects over REST, plans, events, and what devices reported.
//!
//! Every path but `/healthz` and `/openapi.json` wants a token of a role that allows it (`guard`). Errors are problem+json (RFC 9457).
//! The CLI uses nothing else.

#![allow(clippy::result_large_err, reason = "a problem is made once per refused request")]

mod backup;
mod base_os;
pub(crate) mod figures;
pub(crate) mod flows;
mod guard;
mod images;
mod openapi;
mod problem;
mod tokens;
mod top;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use controller_core::resource::Kind;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::change::Change;
use crate::objects::{self, Sent, Stored};
use crate::state::Controller;
pub use guard::RegistryUsers;
pub use images::{ImageUses, MirroredRegistries, registry_router};
pub use openapi::document as openapi_document;
pub use problem::Problem;
pub(crate) use view::SILENCE_MS;
pub(crate) use watch::follow_statuses;

/// Where everything lives.
pub const BASE: &str = "/apis/selvedge/v1alpha1";
/// Largest request: a change of many objects.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;

type Api = Arc<Controller>;
type Answered = Result<Response, Problem>;

/// All routes.
pub fn router(controller: Api) -> Router {
    let project = Router::new()
        .route("/plan", post(plan))
        .route("/apply", post(apply))
        .route("/events", get(events))
        .route("/top", get(top::top))
        .route("/devices/{name}/history", get(view::history))
        .route("/devices/{name}/info", get(view::info))
        .route("/devices/{name}/metrics", get(view::metrics))
        .route("/devices/{name}/config", get(view::config))
        .route("/devices/{name}/logs", get(view::device_logs))
        .route("/apps/{name}/logs", get(view::app_logs))
        .route("/apps/{name}/flows", get(flows::app_flows))
        .route("/jointokens/{name}/bundle", get(view::bundle))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{name}", delete(tokens::revoke))
        .route("/whoami", get(tokens::whoami))
        .route("/audit", get(tokens::audit))
        .route("/backup", get(backup::backup))
        .route("/{plural}", get(list))
        .route("/{plural}/{name}", get(get_one).put(put_one).delete(delete_one));
    let protected = Router::new()
        .nest(&format!("{BASE}/projects/{{project}}"), project)
        .layer(axum::middleware::from_fn_with_state(controller.clone(), guard::guard));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/openapi.json", get(|| async { Json(openapi::document()) }))
        .route("/metrics", get(figures::guarded))
        .merge(protected)
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "NotFound", "no such path") })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(axum::middleware::map_response(problem::uniform))
        .with_state(controller)
}

/// Compares secrets in a time that does not tell where they differ.
pub fn is_same_secret(left: &str, right: &str) -> bool {
    let digest = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest(left).as_ref() == digest(right).as_ref()
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    controller: &Api,
    run: impl FnOnce(&Controller) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let controller = controller.clone();
    tokio::task::spawn_blocking(move || run(&controller)).await.map_err(|_| Problem::internal())?
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ChangeBody {
    objects: Vec<Value>,
    /// `kind/name`.
    delete: Vec<String>,
    /// Hash of the plan that may be carried out.
    plan: Option<String>,
}

fn read_change(body: &Bytes) -> Result<(Change, Option<String>), Problem> {
    let body: ChangeBody = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Malformed", error.to_string()))?;
    let mut change = Change::default();
    for (index, document) in body.objects.iter().enumerate() {
        change
            .puts
            .push(objects::parse(document).map_err(|error| Problem::document(document, index, &error))?);
    }
    for text in &body.delete {
        change.deletes.push(object_name(text)?);
    }
    Ok((change, body.plan))
}

fn object_name(text: &str) -> Result<(Kind, String), Problem> {
    let parsed = text.split_once('/').and_then(|(kind, name)| Some((Kind::parse(kind)?, name.to_owned())));
    parsed.ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "Malformed", format!("'{text}' is no KIND/NAME like app/hello"))
    })
}

async fn plan(State(api): State<Api>, body: Bytes) -> Answered {
    let (change, _) = read_change(&body)?;
    let plan = blocking(&api, move |c| c.plan(&change).map_err(Problem::from)).await?;
    Ok(Json(plan).into_response())
}

async fn apply(State(api): State<Api>, Extension(caller): Extension<Caller>, body: Bytes) -> Answered {
    let (mut change, expected) = read_change(&body)?;
    if let Some(hash) = expected.as_ref().filter(|_| change.is_empty()) {
        change = api.planned(hash).ok_or_else(|| {
            Problem::new(StatusCode::CONFLICT, "PlanStale", format!("no plan {hash} is remembered"))
                .next("run plan again, read it, and apply its hash")
        })?;
    }
    let plan = blocking(&api, move |c| c.apply(&caller, &change, expected.as_deref()).map_err(Problem::from))
        .await?;
    Ok(Json(plan).into_response())
}

fn kind_of(plural: &str) -> Result<Kind, Problem> {
    Kind::ALL.into_iter().find(|kind| kind.plural() == plural).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "NotFound", format!("there is no kind called {plural}"))
            .next(format!("kinds are {}", Kind::ALL.map(Kind::plural).join(", ")))
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListQuery {
    /// `key=value,key=value`.
    label_selector: Option<String>,
    /// Changes as they come instead of what is there.
    watch: bool,
    /// Of a watch: where it goes on.
    resource_version: Option<String>,
}

impl ListQuery {
    fn labels(&self) -> Vec<(String, String)> {
        let pairs =
            self.label_selector.iter().flat_map(|text| text.split(',')).filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }
}

type PathParts = Path<BTreeMap<String, String>>;

fn part<'a>(path: &'a PathParts, key: &str) -> &'a str {
    path.0.get(key).map_or("", String::as_str)
}

/// The object of a name; devices also go by their UUID.
pub(crate) fn find(controller: &Controller, kind: Kind, name: &str) -> Result<Stored, Problem> {
    let found = controller.with_project(|project| {
        let by_name = project.stored.get(&(kind, name.to_owned()));
        let by_id = || {
            let id: uuid::Uuid = name.parse().ok()?;
            project.stored.values().find(|stored| stored.kind() == kind && stored.uid == id)
        };
        by_name.or_else(by_id).cloned()
    });
    found.ok_or_else(|| Problem::no_object(kind, name))
}

async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    Query(query): Query<ListQuery>,
) -> Answered {
    let kind = kind_of(part(&path, "plural"))?;
    let wanted = query.labels();
    if query.watch {
        let selection = watch::Selection { name: None, labels: wanted };
        return watch::objects(&api, caller, (kind, selection), query.resource_version.as_deref());
    }
    // Before the look: a watch from here on misses nothing.
    let version = api.feed.version();
    let stored: Vec<Stored> = api.with_project(|project| {
        let all = project.stored.values().filter(|stored| stored.kind() == kind);
        let carries = |s: &&Stored| wanted.iter().all(|(key, value)| s.labels.get(key) == Some(value));
        all.filter(carries).cloned().collect()
    });
    let mut items = Vec::new();
    for stored in &stored {
        items.push(view::document(&api, stored).await?);
    }
    Ok(Json(json!({
        "apiVersion": controller_core::resource::API_VERSION,
        "kind": format!("{}List", kind.name()),
        "metadata": { "resourceVersion": version.to_string() },
        "items": items,
    }))
    .into_response())
}

async fn get_one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    Query(query): Query<ListQuery>,
) -> Answered {
    if query.watch {
        let kind = kind_of(part(&path, "plural"))?;
        let selection = watch::Selection { name: Some(part(&path, "name").to_owned()), labels: Vec::new() };
        return watch::objects(&api, caller, (kind, selection), query.resource_version.as_deref());
    }
    let stored = find(&api, kind_of(part(&path, "plural"))?, part(&path, "name"))?;
    respond(&api, &stored, StatusCode::OK).await
}

async fn respond(api: &Api, stored: &Stored, status: StatusCode) -> Answered {
    let document = view::document(api, stored).await?;
    let tag = format!("\"{}\"", stored.revision);
    Ok((status, [(header::ETAG, tag)], Json(document)).into_response())
}

/// `If-Match: "N"` as a resourceVersion.
fn if_match(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::IF_MATCH)?.to_str().ok()?;
    (value != "*").then(|| value.trim_start_matches("W/").trim_matches('"').to_owned())
}

async fn put_one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Bytes,
) -> Answered {
    let kind = kind_of(part(&path, "plural"))?;
    let name = part(&path, "name").to_owned();
    let document: Value = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Malformed", error.to_string()))?;
    let mut sent: Sent =
        objects::parse(&document).map_err(|error| Problem::document(&document, 0, &error))?;
    if sent.kind != kind || sent.metadata.name != name {
        let detail = format!(
            "the path names {}/{name}, the body {}/{}",
            kind.singular(),
            sent.kind.singular(),
            sent.metadata.name
        );
        return Err(Problem::new(StatusCode::BAD_REQUEST, "Malformed", detail));
    }
    if let Some(version) = if_match(&headers) {
        sent.metadata.resource_version = Some(version);
    }
    let is_new = find(&api, kind, &name).is_err();
    let change = Change { puts: vec![sent], deletes: Vec::new() };
    blocking(&api, move |c| c.apply(&caller, &change, None).map_err(Problem::from)).await?;
    let stored = find(&api, kind, &name)?;
    respond(&api, &stored, if is_new { StatusCode::CREATED } else { StatusCode::OK }).await
}

async fn delete_one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
) -> Answered {
    let kind = kind_of(part(&path, "plural"))?;
    let stored = find(&api, kind, part(&path, "name"))?;
    if let Some(version) = if_match(&headers)
        && version != stored.revision.to_string()
    {
        return Err(Problem::conflict(kind, &stored.name, &version, &stored.revision.to_string()));
    }
    let change = Change { puts: Vec::new(), deletes: vec![(kind, stored.name)] };
    let plan = blocking(&api, move |c| c.apply(&caller, &change, None).map_err(Problem::from)).await?;
    Ok(Json(plan).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventQuery {
    /// `device/x`.
    object: Option<String>,
    /// Only events with a higher sequence number.
    after: u64,
    /// Events as they come instead of what is there.
    watch: bool,
    /// Of a watch: where it goes on.
    resource_version: Option<String>,
}

/// An event as clients see it.
fn event_document(event: &crate::observed::Event) -> Value {
    json!({
        "sequence": event.sequence,
        "at": view::time(event.at_ms),
        "object": event.object,
        "reason": event.reason,
        "message": event.message,
    })
}

async fn events(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<EventQuery>,
) -> Answered {
    if query.watch {
        let after = (query.after > 0).then(|| query.after.to_string());
        let from = query.resource_version.or(after);
        return watch::events(&api, caller, query.object, from.as_deref()).await;
    }
    let events = api.observed.events().await.map_err(|_| Problem::internal())?;
    let version = events.last().map_or(0, |event| event.sequence).to_string();
    let wanted = |event: &&crate::observed::Event| {
        event.sequence > query.after && query.object.as_ref().is_none_or(|object| *object == event.object)
    };
    let items: Vec<Value> = events.iter().filter(wanted).map(event_document).collect();
    Ok(Json(json!({ "metadata": { "resourceVersion": version }, "items": items })).into_response())
}
