// SPDX-License-Identifier: Apache-2.0
//! What a process saw. Values of topics: newest value per key, written by the process that looked.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::desired::ImageConfig;
use crate::id::{AppId, ContentTreeId, DeviceId, Digest, NetworkInstanceId, VolumeKey};
use crate::net::{Mac, Prefix4};
use crate::reason::Fault;
use crate::time::{MonoMs, WallTime};

/// Topic `content-observed`, key: content tree id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentObserved {
    pub id: ContentTreeId,
    /// Generation of the order this speaks of.
    pub generation: i64,
    pub state: ContentState,
    /// Why it does not go on, while it is tried again.
    pub fault: Option<Fault>,
}

/// In order of progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentState {
    ResolvingTag,
    Downloading {
        digest: Digest,
        done_bytes: u64,
        total_bytes: u64,
    },
    /// All blobs are here and have their digests; layers are being unpacked.
    Verified {
        digest: Digest,
        total_bytes: u64,
    },
    Loaded(Image),
    /// A file, whole.
    LoadedFile(Blob),
}

/// An image in the store, ready to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of the manifest or index that was asked for.
    pub digest: Digest,
    pub total_bytes: u64,
    pub config: ImageConfig,
    /// Diff ids of the unpacked layers, lowest first; each is a directory of the store.
    pub layers: Vec<Digest>,
    /// Every blob of the image: digest, bytes, media type.
    pub blobs: Vec<Blob>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
    pub media_type: String,
}

/// Topic `update-observed`, key: empty. How far the store is with the version ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateObserved {
    pub version: String,
    pub attempt: u32,
    pub state: UpdateProgress,
    /// Bytes that came over the network, since the store was started.
    pub fetched_bytes: u64,
    /// Nothing proves who made it: the image that runs has no release key.
    pub is_unsigned: bool,
    /// Why it does not go on. Tried again by itself, or not, as its reason says.
    pub fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateProgress {
    Downloading {
        done_bytes: u64,
        total_bytes: u64,
    },
    Verifying,
    /// In the slot, with a boot entry that was not tried.
    Installed,
}

/// Topic `slots-observed`, key: empty. Written by init of a booted node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsObserved {
    /// A and B.
    pub slots: [SlotObserved; 2],
    /// Which of them runs.
    pub running: u8,
    /// All services are ready.
    pub is_ready: bool,
}

impl SlotsObserved {
    pub fn own(&self) -> &SlotObserved {
        &self.slots[usize::from(self.running.min(1))]
    }

    pub fn other(&self) -> &SlotObserved {
        &self.slots[usize::from(1 - self.running.min(1))]
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotObserved {
    /// Path of the block device.
    pub device: String,
    /// Empty: no boot entry uses it.
    pub version: String,
    /// Tries it has left and tries that were made; nothing: it is good.
    pub tries: Option<(u32, u32)>,
}

/// Topic `volume-observed`, key: volume key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeObserved {
    pub key: VolumeKey,
    /// What it is made of, once it is made.
    pub made: Option<MadeVolume>,
    /// What apps wrote into it.
    pub used_bytes: u64,
    /// Why it is not made, or why it cannot be used as it is.
    pub fault: Option<Fault>,
}

/// What a volume was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MadeVolume {
    /// A writable layer over an image.
    Image(Image),
    /// A directory that began empty.
    Directory,
    /// A copy of a file.
    File(Digest),
    /// A file of the store as it is; only for volumes that are read-only.
    StoredFile(Digest),
}

impl VolumeObserved {
    /// The image below it, where there is one.
    pub fn image(&self) -> Option<&Image> {
        match &self.made {
            Some(MadeVolume::Image(image)) => Some(image),
            Some(MadeVolume::Directory | MadeVolume::File(_) | MadeVolume::StoredFile(_)) | None => None,
        }
    }
}

/// Topic `network-observed`, key: network instance id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkObserved {
    pub id: NetworkInstanceId,
    /// Linux name of the bridge.
    pub bridge: String,
    pub is_up: bool,
    pub mtu: u16,
    /// Linux name of the uplink in use.
    pub uplink: Option<String>,
    pub fault: Option<Fault>,
}

/// Topic `vifs-observed`, key: app id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifsObserved {
    pub app: AppId,
    pub vifs: Vec<VifObserved>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifObserved {
    pub name: String,
    pub host_name: String,
    pub mac: Mac,
    /// In a switch: the one it was seen to have.
    pub address: Option<Ipv4Addr>,
    /// The rules are in force and the network stands; both ends of the link come when the app starts.
    pub is_ready: bool,
    pub fault: Option<Fault>,
}

/// Topic `app-observed`, key: app id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppObserved {
    pub app: AppId,
    /// Instance this speaks of, see `AppDesired::instance`.
    pub instance: u64,
    pub state: RunState,
    /// Starts of this instance so far.
    pub starts: u32,
    /// What its probe says, while it runs and has one.
    pub health: Option<Health>,
    pub fault: Option<Fault>,
}

/// What an app's probe says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// No good answer yet since its start.
    Unknown,
    Good,
    /// Why the last questions failed.
    Bad(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Its start is due at `until`.
    Delayed {
        until: MonoMs,
    },
    Starting,
    Running {
        since: MonoMs,
        started_at: Option<WallTime>,
    },
    Stopping,
    /// Ended by itself; started again at `retry_at`.
    Backoff {
        retry_at: MonoMs,
        exit: Exit,
    },
    /// Not running and not to be.
    Halted,
    /// Cannot be run as ordered.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    OutOfMemory,
}

/// Topic `app-metrics`, key: app id. Counters are cumulative over the app's instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppMetrics {
    pub app: AppId,
    pub cpu_ns: u64,
    pub memory_used_bytes: u64,
    pub memory_peak_bytes: u64,
    pub memory_limit_bytes: u64,
    pub pids: u32,
}

/// Topic `link-metrics`, key: Linux name of the interface. From the node's point of view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkMetrics {
    pub name: String,
    /// As the config has it: the label of a port, or the name inside the app.
    pub label: String,
    pub app: Option<AppId>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_drops: u64,
    pub tx_drops: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    /// Packets that no access rule let through, from the app and to it.
    pub rx_acl_drops: u64,
    pub tx_acl_drops: u64,
    /// Packets above the rate of an access rule.
    pub rx_rate_drops: u64,
    pub tx_rate_drops: u64,
}

/// Topic `port-observed`, key: Linux name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortObserved {
    pub name: String,
    pub mac: Option<Mac>,
    pub is_up: bool,
    pub mtu: u32,
    pub addresses: Vec<Prefix4>,
    pub gateways: Vec<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    /// Domains in which short names are looked for.
    pub search: Vec<String>,
}

/// Topic `storage-observed`, key: mount point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageObserved {
    pub path: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Bytes of content held, and of volumes.
    pub content_bytes: u64,
}

/// Topic `service-observed`, key: service name. Written by init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceObserved {
    pub name: String,
    pub pid: Option<i32>,
    pub restarts: u32,
    pub started: MonoMs,
    /// Resident memory at the last look.
    pub memory_bytes: u64,
    /// What its manifest allows.
    pub memory_limit_bytes: u64,
    pub cpu_ns: u64,
}

/// What the firmware says of the box; empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    pub product_version: String,
    pub product_uuid: String,
    /// First entry of the device tree's `compatible`.
    pub compatible: String,
    pub bios_vendor: String,
    pub bios_version: String,
    pub bios_date: String,
}

/// The disk under a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Path of the block device.
    pub device: String,
    /// Empty where the kernel knows none.
    pub serial: String,
    /// As the kernel names it: `ext4`.
    pub filesystem: String,
}

/// Topic `box-metrics`, key: empty. Written by init: what the whole box uses, whoever uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxMetrics {
    pub memory_available_bytes: u64,
    /// Of the disk under the node's data, if it lies on one that counts.
    pub disk: Option<DiskCounters>,
}

/// Since the box booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Topic `node-observed`, key: empty. Written by init: facts of the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObserved {
    /// Version of this software.
    pub version: String,
    pub kernel: String,
    pub architecture: String,
    pub hostname: String,
    pub boot_id: String,
    pub booted_at: Option<WallTime>,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub manufacturer: String,
    pub product: String,
    pub serial: String,
    pub firmware: Firmware,
    /// The kernel has a hardware watchdog.
    pub has_watchdog: bool,
    /// The disk under the node's data; `None` where they lie on no disk of this kernel.
    pub disk: Option<DiskFacts>,
    /// Runs on another Linux instead of being its own.
    pub is_hosted: bool,
    /// Start of the node software, counted over its life on this disk.
    pub restart_counter: u32,
}

/// Topic `agent-observed`, key: empty. What the agent knows of its controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentObserved {
    /// Known once onboarded.
    pub device: Option<DeviceId>,
    pub server: String,
    /// Last answer of the controller to anything.
    pub last_contact: Option<MonoMs>,
    pub is_attested: bool,
    pub fault: Option<Fault>,
}

/// Topic `vault-observed`, key: empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultObserved {
    /// Keys are held by a TPM.
    pub has_tpm: bool,
    pub is_open: bool,
    pub fault: Option<Fault>,
}
