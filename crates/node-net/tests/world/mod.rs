// SPDX-License-Identifier: Apache-2.0
//! A small world for tests: network namespaces, links between them, and desired objects in few words.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod traffic;

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use ipc::calls::NetReply;
use model::config::{
    AclAction, AclDirection, AclMatch, AclProtocol, AclRemote, AclRule, LocalNetwork, NetworkInstanceKind,
    PortRange,
};
use model::desired::{NetworkDesired, VifDesired, VifsDesired};
use model::id::{AppId, NetworkInstanceId};
use model::net::{Mac, Prefix4};
use model::observed::{LinkMetrics, PortObserved};
use node_core::net::Intent;
use node_net::kernel::PortSource;
use node_net::net::{Net, Report};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};
use uuid::Uuid;

/// A named network namespace; gone with this value.
#[derive(Debug)]
pub struct Namespace {
    pub name: String,
    fd: OwnedFd,
}

impl Namespace {
    pub fn new(name: &str) -> Namespace {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("sn{}-{}-{name}", std::process::id(), MADE.fetch_add(1, Ordering::SeqCst));
        command("ip", &["netns", "add", &name], "");
        let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
        Namespace { name, fd: file.into() }
    }

    pub fn fd(&self) -> OwnedFd {
        self.fd.try_clone().unwrap()
    }

    /// Runs in a thread of its own inside the namespace and gives back what it returns.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap();
                inside()
            });
            entered.join().unwrap()
        })
    }

    /// The same, in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let fd = self.fd();
        std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            inside()
        })
    }

    pub fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        command("ip", &[&["-n", &self.name][..], &arguments].concat(), "")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn nft(inside: &Namespace, arguments: &[&str], input: &str) -> String {
    command("ip", &[&["netns", "exec", &inside.name, "nft"][..], arguments].concat(), input)
}

fn command(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn network(number: u16, subnet: &str, uplinks: &[&str]) -> NetworkDesired {
    let subnet: Prefix4 = subnet.parse().unwrap();
    let gateway = Ipv4Addr::from_bits(subnet.network().to_bits() + 1);
    NetworkDesired {
        id: NetworkInstanceId(Uuid::from_u128(u128::from(number))),
        name: format!("net{number}"),
        number,
        kind: NetworkInstanceKind::Local(LocalNetwork {
            subnet,
            gateway,
            dns: vec![],
            range: (gateway, subnet.broadcast()),
            static_names: vec![],
            domain: String::new(),
            ntp: vec![],
            routes: vec![],
            routes_uplinks: false,
        }),
        mtu: 0,
        is_flow_logged: false,
        uplinks: uplinks.iter().map(|name| name.to_string()).collect(),
    }
}

pub fn switch(number: u16, uplinks: &[&str]) -> NetworkDesired {
    NetworkDesired { kind: NetworkInstanceKind::Switch, ..network(number, "10.9.9.0/24", uplinks) }
}

pub fn local(network: &mut NetworkDesired) -> &mut LocalNetwork {
    match &mut network.kind {
        NetworkInstanceKind::Local(local) => local,
        NetworkInstanceKind::Switch => panic!("a switch"),
    }
}

pub fn app(number: u16, name: &str, on: &NetworkDesired, host: u32, acl: Vec<AclRule>) -> VifsDesired {
    VifsDesired {
        app: AppId(Uuid::from_u128(u128::from(number))),
        name: name.to_string(),
        vifs: vec![VifDesired {
            name: "eth0".to_string(),
            network: on.id,
            host_name: format!("nbu1x{number}"),
            mac: Mac([2, 0x16, 0x3e, 0, (number >> 8) as u8, number as u8]),
            address: on.local().map(|local| Ipv4Addr::from_bits(local.subnet.network().to_bits() + host)),
            acl,
        }],
    }
}

pub fn allow() -> AclRule {
    AclRule { id: 1, direction: AclDirection::Both, matches: AclMatch::default(), action: AclAction::Allow }
}

/// `allow|drop|limit <protocol> <prefix or host> [remote ports]`, or `map <protocol> <node port> <app port> [prefix]`.
pub fn app_rule(text: &str) -> AclRule {
    let words: Vec<&str> = text.split(' ').collect();
    let protocol = match words[1] {
        "tcp" => Some(AclProtocol::Tcp),
        "udp" => Some(AclProtocol::Udp),
        "icmp" => Some(AclProtocol::Icmp),
        _ => None,
    };
    let remote = |word: &&str| match word.parse() {
        Ok(prefix) => AclRemote::Prefix(prefix),
        Err(_) => AclRemote::Host(word.to_string()),
    };
    let ports = |word: &&str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        PortRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
    };
    if words[0] == "map" {
        return AclRule {
            id: 2,
            direction: AclDirection::Ingress,
            matches: AclMatch {
                remote: words.get(4).map(remote),
                protocol,
                local_port: Some(ports(&words[2])),
                remote_port: None,
            },
            action: AclAction::PortMap { app_port: words[3].parse().unwrap() },
        };
    }
    let action = match words[0] {
        "allow" => AclAction::Allow,
        "drop" => AclAction::Drop,
        _ => AclAction::Limit { rate: 10, per_s: 1, burst: 7 },
    };
    let matches = AclMatch {
        remote: words.get(2).map(remote),
        protocol,
        local_port: None,
        remote_port: words.get(3).map(ports),
    };
    AclRule { id: 3, direction: AclDirection::Both, matches, action }
}

pub fn intent_of(networks: &[NetworkDesired], apps: &[VifsDesired], ports: &[(&str, &str)]) -> Intent {
    let ports: Vec<PortObserved> = ports
        .iter()
        .map(|(name, address)| PortObserved {
            name: name.to_string(),
            mac: Some(Mac([2, 0, 0, 0, 0, 0xee])),
            is_up: true,
            mtu: 1500,
            addresses: vec![address.parse().unwrap()],
            gateways: vec![],
            dns: vec![],
            search: Vec::new(),
        })
        .collect();
    node_core::net::intent(networks, apps, &ports)
}

/// Leaves root for good, for this thread, keeping only these rights.
fn drop_rights(kept: CapabilitySet) {
    use rustix::thread;
    const SERVICE: u32 = 900_006;
    thread::set_keep_capabilities(true).unwrap();
    let uid = rustix::fs::Uid::from_raw(SERVICE);
    thread::set_thread_res_uid(uid, uid, uid).unwrap();
    let sets =
        thread::CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets).unwrap();
}

/// A node with one uplink `eth0`, 192.0.2.10/24, to a world at 192.0.2.1.
pub struct Node {
    pub node: Namespace,
    pub world: Namespace,
    net: Option<Net>,
}

impl Node {
    pub fn new(name: &str) -> Node {
        let (node, world) =
            (Namespace::new(&format!("{name}-node")), Namespace::new(&format!("{name}-world")));
        node.ip(&format!("link add eth0 type veth peer name eth0 netns {}", world.name));
        for (inside, address) in [(&node, "192.0.2.10/24"), (&world, "192.0.2.1/24")] {
            inside.ip(&format!("addr add {address} dev eth0"));
            inside.ip("link set eth0 up");
            inside.ip("link set lo up");
        }
        node.ip("route add default via 192.0.2.1");
        let mut node = Node { node, world, net: None };
        node.restart();
        node
    }

    /// What a killed process leaves behind meets a new one.
    pub fn restart(&mut self) {
        self.net = None;
        let source = PortSource { dns: vec![Ipv4Addr::new(192, 0, 2, 1)], ..PortSource::default() };
        self.net = Some(self.as_service(|| {
            let mut net = Net::open("/proc/sys/net".as_ref(), source).unwrap();
            net.look().unwrap();
            net
        }));
    }

    /// With the rights the process has by its manifest, and no others.
    fn as_service<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        self.node.run(|| {
            drop_rights(CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE);
            inside()
        })
    }

    fn report(&mut self, networks: &[NetworkDesired], apps: &[VifsDesired]) -> Report {
        let mut net = self.net.take().unwrap();
        let report = self.as_service(|| {
            net.look().unwrap();
            net.apply(networks, apps)
        });
        self.net = Some(net);
        report
    }

    /// One round: its faults.
    pub fn apply(&mut self, networks: &[NetworkDesired], apps: &[VifsDesired]) -> Vec<String> {
        let report = self.report(networks, apps);
        let of_networks = report.networks.values().filter_map(|network| network.fault.as_ref());
        let of_vifs = report.apps.values().flat_map(|app| &app.vifs).filter_map(|vif| vif.fault.as_ref());
        of_networks.chain(of_vifs).map(ToString::to_string).collect()
    }

    /// One round: what it changed.
    pub fn changes(&mut self, networks: &[NetworkDesired], apps: &[VifsDesired]) -> Vec<String> {
        let report = self.report(networks, apps);
        assert!(!report.has_faults(), "{report:?}");
        report.changes
    }

    /// A new namespace for the app, with its interfaces.
    pub fn attach(&mut self, apps: &[VifsDesired], name: &str) -> Namespace {
        let inside = Namespace::new(name);
        self.attach_to(apps, name, &inside);
        inside
    }

    pub fn attach_to(&mut self, apps: &[VifsDesired], name: &str, inside: &Namespace) -> NetReply {
        let (socket, datagrams) = inside.run(|| {
            // Whoever opens it needs no rights: those of the process that speaks count.
            drop_rights(CapabilitySet::empty());
            use rustix::net::{AddressFamily, SocketType};
            (
                rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap(),
                rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap(),
            )
        });
        let app = apps.iter().find(|app| app.name == name).unwrap().app;
        let mut net = self.net.take().unwrap();
        let reply =
            self.as_service(|| net.attach(app, inside.fd().as_fd(), socket, Some(datagrams))).unwrap();
        self.net = Some(net);
        reply
    }

    pub fn metrics(&mut self, link: &str) -> LinkMetrics {
        let mut net = self.net.take().unwrap();
        let all = self.as_service(|| net.metrics()).unwrap();
        self.net = Some(net);
        all.into_iter().find(|metrics| metrics.name == link).unwrap()
    }

    pub fn acl_drops(&mut self, link: &str) -> u64 {
        let metrics = self.metrics(link);
        metrics.rx_acl_drops + metrics.tx_acl_drops
    }

    /// The process around the network, which waits for nothing here.
    pub fn net(&mut self) -> &mut Net {
        self.net.as_mut().unwrap()
    }
}
