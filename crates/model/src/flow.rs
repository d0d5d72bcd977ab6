// SPDX-License-Identifier: Apache-2.0
//! What apps talked to: flows and name lookups, as one node reports them (`FlowMessage`).

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::id::{AppId, DeviceId, NetworkInstanceId};
use crate::time::WallTime;

/// Flows and lookups of one interface of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// `None` where the sender left it out or it is no UUID.
    pub device: Option<DeviceId>,
    pub scope: FlowScope,
    pub flows: Vec<Flow>,
    pub lookups: Vec<Lookup>,
}

/// The interface that is spoken of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowScope {
    pub app: AppId,
    /// Name inside the app.
    pub interface: String,
    /// Name of the node's end.
    pub host_name: String,
    pub network: NetworkInstanceId,
}

/// One flow, at its end or, when it lasts, now and then. Counters are the whole flow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The app's side.
    pub local: Ipv4Addr,
    /// 0 for protocols without ports.
    pub local_port: u16,
    /// The other side, as the app sees it.
    pub remote: Ipv4Addr,
    pub remote_port: u16,
    /// Number of the IP protocol.
    pub protocol: u8,
    /// The other side began it.
    pub is_inbound: bool,
    /// Access rule that decided; 0: none did.
    pub acl_id: i32,
    pub action: FlowAction,
    pub started: Option<WallTime>,
    pub ended: Option<WallTime>,
    /// Sent by the app.
    pub tx_bytes: u64,
    pub tx_packets: u64,
    /// Received by the app.
    pub rx_bytes: u64,
    pub rx_packets: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowAction {
    Unknown,
    Dropped,
    Accepted,
}

/// A name an app asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    pub name: String,
    pub addresses: Vec<Ipv4Addr>,
    pub at: Option<WallTime>,
}

/// How much of all this was reported and how much was lost, since the start (`FlowlogMetric`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounters {
    pub messages: Delivery,
    pub flows: Delivery,
    pub lookups: Delivery,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub sent: u64,
    pub dropped: u64,
    /// Attempts that failed; each is tried again until the queue is full.
    pub failed_attempts: u64,
}
