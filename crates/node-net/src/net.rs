// SPDX-License-Identifier: Apache-2.0
//! Everything net does, without the process around it: desired objects in, kernel and names brought there, reports out.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipc::calls::NetReply;
use model::desired::{NetworkDesired, VifsDesired};
use model::flow::{FlowCounters, FlowReport, Lookup};
use model::id::{AppId, NetworkInstanceId};
use model::observed::{LinkMetrics, NetworkObserved, PortObserved, VifObserved, VifsObserved};
use model::reason::{Fault, Reason};
use model::time::{MonoMs, Now};
use node_core::net::flows::{DroppedPacket, FlowLog};
use node_core::net::{Addressing, Intent, Standing, intent, read_drop_word, sighting_of};

use crate::dhcp::{Asked, DhcpServer, Leases, Seat};
use crate::dns::answer::Resolved;
use crate::dns::{Dns, Learn};
use crate::kernel::{self, Kernel, KernelError, PortSource, Round};
use crate::listen::{Ended, Shown};
use crate::netlink::{NetlinkError, Socket};
use crate::nft;
use crate::uplinks::Uplinks;

/// How long access rules know an address at least: apps keep names longer than their time to live says.
const LEARNED_AT_LEAST: Duration = Duration::from_secs(3600);
/// And at most, whatever a server says.
const LEARNED_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// Addresses taken from one answer.
const MAX_LEARNED: usize = 32;
/// Lookups that wait for the flow log; more are lost.
const MAX_LOOKUPS: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("opening netlink sockets")]
    Netlink(#[from] NetlinkError),
    #[error("starting the name server")]
    Dns(#[source] std::io::Error),
    #[error("starting the DHCP server and clients")]
    Dhcp(#[source] std::io::Error),
}

/// What stands after a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub networks: BTreeMap<NetworkInstanceId, NetworkObserved>,
    pub apps: BTreeMap<AppId, VifsObserved>,
    /// In words, for the log.
    pub changes: Vec<String>,
}

impl Report {
    /// Something is not as ordered; another round may help.
    pub fn has_faults(&self) -> bool {
        self.networks.values().any(|network| network.fault.is_some())
            || self.apps.values().flat_map(|app| &app.vifs).any(|vif| vif.fault.is_some())
    }
}

#[derive(Debug)]
pub struct Net {
    kernel: Kernel,
    dns: Dns,
    dhcp: DhcpServer,
    leases: Leases,
    /// Nothing: the ports are somebody else's.
    uplinks: Option<Uplinks>,
    shown: Shown,
    ended: Ended,
    flows: FlowLog,
    learned: Arc<Learned>,
    /// Addresses apps on switches were seen to have, by node's end, and until when to believe it.
    seen: BTreeMap<String, (Ipv4Addr, MonoMs)>,
    source: PortSource,
    ports: Vec<PortObserved>,
    /// Of the last round.
    intent: Intent,
    apps: BTreeMap<AppId, VifsDesired>,
    /// Of the last round.
    report: Report,
}

impl Net {
    /// `switches` is `/proc/sys/net` of the node's network namespace.
    pub fn open(switches: &Path, source: PortSource) -> Result<Net, OpenError> {
        let learned = Arc::new(Learned { sets: Mutex::new(Socket::netfilter()?), lookups: Mutex::default() });
        Ok(Net {
            kernel: Kernel::open(switches)?,
            dns: Dns::start(learned.clone()).map_err(OpenError::Dns)?,
            dhcp: DhcpServer::start().map_err(OpenError::Dhcp)?,
            leases: Leases::start().map_err(OpenError::Dhcp)?,
            uplinks: match source.is_configured_here {
                true => Some(Uplinks::start().map_err(OpenError::Dhcp)?),
                false => None,
            },
            shown: Shown::open()?,
            ended: Ended::open()?,
            flows: FlowLog::default(),
            learned,
            seen: BTreeMap::new(),
            source,
            ports: Vec::new(),
            intent: Intent::default(),
            apps: BTreeMap::new(),
            report: Report::default(),
        })
    }

    /// Looks at the ports anew, and at what they need where they are ours.
    pub fn look(&mut self) -> Result<&[PortObserved], KernelError> {
        let links = self.kernel.links()?;
        let ports = kernel::port_links(&links, &self.source);
        if let Some(uplinks) = &mut self.uplinks {
            uplinks.tend(&mut self.kernel, &ports);
        }
        self.ports = kernel::ports(ports, &self.source);
        if let Some(uplinks) = &self.uplinks {
            for port in &mut self.ports {
                let told = uplinks.dns(&port.name);
                if !told.is_empty() {
                    port.dns = told;
                }
            }
        }
        Ok(&self.ports)
    }

    /// One round: what is desired now, given the ports of the last look.
    pub fn apply(&mut self, networks: &[NetworkDesired], apps: &[VifsDesired]) -> Report {
        let next = intent(networks, apps, &self.ports);
        let round = self.kernel.apply(&next);
        let dns_faults = self.dns.faults();
        if next.zones != self.intent.zones || !dns_faults.is_empty() {
            self.dns.set_zones(&next.zones);
        }
        let dhcp_faults = self.dhcp.faults();
        if next.scopes != self.intent.scopes || !dhcp_faults.is_empty() {
            self.dhcp.set_scopes(&next.scopes);
        }
        self.leases.keep(|link| next.vifs.get(link).is_some_and(|vif| vif.addressing == Addressing::Outside));
        self.seen.retain(|link, _| next.vifs.contains_key(link));
        let is_logged = next.vifs.values().any(|vif| vif.is_flow_logged);
        if let Err(error) = self.ended.listen(is_logged) {
            service::log::warn(format_args!("flows are not recorded: {}", chain(&error)));
        }
        self.intent = next;
        self.apps = apps.iter().map(|app| (app.app, app.clone())).collect();
        let serving = dns_faults.into_iter().chain(dhcp_faults).collect();
        self.report = self.judge(networks, round, &serving);
        self.with_addresses()
    }

    /// The app has been ordered, as far as this process knows.
    pub fn knows(&self, app: AppId) -> bool {
        self.intent.apps.contains_key(&app)
    }

    /// Gives an app's network namespace all its interfaces, or says why not.
    pub fn attach(
        &mut self,
        app: AppId,
        namespace: BorrowedFd<'_>,
        inside: OwnedFd,
        datagrams: Option<OwnedFd>,
    ) -> Result<NetReply, Fault> {
        let (Some(observed), Some(desired)) = (self.report.apps.get(&app), self.apps.get(&app)) else {
            return Err(Fault::new(
                Reason::ServiceUnavailable,
                format!("app {app} has no order for interfaces"),
            ));
        };
        // An interface without its rules in force is not made.
        if let Some(fault) = observed.vifs.iter().find_map(|vif| vif.fault.clone()) {
            return Err(fault);
        }
        let untrusted_routes = inside.try_clone();
        self.kernel.attach(&self.intent, app, namespace, inside)?;
        for (link, vif) in self.intent.vifs.iter().filter(|(_, vif)| vif.app == app) {
            if vif.addressing != Addressing::Outside {
                continue;
            }
            let failed = |text: String| Fault::new(Reason::Internal, format!("{link}: {text}"));
            let routes = untrusted_routes.as_ref().map_err(|error| failed(error.to_string()))?;
            let routes = routes.try_clone().map_err(|error| failed(error.to_string()))?;
            let routes = Socket::from_untrusted(routes).map_err(|error| failed(chain(&error)))?;
            let datagrams = datagrams.as_ref().map(OwnedFd::try_clone).transpose();
            let Some(datagrams) = datagrams.map_err(|error| failed(error.to_string()))? else {
                return Err(failed("no socket to ask for an address with".to_string()));
            };
            let seat = Seat {
                name: vif.inner_name.clone(),
                mac: vif.mac,
                has_default: vif.is_default,
                metric: 0,
                is_ours_alone: false,
            };
            self.leases.ask(link, Asked { seat, datagrams, routes });
        }
        let mut dns: Vec<Ipv4Addr> = Vec::new();
        let mut hosts = Vec::new();
        for vif in desired.vifs.iter().filter_map(|vif| self.intent.vifs.get(&vif.host_name)) {
            if let Addressing::Routed { gateway, .. } = vif.addressing
                && !dns.contains(&gateway)
            {
                dns.push(gateway);
            }
            hosts.extend(vif.address().map(|address| (address, desired.name.clone())));
        }
        Ok(NetReply::Attached { dns, hosts })
    }

    /// Interfaces of the app that still wait for an address from outside.
    pub fn awaits_address(&self, app: AppId) -> bool {
        let held = self.leases.held();
        let mut outside = self.intent.vifs.iter().filter(|(_, vif)| vif.app == app);
        outside.any(|(link, vif)| vif.addressing == Addressing::Outside && !held.contains_key(link))
    }

    pub fn name_of(&self, app: AppId) -> Option<String> {
        self.apps.get(&app).map(|app| app.name.clone())
    }

    /// What servers outside told the app.
    pub fn outside(&self, app: AppId) -> (Vec<Ipv4Addr>, Vec<Ipv4Addr>) {
        let held = self.leases.held();
        let of_app = self.intent.vifs.iter().filter(|(_, vif)| vif.app == app);
        let leases: Vec<_> = of_app.filter_map(|(link, _)| held.get(link)).collect();
        let dns = leases.iter().flat_map(|lease| lease.dns.iter().copied()).collect();
        (dns, leases.iter().map(|lease| lease.address.address).collect())
    }

    /// Descriptors that can be read when [`Net::told`] has something to take.
    pub fn watched(&self) -> Result<Vec<OwnedFd>, OpenError> {
        let mut all = vec![self.shown.fd()?, self.ended.fd()?, self.leases.fd().map_err(OpenError::Dhcp)?];
        if let Some(uplinks) = &self.uplinks {
            all.push(uplinks.fd().map_err(OpenError::Dhcp)?);
        }
        Ok(all)
    }

    /// Whether a port was told something new since the last question.
    pub fn are_ports_changed(&self) -> bool {
        self.uplinks.as_ref().is_some_and(Uplinks::is_changed)
    }

    /// Takes what the kernel told: addresses seen, flows ended, packets dropped. Says whether addresses changed.
    pub fn told(&mut self, now: Now) -> bool {
        self.leases.seen();
        let before: Vec<_> = self.seen.iter().map(|(link, (address, _))| (link.clone(), *address)).collect();
        let (intent, flows, seen) = (&self.intent, &mut self.flows, &mut self.seen);
        self.shown.read(|word, untrusted_packet| {
            if let Some(by) = read_drop_word(word) {
                if let Some(packet) = DroppedPacket::parse(untrusted_packet) {
                    flows.dropped((now.mono, now.wall.time()), intent, by, packet);
                }
            } else if let Some(sighting) = sighting_of(word, untrusted_packet)
                && intent.vifs.contains_key(&sighting.link)
            {
                seen.insert(sighting.link, (sighting.address, now.mono.plus_s(sighting.lasts_s.into())));
            }
        });
        if self.ended.read(|flow| flows.ended(now.mono, intent, flow)) {
            service::log::warn(format_args!("more flows ended at once than could be recorded"));
        }
        self.seen.retain(|_, (_, until)| *until > now.mono);
        !self.seen.iter().map(|(link, (address, _))| (link.clone(), *address)).eq(before)
    }

    /// Closes messages of the flow log that are due.
    pub fn gather(&mut self, now: Now) {
        for (link, lookup) in std::mem::take(&mut *lock(&self.learned.lookups)) {
            let lookup = Lookup { at: now.wall.time(), ..lookup };
            self.flows.asked(now.mono, &self.intent, &link, lookup);
        }
        self.flows.wake(now.mono);
    }

    pub fn next_flows(&self) -> Option<&(u64, FlowReport)> {
        self.flows.next()
    }

    pub fn flows_lost(&self) -> FlowCounters {
        self.flows.lost()
    }

    pub fn flows_taken(&mut self, batch: u64) {
        self.flows.taken(batch);
    }

    /// The last report, with addresses as they are now.
    pub fn with_addresses(&self) -> Report {
        let held = self.leases.held();
        let mut report = self.report.clone();
        for vif in report.apps.values_mut().flat_map(|app| &mut app.vifs) {
            let seen = || self.seen.get(&vif.host_name).map(|(address, _)| *address);
            let leased = || held.get(&vif.host_name).map(|lease| lease.address.address);
            vif.address = vif.address.or_else(leased).or_else(seen);
        }
        report
    }

    pub fn metrics(&mut self) -> Result<Vec<LinkMetrics>, KernelError> {
        self.kernel.metrics(&self.intent, &self.ports)
    }

    fn judge(
        &self,
        networks: &[NetworkDesired],
        round: Result<Round, KernelError>,
        dns_faults: &BTreeMap<String, String>,
    ) -> Report {
        // What failed as a whole struck every object.
        let (round, failure) = match round {
            Ok(round) => (round, None),
            Err(error) => {
                let fault = Fault::new(Reason::NetworkFailed, chain(&error));
                (Round::default(), Some(fault))
            }
        };
        let fault_of = |standing: &Standing| {
            let of_link = || round.faults.get(&standing.link).cloned();
            standing.fault.clone().or_else(|| failure.clone()).or_else(of_link)
        };
        let mut report = Report { changes: round.changes.clone(), ..Report::default() };
        for network in networks {
            let Some(standing) = self.intent.networks.get(&network.id) else { continue };
            let fault = fault_of(standing);
            let no_names =
                || dns_faults.get(&standing.link).map(|text| Fault::new(Reason::NetworkFailed, text.clone()));
            let observed = NetworkObserved {
                id: network.id,
                bridge: standing.link.clone(),
                is_up: fault.is_none(),
                mtu: self.intent.bridges.get(&standing.link).map_or(0, |bridge| bridge.mtu),
                uplink: standing.uplink.clone(),
                fault: fault.or_else(no_names),
            };
            report.networks.insert(network.id, observed);
        }
        for (app, desired) in &self.apps {
            let standings = self.intent.apps.get(app).map(Vec::as_slice).unwrap_or_default();
            let vifs = desired.vifs.iter().zip(standings).map(|(vif, standing)| {
                let of_bridge = || round.faults.get(&self.intent.vifs.get(&vif.host_name)?.bridge).cloned();
                let fault = fault_of(standing).or_else(of_bridge);
                VifObserved {
                    name: vif.name.clone(),
                    host_name: vif.host_name.clone(),
                    mac: vif.mac,
                    address: vif.address,
                    is_ready: fault.is_none(),
                    fault,
                }
            });
            report.apps.insert(*app, VifsObserved { app: *app, vifs: vifs.collect() });
        }
        report
    }
}

/// What the name server's threads hand over: addresses for rules that speak of names, and lookups for the flow log.
#[derive(Debug)]
struct Learned {
    sets: Mutex<Socket>,
    /// By node's end of the interface.
    lookups: Mutex<VecDeque<(String, Lookup)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Learn for Learned {
    fn asked(&self, link: &str, name: &str, addresses: &[Ipv4Addr]) {
        let mut lookups = lock(&self.lookups);
        if lookups.len() < MAX_LOOKUPS {
            let lookup = Lookup { name: name.to_string(), addresses: addresses.to_vec(), at: None };
            lookups.push_back((link.to_string(), lookup));
        }
    }

    fn learn(&self, set: &str, resolved: &[Resolved]) {
        let mut socket = lock(&self.sets);
        for one in resolved.iter().take(MAX_LEARNED) {
            let lasts = Duration::from_secs(one.ttl_s.into()).clamp(LEARNED_AT_LEAST, LEARNED_AT_MOST);
            if let Err(error) = nft::learn(&mut socket, set, one.address, lasts) {
                service::log::warn(format_args!("{set} does not learn {}: {}", one.address, chain(&error)));
            }
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
