// SPDX-License-Identifier: Apache-2.0
//! Against real peers: images made by GNU tar, umoci and skopeo, served by Debian's docker-registry, unpacked by us and
//! stacked by overlayfs, must look exactly as umoci unpacks them.
//!
//! The second test does the same with the processes as init starts them: confined, in store's own user namespace.
//!
//! Needs root, and: docker-registry, skopeo, umoci, tar, zstd, jq, curl, setcap, setfattr.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ipc::calls::FetchRequest;
use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use model::desired::{ContentDesired, ContentSource, ContentSources, RegistrySource};
use model::observed::Image;
use model::reason::{Fault, Reason};
use node_agent::fetch::client::Agents;
use node_agent::fetch::registry::Registries;
use node_agent::resolve::Dns;
use node_store::catalog::{Catalog, Held};
use node_store::pull::Pull;
use node_store::source::{Opened, Source};
use oci::platform::Platform;
use oci::unpack::Owners;
use tempfile::TempDir;

/// Makes the image in three forms. `$1`: work directory, `$2`: registry.
const MAKE: &str = r##"
set -euo pipefail
cd "$1"; registry="$2"
mkdir -p l1/{etc,usr/bin,usr/share/doc,tmp,var/www,srv/old,opt/dir} l2/{etc,srv,opt}
cd l1
echo one > etc/one; echo gone > etc/gone; echo old > srv/old/file; echo old > opt/dir/file
cp /bin/true usr/bin/su; chmod 4755 usr/bin/su; ln usr/bin/su usr/bin/also-su
cp /bin/true usr/bin/wall; chown 0:5 usr/bin/wall; chmod 2755 usr/bin/wall
cp /bin/true usr/bin/ping; setcap cap_net_raw+ep usr/bin/ping
ln -s bin/su usr/link; ln -s /etc/one absolute; ln -s nowhere dangling
chmod 1777 tmp; chown -R 33:33 var/www; chmod 750 var/www; chmod 711 usr/share
setfattr -n user.note -v hello etc/one
truncate -s 64M var/sparse; printf data | dd of=var/sparse bs=1 seek=40000000 conv=notrunc status=none
mkfifo var/fifo; chown 7:8 var/fifo; chown -h 12:13 dangling
name=$(printf 'n%.0s' $(seq 1 120)); mkdir -p "usr/$name/$name"; echo long > "usr/$name/$name/file"
for n in $(seq 1 300); do echo "$n" > "usr/share/doc/file$n"; done
cd ../l2
echo changed > etc/one; touch etc/.wh.gone srv/.wh..wh..opq; echo new > srv/new; touch opt/.wh.dir
mkdir -p usr/share/doc; echo implied > usr/share/doc/implied; echo implied > only
cd ..
find l1 l2 -exec touch -h -d '2020-02-02 02:02:02.5 UTC' {} +
tar --sort=name --sparse --xattrs --xattrs-include='*' --format=pax --numeric-owner -C l1 -cf l1.tar .
tar --sort=name --format=gnu --numeric-owner --no-recursion -C l2 -cf l2.tar \
    etc etc/one etc/.wh.gone srv srv/.wh..wh..opq srv/new opt opt/.wh.dir usr/share/doc/implied only
umoci init --layout img >&2
umoci new --image img:base
umoci raw add-layer --image img:base l1.tar
umoci raw add-layer --image img:base l2.tar
umoci config --image img:base --architecture "$(dpkg --print-architecture)" --os linux --config.cmd run --config.env A=b
umoci unpack --image img:base bundle
copy="skopeo copy -q --dest-tls-verify=false --insecure-policy"
$copy oci:img:base docker://"$registry"/team/app:gzip
$copy --format v2s2 oci:img:base docker://"$registry"/team/app:docker
# skopeo of Debian 12 does not recompress to zstd: the layout is made by hand, and skopeo pushes it.
mkdir -p packed/blobs/sha256; cp img/oci-layout packed/
blob() { cp "$2" "packed/blobs/sha256/$(sha256sum < "$2" | cut -d' ' -f1)"
    jq -nc --arg m "$1" --arg d "sha256:$(sha256sum < "$2" | cut -d' ' -f1)" --argjson s "$(stat -c %s "$2")" \
        '{mediaType: $m, digest: $d, size: $s}'; }
zstd -q l1.tar l2.tar
top=$(jq -r '.manifests[] | select(.annotations."org.opencontainers.image.ref.name" == "base") | .digest' img/index.json)
config=$(jq -r .config.digest "img/blobs/sha256/${top#sha256:}")
jq -nc --argjson c "$(blob application/vnd.oci.image.config.v1+json "img/blobs/sha256/${config#sha256:}")" \
    --argjson a "$(blob application/vnd.oci.image.layer.v1.tar+zstd l1.tar.zst)" \
    --argjson b "$(blob application/vnd.oci.image.layer.v1.tar+zstd l2.tar.zst)" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $c, layers: [$a, $b]}' > zstd.json
blob application/vnd.oci.image.manifest.v1+json zstd.json |
    jq -c '{schemaVersion: 2, manifests: [. + {annotations: {"org.opencontainers.image.ref.name": "base"}}]}' > packed/index.json
$copy oci:packed:base docker://"$registry"/team/app:zstd
umoci config --image img:base --tag other --architecture s390x
$copy oci:img:other docker://"$registry"/team/app:other
entry() {
    curl -fsS -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$registry/v2/team/app/manifests/$1" > "$1.json"
    jq -nc --arg d "sha256:$(sha256sum < "$1.json" | cut -d' ' -f1)" --argjson s "$(stat -c %s "$1.json")" --arg a "$2" \
        '{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $d, size: $s, platform: {os: "linux", architecture: $a}}'
}
jq -nc --argjson a "$(entry other s390x)" --argjson b "$(entry gzip "$(dpkg --print-architecture)")" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [$a, $b]}' > index.json
curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @index.json \
    "http://$registry/v2/team/app/manifests/index"
"##;

struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(place: &Path) -> Registry {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = place.join("registry.yml");
        let data = place.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{address}'}}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Registry { child, address };
        for _ in 0..100 {
            if TcpStream::connect(&registry.address).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("docker-registry does not listen");
    }
}

struct InProcess(Registries);

impl Source for InProcess {
    fn open(&self, request: &FetchRequest, _: &Arc<AtomicBool>) -> Result<Opened, Fault> {
        let FetchRequest::Image(request) = request else { unreachable!("no file is asked for") };
        let opened = self.0.open(request, None)?;
        Ok(Opened {
            media_type: opened.media_type,
            size: opened.size,
            offset: opened.offset,
            body: opened.body,
        })
    }
}

fn pull(catalog: &Catalog, registry: &Registry, reference: &str) -> Result<Image, Fault> {
    let from = RegistrySource {
        base_url: format!("http://{}", registry.address),
        credentials: None,
        ca_pem: Vec::new(),
    };
    let source = ContentSource { registry: from, repository: "team/app".into(), reference: reference.into() };
    let desired = ContentDesired {
        id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        name: reference.into(),
        generation: 0,
        sources: ContentSources::Registries(vec![source]),
        digest: None,
        max_size_bytes: 0,
    };
    let pull = Pull {
        catalog,
        source: &InProcess(Registries::new(Arc::new(Agents::new(Dns::default(), b"")))),
        platform: &Platform::this_machine(),
        desired: &desired,
        cancelled: &Arc::default(),
        progress: &|_| {},
    };
    pull.run().map(|held| match held {
        Held::Image(image) => image,
        Held::File(file) => panic!("a file: {file:?}"),
    })
}

/// The layers of an image as an app's root shows them.
struct Stack(PathBuf);

impl Stack {
    fn mount(catalog: &Catalog, image: &Image, place: &TempDir) -> Stack {
        let layers: Vec<PathBuf> = image.layers.iter().map(|layer| catalog.layer_path(layer)).collect();
        Stack::mount_paths(&layers, place)
    }

    /// Lowest first.
    fn mount_paths(layers: &[PathBuf], place: &TempDir) -> Stack {
        let layers: Vec<String> = layers.iter().rev().map(|path| path.display().to_string()).collect();
        let at = place.path().join("stack");
        fs::create_dir_all(&at).unwrap();
        let options = format!("userxattr,lowerdir={}", layers.join(":"));
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&at)
            .status()
            .unwrap();
        assert!(status.success());
        Stack(at)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// All that can be seen of a tree: path → what it is, with owners shifted back by `base`.
fn describe(root: &Path, base: u32) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let mut text = format!("{:o} {}:{}", stat.mode(), stat.uid() - base, stat.gid() - base);
        // umoci leaves the time of its work on directories.
        if !kind.is_dir() {
            text += &format!(" {}.{}", stat.mtime(), stat.mtime_nsec());
        }
        if kind.is_symlink() {
            text += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        } else {
            text += &xattrs(&path, base);
        }
        if kind.is_file() {
            let sum = oci::digest::of(&fs::read(&path).unwrap());
            text += &format!(" {} bytes {sum} links {}", stat.len(), stat.nlink());
        }
        if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        out.insert(name, text);
    }
    out
}

fn xattrs(path: &Path, base: u32) -> String {
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(path, &mut names[..]).unwrap();
    let mut out = String::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
        let mut value = value[..len].to_vec();
        // A capability of the app's root: revision 3, with whose root it is behind the rest.
        if name == b"security.capability" && base > 0 {
            assert_eq!((value[3], value.len()), (3, 24));
            assert_eq!(value[20..], base.to_le_bytes());
            value.truncate(20);
            value[3] = 2;
        }
        out += &format!(" {}={value:?}", std::ffi::OsStr::from_bytes(name).display());
    }
    out
}

fn make_images(place: &Path, registry: &Registry) {
    let made =
        Command::new("bash").args(["-c", MAKE, "make"]).arg(place).arg(&registry.address).status().unwrap();
    assert!(made.success());
}

#[test]
#[ignore = "needs root and real registry tools"]
fn images_of_other_tools_look_as_umoci_unpacks_them() {
    let place = tempfile::tempdir().unwrap();
    let registry = Registry::start(place.path());
    make_images(place.path(), &registry);
    let expected = describe(&place.path().join("bundle/rootfs"), 0);
    assert!(expected.len() > 300);
    let shifted = Owners::Shifted { base: APP_UID_BASE, limit: APP_UID_COUNT };
    for reference in ["gzip", "zstd", "docker", "index"] {
        for (owners, base) in [(Owners::AsIs { limit: APP_UID_COUNT }, 0), (shifted, APP_UID_BASE)] {
            let directory = tempfile::tempdir_in(place.path()).unwrap();
            let (catalog, _) = Catalog::open(directory.path(), owners).unwrap();
            let image = pull(&catalog, &registry, reference).unwrap();
            assert_eq!((image.layers.len(), image.config.cmd.as_slice()), (2, &["run".to_string()][..]));
            let has_zstd = image.blobs.iter().any(|blob| blob.media_type.ends_with("zstd"));
            assert_eq!(has_zstd, reference == "zstd");
            let stack = Stack::mount(&catalog, &image, &directory);
            let seen = describe(&stack.0, base);
            for (path, text) in &expected {
                assert_eq!(seen.get(path), Some(text), "{reference} {owners:?}: {path}");
            }
            assert_eq!(seen.len(), expected.len());
            // umoci fills holes, we keep them.
            let sparse = fs::metadata(stack.0.join("var/sparse")).unwrap();
            assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
        }
    }
    let directory = tempfile::tempdir_in(place.path()).unwrap();
    let (catalog, _) = Catalog::open(directory.path(), Owners::AsIs { limit: APP_UID_COUNT }).unwrap();
    for (reference, reason) in [("other", Reason::ArchitectureMismatch), ("missing", Reason::ImageNotFound)] {
        assert_eq!(pull(&catalog, &registry, reference).unwrap_err().reason, reason);
    }
}

/// A hosted node with bus, log, fetch, store and a stand-in for the planner.
struct Node {
    init: Child,
    output: PathBuf,
}

impl Node {
    fn start(place: &Path, registry: &Registry, order: &str) -> Node {
        for name in ["config", "persist", "run", "bins"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        // Services run under uids of their own and must reach their executables.
        fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let built = bin_dir();
        for (name, file) in [
            ("selvedge-bus", "selvedge-bus"),
            ("selvedge-log", "selvedge-log"),
            ("selvedge-fetch", "selvedge-fetch"),
            ("selvedge-store", "selvedge-store"),
            ("selvedge-planner", "examples/stand-in-planner"),
        ] {
            let _ = fs::remove_file(place.join("bins").join(name));
            fs::copy(built.join(file), place.join("bins").join(name)).unwrap();
        }
        let output = place.join(format!("output-{order}"));
        let path = |name: &str| place.join(name).into_os_string();
        let init = Command::new(built.join("selvedge-init"))
            .args(["--hosted", "--verbose", "--services", "bus,log,planner,fetch,store"])
            .args(["--instance", &format!("store{}", std::process::id())])
            .args(["--config".into(), path("config"), "--persist".into(), path("persist")])
            .args(["--run".into(), path("run"), "--bins".into(), path("bins")])
            .args(["--set", &format!("base_url=http://{}", registry.address)])
            .args(["--set", "repository=team/app", "--set", &format!("order={order}")])
            .stdout(fs::File::create(&output).unwrap())
            .stderr(fs::File::options().append(true).open(&output).unwrap())
            .spawn()
            .unwrap();
        Node { init, output }
    }

    fn wait_for(&self, what: &str, found: impl Fn() -> bool) {
        let began = Instant::now();
        while !found() {
            let output = fs::read_to_string(&self.output).unwrap_or_default();
            assert!(began.elapsed() < SOON, "in vain: {what}\n{output}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn said(&self, text: &str) -> usize {
        fs::read_to_string(&self.output).unwrap().matches(text).count()
    }

    fn kill(&self, service: &str) {
        let children = format!("/proc/{0}/task/{0}/children", self.init.id());
        let children = fs::read_to_string(children).unwrap();
        let is_it = |pid: &&str| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(service))
        };
        let pid = children.split_whitespace().find(is_it).unwrap();
        assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.init.id().to_string()).status();
        let _ = self.init.wait();
    }
}

fn bin_dir() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_selvedge-store")).parent().unwrap().to_path_buf()
}

/// How long anything may take before the test calls it broken.
const SOON: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs root and real registry tools"]
fn the_confined_processes_do_the_same_and_survive_being_killed() {
    for (package, kind) in [
        ("node-init", "--bins"),
        ("node-base", "--bins"),
        ("node-agent", "--bins"),
        ("node-store", "--examples"),
    ] {
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "--package", package, kind]).status();
        assert!(built.unwrap().success());
    }
    let place = tempfile::tempdir().unwrap();
    let registry = Registry::start(place.path());
    make_images(place.path(), &registry);
    let expected = describe(&place.path().join("bundle/rootfs"), 0);
    let store = place.path().join("persist/store");
    let nil = "00000000-0000-0000-0000-000000000000";
    let volume = store.join(format!("volumes/{nil}#1"));
    {
        let node = Node::start(place.path(), &registry, "gzip");
        node.wait_for("the volume", || volume.join("upper").exists());
        let upper = fs::metadata(volume.join("upper")).unwrap();
        assert_eq!((upper.uid(), upper.gid()), (APP_UID_BASE, APP_UID_BASE));
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(store.join("images").join(nil)).unwrap()).unwrap();
        let image: Image = serde_json::from_value(record["image"].clone()).unwrap();
        // Read back as the store itself would, without touching its directory.
        let layer_path = |digest: &model::id::Digest| store.join("layers").join(&digest.to_string()[7..]);
        let layers: Vec<PathBuf> = image.layers.iter().map(layer_path).collect();
        let stack = Stack::mount_paths(&layers, &place);
        let seen = describe(&stack.0, APP_UID_BASE);
        for (path, text) in &expected {
            assert_eq!(seen.get(path), Some(text), "{path}");
        }
        assert_eq!(seen.len(), expected.len());
        // Killed, each comes back and nothing is pulled again.
        node.kill("selvedge-store");
        node.wait_for("store again", || node.said("store started") == 2);
        node.kill("selvedge-fetch");
        node.wait_for("fetch again", || node.said("fetch started") == 2);
        assert_eq!((node.said("pulling ordered"), node.said("dropped")), (1, 0));
    }
    let node = Node::start(place.path(), &registry, "nothing");
    let is_empty =
        |name: &str| fs::read_dir(store.join(name)).is_ok_and(|mut entries| entries.next().is_none());
    let all = ["volumes", "images", "layers", "layer-info", "blobs", "trash", "tmp"];
    node.wait_for("an empty store", || all.iter().all(|name| is_empty(name)));
}
