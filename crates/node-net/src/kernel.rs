// SPDX-License-Identifier: Apache-2.0
//! The one place that changes the kernel: looks, performs the steps of an intent, puts apps on their networks.
//!
//! Order of one round: links that go, switches, rules, links that come. So no link is ever there without its rules.
//! A round on a kernel that is right changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use model::id::AppId;
use model::net::Prefix4;
use model::observed::{LinkMetrics, PortObserved};
use model::reason::{Fault, Reason};
use node_core::net::links::{Frames, LinkKind, LinkSeen, Step, Way, steps};
use node_core::net::rules::Half;
use node_core::net::{Addressing, Dropped, Intent, Vif, drop_counter};

use node_core::net::dhcp::client::Lease;

use crate::dhcp::Seat;
use crate::netlink::{NetlinkError, Socket};
use crate::nft;
use crate::route::{self, Link, NewVeth};

const EVERYTHING: Prefix4 = Prefix4 { address: Ipv4Addr::UNSPECIFIED, length: 0 };
/// Name servers of one port that are reported and asked.
const MAX_PORT_DNS: usize = 4;
/// Search domains that are reported, as many as resolvers take, and bytes of one name (RFC 1035).
const MAX_SEARCH: usize = 6;
const MAX_NAME: usize = 253;
/// Bytes of a resolv.conf that are read.
const MAX_RESOLV_CONF: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("listing links")]
    Look(#[source] NetlinkError),
    #[error("replacing the rules")]
    Rules(#[source] NetlinkError),
    #[error("switch {path}")]
    Switch { path: String, source: std::io::Error },
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Round {
    /// In words, for the log; empty: all was well.
    pub changes: Vec<String>,
    /// Links that could not be made as intended.
    pub faults: BTreeMap<String, Fault>,
}

/// Where facts about ports come from besides the kernel.
#[derive(Clone, Debug, Default)]
pub struct PortSource {
    /// Names of the uplinks; empty: every Ethernet link that is not ours and no port of another.
    pub names: Vec<String>,
    /// Name servers by setting; empty: those of `resolv_conf`.
    pub dns: Vec<Ipv4Addr>,
    pub resolv_conf: Option<PathBuf>,
    /// The box is ours: ports are brought up and get their addresses by DHCP.
    pub is_configured_here: bool,
}

#[derive(Debug)]
pub struct Kernel {
    route: Socket,
    netfilter: Socket,
    /// `/proc/sys/net` of the node's network namespace.
    switches: PathBuf,
}

impl Kernel {
    pub fn open(switches: &Path) -> Result<Kernel, NetlinkError> {
        Ok(Kernel {
            route: Socket::route()?,
            netfilter: Socket::netfilter()?,
            switches: switches.to_path_buf(),
        })
    }

    pub(crate) fn routes(&mut self) -> &mut Socket {
        &mut self.route
    }

    pub(crate) fn links(&mut self) -> Result<BTreeMap<String, Link>, KernelError> {
        route::links(&mut self.route).map_err(KernelError::Look)
    }

    /// Goes one round towards the intent.
    pub fn apply(&mut self, intent: &Intent) -> Result<Round, KernelError> {
        let seen: BTreeMap<String, LinkSeen> =
            self.links()?.into_iter().map(|(name, link)| (name, link.seen)).collect();
        let steps = steps(intent, &seen);
        let mut round = Round::default();
        for step in steps.iter().filter(|step| step.is_removal()) {
            self.perform(step, &mut round);
        }
        self.switch(&intent.switches, &mut round)?;
        let no_links = BTreeMap::new();
        if nft::apply(&mut self.netfilter, nft::JUDGES, &intent.ruleset, &no_links)
            .map_err(KernelError::Rules)?
        {
            round.changes.push("rules replaced".to_string());
        }
        for step in steps.iter().filter(|step| !step.is_removal()) {
            self.perform(step, &mut round);
        }
        self.switch(&intent.link_switches, &mut round)?;
        self.tap(intent, &mut round)?;
        Ok(round)
    }

    /// Leads frames between uplinks and switches, once their links are there. An uplink that no switch needs any more
    /// takes in its own frames only, as before.
    fn tap(&mut self, intent: &Intent, round: &mut Round) -> Result<(), KernelError> {
        let tapped = nft::tapped(&mut self.netfilter).map_err(KernelError::Rules)?;
        if intent.taps.tables.is_empty() && tapped.is_empty() {
            return Ok(());
        }
        let links = self.links()?;
        let outer = intent.patches.values().flat_map(|patch| [&patch.outer, &patch.uplink]);
        let numbers: BTreeMap<String, u32> =
            outer.filter_map(|name| Some((name.clone(), links.get(name)?.index))).collect();
        if nft::apply(&mut self.netfilter, nft::TAPS, &intent.taps, &numbers).map_err(KernelError::Rules)? {
            round.changes.push("uplinks tapped".to_string());
        }
        for link in tapped {
            let is_over = !intent.listening.contains(&link);
            if is_over && links.get(&link).is_some_and(|seen| seen.seen.is_listening && !seen.seen.is_ours) {
                self.perform(&Step::Listen { link, to: Frames::Own }, round);
            }
        }
        Ok(())
    }

    /// Gives an interface the address a server outside gave it, in place of `old`.
    pub(crate) fn lease(
        inside: &mut Socket,
        seat: &Seat,
        old: Option<&Lease>,
        new: Option<&Lease>,
    ) -> Result<(), Fault> {
        let mut set = || -> Result<(), NetlinkError> {
            let own = route::links(inside)?.remove(&seat.name).ok_or(NetlinkError::Malformed)?;
            let index = own.index;
            for other in own.seen.addresses.iter().filter(|_| seat.is_ours_alone) {
                if new.is_none_or(|new| new.address != *other) {
                    route::remove_address(inside, index, *other)?;
                }
            }
            if let Some(old) = old.filter(|old| new.is_none_or(|new| new.address != old.address)) {
                route::remove_address(inside, index, old.address)?;
            }
            let Some(new) = new else { return Ok(()) };
            route::add_address(inside, index, new.address)?;
            for (to, via) in &new.routes {
                let via = Some(*via).filter(|via| !via.is_unspecified());
                match via {
                    Some(gateway) if to.length == 0 && seat.has_default => {
                        route::add_way_out(inside, index, gateway, seat.metric)?;
                    }
                    _ if to.length > 0 => route::add_route(inside, index, *to, via)?,
                    _ => {}
                }
            }
            if let Some(gateway) = new.gateway.filter(|_| seat.has_default) {
                route::add_way_out(inside, index, gateway, seat.metric)?;
            }
            Ok(())
        };
        set().map_err(|error| failed(&seat.name, &error))
    }

    /// Gives an app's network namespace all its interfaces. `inside` is a socket of routes opened in there. May be
    /// asked again for the same namespace.
    pub(crate) fn attach(
        &mut self,
        intent: &Intent,
        app: AppId,
        namespace: BorrowedFd<'_>,
        inside: OwnedFd,
    ) -> Result<Socket, Fault> {
        let mut inside = Socket::from_untrusted(inside)
            .map_err(|error| Fault::new(Reason::Internal, format!("socket of app {app}: {error}")))?;
        let vifs: Vec<(&String, &Vif)> = intent.vifs.iter().filter(|(_, vif)| vif.app == app).collect();
        route::set_up(&mut inside, "lo").map_err(|error| failed("lo", &error))?;
        for (link, vif) in vifs {
            self.attach_one(link, vif, namespace, &mut inside).map_err(|error| failed(link, &error))?;
        }
        Ok(inside)
    }

    fn attach_one(
        &mut self,
        link: &str,
        vif: &Vif,
        namespace: BorrowedFd<'_>,
        inside: &mut Socket,
    ) -> Result<(), NetlinkError> {
        let outer = route::links(&mut self.route)?.remove(link);
        let inner = route::links(inside)?.remove(&vif.inner_name);
        let is_pair_here = outer.as_ref().is_some_and(|outer| outer.seen.is_ours)
            && inner
                .is_some_and(|inner| inner.seen.kind == LinkKind::Veth && inner.seen.mac == Some(vif.mac));
        if !is_pair_here {
            // The other end lies in the namespace of an earlier instance.
            if outer.is_some_and(|outer| outer.seen.is_ours) {
                route::perform(&mut self.route, &Step::Delete { link: link.to_string() })?;
            }
            let new = NewVeth { link, inner_name: &vif.inner_name, inner_mac: vif.mac, namespace };
            route::add_veth(&mut self.route, &new)?;
        }
        let way = if vif.is_isolated() { Way::Isolated } else { Way::Open };
        let join = Step::Join { link: link.to_string(), bridge: vif.bridge.clone(), way };
        route::perform(&mut self.route, &join)?;
        route::set_mtu(&mut self.route, link, vif.mtu)?;
        route::set_mtu(inside, &vif.inner_name, vif.mtu)?;
        route::set_up(&mut self.route, link)?;

        let index = route::links(inside)?
            .get(&vif.inner_name)
            .map(|inner| inner.index)
            .ok_or(NetlinkError::Malformed)?;
        let single = |address| Prefix4 { address, length: 32 };
        match &vif.addressing {
            Addressing::Routed { address, gateway, subnet, routes } => {
                route::add_address(inside, index, single(*address))?;
                route::set_up(inside, &vif.inner_name)?;
                route::add_route(inside, index, single(*gateway), None)?;
                for to in [subnet].into_iter().chain(routes) {
                    route::add_route(inside, index, *to, Some(*gateway))?;
                }
                if vif.is_default {
                    route::add_route(inside, index, EVERYTHING, Some(*gateway))?;
                }
            }
            Addressing::OnLink { address, gateway } => {
                route::add_address(inside, index, *address)?;
                route::set_up(inside, &vif.inner_name)?;
                if let Some(gateway) = gateway.filter(|_| vif.is_default) {
                    route::add_route(inside, index, EVERYTHING, Some(gateway))?;
                }
            }
            Addressing::Outside => route::set_up(inside, &vif.inner_name)?,
        }
        Ok(())
    }

    /// Counters of ports and of apps' interfaces.
    pub fn metrics(
        &mut self,
        intent: &Intent,
        ports: &[PortObserved],
    ) -> Result<Vec<LinkMetrics>, KernelError> {
        let links = self.links()?;
        let drops = nft::counters(&mut self.netfilter).unwrap_or_default();
        let dropped =
            |name: &str, half, why| drops.get(&drop_counter(name, half, why)).copied().unwrap_or_default();
        let names = ports.iter().map(|port| (&port.name, None));
        let names = names.chain(intent.bridges.keys().map(|name| (name, None)));
        let names = names.chain(intent.vifs.iter().map(|(name, vif)| (name, Some(vif.app))));
        let metrics = names.filter_map(|(name, app)| {
            let stats = links.get(name)?.stats;
            Some(LinkMetrics {
                name: name.clone(),
                label: intent.vifs.get(name).map_or(name, |vif| &vif.inner_name).clone(),
                app,
                rx_bytes: stats.rx_bytes,
                tx_bytes: stats.tx_bytes,
                rx_packets: stats.rx_packets,
                tx_packets: stats.tx_packets,
                rx_drops: stats.rx_dropped,
                tx_drops: stats.tx_dropped,
                rx_errors: stats.rx_errors,
                tx_errors: stats.tx_errors,
                rx_acl_drops: dropped(name, Half::Out, Dropped::Denied),
                tx_acl_drops: dropped(name, Half::In, Dropped::Denied),
                rx_rate_drops: dropped(name, Half::Out, Dropped::Rate),
                tx_rate_drops: dropped(name, Half::In, Dropped::Rate),
            })
        });
        Ok(metrics.collect())
    }

    fn perform(&mut self, step: &Step, round: &mut Round) {
        match route::perform(&mut self.route, step) {
            Ok(()) => round.changes.push(format!("{step:?}")),
            Err(error) => {
                let link = step.link().to_string();
                let fault = failed(&link, &error);
                round.faults.entry(link).or_insert(fault);
            }
        }
    }

    /// A switch this kernel does not have needs no turning.
    fn switch(&self, switches: &BTreeMap<String, String>, round: &mut Round) -> Result<(), KernelError> {
        for (path, value) in switches {
            let file = self.switches.join(path);
            match fs::read_to_string(&file) {
                Ok(now) if now.trim() == value => {}
                Ok(_) => {
                    fs::write(&file, value)
                        .map_err(|source| KernelError::Switch { path: path.clone(), source })?;
                    round.changes.push(format!("{path} = {value}"));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(KernelError::Switch { path: path.clone(), source }),
            }
        }
        Ok(())
    }
}

/// The node's ports among all links.
pub(crate) fn port_links<'l>(
    links: &'l BTreeMap<String, Link>,
    source: &PortSource,
) -> BTreeMap<&'l String, &'l Link> {
    let is_port = |name: &String, link: &Link| {
        if source.names.is_empty() {
            link.is_ethernet && !link.seen.is_ours && !link.has_master && link.seen.kind != LinkKind::Bridge
        } else {
            source.names.contains(name)
        }
    };
    links.iter().filter(|(name, link)| is_port(name, link)).collect()
}

/// What is said of them.
pub(crate) fn ports(ports: BTreeMap<&String, &Link>, source: &PortSource) -> Vec<PortObserved> {
    let Resolver { servers: dns, search } = resolver(source);
    let has_any_gateway = ports.values().any(|link| !link.gateways.is_empty());
    ports
        .into_iter()
        .map(|(name, link)| PortObserved {
            name: name.clone(),
            mac: link.seen.mac,
            is_up: link.is_running,
            mtu: link.seen.mtu,
            addresses: link.seen.addresses.clone(),
            gateways: link.gateways.clone(),
            // They are the box's; they are reached where the way out is.
            dns: if link.gateways.is_empty() && has_any_gateway { Vec::new() } else { dns.clone() },
            search: if link.gateways.is_empty() && has_any_gateway { Vec::new() } else { search.clone() },
        })
        .collect()
}

/// What the box asks names of, and where it looks for short ones.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<Ipv4Addr>,
    search: Vec<String>,
}

fn resolver(source: &PortSource) -> Resolver {
    let untrusted_text = source.resolv_conf.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(&untrusted_text[..untrusted_text.len().min(MAX_RESOLV_CONF)]);
    let mut out = read_resolv_conf(&text);
    if !source.dns.is_empty() {
        out.servers = source.dns.clone();
    }
    out.servers.truncate(MAX_PORT_DNS);
    out
}

fn read_resolv_conf(untrusted_text: &str) -> Resolver {
    let mut out = Resolver::default();
    for line in untrusted_text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                out.servers.extend(words.next().and_then(|word| word.parse::<Ipv4Addr>().ok()))
            }
            // The last line of its kind counts; `domain` is a search list of one.
            Some("search" | "domain") => {
                out.search = words.filter(|word| word.len() <= MAX_NAME).map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    // One on the loopback of another namespace is not there for us.
    out.servers.retain(|server: &Ipv4Addr| !server.is_loopback() && !server.is_unspecified());
    out.search.truncate(MAX_SEARCH);
    out
}

fn failed(link: &str, error: &NetlinkError) -> Fault {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    Fault::new(Reason::NetworkFailed, format!("{link}: {error}{cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_resolv_conf_servers_elsewhere_and_the_last_search_list_count() {
        let text = "# made\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\n\
                    domain old.example\nsearch a.example  b.example\noptions edns0\nnameserver\n";
        let servers = vec!["192.0.2.53".parse().unwrap()];
        let search = vec!["a.example".to_owned(), "b.example".to_owned()];
        assert_eq!(read_resolv_conf(text), Resolver { servers, search });
        assert_eq!(read_resolv_conf(""), Resolver::default());
    }
}
