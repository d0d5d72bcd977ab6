// SPDX-License-Identifier: Apache-2.0
//! The built-in registry as operators use it: mirrors and images in use follow from what was applied.

#![allow(clippy::unwrap_used)]

mod lab;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Instant;

use lab::{Controller, PATIENCE};

fn run(program: &str, arguments: &[&str], directory: &Path) -> Output {
    // An empty home: credentials of whoever runs the test must not help.
    Command::new(program).args(arguments).current_dir(directory).env("HOME", directory).output().unwrap()
}

#[track_caller]
fn succeeds(program: &str, arguments: &[&str], directory: &Path) {
    let output = run(program, arguments, directory);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Debian's `docker-registry` for ann:secret, stopped when dropped.
struct Upstream {
    address: String,
    process: Child,
}

impl Upstream {
    fn start(directory: &Path) -> Upstream {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        // Perl is part of every Debian, a program that makes bcrypt hashes is not.
        let script = "print crypt($ARGV[0], '$2b$05$abcdefghijklmnopqrstuu')";
        let hash = String::from_utf8(run("perl", &["-e", script, "secret"], directory).stdout).unwrap();
        std::fs::write(directory.join("htpasswd"), format!("ann:{hash}\n")).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/upstream}}}}\n\
             http: {{addr: '{address}'}}\nauth: {{htpasswd: {{realm: lab, path: {0}/htpasswd}}}}\n",
            directory.display()
        );
        std::fs::write(directory.join("config.yml"), config).unwrap();
        let log = std::fs::File::create(directory.join("upstream.log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.args(["serve", "config.yml"]).current_dir(directory);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Upstream { address, process }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
#[ignore = "needs docker-registry, skopeo and umoci"]
fn a_registry_with_mirror_is_mirrored_and_images_of_apps_cannot_be_deleted() {
    let controller = Controller::start();
    let directory = controller.path().to_owned();
    let directory = directory.as_path();
    succeeds("umoci", &["init", "--layout", "made"], directory);
    succeeds("umoci", &["new", "--image", "made:v1"], directory);
    let upstream = Upstream::start(directory);
    let to = format!("docker://{}/team/made:v1", upstream.address);
    let push = ["copy", "--dest-tls-verify=false", "--dest-creds", "ann:secret", "oci:made:v1"];
    succeeds("skopeo", &[&push[..], &[&to]].concat(), directory);
    let intent = format!(
        "apiVersion: selvedge/v1alpha1\nkind: Secret\nmetadata: {{ name: hub-login }}\n\
         spec: {{ data: {{ username: ann, password: secret }} }}\n---\n\
         apiVersion: selvedge/v1alpha1\nkind: Registry\nmetadata: {{ name: hub }}\n\
         spec: {{ url: '{}', insecure: true, credentials: hub-login, mirror: {{ quota: 1Gi }} }}\n---\n\
         apiVersion: selvedge/v1alpha1\nkind: App\nmetadata: {{ name: hello }}\n\
         spec: {{ image: 'hello:1' }}\n",
        upstream.address
    );
    controller.write("intent.yaml", &intent);
    controller.does(&["apply", "-f", "intent.yaml"]);
    assert!(controller.does(&["get", "registries"]).contains("1Gi"));
    let token = std::fs::read_to_string(directory.join("data/admin-token")).unwrap();
    let login = format!("admin:{}", token.trim());
    let pull = |to: &str| {
        let from = format!("docker://{}/mirror/hub/team/made:v1", controller.listen);
        run("skopeo", &["copy", "--src-tls-verify=false", "--src-creds", &login, &from, to], directory)
    };
    let first = pull("oci:first:v1");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    drop(upstream);
    assert!(pull("oci:again:v1").status.success(), "served without the upstream");
    // The image of an app stays as long as the app names it.
    let hello = format!("docker://{}/hello:1", controller.listen);
    let push = ["copy", "--dest-tls-verify=false", "--dest-creds", &login, "oci:made:v1", &hello];
    succeeds("skopeo", &push, directory);
    let delete = ["delete", "--tls-verify=false", "--creds", &login, &hello];
    let refused = run("skopeo", &delete, directory);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("app/hello uses it"), "{said}");
    controller.does(&["delete", "app/hello"]);
    succeeds("skopeo", &delete, directory);
}
