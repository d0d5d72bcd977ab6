// SPDX-License-Identifier: Apache-2.0
//! Ports of a box that is ours: brought up, and given what the DHCP servers at their other ends say. On a host of somebody
//! else ports are observed and nothing of this is done.
//!
//! ```text
//! down ─ set up ─▶ no carrier ─ carrier ─▶ asking ─ lease ─▶ address, routes, name servers ─ carrier lost ─▶ no carrier
//! ```
//! Several ports may have a way out at once: each default route has a metric of its own, so that none replaces another.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use model::net::Mac;

use crate::dhcp::{Asked, Leases, Seat};
use crate::kernel::{Kernel, KernelError};
use crate::net::chain;
use crate::netlink::Socket;
use crate::route::Link;

/// Metric of the default route of the first link; above zero, which is "none is better".
const METRIC: u32 = 100;

#[derive(Debug)]
pub(crate) struct Uplinks {
    leases: Leases,
    /// Ports that ask or have an address.
    asking: BTreeMap<String, Mac>,
}

impl Uplinks {
    pub(crate) fn start() -> std::io::Result<Uplinks> {
        Ok(Uplinks { leases: Leases::start()?, asking: BTreeMap::new() })
    }

    /// Brings ports up and begins to ask where a carrier has come.
    pub(crate) fn tend(&mut self, kernel: &mut Kernel, ports: &BTreeMap<&String, &Link>) {
        self.asking.retain(|name, mac| {
            ports.get(name).is_some_and(|link| link.is_running && link.seen.mac == Some(*mac))
        });
        let asking = &self.asking;
        self.leases.keep(|name| asking.contains_key(name));
        for (name, link) in ports {
            if !link.seen.is_up
                && let Err(error) = kernel.set_up(name)
            {
                service::log::warn(format_args!("{name} cannot be set up: {}", chain(&error)));
            }
            let Some(mac) = link.seen.mac.filter(|_| link.is_running) else { continue };
            if self.asking.contains_key(*name) {
                continue;
            }
            let seat = Seat {
                name: (*name).clone(),
                mac,
                has_default: true,
                metric: METRIC.saturating_add(link.index),
                is_ours_alone: true,
            };
            match self.ask(name, seat) {
                Ok(()) => {
                    self.asking.insert((*name).clone(), mac);
                }
                Err(error) => service::log::warn(format_args!("{name} cannot ask for an address: {error}")),
            }
        }
    }

    fn ask(&self, name: &str, seat: Seat) -> std::io::Result<()> {
        let kind = socket2::Type::DGRAM.cloexec();
        let datagrams = socket2::Socket::new(socket2::Domain::IPV4, kind, None)?;
        let routes = Socket::route().map_err(std::io::Error::other)?;
        self.leases.ask(name, Asked { seat, datagrams: datagrams.into(), routes });
        Ok(())
    }

    /// Name servers that came with the address of a port.
    pub(crate) fn dns(&self, port: &str) -> Vec<Ipv4Addr> {
        self.leases.held().remove(port).map(|lease| lease.dns).unwrap_or_default()
    }

    pub(crate) fn fd(&self) -> std::io::Result<OwnedFd> {
        self.leases.fd()
    }

    /// Whether leases have changed since the last question.
    pub(crate) fn is_changed(&self) -> bool {
        self.leases.seen()
    }
}

impl Kernel {
    fn set_up(&mut self, link: &str) -> Result<(), KernelError> {
        crate::route::set_up(self.routes(), link).map_err(KernelError::Look)
    }
}
