// SPDX-License-Identifier: Apache-2.0
//! What travels from a node to its controller, whole: one [`Info`] per object that changed, and [`Metrics`] now and
//! then. The node fills these in, the controller reads them; `eve-api` stands between.
//!
//! The wire is coarser than these types. What it cannot carry comes back empty: an app's counters and whether it is
//! ordered to run, the generation of an app's volumes, the network of an app's interface, its peak of memory and its
//! number of processes. Memory travels in MiB.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::flow::FlowCounters;
use crate::id::{AppId, DeviceId, Digest, NetworkId, NetworkInstanceId, VolumeId};
use crate::net::Mac;
use crate::observed::{AppMetrics, DiskCounters, DiskFacts, Firmware, LinkMetrics, PortObserved};
use crate::reason::Fault;
use crate::status::{
    AppStatus, ConfigItemStatus, ContentTreeStatus, NetworkInstanceStatus, NetworkKind, SoftwareStatus,
    SwState, VolumeStatus,
};
use crate::time::WallTime;

/// One message about one object (`ZInfoMsg`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoMessage {
    /// `None` where the sender left it out or it is no UUID.
    pub device: Option<DeviceId>,
    pub at: Option<WallTime>,
    pub info: Info,
}

/// What the message is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Info {
    Device(Box<DeviceStatus>),
    App(AppStatus),
    NetworkInstance(NetworkInstanceStatus),
    Volume(VolumeStatus),
    ContentTree(ContentTreeStatus),
    Blobs(Vec<BlobStatus>),
    /// Of a kind this software does not read; the number of `ZInfoTypes`.
    Other(i32),
}

/// One blob of the content store (`ZInfoBlob`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStatus {
    pub digest: Digest,
    pub state: SwState,
    pub size_bytes: u64,
    pub users: u32,
    pub progress_percent: u8,
}

/// The device as a whole (`ZInfoDevice`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// As the config names it.
    pub name: String,
    pub hostname: String,
    pub state: DeviceState,
    pub architecture: String,
    pub manufacturer: String,
    pub product: String,
    pub serial: String,
    pub firmware: Firmware,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
    pub booted_at: Option<WallTime>,
    /// Why the node last started, as `BootReason` counts.
    pub boot_reason: i32,
    /// The same in words.
    pub boot_reason_text: String,
    pub restart_counter: u32,
    pub reboot_counter: u32,
    pub shutdown_counter: u32,
    pub software: Vec<SoftwareStatus>,
    /// The retry counter of the last order of a version that was carried out.
    pub update_counter: u32,
    pub ports: Vec<PortStatus>,
    pub port_config: PortConfigStatus,
    pub adapters: Vec<AdapterStatus>,
    pub mounts: Vec<MountStatus>,
    pub items: Vec<ConfigItemStatus>,
    pub apps: Vec<(AppId, String)>,
    pub security: SecurityStatus,
    pub attestation: AttestationState,
    /// Reasons as `MaintenanceModeReason` counts; empty: no maintenance.
    pub maintenance: Vec<i32>,
    /// The machine has hardware virtualization.
    pub has_virtualization: bool,
    /// The machine has a hardware watchdog.
    pub has_watchdog: bool,
}

/// `ZDeviceState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    #[default]
    Unknown,
    Online,
    Rebooting,
    Maintenance,
    BaseOsUpdating,
    Booting,
    PreparingPowerOff,
    PoweringOff,
    PreparedPowerOff,
}

/// `AttestationState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttestationState {
    #[default]
    Unknown,
    NonceWait,
    QuoteWait,
    EscrowWait,
    AttestWait,
    AttestEscrowWait,
    RestartWait,
    Complete,
}

/// A port and its use (`DevicePort` and `ZInfoNetwork`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Logical label; the Linux name is in `observed`.
    pub label: String,
    pub is_uplink: bool,
    pub cost: u8,
    /// How the config orders it to be addressed; `None` where no config does.
    pub addressing: Option<AddressingKind>,
    pub network: Option<NetworkId>,
    /// As `PhyIoMemberUsage` counts.
    pub usage: i32,
    pub observed: PortObserved,
    pub fault: Option<Fault>,
}

/// `DHCPType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressingKind {
    None,
    Dhcp,
    Static,
}

/// How far the config of the ports is proven (`DevicePortStatus`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfigStatus {
    /// When it was made.
    pub made_at: Option<WallTime>,
    /// When the controller was last reached over it, and last not.
    pub last_success: Option<WallTime>,
    pub last_failure: Option<WallTime>,
    /// Why it was not, while it is not.
    pub error: String,
}

/// Physical adapters that can only be assigned together (`ZioBundle`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterStatus {
    /// As `PhyIoType` counts.
    pub kind: i32,
    /// Assignment group; may be empty.
    pub group: String,
    /// Logical labels.
    pub members: Vec<String>,
    pub macs: Vec<Mac>,
    /// As `PhyIoMemberUsage` counts.
    pub usage: i32,
    pub is_used_by_node: bool,
}

/// A file system (`ZInfoStorage`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    pub path: String,
    pub total_bytes: u64,
    /// Holds the apps' data.
    pub is_storage: bool,
    /// Known for the one that holds the apps' data.
    pub disk: Option<DiskFacts>,
}

/// Where keys live and whether data at rest is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityStatus {
    pub module: SecurityModule,
    pub data_at_rest: DataAtRest,
    /// Says why, where it is not enabled.
    pub data_at_rest_text: String,
    /// Of the trust in the controller's certificates, and of that in its TLS server, as the files hold them.
    pub root_certs_sha256: Option<Digest>,
    pub tls_root_certs_sha256: Option<Digest>,
}

/// `HwSecurityModuleStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityModule {
    #[default]
    Unknown,
    NotFound,
    Disabled,
    Enabled,
}

/// `DataSecAtRestStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataAtRest {
    #[default]
    Unknown,
    Disabled,
    Enabled,
    Error,
}

/// Counters of one moment (`ZMetricMsg`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    pub device: Option<DeviceId>,
    pub at: Option<WallTime>,
    pub node: NodeMetrics,
    pub apps: Vec<AppReport>,
    pub networks: Vec<NetworkReport>,
    pub volumes: Vec<VolumeReport>,
    pub processes: Vec<ProcessReport>,
}

/// Of the device itself (`deviceMetric`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMetrics {
    pub cpu_ns: u64,
    pub booted_at: Option<WallTime>,
    pub memory_total_bytes: u64,
    pub memory_used_bytes: u64,
    /// Used by the node's own services.
    pub services_used_bytes: u64,
    /// What they may use at most.
    pub services_allotted_bytes: u64,
    /// Allotted to apps.
    pub apps_allotted_bytes: u64,
    /// Taken by images and volumes.
    pub apps_storage_bytes: u64,
    pub links: Vec<LinkMetrics>,
    pub disks: Vec<DiskReport>,
    pub uplinks: Vec<UplinkReport>,
    pub flows: FlowCounters,
    /// Access rules in force.
    pub acl_rules: u64,
    /// `config_timestamp`s, so that the controller sees how far the node is.
    pub received_config: Option<WallTime>,
    pub processed_config: Option<WallTime>,
}

/// Fill of a file system (`diskMetric`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub path: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Block device below it; empty: none is known.
    pub device: String,
    pub counters: DiskCounters,
}

/// Requests to the controller over one port (`zedcloudMetric`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkReport {
    pub port: String,
    pub succeeded: u64,
    pub failed: u64,
    pub last_success: Option<WallTime>,
    pub last_failure: Option<WallTime>,
    /// Answers whose envelope was refused.
    pub refused: u64,
}

/// Of one app (`appMetric`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppReport {
    pub name: String,
    pub version: String,
    pub started_at: Option<WallTime>,
    pub metrics: AppMetrics,
    /// Its volumes, the root first.
    pub disks: Vec<AppDiskReport>,
    pub links: Vec<LinkMetrics>,
}

/// A volume as its app has it (`appDiskMetric`). Sizes travel in MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDiskReport {
    pub name: String,
    /// 0: no limit of its own.
    pub provisioned_bytes: u64,
    pub used_bytes: u64,
}

/// Of one network instance (`ZMetricNetworkInstance`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    pub id: NetworkInstanceId,
    pub version: String,
    pub name: String,
    /// `None`: of a kind this software does not read.
    pub kind: Option<NetworkKind>,
    pub is_active: bool,
    /// Of the network as a whole, and each of its interfaces.
    pub links: Vec<LinkMetrics>,
}

/// Of one volume (`ZMetricVolume`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    pub id: VolumeId,
    pub name: String,
    /// 0: as large as it likes.
    pub total_bytes: u64,
    pub used_bytes: u64,
}

/// Of one process of the node (`ZMetricProcess`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub pid: i32,
    pub name: String,
    pub started_at: Option<WallTime>,
    pub memory_bytes: u64,
    pub cpu_ns: u64,
}
