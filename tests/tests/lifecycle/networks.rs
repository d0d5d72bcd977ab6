// SPDX-License-Identifier: Apache-2.0
//! Who reaches whom: names, access lists, port maps, and the walls between networks and around the node.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use tests::lab::Lab;
use tests::progress::step;
use tests::toolbox;

use super::{SOON, answer, app, apply, network, on_device, sh, toolbox_lab, wait_answer};

/// What a web server says, or why there is no answer. Not by wget: that of a static busybox breaks down.
fn fetch(lab: &Lab, from: u16, url: &str) -> String {
    let (host, path) = url.split_once('/').unwrap();
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    let address = match name.parse::<Ipv4Addr>() {
        Ok(address) => address.to_string(),
        Err(_) => match look_up(lab, from, name) {
            Some(address) => address,
            None => return "bad address".into(),
        },
    };
    let said =
        sh(lab, from, &format!("printf 'GET /{path} HTTP/1.0\\r\\n\\r\\n' | nc -w 1 {address} {port}"));
    said.split_once("\r\n\r\n").map_or(said.clone(), |(_, body)| body.to_owned())
}

/// Address of a name as an app learns it.
fn look_up(lab: &Lab, from: u16, name: &str) -> Option<String> {
    let said = sh(lab, from, &format!("nslookup {name}"));
    let (_, answer) = said.split_once("Name:")?;
    Some(answer.lines().find_map(|line| line.strip_prefix("Address: "))?.to_owned())
}

/// Asks all at once that all these are out of reach: by silence, refusal or no name. Silence takes its time.
fn all_shut(lab: &Lab, asked: &[(u16, &str)]) {
    std::thread::scope(|scope| {
        for (from, url) in asked {
            scope.spawn(move || {
                let said = fetch(lab, *from, url);
                let is_shut = ["timed out", "unreachable", "refused", "bad address"]
                    .iter()
                    .any(|why| said.contains(why));
                assert!(is_shut, "the app of port {from} reaches {url}: {said}");
            });
        }
    });
}

fn address(lab: &Lab, app: &str) -> String {
    on_device(lab, app)["addresses"][0].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs root"]
fn apps_reach_what_they_may_and_nothing_else() {
    let mut lab = toolbox_lab("networks", 36);
    let deny_client = "acl:\n  - {action: deny, direction: in, remote: 10.60.0.50}\n  - {action: allow}";
    let only_dns_name =
        "acl:\n  - {action: allow, direction: out, remote: server}\n  - {action: allow, direction: in}";
    let fixed = app("client", "box:1", "apps", 8080, "")
        .replace("{network: apps}", "{network: apps, address: 10.60.0.50}");
    let text = network("apps", "10.60.0.0/24")
        .replace("kind: local", "kind: local\n  hosts: {told: [192.0.2.7]}")
        + &network("others", "10.61.0.0/24")
        + &fixed
        + &app("server", "box:2", "apps", 8081, "")
        + &app("closed", "box:2", "apps", 8082, deny_client)
        + &app("narrow", "box:1", "apps", 8083, only_dns_name)
        + &app(
            "mute",
            "box:1",
            "apps",
            8084,
            "acl:\n  - {action: deny, direction: out}\n  - {action: allow, direction: in}",
        )
        + &app("outsider", "box:1", "others", 8085, "");
    apply(&lab, &text);
    for (port, version) in
        [(8080, "one"), (8081, "two"), (8082, "two"), (8083, "one"), (8084, "one"), (8085, "one")]
    {
        wait_answer(&mut lab, port, version, SOON);
    }
    let (host, node) = (lab.netns.host.clone(), lab.netns.node.clone());
    let (server, outsider) = (address(&lab, "server"), address(&lab, "outsider"));

    step("names and fixed addresses");
    assert_eq!(sh(&lab, 8080, "ip -4 addr show eth0 | grep -c 'inet 10.60.0.50/'"), "1");
    assert_eq!(fetch(&lab, 8080, "server/"), "two");
    assert_eq!(fetch(&lab, 8081, "client/"), "one");
    assert!(sh(&lab, 8080, "nslookup told").contains("192.0.2.7"));
    assert!(!sh(&lab, 8085, "nslookup server").contains(&server), "names cross networks");
    assert!(sh(&lab, 8080, "nslookup nobody; echo \"code $?\"").contains("code 1"));

    step("access lists");
    assert_eq!(fetch(&lab, 8081, "closed/"), "two");
    assert_eq!(fetch(&lab, 8083, "server/"), "two");
    all_shut(&lab, &[(8080, "closed/"), (8083, "client/"), (8084, "server/")]);

    step("outward");
    let listener = TcpListener::bind((host.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // says who came and hangs up
    let guests = std::thread::spawn(move || {
        listener.incoming().take(1).map(|guest| guest.unwrap().peer_addr().unwrap()).collect::<Vec<_>>()
    });
    let knock = format!("nc -w 1 {host} {port} < /dev/null && echo open || echo shut");
    assert!(sh(&lab, 8084, &knock).contains("shut"));
    assert!(sh(&lab, 8083, &knock).contains("shut"));
    assert_eq!(sh(&lab, 8080, &knock), "open");
    assert_eq!(guests.join().unwrap()[0].ip().to_string(), node, "not behind the node's address");
    // a name server that only listens
    let udp = UdpSocket::bind((host.as_str(), 53)).unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let asked = lab.app_address(8080).unwrap();
    let asking = std::thread::spawn({
        let host = host.clone();
        move || toolbox::sh(asked, &format!("nslookup -type=a selvedge.example {host} & sleep 1; kill $!"))
    });
    let mut bytes = [0; 512];
    let (length, peer) = udp.recv_from(&mut bytes).unwrap();
    assert_eq!(peer.ip().to_string(), node);
    assert!(bytes[..length].windows(8).any(|window| window == b"selvedge"), "{:?}", &bytes[..length]);
    asking.join().unwrap();

    step("two networks");
    all_shut(&lab, &[(8085, &format!("{server}/")), (8080, &format!("{outsider}/"))]);

    step("the node itself");
    // something on every address of the node that answers whoever gets through
    let mut inside = lab.netns.command(&toolbox::busybox(&lab.place.cache).unwrap());
    inside.args(["httpd", "-f", "-p", "7777", "-h", "/usr/share/common-licenses"]);
    let log = lab.place.dir.join("inside.log");
    let inside = tests::command::Background::start("a server on the node", &log, &mut inside).unwrap();
    let ask = "/GPL-3";
    tests::progress::wait_for("the server on the node answers", SOON, || {
        tests::http::get(format!("{node}:7777").parse().unwrap(), ask, Duration::from_secs(1))
    })
    .unwrap();
    let targets = [&*node, "127.0.0.1", "10.60.0.1", "10.61.0.1"].map(|target| format!("{target}:7777{ask}"));
    let from_each = targets.iter().flat_map(|url| [(8080, &**url), (8085, &**url)]);
    all_shut(&lab, &from_each.collect::<Vec<_>>());
    drop(inside);

    step("an app that pretends to be another");
    let spoof = "ip addr add 10.60.0.77/24 dev eth0 2>&1 || echo refused";
    assert!(sh(&lab, 8080, spoof).contains("refused"), "an app may change its own addresses");

    step("port maps change and go");
    let moved = text.replace("'8081:80'", "'8091:80'");
    apply(&lab, &moved);
    wait_answer(&mut lab, 8091, "two", SOON);
    assert_eq!(answer(&lab, 8081), None, "the old port map still stands");
    assert_eq!(fetch(&lab, 8080, "server/"), "two");
}
