// SPDX-License-Identifier: Apache-2.0
//! Every manifest against every try and every system call.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;

use ipc::manifest::{Manifest, Mode};
use ipc::syscalls::DANGEROUS;
use tests::progress::step;

use super::{Caged, differences, outcomes};

/// Tries there are at least: a list that was lost would pass any test.
const TRIES_MIN: usize = 150;
const CALLS_MIN: usize = 480;
/// `uretprobe` and `uprobe` of x86-64: the kernel lets them pass every filter, and they do nothing but where it has put
/// them itself.
const FOR_THE_KERNEL: [i64; 2] = [335, 336];
/// The app whose shim the attacker in place of run asks for.
const SHIM: &str = "11111111-2222-4333-8444-555555555555";

/// Whether a manifest allows a try, worked out from the manifest alone.
fn may(manifest: &Manifest, attempt: &str) -> bool {
    // A shim is judged as it is while its app runs: it has given up everything.
    if manifest.is_exempt() {
        return false;
    }
    let has_group = |group: &str| manifest.syscalls.groups.iter().any(|own| own == group);
    let has_capability = |name: &str| manifest.capabilities.iter().any(|own| own.name == name);
    let grants = |path: &str, mode: Mode| {
        manifest.files.iter().any(|file| {
            let is_there = !file.optional || Path::new(&file.path).exists();
            is_there
                && Path::new(path).starts_with(file.inside())
                && (mode == Mode::Ro || file.mode == Mode::Rw)
        })
    };
    if let Some(path) = attempt.strip_prefix("read ") {
        let is_in_root = path.starts_with('/') && path != "/var/run";
        return is_in_root && grants(path, Mode::Ro) && (path != "/state/x");
    }
    if let Some(path) = attempt.strip_prefix("write ") {
        return grants(path, Mode::Rw);
    }
    if let Some(path) = attempt.strip_prefix("create ") {
        return grants(path, Mode::Rw);
    }
    match attempt {
        "socket tcp" | "socket udp" | "connect host" => has_group("net"),
        "socket tcp6" => has_group("net") && Path::new("/proc/net/if_inet6").exists(),
        "socket netlink route" | "socket netlink netfilter" => has_group("netlink"),
        "bind port 80" => has_group("net") && has_capability("NET_BIND_SERVICE"),
        "foreign source address" => has_group("net") && has_capability("NET_ADMIN"),
        _ => false,
    }
}

/// Number to name, from the header of the C library's kernel interface: no table of ours.
fn call_names() -> BTreeMap<i64, String> {
    let places = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"];
    let path =
        places.iter().find(|path| Path::new(path).exists()).expect("the headers of the kernel interface");
    let text = fs::read_to_string(path).unwrap();
    let define = |line: &str| {
        let (name, number) = line.strip_prefix("#define __NR_")?.split_once(char::is_whitespace)?;
        Some((number.trim().parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(define).collect()
}

/// Every call number with what came of it.
fn calls(lines: &[String]) -> BTreeMap<i64, String> {
    let words = lines.iter().filter_map(|line| line.strip_prefix("calls ")).flat_map(|line| line.split(','));
    words.map(|word| word.split_once(':').unwrap()).map(|(n, o)| (n.parse().unwrap(), o.to_owned())).collect()
}

fn call_differences(
    manifest: &Manifest,
    seen: &BTreeMap<i64, String>,
    names: &BTreeMap<i64, String>,
) -> Vec<String> {
    let allowed = manifest.allowed_syscalls();
    let mut out = Vec::new();
    for (number, outcome) in seen.iter().filter(|(number, _)| !FOR_THE_KERNEL.contains(number)) {
        let name = names.get(number).map_or("no call", String::as_str);
        let wanted: &[&str] = match name {
            // Libraries fall back to clone, whose flags can be looked at.
            "clone3" => &["errno 38", "errno 1"],
            name if allowed.contains(name) => {
                if outcome == "errno 1" {
                    out.push(format!("{}: {name} is refused", manifest.name));
                }
                continue;
            }
            name if DANGEROUS.contains(&name) => &["signal 31"],
            _ => &["errno 1"],
        };
        if !wanted.contains(&&**outcome) {
            out.push(format!("{}: call {number} ({name}) ended with {outcome}", manifest.name));
        }
    }
    out
}

/// While its app runs a shim may wait, read, write and signal the app.
fn shim_call_differences(seen: &BTreeMap<i64, String>, names: &BTreeMap<i64, String>) -> Vec<String> {
    let open: BTreeSet<&str> = seen
        .iter()
        .filter(|(number, outcome)| *outcome != "errno 1" && !FOR_THE_KERNEL.contains(number))
        .map(|(number, _)| names.get(number).map_or("no call", String::as_str))
        .collect();
    let forbidden = [
        "open",
        "openat",
        "openat2",
        "creat",
        "socket",
        "connect",
        "bind",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "kill",
        "tgkill",
        "tkill",
        "pidfd_open",
        "setuid",
        "setresuid",
        "capset",
        "ioctl",
        "prctl",
        "seccomp",
        "unlinkat",
        "mknodat",
        "linkat",
        "no call",
    ];
    let wrong = open.into_iter().filter(|name| forbidden.contains(name) || DANGEROUS.contains(name));
    wrong.map(|name| format!("shim: {name} is open")).collect()
}

#[test]
#[ignore = "needs root"]
fn under_every_manifest_only_what_it_names_succeeds() {
    let victim = std::process::id();
    let unix = format!("selvedge-attack-{victim}");
    // On every address: the one towards the node does not stand yet.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut caged = Caged::start("caged", 51, &[], &|netns| {
        vec![
            "attack=system".into(),
            format!("attack.host={}:{port}", netns.host),
            format!("attack.victim={victim}"),
            format!("attack.unix={unix}"),
        ]
    });
    // Listens in the network of the node for whoever gets there.
    let name = |name: &str| SocketAddr::from_abstract_name(name).unwrap();
    let inside = caged.netns.inside(move || {
        let stream = UnixListener::bind_addr(&name(&unix)).unwrap();
        let datagram = UnixDatagram::bind_addr(&name(&format!("{unix}.d"))).unwrap();
        (stream, datagram)
    });
    let inside = inside.unwrap();
    let names = call_names();
    let mut problems = Vec::new();
    let mut all_tries: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let services: Vec<Manifest> = caged.manifests.values().filter(|m| !m.is_exempt()).cloned().collect();
    for manifest in &services {
        caged.wait_line(&manifest.name, "finished");
        let lines = caged.lines(&manifest.name);
        let tried = outcomes(lines.iter().map(String::as_str));
        assert!(tried.len() >= TRIES_MIN, "{}: {} tries", manifest.name, tried.len());
        all_tries.insert(manifest.name.clone(), tried.keys().cloned().collect());
        let done: Vec<&str> = tried.iter().filter(|(_, o)| *o == "done").map(|(name, _)| &**name).collect();
        step(format_args!(
            "{}: {} tries, {} succeed: {}",
            manifest.name,
            tried.len(),
            done.len(),
            done.join(", ")
        ));
        problems.extend(differences(&manifest.name, &tried, &|attempt| may(manifest, attempt)));
        let calls = calls(&lines);
        assert!(calls.len() >= CALLS_MIN, "{}: {} calls", manifest.name, calls.len());
        problems.extend(call_differences(manifest, &calls, &names));
    }
    let shim = format!("shim/{SHIM}");
    caged.wait_line(&shim, "finished");
    let lines = caged.lines(&shim);
    let tried = outcomes(lines.iter().map(String::as_str));
    assert!(tried.len() >= TRIES_MIN, "shim: {} tries", tried.len());
    problems.extend(differences("shim", &tried, &|_| false));
    let calls = calls(&lines);
    assert!(calls.len() >= CALLS_MIN && calls.values().any(|outcome| outcome != "errno 1"), "{calls:?}");
    problems.extend(shim_call_differences(&calls, &names));
    all_tries.insert("shim".into(), tried.into_keys().collect());
    let every: BTreeSet<String> = all_tries.values().flatten().cloned().collect();
    for (who, tries) in &all_tries {
        problems.extend(every.difference(tries).map(|attempt| format!("{who} did not try {attempt:?}")));
    }
    drop((inside, listener));
    caged.stop();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
