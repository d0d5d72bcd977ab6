// SPDX-License-Identifier: Apache-2.0
//! net: the real intent, on a kernel that does at once what it is told, or fails as a whole.

use std::collections::BTreeSet;

use ipc::topics;
use model::net::{Mac, Prefix4};
use model::observed::{NetworkObserved, PortObserved, VifObserved, VifsObserved};
use model::reason::{Fault, Reason};
use model::time::MonoMs;
use node_core::net::{Standing, intent};

use super::{Cx, Input};

/// As the process has them.
const ORDERS_PATIENCE_MS: u64 = 300;
const RETRY_MS: u64 = 5_000;
const PORT: &str = "eth0";

#[derive(Debug, Default)]
pub struct Net {
    retry_at: Option<MonoMs>,
    orders_until: Option<MonoMs>,
    ports: BTreeSet<String>,
    networks: BTreeSet<String>,
    vifs: BTreeSet<String>,
}

impl Net {
    pub fn deadline(&self) -> Option<MonoMs> {
        self.retry_at
    }

    pub fn handle(&mut self, cx: &mut Cx<'_>, input: &Input) {
        if let Input::Start = input {
            ipc::client::Topics::subscribe::<topics::NetworkDesired>(cx.topics);
            ipc::client::Topics::subscribe::<topics::VifsDesired>(cx.topics);
            cx.machine.is_net_alive = true;
            self.orders_until = Some(cx.now.mono.plus_ms(ORDERS_PATIENCE_MS));
        }
        self.round(cx);
    }

    fn round(&mut self, cx: &mut Cx<'_>) {
        self.retry_at = None;
        let port = port(cx);
        cx.put::<topics::PortObserved>(PORT, &port);
        cx.replace_keys::<topics::PortObserved>(&mut self.ports, BTreeSet::from([PORT.into()]));
        if !cx.is_synced::<topics::NetworkDesired>() || !cx.is_synced::<topics::VifsDesired>() {
            match self.orders_until {
                Some(until) if cx.now.mono < until => self.retry_at = Some(until),
                Some(_) => {
                    self.orders_until = None;
                    cx.all_stand::<topics::NetworkObserved>();
                    cx.all_stand::<topics::VifsObserved>();
                    cx.all_stand::<topics::LinkMetrics>();
                }
                None => {}
            }
            return;
        }
        self.orders_until = None;
        if !cx.effect() {
            return;
        }
        let networks: Vec<_> = cx.all::<topics::NetworkDesired>().into_values().collect();
        let apps: Vec<_> = cx.all::<topics::VifsDesired>().into_values().collect();
        let intent = intent(&networks, &apps, &[port]);
        let failure = cx
            .machine
            .is_kernel_failing
            .then(|| Fault::new(Reason::NetworkFailed, "the kernel refuses the transaction"));
        let fault_of = |standing: &Standing| standing.fault.clone().or_else(|| failure.clone());
        let mut has_faults = false;
        let mut network_keys = BTreeSet::new();
        for network in &networks {
            let Some(standing) = intent.networks.get(&network.id) else { continue };
            let fault = fault_of(standing);
            has_faults |= fault.is_some();
            let observed = NetworkObserved {
                id: network.id,
                bridge: standing.link.clone(),
                is_up: fault.is_none(),
                uplink: standing.uplink.clone(),
                mtu: 1_500,
                fault,
            };
            cx.put::<topics::NetworkObserved>(&network.id.to_string(), &observed);
            network_keys.insert(network.id.to_string());
        }
        let mut vif_keys = BTreeSet::new();
        cx.machine.attachable.clear();
        for app in &apps {
            let standings = intent.apps.get(&app.app).map(Vec::as_slice).unwrap_or_default();
            let vifs = app.vifs.iter().zip(standings).map(|(vif, standing)| {
                let fault = fault_of(standing);
                VifObserved {
                    name: vif.name.clone(),
                    host_name: vif.host_name.clone(),
                    mac: vif.mac,
                    address: vif.address,
                    is_ready: fault.is_none(),
                    fault,
                }
            });
            let vifs: Vec<VifObserved> = vifs.collect();
            let fault = vifs.iter().find_map(|vif| vif.fault.clone());
            has_faults |= fault.is_some();
            cx.machine.attachable.insert(app.app, fault);
            cx.put::<topics::VifsObserved>(&app.app.to_string(), &VifsObserved { app: app.app, vifs });
            vif_keys.insert(app.app.to_string());
        }
        cx.replace_keys::<topics::NetworkObserved>(&mut self.networks, network_keys);
        cx.replace_keys::<topics::VifsObserved>(&mut self.vifs, vif_keys);
        if has_faults {
            self.retry_at = Some(cx.now.mono.plus_ms(RETRY_MS));
        }
    }
}

/// The one port, with what DHCP gave it.
fn port(cx: &Cx<'_>) -> PortObserved {
    let lease = cx.machine.lease;
    PortObserved {
        name: PORT.into(),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        is_up: true,
        mtu: 1_500,
        addresses: lease.map(|address| Prefix4 { address, length: 24 }).into_iter().collect(),
        gateways: lease.map(|_| [192, 0, 2, 1].into()).into_iter().collect(),
        dns: lease.map(|_| [192, 0, 2, 1].into()).into_iter().collect(),
        search: Vec::new(),
    }
}
