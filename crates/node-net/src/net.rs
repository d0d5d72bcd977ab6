// SPDX-License-Identifier: Apache-2.0
//! Everything net does, without the process around it: desired objects in, kernel and names brought there, reports out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipc::calls::NetReply;
use model::desired::{NetworkDesired, VifsDesired};
use model::id::{AppId, NetworkInstanceId};
use model::observed::{LinkMetrics, NetworkObserved, PortObserved, VifObserved, VifsObserved};
use model::reason::{Fault, Reason};
use node_core::net::{Intent, Standing, intent};

use crate::dns::answer::Resolved;
use crate::dns::{Dns, Learn};
use crate::kernel::{self, Kernel, KernelError, PortSource, Round};
use crate::netlink::{NetlinkError, Socket};
use crate::nft;

/// How long access rules know an address at least: apps keep names longer than their time to live says.
const LEARNED_AT_LEAST: Duration = Duration::from_secs(3600);
/// And at most, whatever a server says.
const LEARNED_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// Addresses taken from one answer.
const MAX_LEARNED: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("opening netlink sockets")]
    Netlink(#[from] NetlinkError),
    #[error("starting the name server")]
    Dns(#[source] std::io::Error),
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
        let learn = HostSets(Mutex::new(Socket::netfilter()?));
        Ok(Net {
            kernel: Kernel::open(switches)?,
            dns: Dns::start(Arc::new(learn)).map_err(OpenError::Dns)?,
            source,
            ports: Vec::new(),
            intent: Intent::default(),
            apps: BTreeMap::new(),
            report: Report::default(),
        })
    }

    /// Looks at the ports anew.
    pub fn look(&mut self) -> Result<&[PortObserved], KernelError> {
        self.ports = kernel::ports(&self.kernel.links()?, &self.source);
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
        self.intent = next;
        self.apps = apps.iter().map(|app| (app.app, app.clone())).collect();
        self.report = self.judge(networks, round, &dns_faults);
        self.report.clone()
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
        self.kernel.attach(&self.intent, app, namespace, inside)?;
        let mut dns: Vec<Ipv4Addr> = Vec::new();
        let mut hosts = Vec::new();
        for vif in desired.vifs.iter().filter_map(|vif| self.intent.vifs.get(&vif.host_name)) {
            if !dns.contains(&vif.gateway) {
                dns.push(vif.gateway);
            }
            hosts.push((vif.address, desired.name.clone()));
        }
        Ok(NetReply::Attached { dns, hosts })
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

/// The sets of addresses behind rules that speak of names, fed by the name server's threads.
struct HostSets(Mutex<Socket>);

impl Learn for HostSets {
    fn learn(&self, set: &str, resolved: &[Resolved]) {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
