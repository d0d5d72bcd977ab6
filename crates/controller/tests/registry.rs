// SPDX-License-Identifier: Apache-2.0
//! The registry behind a loopback port, as real clients see it: skopeo, oras where it is installed, and
//! a plain socket for what those do not do.

#![allow(clippy::unwrap_used)]

use controller::registry::{
    Action, AllowAll, AnonymousPull, Authorize, Credentials, Decision, GRACE, Registry, RepositoryName, Run,
    digest_of, examine, router,
};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

struct Server {
    address: SocketAddr,
    directory: tempfile::TempDir,
    registry: Arc<Registry>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(authorize: impl Authorize, anonymous_pull: AnonymousPull) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::open(directory.path().join("registry")).unwrap();
    let registry = Arc::new(registry.with_authorize(Arc::new(authorize)).with_anonymous_pull(anonymous_pull));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let served = router(registry.clone());
    runtime.spawn(async move { axum::serve(listener, served).await });
    Server { address, directory, registry, _runtime: runtime }
}

struct Ann;

impl Authorize for Ann {
    fn authorize(&self, who: Credentials<'_>, _: Option<&RepositoryName>, _: Action) -> Decision {
        match who {
            Credentials::Basic { username: "ann", password: "secret" } => Decision::Allow,
            _ => Decision::Unauthenticated,
        }
    }
}

fn run(program: &str, arguments: &[&str], directory: &Path) -> Output {
    // An empty home: credentials of whoever runs the test must not help.
    Command::new(program).args(arguments).current_dir(directory).env("HOME", directory).output().unwrap()
}

#[track_caller]
fn succeeds(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = run(program, arguments, directory);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Files of an OCI layout in `directory/made`, tag `v1`, of two layers, one of them of several reads.
fn make_image(directory: &Path) {
    succeeds("umoci", &["init", "--layout", "made"], directory);
    succeeds("umoci", &["new", "--image", "made:v1"], directory);
    for (name, size) in [("small", 10), ("large", 3_000_000)] {
        let content: Vec<u8> = (0..size).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(directory.join(name), content).unwrap();
        let target = format!("/{name}");
        succeeds("umoci", &["insert", "--rootless", "--image", "made:v1", name, &target], directory);
    }
}

fn manifest_digest(layout: &Path) -> String {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

fn blobs(layout: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap());
    let mut blobs: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    blobs.sort();
    blobs
}

#[test]
#[ignore = "needs skopeo"]
fn skopeo_gets_back_what_it_pushed() {
    let server = serve(AllowAll, AnonymousPull::Refused);
    let directory = server.directory.path();
    make_image(directory);
    let remote = format!("docker://{}/library/made", server.address);
    let (v1, all) = (format!("{remote}:v1"), format!("{remote}:all"));
    succeeds("skopeo", &["copy", "--dest-tls-verify=false", "oci:made:v1", &v1], directory);
    let pushed = manifest_digest(&directory.join("made"));
    let seen =
        succeeds("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &v1], directory);
    assert_eq!(seen.trim(), pushed);
    let by_digest = format!("{remote}@{pushed}");
    for (source, target) in [(&v1, "by-tag"), (&by_digest, "by-digest")] {
        let layout = format!("oci:{target}:v1");
        succeeds("skopeo", &["copy", "--src-tls-verify=false", source, &layout], directory);
        assert_eq!(manifest_digest(&directory.join(target)), pushed);
        let got = blobs(&directory.join(target));
        assert!(
            got.iter().all(|(digest, content)| digest_of(content).to_string() == format!("sha256:{digest}"))
        );
        assert!(got.len() >= 4, "config, manifest and two layers");
    }
    // The same layers as Docker's schema 2 into another repository: mounts and conversion.
    let both = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let docker = format!("docker://{}/library/docker:v2s2", server.address);
    succeeds("skopeo", &["copy", both[0], both[1], "--format", "v2s2", &v1, &docker], directory);
    succeeds("skopeo", &["copy", both[0], both[1], "--all", &v1, &all], directory);
    let tags = succeeds("skopeo", &["list-tags", "--tls-verify=false", &remote], directory);
    let tags: serde_json::Value = serde_json::from_str(&tags).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["all", "v1"]));
}

#[test]
#[ignore = "needs skopeo"]
fn skopeo_pushes_only_with_credentials_and_pulls_as_the_switch_says() {
    for pull in [AnonymousPull::Refused, AnonymousPull::Allowed] {
        let server = serve(Ann, pull);
        let directory = server.directory.path();
        make_image(directory);
        let remote = format!("docker://{}/made:v1", server.address);
        let push = ["copy", "--dest-tls-verify=false"];
        for credentials in [&["--dest-no-creds"][..], &["--dest-creds", "ann:wrong"]] {
            let arguments = [&push[..], credentials, &["oci:made:v1", &remote]].concat();
            let refused = run("skopeo", &arguments, directory);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("unauthorized"), "{said}");
        }
        let arguments = [&push[..], &["--dest-creds", "ann:secret", "oci:made:v1", &remote]].concat();
        succeeds("skopeo", &arguments, directory);
        let pulled = run("skopeo", &["inspect", "--tls-verify=false", "--no-creds", &remote], directory);
        assert_eq!(pulled.status.success(), pull == AnonymousPull::Allowed);
        let arguments =
            ["copy", "--src-tls-verify=false", "--src-creds", "ann:secret", &remote, "oci:back:v1"];
        succeeds("skopeo", &arguments, directory);
        assert_eq!(manifest_digest(&directory.join("back")), manifest_digest(&directory.join("made")));
    }
}

#[test]
#[ignore = "needs oras"]
fn oras_gets_back_the_artifact_it_pushed() {
    let server = serve(Ann, AnonymousPull::Refused);
    let directory = server.directory.path();
    std::fs::write(directory.join("note.txt"), "hello").unwrap();
    let remote = format!("{}/artifacts/note:v1", server.address);
    let login = ["--plain-http", "--username", "ann", "--password", "secret"];
    let push =
        [&["push"][..], &login, &["--artifact-type", "application/vnd.example.note", &remote]].concat();
    succeeds("oras", &[&push[..], &["note.txt:text/plain"]].concat(), directory);
    let pull = [&["pull"][..], &login, &["--output", "back", &remote]].concat();
    succeeds("oras", &pull, directory);
    assert_eq!(std::fs::read_to_string(directory.join("back/note.txt")).unwrap(), "hello");
    let (address, repository) = (server.address.to_string(), format!("{}/artifacts/note", server.address));
    let tags = [&["repo", "tags"][..], &login, &[&repository]].concat();
    assert_eq!(succeeds("oras", &tags, directory).trim(), "v1");
    let repositories = [&["repo", "ls"][..], &login, &[&address]].concat();
    assert_eq!(succeeds("oras", &repositories, directory).trim(), "artifacts/note");
}

#[test]
#[ignore = "needs oras"]
fn what_oras_attaches_either_way_is_discovered_and_what_it_deletes_is_gone() {
    let server = serve(Ann, AnonymousPull::Refused);
    let directory = server.directory.path();
    std::fs::write(directory.join("note.txt"), "hello").unwrap();
    std::fs::write(directory.join("sbom.json"), "{}").unwrap();
    std::fs::write(directory.join("old.json"), "[]").unwrap();
    let remote = format!("{}/artifacts/note:v1", server.address);
    let login = ["--plain-http", "--username", "ann", "--password", "secret"];
    let oras = |words: &[&str], rest: &[&str]| succeeds("oras", &[words, &login, rest].concat(), directory);
    oras(&["push"], &["--artifact-type", "application/vnd.example.note", &remote, "note.txt:text/plain"]);
    let attach = ["attach", "--artifact-type", "application/vnd.example.sbom"];
    oras(&attach, &[&remote, "sbom.json:application/json"]);
    // A client that does not trust registries with referrers enters them under a tag.
    let by_tag = [
        "attach",
        "--distribution-spec",
        "v1.1-referrers-tag",
        "--artifact-type",
        "application/vnd.example.old",
    ];
    oras(&by_tag, &[&remote, "old.json:application/json"]);
    let discover = |rest: &[&str]| {
        let text = oras(&["discover", "--format", "json"], &[rest, &[&remote]].concat());
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let list =
            found["referrers"].as_array().or(found["manifests"].as_array()).cloned().unwrap_or_default();
        let mut kinds: Vec<String> =
            list.iter().map(|one| one["artifactType"].as_str().unwrap().to_owned()).collect();
        kinds.sort();
        (kinds, list)
    };
    let both = ["application/vnd.example.old", "application/vnd.example.sbom"];
    assert_eq!(discover(&["--distribution-spec", "v1.1-referrers-api"]).0, both);
    assert_eq!(discover(&["--distribution-spec", "v1.1-referrers-tag"]).0, both[..1]);
    let (kinds, list) = discover(&["--artifact-type", "application/vnd.example.sbom"]);
    assert_eq!(kinds, both[1..]);
    let sbom = list[0]["digest"].as_str().unwrap();
    let by_digest = format!("{}/artifacts/note@{sbom}", server.address);
    oras(&["manifest", "delete", "--force"], &[&by_digest]);
    assert_eq!(discover(&["--distribution-spec", "v1.1-referrers-api"]).0, both[..1]);
    // A blob that a manifest needs is refused with the reason, a free one goes.
    let note = format!("{}/artifacts/note@{}", server.address, digest_of(b"hello"));
    let refused = run("oras", &[&["blob", "delete", "--force"][..], &login, &[&note]].concat(), directory);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("references it; delete that first"), "{said}");
    oras(&["manifest", "delete", "--force"], &[&remote]);
    oras(&["blob", "delete", "--force"], &[&note]);
    let gone = run("oras", &[&["pull"][..], &login, &[&remote]].concat(), directory);
    assert!(!gone.status.success());
}

#[test]
#[ignore = "needs skopeo"]
fn what_skopeo_deletes_is_collected_and_the_rest_is_still_whole() {
    let server = serve(AllowAll, AnonymousPull::Refused);
    let directory = server.directory.path();
    make_image(directory);
    succeeds("umoci", &["config", "--image", "made:v1", "--tag", "v2", "--config.env", "A=1"], directory);
    let remote = |tag: &str| format!("docker://{}/made:{tag}", server.address);
    for tag in ["v1", "v2"] {
        succeeds(
            "skopeo",
            &["copy", "--dest-tls-verify=false", &format!("oci:made:{tag}"), &remote(tag)],
            directory,
        );
    }
    succeeds("skopeo", &["delete", "--tls-verify=false", &remote("v1")], directory);
    let gone = run("skopeo", &["inspect", "--tls-verify=false", &remote("v1")], directory);
    assert!(!gone.status.success());
    let tomorrow = SystemTime::now() + GRACE + Duration::from_secs(3600);
    let collected = server.registry.collect(tomorrow, GRACE, Run::Real).unwrap();
    // The config of v1 and its manifest; the layers are those of v2 too.
    assert_eq!(collected.contents.len(), 2, "{collected:?}");
    succeeds("skopeo", &["copy", "--src-tls-verify=false", &remote("v2"), "oci:back:v2"], directory);
    assert_eq!(examine(&directory.join("registry")).unwrap(), []);
}

/// Sends one request and returns the status and the rest of the head; `body` goes out as it is.
fn request(server: &Server, line: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let mut socket = TcpStream::connect(server.address).unwrap();
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(body).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

fn header<'a>(answer: &'a str, name: &str) -> &'a str {
    let line =
        answer.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:"))).unwrap();
    line.split_once(':').unwrap().1.trim()
}

#[test]
#[ignore = "opens a port"]
fn chunks_from_a_plain_client_survive_its_disconnection() {
    let server = serve(AllowAll, AnonymousPull::Refused);
    let (status, begun) = request(&server, "POST /v2/a/blobs/uploads/", "", b"");
    assert_eq!(status, 202);
    let location = header(&begun, "location").to_owned();
    let patch = format!("PATCH {location}");
    assert_eq!(request(&server, &patch, "content-range: 0-4\r\n", b"hello").0, 202);
    let (status, gap) = request(&server, &patch, "content-range: 9-10\r\n", b"xx");
    assert_eq!((status, header(&gap, "range")), (416, "0-4"));
    // A client that goes away within a chunk.
    let mut socket = TcpStream::connect(server.address).unwrap();
    let head = format!("{patch} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n, ");
    socket.write_all(head.as_bytes()).unwrap();
    drop(socket);
    let deadline = Instant::now() + Duration::from_secs(10);
    let kept = loop {
        let status = request(&server, &format!("GET {location}"), "", b"").1;
        if header(&status, "range") == "0-6" || Instant::now() > deadline {
            break status;
        }
    };
    assert_eq!(header(&kept, "range"), "0-6");
    let digest = digest_of(b"hello, world");
    let put = format!("PUT {location}?digest={digest}");
    assert_eq!(request(&server, &put, "content-range: 7-11\r\n", b"world").0, 201);
    let (status, got) = request(&server, &format!("GET /v2/a/blobs/{digest}"), "", b"");
    assert!(status == 200 && got.ends_with("\r\n\r\nhello, world"), "{got}");
}

/// The registry must not be what a node waits for. Wants an otherwise idle machine.
#[test]
#[ignore = "measures"]
fn a_large_blob_is_pulled_at_500_megabytes_per_second() {
    const SIZE: usize = 200_000_000;
    const ROUNDS: usize = 5;
    let server = serve(AllowAll, AnonymousPull::Refused);
    let content: Vec<u8> = (0..SIZE).map(|n| (n >> 7) as u8).collect();
    let digest = digest_of(&content);
    let start = Instant::now();
    assert_eq!(request(&server, &format!("POST /v2/a/blobs/uploads/?digest={digest}"), "", &content).0, 201);
    println!("push {:.0} MB/s", SIZE as f64 / 1e6 / start.elapsed().as_secs_f64());
    let mut buffer = vec![0; 1 << 20];
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let mut socket = TcpStream::connect(server.address).unwrap();
        let start = Instant::now();
        let head = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        let mut received = 0;
        loop {
            match socket.read(&mut buffer).unwrap() {
                0 => break,
                length => received += length,
            }
        }
        assert!(received > SIZE);
        let rate = SIZE as f64 / 1e6 / start.elapsed().as_secs_f64();
        println!("pull {rate:.0} MB/s");
        best = best.max(rate);
    }
    assert!(best >= 500.0, "{best:.0} MB/s");
}
