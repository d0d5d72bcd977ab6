// SPDX-License-Identifier: Apache-2.0
//! A service of the hosted test: as `run` it has one shim started, writes down which it sees, and ends it when a file
//! says so.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ipc::calls::{AppLimits, Init, InitReply, InitRequest};
use model::id::AppId;
use service::{ChannelEvent, Event, Service, clock};

const APP: &str = "11111111-2222-4333-8444-555555555555";
const TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> std::process::ExitCode {
    service::main("run", run)
}

fn run(mut service: Service) {
    let state = service.dirs().state.clone().unwrap();
    let init = service.caller::<Init>();
    let app: AppId = APP.parse().unwrap();
    let ask = |request| init.call(&request, &[], TIMEOUT).unwrap().0.unwrap();
    let InitReply::Shims(live) = ask(InitRequest::Shims) else { panic!("no shims") };
    std::fs::write(state.join("found"), live.len().to_string()).unwrap();
    if live.is_empty() {
        let limits = AppLimits { memory_bytes: 32 << 20, vcpus: 1, pids_max: 8 };
        ask(InitRequest::SpawnShim { app, limits });
        ask(InitRequest::SpawnShim { app, limits });
    }
    let mut shim = None;
    loop {
        match service.next(Some(clock::mono().plus_ms(20))) {
            Event::Channel(ChannelEvent::Opened { kind, key, channel }) => {
                assert_eq!((kind.as_str(), key.as_str()), ("shim", APP));
                channel.try_send("are you there?", &[]).unwrap();
                shim = Some(channel);
            }
            Event::Channel(ChannelEvent::Readable { .. }) => {
                while let Some((text, _)) = shim.as_ref().unwrap().try_recv::<String>().unwrap() {
                    std::fs::write(state.join("said"), text).unwrap();
                }
            }
            Event::Channel(ChannelEvent::Closed { .. }) => {
                std::fs::write(state.join("closed"), "").unwrap();
            }
            Event::Deadline if state.join("kill").exists() => {
                std::fs::remove_file(state.join("kill")).unwrap();
                ask(InitRequest::KillShim { app });
                std::fs::write(state.join("killed"), "").unwrap();
            }
            Event::Stop => return,
            _ => {}
        }
    }
}
