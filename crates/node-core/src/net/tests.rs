// SPDX-License-Identifier: Apache-2.0
//! One network of two apps as a golden file, conflicts, and what holds for any set of networks and apps.

use alloc::string::ToString;
use alloc::vec;

use expect_test::{Expect, expect};
use model::config::{
    AclAction, AclDirection, AclMatch, AclProtocol, AclRemote, AclRule, LocalNetwork, NetworkInstanceKind,
    PortRange,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::links::{Frames, LinkKind, LinkSeen, Step, Way, steps};
use super::names::Answer;
use super::*;

fn network(number: u16, subnet: &str, uplinks: &[&str]) -> NetworkDesired {
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

fn local(network: &mut NetworkDesired) -> &mut LocalNetwork {
    match &mut network.kind {
        NetworkInstanceKind::Local(local) => local,
        NetworkInstanceKind::Switch => panic!("a switch"),
    }
}

fn app(number: u16, name: &str, on: &NetworkDesired, host: u32, acl: Vec<AclRule>) -> VifsDesired {
    let address = on.local().map(|local| Ipv4Addr::from_bits(local.subnet.network().to_bits() + host));
    VifsDesired {
        app: AppId(Uuid::from_u128(u128::from(number))),
        name: name.to_string(),
        vifs: vec![VifDesired {
            name: "eth0".to_string(),
            network: on.id,
            host_name: format!("nbu1x{number}"),
            mac: Mac([2, 0x16, 0x3e, 0, (number >> 8) as u8, number as u8]),
            address,
            acl,
        }],
    }
}

fn eth0() -> PortObserved {
    PortObserved {
        name: "eth0".to_string(),
        mac: None,
        is_up: true,
        mtu: 1500,
        addresses: vec!["192.0.2.10/24".parse().unwrap()],
        gateways: vec!["192.0.2.1".parse().unwrap()],
        dns: vec!["192.0.2.53".parse().unwrap()],
        search: Vec::new(),
    }
}

fn rule(id: i32, direction: AclDirection, matches: AclMatch, action: AclAction) -> AclRule {
    AclRule { id, direction, matches, action }
}

fn allow_all() -> AclRule {
    rule(1, AclDirection::Both, AclMatch::default(), AclAction::Allow)
}

fn map(id: i32, node_port: u16, app_port: u16) -> AclRule {
    rule(
        id,
        AclDirection::Ingress,
        AclMatch {
            protocol: Some(AclProtocol::Tcp),
            local_port: Some(PortRange { first: node_port, last: node_port }),
            ..AclMatch::default()
        },
        AclAction::PortMap { app_port },
    )
}

fn to(remote: AclRemote, protocol: AclProtocol, port: u16, action: AclAction) -> AclRule {
    let matches = AclMatch {
        remote: Some(remote),
        protocol: Some(protocol),
        local_port: None,
        remote_port: Some(PortRange { first: port, last: port }),
    };
    rule(9, AclDirection::Egress, matches, action)
}

fn faults(intent: &Intent) -> Vec<String> {
    let networks = intent.networks.values();
    networks
        .chain(intent.apps.values().flatten())
        .filter_map(|s| Some(s.fault.as_ref()?.to_string()))
        .collect()
}

fn check(actual: &str, expected: Expect) {
    expected.assert_eq(actual);
}

#[test]
fn two_apps_of_a_network_become_this_ruleset() {
    let net = network(1, "10.1.0.0/24", &["eth0"]);
    let web = app(1, "web", &net, 2, vec![map(1, 8080, 80), allow_all()]);
    let prefix = AclRemote::Prefix("198.51.100.7/24".parse().unwrap());
    let host = AclRemote::Host("Updates.Example.".to_string());
    let limit = AclAction::Limit { rate: 30, per_s: 90, burst: 5 };
    let db = app(
        2,
        "db",
        &net,
        3,
        vec![
            to(prefix.clone(), AclProtocol::Tcp, 443, AclAction::Drop),
            to(host, AclProtocol::Tcp, 443, AclAction::Allow),
            to(prefix, AclProtocol::Udp, 123, limit),
        ],
    );
    let intent = intent(&[net], &[web, db], &[eth0()]);
    assert_eq!(faults(&intent), Vec::<String>::new());
    check(
        &intent.ruleset.to_string(),
        expect![[r#"
            table inet selvedge {
            	counter drops-in-nbu1x1 {
            	}
            	counter drops-in-nbu1x2 {
            	}
            	counter drops-out-nbu1x1 {
            	}
            	counter drops-out-nbu1x2 {
            	}
            	counter rate-in-nbu1x1 {
            	}
            	counter rate-in-nbu1x2 {
            	}
            	counter rate-out-nbu1x1 {
            	}
            	counter rate-out-nbu1x2 {
            	}
            	set host-1-ad2e6895a74d9e05 {
            		type ipv4_addr
            		size 1024
            		flags timeout
            	}
            	chain answers {
            		ct mark != 0x00000000 ct mark & 0x0000ffff { 0x00000000, 0x00003d9b, 0x00008e49, 0x0000d1b5 } ct mark & 0xffff0000 { 0x00000000, 0x8e490000, 0xcaa80000 } accept
            		drop
            	}
            	chain forward {
            		type filter hook forward priority 0; policy accept;
            		iifname "bn1" jump from-app
            		oifname "bn1" jump to-app
            	}
            	chain from-app {
            		ct state related accept
            		ct state established ct direction reply goto answers
            		ip daddr 169.254.0.0/16 drop
            		iifname "bn1" oifname != { "bn1", "eth0" } ct status ! dnat drop
            		ip saddr vmap { 10.1.0.2 : goto out-nbu1x1, 10.1.0.3 : goto out-nbu1x2 }
            		drop
            	}
            	chain from-app-to-node {
            		ct state related accept
            		ct state established ct direction reply accept
            		iifname "bn1" meta l4proto udp th sport 68 th dport 67 accept
            		iifname "bn1" ip daddr 10.1.0.1 meta l4proto udp th dport 53 accept
            		iifname "bn1" ip daddr 10.1.0.1 meta l4proto tcp th dport 53 accept
            		iifname "bn1" ip daddr 10.1.0.1 icmp type echo-request accept
            		drop
            	}
            	chain in-nbu1x1 {
            		ct status dnat meta l4proto tcp ct original proto-dst 8080 th dport 80 ct mark set ct mark & 0x0000ffff ^ 0xcaa80000 return
            		ct mark set ct mark & 0x0000ffff ^ 0x8e490000 return
            		counter name "drops-in-nbu1x1" drop
            	}
            	chain in-nbu1x2 {
            		counter name "drops-in-nbu1x2" drop
            	}
            	chain input {
            		type filter hook input priority 0; policy accept;
            		iifname "bn1" goto from-app-to-node
            		iifname != "lo" ip daddr { 10.1.0.1 } drop
            	}
            	chain out-nbu1x1 {
            		ct mark set ct mark & 0xffff0000 ^ 0x00008e49 return
            		counter name "drops-out-nbu1x1" drop
            	}
            	chain out-nbu1x2 {
            		ct original ip daddr 198.51.100.0/24 meta l4proto tcp ct original proto-dst 443 counter name "drops-out-nbu1x2" drop
            		ct original ip daddr @host-1-ad2e6895a74d9e05 meta l4proto tcp ct original proto-dst 443 ct mark set ct mark & 0xffff0000 ^ 0x0000d1b5 return
            		ct original ip daddr 198.51.100.0/24 meta l4proto udp ct original proto-dst 123 limit rate 20/minute burst 5 packets ct mark set ct mark & 0xffff0000 ^ 0x00003d9b return
            		ct original ip daddr 198.51.100.0/24 meta l4proto udp ct original proto-dst 123 counter name "rate-out-nbu1x2" drop
            		counter name "drops-out-nbu1x2" drop
            	}
            	chain output {
            		type nat hook output priority -100; policy accept;
            		jump port-maps
            	}
            	chain port-maps {
            		ip daddr { 192.0.2.10 } meta l4proto tcp th dport 8080 dnat ip to 10.1.0.2:80
            	}
            	chain postrouting {
            		type nat hook postrouting priority 100; policy accept;
            		ip saddr 10.1.0.0/24 oifname "eth0" masquerade
            	}
            	chain prerouting {
            		type nat hook prerouting priority -100; policy accept;
            		jump port-maps
            	}
            	chain to-app {
            		ct state related accept
            		ct state established ct direction reply goto answers
            		iifname != "bn1" ct status ! dnat drop
            		ip daddr vmap { 10.1.0.2 : goto in-nbu1x1, 10.1.0.3 : goto in-nbu1x2 }
            		drop
            	}
            }
            table bridge selvedge {
            	chain only-nbu1x1 {
            		ether saddr != 02:16:3e:00:00:01 drop
            		meta protocol ip ip saddr 10.1.0.2 accept
            		meta protocol ip ip saddr 0.0.0.0 ip protocol udp th sport 68 th dport 67 @th,288,48 0x02163e000001 limit rate 10/second burst 20 packets accept
            		meta protocol arp arp htype 1 arp ptype ip arp saddr ether 02:16:3e:00:00:01 arp saddr ip 10.1.0.2 accept
            		drop
            	}
            	chain only-nbu1x2 {
            		ether saddr != 02:16:3e:00:00:02 drop
            		meta protocol ip ip saddr 10.1.0.3 accept
            		meta protocol ip ip saddr 0.0.0.0 ip protocol udp th sport 68 th dport 67 @th,288,48 0x02163e000002 limit rate 10/second burst 20 packets accept
            		meta protocol arp arp htype 1 arp ptype ip arp saddr ether 02:16:3e:00:00:02 arp saddr ip 10.1.0.3 accept
            		drop
            	}
            	chain postrouting {
            		type filter hook postrouting priority 0; policy accept;
            		oifname "nbu1x1" ip protocol udp th sport 67 th dport 68 @th,288,48 != 0x02163e000001 drop
            		oifname "nbu1x2" ip protocol udp th sport 67 th dport 68 @th,288,48 != 0x02163e000002 drop
            	}
            	chain prerouting {
            		type filter hook prerouting priority -300; policy accept;
            		iifname vmap { "nbu1x1" : goto only-nbu1x1, "nbu1x2" : goto only-nbu1x2 }
            	}
            }
        "#]],
    );
}

#[test]
fn without_networks_there_are_no_rules_but_that_the_node_is_no_router() {
    assert_eq!(intent(&[], &[], &[eth0()]).ruleset, Ruleset::default());
    let eth1 = PortObserved { name: "eth1".to_string(), ..eth0() };
    let text = intent(&[], &[], &[eth0(), eth1]).ruleset.to_string();
    check(
        &text,
        expect![[r#"
        table inet selvedge {
        	chain forward {
        		type filter hook forward priority 0; policy accept;
        		iifname { "eth0", "eth1" } oifname { "eth0", "eth1" } ct status ! dnat drop
        	}
        }
    "#]],
    );
}

#[test]
fn conflicts_are_faults_and_strike_the_later_object_only() {
    let one = network(1, "10.1.0.0/24", &["eth0"]);
    let two = network(2, "10.1.0.128/25", &["eth0"]);
    let three = network(3, "192.0.2.64/26", &[]);
    let four = NetworkDesired { number: 1, ..network(4, "10.4.0.0/24", &[]) };
    let five = network(5, "10.5.0.0/24", &["eth0"]);
    let mut six = network(6, "10.6.0.0/24", &["eth0"]);
    local(&mut six).gateway = "10.7.0.1".parse().unwrap();
    let apps = [
        app(1, "a", &one, 2, vec![map(1, 80, 80)]),
        app(2, "b", &one, 2, vec![]),
        app(3, "c", &one, 1, vec![]),
        app(4, "d", &one, 255, vec![]),
        app(5, "e", &five, 2, vec![map(1, 80, 80)]),
        app(6, "f", &two, 130, vec![]),
        app(7, "g", &five, 7, vec![map(1, 81, 80), map(2, 81, 81)]),
        VifsDesired { app: AppId(Uuid::from_u128(8)), ..app(1, "h", &five, 8, vec![]) },
        app(
            9,
            "i",
            &five,
            9,
            vec![rule(3, AclDirection::Ingress, AclMatch::default(), AclAction::PortMap { app_port: 1 })],
        ),
    ];
    let all = intent(&[one, two, three, four, five, six], &apps, &[eth0()]);
    assert_eq!(all.bridges.keys().collect::<Vec<_>>(), ["bn1", "bn5"]);
    assert_eq!(all.vifs.keys().collect::<Vec<_>>(), ["nbu1x1"]);
    check(
        &faults(&all).join("\n"),
        expect![[r#"
        AddressConflict: network instance net2 overlaps with network instance net1
        AddressConflict: network instance net3 overlaps with the network 192.0.2.10/24 of port eth0
        AddressConflict: network instance net4 overlaps with network instance net1 in its number
        InvalidConfig: network instance net6 has a gateway that is no host of its subnet
        AddressConflict: nbu1x2 has the address 10.1.0.2 of nbu1x1
        AddressConflict: nbu1x3 has the address 10.1.0.1 of its gateway
        InvalidConfig: nbu1x4 has the address 10.1.0.255 outside of 10.1.0.0/24
        AddressConflict: nbu1x5 maps port 80 which nbu1x1 maps already
        NetworkFailed: network instance 00000000-0000-0000-0000-000000000002 of nbu1x6 does not stand
        AddressConflict: nbu1x7 maps port 81 to two ports of its own
        AddressConflict: nbu1x1 is there twice
        InvalidConfig: nbu1x9 port map 3 names neither tcp nor udp"#]],
    );
}

#[test]
fn names_are_answered_for_apps_of_the_same_network_only() {
    let mut one = network(1, "10.1.0.0/24", &["eth0"]);
    local(&mut one).static_names = vec![("Printer.Local".to_string(), vec!["10.9.9.9".parse().unwrap()])];
    let gateway = local(&mut one).gateway;
    local(&mut one).dns = vec![gateway, "203.0.113.53".parse().unwrap()];
    let two = network(2, "10.2.0.0/24", &["eth0"]);
    let host = to(AclRemote::Host("example.org".into()), AclProtocol::Tcp, 1, AclAction::Allow);
    let apps = [app(1, "Web", &one, 2, vec![host]), app(2, "db", &two, 2, vec![])];
    let all = intent(&[one, two], &apps, &[eth0()]);
    let zone = &all.zones["bn1"];
    let here = BTreeSet::from(["10.1.0.2".parse::<Ipv4Addr>().unwrap()]);
    assert_eq!(zone.lookup("web"), Answer::Here(&here));
    assert_eq!(zone.lookup("web.net1"), Answer::Here(&here));
    assert!(matches!(zone.lookup("printer.local"), Answer::Here(_)));
    assert_eq!(zone.lookup("db"), Answer::Nowhere);
    assert_eq!(zone.lookup("db.net2"), Answer::Elsewhere);
    assert_eq!(zone.servers, ["203.0.113.53", "192.0.2.53"].map(|s| s.parse::<Ipv4Addr>().unwrap()));
    assert_eq!(zone.learners("a.b.example.org").len(), 1);
    assert_eq!(zone.learners("example.org").len(), 1);
    assert_eq!(zone.learners("badexample.org").len(), 0);
    assert_eq!(all.zones["bn2"].servers, ["192.0.2.53".parse::<Ipv4Addr>().unwrap()]);
}

#[test]
fn access_rules_know_the_names_the_node_answers_itself() {
    let mut net = network(1, "10.1.0.0/24", &["eth0"]);
    local(&mut net).static_names = vec![("printer.office".to_string(), vec!["10.9.9.9".parse().unwrap()])];
    let rule = |name: &str| to(AclRemote::Host(name.into()), AclProtocol::Tcp, 80, AclAction::Allow);
    let client = app(1, "client", &net, 2, vec![rule("Web"), rule("office"), rule("eb")]);
    let web = app(2, "web", &net, 7, vec![]);
    let intent = intent(&[net], &[client, web], &[eth0()]);
    let out = intent.ruleset.tables[&rules::Family::Inet].chains["out-nbu1x1"].rules.iter();
    let known: Vec<String> = out
        .map(ToString::to_string)
        .filter(|rule| !rule.contains("@host") && rule.contains("daddr"))
        .collect();
    let [web, printer] = &known[..] else { panic!("{known:?}") };
    assert!(web.contains("10.1.0.7") && printer.contains("10.9.9.9"), "{known:?}");
}

fn seen(kind: LinkKind, bridge: Option<&str>) -> LinkSeen {
    LinkSeen {
        kind,
        is_ours: true,
        is_up: true,
        mac: None,
        bridge: bridge.map(Into::into),
        is_isolated: true,
        judges_passing: false,
        is_listening: false,
        peer: None,
        mtu: 1500,
        addresses: vec![],
        neighbours: BTreeMap::new(),
    }
}

#[test]
fn links_go_ports_first_and_foreign_ones_stay() {
    let net = network(1, "10.1.0.0/24", &["eth0"]);
    let all = intent(core::slice::from_ref(&net), &[app(1, "web", &net, 2, vec![])], &[eth0()]);
    let foreign = LinkSeen { is_ours: false, ..seen(LinkKind::Bridge, None) };
    let loose = LinkSeen { is_isolated: false, is_up: false, ..seen(LinkKind::Veth, None) };
    let now = BTreeMap::from([
        ("bn7".to_string(), seen(LinkKind::Bridge, None)),
        ("docker0".to_string(), foreign),
        ("nbu1x1".to_string(), loose),
        ("nbu1x9".to_string(), seen(LinkKind::Veth, Some("bn7"))),
    ]);
    let todo = steps(&all, &now);
    check(
        &todo.iter().map(|step| format!("{step:?}\n")).collect::<String>(),
        expect![[r#"
            Delete { link: "nbu1x9" }
            Delete { link: "bn7" }
            AddBridge { link: "bn1", mac: 02:53:45:4c:00:01, judges_passing: false }
            AddAddress { link: "bn1", address: 10.1.0.1/24 }
            SetUp { link: "bn1" }
            AddNeighbour { link: "bn1", address: 10.1.0.2, mac: 02:16:3e:00:00:01 }
            Join { link: "nbu1x1", bridge: "bn1", way: Isolated }
            SetUp { link: "nbu1x1" }
        "#]],
    );
}

/// What the kernel would show after the steps.
fn perform(seen: &mut BTreeMap<String, LinkSeen>, steps: Vec<Step>) {
    for step in steps {
        let mut at = |link: &String, change: &dyn Fn(&mut LinkSeen)| change(seen.get_mut(link).unwrap());
        match step {
            Step::Delete { link } => {
                let gone = seen.remove(&link).and_then(|link| link.peer);
                gone.and_then(|peer| seen.remove(&peer));
            }
            Step::AddBridge { link, mac, judges_passing } => {
                let fresh = self::seen(LinkKind::Bridge, None);
                seen.insert(link, LinkSeen { mac: Some(mac), is_up: false, judges_passing, ..fresh });
            }
            Step::AddPatch { link, outer } => {
                for (one, other) in [(&link, &outer), (&outer, &link)] {
                    let fresh = self::seen(LinkKind::Veth, None);
                    let fresh =
                        LinkSeen { is_up: false, is_isolated: false, peer: Some(other.clone()), ..fresh };
                    seen.insert(one.clone(), fresh);
                }
            }
            Step::SetMtu { link, mtu } => at(&link, &|l| l.mtu = mtu.into()),
            Step::AddNeighbour { link, address, mac } => at(&link, &|l| {
                l.neighbours.insert(address, mac);
            }),
            Step::RemoveNeighbour { link, address } => at(&link, &|l| {
                l.neighbours.remove(&address);
            }),
            Step::Listen { link, to } => at(&link, &|l| l.is_listening = to == Frames::All),
            Step::AddAddress { link, address } => at(&link, &|l| l.addresses.push(address)),
            Step::RemoveAddress { link, address } => at(&link, &|l| l.addresses.retain(|a| *a != address)),
            Step::SetMac { link, mac } => at(&link, &|l| l.mac = Some(mac)),
            Step::Join { link, bridge, way } => at(&link, &|l| {
                l.bridge = Some(bridge.clone());
                l.is_isolated = way == Way::Isolated;
            }),
            Step::SetUp { link } => at(&link, &|l| l.is_up = true),
        }
    }
}

prop_compose! {
    fn any_rule()(kind in 0..5_u8, port in 1..200_u16, app_port in 1..3_u16, third in 0..4_u8) -> AclRule {
        let prefix = AclRemote::Prefix(Prefix4 { address: Ipv4Addr::new(203, 0, 113, third), length: 32 });
        match kind {
            0 => map(1, port, app_port),
            1 => to(prefix, AclProtocol::Udp, port, AclAction::Allow),
            2 => to(prefix, AclProtocol::Tcp, port, AclAction::Drop),
            3 => to(AclRemote::Host(format!("h{third}.example")), AclProtocol::Tcp, port, AclAction::Allow),
            _ => allow_all(),
        }
    }
}

prop_compose! {
    fn any_world()(
        networks in prop::collection::vec((1..6_u16, 0..6_u8, any::<bool>()), 0..5),
        apps in prop::collection::vec((1..12_u16, 0..5_usize, 0..12_u32, prop::collection::vec(any_rule(), 0..4)), 0..10),
    ) -> (Vec<NetworkDesired>, Vec<VifsDesired>) {
        let mut made = BTreeMap::new();
        for (number, subnet, has_uplink) in networks {
            let uplinks: &[&str] = if has_uplink { &["eth0"] } else { &[] };
            made.insert(number, network(number, &format!("10.{subnet}.0.0/28"), uplinks));
        }
        let networks: Vec<_> = made.into_values().collect();
        let mut made = BTreeMap::new();
        for (number, on, host, acl) in apps {
            if let Some(net) = networks.get(on) {
                made.insert(number, app(number, &format!("app{number}"), net, host, acl));
            }
        }
        (networks, made.into_values().collect())
    }
}

proptest! {
    #[test]
    fn order_of_inputs_does_not_matter((mut networks, mut apps) in any_world()) {
        let one = intent(&networks, &apps, &[eth0()]);
        networks.reverse();
        apps.reverse();
        prop_assert_eq!(one, intent(&networks, &apps, &[eth0()]));
    }

    #[test]
    fn every_object_stands_or_says_why((networks, apps) in any_world()) {
        let all = intent(&networks, &apps, &[eth0()]);
        for network in &networks {
            let standing = &all.networks[&network.id];
            prop_assert_ne!(all.zones.contains_key(&standing.link), standing.fault.is_some()
                && !all.networks.values().any(|other| other.link == standing.link && other.fault.is_none()));
        }
        for standing in all.apps.values().flatten() {
            prop_assert_ne!(all.vifs.contains_key(&standing.link), standing.fault.is_some());
        }
    }

    #[test]
    fn chains_of_an_app_name_no_other_app((networks, apps) in any_world()) {
        let all = intent(&networks, &apps, &[eth0()]);
        for (link, vif) in &all.vifs {
            for (family, prefix) in [(rules::Family::Inet, "out"), (rules::Family::Inet, "in"), (rules::Family::Bridge, "only")] {
                let text = all.ruleset.tables[&family].chains[&format!("{prefix}-{link}")].rules.iter()
                    .map(|rule| format!("{rule}\n")).collect::<String>();
                for (other, other_vif) in all.vifs.iter().filter(|(other, _)| *other != link) {
                    let named = |word: &str| text.split([' ', '\n', '"', ',', ':']).any(|w| w == word);
                    let address = other_vif.address().unwrap();
                    prop_assert!(!named(&address.to_string()), "{} names {}", link, address);
                    prop_assert!(!named(&other_vif.mac.to_string()));
                    let counted = format!("-{other}\"");
                    prop_assert!(!named(other) && !text.contains(&counted));
                }
                prop_assert!(text.ends_with("drop\n"), "{}", text);
            }
            let Addressing::Routed { address, gateway, .. } = vif.addressing else { panic!("not routed") };
            prop_assert_ne!(address, gateway);
        }
    }

    #[test]
    fn every_chain_and_counter_that_is_named_exists((networks, apps) in any_world()) {
        let all = intent(&networks, &apps, &[eth0()]);
        for table in all.ruleset.tables.values() {
            for rule in table.chains.values().flat_map(|chain| &chain.rules) {
                let targets: Vec<&String> = match &rule.verdict {
                    rules::Verdict::Jump(chain) | rules::Verdict::Goto(chain) => vec![chain],
                    rules::Verdict::Dispatch(dispatch) => match dispatch {
                        rules::Dispatch::InLink(map) | rules::Dispatch::OutLink(map) => map.values().collect(),
                        rules::Dispatch::Source(map) | rules::Dispatch::Destination(map) => map.values().collect(),
                        rules::Dispatch::FrameSource(map) | rules::Dispatch::FrameDestination(map) => {
                            map.values().collect()
                        }
                    },
                    _ => vec![],
                };
                for target in targets {
                    prop_assert!(table.chains.contains_key(target));
                }
                prop_assert!(rule.counter.iter().all(|counter| table.counters.contains(counter)));
                for condition in &rule.matches {
                    if let rules::Match::SourceInHostSet(set) | rules::Match::AskedDestinationInHostSet(set) = condition {
                        prop_assert!(table.host_sets.contains(set));
                    }
                }
            }
        }
    }

    #[test]
    fn steps_reach_the_intent_and_then_there_are_none((networks, apps) in any_world(), (old_networks, old_apps) in any_world()) {
        let mut seen = BTreeMap::new();
        for (networks, apps) in [(&old_networks, &old_apps), (&networks, &apps)] {
            let all = intent(networks, apps, &[eth0()]);
            let todo = steps(&all, &seen);
            perform(&mut seen, todo);
            // The apps attach.
            for (link, vif) in &all.vifs {
                seen.insert(link.clone(), self::seen(LinkKind::Veth, Some(&vif.bridge)));
            }
            prop_assert_eq!(steps(&all, &seen), vec![]);
            prop_assert!(seen.keys().all(|link| all.bridges.contains_key(link) || all.vifs.contains_key(link)));
        }
    }
}
