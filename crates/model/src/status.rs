// SPDX-License-Identifier: Apache-2.0
//! What is reported of a device: made by the node, read by the controller.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ContentTreeId, Digest, NetworkInstanceId, VolumeKey};
use crate::net::Mac;
use crate::reason::Fault;
use crate::time::WallTime;

/// State of an app, volume or content tree, in order of progress (eve-api `ZSwState` is not).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SwState {
    #[default]
    Initial,
    ResolvingTag,
    ResolvedTag,
    Downloading,
    Downloaded,
    Verifying,
    Verified,
    Loading,
    Loaded,
    CreatingVolume,
    CreatedVolume,
    Installed,
    AwaitNetworkInstance,
    StartDelayed,
    Booting,
    Running,
    Restarting,
    Purging,
    Halting,
    Halted,
    Failed,
    /// A number this software does not know.
    Unknown,
}

/// Topic `app-status`, key: app id. Written by the planner, sent by the agent (`ZInfoApp`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    pub app: AppId,
    pub version: String,
    pub name: String,
    pub state: SwState,
    /// Ordered to run (the config's activate and its profile say so).
    pub is_activated: bool,
    pub faults: Vec<Fault>,
    pub volumes: Vec<VolumeKey>,
    pub vifs: Vec<VifStatus>,
    pub restart_counter: u32,
    pub purge_counter: u32,
    pub started_at: Option<WallTime>,
}

impl AppStatus {
    /// The last word on an app that is no longer on the device: only its id is told.
    pub fn gone(app: AppId) -> AppStatus {
        AppStatus {
            app,
            version: String::new(),
            name: String::new(),
            state: SwState::Unknown,
            is_activated: false,
            faults: Vec::new(),
            volumes: Vec::new(),
            vifs: Vec::new(),
            restart_counter: 0,
            purge_counter: 0,
            started_at: None,
        }
    }

    pub fn is_gone(&self) -> bool {
        self.state == SwState::Unknown && self.name.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifStatus {
    pub name: String,
    pub network: NetworkInstanceId,
    pub mac: Mac,
    pub address: Option<Ipv4Addr>,
    pub is_up: bool,
}

/// Topic `content-status`, key: content tree id (`ZInfoContentTree`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentTreeStatus {
    pub id: ContentTreeId,
    pub name: String,
    pub state: SwState,
    pub digest: Option<Digest>,
    pub progress_percent: u8,
    pub total_bytes: u64,
    pub blobs: Vec<Digest>,
    pub users: u32,
    pub faults: Vec<Fault>,
}

/// Topic `volume-status`, key: volume key (`ZInfoVolume`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub key: VolumeKey,
    pub name: String,
    pub state: SwState,
    pub progress_percent: u8,
    pub used_bytes: u64,
    /// 0: no limit of its own.
    pub max_size_bytes: u64,
    pub users: u32,
    pub faults: Vec<Fault>,
}

/// Topic `network-status`, key: network instance id (`ZInfoNetworkInstance`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInstanceStatus {
    pub id: NetworkInstanceId,
    pub version: String,
    pub name: String,
    pub is_active: bool,
    /// `None`: of a kind this software does not read.
    pub kind: Option<NetworkKind>,
    pub bridge: String,
    /// The node's own address in it.
    pub gateway: Option<Ipv4Addr>,
    pub mtu: u16,
    pub uplink: Option<String>,
    pub vifs: Vec<NetworkVifStatus>,
    pub faults: Vec<Fault>,
}

/// The kinds of networks apps can be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkKind {
    /// Behind NAT, with addresses and names handed out by the node.
    Local,
    /// Layer 2 on the uplink.
    Switch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkVifStatus {
    pub app: AppId,
    pub vif: String,
    pub mac: Mac,
    pub address: Option<Ipv4Addr>,
}

/// Topic `config-applied`, key: empty. What the planner made of the newest config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigApplied {
    pub version: String,
    pub timestamp: Option<WallTime>,
    pub items: Vec<ConfigItemStatus>,
    pub is_maintenance: bool,
    pub reboot_counter: u32,
    pub shutdown_counter: u32,
}

/// The echo of one configuration property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigItemStatus {
    pub key: String,
    pub value: String,
    pub is_known: bool,
    pub error: Option<String>,
}

/// Topic `base-os-status`, key: empty. The slots of the operating system, and how far an ordered version is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseOsStatus {
    pub slots: Vec<SoftwareStatus>,
    /// The retry counter of the order that was last carried out.
    pub update_counter: u32,
    /// The box is about to start into another version.
    pub is_updating: bool,
    /// A version is on trial: orders to restart the box wait.
    pub is_testing: bool,
}

/// A slot of the operating system (`ZInfoDevSW`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftwareStatus {
    /// `IMGA` or `IMGB`.
    pub partition: String,
    /// `active`, `updating`, `inprogress` or `unused`.
    pub partition_state: String,
    /// Path of the block device; empty where there is none.
    pub device: String,
    pub version: String,
    pub is_running: bool,
    pub state: SwState,
    pub update: UpdateState,
    pub step: UpdateStep,
    /// The step in words.
    pub step_text: String,
    pub progress_percent: u8,
    pub fault: Option<Fault>,
}

/// `BaseOsStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    #[default]
    None,
    Downloading,
    Downloaded,
    Updating,
    Updated,
    Fallback,
    Failed,
}

/// `BaseOsSubStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateStep {
    #[default]
    None,
    Downloading,
    Verifying,
    Initializing,
    Rebooting,
    Testing,
    Confirming,
    Deferred,
}
