// SPDX-License-Identifier: Apache-2.0
//! In place of a service: the handshake with init as every service has it, then the tries, each in a child that was
//! confined by the very function and manifest of the service; then the process itself, confined, misuses its channels.
//!
//! As `log` it writes down what it is told in `{state}/lines`: that is how all others report.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use ipc::boot::{CallFrame, FromInit, INIT_FD, Launch, LogFrame, Role, ToInit};
use ipc::broker::BusFrame;
use ipc::calls::{self, AppLimits, Call, InitRequest, Vault, VaultReply, VaultRequest};
use ipc::frame::Channel;
use ipc::topics;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::attempts::{self, Target};
use crate::child::every_call;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Within it every other service has started and said what it has to say, also on a slow machine.
const LISTEN: Duration = Duration::from_secs(20);

/// Far more questions than answers fit into a channel.
const FLOOD: u64 = 20_000;
/// App whose shim is asked for.
const SHIM: &str = "11111111-2222-4333-8444-555555555555";

struct Seat {
    init: Channel,
    launch: Launch,
    channels: BTreeMap<Role, Channel>,
}

pub(crate) fn run(service: &str) {
    let mut seat = Seat::take();
    assert_eq!(seat.launch.manifest.name, service);
    let mut lines =
        (service == "log").then(|| File::options().create(true).append(true).open("/state/lines").unwrap());
    let manifest = seat.launch.manifest.clone();
    let confine = || match manifest.is_exempt() {
        // What it is once its app runs; before that it is root, as its manifest says.
        true => node_run::shim::confine::confine(None).unwrap(),
        false => service::confine(&manifest).unwrap(),
    };
    let target = Target::of_settings(&seat.launch.settings);
    let is_about_the_system = seat.launch.settings.get("attack").is_some_and(|what| what == "system");
    // In place of log it has to listen to all others meanwhile.
    // SAFETY: one thread, so the child is whole.
    let is_listening = lines.is_some() && unsafe { libc::fork() } != 0;
    if !is_listening {
        if let Some(lines) = &lines {
            crate::OWN_LINES.set(lines.try_clone().unwrap()).unwrap();
        }
        if is_about_the_system {
            try_all(&target, &confine);
        }
        tell!("finished");
        if lines.is_some() {
            std::process::exit(0);
        }
    }
    confine();
    seat.init.send(&ToInit::Ready, &[], TIMEOUT).unwrap();
    if lines.is_none() && seat.launch.settings.get("attack").is_some_and(|what| what == "channels") {
        seat.misuse(service);
    }
    // The one template: a shim is started when run asks for it.
    if let Some(init) = seat.channels.get(&Role::CallTo { callee: "init".into() }) {
        let limits = AppLimits { memory_bytes: 64 << 20, vcpus: 1, pids_max: 8 };
        let app = SHIM.parse().unwrap();
        tell!("asked for a shim: {:?}", ask::<calls::Init>(init, &InitRequest::SpawnShim { app, limits }));
    }
    seat.serve(&mut lines);
}

fn try_all(target: &Target, confine: &dyn Fn()) {
    attempts::run_all(target, confine);
    for some in every_call(confine).chunks(40) {
        let words: Vec<String> = some.iter().map(|(number, outcome)| format!("{number}:{outcome}")).collect();
        tell!("calls {}", words.join(","));
    }
}

fn title(role: &Role) -> String {
    match role {
        Role::Bus => "bus".into(),
        Role::Log => "log".into(),
        Role::CallTo { callee } => format!("call {callee}"),
        Role::CallFrom { service, key } => format!("answer {service} {key}").trim().into(),
        Role::Raw { kind, key } => format!("raw {kind} {key}").trim().into(),
    }
}

impl Seat {
    fn take() -> Seat {
        // SAFETY: init left it, and nothing else owns it.
        let init = Channel::from(unsafe { OwnedFd::from_raw_fd(INIT_FD) });
        let (first, _) = init.recv::<FromInit>(TIMEOUT).unwrap();
        let FromInit::Launch(launch) = first else { panic!("{first:?}") };
        let mut channels = BTreeMap::new();
        loop {
            match init.recv::<FromInit>(TIMEOUT).unwrap() {
                (FromInit::Channel(role), mut fds) => {
                    channels.insert(role, Channel::from(fds.pop().unwrap()));
                }
                (FromInit::Go, _) => return Seat { init, launch: *launch, channels },
                _ => {}
            }
        }
    }

    /// Until init says stop. Channels of processes that start later are taken in.
    fn serve(&mut self, lines: &mut Option<File>) {
        while self.wait(Duration::from_secs(3600), lines) {}
        // init hears no more of it after rubbish; it goes on living until init ends it.
        if self.launch.settings.get("attack").is_some_and(|what| what == "channels") {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }

    /// Waits for something; false when the end has come.
    fn wait(&mut self, most: Duration, lines: &mut Option<File>) -> bool {
        let sources = self.channels.iter().filter(|(role, _)| is_of(role, "source"));
        let sources: Vec<(Role, &Channel)> = sources.map(|(role, channel)| (role.clone(), channel)).collect();
        let mut polled = vec![PollFd::new(&self.init, PollFlags::IN)];
        polled.extend(
            sources.iter().map(|(_, channel)| PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)),
        );
        let most = Timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos() as _ };
        let _ = poll(&mut polled, Some(&most));
        let mut ended = Vec::new();
        for (role, channel) in &sources {
            loop {
                match channel.try_recv::<LogFrame>() {
                    Ok(Some((frame, _))) => {
                        if let Some(lines) = lines {
                            // At once: its own tries write there too.
                            let line = format!("{:?} {}\n", frame.origin, frame.content);
                            lines.write_all(line.as_bytes()).unwrap();
                        }
                    }
                    Ok(None) => break,
                    Err(_) => {
                        ended.push(role.clone());
                        break;
                    }
                }
            }
        }
        for role in ended {
            self.channels.remove(&role);
        }
        loop {
            match self.init.try_recv::<FromInit>() {
                Ok(Some((FromInit::Channel(role), mut fds))) => {
                    self.channels.insert(role, Channel::from(fds.pop().unwrap()));
                }
                Ok(Some((FromInit::Ping, _))) => drop(self.init.try_send(&ToInit::Pong, &[])),
                Ok(Some((FromInit::Stop, _))) | Err(_) => return false,
                Ok(Some(_)) => {}
                Ok(None) => return true,
            }
        }
    }

    /// Writes everywhere, reads everything, sends rubbish; says what came of it.
    fn misuse(&mut self, service: &str) {
        let Some(bus) = self.channels.remove(&Role::Bus) else {
            self.misuse_calls(service);
            return self.tell_channels(service);
        };
        rubbish(&bus);
        let key = format!("of-{service}");
        for (topic, _) in topics::ALL {
            let _ = bus.try_send(&BusFrame::Subscribe { topic }, &[]);
            let _ = bus.try_send(&BusFrame::Put { topic, key: &key, value: b"x" }, &[]);
            let _ = bus.try_send(&BusFrame::Remove { topic, key: "of-planner" }, &[]);
            let _ = bus.try_send(&BusFrame::Synced { topic }, &[]);
        }
        self.misuse_calls(service);
        let mut seen = BTreeSet::new();
        let until = Instant::now() + LISTEN;
        while Instant::now() < until {
            // It is alive, as init wants to know.
            self.wait(Duration::ZERO, &mut None);
            let _ = bus.wait(PollFlags::IN, Instant::now() + Duration::from_millis(200));
            while let Ok(Some((payload, _))) = bus.try_recv_payload() {
                let bytes = payload.bytes().unwrap();
                if let Ok(BusFrame::Put { topic, key, .. }) = postcard::from_bytes(&bytes)
                    && seen.insert(format!("{topic}/{key}"))
                {
                    tell!("seen {topic}/{key}");
                }
            }
            // Its own value again: a bus that was restarted has it anew.
            for (topic, writer) in topics::ALL {
                if *writer == service {
                    let _ = bus.try_send(&BusFrame::Put { topic, key: &key, value: b"x" }, &[]);
                }
            }
        }
        self.channels.insert(Role::Bus, bus);
        self.tell_channels(service);
    }

    fn tell_channels(&mut self, service: &str) {
        // Those of services that started later.
        self.wait(Duration::from_millis(100), &mut None);
        let mut roles: Vec<String> = self.channels.keys().map(title).collect();
        roles.sort();
        tell!("channels {}", roles.join(","));
        // After all others did their worst.
        if let (Some(vault), "agent") = (self.channels.get(&Role::CallTo { callee: "vault".into() }), service)
        {
            let is_answered = matches!(ask::<Vault>(vault, &VaultRequest::Identity), Some(Ok(_)));
            tell!("vault still answers: {is_answered}");
        }
        tell!("listened");
        self.rubbish_to_init();
    }

    /// init hears one word of a process; all else must leave it unmoved.
    fn rubbish_to_init(&self) {
        rubbish(&self.init);
        let _ = self.init.try_send(&FromInit::Stop, &[]);
    }

    fn misuse_calls(&mut self, service: &str) {
        for (role, channel) in &self.channels {
            if let Role::CallTo { callee } = role {
                rubbish(channel);
                tell!("called {callee}");
            } else if matches!(role, Role::Log) {
                rubbish(channel);
            }
        }
        let Some(vault) = self.channels.get(&Role::CallTo { callee: "vault".into() }) else { return };
        for (name, request) in [
            ("identity", VaultRequest::Identity),
            ("sign", VaultRequest::SignAsDevice { data: b"x".to_vec() }),
            ("seal", VaultRequest::Seal { clear: b"x".to_vec() }),
            ("trust", VaultRequest::TrustControllerCerts { ecdh_pems: vec!["x".into()] }),
            ("user-data", VaultRequest::OpenUserData { handle: handle() }),
            ("credentials", VaultRequest::OpenCredentials { handle: handle() }),
        ] {
            let answer = match ask::<Vault>(vault, &request) {
                Some(Ok(VaultReply::Identity(_) | VaultReply::Signature(_) | VaultReply::Sealed(_))) => {
                    "done".into()
                }
                Some(Ok(_)) => "other".into(),
                Some(Err(fault)) => format!("{fault}").replace('\n', " "),
                None => "silence".into(),
            };
            tell!("vault {service} {name} = {answer}");
        }
        if service == "fetch" {
            // Questions without end, and no answer is ever taken.
            let body = postcard::to_allocvec(&VaultRequest::Identity).unwrap();
            for id in 0..FLOOD {
                let _ = vault.try_send(&CallFrame { id, body: (&body[..]).into() }, &[]);
            }
            tell!("flooded");
        }
    }
}

fn is_of(role: &Role, wanted: &str) -> bool {
    matches!(role, Role::Raw { kind, .. } if kind == wanted)
}

/// A handle that no one sealed.
fn handle() -> model::secret::SecretHandle {
    model::secret::SecretHandle::Sealed { sealed: vec![7; 64] }
}

fn ask<C: Call>(channel: &Channel, request: &C::Request) -> Option<C::Reply> {
    let body = postcard::to_allocvec(request).unwrap();
    channel.send(&CallFrame { id: 77, body: body.into() }, &[], TIMEOUT).ok()?;
    let until = Instant::now() + TIMEOUT;
    loop {
        if let Ok(Some((payload, _))) = channel.try_recv_payload() {
            let bytes = payload.bytes().ok()?;
            let frame: CallFrame<'_> = postcard::from_bytes(&bytes).ok()?;
            if frame.id == 77 {
                return postcard::from_bytes(&frame.body).ok();
            }
        }
        channel.wait(PollFlags::IN, until).ok()?;
    }
}

/// Frames that are none, one of each kind a receiver could stumble over.
fn rubbish(channel: &Channel) {
    let fd = channel.as_fd();
    let memory = |bytes: &[u8]| {
        let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&memory, bytes).unwrap();
        memory
    };
    let open = memory(b"not sealed");
    let (pipe, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let large = vec![0_u8; 80 * 1024];
    for (packet, fds) in [
        (&[9][..], &[][..]),
        (&[0], &[]),
        (&[0, 0xff, 0xff, 0xff], &[]),
        (&[1, 10, 0, 0, 0], &[]),
        (&[1, 10, 0, 0, 0], &[open.as_fd()]),
        (&[1, 0xff, 0xff, 0xff, 0xff], &[open.as_fd()]),
        (&[1, 0, 0, 0, 0], &[pipe.as_fd()]),
        (&[1, 1], &[pipe.as_fd(), pipe.as_fd()]),
        (&large, &[]),
        (&[0, 1, 2, 3], &[pipe.as_fd(); 40]),
    ] {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(rustix::net::SendAncillaryMessage::ScmRights(fds));
        }
        // A packet that the socket itself refuses is none.
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        let _ = rustix::net::sendmsg(fd, &[std::io::IoSlice::new(packet)], &mut control, flags);
    }
    tell!("attack rubbish = {}", crate::child::Outcome::Done);
}
