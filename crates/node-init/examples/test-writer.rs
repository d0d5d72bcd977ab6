// SPDX-License-Identifier: Apache-2.0
//! A service of the hosted test: as `net` it publishes one port per start and one that stays, and answers calls.
#![allow(clippy::unwrap_used)]

use ipc::calls::{Net, NetReply};
use ipc::topics::PortObserved;
use model::observed::PortObserved as Port;
use service::{Event, Service};

fn main() -> std::process::ExitCode {
    service::main("net", run)
}

fn run(mut service: Service) {
    let counter = service.dirs().state.clone().unwrap().join("starts");
    let starts = std::fs::read_to_string(&counter).map_or(0, |text| text.parse::<u32>().unwrap());
    std::fs::write(&counter, (starts + 1).to_string()).unwrap();
    for name in ["stays".to_string(), format!("start-{starts}")] {
        service.publish::<PortObserved>(&name, &port(&name));
    }
    service.synced::<PortObserved>();
    eprintln!("writer on stderr");
    loop {
        match service.next(None) {
            Event::Call(call) => {
                let reply = NetReply::Attached { dns: Vec::new(), hosts: Vec::new() };
                let _ = call.reply::<Net>(&Ok(reply), &[]);
            }
            Event::Stop => return,
            _ => {}
        }
    }
}

fn port(name: &str) -> Port {
    Port {
        name: name.into(),
        mac: None,
        is_up: true,
        mtu: 1500,
        addresses: Vec::new(),
        gateways: Vec::new(),
        dns: Vec::new(),
        search: Vec::new(),
    }
}
