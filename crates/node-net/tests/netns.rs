// SPDX-License-Identifier: Apache-2.0
//! App networks with real traffic between namespaces: a node, the world behind its uplink, and apps that attach as a
//! shim would have them attach.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::desired::{NetworkDesired, VifsDesired};
use world::traffic::{lookup, ping, serve_tcp, serve_udp, tcp, udp};
use world::{Node, allow, app, app_rule, network, nft};

const WORLD: &str = "192.0.2.1";
const UPLINK: &str = "192.0.2.10";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two apps of one network and one of another; `web` is mapped, `db` may only reach part of the world.
fn orders() -> (Vec<NetworkDesired>, Vec<VifsDesired>) {
    let (one, two) = (network(1, "10.1.0.0/24", &["eth0"]), network(2, "10.2.0.0/24", &["eth0"]));
    let apps = vec![
        app(1, "web", &one, 2, vec![app_rule("map tcp 8080 80"), allow()]),
        app(
            2,
            "db",
            &one,
            3,
            vec![
                app_rule("drop tcp 192.0.2.1/32 7002"),
                app_rule("allow tcp 192.0.2.0/24"),
                app_rule("allow tcp named.example 7100"),
                app_rule("map udp 5000 5001"),
            ],
        ),
        app(3, "far", &two, 2, vec![allow()]),
    ];
    (vec![one, two], apps)
}

#[test]
#[ignore = "needs root"]
fn apps_reach_what_they_may_and_nothing_else() {
    let (networks, apps) = orders();
    let mut node = Node::new("reach");
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new(), "faults");
    let [web, db, far] = ["web", "db", "far"].map(|name| node.attach(&apps, name));
    let world = &node.world;
    for port in [7001, 7002, 7100] {
        serve_tcp(world, port);
    }
    serve_tcp(&node.node, 7003);
    serve_udp(&node.node, 7004);
    for inside in [&web, &db, &far] {
        serve_tcp(inside, 80);
        serve_tcp(inside, 81);
        serve_udp(inside, 5001);
    }

    // Out, behind the node's address.
    assert_eq!(tcp(&web, WORLD, 7001), Some(UPLINK.parse().unwrap()));
    assert!(ping(&web, WORLD));
    // In, by port map only; the app sees who asks.
    assert_eq!(tcp(world, UPLINK, 8080), Some(WORLD.parse().unwrap()));
    assert!(udp(world, UPLINK, 5000));
    assert_eq!(tcp(world, UPLINK, 81), None);
    world.ip(&format!("route add 10.1.0.0/24 via {UPLINK}"));
    assert_eq!(tcp(world, "10.1.0.2", 80), None, "not around the port map");
    assert!(!ping(world, "10.1.0.1") || tcp(world, "10.1.0.1", 53).is_none(), "gateways are for apps");
    // Rules in order: a denied port, an allowed net, nothing else.
    assert_eq!(tcp(&db, WORLD, 7002), None);
    assert!(tcp(&db, WORLD, 7001).is_some());
    assert!(!ping(&db, WORLD));
    assert!(node.acl_drops("nbu1x2") > 0);
    // Neighbours: web may send, db must let in.
    assert_eq!(tcp(&web, "10.1.0.3", 80), None);
    assert_eq!(tcp(&db, "10.1.0.2", 80), None);
    // Another network: only as the world reaches it.
    assert_eq!(tcp(&web, "10.2.0.2", 80), None);
    assert_eq!(tcp(&far, "10.1.0.2", 80), None);
    assert_eq!(tcp(&far, UPLINK, 8080), Some("10.2.0.2".parse().unwrap()));
    // The node itself, through its own port map.
    assert!(tcp(&node.node, UPLINK, 8080).is_some());
    // The node's services.
    for (to, port) in [(UPLINK, 7003), ("10.1.0.1", 7003), ("10.2.0.1", 53), ("169.254.1.1", 80)] {
        assert_eq!(tcp(&web, to, port), None, "{to}:{port}");
    }
    assert!(!udp(&web, UPLINK, 7004) && !udp(&web, "10.1.0.1", 7004));
    assert!(ping(&web, "10.1.0.1") && !ping(&web, UPLINK) && !ping(&web, "10.2.0.1"));
    // IPv6 does not exist for apps.
    assert!(!web.ip("-6 addr show dev eth0").contains("dadfailed"));
    assert!(!node.node.ip("-6 addr show dev bn1").contains("fe80"));

    // Neighbours who both agree.
    let mut apps = apps;
    apps[1].vifs[0].acl.push(app_rule("allow tcp 10.1.0.0/24"));
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    assert_eq!(tcp(&web, "10.1.0.3", 80), Some("10.1.0.2".parse().unwrap()));
    assert!(!ping(&web, "10.1.0.3"), "db agrees to tcp");
}

#[test]
#[ignore = "needs root"]
fn an_app_cannot_be_another() {
    let (networks, mut apps) = orders();
    apps[1].vifs[0].acl = vec![allow()];
    let mut node = Node::new("spoof");
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    let [web, db] = ["web", "db"].map(|name| node.attach(&apps, name));
    let heard = world::traffic::listen_udp(&node.world, 7005);
    let send = |from: &str| world::traffic::send_udp_from(&web, from, WORLD, 7005);
    let where_is_db = |node: &Node| node.node.ip("neigh show 10.1.0.3");
    assert!(ping(&db, WORLD));
    assert!(where_is_db(&node).contains("02:16:3e:00:00:02"));
    send("10.1.0.2");
    assert!(heard(), "as itself");

    // Under a neighbour's address, and under one nobody has: neither packets nor ARP get through.
    for stolen in ["10.1.0.3", "10.1.0.77"] {
        web.ip(&format!("addr add {stolen}/32 dev eth0"));
        web.ip("neigh flush dev eth0");
        send(stolen);
        assert!(!heard(), "packets of {stolen}");
        send("10.1.0.2");
        assert!(heard(), "its own still works");
        send(stolen);
        assert!(!heard(), "packets of {stolen}, the way being known");
    }
    assert!(where_is_db(&node).contains("02:16:3e:00:00:02"), "{}", where_is_db(&node));
    assert!(!node.node.ip("neigh show 10.1.0.77").contains("lladdr"));
    // Under another MAC.
    web.ip("link set eth0 address 02:16:3e:00:00:02");
    web.ip("neigh flush dev eth0");
    send("10.1.0.2");
    assert!(!heard(), "frames of another MAC");
}

#[test]
#[ignore = "needs root"]
fn names_are_answered_and_rules_on_names_hold() {
    let (mut networks, apps) = orders();
    world::local(&mut networks[0]).static_names =
        vec![("printer.local".to_string(), vec!["10.9.9.9".parse().unwrap()])];
    let mut node = Node::new("names");
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    let [web, db, far] = ["web", "db", "far"].map(|name| node.attach(&apps, name));
    serve_tcp(&node.world, 7100);
    world::traffic::serve_dns(
        &node.world,
        &[("named.example", "203.0.113.9"), ("big.example", "203.0.113.10")],
    );
    node.world.ip("addr add 203.0.113.9/32 dev lo");

    let all = |text: &[&str]| Some(text.iter().map(|a| a.parse().unwrap()).collect::<Vec<Ipv4Addr>>());
    assert_eq!(lookup(&web, "10.1.0.1", "db"), all(&["10.1.0.3"]));
    assert_eq!(lookup(&web, "10.1.0.1", "DB.net1"), all(&["10.1.0.3"]));
    assert_eq!(lookup(&web, "10.1.0.1", "printer.local"), all(&["10.9.9.9"]));
    assert_eq!(lookup(&web, "10.1.0.1", "far"), all(&[]), "of another network");
    assert_eq!(lookup(&far, "10.2.0.1", "far"), all(&["10.2.0.2"]));
    assert_eq!(lookup(&web, "10.2.0.1", "far"), None, "of another network's server");
    assert_eq!(lookup(&node.world, "10.1.0.1", "web"), None, "of the world");

    // The world's names; and what a rule says of a name holds once the app asked for it.
    assert_eq!(tcp(&db, "203.0.113.9", 7100), None);
    assert_eq!(lookup(&db, "10.1.0.1", "named.example"), all(&["203.0.113.9"]));
    assert!(tcp(&db, "203.0.113.9", 7100).is_some());
    assert_eq!(world::traffic::lookup_tcp(&web, "10.1.0.1", "big.example"), all(&["203.0.113.10"]));
    assert_eq!(world::traffic::lookup_tcp(&web, "10.1.0.1", "web"), all(&["10.1.0.2"]));
    // Servers that are silent, absent or cannot answer are passed over; the last refusal is better than nothing.
    for text in ["192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        node.world.ip(&format!("addr add {text}/32 dev lo"));
    }
    let _silent = node.world.run(|| std::net::UdpSocket::bind("192.0.2.2:53").unwrap());
    world::traffic::refuse_dns(&node.world, "192.0.2.4:53");
    let servers = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<Ipv4Addr>>();
    world::local(&mut networks[0]).dns = servers(&["192.0.2.2", "192.0.2.3", "192.0.2.4", WORLD]);
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    let asked = Instant::now();
    assert_eq!(world::traffic::lookup_patiently(&web, "10.1.0.1", "named.example"), all(&["203.0.113.9"]));
    assert!(asked.elapsed() > Duration::from_millis(1400), "the silent one was not asked");
    world::local(&mut networks[0]).dns = servers(&["192.0.2.4"]);
    networks[0].uplinks.clear();
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    assert_eq!(
        lookup(&web, "10.1.0.1", "named.example"),
        all(&[]),
        "an answer at once, though it is a refusal"
    );
    let (mut networks, _) = orders();
    world::local(&mut networks[0]).static_names =
        vec![("printer.local".to_string(), vec!["10.9.9.9".parse().unwrap()])];
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    // Learned addresses survive a change of the rules and a restart.
    node.restart();
    let mut apps = apps;
    apps[0].vifs[0].acl.pop();
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    assert!(tcp(&db, "203.0.113.9", 7100).is_some());
}

#[test]
#[ignore = "needs root"]
fn a_restart_is_not_noticed_and_the_end_leaves_nothing() {
    let (networks, apps) = orders();
    let mut node = Node::new("stays");
    let before = (node.node.ip("-o link"), nft(&node.node, &["list", "ruleset"], ""));
    assert_eq!(node.apply(&networks, &apps), Vec::<String>::new());
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new(), "a second round changes nothing");
    let [web, db, _far] = ["web", "db", "far"].map(|name| node.attach(&apps, name));
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new(), "nor one after apps attached");
    let _again = node.attach_to(&apps, "web", &web);
    assert_eq!(node.changes(&networks, &apps), Vec::<String>::new());
    serve_tcp(&web, 80);
    serve_tcp(&node.world, 7001);

    // A long flow in, a long flow out, and new connections all the time.
    let over = Arc::new(AtomicBool::new(false));
    let (probes, lost) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let flows = [
        world::traffic::flow(&node.world, UPLINK, 8080, &over),
        world::traffic::flow(&db, WORLD, 7001, &over),
    ];
    let prober = {
        let (over, probes, lost) = (over.clone(), probes.clone(), lost.clone());
        node.world.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let started = Instant::now();
                probes.fetch_add(1, Ordering::SeqCst);
                if world::traffic::connect(address(UPLINK), 8080).is_none() {
                    lost.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(100).saturating_sub(started.elapsed()));
            }
        })
    };
    for round in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        node.restart();
        assert_eq!(node.changes(&networks, &apps), Vec::<String>::new(), "adopted");
        // And rules that really change, under load.
        let mut other = apps.clone();
        other[1].vifs[0].acl.push(app_rule(&format!("allow tcp 198.51.100.{round}/32")));
        assert_eq!(node.changes(&networks, &other), ["rules replaced"]);
        assert_eq!(node.changes(&networks, &apps), ["rules replaced"]);
    }
    over.store(true, Ordering::SeqCst);
    prober.join().unwrap();
    for flow in flows {
        let (exchanges, longest) = flow.join().unwrap();
        assert!(exchanges > 50, "{exchanges}");
        assert!(longest < Duration::from_millis(500), "{longest:?}");
    }
    assert!(probes.load(Ordering::SeqCst) >= 10);
    assert_eq!(lost.load(Ordering::SeqCst), 0, "of {}", probes.load(Ordering::SeqCst));

    // A rule taken away ends the flow it allowed, and only that.
    let mut fewer = apps.clone();
    fewer[1].vifs[0].acl.clear();
    let standing = world::traffic::hold(&db, WORLD, 7001);
    let other = world::traffic::hold(&web, WORLD, 7001);
    assert!(standing.works() && other.works());
    node.changes(&networks, &fewer);
    assert!(!standing.works());
    assert!(other.works());

    // An app that starts anew, one that goes, and all of it.
    drop(web);
    let web = node.attach(&apps, "web");
    node.changes(&networks, &apps);
    assert!(tcp(&web, WORLD, 7001).is_some());
    node.changes(&networks, &apps[1..]);
    assert_eq!(tcp(&web, WORLD, 7001), None);
    assert!(!node.node.ip("-o link").contains("nbu1x1"));
    node.changes(&[], &[]);
    let after = (node.node.ip("-o link"), nft(&node.node, &["list", "ruleset"], ""));
    assert_eq!(after, before);
    assert_eq!(node.changes(&[], &[]), Vec::<String>::new());
}
