// SPDX-License-Identifier: Apache-2.0
//! An app that was taken over, with root in its container: the node, its services, other apps and their networks.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::command::{Background, root, run};
use tests::lab::{Lab, Place, bin_dir, descendants};
use tests::progress::{step, wait_for};
use tests::{http, toolbox};

use super::{differences, outcomes};

const SOON: Duration = Duration::from_secs(60);
const EVIL: u16 = 8080;
const VICTIM: u16 = 8081;
const FAR: u16 = 8082;
const WALLED: u16 = 8083;
/// Something on every address of the node.
const NODE_PORT: u16 = 7777;

/// Whether an app may: `None` where it only concerns itself.
fn may(attempt: &str) -> Option<bool> {
    let own = ["of its parent", "of process 1", " its parent", " process 1"];
    if own.iter().any(|end| attempt.ends_with(end)) && !attempt.starts_with("join") {
        return None;
    }
    Some(match attempt {
        // Not there in every kernel, or only about what is its own.
        "signal all"
        | "run a program"
        | "create /dev/x"
        | "bounding set"
        | "socket mptcp"
        | "socket tcp6"
        | "socket netlink audit"
        | "socket netlink generic"
        | "socket netlink netfilter"
        | "bind port 80"
        | "read /sys/kernel/mm/transparent_hugepage/enabled" => return None,
        "read /proc/self/status"
        | "read /proc/1/environ"
        | "read /proc/1/root/etc/hostname"
        | "read /proc/sys/net/ipv4/ip_forward"
        | "read /proc/sys/kernel/core_pattern"
        | "read /etc/resolv.conf"
        | "read /dev/urandom"
        | "list /"
        | "list /proc"
        | "list /sys"
        | "create /x"
        | "create /bin/x"
        | "create /etc/x"
        | "create /tmp/x"
        | "write /proc/self/oom_score_adj"
        | "write /proc/1/oom_score_adj"
        | "write /etc/resolv.conf"
        | "setuid 0"
        | "setgroups"
        | "chroot"
        | "socket tcp"
        | "socket udp"
        | "socket unix"
        | "socket netlink route" => true,
        // Its network's name server, its neighbour, and what lies behind the uplink: no access list forbids it.
        "connect own-dns" | "connect neighbour" | "connect controller" => true,
        _ => false,
    })
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: selvedge/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}---\n")
}

fn app(name: &str, image: &str, network: &str, port: u16, more: &str) -> String {
    let spec = format!(
        "image: {image}\nselector: {{}}\nnetworks: [{{network: {network}}}]\nports: ['{port}:80']\n\
         resources: {{cpus: 1, memory: 64Mi}}\n{more}"
    );
    document("App", name, &spec)
}

fn on_device(lab: &Lab, app: &str) -> Value {
    let text = lab.controller.cli(&["get", &format!("app/{app}"), "-o", "json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["status"]["devices"][0].clone()
}

fn address(lab: &Lab, app: &str) -> String {
    on_device(lab, app)["addresses"][0].as_str().unwrap().to_owned()
}

/// The first process of an app.
fn pid(lab: &mut Lab, app: &str) -> u32 {
    let group = format!("app-{}/app", on_device(lab, app)["id"].as_str().unwrap());
    let is_in =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group));
    descendants(lab.node.process().pid()).unwrap().into_iter().filter(is_in).min().expect("the app runs")
}

fn sh(lab: &Lab, port: u16, command: &str) -> String {
    let said = toolbox::sh(lab.app_address(port).unwrap(), command);
    said.unwrap_or_else(|| panic!("port {port} does not answer to: {command}"))
}

fn wait_answer(lab: &Lab, port: u16, wanted: &str) {
    wait_for(&format!("port {port} answers {wanted}"), SOON, || {
        let body = http::get(lab.app_address(port).unwrap(), "/", Duration::from_secs(1))?;
        (body == wanted).then_some(())
    })
    .unwrap();
}

/// Puts the attacker into the app, as something it downloaded.
fn bring_in(lab: &mut Lab) {
    let inside = PathBuf::from(format!("/proc/{}/root/attacker", pid(lab, "evil")));
    fs::copy(bin_dir().unwrap().join("attacker"), &inside).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
#[ignore = "needs root"]
fn an_app_that_was_taken_over_reaches_what_it_may_and_nothing_else() {
    let mut lab = Lab::start(Place::new("attacked", 53).unwrap()).unwrap();
    for tag in ["1", "2"] {
        lab.controller.push(&toolbox::layout(&lab.place.cache).unwrap(), tag, &format!("box:{tag}")).unwrap();
    }
    let walls = "acl:\n  - {action: deny, direction: out}\n  - {action: allow, direction: in}";
    let text = document("Network", "apps", "kind: local\nsubnet: 10.60.0.0/24")
        + &document("Network", "others", "kind: local\nsubnet: 10.61.0.0/24")
        + &app("evil", "box:1", "apps", EVIL, "env: {MINE: mine}")
        + &app("victim", "box:2", "apps", VICTIM, "env: {SECRET: swordfish}")
        + &app("far", "box:2", "others", FAR, "")
        + &app("walled", "box:1", "apps", WALLED, walls);
    lab.controller.apply("documents.yaml", &text).unwrap();
    for (port, version) in [(EVIL, "one"), (VICTIM, "two"), (FAR, "two"), (WALLED, "one")] {
        wait_answer(&lab, port, version);
    }
    bring_in(&mut lab);
    system(&lab);
    operator_api(&lab);
    frames(&mut lab);
    traps(&mut lab);
}

/// Every try from inside.
fn system(lab: &Lab) {
    step("from inside an app");
    let stranger = std::process::id();
    let unix = format!("selvedge-attack-{stranger}");
    let name = |name: &str| SocketAddr::from_abstract_name(name).unwrap();
    let node = lab.netns.inside(|| {
        let tcp = TcpListener::bind(("0.0.0.0", NODE_PORT)).unwrap();
        let stream = UnixListener::bind_addr(&name(&unix)).unwrap();
        (tcp, stream, UnixDatagram::bind_addr(&name(&format!("{unix}.d"))).unwrap())
    });
    let targets = [
        ("own-dns", "10.60.0.1:53".to_owned()),
        ("neighbour", format!("{}:80", address(lab, "victim"))),
        ("controller", lab.controller.address.to_string()),
        ("other-dns", "10.61.0.1:53".to_owned()),
        ("far", format!("{}:80", address(lab, "far"))),
        ("node", format!("{}:{NODE_PORT}", lab.netns.node)),
        ("gateway", format!("10.60.0.1:{NODE_PORT}")),
        ("other-gateway", format!("10.61.0.1:{NODE_PORT}")),
        ("loopback", format!("127.0.0.1:{NODE_PORT}")),
        ("metadata", "169.254.169.254:80".to_owned()),
    ];
    let words: Vec<String> = targets.iter().map(|(name, address)| format!("{name}={address}")).collect();
    let command = format!(
        "(/attacker app victim={stranger} unix={unix} {} > /tmp/out 2>&1; echo finished >> /tmp/out) > /dev/null 2>&1 &",
        words.join(" ")
    );
    sh(lab, EVIL, &command);
    let mut said = String::new();
    wait_for("all tries are made", super::TRIED, || {
        said = toolbox::sh(lab.app_address(EVIL).unwrap(), "cat /tmp/out").unwrap_or_default();
        said.ends_with("finished").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{said}"));
    let mut tried = outcomes(said.lines());
    let all = tried.len();
    tried.retain(|name, _| may(name).is_some());
    step(format_args!("{all} tries, {} of them judged", tried.len()));
    assert!(tried.len() >= 110, "{said}");
    let problems = differences("app", &tried, &|attempt| may(attempt) == Some(true));
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    drop(node.unwrap());

    step("what it sees of others");
    let processes = sh(lab, EVIL, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(!processes.contains("selvedge") && !processes.contains("swordfish"), "{processes}");
    let mounts = sh(lab, EVIL, "cat /proc/self/mountinfo");
    assert!(!mounts.contains(" /persist") && mounts.lines().count() < 40, "{mounts}");
    let environments = sh(lab, EVIL, "cat /proc/[0-9]*/environ | tr '\\0' '\\n'");
    assert!(environments.contains("MINE=mine") && !environments.contains("swordfish"), "{environments}");
}

/// By default an app reaches what its network reaches, the controller's address too; it gets nothing there without a
/// token. An access list shuts it out altogether.
fn operator_api(lab: &Lab) {
    step("the operator API from the network of an app");
    let pid = |app: &str| {
        let group = format!("app-{}/app", on_device(lab, app)["id"].as_str().unwrap());
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let text = fs::read_to_string(entry.path().join("cgroup")).ok()?;
            text.contains(&group).then(|| entry.file_name().into_string().unwrap())
        })
    };
    let ask = |app: &str, path: &str| {
        let mut command = root("nsenter");
        command.args(["-t", &pid(app).unwrap(), "-n", "--", "curl", "-sk", "-m", "3", "-o", "/dev/null"]);
        command.args(["-w", "%{http_code}", &format!("https://{}{path}", lab.controller.address)]);
        String::from_utf8_lossy(&tests::command::output(&mut command).unwrap().stdout).into_owned()
    };
    let project = "/apis/selvedge/v1alpha1/projects/default";
    let own = ["devices", "secrets", "apps", "secrets/pull", "events", "audit", "tokens", "backup"];
    let paths = own.map(|name| format!("{project}/{name}"));
    for path in
        paths.iter().map(String::as_str).chain(["/metrics", "/v2/", "/v2/_catalog", "/v2/box/manifests/1"])
    {
        assert_eq!(ask("evil", path), "401", "{path} without a token");
    }
    assert_eq!(ask("evil", "/healthz"), "200", "the controller is out of reach: nothing was shown");
    assert_eq!(ask("walled", "/healthz"), "000");
}

fn field(lab: &Lab, port: u16, command: &str) -> String {
    sh(lab, port, command).trim().to_owned()
}

/// What root in the network of an app sends reaches its neighbour only through the gateway, and under its own name.
fn frames(lab: &mut Lab) {
    step("forged frames");
    let attacker = bin_dir().unwrap().join("attacker");
    let own_mac = field(lab, EVIL, "cat /sys/class/net/eth0/address");
    let victim_mac = field(lab, VICTIM, "cat /sys/class/net/eth0/address");
    let neighbours = field(lab, EVIL, "cat /proc/net/arp");
    let gateway =
        neighbours.lines().find(|line| line.starts_with("10.60.0.1 ")).expect("it spoke to its gateway");
    let gateway_mac = gateway.split_whitespace().nth(3).unwrap();
    let (own, victim) = (address(lab, "evil"), address(lab, "victim"));
    let (evil_pid, victim_pid) = (pid(lab, "evil").to_string(), pid(lab, "victim").to_string());
    let inside = |pid: &str| -> Command {
        let mut command = root("nsenter");
        command.args(["-t", pid, "-n", "--"]).arg(&attacker);
        command
    };
    let log = lab.place.dir.join("frames.log");
    let mut watch = inside(&victim_pid);
    let watcher = Background::start("a watcher", &log, watch.args(["watch", "eth0", "600000"])).unwrap();
    let seen = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the watcher watches", SOON, || seen().contains("watching").then_some(())).unwrap();
    let other_mac = "02:00:00:00:00:99";
    for to in [&*victim_mac, gateway_mac] {
        for (kind, mac, source) in [
            ("mac", other_mac, &*own),
            ("ip", &own_mac, "10.60.0.99"),
            ("gateway", &own_mac, "10.60.0.1"),
            ("arp", &own_mac, "10.60.0.1"),
            ("vlan", &own_mac, &own),
            ("ip6", &own_mac, &own),
            ("other", &own_mac, &own),
            // past the gateway there is no way to a neighbour at all; by it there is, and when this one is there, the
            // last, the others would be too
            (if to == victim_mac { "straight" } else { "honest" }, &own_mac, &own),
        ] {
            run(inside(&evil_pid).args(["send", "eth0", kind, mac, to, source, &victim])).unwrap();
        }
    }
    wait_for("the honest frame arrives", SOON, || seen().contains("frame honest").then_some(())).unwrap();
    let forged: Vec<String> = seen()
        .lines()
        .filter(|line| line.starts_with("frame ") && *line != "frame honest")
        .map(str::to_owned)
        .collect();
    drop(watcher);
    assert!(forged.is_empty(), "{forged:?}");
    let neighbours = sh(lab, VICTIM, "cat /proc/net/arp");
    let is_stolen = neighbours.lines().any(|line| line.starts_with("10.60.0.1 ") && line.contains(&own_mac));
    assert!(!is_stolen, "{neighbours}");
}

/// What the app leaves in its volume for the shim that starts it next.
fn traps(lab: &mut Lab) {
    step("traps for the next start");
    let outside = Path::new("/tmp/selvedge-trap");
    let _ = fs::remove_dir_all(outside);
    fs::create_dir(outside).unwrap();
    let before = pid(lab, "evil");
    sh(
        lab,
        EVIL,
        "mkdir -p /tmp/selvedge-trap; rm -f /etc/hosts /etc/resolv.conf; busybox mv /etc /was; \
         busybox ln -s ../../../../../../../../tmp/selvedge-trap /etc; busybox ln -s /proc/1/root/tmp/selvedge-trap /was/hosts",
    );
    // The connection goes with the app.
    let _ = toolbox::sh(lab.app_address(EVIL).unwrap(), "kill -9 -1; kill 1");
    wait_for("the app was started again", SOON, || {
        http::get(lab.app_address(EVIL).unwrap(), "/", Duration::from_secs(1))?;
        (pid(lab, "evil") != before).then_some(())
    })
    .unwrap();
    let left: Vec<_> = fs::read_dir(outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
    fs::remove_dir_all(outside).unwrap();
    assert!(left.is_empty(), "the shim was led out: {left:?}");
    assert!(
        sh(lab, EVIL, "cat /tmp/selvedge-trap/resolv.conf").contains("nameserver"),
        "nothing was written at all"
    );
    assert_eq!(http::get(lab.app_address(VICTIM).unwrap(), "/", SOON).as_deref(), Some("two"));
}
