// SPDX-License-Identifier: Apache-2.0
//! The real init with the real bus and log and two small services, as root, in a network namespace of its own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ipc::manifest::{Manifest, Mode, capability_number};

const SOON: Duration = Duration::from_secs(30);
const WRITER: &str = r#"
name = "net"
bin = "test-writer"
job = "Writes ports and answers calls."
uid = 900006
network = "node"
network_why = "shows that a service can have it"
capabilities = [{ name = "NET_ADMIN", why = "shows that a service can have one" }]
files = [{ path = "{state}", mode = "rw", why = "counts its starts" }]
syscalls = { groups = ["base", "fs", "net"] }
answers = true
limits = { memory_max_mib = 16, pids_max = 4 }
"#;
const READER: &str = r#"
name = "agent"
bin = "test-reader"
job = "Reads topics and calls."
uid = 900004
network = "none"
files = [
  { path = "{state}", mode = "rw", why = "writes down what it sees" },
  { path = "{config}", mode = "ro", why = "shows that copies are private" },
  { path = "/etc/hostname", mode = "ro", why = "shows that a file of the host can be seen", optional = true },
]
devices = [{ path = "/dev/null", mode = "rw", why = "shows that a device can be had" }]
syscalls = { groups = ["base", "fs", "thread"] }
reads = ["port-observed", "service-observed", "node-observed"]
calls = ["net"]
limits = { memory_max_mib = 16, pids_max = 4 }
"#;
const UNPACKER: &str = r#"
name = "store"
bin = "test-unpacker"
job = "Has a user namespace over the apps' ids."
uid = 900008
network = "none"
user_namespace_why = "unpacks files of many owners"
capabilities = [
  { name = "CHOWN", why = "owners" },
  { name = "DAC_OVERRIDE", why = "foreign directories" },
  { name = "FOWNER", why = "foreign files" },
]
files = [{ path = "{state}", mode = "rw", why = "unpacks there" }]
syscalls = { groups = ["base", "fs"], extra = [{ names = ["chown", "fchownat", "lchown"], why = "owners" }] }
limits = { memory_max_mib = 16, pids_max = 4 }
"#;

const RUN: &str = r#"
name = "run"
bin = "test-run"
job = "Has a shim started."
uid = 900009
network = "none"
files = [{ path = "{state}", mode = "rw", why = "writes down what it sees" }]
syscalls = { groups = ["base", "fs"] }
calls = ["init"]
limits = { memory_max_mib = 16, pids_max = 4 }
"#;
const SHIM: &str = r#"
name = "shim"
bin = "test-shim"
job = "Keeps an app."
uid = 900010
instances = "per-app"
network = "none"
exempt_why = "mounts"
capabilities = [{ name = "DAC_OVERRIDE", why = "control groups" }]
files = [{ path = "/proc", mode = "rw", why = "maps users" }]
syscalls = { groups = ["base"] }
limits = { memory_max_mib = 16, pids_max = 4 }
"#;
const APP: &str = "11111111-2222-4333-8444-555555555555";

struct Node {
    dir: PathBuf,
    init: Child,
    manifests: BTreeMap<String, Manifest>,
}

impl Node {
    fn start() -> Node {
        build_services();
        let examples = bin_dir().join("examples");
        let dir = PathBuf::from(format!("/tmp/selvedge-hosted-{}", std::process::id()));
        for name in ["bins", "manifests", "config", "persist", "run"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("config/server"), "zedcloud.example\n").unwrap();
        fs::set_permissions(dir.join("config/server"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let mut bins = vec![bin_dir().join("selvedge-bus"), bin_dir().join("selvedge-log")];
        bins.extend(
            ["test-writer", "test-reader", "test-unpacker", "test-run", "test-shim"]
                .map(|name| examples.join(name)),
        );
        for bin in bins {
            std::os::unix::fs::symlink(&bin, dir.join("bins").join(bin.file_name().unwrap())).unwrap();
        }
        let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
        let mut manifests = BTreeMap::new();
        for (name, text) in [
            ("bus", fs::read_to_string(services.join("bus.toml")).unwrap()),
            ("log", fs::read_to_string(services.join("log.toml")).unwrap()),
            ("net", WRITER.into()),
            ("agent", READER.into()),
            ("store", UNPACKER.into()),
            ("run", RUN.into()),
            ("shim", SHIM.into()),
        ] {
            fs::write(dir.join("manifests").join(format!("{name}.toml")), &text).unwrap();
            manifests.insert(name.to_string(), Manifest::parse(&text).unwrap());
        }
        let init = Node::launch(&dir).spawn().unwrap();
        Node { dir, init, manifests }
    }

    /// The command that runs init.
    fn launch(dir: &Path) -> Command {
        let path = |name: &str| dir.join(name).into_os_string();
        let mut init = Command::new("unshare");
        init.arg("--net")
            .arg(env!("CARGO_BIN_EXE_selvedge-init"))
            .args(["--hosted", "--instance", &format!("test{}", std::process::id())])
            .args(["--config".into(), path("config"), "--persist".into(), path("persist")])
            .args(["--run".into(), path("run"), "--bins".into(), path("bins")])
            .args(["--manifests".into(), path("manifests")]);
        init
    }

    /// Processes in the node's control groups.
    fn pids() -> Vec<i32> {
        let group = format!("/selvedge-test{}/", std::process::id());
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group))
            })
            .collect()
    }

    fn pid(&self, service: &str) -> Option<i32> {
        let bin = &self.manifests[service].bin;
        Node::pids().into_iter().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(bin))
        })
    }

    /// init dies as by a fault.
    fn kill_init(&mut self) {
        self.init.kill().unwrap();
        self.init.wait().unwrap();
    }

    fn kill(&self, service: &str) {
        let pid = until(service, || self.pid(service));
        signal(pid, "KILL");
        until(service, || self.pid(service).filter(|new| *new != pid));
    }

    fn seen(&self) -> Vec<String> {
        let seen = fs::read_to_string(self.dir.join("persist/agent/seen")).unwrap_or_default();
        seen.lines().map(str::to_string).collect()
    }

    fn good_calls(&self) -> u32 {
        let calls = fs::read_to_string(self.dir.join("persist/agent/calls")).unwrap_or_default();
        assert!(calls.is_empty() || calls.ends_with("bad=0"), "{calls}");
        let good = calls.strip_prefix("good=").and_then(|rest| rest.split(' ').next());
        good.map_or(0, |good| good.parse().unwrap())
    }

    fn log_holds(&self, text: &str) -> bool {
        let dir = self.dir.join("persist/log/device");
        let Ok(segments) = fs::read_dir(dir) else { return false };
        segments.flatten().any(|segment| {
            let bytes = fs::read(segment.path()).unwrap();
            String::from_utf8_lossy(&bytes).contains(text)
        })
    }

    /// Ends the node as init is asked to, and looks for what it left.
    fn stop(mut self) {
        let began = Instant::now();
        assert!(Command::new("kill").arg(self.init.id().to_string()).status().unwrap().success());
        let status = self.init.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(began.elapsed() < Duration::from_secs(10));
        let instance = format!("selvedge-test{}", std::process::id());
        let mut groups = vec![PathBuf::from("/sys/fs/cgroup").join(&instance)];
        groups.extend(
            ["memory", "pids", "cpu", "cpuacct"].map(|c| Path::new("/sys/fs/cgroup").join(c).join(&instance)),
        );
        assert!(groups.iter().all(|group| !group.exists()), "a control group is left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.to_str().unwrap()), "a mount is left");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.init.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = Command::new("kill").arg(self.init.id().to_string()).status();
            let _ = self.init.wait();
        }
        // After a failure between two inits.
        for pid in Node::pids() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn signal(pid: i32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

fn bin_dir() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_selvedge-init")).parent().unwrap().to_path_buf()
}

/// `cargo test --test hosted` alone does not build what the test starts. `SELVEDGE_BUILT`: it is there, and cargo is not.
fn build_services() {
    if std::env::var_os("SELVEDGE_BUILT").is_some() {
        return;
    }
    for what in [
        &["--package", "node-base", "--bin", "selvedge-bus", "--bin", "selvedge-log"][..],
        &["--package", "node-init", "--examples"],
    ] {
        let build = Command::new(env!("CARGO")).args(["build", "--quiet"]).args(what).status();
        assert!(build.unwrap().success());
    }
}

/// Waits for something to become true.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < SOON, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is(what: bool) -> Option<()> {
    what.then_some(())
}

#[test]
#[ignore = "needs root"]
fn a_hosted_node_runs_confined_services_and_survives_the_death_of_each() {
    let mut node = Node::start();
    until("first view", || is(node.seen().last()? == "start-0,stays synced=true"));
    until("calls", || is(node.good_calls() > 3));
    until("facts of init", || {
        let text = fs::read_to_string(node.dir.join("persist/agent/node")).ok()?;
        is(text == "services=6 node=true")
    });
    until("a line of a service", || is(node.log_holds("reader began")));
    until("stderr of a service", || is(node.log_holds("writer on stderr")));
    let forbidden = fs::read_to_string(node.dir.join("persist/agent/forbidden")).unwrap();
    assert_eq!(forbidden, "");
    until("unpacked files", || {
        let file = fs::metadata(node.dir.join("persist/store/of-app")).ok()?;
        is(std::os::unix::fs::MetadataExt::uid(&file) == ipc::limits::APP_UID_BASE + 33)
    });
    for name in node.manifests.keys().filter(|name| *name != "shim") {
        check_confinement(&node, name);
    }

    // The bus dies: nobody notices.
    let views = node.seen().len();
    let calls = node.good_calls();
    let others: Vec<_> = ["log", "net", "agent"].iter().map(|name| node.pid(name)).collect();
    node.kill("bus");
    until("calls go on", || is(node.good_calls() > calls + 20));
    assert_eq!(node.seen().len(), views);
    assert_eq!(["log", "net", "agent"].iter().map(|name| node.pid(name)).collect::<Vec<_>>(), others);

    // The writer dies: its old key goes only when the new epoch is synced; calls wait for it.
    let calls = node.good_calls();
    node.kill("net");
    until("the new epoch", || is(node.seen().last()? == "start-1,stays synced=true"));
    assert!(node.seen().iter().all(|view| view.contains("stays")));
    until("calls go on", || is(node.good_calls() > calls + 20));

    // Bus and writer die together.
    node.kill("bus");
    node.kill("net");
    until("the third epoch", || is(node.seen().last()? == "start-2,stays synced=true"));
    assert!(node.seen().iter().all(|view| view.contains("stays")));

    // The reader dies: it gets a snapshot.
    fs::remove_file(node.dir.join("persist/agent/seen")).unwrap();
    node.kill("agent");
    until("a snapshot", || is(node.seen().last()? == "start-2,stays synced=true"));

    // The log dies: lines go on arriving.
    node.kill("log");
    node.kill("net");
    until("the end of net is logged", || is(node.log_holds("net ended (signal 9)")));
    until("the fourth epoch", || is(node.seen().last()? == "start-3,stays synced=true"));
    for name in node.manifests.keys().filter(|name| *name != "shim") {
        until("running again", || node.pid(name));
        check_confinement(&node, name);
    }
    a_second_init_is_refused(&node);
    a_stopped_service_is_started_again(&node);
    a_shim_outlives_run_and_init_and_leaves_nothing(&mut node);
    node.stop();
}

fn a_second_init_is_refused(node: &Node) {
    let second = Node::launch(&node.dir).output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("another init runs the node"), "{text}");
}

fn a_stopped_service_is_started_again(node: &Node) {
    let pid = node.pid("net").unwrap();
    signal(pid, "STOP");
    until("another net", || node.pid("net").filter(|new| *new != pid));
    until("the reason is logged", || is(node.log_holds("net is stopped by a signal and does not answer")));
}

/// The shim that run had started answers the next run, also that of the next init; ended on request, it leaves nothing.
fn a_shim_outlives_run_and_init_and_leaves_nothing(node: &mut Node) {
    let state = node.dir.join("persist/run");
    let said = || fs::read_to_string(state.join("said")).unwrap_or_default();
    let shim = until("a shim", || node.pid("shim"));
    until("an answer", || is(said().ends_with("asked 1")));
    assert!(said().starts_with(APP));
    let app: i32 = said().split(' ').nth(2).unwrap().parse().unwrap();
    let group = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(group(shim).contains(&format!("app-{APP}/shim\n")));
    assert!(group(app).contains(&format!("app-{APP}/app\n")), "{}", group(app));
    assert_eq!(fs::read_to_string(state.join("found")).unwrap(), "0");
    node.kill("run");
    until("an answer to the next run", || is(said().ends_with("asked 2")));
    assert_eq!(fs::read_to_string(state.join("found")).unwrap(), "1");
    assert_eq!(node.pid("shim"), Some(shim));
    until("the app's line", || is(node.dir.join("persist/log").join(APP).exists()));

    // A shim that someone stopped is told to continue: its end would be its app's.
    let state_of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    signal(shim, "STOP");
    until("stopped", || is(state_of(shim).contains("State:\tT")));
    until("continued", || is(!state_of(shim).contains("State:\tT")));

    for asked in 3..6 {
        // Once one is stopped, which cannot end by itself when init does.
        let stopped = node.pid("net").filter(|_| asked == 4).inspect(|net| signal(*net, "STOP"));
        node.kill_init();
        until("the services' end", || {
            is(Node::pids().into_iter().all(|pid| [shim, app].contains(&pid) || Some(pid) == stopped))
        });
        assert_eq!(Node::pids().len(), 2 + usize::from(stopped.is_some()));
        node.init = Node::launch(&node.dir).spawn().unwrap();
        until("an answer to the run of the next init", || is(said().ends_with(&format!("asked {asked}"))));
        assert_eq!(fs::read_to_string(state.join("found")).unwrap(), "1");
        assert_eq!(node.pid("shim"), Some(shim));
        assert!(said().contains(&format!("app {app} ")));
        until("it is said", || {
            is(node.log_holds(&format!("app {APP} of the init before this one is taken over")))
        });
    }
    fs::write(state.join("kill"), "").unwrap();
    until("killed", || is(state.join("killed").exists()));
    until("closed", || is(state.join("closed").exists()));
    until("the app's end", || is(!Path::new(&format!("/proc/{app}")).exists() || is_zombie(app)));
    until("the shim's end", || is(node.pid("shim").is_none()));
}

/// It ended, and whoever it was left to has not yet looked.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// Compares what the kernel says of a process with its manifest.
fn check_confinement(node: &Node, name: &str) {
    let manifest = &node.manifests[name];
    let pid = until(name, || node.pid(name));
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let status = || fs::read_to_string(proc.join("status")).unwrap();
    // Confinement is the last step of the start.
    until("confined", || is(status().contains("\nSeccomp:\t2\n")));
    let status = status();
    let field = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap().split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    let id = manifest.uid.to_string();
    assert_eq!(field("Uid"), vec![id.clone(); 4], "{name}");
    assert_eq!(field("Gid"), vec![id; 4], "{name}");
    assert_eq!(field("Groups"), [""; 0], "{name}");
    assert_eq!(field("NoNewPrivs"), ["1"], "{name}");
    let capabilities = manifest
        .capabilities
        .iter()
        .fold(0_u64, |set, capability| set | 1 << capability_number(&capability.name).unwrap());
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"] {
        assert_eq!(field(set), [format!("{capabilities:016x}")], "{name} {set}");
    }
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    assert!(limits.lines().any(|l| l.starts_with("Max core file size        0 ")), "{limits}");

    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    let mut found: BTreeMap<String, String> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|parts| (parts[4].to_string(), parts[5].to_string()))
        .collect();
    let mut take = |at: &str, wanted: &[&str]| {
        let options = found.remove(at).unwrap_or_else(|| panic!("{name}: {at} is not mounted"));
        let options: Vec<&str> = options.split(',').collect();
        assert!(wanted.iter().all(|option| options.contains(option)), "{name} {at}: {options:?}");
    };
    take("/", &["ro", "nosuid", "nodev", "noexec"]);
    take(&format!("/bin/{}", manifest.bin), &["ro", "nosuid", "nodev"]);
    for file in &manifest.files {
        let is_there = !file.optional || Path::new(&file.path).exists();
        if file.dir_name() != "config" && is_there {
            let mode = if file.mode == Mode::Rw { "rw" } else { "ro" };
            take(&file.inside(), &[mode, "nosuid", "nodev", "noexec"]);
        }
    }
    for device in &manifest.devices {
        take(&device.path, &["ro", "nosuid", "noexec"]);
    }
    assert!(found.is_empty(), "{name}: also mounted: {found:?}");

    let of = |pid: &str, namespace: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
    let init = node.init.id().to_string();
    let own = pid.to_string();
    for namespace in ["mnt", "ipc", "uts"] {
        assert_ne!(of(&own, namespace), of(&init, namespace), "{name} {namespace}");
    }
    let has_network = manifest.network == ipc::manifest::Network::Node;
    assert_eq!(of(&own, "net") == of(&init, "net"), has_network, "{name}");
    assert_eq!(of(&own, "user") != of(&init, "user"), manifest.has_user_namespace(), "{name}");
    if !has_network {
        let links = fs::read_to_string(proc.join("net/dev")).unwrap();
        let links: Vec<_> =
            links.lines().skip(2).map(|line| line.split(':').next().unwrap().trim()).collect();
        assert!(
            links.iter().all(|link| matches!(*link, "lo" | "sit0" | "tunl0" | "ip6tnl0")),
            "{name}: {links:?}"
        );
    }

    let groups = fs::read_to_string(proc.join("cgroup")).unwrap();
    assert!(groups.contains(&format!("/selvedge-test{}/{name}\n", std::process::id())), "{groups}");

    // 0 is nothing, 1 and 2 the pipe to init; all else are channels, eventfds and files of its own directories.
    let persist = node.dir.join("persist").join(name);
    for entry in fs::read_dir(proc.join("fd")).unwrap().flatten() {
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let allowed = match number {
            // Its mount was left behind with the host.
            0 => target.ends_with("/null"),
            1 | 2 => target.starts_with("pipe:"),
            3 => target.starts_with("socket:"),
            _ => {
                target.starts_with("socket:")
                    || target.starts_with("anon_inode:[eventfd]")
                    || target.starts_with("/state/")
                    || target.starts_with(persist.to_str().unwrap())
            }
        };
        assert!(allowed, "{name}: descriptor {number} is {target}");
    }
    // No socket with a name or an address, in any family.
    let unix = fs::read_to_string(proc.join("net/unix")).unwrap();
    assert!(
        has_network || unix.lines().skip(1).all(|line| line.split_whitespace().count() < 8),
        "{name}: {unix}"
    );
}
