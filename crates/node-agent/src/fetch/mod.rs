// SPDX-License-Identifier: Apache-2.0
//! Process fetch: downloads for others, byte by byte into a pipe.
//!
//! It keeps no file and no state worth keeping. A question names everything (server, credentials as a handle, object,
//! offset); the answer is the reading end of a pipe, which a thread fills until the object ends, the connection breaks or
//! the reader goes away. A reader that sees too few bytes asks again with its offset and is told the fault then.

pub mod client;
pub mod files;
pub mod registry;

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipc::calls::{Fetch, FetchReply, FetchRequest, Vault, VaultReply, VaultRequest};
use ipc::topics::{PortObserved, Topic};
use model::config::Credentials;
use model::reason::{Fault, Reason};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use service::{Caller, Event, IncomingCall, Poster, Service, log};

use crate::resolve::Dns;
use client::{Agents, Login, Opened};
use files::Files;
use registry::Registries;

/// Downloads at one time.
const MAX_STREAMS: usize = 8;
/// Questions that wait for a free place; more are answered with a fault and asked again later.
const MAX_WAITING: usize = 64;
/// The vault answers from memory.
const VAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Room in the pipe and in the copying thread.
const PIPE_BYTES: usize = 1 << 20;
const COPY_BYTES: usize = 128 << 10;

/// A stream has ended.
#[derive(Debug)]
pub struct Ended;

/// The process's life.
pub fn run(mut service: Service<Ended>) {
    let roots = service.dirs().path("ca-certificates").map(std::fs::read).transpose();
    let roots = roots.unwrap_or_else(|error| {
        log::warn(format_args!("cannot read the system's CA certificates: {error}"));
        None
    });
    let dns = Dns::default();
    let agents = Arc::new(Agents::new(dns.clone(), &roots.unwrap_or_default()));
    let clients =
        Arc::new(Clients { registries: Registries::new(agents.clone()), files: Files::new(agents) });
    let vault = service.caller::<Vault>();
    let poster = service.poster();
    let mut streams = 0;
    let mut waiting: VecDeque<IncomingCall> = VecDeque::new();
    service.subscribe::<PortObserved>();
    loop {
        match service.next(None) {
            Event::Topics(PortObserved::NAME) => {
                dns.set_servers(service.all::<PortObserved>().into_values().flat_map(|port| port.dns));
                log::info(format_args!("name servers {dns}"));
            }
            Event::Call(call) if waiting.len() < MAX_WAITING => waiting.push_back(call),
            Event::Call(call) => {
                let fault = Fault::new(Reason::ServiceUnavailable, "too many downloads wait");
                // The asker asks again by itself.
                let _ = call.reply::<Fetch>(&Err(fault), &[]);
            }
            Event::Worker(Ended) => streams -= 1,
            Event::Stop => return,
            _ => {}
        }
        while streams < MAX_STREAMS
            && let Some(call) = waiting.pop_front()
        {
            streams += 1;
            let download =
                Download { clients: clients.clone(), vault: vault.clone(), poster: poster.clone() };
            let started = thread::Builder::new().name("stream".into()).spawn(move || download.run(call));
            // Its place is freed when the unused closure goes.
            if let Err(error) = started {
                log::error(format_args!("cannot start a thread: {error}"));
            }
        }
    }
}

struct Clients {
    registries: Registries,
    files: Files,
}

impl Clients {
    fn open(&self, request: &FetchRequest, login: Option<&Login>) -> Result<Opened, Fault> {
        match request {
            FetchRequest::Image(request) => self.registries.open(request, login),
            FetchRequest::File(request) => self.files.open(request, login),
        }
    }
}

/// One answer and its stream.
struct Download {
    clients: Arc<Clients>,
    vault: Caller<Vault>,
    poster: Poster<Ended>,
}

impl Drop for Download {
    /// However the thread ends, its place is free again.
    fn drop(&mut self) {
        self.poster.post(Ended);
    }
}

impl Download {
    fn run(self, call: IncomingCall) {
        let request = match call.decode::<Fetch>() {
            Ok(request) => request,
            Err(error) => {
                return log::error(format_args!("unreadable question from {}: {error}", call.from()));
            }
        };
        let opened = self.login(&request).and_then(|login| self.clients.open(&request, login.as_ref()));
        let opened = opened.and_then(|opened| match stream_pipe() {
            Ok(pipe) => Ok((opened, pipe)),
            Err(error) => Err(Fault::new(Reason::Internal, format!("no pipe for a download: {error}"))),
        });
        let (opened, (reader, writer)) = match opened {
            Ok(opened) => opened,
            Err(fault) => {
                log::warn(format_args!("{fault}"));
                let _ = call.reply::<Fetch>(&Err(fault), &[]);
                return;
            }
        };
        let reply =
            FetchReply::Stream { media_type: opened.media_type, size: opened.size, offset: opened.offset };
        if call.reply::<Fetch>(&Ok(reply), &[reader.as_fd()]).is_ok() {
            // Now only the asker holds the reading end: when it goes, writing fails.
            drop(reader);
            copy(opened.body, &writer);
        }
    }

    fn login(&self, request: &FetchRequest) -> Result<Option<Login>, Fault> {
        let credentials = match request {
            FetchRequest::Image(request) => &request.source.registry.credentials,
            FetchRequest::File(request) => &request.source.credentials,
        };
        let handle = match credentials {
            None => return Ok(None),
            Some(Credentials::Clear { user, password }) => {
                return Ok(Some(Login { user: user.clone(), password: password.clone() }));
            }
            Some(Credentials::Sealed(handle)) => handle.clone(),
        };
        match self.vault.call(&VaultRequest::OpenCredentials { handle }, &[], VAULT_TIMEOUT) {
            Ok((Ok(VaultReply::Credentials { user, password }), _)) => Ok(Some(Login { user, password })),
            Ok((Ok(_), _)) => {
                Err(Fault::new(Reason::Internal, "vault answered something else than credentials"))
            }
            Ok((Err(fault), _)) => Err(fault),
            Err(error) => Err(Fault::new(Reason::ServiceUnavailable, format!("vault: {error}"))),
        }
    }
}

fn stream_pipe() -> Result<(OwnedFd, OwnedFd), rustix::io::Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // A larger pipe only saves switches between the two processes.
    let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
    Ok((reader, writer))
}

/// Until one side ends. The asker sees how far it came and asks for the rest.
fn copy(mut body: impl Read, writer: &OwnedFd) {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let len = match body.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return log::warn(format_args!("download broke off: {error}")),
        };
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match rustix::io::write(writer, rest) {
                Ok(len) => rest = &rest[len..],
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return, // The asker is gone.
            }
        }
    }
}
