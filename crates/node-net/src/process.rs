// SPDX-License-Identifier: Apache-2.0
//! The process around [`Net`]: topics in, topics out, shims that attach, counters every few seconds.
//!
//! ```text
//! topics, link events, retry ─ look ─ publish ports ─ all inputs synced? ─ apply ─ publish what stands ─ waiting shims
//! ```
//! Before both topics are synced nothing is changed: absent is not deleted. The planner in turn decides nothing before
//! this process has said what stands, so after a short wait for its orders it says that nothing does. A shim that asks too early waits for its
//! answer. A round is taken at every event; on a kernel that is right it changes nothing and costs a few listings.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use ipc::calls::{self, NetReply, NetRequest};
use ipc::topics::{self, Topic};
use model::id::AppId;
use model::observed::{PortObserved, VifsObserved};
use model::reason::{Fault, Reason};
use model::time::MonoMs;
use rustix::net::RecvFlags;
use service::{Event, IncomingCall, Service, log};

use crate::kernel::PortSource;
use crate::net::{Net, OpenError, Report, chain};
use crate::netlink::{NetlinkError, Socket};
use crate::route;

const METRICS_EVERY: Duration = Duration::from_secs(10);
/// After a round that left faults.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A shim waits so long for the order of its app.
const ATTACH_PATIENCE: Duration = Duration::from_secs(10);
/// Orders that stand already (this process was restarted) are here within this time.
const ORDERS_PATIENCE: Duration = Duration::from_millis(300);
/// Shims that wait at once.
const MAX_WAITING: usize = 64;
const SWITCHES: &str = "/proc/sys/net";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Settings of init: comma-separated Linux names of the uplinks, and addresses of name servers.
const SETTING_UPLINKS: &str = "uplinks";
const SETTING_DNS: &str = "dns";
/// The service that takes flow reports.
const FLOWS_FOR: &str = "agent";
const LINK_EVENTS: u64 = 1;
/// What netfilter and the DHCP clients tell: this token and the next ones.
const TOLD: u64 = 2;
/// Recorded flows and lookups become messages at this pace.
const GATHER_EVERY: Duration = Duration::from_secs(2);
/// An app on a switch starts without an address when no server outside gives one within this time; it gets it later.
const LEASE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("listening for changes of links")]
    Listen(#[from] NetlinkError),
}

/// Runs until init asks to end. What was made stays: apps go on while this process restarts.
pub fn run(mut service: Service) -> Result<(), ProcessError> {
    let net = Net::open(SWITCHES.as_ref(), port_source(&service))?;
    let events = Socket::listen(route::CHANGES)?.into_fd();
    let for_poll = rustix::io::fcntl_dupfd_cloexec(&events, 0)
        .map_err(|errno| ProcessError::Listen(NetlinkError::Socket(errno)))?;
    service.watch(LINK_EVENTS, for_poll);
    for (token, fd) in (TOLD..).zip(net.watched()?) {
        service.watch(token, fd);
    }
    service.subscribe::<topics::NetworkDesired>();
    service.subscribe::<topics::VifsDesired>();
    let now = service.now().mono;
    let mut process = Process {
        service,
        net,
        events,
        waiting: Vec::new(),
        leasing: Vec::new(),
        gather_at: now,
        published: Published::default(),
        metrics_at: now,
        retry_at: Some(now),
        orders_until: Some(now.plus_ms(ms(ORDERS_PATIENCE))),
    };
    process.serve();
    Ok(())
}

fn port_source(service: &Service) -> PortSource {
    let list = |key: &str| {
        let text = service.settings().get(key).cloned().unwrap_or_default();
        text.split(',').map(|word| word.trim().to_string()).filter(|word| !word.is_empty()).collect()
    };
    let names: Vec<String> = list(SETTING_UPLINKS);
    let dns: Vec<String> = list(SETTING_DNS);
    PortSource {
        names,
        dns: dns.iter().filter_map(|word| word.parse().ok()).collect(),
        resolv_conf: Some(PathBuf::from(RESOLV_CONF)),
        is_configured_here: service.settings().get("mode").is_some_and(|mode| mode == "booted"),
    }
}

struct Process {
    service: Service,
    net: Net,
    events: OwnedFd,
    waiting: Vec<Waiting>,
    leasing: Vec<Leasing>,
    gather_at: MonoMs,
    published: Published,
    metrics_at: MonoMs,
    /// When to go another round without being told.
    retry_at: Option<MonoMs>,
    /// End of the wait for orders that stand already.
    orders_until: Option<MonoMs>,
}

/// A shim that asked before its app was ordered.
struct Waiting {
    app: AppId,
    call: IncomingCall,
    until: MonoMs,
}

/// A shim whose app is on its networks, but for an address from outside.
struct Leasing {
    app: AppId,
    call: IncomingCall,
    reply: NetReply,
    until: MonoMs,
}

/// Keys that stand on topics of ours.
#[derive(Default)]
struct Published {
    ports: BTreeSet<String>,
    networks: BTreeSet<String>,
    vifs: BTreeSet<String>,
    addresses: BTreeMap<AppId, VifsObserved>,
    metrics: BTreeSet<String>,
}

impl Process {
    fn serve(&mut self) {
        loop {
            let waits = self.waiting.iter().map(|one| one.until);
            let leases = self.leasing.iter().map(|one| one.until);
            let rounds = [self.metrics_at, self.gather_at];
            let deadline = waits.chain(leases).chain(self.retry_at).chain(rounds).min();
            match self.service.next(deadline) {
                Event::Topics(_) => self.round(),
                Event::Readable(LINK_EVENTS) => {
                    self.drain();
                    self.round();
                }
                Event::Readable(_) => self.told(),
                Event::Call(call) => self.asked(call),
                Event::Deadline => self.due(),
                Event::Channel(_) | Event::Worker(()) => {}
                Event::Stop => return,
            }
        }
    }

    fn due(&mut self) {
        let now = self.service.now().mono;
        if self.retry_at.is_some_and(|at| at <= now) {
            self.round();
        }
        if self.metrics_at <= now {
            self.metrics_at = now.plus_ms(ms(METRICS_EVERY));
            self.metrics();
        }
        if self.gather_at <= now {
            self.gather_at = now.plus_ms(ms(GATHER_EVERY));
            let now = self.service.now();
            self.net.gather(now);
            // What is no longer seen is no longer said.
            if self.net.told(now) {
                self.publish_addresses();
            }
        }
        self.leased();
        let (over, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|one| one.until <= now);
        self.waiting = waiting;
        let over: Vec<Waiting> = over;
        for one in over {
            let text = format!("interfaces of app {} are not ordered", one.app);
            answer(one.call, Err(Fault::new(Reason::ServiceUnavailable, text)));
        }
    }

    fn told(&mut self) {
        if self.net.are_ports_changed() {
            self.round();
        }
        let held = self.published.addresses.clone();
        let is_changed = self.net.told(self.service.now());
        if is_changed || self.net.with_addresses().apps != held {
            self.publish_addresses();
        }
        self.leased();
    }

    fn publish_addresses(&mut self) {
        let report = self.net.with_addresses();
        for (id, app) in &report.apps {
            self.service.publish::<topics::VifsObserved>(&id.to_string(), app);
        }
        self.published.addresses = report.apps;
    }

    /// Answers shims whose apps have all their addresses, or have waited long enough.
    fn leased(&mut self) {
        let now = self.service.now().mono;
        let (ready, leasing): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leasing)
            .into_iter()
            .partition(|one| one.until <= now || !self.net.awaits_address(one.app));
        self.leasing = leasing;
        for Leasing { app, call, reply, .. } in ready {
            let reply = self.with_outside(app, reply);
            log::info(format_args!("app {app} is on its networks"));
            answer(call, Ok(reply));
        }
    }

    /// Name servers of its own networks come first: they know its neighbours and ask others.
    fn with_outside(&self, app: AppId, reply: NetReply) -> NetReply {
        match reply {
            NetReply::Attached { mut dns, mut hosts } => {
                let (servers, addresses) = self.net.outside(app);
                if dns.is_empty() {
                    dns = servers;
                }
                let name = self.net.name_of(app).unwrap_or_default();
                hosts.extend(addresses.into_iter().map(|address| (address, name.clone())));
                NetReply::Attached { dns, hosts }
            }
            other => other,
        }
    }

    /// Many events are one reason for one round. A lost one as well.
    fn drain(&mut self) {
        let mut buffer = [0_u8; 8];
        while matches!(
            rustix::net::recv(&self.events, &mut buffer, RecvFlags::DONTWAIT),
            Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR)
        ) {}
    }

    fn round(&mut self) {
        self.retry_at = None;
        let retry_at = self.service.now().mono.plus_ms(ms(RETRY_AFTER));
        match self.net.look() {
            Ok(ports) => {
                let ports = ports.to_vec();
                self.publish_ports(&ports);
            }
            Err(error) => {
                log::error(format_args!("{}", chain(&error)));
                self.retry_at = Some(retry_at);
                return;
            }
        }
        if !self.service.is_synced::<topics::NetworkDesired>()
            || !self.service.is_synced::<topics::VifsDesired>()
        {
            self.await_orders();
            return;
        }
        self.orders_until = None;
        let networks: Vec<_> = self.service.all::<topics::NetworkDesired>().into_values().collect();
        let apps: Vec<_> = self.service.all::<topics::VifsDesired>().into_values().collect();
        let report = self.net.apply(&networks, &apps);
        for change in &report.changes {
            log::info(format_args!("{change}"));
        }
        if report.has_faults() {
            self.retry_at = Some(retry_at);
        }
        self.publish_report(&report);
        let (known, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| self.net.knows(one.app));
        self.waiting = waiting;
        for one in known {
            self.attach(one.app, one.call);
        }
    }

    /// There are no orders yet: a fresh start, or a planner that waits for us.
    fn await_orders(&mut self) {
        match self.orders_until {
            Some(until) if self.service.now().mono < until => self.retry_at = Some(until),
            Some(_) => {
                self.orders_until = None;
                self.service.synced::<topics::NetworkObserved>();
                self.service.synced::<topics::VifsObserved>();
            }
            None => {}
        }
    }

    fn asked(&mut self, call: IncomingCall) {
        let app = match call.decode::<calls::Net>() {
            Ok(NetRequest::Attach { app }) => app,
            // Flows of all apps are for the one process that reports them.
            Ok(NetRequest::NextFlows | NetRequest::FlowsTaken { .. }) if call.from() != FLOWS_FOR => {
                let text = format!("{} asks for flows", call.from());
                log::error(format_args!("{text}"));
                return answer(call, Err(Fault::new(Reason::Internal, text)));
            }
            Ok(NetRequest::NextFlows) => {
                let reply = match self.net.next_flows() {
                    Some((batch, report)) => {
                        NetReply::Flows { batch: *batch, report: report.clone(), lost: self.net.flows_lost() }
                    }
                    None => NetReply::NoFlows,
                };
                return answer(call, Ok(reply));
            }
            Ok(NetRequest::FlowsTaken { batch }) => {
                self.net.flows_taken(batch);
                return answer(call, Ok(NetReply::Done));
            }
            Err(error) => {
                log::warn(format_args!("question of {} cannot be read: {error}", call.from()));
                return;
            }
        };
        if call.key() != app.to_string() {
            let text = format!("{} {} asks for the interfaces of app {app}", call.from(), call.key());
            log::error(format_args!("{text}"));
            answer(call, Err(Fault::new(Reason::Internal, text)));
        } else if self.net.knows(app) {
            self.attach(app, call);
        } else if self.waiting.len() < MAX_WAITING {
            let until = self.service.now().mono.plus_ms(ms(ATTACH_PATIENCE));
            self.waiting.push(Waiting { app, call, until });
        } else {
            let text = "too many apps wait for their interfaces";
            answer(call, Err(Fault::new(Reason::ServiceUnavailable, text)));
        }
    }

    fn attach(&mut self, app: AppId, mut call: IncomingCall) {
        let mut fds = call.take_fds().into_iter();
        let result = match (fds.next(), fds.next(), fds.next()) {
            (Some(namespace), Some(inside), datagrams) => {
                self.net.attach(app, namespace.as_fd(), inside, datagrams)
            }
            _ => {
                let text = format!("app {app} brought no namespace and no socket opened inside it");
                Err(Fault::new(Reason::Internal, text))
            }
        };
        match result {
            Ok(reply) => {
                let until = self.service.now().mono.plus_ms(ms(LEASE_PATIENCE));
                self.leasing.push(Leasing { app, call, reply, until });
                self.leased();
            }
            Err(fault) => {
                log::error(format_args!("app {app} is not on its networks: {fault}"));
                answer(call, Err(fault));
            }
        }
    }

    fn publish_ports(&mut self, ports: &[PortObserved]) {
        let keys = ports.iter().map(|port| port.name.clone()).collect();
        for port in ports {
            self.service.publish::<topics::PortObserved>(&port.name, port);
        }
        replace::<topics::PortObserved>(&mut self.service, &mut self.published.ports, keys);
    }

    fn publish_report(&mut self, report: &Report) {
        for (id, network) in &report.networks {
            self.service.publish::<topics::NetworkObserved>(&id.to_string(), network);
        }
        for (id, app) in &report.apps {
            self.service.publish::<topics::VifsObserved>(&id.to_string(), app);
        }
        self.published.addresses = report.apps.clone();
        let keys = report.networks.keys().map(ToString::to_string).collect();
        replace::<topics::NetworkObserved>(&mut self.service, &mut self.published.networks, keys);
        let keys = report.apps.keys().map(ToString::to_string).collect();
        replace::<topics::VifsObserved>(&mut self.service, &mut self.published.vifs, keys);
    }

    fn metrics(&mut self) {
        match self.net.metrics() {
            Ok(metrics) => {
                for link in &metrics {
                    self.service.publish::<topics::LinkMetrics>(&link.name, link);
                }
                let keys = metrics.into_iter().map(|link| link.name).collect();
                replace::<topics::LinkMetrics>(&mut self.service, &mut self.published.metrics, keys);
            }
            Err(error) => log::error(format_args!("{}", chain(&error))),
        }
    }
}

/// Takes away keys that no longer stand and says that the others are all.
fn replace<T: Topic>(service: &mut Service, old: &mut BTreeSet<String>, new: BTreeSet<String>) {
    for key in old.difference(&new) {
        service.remove::<T>(key);
    }
    service.synced::<T>();
    *old = new;
}

fn answer(call: IncomingCall, result: Result<calls::NetReply, Fault>) {
    if let Err(error) = call.reply::<calls::Net>(&result, &[]) {
        log::warn(format_args!("a shim does not take its answer: {error}"));
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
