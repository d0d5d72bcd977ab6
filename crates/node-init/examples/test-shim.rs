// SPDX-License-Identifier: Apache-2.0
//! A shim of the hosted test: it moves a child into the app's control group, writes console lines and answers run.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ipc::frame::Channel;
use model::log::LogSeverity;
use rustix::fs::{Mode, OFlags};
use service::{ChannelEvent, Event, Service, log};

fn main() -> std::process::ExitCode {
    service::main("shim", run)
}

fn run(mut service: Service) {
    // SAFETY: one thread; the child makes system calls only and never returns.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let names = ["cgroup", "cgroup.memory", "cgroup.pids", "cgroup.cpu", "cgroup.cpuacct"];
    for dir in names.into_iter().filter_map(|name| service.fd(name)) {
        let procs = rustix::fs::openat(dir, "cgroup.procs", OFlags::WRONLY, Mode::empty()).unwrap();
        rustix::io::write(procs, child.to_string().as_bytes()).unwrap();
    }
    assert!(log::app_line("hello", LogSeverity::Info, "a line of the app"));
    let mut run: Option<Arc<Channel>> = None;
    let mut asked = 0;
    loop {
        match service.next(None) {
            Event::Channel(ChannelEvent::Opened { kind, channel, .. }) => {
                assert_eq!(kind, "run");
                run = Some(channel);
            }
            Event::Channel(ChannelEvent::Readable { .. }) => {
                let run = run.as_ref().unwrap();
                while let Some((_, _)) = run.try_recv::<String>().unwrap() {
                    asked += 1;
                    run.try_send(&format!("{} app {child} asked {asked}", service.key()), &[]).unwrap();
                }
            }
            Event::Stop => return,
            _ => {}
        }
    }
}
