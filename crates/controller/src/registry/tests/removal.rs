// SPDX-License-Identifier: Apache-2.0
//! Referrers, delete and garbage collection.

use super::*;
use crate::registry::collect::{GRACE, MIN_GRACE, Run};
use crate::registry::uses::{Use, Uses};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

struct Apps(Vec<(&'static str, String, &'static str)>);

impl Uses for Apps {
    fn uses(&self) -> Vec<Use> {
        let one = |(repository, reference, by): &(&str, String, &str)| Use {
            repository: RepositoryName::parse(repository).unwrap(),
            reference: Reference::parse(reference).unwrap(),
            by: (*by).to_owned(),
        };
        self.0.iter().map(one).collect()
    }
}

fn world_with_apps(apps: Apps) -> World {
    World::with(|registry| registry.with_authorize(Arc::new(AllowAll)).with_uses(Arc::new(apps)))
}

impl World {
    /// An artifact without layers that has `subject`.
    async fn attach(&self, repository: &str, subject: Digest, artifact_type: &str) -> Digest {
        self.push_blob(repository, "{}").await;
        let document = serde_json::json!({
            "schemaVersion": 2, "mediaType": IMAGE, "artifactType": artifact_type,
            "config": descriptor("application/vnd.oci.empty.v1+json", "{}"), "layers": [],
            "subject": { "mediaType": IMAGE, "digest": subject.to_string(), "size": 7 },
            "annotations": { "of": artifact_type },
        });
        let digest = digest_of(document.to_string().as_bytes());
        let put = self.push_manifest(&format!("{repository}/manifests/{digest}"), IMAGE, &document).await;
        assert_eq!((put.status, put.header("oci-subject")), (201, subject.to_string().as_str()));
        digest
    }

    async fn referrers(&self, path: &str) -> (Vec<String>, HeaderMap) {
        let answer = self.ask(&format!("GET /v2/{path}")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, INDEX));
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["schemaVersion"], 2);
        let digests = body["manifests"].as_array().unwrap().iter();
        (digests.map(|one| one["digest"].as_str().unwrap().to_owned()).collect(), answer.headers)
    }

    fn collect_after(&self, age: Duration) -> crate::registry::Collected {
        self.registry.collect(SystemTime::now() + age, GRACE, Run::Real).unwrap()
    }
}

#[tokio::test]
async fn what_is_attached_to_a_manifest_is_listed_and_filtered() {
    let world = World::new();
    let subject = world.push_image("a", "v1").await;
    let sbom = world.attach("a", subject, "application/vnd.example.sbom+json").await;
    let signature = world.attach("a", subject, "application/vnd.example.signature").await;
    let (all, _) = world.referrers(&format!("a/referrers/{subject}")).await;
    let mut expected = vec![sbom.to_string(), signature.to_string()];
    expected.sort();
    assert_eq!(all, expected);
    for plus in ["%2B", "+"] {
        let path = format!("a/referrers/{subject}?artifactType=application/vnd.example.sbom{plus}json");
        let (filtered, headers) = world.referrers(&path).await;
        assert_eq!(filtered, [sbom.to_string()]);
        assert_eq!(headers["oci-filters-applied"], "artifactType");
    }
    let (first, headers) = world.referrers(&format!("a/referrers/{subject}?n=1")).await;
    let link = headers["link"].to_str().unwrap();
    let next = link.strip_prefix("</v2/").unwrap().split('>').next().unwrap();
    assert_eq!([first, world.referrers(next).await.0].concat(), expected);
    // Nothing is attached elsewhere, and that is no error.
    assert_eq!(world.referrers(&format!("b/referrers/{subject}")).await.0, Vec::<String>::new());
    world.ask("GET /v2/a/referrers/sha256:12").await.failed(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn manifests_pushed_before_referrers_were_kept_are_found() {
    let world = World::new();
    let subject = world.push_image("a", "v1").await;
    let sbom = world.attach("a", subject, "application/vnd.example.sbom").await;
    let root = world.directory.path().to_owned();
    std::fs::remove_dir_all(root.join("repositories/a/_referrers")).unwrap();
    std::fs::remove_file(root.join("referrers.json")).unwrap();
    let world = world.restarted();
    assert_eq!(world.referrers(&format!("a/referrers/{subject}")).await.0, [sbom.to_string()]);
}

#[tokio::test]
async fn a_deleted_tag_leaves_the_manifest_and_a_deleted_manifest_takes_its_tags() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    world.push_image("a", "v2").await;
    assert_eq!(world.ask("DELETE /v2/a/manifests/v1").await.status, 202);
    world.ask("GET /v2/a/manifests/v1").await.failed(404, "MANIFEST_UNKNOWN");
    world.ask("DELETE /v2/a/manifests/v1").await.failed(404, "MANIFEST_UNKNOWN");
    assert_eq!(world.ask(&format!("GET /v2/a/manifests/{digest}")).await.status, 200);
    assert_eq!(world.ask(&format!("DELETE /v2/a/manifests/{digest}")).await.status, 202);
    for path in ["v2".to_owned(), digest.to_string()] {
        world.ask(&format!("GET /v2/a/manifests/{path}")).await.failed(404, "MANIFEST_UNKNOWN");
    }
    let layer = digest_of(b"layer");
    assert_eq!(world.ask(&format!("DELETE /v2/a/blobs/{layer}")).await.status, 202);
    world.ask(&format!("DELETE /v2/a/blobs/{layer}")).await.failed(404, "BLOB_UNKNOWN");
    assert_eq!(world.ask("GET /v2/_catalog").await.body, r#"{"repositories":[]}"#);
}

#[tokio::test]
async fn what_something_references_is_not_deleted() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    let layer = digest_of(b"layer");
    let refused = world.ask(&format!("DELETE /v2/a/blobs/{layer}")).await;
    refused.failed(405, "DENIED");
    let said = String::from_utf8(refused.body.to_vec()).unwrap();
    assert!(said.contains(&format!("manifest {digest} references it")), "{said}");
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        { "mediaType": IMAGE, "digest": digest.to_string(), "size": image().to_string().len() } ] });
    assert_eq!(world.push_manifest("a/manifests/all", INDEX, &index).await.status, 201);
    world.ask(&format!("DELETE /v2/a/manifests/{digest}")).await.failed(405, "DENIED");
}

#[tokio::test]
async fn what_an_app_runs_is_neither_deleted_nor_collected() {
    let image_digest = digest_of(image().to_string().as_bytes());
    let apps = Apps(vec![("a", "v1".to_owned(), "app/hello"), ("b", image_digest.to_string(), "app/pinned")]);
    let world = world_with_apps(apps);
    let digest = world.push_image("a", "v1").await;
    assert_eq!(world.push_image("b", "v1").await, image_digest);
    for path in ["a/manifests/v1".to_owned(), format!("a/manifests/{digest}")] {
        let refused = world.ask(&format!("DELETE /v2/{path}")).await;
        refused.failed(405, "DENIED");
        let said = String::from_utf8(refused.body.to_vec()).unwrap();
        assert!(said.contains("app/hello uses it; change or delete app/hello first"), "{said}");
    }
    // The tag is not what the second app names.
    assert_eq!(world.ask("DELETE /v2/b/manifests/v1").await.status, 202);
    let collected = world.collect_after(GRACE + HOUR);
    assert_eq!(collected, crate::registry::Collected::default());
    assert_eq!(world.ask(&format!("GET /v2/b/manifests/{image_digest}")).await.status, 200);
}

#[tokio::test]
async fn what_nobody_can_reach_is_collected_after_the_grace_period() {
    let world = World::new();
    let subject = world.push_image("a", "v1").await;
    let sbom = world.attach("a", subject, "application/vnd.example.sbom").await;
    world.push_image("keep", "v1").await;
    world.push_blob("keep", "given up").await;
    assert_eq!(world.ask("DELETE /v2/a/manifests/v1").await.status, 202);
    assert_eq!(world.collect_after(HOUR), crate::registry::Collected::default());
    let now = SystemTime::now() + GRACE + HOUR;
    let planned = world.registry.collect(now, GRACE, Run::Dry).unwrap();
    assert_eq!(world.ask(&format!("GET /v2/a/blobs/{}", digest_of(b"layer"))).await.status, 200);
    let collected = world.registry.collect(now, GRACE, Run::Real).unwrap();
    assert_eq!(planned, collected);
    let mut manifests: Vec<Digest> = collected.manifests.iter().map(|(_, digest)| *digest).collect();
    manifests.sort_unstable();
    let mut expected = vec![subject, sbom];
    expected.sort_unstable();
    assert_eq!(manifests, expected);
    // Two links in `a`, one in `keep`; of the content only what `keep` does not have.
    assert_eq!(collected.links, 3);
    let contents: Vec<Digest> = collected.contents.iter().map(|(digest, _)| *digest).collect();
    assert!(contents.contains(&digest_of(b"given up")) && contents.contains(&sbom), "{contents:?}");
    assert!(!contents.contains(&digest_of(b"layer")) && !contents.contains(&subject));
    assert!(!world.directory.path().join("repositories/a").exists());
    assert_eq!(world.ask("GET /v2/keep/manifests/v1").await.status, 200);
    assert_eq!(world.ask(&format!("GET /v2/keep/blobs/{}", digest_of(b"layer"))).await.status, 200);
    assert!(world.registry.collect(now, MIN_GRACE - HOUR / 2, Run::Real).is_err());
}

#[tokio::test]
async fn a_manifest_that_lost_its_tag_is_young_from_then_on() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    let record = world.directory.path().join(format!("repositories/a/_manifests/{}", digest_hex(digest)));
    let long_ago = SystemTime::now() - 10 * GRACE;
    std::fs::File::open(&record).unwrap().set_modified(long_ago).unwrap();
    let other = serde_json::json!({ "schemaVersion": 2, "config": descriptor("x/y", "{}"), "layers": [] });
    assert_eq!(world.push_manifest("a/manifests/v1", IMAGE, &other).await.status, 201);
    assert_eq!(world.collect_after(HOUR), crate::registry::Collected::default());
    assert_eq!(world.collect_after(GRACE + HOUR).manifests.len(), 1);
}

#[tokio::test]
async fn what_a_push_found_present_is_there_when_its_manifest_comes() {
    let world = World::new();
    for content in ["{}", "layer"] {
        let digest = world.push_blob("a", content).await;
        let link = world.directory.path().join(format!("repositories/a/_blobs/{}", digest_hex(digest)));
        let long_ago = SystemTime::now() - 10 * GRACE;
        std::fs::File::open(&link).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(world.ask(&format!("HEAD /v2/a/blobs/{digest}")).await.status, 200);
    }
    assert_eq!(world.collect_after(HOUR), crate::registry::Collected::default());
    assert_eq!(world.push_manifest("a/manifests/v1", IMAGE, &image()).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_go_on_while_garbage_is_collected() {
    let world = Arc::new(World::new());
    let registry = world.registry.clone();
    let collector = std::thread::spawn(move || {
        // Everything is old at once but what was made young within the hour.
        for _ in 0..200 {
            registry.collect(SystemTime::now(), MIN_GRACE, Run::Real).unwrap();
        }
    });
    for round in 0..40 {
        let tag = format!("v{round}");
        world.push_image("a", &tag).await;
        assert_eq!(world.ask(&format!("DELETE /v2/a/manifests/{tag}")).await.status, 202);
    }
    collector.join().unwrap();
    let digest = world.push_image("a", "last").await;
    assert_eq!(world.ask(&format!("GET /v2/a/manifests/{digest}")).await.status, 200);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_keeps_every_blob_of_its_repository() {
    let world = World::new();
    let digest = world.push_image("a", "v1").await;
    let hex = digest_hex(digest);
    let path = world.directory.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    std::fs::write(path, "damaged").unwrap();
    let collected = world.collect_after(GRACE + HOUR);
    assert_eq!((collected.manifests.len(), collected.links, collected.contents.len()), (0, 0, 0));
    assert_eq!(collected.unreadable.len(), 1);
    // It can be deleted, and then everything goes.
    assert_eq!(world.ask(&format!("DELETE /v2/a/manifests/{digest}")).await.status, 202);
    assert_eq!(world.collect_after(GRACE + HOUR).links, 2);
}
