// SPDX-License-Identifier: Apache-2.0
//! Strangers and madmen at the controller's port: every endpoint of both APIs and of the registry gets what no client
//! sends. The answer is a refusal or a closed connection, soon; the controller stays small and serves everyone else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::lab::Lab;
use tests::operator::{SOON, app, apply, network, toolbox_lab, wait_answer};
use tests::probe::Probe;
use tests::progress::{slowness, step};
use tests::tls;

/// Longest wait for an answer to a whole request, however mad.
const ANSWERED: Duration = Duration::from_secs(10);
/// Longest time a good client may wait while others misbehave.
const SERVED: Duration = Duration::from_secs(2);
/// How long slow clients go on.
const SLOW: Duration = Duration::from_secs(8);
/// Slow clients of each kind.
const SLOW_CLIENTS: usize = 150;
/// What the controller may grow by, whatever is sent: buffers of all connections at once.
const GROWTH_KIB: u64 = 96 * 1024;
/// A UUID that names nothing.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// A request that no good client sends.
struct Abuse {
    name: &'static str,
    request: fn(&Endpoint, &str) -> Vec<u8>,
}

#[derive(Clone, Debug)]
struct Endpoint {
    method: String,
    path: String,
}

fn head(endpoint: &Endpoint, more: &str) -> Vec<u8> {
    format!("{} {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n", endpoint.method, endpoint.path)
        .into_bytes()
}

/// Bytes without meaning, always the same.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

const ABUSES: &[Abuse] = &[
    Abuse { name: "nothing asked for", request: |e, auth| head(e, auth) },
    Abuse {
        name: "a method that is none",
        request: |e, auth| head(&Endpoint { method: "BREW".into(), ..e.clone() }, auth),
    },
    Abuse {
        name: "a body of noise",
        request: |e, auth| {
            let more = format!("{auth}Content-Type: application/json\r\nContent-Length: 4096\r\n");
            [head(e, &more), noise(4096)].concat()
        },
    },
    Abuse {
        name: "nested without end",
        request: |e, auth| {
            let body = "[".repeat(100_000);
            let more = format!("{auth}Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            [head(e, &more), body.into_bytes()].concat()
        },
    },
    Abuse {
        name: "headers without end",
        request: |e, auth| {
            let line = format!("X-Filler: {}\r\n", "f".repeat(1000));
            head(e, &format!("{auth}{}", line.repeat(1000)))
        },
    },
    Abuse {
        name: "a header without a colon",
        request: |e, auth| head(e, &format!("{auth}this is no header\r\n")),
    },
    Abuse { name: "zero bytes in a header", request: |e, auth| head(e, &format!("{auth}X: a\0b\r\n")) },
    Abuse {
        name: "two lengths",
        request: |e, auth| head(e, &format!("{auth}Content-Length: 5\r\nContent-Length: 6\r\n")),
    },
    Abuse {
        name: "a length and chunks",
        request: |e, auth| {
            let more = format!("{auth}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n");
            [head(e, &more), b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec()].concat()
        },
    },
    Abuse {
        name: "a chunk of no size",
        request: |e, auth| {
            [head(e, &format!("{auth}Transfer-Encoding: chunked\r\n")), b"zzz\r\n".to_vec()].concat()
        },
    },
    Abuse {
        name: "a chunk beyond numbers",
        request: |e, auth| {
            let more = format!("{auth}Transfer-Encoding: chunked\r\n");
            [head(e, &more), b"ffffffffffffffffff\r\nx".to_vec()].concat()
        },
    },
    Abuse {
        name: "a length beyond numbers",
        request: |e, auth| head(e, &format!("{auth}Content-Length: 99999999999999999999999\r\n")),
    },
    Abuse {
        name: "a path out of its place",
        request: |e, auth| {
            let path = format!("{}/../../%2e%2e/%00%ff/etc/passwd?{}", e.path, "q".repeat(8000));
            head(&Endpoint { path, ..e.clone() }, auth)
        },
    },
    Abuse {
        name: "another version",
        request: |e, _| format!("{} {} HTTP/9.9\r\n\r\n", e.method, e.path).into_bytes(),
    },
    Abuse { name: "noise", request: |_, _| noise(2000) },
    Abuse {
        name: "the preface of HTTP/2",
        request: |_, _| b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
    },
];

/// All endpoints: the device API's table, the operator API as it describes itself, the registry's table.
fn endpoints(lab: &Lab) -> Vec<Endpoint> {
    let endpoint = |method: &str, path: &str| Endpoint { method: method.into(), path: path.into() };
    let device = |call: &str| endpoint("POST", &format!("/api/v2/edgedevice/{call}"));
    let mut all =
        vec![endpoint("GET", "/api/v2/edgedevice/certs"), endpoint("GET", "/api/v2/edgedevice/ping")];
    all.extend(["register", "uuid"].map(device));
    for call in
        ["config", "attest", "info", "metrics", "newlogs", "flowlog", "hardwarehealth", "proxy/scep", "logs"]
    {
        all.push(device(&format!("id/{NOBODY}/{call}")));
    }
    all.push(device(&format!("id/{NOBODY}/apps/instanceid/{NOBODY}/newlogs")));
    all.push(device(&format!("apps/instanceid/{NOBODY}/newlogs")));

    let described = get(lab.controller.address, "/openapi.json", "").unwrap().1;
    let described: Value = serde_json::from_str(&described).unwrap();
    let before = all.len();
    for (path, item) in described["paths"].as_object().unwrap() {
        let path = path.replace("{project}", "default");
        let filled: String = path
            .split('/')
            .map(|part| if part.starts_with('{') { "nobody" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        for method in item.as_object().unwrap().keys() {
            if ["get", "put", "post", "delete", "patch"].contains(&method.as_str()) {
                all.push(endpoint(&method.to_uppercase(), &filled));
            }
        }
    }
    assert!(all.len() > before + 20, "the operator API describes itself badly");

    let blob = format!("sha256:{}", "0".repeat(64));
    for (method, path) in [
        ("GET", "/v2/".to_owned()),
        ("GET", "/v2/_catalog".to_owned()),
        ("GET", "/v2/box/tags/list".to_owned()),
        ("GET", "/v2/box/manifests/1".to_owned()),
        ("PUT", "/v2/box/manifests/evil".to_owned()),
        ("DELETE", format!("/v2/box/manifests/{blob}")),
        ("GET", format!("/v2/box/blobs/{blob}")),
        ("DELETE", format!("/v2/box/blobs/{blob}")),
        ("POST", "/v2/box/blobs/uploads/".to_owned()),
        ("PATCH", format!("/v2/box/blobs/uploads/{NOBODY}")),
        ("PUT", format!("/v2/box/blobs/uploads/{NOBODY}?digest={blob}")),
        ("DELETE", format!("/v2/box/blobs/uploads/{NOBODY}")),
        ("GET", format!("/v2/box/referrers/{blob}")),
    ] {
        all.push(Endpoint { method: method.to_owned(), path });
    }
    all
}

/// Status and body; nothing when the connection was closed without an answer.
fn ask(address: SocketAddr, request: &[u8], timeout: Duration) -> anyhow::Result<Option<(u16, String)>> {
    let mut stream = tls::connect(address, &[b"http/1.1"], timeout)?;
    // refused half way: the answer may stand there all the same
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        let timed_out = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        };
        for result in [sent, read.map(drop)] {
            if let Err(error) = result
                && timed_out(&error)
            {
                anyhow::bail!("no answer in {} s", timeout.as_secs());
            }
        }
        return Ok(None);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(Some((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())))
}

fn get(address: SocketAddr, path: &str, auth: &str) -> anyhow::Result<(u16, String)> {
    let request = head(&Endpoint { method: "GET".into(), path: path.into() }, auth);
    ask(address, &request, ANSWERED * slowness())?.ok_or_else(|| anyhow::anyhow!("{path}: closed"))
}

/// Resident memory of the controller.
fn rss_kib(lab: &mut Lab) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.controller.process().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A good client that asks again and again; ends with its slowest answer.
fn good_client(
    address: SocketAddr,
    over: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<Result<Duration, String>> {
    let over = over.clone();
    std::thread::spawn(move || {
        let mut slowest = Duration::ZERO;
        while !over.load(Ordering::Relaxed) {
            let start = Instant::now();
            match get(address, "/healthz", "") {
                Ok((200, _)) => slowest = slowest.max(start.elapsed()),
                other => return Err(format!("{other:?}")),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(slowest)
    })
}

#[test]
#[ignore = "needs root"]
fn whatever_strangers_send_others_are_served() {
    let mut lab = toolbox_lab("strangers", 65);
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("good", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let probe = Probe::start(lab.app_address(8080).unwrap());
    let address = lab.controller.address;
    let token = fs::read_to_string(lab.controller.data.join("admin-token")).unwrap();
    let authorized = format!("Authorization: Bearer {}\r\n", token.trim());
    let before_kib = rss_kib(&mut lab);
    let over = Arc::new(AtomicBool::new(false));
    let good = good_client(address, &over);

    let endpoints = endpoints(&lab);
    step(format_args!("{} abuses at {} endpoints", ABUSES.len(), endpoints.len()));
    let mut wrong = Vec::new();
    for endpoint in &endpoints {
        for abuse in ABUSES {
            for auth in ["", &authorized] {
                let asked = Instant::now();
                let what = format!("{} {} ({}, {})", endpoint.method, endpoint.path, abuse.name, auth.len());
                match ask(address, &(abuse.request)(endpoint, auth), ANSWERED * slowness()) {
                    Ok(None) => {}
                    // a question without a body may be a good one
                    Ok(Some((status, _))) if (200..500).contains(&status) => {}
                    Ok(Some((status, body))) => wrong.push(format!("{what}: {status} {body}")),
                    Err(error) => wrong.push(format!("{what}: {error:#} after {:?}", asked.elapsed())),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));

    step("bodies that are too large");
    for (path, mib) in
        [("/api/v2/edgedevice/register", 2), ("/apis/selvedge/v1alpha1/projects/default/apply", 40)]
    {
        let size = mib << 20;
        let endpoint = Endpoint { method: "POST".into(), path: path.into() };
        let more = format!("{authorized}Content-Type: application/json\r\nContent-Length: {size}\r\n");
        let request = [head(&endpoint, &more), vec![b' '; size]].concat();
        let answer = ask(address, &request, ANSWERED * slowness()).unwrap();
        assert!(answer.as_ref().is_none_or(|(status, _)| *status == 413), "{path}: {answer:?}");
    }

    step("TLS that is none");
    for hello in
        [noise(500), b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"\x16\x03\x00\x00\x05\x01\x00\x00\x01\x00".to_vec()]
    {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(ANSWERED * slowness())).unwrap();
        stream.write_all(&hello).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let is_open = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!is_open, "kept open after {:?}", &hello[..8]);
    }
    assert!(tls::connect(address, &[b"h2"], ANSWERED).is_err(), "HTTP/2 is not offered");

    step(format_args!("{} slow clients of four kinds", 4 * SLOW_CLIENTS));
    let mut held = Vec::new();
    let mut slow = Vec::new();
    for _ in 0..SLOW_CLIENTS {
        // connects and says nothing
        held.push(TcpStream::connect(address).unwrap());
        for start in [
            "GET /healthz HTTP/1.1\r\nX: ".to_owned(),
            "POST /api/v2/edgedevice/register HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
                .to_owned(),
            format!(
                "PUT /v2/box/manifests/slow HTTP/1.1\r\nHost: x\r\n{authorized}Content-Length: 100000\r\n\r\n"
            ),
        ] {
            let mut stream = tls::connect(address, &[b"http/1.1"], ANSWERED * slowness()).unwrap();
            stream.write_all(start.as_bytes()).unwrap();
            slow.push(stream);
        }
    }
    let end = Instant::now() + SLOW;
    let mut changes = 0;
    while Instant::now() < end {
        for stream in &mut slow {
            let _ = stream.write_all(b"x").and_then(|()| stream.flush());
        }
        // an operator's change goes through to the device meanwhile
        changes += 1;
        apply(
            &lab,
            &app(
                "good",
                "box:1",
                "apps",
                8080,
                &format!("acl: [{{action: allow}}, {{action: allow, remote: 192.0.2.{changes}/32}}]"),
            ),
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    apply(&lab, &app("more", "box:2", "apps", 8081, ""));
    wait_answer(&mut lab, 8081, "two", SOON);
    over.store(true, Ordering::Relaxed);
    let slowest = good.join().unwrap().unwrap();
    step(format_args!("the slowest answer to a good client took {slowest:?}"));
    assert!(slowest < SERVED * slowness(), "{slowest:?}");
    drop((held, slow));

    let after_kib = rss_kib(&mut lab);
    step(format_args!("the controller grew from {before_kib} to {after_kib} KiB"));
    assert!(after_kib < before_kib + GROWTH_KIB, "from {before_kib} to {after_kib} KiB");
    let log = fs::read_to_string(lab.controller.process().log_path()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert!(lab.controller.has_condition("devices", "Connected"));
    assert!(probe.end().unwrap() > 10);
}
