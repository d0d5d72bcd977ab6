// SPDX-License-Identifier: Apache-2.0
//! The process around [`Core`]: topics in, topics out, threads for requests, the vault and the log as other processes.

use std::sync::Arc;
use std::time::Duration;

use ipc::calls::{self, LogReply, LogRequest, NetReply, NetRequest, VaultReply, VaultRequest};
use ipc::topics;
use model::config::DeviceConfig;
use model::log::LogSeverity;
use model::observed::AgentObserved;
use model::reason::{Fault, Reason};
use service::files::Directory;
use service::{Caller, Event, Poster, Service, log};

use super::ask::Ask;
use super::core::{Core, Effects, Setup};
use super::disk::Disk;
use super::http::{Client, ClientError, Done, Lanes, Services};
use super::world::World;
use crate::resolve::Dns;

/// The vault answers in milliseconds; it may be restarted meanwhile.
const VAULT_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_TIMEOUT: Duration = Duration::from_secs(10);
const NET_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the vault is asked again for the identity, without which there is nothing to do.
const IDENTITY_PAUSE_MS: u64 = 1_000;

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("no directory of its own was handed over")]
    NoState,
    #[error(transparent)]
    Client(#[from] ClientError),
}

struct Others {
    vault: Caller<calls::Vault>,
    log: Caller<calls::Log>,
    net: Caller<calls::Net>,
}

impl Services for Others {
    fn vault(&self, request: VaultRequest) -> Result<VaultReply, Fault> {
        match self.vault.call(&request, &[], VAULT_TIMEOUT) {
            Ok((reply, _)) => reply,
            Err(error) => Err(Fault::new(Reason::ServiceUnavailable, error.to_string())),
        }
    }

    fn log(&self, request: LogRequest) -> Option<LogReply> {
        self.log.call(&request, &[], LOG_TIMEOUT).ok().map(|(reply, _)| reply)
    }

    fn net(&self, request: NetRequest) -> Option<NetReply> {
        self.net.call(&request, &[], NET_TIMEOUT).ok()?.0.ok()
    }
}

struct Process<'a> {
    service: &'a mut Service<Done>,
    lanes: &'a Lanes,
    others: &'a Others,
}

impl Effects for Process<'_> {
    fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
        self.lanes.send(ask)
    }
    fn vault(&mut self, request: VaultRequest) -> Result<VaultReply, Fault> {
        self.others.vault(request)
    }
    fn publish_config(&mut self, config: &DeviceConfig) {
        self.service.publish::<topics::Config>("", config);
    }
    fn publish_observed(&mut self, observed: &AgentObserved) {
        self.service.publish::<topics::AgentObserved>("", observed);
    }
    fn log(&mut self, severity: LogSeverity, text: String) {
        log::write(severity, format_args!("{text}"));
    }
}

/// The whole process.
pub fn run(mut service: Service<Done>) -> Result<(), RunError> {
    World::subscribe(&mut service);
    let others = Arc::new(Others { vault: service.caller(), log: service.caller(), net: service.caller() });
    let Some(identity) = identity(&mut service, &others) else { return Ok(()) };
    let dir = service.dirs().state.clone().ok_or(RunError::NoState)?;
    let dns = Dns::default();
    let client = Client::new(&identity, others.clone(), dns.clone())?;
    let poster: Poster<Done> = service.poster();
    let lanes = Lanes::start(Arc::new(client), move |done| poster.post(done));
    let mut core = Core::new(Setup {
        identity,
        disk: Disk::new(Directory::new(dir)),
        seed: seed(&service),
        serial: service.settings().get("serial").cloned(),
    });

    let now = service.now();
    let world = read_world(&service, &dns);
    let mut process = Process { service: &mut service, lanes: &lanes, others: &others };
    core.observe(now, world, &mut process);
    core.start(now, &mut process);
    // Without a saved config there is none until the controller sends it: absent is really absent.
    service.synced::<topics::Config>();
    service.synced::<topics::AgentObserved>();
    loop {
        let event = service.next(core.deadline());
        let now = service.now();
        let world = matches!(event, Event::Topics(_)).then(|| read_world(&service, &dns));
        let mut process = Process { service: &mut service, lanes: &lanes, others: &others };
        match event {
            Event::Topics(_) => {
                if let Some(world) = world {
                    core.observe(now, world, &mut process);
                }
            }
            Event::Worker(done) => core.done(now, done, &mut process),
            Event::Deadline => {}
            Event::Stop => return Ok(()),
            Event::Call(_) | Event::Channel(_) | Event::Readable(_) => {}
        }
        core.wake(now, &mut process);
    }
}

/// Asks the vault until it answers; `None` when the process is to end.
fn identity(service: &mut Service<Done>, others: &Others) -> Option<ipc::calls::NodeIdentity> {
    loop {
        match others.vault(VaultRequest::Identity) {
            Ok(VaultReply::Identity(identity)) => return Some(identity),
            Ok(other) => {
                log::error(format_args!("vault answered {other:?} to the question for the identity"))
            }
            Err(fault) => log::warn(format_args!("no identity yet: {fault}")),
        }
        let again = service.now().mono.plus_ms(IDENTITY_PAUSE_MS);
        loop {
            match service.next(Some(again)) {
                Event::Deadline => break,
                Event::Stop => return None,
                _ => {}
            }
        }
    }
}

fn read_world(service: &Service<Done>, dns: &Dns) -> World {
    let world = World::read(service);
    dns.set_servers(world.ports.values().flat_map(|port| port.dns.iter().copied()));
    world
}

/// Spreads the timers of a fleet; no secret.
fn seed(service: &Service<Done>) -> u64 {
    let now = service.now();
    let nanos = now.wall.time().map_or(0, |at| u64::from(at.nanos));
    now.mono.0.rotate_left(32) ^ nanos ^ u64::from(std::process::id())
}
