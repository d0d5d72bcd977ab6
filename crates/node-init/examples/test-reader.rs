// SPDX-License-Identifier: Apache-2.0
//! A service of the hosted test: as `agent` it writes down what it sees of topics, calls `net` all the time, and once
//! tries what it must not be able to do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::time::Duration;

use ipc::calls::{Net, NetRequest};
use ipc::topics::{NodeObserved, PortObserved, ServiceObserved};
use model::id::AppId;
use service::{Event, Service, log};

fn main() -> std::process::ExitCode {
    service::main("agent", run)
}

fn run(mut service: Service<bool>) {
    let state = service.dirs().state.clone().unwrap();
    fs::write(state.join("forbidden"), forbidden()).unwrap();
    service.subscribe::<PortObserved>();
    service.subscribe::<ServiceObserved>();
    service.subscribe::<NodeObserved>();
    let net = service.caller::<Net>();
    let app = AppId("11111111-2222-4333-8444-555555555555".parse().unwrap());
    let poster = service.poster();
    std::thread::spawn(move || {
        loop {
            let answer = net.call(&NetRequest::Attach { app }, &[], Duration::from_secs(10));
            if !poster.post(answer.is_ok()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let (mut good, mut bad) = (0, 0);
    log::info(format_args!("reader began"));
    loop {
        match service.next(None) {
            Event::Worker(true) => good += 1,
            Event::Worker(false) => bad += 1,
            Event::Topics("port-observed") => {
                let ports: Vec<String> = service.all::<PortObserved>().into_keys().collect();
                let synced = service.is_synced::<PortObserved>();
                let mut seen =
                    fs::File::options().append(true).create(true).open(state.join("seen")).unwrap();
                writeln!(seen, "{} synced={synced}", ports.join(",")).unwrap();
            }
            Event::Topics(_) => {
                let services = service.all::<ServiceObserved>().len();
                let node = service.get::<NodeObserved>("").is_some();
                fs::write(state.join("node"), format!("services={services} node={node}")).unwrap();
            }
            Event::Stop => return,
            _ => {}
        }
        fs::write(state.join("calls"), format!("good={good} bad={bad}")).unwrap();
    }
}

/// Names what it could do although nothing allows it.
fn forbidden() -> String {
    let mut done = Vec::new();
    if fs::read("/proc/self/status").is_ok() {
        done.push("read /proc");
    }
    if fs::read_dir("/").is_ok() {
        done.push("list the root");
    }
    if fs::write("/tmp", "x").is_ok() || fs::write("/bin/x", "x").is_ok() {
        done.push("write the root");
    }
    if std::net::UdpSocket::bind("127.0.0.1:0").is_ok() {
        done.push("open a socket");
    }
    if rustix::process::kill_process(rustix::process::Pid::INIT, rustix::process::Signal::CONT).is_ok() {
        done.push("send a signal");
    }
    done.join(", ")
}
