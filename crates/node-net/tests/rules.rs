// SPDX-License-Identifier: Apache-2.0
//! What the kernel got from our encoder, judged by nft: its listing of our batch must equal its listing of our text.
#![allow(clippy::unwrap_used)]

mod world;

use world::{Namespace, allow, app, app_rule, intent_of, network, nft, switch};

#[test]
#[ignore = "needs root"]
fn nft_lists_what_we_sent_as_it_lists_what_we_wrote() {
    let net = network(1, "10.1.0.0/24", &["eth0", "eth1"]);
    let other = network(2, "10.2.0.0/16", &[]);
    let apps = [
        app(1, "web", &net, 2, vec![app_rule("map tcp 8080 80"), allow()]),
        app(
            2,
            "db",
            &net,
            3,
            vec![
                app_rule("drop tcp 198.51.100.0/22 443"),
                app_rule("allow any example.org 1000-2000"),
                app_rule("limit udp 198.51.100.7/32 123"),
                app_rule("allow icmp 203.0.113.0/24"),
                app_rule("map udp 5353 53 192.0.2.0/25"),
            ],
        ),
        app(3, "alone", &other, 9, vec![allow()]),
    ];
    let mut logged = network(3, "10.3.0.0/16", &["eth0"]);
    logged.is_flow_logged = true;
    let (lan, side) = (switch(7, &["eth0"]), switch(8, &["eth0"]));
    let mut apps = apps.to_vec();
    apps.push(app(4, "told", &logged, 9, vec![app_rule("drop udp 203.0.113.0/24"), allow()]));
    apps.push(app(5, "camera", &lan, 0, vec![app_rule("limit tcp 203.0.113.0/24 80"), allow()]));
    let mut fixed = app(6, "plc", &side, 0, vec![allow()]);
    fixed.vifs[0].address = Some("192.0.2.77".parse().unwrap());
    apps.push(fixed);
    let networks = [net, other, logged, lan, side];
    let intent = intent_of(&networks, &apps, &[("eth0", "192.0.2.10/24"), ("eth1", "192.0.2.129/25")]);
    assert!(intent.apps.values().flatten().all(|app| app.fault.is_none()), "{:?}", intent.apps);
    let text = format!("{}{}", intent.ruleset, intent.taps);

    let by_text = Namespace::new("judge-text");
    let by_batch = Namespace::new("judge-batch");
    for namespace in [&by_text, &by_batch] {
        namespace.ip("link add eth0 type bridge");
    }
    for link in ["bu7", "bu8"] {
        by_text.ip(&format!("link add {link} type bridge"));
    }
    nft(&by_text, &["-f", "-"], &text);
    by_batch.run(|| {
        let mut kernel = node_net::kernel::Kernel::open("/proc/sys/net".as_ref()).unwrap();
        let round = kernel.apply(&intent).unwrap();
        assert!(round.changes.contains(&"rules replaced".to_string()), "{round:?}");
        assert_eq!(round.faults, Default::default());
        assert_eq!(kernel.apply(&intent).unwrap().changes, Vec::<String>::new());
    });
    let expected = nft(&by_text, &["list", "ruleset"], "");
    let listed = nft(&by_batch, &["list", "ruleset"], "");
    assert_eq!(without_fingerprint(&listed), without_fingerprint(&expected), "{listed}");
}

/// Chains in the order of their names, without the one that only holds a fingerprint.
fn without_fingerprint(listing: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut table = "";
    // nft writes addresses of the link layer by name only where it knows the link to be Ethernet; it means the same
    let listing = listing.replace("@ll,48,48", "ether saddr").replace("@ll,0,48", "ether daddr");
    let words: Vec<String> = listing.split(' ').map(link_address).collect();
    let listing = words.join(" ").replace("daddr { ", "daddr ").replace(" } fwd", " fwd");
    for line in listing.lines().filter(|line| !line.is_empty() && *line != "}") {
        if line.starts_with("table") {
            table = line;
        } else if line.starts_with("\tchain") || line.starts_with("\tset") || line.starts_with("\tcounter") {
            blocks.push(format!("{table} {line}\n"));
        } else {
            let block = blocks.last_mut().unwrap();
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks.retain(|block| !block.contains("fingerprint-"));
    blocks.sort();
    blocks
}

/// `0x2163e000005` as `02:16:3e:00:00:05`; other words as they are.
fn link_address(word: &str) -> String {
    let number = word.strip_prefix("0x").filter(|digits| digits.len() > 8);
    match number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
        Some(number) => {
            number.to_be_bytes()[2..].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
        }
        None => word.to_owned(),
    }
}
