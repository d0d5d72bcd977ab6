// SPDX-License-Identifier: Apache-2.0
//! The registry as a client sees it, without a socket.

mod nonsense;
mod removal;

use super::name::digest_hex;
use super::*;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use std::path::PathBuf;
use tower::ServiceExt as _;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct World {
    directory: tempfile::TempDir,
    registry: Arc<Registry>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn failed(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code));
    }
}

impl World {
    fn new() -> Self {
        Self::with(|registry| registry.with_authorize(Arc::new(AllowAll)))
    }

    fn with(adapt: impl FnOnce(Registry) -> Registry) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let registry = Arc::new(adapt(Registry::open(directory.path()).unwrap()));
        Self { directory, registry }
    }

    fn limited(change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits::default();
        change(&mut limits);
        Self::with(|registry| registry.with_authorize(Arc::new(AllowAll)).with_limits(limits))
    }

    fn restarted(self) -> Self {
        let registry = Registry::open(self.directory.path()).unwrap().with_authorize(Arc::new(AllowAll));
        Self { directory: self.directory, registry: Arc::new(registry) }
    }

    async fn send(&self, line: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let (method, uri) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let response = router(self.registry.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn ask(&self, line: &str) -> Answer {
        self.send(line, &[], Body::empty()).await
    }

    async fn push_blob(&self, repository: &str, content: &str) -> Digest {
        let digest = digest_of(content.as_bytes());
        let line = format!("POST /v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send(&line, &[], content.to_owned()).await.status, 201);
        digest
    }

    async fn begin(&self, repository: &str) -> String {
        let begun = self.ask(&format!("POST /v2/{repository}/blobs/uploads/")).await;
        assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
        begun.header("location").to_owned()
    }

    async fn push_manifest(&self, path: &str, media_type: &str, document: &serde_json::Value) -> Answer {
        self.send(&format!("PUT /v2/{path}"), &[("content-type", media_type)], document.to_string()).await
    }

    async fn push_image(&self, repository: &str, tag: &str) -> Digest {
        for content in ["{}", "layer"] {
            self.push_blob(repository, content).await;
        }
        let put = self.push_manifest(&format!("{repository}/manifests/{tag}"), IMAGE, &image()).await;
        assert_eq!(put.status, 201);
        parse_digest(put.header("docker-content-digest")).unwrap()
    }

    /// Returns when no request holds the disk any more.
    async fn settled(&self) {
        let all = u32::try_from(self.registry.limits.transfers).unwrap();
        drop(self.registry.transfers.acquire_many(all).await.unwrap());
    }

    fn files(&self, under: &str) -> Vec<PathBuf> {
        let mut pending = vec![self.directory.path().join(under)];
        let mut files = Vec::new();
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                files.push(path);
            }
        }
        files
    }
}

fn descriptor(media_type: &str, content: &str) -> serde_json::Value {
    let digest = digest_of(content.as_bytes()).to_string();
    serde_json::json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
}

fn image() -> serde_json::Value {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": IMAGE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", "{}"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", "layer")],
    })
}

/// A body that sends `content` and then breaks off.
fn broken(content: &'static str) -> Body {
    let parts = [Ok(Bytes::from_static(content.as_bytes())), Err(io::Error::other("connection reset"))];
    Body::from_stream(stream::iter(parts))
}

/// A body that sends `content` and then nothing, without an end.
fn stalled(content: &'static str) -> Body {
    let first = stream::iter([Ok::<_, io::Error>(Bytes::from_static(content.as_bytes()))]);
    Body::from_stream(first.chain(stream::pending()))
}

#[tokio::test]
async fn the_check_endpoint_says_which_api_this_is() {
    let world = World::new();
    for path in ["/v2/", "/v2"] {
        let answer = world.ask(&format!("GET {path}")).await;
        assert_eq!((answer.status, answer.header("docker-distribution-api-version")), (200, "registry/2.0"));
    }
}

#[tokio::test]
async fn a_pushed_blob_can_be_read_whole_and_in_part() {
    let world = World::new();
    let digest = world.push_blob("a/b", "0123456789").await;
    let path = format!("/v2/a/b/blobs/{digest}");
    let head = world.ask(&format!("HEAD {path}")).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "10", 0));
    let whole = world.ask(&format!("GET {path}")).await;
    assert_eq!((whole.status, &whole.body[..]), (200, &b"0123456789"[..]));
    assert_eq!(whole.header("docker-content-digest"), digest.to_string());
    let etag = whole.header("etag").to_owned();
    assert_eq!(
        world.send(&format!("GET {path}"), &[("if-none-match", &etag)], Body::empty()).await.status,
        304
    );
    let part = world.send(&format!("GET {path}"), &[("range", "bytes=2-4")], Body::empty()).await;
    assert_eq!((part.status, &part.body[..]), (206, &b"234"[..]));
    assert_eq!((part.header("content-range"), part.header("content-length")), ("bytes 2-4/10", "3"));
    let all = world.send(&format!("GET {path}"), &[("range", "bytes=0-")], Body::empty()).await;
    assert_eq!((all.status, all.body.len()), (206, 10));
    let stale = [("range", "bytes=2-4"), ("if-range", "\"other\"")];
    assert_eq!(world.send(&format!("GET {path}"), &stale, Body::empty()).await.status, 200);
    let outside = world.send(&format!("GET {path}"), &[("range", "bytes=10-")], Body::empty()).await;
    assert_eq!((outside.status, outside.header("content-range")), (416, "bytes */10"));
}

#[tokio::test]
async fn a_blob_larger_than_a_read_arrives_unchanged() {
    let world = World::new();
    let content: Vec<u8> = (0..1_500_001_u32).map(|n| (n % 251) as u8).collect();
    let digest = digest_of(&content);
    let line = format!("POST /v2/a/blobs/uploads/?digest={digest}");
    assert_eq!(world.send(&line, &[], content.clone()).await.status, 201);
    assert!(world.ask(&format!("GET /v2/a/blobs/{digest}")).await.body == content);
    let range = [("range", "bytes=524287-1048577")];
    let part = world.send(&format!("GET /v2/a/blobs/{digest}"), &range, Body::empty()).await;
    assert!(part.body[..] == content[524_287..1_048_578]);
}

#[tokio::test]
async fn the_empty_blob_is_a_blob_like_others() {
    let world = World::new();
    let digest = world.push_blob("a", "").await;
    let whole = world.ask(&format!("GET /v2/a/blobs/{digest}")).await;
    assert_eq!((whole.status, whole.header("content-length"), whole.body.len()), (200, "0", 0));
    let location = world.begin("a").await;
    assert_eq!(world.ask(&format!("PUT {location}?digest={digest}")).await.status, 201);
}

#[tokio::test]
async fn a_session_takes_the_blob_in_one_put() {
    let world = World::new();
    let location = world.begin("a").await;
    let digest = digest_of(b"content");
    let put = world.send(&format!("PUT {location}?digest={digest}"), &[], "content").await;
    assert_eq!((put.status, put.header("location")), (201, format!("/v2/a/blobs/{digest}").as_str()));
    assert_eq!(world.ask(&format!("GET /v2/a/blobs/{digest}")).await.body, "content");
    world.ask(&format!("GET {location}")).await.failed(404, "BLOB_UPLOAD_UNKNOWN");
    assert!(world.files("uploads").is_empty() && world.files("tmp").is_empty());
}

#[tokio::test]
async fn chunks_must_follow_each_other() {
    let world = World::new();
    let location = world.begin("a").await;
    let patch = format!("PATCH {location}");
    let first = world.send(&patch, &[("content-range", "0-3")], "0123").await;
    assert_eq!((first.status, first.header("range")), (202, "0-3"));
    for wrong in ["5-8", "0-3", "3-6"] {
        let refused = world.send(&patch, &[("content-range", wrong)], "xxxx").await;
        refused.failed(416, "BLOB_UPLOAD_INVALID");
        assert_eq!((refused.header("location"), refused.header("range")), (location.as_str(), "0-3"));
    }
    for (range, body) in [("4-7", "45"), ("4-5", "4567")] {
        world.send(&patch, &[("content-range", range)], body).await.failed(400, "SIZE_INVALID");
    }
    for malformed in ["4", "-", "4-", "7-4", "x-y", "0-18446744073709551615"] {
        let refused = world.send(&patch, &[("content-range", malformed)], "45").await;
        refused.failed(400, "BLOB_UPLOAD_INVALID");
    }
    let status = world.ask(&format!("GET {location}")).await;
    assert_eq!((status.status, status.header("range")), (204, "0-3"));
    assert_eq!(world.send(&patch, &[("content-range", "bytes 4-5/*")], "45").await.header("range"), "0-5");
    let digest = digest_of(b"01234567");
    let put = format!("PUT {location}?digest={digest}");
    assert_eq!(world.send(&put, &[("content-range", "6-7")], "67").await.status, 201);
    assert_eq!(world.ask(&format!("GET /v2/a/blobs/{digest}")).await.body, "01234567");
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let world = World::new();
    let location = world.begin("a").await;
    world.send(&format!("PATCH {location}"), &[], "before ").await;
    let world = world.restarted();
    assert_eq!(world.ask(&format!("GET {location}")).await.header("range"), "0-6");
    world.send(&format!("PATCH {location}"), &[("content-range", "7-11")], "after").await;
    let digest = digest_of(b"before after");
    assert_eq!(world.ask(&format!("PUT {location}?digest={digest}")).await.status, 201);
    let world = world.restarted();
    assert_eq!(world.ask(&format!("GET /v2/a/blobs/{digest}")).await.body, "before after");
}

#[tokio::test]
async fn content_with_another_digest_is_refused_and_forgotten() {
    let world = World::new();
    let digest = digest_of(b"right");
    let whole = world.send(&format!("POST /v2/a/blobs/uploads/?digest={digest}"), &[], "wrong").await;
    whole.failed(400, "DIGEST_INVALID");
    let location = world.begin("a").await;
    world.send(&format!("PUT {location}?digest={digest}"), &[], "wrong").await.failed(400, "DIGEST_INVALID");
    world.ask(&format!("GET {location}")).await.failed(404, "BLOB_UPLOAD_UNKNOWN");
    world.ask(&format!("GET /v2/a/blobs/{digest}")).await.failed(404, "BLOB_UNKNOWN");
    for under in ["uploads", "tmp", "blobs", "repositories"] {
        assert_eq!(world.files(under), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_digest_that_is_missing_or_not_sha256_is_refused_with_its_reason() {
    let world = World::new();
    let location = world.begin("a").await;
    world.ask(&format!("PUT {location}")).await.failed(400, "DIGEST_INVALID");
    let long = format!("sha512:{}", "0".repeat(128));
    let refused = world.ask(&format!("PUT {location}?digest={long}")).await;
    refused.failed(400, "DIGEST_INVALID");
    assert!(String::from_utf8_lossy(&refused.body).contains("sha512 is not supported, use sha256"));
    assert_eq!(world.ask(&format!("GET {location}")).await.status, 204);
}

#[tokio::test]
async fn a_push_that_breaks_off_leaves_nothing() {
    let world = World::new();
    let line = format!("POST /v2/a/blobs/uploads/?digest={}", digest_of(b"content"));
    world.send(&line, &[], broken("cont")).await.failed(400, "BLOB_UPLOAD_INVALID");
    // The server drops the request of a client that is gone.
    let request =
        Request::builder().method("POST").uri(line.split_once(' ').unwrap().1).body(stalled("cont"));
    let mut gone = Box::pin(router(world.registry.clone()).oneshot(request.unwrap()));
    while world.registry.transfers.available_permits() == world.registry.limits.transfers {
        assert!((&mut gone).now_or_never().is_none());
    }
    drop(gone);
    world.settled().await;
    assert_eq!(world.files("tmp"), Vec::<PathBuf>::new());
    assert_eq!(world.files("blobs"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_chunk_that_breaks_off_is_kept_as_far_as_it_came() {
    let world = World::new();
    let location = world.begin("a").await;
    let patch = world.send(&format!("PATCH {location}"), &[("content-range", "0-6")], broken("cont")).await;
    patch.failed(400, "BLOB_UPLOAD_INVALID");
    assert_eq!(world.ask(&format!("GET {location}")).await.header("range"), "0-3");
    let digest = digest_of(b"content");
    let put = format!("PUT {location}?digest={digest}");
    assert_eq!(world.send(&put, &[("content-range", "4-6")], "ent").await.status, 201);
}

#[tokio::test]
async fn a_client_that_stops_sending_is_let_go() {
    let world = World::limited(|limits| limits.body_idle = Duration::from_millis(20));
    let line = format!("POST /v2/a/blobs/uploads/?digest={}", digest_of(b"content"));
    world.send(&line, &[], stalled("cont")).await.failed(408, "BLOB_UPLOAD_INVALID");
    world.send("PUT /v2/a/manifests/t", &[], stalled("{")).await.failed(408, "BLOB_UPLOAD_INVALID");
    assert_eq!(world.files("tmp"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_upload_can_be_cancelled_and_expires() {
    let world = World::new();
    let cancelled = world.begin("a").await;
    assert_eq!(world.ask(&format!("DELETE {cancelled}")).await.status, 204);
    world.ask(&format!("DELETE {cancelled}")).await.failed(404, "BLOB_UPLOAD_UNKNOWN");
    let idle = world.begin("a").await;
    assert_eq!(world.registry.sweep(SystemTime::now()).unwrap(), 0);
    assert_eq!(world.registry.sweep(SystemTime::now() + UPLOAD_IDLE + DRAIN).unwrap(), 1);
    world.ask(&format!("GET {idle}")).await.failed(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(world.files("uploads"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_session_belongs_to_its_repository() {
    let world = World::new();
    let location = world.begin("a").await.replace("/v2/a/", "/v2/b/");
    world.send(&format!("PATCH {location}"), &[], "x").await.failed(404, "BLOB_UPLOAD_UNKNOWN");
    world.ask("GET /v2/a/blobs/uploads/nothing").await.failed(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn the_same_blob_may_be_pushed_by_many_at_once() {
    let world = Arc::new(World::new());
    let content = "same ".repeat(100_000);
    let digest = digest_of(content.as_bytes());
    let mut pushes = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (world, content) = (world.clone(), content.clone());
        let line = format!("POST /v2/repo{}/blobs/uploads/?digest={digest}", n % 3);
        pushes.spawn(async move { world.send(&line, &[], content).await.status });
    }
    assert_eq!(pushes.join_all().await, [201; 8]);
    assert_eq!(world.files("blobs").len(), 1);
    assert_eq!(world.ask(&format!("GET /v2/repo2/blobs/{digest}")).await.body, content);
    assert_eq!(world.files("tmp"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_blob_is_seen_only_in_its_repository_until_it_is_mounted() {
    let world = World::new();
    let digest = world.push_blob("from", "content").await;
    world.ask(&format!("GET /v2/to/blobs/{digest}")).await.failed(404, "BLOB_UNKNOWN");
    for source in ["&from=other", "&from=../from", ""] {
        let begun = world.ask(&format!("POST /v2/to/blobs/uploads/?mount={digest}{source}")).await;
        assert_eq!(begun.status, 202, "{source}");
    }
    let mounted = world.ask(&format!("POST /v2/to/blobs/uploads/?mount={digest}&from=from")).await;
    assert_eq!(
        (mounted.status, mounted.header("location")),
        (201, format!("/v2/to/blobs/{digest}").as_str())
    );
    assert_eq!(world.ask(&format!("GET /v2/to/blobs/{digest}")).await.body, "content");
}

#[tokio::test]
async fn a_manifest_is_served_as_it_was_pushed() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    for reference in ["v1".to_owned(), digest.to_string(), digest.to_string().replace(':', "%3A")] {
        let got = world.ask(&format!("GET /v2/a/manifests/{reference}")).await;
        assert_eq!((got.status, got.header("content-type")), (200, IMAGE));
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        assert_eq!(got.body, image().to_string());
        let head = world.ask(&format!("HEAD /v2/a/manifests/{reference}")).await;
        assert_eq!(head.header("content-length"), image().to_string().len().to_string());
        assert!(head.status == 200 && head.body.is_empty());
    }
    let etag = format!("\"{digest}\"");
    let same = world.send("GET /v2/a/manifests/v1", &[("if-none-match", &etag)], Body::empty()).await;
    assert_eq!(same.status, 304);
    world.ask("GET /v2/a/manifests/v2").await.failed(404, "MANIFEST_UNKNOWN");
    world.ask("GET /v2/a/manifests/.v2").await.failed(404, "MANIFEST_UNKNOWN");
    world.ask(&format!("GET /v2/b/manifests/{digest}")).await.failed(404, "MANIFEST_UNKNOWN");
    let world = world.restarted();
    assert_eq!(world.ask("GET /v2/a/manifests/v1").await.body, image().to_string());
}

#[tokio::test]
async fn a_manifest_is_taken_only_with_all_it_references() {
    let world = World::new();
    let put = world.push_manifest("a/manifests/v1", IMAGE, &image()).await;
    put.failed(404, "MANIFEST_BLOB_UNKNOWN");
    world.push_blob("a", "{}").await;
    world.push_blob("elsewhere", "layer").await;
    world.push_manifest("a/manifests/v1", IMAGE, &image()).await.failed(404, "MANIFEST_BLOB_UNKNOWN");
    world.push_blob("a", "layer").await;
    let mut wrong = image();
    wrong["layers"][0]["size"] = 6.into();
    world.push_manifest("a/manifests/v1", IMAGE, &wrong).await.failed(400, "SIZE_INVALID");
    let digest = digest_of(image().to_string().as_bytes());
    let other = digest_of(b"other");
    let put = world.push_manifest(&format!("a/manifests/{other}"), IMAGE, &image()).await;
    put.failed(400, "DIGEST_INVALID");
    let index =
        serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor(IMAGE, &image().to_string())] });
    world.push_manifest("a/manifests/all", INDEX, &index).await.failed(404, "MANIFEST_BLOB_UNKNOWN");
    let put = world.push_manifest(&format!("a/manifests/{digest}"), IMAGE, &image()).await;
    assert_eq!((put.status, put.header("location")), (201, format!("/v2/a/manifests/{digest}").as_str()));
    let put = world.push_manifest("a/manifests/all", INDEX, &index).await;
    assert_eq!((put.status, put.header("oci-subject")), (201, ""));
}

#[tokio::test]
async fn a_subject_is_confirmed_even_when_it_is_absent() {
    let world = World::new();
    world.push_image("a", "v1").await;
    let mut artifact = image();
    artifact["subject"] = descriptor(IMAGE, "to come");
    let put = world.push_manifest("a/manifests/artifact", IMAGE, &artifact).await;
    assert_eq!((put.status, put.header("oci-subject")), (201, digest_of(b"to come").to_string().as_str()));
}

#[tokio::test]
async fn a_manifest_that_is_too_large_or_no_json_is_refused() {
    let world = World::new();
    let put = "PUT /v2/a/manifests/t";
    let large = world.send(put, &[("content-type", IMAGE)], vec![b' '; MAX_MANIFEST_BYTES + 1]).await;
    large.failed(413, "SIZE_INVALID");
    for (body, media_type) in [("", IMAGE), ("{", IMAGE), ("{\"schemaVersion\":2}", "text/plain")] {
        world.send(put, &[("content-type", media_type)], body).await.failed(400, "MANIFEST_INVALID");
    }
    world.send("PUT /v2/a/manifests/.t", &[], "{}").await.failed(400, "MANIFEST_INVALID");
}

#[tokio::test]
async fn damaged_content_of_a_manifest_is_not_served() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    let path = world.files("blobs").into_iter().find(|path| path.ends_with(digest_hex(digest))).unwrap();
    std::fs::write(path, "{}").unwrap();
    world.ask("GET /v2/a/manifests/v1").await.failed(500, "UNKNOWN");
    world.push_image("a", "v1").await;
    assert_eq!(world.ask("GET /v2/a/manifests/v1").await.status, 200);
}

#[tokio::test]
async fn lists_come_in_pages_that_link_to_the_next() {
    let world = World::new();
    for (repository, tag) in [("a", "v1"), ("a", "v10"), ("a", "v2"), ("a/b", "x"), ("a-b", "x")] {
        world.push_image(repository, tag).await;
    }
    world.push_blob("only-blobs", "x").await;
    let all = world.ask("GET /v2/a/tags/list").await;
    assert_eq!((all.status, all.header("link")), (200, ""));
    assert_eq!(all.body, r#"{"name":"a","tags":["v1","v10","v2"]}"#);
    let first = world.ask("GET /v2/a/tags/list?n=2").await;
    assert_eq!(first.body, r#"{"name":"a","tags":["v1","v10"]}"#);
    assert_eq!(first.header("link"), "</v2/a/tags/list?n=2&last=v10>; rel=\"next\"");
    let second = world.ask("GET /v2/a/tags/list?n=2&last=v10").await;
    assert_eq!((&second.body[..], second.header("link")), (&br#"{"name":"a","tags":["v2"]}"#[..], ""));
    assert_eq!(world.ask("GET /v2/a/tags/list?n=0").await.body, r#"{"name":"a","tags":[]}"#);
    world.ask("GET /v2/a/tags/list?n=x").await.failed(400, "UNSUPPORTED");
    world.ask("GET /v2/c/tags/list").await.failed(404, "NAME_UNKNOWN");
    assert_eq!(world.ask("GET /v2/_catalog").await.body, r#"{"repositories":["a","a-b","a/b"]}"#);
    let first = world.ask("GET /v2/_catalog?n=2").await;
    assert_eq!(first.header("link"), "</v2/_catalog?n=2&last=a-b>; rel=\"next\"");
}

#[tokio::test]
async fn a_method_that_an_endpoint_does_not_have_is_unsupported() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    for (line, allow) in [
        ("POST /v2/a/manifests/v1".to_owned(), "GET, HEAD, PUT, DELETE"),
        (format!("PUT /v2/a/blobs/{digest}"), "GET, HEAD, DELETE"),
        (format!("DELETE /v2/a/referrers/{digest}"), "GET, HEAD"),
        ("POST /v2/".to_owned(), "GET, HEAD"),
        ("GET /v2/a/blobs/uploads/".to_owned(), "POST"),
    ] {
        let answer = world.ask(&line).await;
        answer.failed(405, "UNSUPPORTED");
        assert_eq!(answer.headers["allow"], allow, "{line}");
    }
}

#[tokio::test]
async fn no_path_leaves_the_directory() {
    let world = World::new();
    for path in ["..%2f..%2fetc", "%2e%2e/x", "a/../b", "_blobs", "a/_tags", "A", "a%00b"] {
        world.ask(&format!("POST /v2/{path}/blobs/uploads/")).await.failed(400, "NAME_INVALID");
    }
    for path in ["a/blobs/uploads/..", "a/blobs/uploads/%2e%2e%2fx"] {
        assert_eq!(world.ask(&format!("GET /v2/{path}")).await.status, 404, "{path}");
    }
    for path in ["a/b/c", "%ff/tags/list", "a%2/tags/list", "x"] {
        world.ask(&format!("GET /v2/{path}")).await.failed(404, "UNSUPPORTED");
    }
    assert_eq!(world.files("repositories"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn limits_hold() {
    let world = World::limited(|limits| (limits.uploads, limits.blob_bytes) = (1, 4));
    let location = world.begin("a").await;
    world.ask("POST /v2/a/blobs/uploads/").await.failed(429, "TOOMANYREQUESTS");
    world.send(&format!("PATCH {location}"), &[], "12345").await.failed(413, "SIZE_INVALID");
    assert_eq!(world.ask(&format!("GET {location}")).await.header("range"), "0-0");
    let digest = digest_of(b"1234");
    assert_eq!(world.send(&format!("PUT {location}?digest={digest}"), &[], "1234").await.status, 201);
    let world = World::limited(|limits| (limits.transfers, limits.downloads) = (0, 0));
    let line = format!("POST /v2/a/blobs/uploads/?digest={digest}");
    world.send(&line, &[], "1234").await.failed(429, "TOOMANYREQUESTS");
    world.ask(&format!("GET /v2/a/blobs/{digest}")).await.failed(429, "TOOMANYREQUESTS");
    let world = World::limited(|limits| limits.free_bytes = u64::MAX);
    world.send(&line, &[], "1234").await.failed(507, "DENIED");
}

#[tokio::test]
async fn torn_sessions_are_dropped_and_newer_formats_refused() {
    let world = World::new();
    let location = world.begin("a").await;
    let id = location.rsplit_once('/').unwrap().1;
    let root = world.directory.path().to_owned();
    std::fs::write(root.join("uploads").join(id).join("session.json"), "{").unwrap();
    std::fs::write(root.join("tmp/left"), "x").unwrap();
    let world = world.restarted();
    world.ask(&format!("GET {location}")).await.failed(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(world.files("uploads").len() + world.files("tmp").len(), 0);
    std::fs::write(root.join("format.json"), r#"{"format":2}"#).unwrap();
    assert!(matches!(Registry::open(&root), Err(OpenError::Format { format: 2, .. })));
}

/// Ann may do everything in `ann`, and look at the catalogue; whoever holds the token may pull.
struct Rules;

impl Authorize for Rules {
    fn authorize(
        &self,
        who: Credentials<'_>,
        repository: Option<&RepositoryName>,
        action: Action,
    ) -> Decision {
        match (who, action) {
            (Credentials::Basic { username: "ann", password: "secret" }, Action::Pull | Action::Push) => {
                let hers = repository.is_some_and(|repository| repository.as_str() == "ann");
                if hers { Decision::Allow } else { Decision::Deny }
            }
            (Credentials::Basic { username: "ann", password: "secret" }, _) => Decision::Allow,
            (Credentials::Bearer("token"), Action::Pull | Action::Check) => Decision::Allow,
            (Credentials::Bearer("token"), _) => Decision::Deny,
            _ => Decision::Unauthenticated,
        }
    }
}

const ANN: (&str, &str) = ("authorization", "Basic YW5uOnNlY3JldA==");
const WRONG: (&str, &str) = ("authorization", "Basic YW5uOndyb25n");
const TOKEN: (&str, &str) = ("authorization", "Bearer token");
const NOBODY: (&str, &str) = ("authorization", "Basic Og==");

#[tokio::test]
async fn every_request_is_decided_by_its_credentials() {
    for (pull, nobody_pulls) in [(AnonymousPull::Refused, 401), (AnonymousPull::Allowed, 404)] {
        let world = World::with(|r| r.with_authorize(Arc::new(Rules)).with_anonymous_pull(pull));
        let read = "GET /v2/ann/manifests/v1";
        let write = "POST /v2/ann/blobs/uploads/";
        for (line, who, status) in [
            ("GET /v2/", NOBODY, 401),
            ("GET /v2/", ANN, 200),
            ("GET /v2/", WRONG, 401),
            ("GET /v2/_catalog", NOBODY, 401),
            ("GET /v2/_catalog", TOKEN, 403),
            ("GET /v2/_catalog", ANN, 200),
            (read, NOBODY, nobody_pulls),
            (read, WRONG, 401),
            (read, ("authorization", "Basic !"), 401),
            (read, ANN, 404),
            (read, TOKEN, 404),
            ("GET /v2/other/manifests/v1", ANN, 403),
            (write, NOBODY, 401),
            (write, WRONG, 401),
            (write, TOKEN, 403),
            (write, ANN, 202),
            ("DELETE /v2/ann/manifests/v1", NOBODY, 401),
            ("PUT /v2/ann/manifests/v1", NOBODY, 401),
            ("GET /v2/ann/blobs/uploads/x", NOBODY, 401),
        ] {
            let answer = world.send(line, &[who], Body::empty()).await;
            assert_eq!(answer.status, status, "{line} {who:?} {pull:?}");
            match status {
                401 => {
                    assert_eq!(answer.code(), "UNAUTHORIZED");
                    assert!(answer.header("www-authenticate").starts_with("Basic realm="));
                }
                403 => assert_eq!(answer.code(), "DENIED"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_blob_cannot_be_mounted_from_where_its_reader_may_not_look() {
    let digest = digest_of(b"content");
    let world = World::new();
    world.push_blob("secret", "content").await;
    let guarded = Registry::open(world.directory.path()).unwrap().with_authorize(Arc::new(Rules));
    let world = World { directory: world.directory, registry: Arc::new(guarded) };
    let line = format!("POST /v2/ann/blobs/uploads/?mount={digest}&from=secret");
    assert_eq!(world.send(&line, &[ANN], Body::empty()).await.status, 202);
    world
        .send(&format!("GET /v2/ann/blobs/{digest}"), &[ANN], Body::empty())
        .await
        .failed(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_registry_without_rules_refuses_everything() {
    let world = World::with(|registry| registry);
    world.ask("GET /v2/").await.failed(401, "UNAUTHORIZED");
    world.ask("GET /v2/a/manifests/v1").await.failed(401, "UNAUTHORIZED");
}
