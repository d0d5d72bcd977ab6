// SPDX-License-Identifier: Apache-2.0
//! Mirrors: Debian's docker-registry as the upstream, skopeo as the client, and nothing between them but our registry.

#![allow(clippy::unwrap_used)]

use controller::registry::{AllowAll, GRACE, Limits, Registry, Run, Upstream, Upstreams, router};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// The upstream named `hub`, as long as it is set.
struct Hub(Mutex<Option<Upstream>>);

impl Upstreams for Hub {
    fn upstream(&self, name: &str) -> Option<Upstream> {
        self.0.lock().unwrap().clone().filter(|_| name == "hub")
    }
}

struct Mirror {
    address: SocketAddr,
    registry: Arc<Registry>,
    hub: Arc<Hub>,
    _runtime: tokio::runtime::Runtime,
}

impl Mirror {
    fn start(directory: &Path, upstream: Upstream) -> Mirror {
        let hub = Arc::new(Hub(Mutex::new(Some(upstream))));
        let registry = Registry::open(directory.join("mirror")).unwrap();
        let limits = Limits { tag_fresh: Duration::ZERO, ..Limits::default() };
        let registry = registry.with_authorize(Arc::new(AllowAll)).with_upstreams(hub.clone());
        let registry = Arc::new(registry.with_limits(limits));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let served = router(registry.clone());
        runtime.spawn(async move { axum::serve(listener, served).await });
        Mirror { address, registry, hub, _runtime: runtime }
    }
}

/// `docker-registry`, stopped when dropped.
struct DockerRegistry {
    address: SocketAddr,
    process: Child,
}

impl DockerRegistry {
    fn start(directory: &Path, auth: &str) -> DockerRegistry {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let content = directory.join("upstream");
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n{auth}",
            content.display()
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(directory.join("upstream.log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        DockerRegistry { address, process }
    }

    fn upstream(&self, quota_bytes: u64) -> Upstream {
        let base_url = format!("http://{}", self.address);
        Upstream { base_url, path: String::new(), ca_pem: None, login: None, quota_bytes }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn run(program: &str, arguments: &[&str], directory: &Path) -> Output {
    Command::new(program).args(arguments).current_dir(directory).env("HOME", directory).output().unwrap()
}

#[track_caller]
fn succeeds(program: &str, arguments: &[&str], directory: &Path) {
    let output = run(program, arguments, directory);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// An OCI layout `made` with images `v1` and `v2`, each with a layer of its own.
fn make_images(directory: &Path) {
    succeeds("umoci", &["init", "--layout", "made"], directory);
    for (tag, fill) in [("v1", 1_u8), ("v2", 2)] {
        let image = format!("made:{tag}");
        succeeds("umoci", &["new", "--image", &image], directory);
        // Not to be compressed, so that sizes are known.
        let mut state = u64::from(fill);
        let content: Vec<u8> = (0..400_000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        std::fs::write(directory.join(tag), content).unwrap();
        succeeds("umoci", &["insert", "--rootless", "--image", &image, tag, "/data"], directory);
    }
}

fn push(directory: &Path, tag: &str, to: SocketAddr, as_tag: &str, more: &[&str]) {
    let (from, to) = (format!("oci:made:{tag}"), format!("docker://{to}/team/made:{as_tag}"));
    succeeds("skopeo", &[&["copy", "--dest-tls-verify=false"], more, &[&from, &to]].concat(), directory);
}

fn pull(directory: &Path, from: SocketAddr, tag: &str, to: &str) -> Output {
    let (from, to) = (format!("docker://{from}/mirror/hub/team/made:{tag}"), format!("oci:{to}:{tag}"));
    run("skopeo", &["copy", "--src-tls-verify=false", &from, &to], directory)
}

fn layout_digest(layout: PathBuf) -> String {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_mirrored_image_is_fetched_once_and_served_when_its_upstream_is_down() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    make_images(directory);
    let upstream = DockerRegistry::start(directory, "");
    push(directory, "v1", upstream.address, "v1", &[]);
    let mirror = Mirror::start(directory, upstream.upstream(1 << 30));
    let output = pull(directory, mirror.address, "v1", "first");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first = layout_digest(directory.join("first"));
    let missing = pull(directory, mirror.address, "v2", "none");
    assert!(!missing.status.success());
    // Nobody pushes into a mirror, and what is no mirror is not found.
    let to = format!("docker://{}/mirror/hub/team/made:mine", mirror.address);
    let pushed = run("skopeo", &["copy", "--dest-tls-verify=false", "oci:made:v1", &to], directory);
    let said = String::from_utf8_lossy(&pushed.stderr).into_owned();
    assert!(!pushed.status.success() && said.contains("holds copies"), "{said}");
    let other = format!("docker://{}/mirror/nobody/team/made:v1", mirror.address);
    let unknown = run("skopeo", &["inspect", "--tls-verify=false", &other], directory);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && said.contains("registry/nobody"), "{said}");
    drop(upstream);
    let output = pull(directory, mirror.address, "v1", "again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(layout_digest(directory.join("again")), first);
    // Two days later it is still here; without the mirror it is garbage.
    let later = SystemTime::now() + 2 * GRACE;
    assert_eq!(mirror.registry.collect(later, GRACE, Run::Real).unwrap().contents, []);
    *mirror.hub.0.lock().unwrap() = None;
    assert_eq!(mirror.registry.collect(later, GRACE, Run::Real).unwrap().contents.len(), 3);
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_moved_tag_is_followed_and_the_quota_holds() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    make_images(directory);
    let auth = credentials(directory);
    let upstream = DockerRegistry::start(directory, &auth);
    let login = ["--dest-creds", "ann:secret"];
    push(directory, "v1", upstream.address, "latest", &login);
    let mut hub = upstream.upstream(600_000);
    let mirror = Mirror::start(directory, hub.clone());
    let refused = pull(directory, mirror.address, "latest", "refused");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("spec.credentials"), "{said}");
    hub.login = Some(("ann".into(), "secret".into()));
    *mirror.hub.0.lock().unwrap() = Some(hub.clone());
    let output = pull(directory, mirror.address, "latest", "first");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    push(directory, "v2", upstream.address, "latest", &login);
    // A blob that was used minutes ago is not dropped for another.
    let output = pull(directory, mirror.address, "latest", "second");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("403"), "{said}");
    let digest = &said[said.find("sha256:").unwrap()..][..71];
    let reason = get(mirror.address, &format!("/v2/mirror/hub/team/made/blobs/{digest}"));
    assert!(reason.contains("raise spec.mirror.quota of registry/hub"), "{reason}");
    let long_ago = SystemTime::now() - GRACE;
    let links = directory.join("mirror/repositories/mirror/hub/team/made/_blobs");
    for entry in std::fs::read_dir(&links).unwrap() {
        std::fs::File::open(entry.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
    }
    let output = pull(directory, mirror.address, "latest", "third");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_ne!(layout_digest(directory.join("third")), layout_digest(directory.join("first")));
    let held: u64 = std::fs::read_dir(&links)
        .unwrap()
        .map(|entry| {
            let hex = entry.unwrap().file_name().into_string().unwrap();
            let blob = directory.join("mirror/blobs/sha256").join(&hex[..2]).join(&hex);
            std::fs::metadata(blob).unwrap().len()
        })
        .sum();
    assert!(held <= 600_000, "{held}");
}

/// The answer to a plain request.
fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// The `auth` part of docker-registry's configuration for ann:secret.
fn credentials(directory: &Path) -> String {
    // Perl is part of every Debian, a program that makes bcrypt hashes is not.
    let script = "print crypt($ARGV[0], '$2b$05$abcdefghijklmnopqrstuu')";
    let hash = run("perl", &["-e", script, "secret"], directory);
    let hash = String::from_utf8(hash.stdout).unwrap();
    let file = directory.join("htpasswd");
    std::fs::write(&file, format!("ann:{hash}\n")).unwrap();
    format!("auth: {{htpasswd: {{realm: lab, path: {}}}}}\n", file.display())
}
