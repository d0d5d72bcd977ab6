// SPDX-License-Identifier: Apache-2.0
//! The built-in registry: the OCI Distribution Spec v1.1 under `/v2/`, all of it: pull, push, lists, delete and referrers.
//!
//! Owns one directory (`disk`) and nothing else: no user, no policy ([`Authorize`] is the owner's), no
//! listener and no TLS. It never holds a whole blob in memory and never serves content whose digest was
//! not verified when it came. What an app uses ([`Uses`]) is never deleted. Images of other registries
//! ([`Upstreams`]) are fetched when they are asked for and kept (`mirror`).
//!
//! A request goes through `route` (which endpoint?), `auth` (may this client?), then to `blob`,
//! `upload`, `manifest`, `delete`, `referrers` or `list`; `collect` is called by the owner. Every failure is a [`error::RegistryError`] and becomes the JSON the
//! spec asks for. Work on the disk happens on blocking threads.
//!
//! Limits are in [`Limits`], [`MAX_MANIFEST_BYTES`] and the names of the spec.

mod auth;
mod blob;
mod collect;
mod delete;
mod disk;
mod error;
mod examine;
mod list;
mod manifest;
mod mirror;
mod name;
mod referrers;
mod route;
#[cfg(test)]
mod tests;
mod upload;
mod uses;

pub use auth::{Action, AllowAll, AnonymousPull, Authorize, Credentials, Decision, RefuseAll};
pub use collect::{CollectError, Collected, GRACE, MIN_GRACE, Run};
pub use disk::OpenError;
pub use examine::{Finding, examine};
pub use manifest::MAX_MANIFEST_BYTES;
pub use mirror::{NoUpstreams, Upstream, Upstreams};
pub use model::id::Digest;
pub use name::{
    MAX_REPOSITORY_NAME_BYTES, MAX_TAG_BYTES, NameError, Reference, RepositoryName, Tag, digest_of,
    parse_digest,
};
pub use uses::{NoUses, Use, Uses};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use axum::routing::any;
use error::RegistryError;
use http_body_util::BodyExt as _;
use route::{Endpoint, RouteError};
use serde::Deserialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use upload::{Chunk, received_range};
use uuid::Uuid;

/// A client that sends nothing for this long is gone.
pub const BODY_IDLE: Duration = Duration::from_secs(60);
/// How long an upload may rest between two requests: over a night's outage, not over a week's.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(12 * 3600);
/// Sessions open at once; a push opens about one per layer, few of them at the same time.
pub const MAX_UPLOADS: usize = 1024;
/// Requests that write a blob at once. Each takes a thread of the blocking pool, which has 512.
pub const MAX_TRANSFERS: usize = 64;
/// Requests that read a blob at once: two chunks of memory and one file each.
pub const MAX_DOWNLOADS: usize = 256;
/// The largest blob: disk images of virtual machines are below.
pub const MAX_BLOB_BYTES: u64 = 1 << 40;
/// What pushes leave free, since the controller's own data is on the same disk.
pub const MIN_FREE_BYTES: u64 = 256 * 1024 * 1024;
/// How long a tag of a mirror is taken as it is known: a fleet that pulls at once asks the upstream once.
pub const TAG_FRESH: Duration = Duration::from_secs(30);
/// What is still read of a refused body, so that the client gets to see the refusal.
const DRAIN_BYTES: usize = 1024 * 1024;
/// How long reading that may take.
const DRAIN: Duration = Duration::from_secs(5);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What one registry puts up with.
#[derive(Debug, Clone)]
pub struct Limits {
    /// See [`BODY_IDLE`].
    pub body_idle: Duration,
    /// See [`UPLOAD_IDLE`].
    pub upload_idle: Duration,
    /// See [`MAX_UPLOADS`].
    pub uploads: usize,
    /// See [`MAX_TRANSFERS`].
    pub transfers: usize,
    /// See [`MAX_DOWNLOADS`].
    pub downloads: usize,
    /// See [`MAX_BLOB_BYTES`].
    pub blob_bytes: u64,
    /// See [`MIN_FREE_BYTES`].
    pub free_bytes: u64,
    /// See [`TAG_FRESH`].
    pub tag_fresh: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_idle: BODY_IDLE,
            upload_idle: UPLOAD_IDLE,
            uploads: MAX_UPLOADS,
            transfers: MAX_TRANSFERS,
            downloads: MAX_DOWNLOADS,
            blob_bytes: MAX_BLOB_BYTES,
            free_bytes: MIN_FREE_BYTES,
            tag_fresh: TAG_FRESH,
        }
    }
}

/// An open registry directory. One process at a time may have it open.
pub struct Registry {
    disk: disk::Disk,
    uploads: upload::Uploads,
    authorize: Arc<dyn Authorize>,
    anonymous_pull: AnonymousPull,
    uses: Arc<dyn Uses>,
    upstreams: Arc<dyn Upstreams>,
    mirrors: mirror::Mirrors,
    limits: Limits,
    transfers: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("disk", &self.disk)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Opens or makes the directory. Until [`Registry::with_authorize`] says otherwise every request is
    /// refused. Blocks.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        let disk = disk::Disk::open(directory)?;
        let uploads = upload::Uploads::open(disk.uploads())
            .map_err(|error| OpenError::Io(directory.to_owned(), error))?;
        let registry = Self {
            disk,
            uploads,
            authorize: Arc::new(RefuseAll),
            anonymous_pull: AnonymousPull::Refused,
            uses: Arc::new(NoUses),
            upstreams: Arc::new(NoUpstreams),
            mirrors: mirror::Mirrors::default(),
            limits: Limits::default(),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
        };
        let failed = |error| OpenError::Io(directory.to_owned(), error);
        registry.sweep(SystemTime::now()).map_err(failed)?;
        referrers::complete(&registry).map_err(failed)?;
        Ok(registry)
    }

    /// Who may do what.
    #[must_use]
    pub fn with_authorize(mut self, authorize: Arc<dyn Authorize>) -> Self {
        self.authorize = authorize;
        self
    }

    /// Who uses which images.
    #[must_use]
    pub fn with_uses(mut self, uses: Arc<dyn Uses>) -> Self {
        self.uses = uses;
        self
    }

    /// Which registries are mirrored.
    #[must_use]
    pub fn with_upstreams(mut self, upstreams: Arc<dyn Upstreams>) -> Self {
        self.upstreams = upstreams;
        self
    }

    /// Whether pulling needs credentials.
    #[must_use]
    pub fn with_anonymous_pull(mut self, anonymous_pull: AnonymousPull) -> Self {
        self.anonymous_pull = anonymous_pull;
        self
    }

    /// Other limits than the usual ones.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.transfers = Arc::new(Semaphore::new(limits.transfers));
        self.downloads = Arc::new(Semaphore::new(limits.downloads));
        self.limits = limits;
        self
    }

    /// Drops uploads that were given up and returns how many. The owner calls this every few minutes.
    /// Blocks.
    pub fn sweep(&self, now: SystemTime) -> io::Result<usize> {
        self.uploads.sweep(now, self.limits.upload_idle)
    }

    fn check(
        &self,
        presented: &auth::Presented,
        repository: Option<&RepositoryName>,
        action: Action,
    ) -> Result<(), RegistryError> {
        let credentials = presented.credentials().ok_or(RegistryError::Unauthorized)?;
        let open = self.anonymous_pull == AnonymousPull::Allowed
            && credentials == Credentials::Anonymous
            && action == Action::Pull;
        if open {
            return Ok(());
        }
        match self.authorize.authorize(credentials, repository, action) {
            Decision::Allow => Ok(()),
            Decision::Unauthenticated => Err(RegistryError::Unauthorized),
            Decision::Deny => Err(RegistryError::Denied),
        }
    }
}

/// The endpoints under `/v2/`, to be merged into the router of a server.
pub fn router(store: Arc<Registry>) -> Router {
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*rest}", any(serve))
        .with_state(store)
}

/// The query parameters of all endpoints.
#[derive(Debug, Default, Deserialize)]
struct Query {
    digest: Option<String>,
    mount: Option<String>,
    from: Option<String>,
    n: Option<String>,
    last: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

struct Call {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    presented: auth::Presented,
    /// Taken by whoever reads it.
    body: Option<Body>,
}

async fn serve(State(registry): State<Arc<Registry>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let presented = auth::Presented::from_headers(&parts.headers);
    let mut call =
        Call { method: parts.method, uri: parts.uri, headers: parts.headers, presented, body: Some(body) };
    let mut response = match answer(&registry, &mut call).await {
        Ok(response) => response,
        Err(error) => {
            drain(&mut call).await;
            error.into_response()
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if call.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// Reads a little of a body nobody wanted: closing with unread data would reset the connection before
/// the client has read the answer. A client that waits for `100 Continue` has not sent any.
async fn drain(call: &mut Call) {
    let Some(body) = call.body.take() else { return };
    if !call.headers.contains_key(header::EXPECT) {
        let mut body = http_body_util::Limited::new(body, DRAIN_BYTES);
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        // Whether it ended or we gave up makes no difference.
        let _ = tokio::time::timeout(DRAIN, rest).await;
    }
}

async fn answer(registry: &Arc<Registry>, call: &mut Call) -> Result<Response<Body>, RegistryError> {
    let reads = matches!(call.method, Method::GET | Method::HEAD);
    let path = call.uri.path();
    let rest = path.strip_prefix("/v2").map(|rest| rest.strip_prefix('/').unwrap_or(rest));
    let rest = rest.and_then(percent_decode).ok_or(RegistryError::NoEndpoint)?;
    let endpoint = route::endpoint(&rest).map_err(|error| match error {
        // No manifest has such a name, so to a reader it is simply not there.
        RouteError::Name(NameError::Reference) if reads => RegistryError::ManifestUnknown,
        error => error.into(),
    })?;
    let (repository, action) = match &endpoint {
        Endpoint::Ping => (None, Action::Check),
        Endpoint::Catalog => (None, Action::Catalog),
        Endpoint::Upload(repository, _) | Endpoint::Uploads(repository) => (Some(repository), Action::Push),
        Endpoint::Tags(repository)
        | Endpoint::Manifest(repository, _)
        | Endpoint::Blob(repository, _)
        | Endpoint::Referrers(repository, _) => {
            let action = match call.method {
                _ if reads => Action::Pull,
                Method::DELETE => Action::Delete,
                _ => Action::Push,
            };
            (Some(repository), action)
        }
    };
    registry.check(&call.presented, repository, action)?;
    let query = axum::extract::Query::<Query>::try_from_uri(&call.uri)
        .map_err(|_| RegistryError::QueryInvalid("malformed query".into()))?
        .0;
    dispatch(registry, endpoint, query, call).await
}

async fn dispatch(
    registry: &Arc<Registry>,
    endpoint: Endpoint,
    query: Query,
    call: &mut Call,
) -> Result<Response<Body>, RegistryError> {
    prepare_mirror(registry, &endpoint, &call.method).await?;
    match (endpoint, call.method.as_str()) {
        (Endpoint::Ping, "GET" | "HEAD") => Ok(pong()),
        (Endpoint::Catalog, "GET" | "HEAD") => list::catalog(registry, &query).await,
        (Endpoint::Tags(repository), "GET" | "HEAD") => list::tags(registry, repository, &query).await,
        (Endpoint::Manifest(repository, reference), "GET" | "HEAD") => {
            manifest::get(registry, repository, reference, &call.headers).await
        }
        (Endpoint::Manifest(repository, reference), "PUT") => {
            manifest::put(registry, repository, reference, &call.headers, &mut call.body).await
        }
        (Endpoint::Blob(repository, digest), "GET") => {
            blob::get(registry, repository, digest, &call.headers).await
        }
        (Endpoint::Blob(repository, digest), "HEAD") => blob::head(registry, repository, digest).await,
        (Endpoint::Manifest(repository, reference), "DELETE") => {
            delete::manifest(registry, repository, reference).await
        }
        (Endpoint::Blob(repository, digest), "DELETE") => delete::blob(registry, repository, digest).await,
        (Endpoint::Referrers(repository, digest), "GET" | "HEAD") => {
            referrers::get(registry, repository, digest, &query).await
        }
        (Endpoint::Uploads(repository), "POST") => start_upload(registry, repository, &query, call).await,
        (Endpoint::Upload(repository, id), "GET" | "HEAD") => {
            let offset = upload::status(registry, &repository, id).await?;
            Ok(upload_answer(StatusCode::NO_CONTENT, &repository, id, offset))
        }
        (Endpoint::Upload(repository, id), "PATCH") => {
            let chunk = content_range(&call.headers)?;
            let offset = upload::append(registry, &repository, id, chunk, &mut call.body).await?;
            Ok(upload_answer(StatusCode::ACCEPTED, &repository, id, offset))
        }
        (Endpoint::Upload(repository, id), "PUT") => {
            let digest =
                query.digest.ok_or_else(|| RegistryError::DigestInvalid("digest is missing".into()))?;
            let digest = parse_digest(&digest)?;
            let chunk = content_range(&call.headers)?;
            upload::finish(registry, &repository, id, chunk, digest, &mut call.body).await?;
            Ok(blob_created(&repository, digest))
        }
        (Endpoint::Upload(repository, id), "DELETE") => {
            upload::cancel(registry, &repository, id).await?;
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        (endpoint, _) => Err(RegistryError::Unsupported { allow: allowed(&endpoint) }),
    }
}

/// In a mirror what is asked for is fetched first, and nothing is pushed.
async fn prepare_mirror(
    registry: &Arc<Registry>,
    endpoint: &Endpoint,
    method: &Method,
) -> Result<(), RegistryError> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match endpoint {
        Endpoint::Manifest(name, reference) if reads && mirror::is_mirrored(name) => {
            mirror::ensure_manifest(registry, name, reference).await
        }
        Endpoint::Blob(name, digest) if reads && mirror::is_mirrored(name) => {
            mirror::ensure_blob(registry, name, *digest).await
        }
        Endpoint::Manifest(name, _) if *method == Method::PUT => mirror::refuse_push(name),
        Endpoint::Uploads(name) | Endpoint::Upload(name, _) => mirror::refuse_push(name),
        _ => Ok(()),
    }
}

fn allowed(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Ping | Endpoint::Catalog | Endpoint::Tags(_) | Endpoint::Referrers(..) => "GET, HEAD",
        Endpoint::Blob(..) => "GET, HEAD, DELETE",
        Endpoint::Manifest(..) => "GET, HEAD, PUT, DELETE",
        Endpoint::Uploads(_) => "POST",
        Endpoint::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
    }
}

fn pong() -> Response<Body> {
    let mut response = Response::new(Body::from("{}"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, 2.into());
    response
}

/// `POST blobs/uploads/`: mount, the whole blob at once, or a session.
async fn start_upload(
    registry: &Arc<Registry>,
    repository: RepositoryName,
    query: &Query,
    call: &mut Call,
) -> Result<Response<Body>, RegistryError> {
    if let Some(mount) = &query.mount {
        let digest = parse_digest(mount)?;
        if mount_blob(registry, &repository, digest, query.from.as_deref(), &call.presented).await? {
            return Ok(blob_created(&repository, digest));
        }
    } else if let Some(digest) = &query.digest {
        let digest = parse_digest(digest)?;
        upload::store(registry, repository.clone(), digest, &mut call.body).await?;
        return Ok(blob_created(&repository, digest));
    }
    let (store, name) = (registry.clone(), repository.clone());
    let id = blocking(move || store.uploads.begin(name, &store.limits)).await?;
    Ok(upload_answer(StatusCode::ACCEPTED, &repository, Some(id), 0))
}

/// Whether the blob is now in `repository`. A source that is unknown or closed to this client makes a
/// normal upload of it, which tells nothing about the source.
async fn mount_blob(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    digest: Digest,
    from: Option<&str>,
    presented: &auth::Presented,
) -> Result<bool, RegistryError> {
    let Some(from) = from.and_then(|from| RepositoryName::parse(from).ok()) else { return Ok(false) };
    if registry.check(presented, Some(&from), Action::Pull).is_err() {
        return Ok(false);
    }
    let (registry, repository) = (registry.clone(), repository.clone());
    blocking(move || {
        let adding = registry.disk.adding();
        let there = registry.disk.blob_size(&from, digest)?.is_some();
        if there {
            registry.disk.link_blob(&adding, &repository, digest)?;
            tracing::info!(%repository, %from, %digest, "blob mounted");
        }
        Ok(there)
    })
    .await
}

fn upload_answer(
    status: StatusCode,
    repository: &RepositoryName,
    id: Option<Uuid>,
    offset: u64,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(id) = id {
        set(headers, header::LOCATION, &upload::location(repository, id));
        set(headers, UPLOAD_ID, &id.to_string());
    }
    set(headers, header::RANGE, &received_range(offset));
    if status != StatusCode::NO_CONTENT {
        headers.insert(header::CONTENT_LENGTH, 0.into());
    }
    response
}

fn blob_created(repository: &RepositoryName, digest: Digest) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    set(headers, header::LOCATION, &format!("/v2/{repository}/blobs/{digest}"));
    set(headers, CONTENT_DIGEST, &digest.to_string());
    headers.insert(header::CONTENT_LENGTH, 0.into());
    response
}

/// `Content-Range: FIRST-LAST`, as the Distribution Spec writes it, or in the form of RFC 9110.
fn content_range(headers: &HeaderMap) -> Result<Option<Chunk>, RegistryError> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let malformed = || RegistryError::UploadInvalid("malformed Content-Range".into());
    let untrusted = value.to_str().map_err(|_| malformed())?.trim();
    let untrusted =
        untrusted.strip_prefix("bytes").map_or(untrusted, |rest| rest.trim_start_matches([' ', '=']));
    let range = untrusted.split('/').next().unwrap_or_default();
    let (first, last) = range.split_once('-').ok_or_else(malformed)?;
    let (Some(first), Some(last)) = (blob::decimal(first), blob::decimal(last)) else {
        return Err(malformed());
    };
    let length = last.checked_sub(first).and_then(|length| length.checked_add(1)).ok_or_else(malformed)?;
    Ok(Some(Chunk { start: first, length }))
}

/// Our own values are plain ASCII; one that is not is left out rather than sent damaged.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// `None` when the result is no text.
fn percent_decode(untrusted: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(untrusted.len());
    let mut bytes = untrusted.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            decoded.extend(hex::decode(digits).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Runs work on the disk where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(RegistryError::Internal(io::Error::other("a storage task ended early"))))
}
