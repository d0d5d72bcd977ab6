// SPDX-License-Identifier: Apache-2.0
//! What apps get besides packets: addresses by DHCP, rates, a log of flows, and a place on layer 2. Other people's clients
//! and servers of DHCP judge ours.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::desired::{NetworkDesired, VifDesired, VifsDesired};
use model::flow::{Flow, FlowAction, FlowReport};
use model::id::AppId;
use model::net::Mac;
use model::time::{MonoMs, Now, Wall, WallTime};
use world::traffic::{hold, listen_udp, lookup, ping, serve_dns, serve_tcp, serve_udp, tcp, udp};
use world::{Namespace, Node, allow, app, app_rule, local, network, switch};

const WORLD: &str = "192.0.2.1";
const NODE: &str = "192.0.2.10";
/// Other people's programs start slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for one test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("selvedge-net-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }

    /// A script that writes its environment to a file, so that we see what the client understood.
    fn script(&self, condition: &str) -> String {
        let (script, told) = (self.path("script"), self.path("told"));
        std::fs::write(&script, format!("#!/bin/sh\n{condition} || exit 0\nenv > {told}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    fn told(&self) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(self.path("told")).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn inside(namespace: &Namespace, program: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.name]).args(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run(namespace: &Namespace, program: &[&str]) {
    let mut running = Server(inside(namespace, program).stderr(Stdio::inherit()).spawn().unwrap());
    until(&format!("{program:?} ends"), || match running.0.try_wait().unwrap() {
        Some(status) => {
            assert!(status.success(), "{program:?}: {status}");
            true
        }
        None => false,
    });
}

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs root"]
fn dhcp_clients_of_others_get_the_address_their_app_has() {
    let mut net = network(1, "10.1.0.0/24", &["eth0"]);
    net.mtu = 1400;
    local(&mut net).domain = "lab.example".into();
    local(&mut net).ntp = vec!["192.0.2.123".parse().unwrap()];
    local(&mut net).routes = vec!["198.51.100.0/24".parse().unwrap()];
    let apps = [app(1, "web", &net, 2, vec![allow()]), app(2, "db", &net, 3, vec![allow()])];
    let networks = [net];
    let mut node = Node::new("dhcp");
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    let [web, db] = ["web", "db"].map(|name| node.attach(&apps, name));
    assert!(web.ip("link show eth0").contains("mtu 1400"));
    serve_tcp(&node.world, 7001);
    serve_tcp(&db, 80);
    let heard = listen_udp(&db, 68);
    let fresh = |inside: &Namespace| {
        inside.ip("addr flush dev eth0");
        inside.ip("route flush dev eth0");
        inside.ip("link set eth0 mtu 1500");
        assert_eq!(tcp(inside, WORLD, 7001), None);
    };
    let own: Ipv4Addr = "10.1.0.2".parse().unwrap();
    let works = |inside: &Namespace, who: &str| {
        assert!(tcp(inside, WORLD, 7001).is_some(), "{who}: out");
        assert_eq!(tcp(inside, "10.1.0.3", 80), Some(own), "{who}: to a neighbour it thinks is on the link");
        assert!(ping(inside, "10.1.0.1"), "{who}: to its gateway");
    };

    // busybox, as most small images have it.
    let dir = Dir::new("udhcpc");
    let script = dir.script("[ \"$1\" = bound ]");
    fresh(&web);
    let udhcpc =
        ["udhcpc", "-f", "-n", "-q", "-t", "20", "-i", "eth0", "-s", &script, "-O", "ntpsrv", "-O", "mtu"];
    run(&web, &[&udhcpc[..], &["-O", "staticroutes"]].concat());
    let told = dir.told();
    let says = |key: &str| told.get(key).map(String::as_str).unwrap_or_default();
    assert_eq!((says("ip"), says("subnet"), says("router")), ("10.1.0.2", "255.255.255.0", "10.1.0.1"));
    assert_eq!((says("dns"), says("domain"), says("hostname")), ("10.1.0.1", "lab.example", "web"));
    assert_eq!((says("mtu"), says("ntpsrv"), says("lease")), ("1400", "192.0.2.123", "3600"));
    assert_eq!(
        says("staticroutes"),
        "10.1.0.1/32 0.0.0.0 10.1.0.0/24 10.1.0.1 198.51.100.0/24 10.1.0.1 0.0.0.0/0 10.1.0.1"
    );
    web.ip("addr add 10.1.0.2/24 dev eth0");
    web.ip("route add default via 10.1.0.1");
    works(&web, "busybox");

    // ISC's, as Debian had it.
    let dir = Dir::new("dhclient");
    let script = dir.script("[ \"$reason\" = BOUND ]");
    fresh(&web);
    let (leases, pid) = (dir.path("leases"), dir.path("pid"));
    web.ip("link set eth0 up");
    let dhclient =
        ["dhclient", "-1", "-4", "-q", "-sf", &script, "-lf", &leases, "-pf", &pid, "-cf", "/dev/null"];
    run(&web, &[&dhclient[..], &["eth0"]].concat());
    let told = dir.told();
    assert_eq!(told.get("new_ip_address").map(String::as_str), Some("10.1.0.2"));
    assert_eq!(told.get("new_domain_name_servers").map(String::as_str), Some("10.1.0.1"));
    let of_client = std::fs::read_to_string(&pid).unwrap();
    let _ = Command::new("kill").arg(of_client.trim()).status();

    // dhcpcd, which sets everything up itself, and asks whether someone else has the address.
    fresh(&web);
    let dhcpcd = ["dhcpcd", "-4", "-1", "-q", "-c", "/bin/true", "-t", "50", "--noipv4ll", "-f", "/dev/null"];
    run(&web, &[&dhcpcd[..], &["eth0"]].concat());
    assert!(web.ip("addr show dev eth0").contains("10.1.0.2/24"), "{}", web.ip("addr show dev eth0"));
    assert!(web.ip("route").contains("198.51.100.0/24 via 10.1.0.1"), "{}", web.ip("route"));
    works(&web, "dhcpcd");

    // Nobody else heard of it, and nobody gets another's.
    assert!(!heard(), "a neighbour heard what was said to another");
    let other = Dir::new("thief");
    let script = other.script("[ \"$1\" = bound ]");
    db.ip("link set eth0 down");
    db.ip("link set eth0 address 02:16:3e:00:00:01");
    db.ip("link set eth0 up");
    let udhcpc = ["udhcpc", "-f", "-n", "-q", "-t", "2", "-T", "1", "-i", "eth0", "-s", &script];
    assert!(!inside(&db, &udhcpc).status().unwrap().success());
    // After a restart of the process it is the same.
    node.restart();
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new());
    let dir = Dir::new("again");
    let script = dir.script("[ \"$1\" = bound ]");
    run(&web, &["udhcpc", "-f", "-n", "-q", "-t", "20", "-i", "eth0", "-s", &script]);
    assert_eq!(dir.told().get("ip").map(String::as_str), Some("10.1.0.2"));
}

#[test]
#[ignore = "needs root"]
fn a_rate_bites() {
    let net = network(1, "10.1.0.0/24", &["eth0"]);
    // Ten a second, seven at once.
    let apps = [app(
        1,
        "web",
        &net,
        2,
        vec![app_rule("limit udp 192.0.2.0/24"), app_rule("allow tcp 192.0.2.0/24")],
    )];
    let mut node = Node::new("rate");
    assert_eq!(node.apply(&[net], &apps), Vec::<String>::new());
    let web = node.attach(&apps, "web");
    serve_tcp(&node.world, 7001);
    let sink = node.world.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7005)).unwrap());
    sink.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    assert!(ping(&web, "10.1.0.1"));
    let sent = 300;
    let started = Instant::now();
    web.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for _ in 0..sent {
            socket.send_to(b"x", (WORLD, 7005)).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let took_s = started.elapsed().as_secs_f64();
    let mut got = 0;
    while sink.recv(&mut [0; 8]).is_ok() {
        got += 1;
    }
    let allowed = 7.0 + 10.0 * took_s;
    assert!(f64::from(got) <= allowed + 2.0 && f64::from(got) >= allowed * 0.7, "{got} in {took_s} s");
    let metrics = node.metrics("nbu1x1");
    assert_eq!(metrics.rx_rate_drops, (sent - got) as u64);
    assert_eq!((metrics.rx_acl_drops, metrics.tx_rate_drops), (0, 0));
    assert!(tcp(&web, WORLD, 7001).is_some(), "others are not held back");
}

fn now() -> Now {
    let wall = WallTime { seconds: 1_800_000_000, nanos: 0 };
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Now { mono: MonoMs(clock.tv_sec as u64 * 1000), wall: Wall::Trusted(wall) }
}

fn reports(node: &mut Node) -> Vec<FlowReport> {
    let net = node.net();
    net.told(now());
    net.gather(now());
    // Later than anything gathers.
    let later = now();
    net.gather(Now { mono: later.mono.plus_s(60), ..later });
    let mut all = Vec::new();
    while let Some((batch, report)) = net.next_flows().cloned() {
        net.flows_taken(batch);
        all.push(report);
    }
    all
}

#[test]
#[ignore = "needs root"]
fn flows_and_lookups_are_logged_where_that_is_asked_for() {
    let mut logged = network(1, "10.1.0.0/24", &["eth0"]);
    logged.is_flow_logged = true;
    let silent = network(2, "10.2.0.0/24", &["eth0"]);
    let rules = vec![app_rule("map tcp 8080 80"), app_rule("allow tcp 192.0.2.0/24")];
    let apps = [app(1, "web", &logged, 2, rules.clone()), app(2, "db", &silent, 2, vec![allow()])];
    let mut node = Node::new("flows");
    assert_eq!(node.apply(&[logged, silent], &apps), Vec::<String>::new());
    let [web, db] = ["web", "db"].map(|name| node.attach(&apps, name));
    serve_tcp(&node.world, 7001);
    serve_tcp(&web, 80);
    serve_dns(&node.world, &[("named.example", "203.0.113.9")]);
    // Flows end as soon as they are over.
    for name in [
        "tcp_timeout_time_wait",
        "tcp_timeout_close",
        "tcp_timeout_last_ack",
        "udp_timeout",
        "udp_timeout_stream",
    ] {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        node.node.run(|| std::fs::write(path, "1").unwrap());
    }
    assert!(tcp(&web, WORLD, 7001).is_some() && tcp(&db, WORLD, 7001).is_some());
    assert!(tcp(&node.world, NODE, 8080).is_some());
    assert!(!udp(&web, WORLD, 7009), "no rule allows it");
    assert_eq!(lookup(&web, "10.1.0.1", "named.example").map(|a| a.len()), Some(1));
    assert!(lookup(&web, "10.1.0.1", "web").is_some() && lookup(&db, "10.2.0.1", "named.example").is_some());

    let (mut flows, mut lookups) = (Vec::<Flow>::new(), Vec::new());
    until("flows end", || {
        // Looking at the table ends what is over.
        node.node
            .run(|| std::fs::read_to_string("/proc/self/net/nf_conntrack").map(drop).unwrap_or_default());
        for report in reports(&mut node) {
            assert_eq!(report.scope.app, apps[0].app, "the other network keeps no log");
            assert_eq!((&*report.scope.interface, &*report.scope.host_name), ("eth0", "nbu1x1"));
            flows.extend(report.flows);
            lookups.extend(report.lookups);
        }
        flows.iter().filter(|flow| flow.action == FlowAction::Accepted).count() >= 2
    });
    let out = flows.iter().find(|flow| !flow.is_inbound && flow.protocol == 6).unwrap();
    assert_eq!(
        (out.local, out.remote, out.remote_port),
        ("10.1.0.2".parse().unwrap(), WORLD.parse().unwrap(), 7001)
    );
    assert_eq!((out.acl_id, out.action), (3, FlowAction::Accepted));
    assert!(out.tx_packets >= 4 && out.rx_packets >= 3 && out.rx_bytes > out.rx_packets * 40, "{out:?}");
    assert!(out.started.is_some() && out.started <= out.ended, "{out:?}");
    let into = flows.iter().find(|flow| flow.is_inbound).unwrap();
    assert_eq!((into.local, into.local_port, into.acl_id), ("10.1.0.2".parse().unwrap(), 80, 2));
    assert_eq!(into.remote, WORLD.parse::<Ipv4Addr>().unwrap());
    let denied = flows.iter().find(|flow| flow.action == FlowAction::Dropped).unwrap();
    assert_eq!((denied.remote_port, denied.protocol, denied.acl_id, denied.tx_packets), (7009, 17, 0, 1));
    let names: Vec<(&str, usize)> = lookups.iter().map(|l| (&*l.name, l.addresses.len())).collect();
    assert_eq!(names, [("named.example", 1), ("web", 1)]);
    // Nothing is said twice.
    assert_eq!(reports(&mut node).iter().map(|r| r.lookups.len()).sum::<usize>(), 0);
}

fn on_switch(
    number: u16,
    name: &str,
    net: &NetworkDesired,
    address: Option<&str>,
    acl: Vec<model::config::AclRule>,
) -> VifsDesired {
    let mut made = app(number, name, net, 0, acl);
    made.vifs[0].address = address.map(|text| text.parse().unwrap());
    made
}

/// A DHCP server of the world, EVE's own choice.
fn dnsmasq(world: &Namespace, dir: &Dir) -> Server {
    let leases = format!("--dhcp-leasefile={}", dir.path("leases"));
    let arguments = [
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=eth0",
        "--bind-interfaces",
        "--dhcp-authoritative",
        "--dhcp-range=192.0.2.100,192.0.2.150,2m",
        "--dhcp-option=6,192.0.2.53",
        "--user=root",
        "--pid-file",
        &leases,
    ];
    Server(inside(world, &arguments).spawn().unwrap())
}

#[test]
#[ignore = "needs root"]
fn apps_on_a_switch_are_neighbours_of_the_world_and_the_node_stays_connected() {
    let lan = switch(3, &["eth0"]);
    let net = network(1, "10.1.0.0/24", &["eth0"]);
    let rules = vec![app_rule("allow tcp 192.0.2.0/24"), app_rule("allow icmp 192.0.2.0/24")];
    let camera = on_switch(1, "camera", &lan, None, rules.clone());
    let plc = on_switch(
        2,
        "plc",
        &lan,
        Some("192.0.2.77"),
        vec![app_rule("allow udp 192.0.2.1/32"), app_rule("allow icmp 192.0.2.0/24")],
    );
    let mut both = app(3, "both", &net, 9, vec![allow()]);
    both.vifs.push(VifDesired {
        name: "eth1".into(),
        host_name: "nbu2x3".into(),
        mac: Mac([2, 0x16, 0x3e, 0, 9, 9]),
        ..on_switch(3, "both", &lan, None, rules).vifs.remove(0)
    });
    let (networks, apps) = ([net, lan], [camera, plc, both]);
    let mut node = Node::new("switch");
    let dir = Dir::new("dnsmasq");
    let _server = dnsmasq(&node.world, &dir);
    for port in [7001, 7002] {
        serve_tcp(&node.world, port);
    }
    serve_udp(&node.world, 7004);
    serve_tcp(&node.node, 7003);
    // The node's own connection from before, and its own links.
    let own = hold(&node.node, WORLD, 7001);
    // without IPv6, whose addresses are tentative for a second
    let before = node.node.ip("-4 -o addr show dev eth0");
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new());
    assert!(own.works() && node.node.ip("-4 -o addr show dev eth0") == before);
    let [camera, plc, both] = ["camera", "plc", "both"].map(|name| node.attach(&apps, name));
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new());
    for inside in [&camera, &plc, &both] {
        serve_tcp(inside, 80);
    }
    serve_udp(&plc, 5001);

    // From the server outside: the app has it, and it is reported.
    let camera_id = apps[0].app;
    until("the camera gets an address", || !node.net().awaits_address(camera_id));
    until("the other one gets an address", || !node.net().awaits_address(apps[2].app));
    let seen = |node: &mut Node, app: AppId, at: usize| {
        node.net().told(now());
        node.net().with_addresses().apps[&app].vifs[at].address
    };
    let at = seen(&mut node, camera_id, 0).unwrap();
    assert!(camera.ip("addr show dev eth0").contains(&format!("{at}/24")), "{at}");
    assert!(std::fs::read_to_string(dir.path("leases")).unwrap().contains(&at.to_string()));
    assert_eq!(node.net().outside(camera_id).0, ["192.0.2.53".parse::<Ipv4Addr>().unwrap()]);
    assert!(seen(&mut node, apps[2].app, 1).is_some_and(|other| other != at && other.octets()[3] >= 100));
    assert!(both.ip("route").contains("default via 10.1.0.1 dev eth0"), "{}", both.ip("route"));

    // Neighbours of the world, under their own addresses.
    let at = at.to_string();
    assert_eq!(tcp(&camera, WORLD, 7001), Some(at.parse().unwrap()));
    assert_eq!(tcp(&both, WORLD, 7002).map(|a| a.octets()[3] >= 100), Some(true), "by the nearer way");
    assert!(ping(&node.world, &at) && ping(&node.world, "192.0.2.77"));
    assert_eq!(tcp(&node.world, &at, 80), Some(WORLD.parse().unwrap()));
    // Rules hold both ways.
    assert!(!udp(&camera, WORLD, 7004), "not allowed out");
    assert!(udp(&plc, WORLD, 7004));
    assert_eq!(tcp(&plc, WORLD, 7001), None);
    assert_eq!(tcp(&node.world, "192.0.2.77", 80), None, "not allowed in");
    assert!(udp(&node.world, "192.0.2.77", 5001));
    assert!(node.metrics("nbu1x2").rx_acl_drops > 0 && node.metrics("nbu1x2").tx_acl_drops > 0);
    // Between apps of the switch as well: the camera may send, the plc must let in.
    assert_eq!(tcp(&camera, "192.0.2.77", 80), None);
    assert!(ping(&camera, "192.0.2.77"));
    // The node is not there for them, nor their way out.
    assert_eq!(tcp(&camera, NODE, 7003), None);
    assert!(!ping(&plc, NODE));
    camera.ip("route add 198.51.100.0/24 via 192.0.2.10");
    assert_eq!(tcp(&camera, "198.51.100.1", 7001), None);
    // Nobody is another.
    let heard = listen_udp(&node.world, 7005);
    world::traffic::send_udp_from(&plc, "192.0.2.77", WORLD, 7005);
    assert!(heard());
    plc.ip("addr add 192.0.2.78/24 dev eth0");
    world::traffic::send_udp_from(&plc, "192.0.2.78", WORLD, 7005);
    assert!(!heard(), "under another address");
    plc.ip("link set eth0 address 02:16:3e:00:00:99");
    world::traffic::send_udp_from(&plc, "192.0.2.77", WORLD, 7005);
    assert!(!heard(), "under another MAC");
    plc.ip("link set eth0 address 02:16:3e:00:00:02");

    // A rule taken away ends the flow; the process restarts; the switch goes. The node's connection never broke.
    let standing = hold(&camera, WORLD, 7001);
    let mut fewer = apps.clone();
    fewer[0].vifs[0].acl.clear();
    node.changes(&networks, &fewer);
    assert!(!standing.works());
    node.changes(&networks, &apps);
    assert!(tcp(&camera, WORLD, 7001).is_some());
    node.restart();
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new());
    assert!(tcp(&camera, WORLD, 7001).is_some());
    // Without its address being kept for us it is seen again on its own.
    camera.ip("neigh flush dev eth0");
    assert!(ping(&camera, WORLD));
    until("the address is seen", || {
        node.net().told(now());
        node.net().with_addresses().apps[&camera_id].vifs[0].address == Some(at.parse().unwrap())
    });
    assert!(own.works());
    let flags = |node: &Node| node.node.ip("link show dev eth0").contains("PROMISC");
    assert!(flags(&node));
    node.changes(&[], &[]);
    assert!(!flags(&node) && own.works());
    let links = node.node.ip("-o link");
    assert!(!links.contains("bp3") && !links.contains("bu3") && !links.contains("bn3"), "{links}");
    assert_eq!(tcp(&camera, WORLD, 7001), None);
    let _: IpAddr = at.parse().unwrap();
}
