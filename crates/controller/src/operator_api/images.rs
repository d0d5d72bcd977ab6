// SPDX-License-Identifier: Apache-2.0
//! The operator's side of the built-in registry: which images apps use, and collecting garbage.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::post;
use axum::{Json, Router};
use controller_core::image::{parse_image, parse_memory, parse_registry};
use controller_core::resource::{BUILTIN_REGISTRY, Kind, SecretRef};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answered, Api, BASE, Problem, blocking};
use crate::access::Caller;
use crate::audit::{Action, Entry};
use crate::registry::{
    CollectError, GRACE, MIN_GRACE, Reference, Registry, RepositoryName, Run, Upstream, Upstreams, Use, Uses,
};
use crate::state::Controller;
use crate::store::Txn;

/// Images in use: those that any object names, also apps that are stopped or chosen for no device.
#[derive(Debug)]
pub struct ImageUses(pub Arc<Controller>);

impl Uses for ImageUses {
    fn uses(&self) -> Vec<Use> {
        self.0.with_project(|project| {
            let mut out = Vec::new();
            for stored in project.stored.values().filter(|stored| stored.kind() != Kind::Secret) {
                let by = format!("{}/{}", stored.kind().singular(), stored.name);
                collect_uses(&stored.spec, BUILTIN_REGISTRY, &by, &mut out);
            }
            out
        })
    }
}

/// Names of fields that hold an image.
const IMAGE_FIELDS: [&str; 2] = ["image", "reference"];

/// Looks for images at any depth rather than at known fields: one that a new kind of object names must not be deleted
/// because it was forgotten here. `registry` is that of the object around.
fn collect_uses(value: &Value, registry: &str, by: &str, out: &mut Vec<Use>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_uses(item, registry, by, out)),
        Value::Object(map) => {
            let registry = map.get("registry").and_then(Value::as_str).unwrap_or(registry);
            for (key, value) in map {
                match value.as_str().filter(|_| IMAGE_FIELDS.contains(&key.as_str())) {
                    Some(image) if registry == BUILTIN_REGISTRY => out.extend(use_of(image, by)),
                    Some(_) => {}
                    None => collect_uses(value, registry, by, out),
                }
            }
        }
        _ => {}
    }
}

fn use_of(image: &str, by: &str) -> Option<Use> {
    let text = parse_image(image).ok()?.text;
    let (repository, reference) = text.split_once('@').or_else(|| text.rsplit_once(':'))?;
    Some(Use {
        repository: RepositoryName::parse(repository).ok()?,
        reference: Reference::parse(reference).ok()?,
        by: by.to_owned(),
    })
}

/// Mirrors: the registries of the intent that have `mirror`.
#[derive(Debug)]
pub struct MirroredRegistries(pub Arc<Controller>);

impl Upstreams for MirroredRegistries {
    fn upstream(&self, name: &str) -> Option<Upstream> {
        self.0.with_project(|project| {
            let spec = &project.intent.registries.get(name)?.spec;
            let quota_bytes = parse_memory(&spec.mirror.as_ref()?.quota).ok()?;
            let (address, path) = parse_registry(&spec.url, spec.insecure).ok()?;
            let base_url = address.replacen("docker://", "https://", 1);
            let login = spec.credentials.as_ref().and_then(|secret| {
                let value = |key: &str| {
                    let reference = SecretRef { name: secret.clone(), key: key.into() };
                    project.intent.secret(&reference).map(str::to_owned)
                };
                Some((value("username")?, value("password")?))
            });
            Some(Upstream { base_url, path, ca_pem: spec.ca.clone(), login, quota_bytes })
        })
    }
}

/// What the routes of images work with.
#[derive(Clone)]
struct Images {
    controller: Api,
    registry: Arc<Registry>,
}

/// Routes that need the registry beside the controller.
pub fn registry_router(controller: Api, registry: Arc<Registry>) -> Router {
    Router::new()
        .route(&format!("{BASE}/projects/{{project}}/registry/gc"), post(collect))
        .layer(axum::middleware::from_fn_with_state(controller.clone(), super::guard::guard))
        .with_state(Images { controller, registry })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CollectQuery {
    dry_run: bool,
    grace_s: Option<u64>,
}

async fn collect(
    State(images): State<Images>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<CollectQuery>,
) -> Answered {
    let Images { controller, registry } = images;
    let run = if query.dry_run { Run::Dry } else { Run::Real };
    let grace = query.grace_s.map_or(GRACE, Duration::from_secs);
    let done = tokio::task::spawn_blocking(move || registry.collect(SystemTime::now(), grace, run)).await;
    let collected = match done {
        Ok(Ok(collected)) => collected,
        Ok(Err(error @ CollectError::Grace)) => {
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", error.to_string());
            return Err(problem.next(format!("give at least {} s", MIN_GRACE.as_secs())));
        }
        Ok(Err(error)) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot collect garbage of the registry"
            );
            return Err(Problem::internal());
        }
        Err(_) => return Err(Problem::internal()),
    };
    if run == Run::Real {
        let (count, bytes) = (collected.manifests.len(), collected.bytes());
        let detail = format!("{count} manifests, {} blobs, {bytes} bytes", collected.contents.len());
        blocking(&controller, move |c| {
            let entry = Entry::new(&caller, Action::CollectImages, detail);
            c.audit.commit(Txn::default(), entry).map_err(|error| {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot enter it into the audit");
                Problem::internal()
            })
        })
        .await?;
    }
    let manifests = collected.manifests.iter();
    let manifests: Vec<_> = manifests
        .map(
            |(repository, digest)| json!({ "repository": repository.as_str(), "digest": digest.to_string() }),
        )
        .collect();
    let unreadable: Vec<_> = collected.unreadable.iter().map(RepositoryName::as_str).collect();
    Ok(Json(json!({
        "dryRun": query.dry_run,
        "graceSeconds": grace.as_secs(),
        "manifests": manifests,
        "links": collected.links,
        "contents": collected.contents.len(),
        "bytes": collected.bytes(),
        "unreadable": unreadable,
    }))
    .into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_the_own_registry_are_in_use_wherever_they_are_named() {
        let spec = json!({
            "image": "team/shop:1", "env": { "A": "image" },
            "volumes": [{ "image": "files:2" }, { "volume": "x" }],
            "image2": "no:1",
            "content": { "image": { "reference": "data", "registry": "hub" } },
        });
        let mut out = Vec::new();
        collect_uses(&spec, BUILTIN_REGISTRY, "app/shop", &mut out);
        let named: Vec<String> =
            out.iter().map(|one| format!("{} {:?}", one.repository, one.reference)).collect();
        assert_eq!(named.len(), 2, "{named:?}");
        assert!(named[0].starts_with("team/shop ") && named[1].starts_with("files "), "{named:?}");
        let mut none = Vec::new();
        let elsewhere = json!({ "image": "a:1", "registry": "hub", "volumes": [{ "image": "b:1" }] });
        collect_uses(&elsewhere, BUILTIN_REGISTRY, "app/x", &mut none);
        assert_eq!(none, []);
    }
}
