// SPDX-License-Identifier: Apache-2.0
//! What a controller orders for one device: the validated form of eve-api's `EdgeDevConfig`.
//!
//! Each list is a complete desired state: what is not in it is to go. References between objects have been resolved by
//! whoever made the value; an object that could not be read stands in [`DeviceConfig::faults`] instead of its list.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::id::{
    AppId, ContentTreeId, DatastoreId, DeviceId, Digest, NetworkId, NetworkInstanceId, VolumeId, VolumeKey,
};
use crate::net::{Mac, Prefix4};
use crate::reason::Fault;
use crate::secret::{CipherContext, SecretHandle};
use crate::time::WallTime;

/// One device's whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    pub id: DeviceId,
    /// Opaque (`EdgeDevConfig.id.version`).
    pub version: String,
    /// Strictly rising; an older one than the applied is obsolete.
    pub timestamp: Option<WallTime>,
    pub name: String,
    /// Changes when the controller's certificates changed.
    pub controller_cert_hash: String,
    /// A change asks the node to send all its info again.
    pub controller_epoch: i64,
    pub items: Vec<ConfigItem>,
    pub reboot: Option<OpsCommand>,
    pub shutdown: Option<OpsCommand>,
    pub physical_ios: Vec<PhysicalIo>,
    pub networks: Vec<NetworkConfig>,
    pub system_adapters: Vec<SystemAdapter>,
    pub network_instances: Vec<NetworkInstance>,
    pub datastores: Vec<Datastore>,
    pub content_trees: Vec<ContentTree>,
    pub volumes: Vec<Volume>,
    pub apps: Vec<AppInstance>,
    pub cipher_contexts: Vec<CipherContext>,
    /// Apps with a profile list run only when it contains this one.
    pub global_profile: String,
    /// Nothing: the version that runs stays.
    pub base_os: Option<BaseOs>,
    /// Objects of the config that could not be read, each with the field path in its message.
    pub faults: Vec<ConfigFault>,
}

/// An object of the config that was refused while the rest is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFault {
    pub object: ObjectRef,
    pub fault: Fault,
}

/// Names one object of a config.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectRef {
    Device,
    App(AppId),
    Volume(VolumeKey),
    ContentTree(ContentTreeId),
    Datastore(DatastoreId),
    NetworkInstance(NetworkInstanceId),
    BaseOs,
    /// An object whose own identity could not be read: the field path.
    Path(String),
}

/// A configuration property, e.g. `timer.config.interval`. The node echoes each in its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigItem {
    pub key: String,
    pub value: String,
}

/// A command carried out when its counter differs from the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpsCommand {
    pub counter: u32,
    pub desired: bool,
}

/// A physical port or device (`PhysicalIO`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalIo {
    /// `org.lfedge.eve.common.PhyIoType` number.
    pub kind: i32,
    pub physical_label: String,
    pub logical_label: String,
    pub assignment_group: String,
    /// Linux name of the interface, when it is one.
    pub interface: Option<String>,
    /// `PhyIoMemberUsage` number.
    pub usage: i32,
}

/// How a port gets its address (`NetworkConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    pub id: NetworkId,
    pub addressing: PortAddressing,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortAddressing {
    None,
    Dhcp,
    Static { subnet: Prefix4, gateway: Option<Ipv4Addr>, dns: Vec<Ipv4Addr> },
}

/// Use of a port by the node (`SystemAdapter`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemAdapter {
    pub name: String,
    /// Empty: the adapter's own name.
    pub lower_layer: String,
    pub network: Option<NetworkId>,
    /// Used to reach the controller.
    pub is_uplink: bool,
    pub cost: u8,
    pub shared_labels: Vec<String>,
}

/// A network for apps (`NetworkInstanceConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInstance {
    pub id: NetworkInstanceId,
    pub version: String,
    pub name: String,
    pub is_active: bool,
    /// Label of the uplink: a port's name, or a shared label such as `uplink`. Empty: no uplink.
    pub port: String,
    /// Largest packet apps may send; 0: as the uplink, or the usual 1500.
    pub mtu: u16,
    /// Flows of apps and their name lookups are reported.
    pub is_flow_logged: bool,
    pub kind: NetworkInstanceKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkInstanceKind {
    /// Routed behind NAT, with addresses and names handed out by the node.
    Local(LocalNetwork),
    /// Layer 2 on the uplink.
    Switch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNetwork {
    pub subnet: Prefix4,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// First and last address handed out.
    pub range: (Ipv4Addr, Ipv4Addr),
    /// Name to address, for apps' lookups besides the apps' own names.
    pub static_names: Vec<(String, Vec<Ipv4Addr>)>,
    /// Domain apps are told they are in; empty: none.
    pub domain: String,
    /// Time servers apps are told.
    pub ntp: Vec<Ipv4Addr>,
    /// Destinations that apps reach through this network besides its own, whatever their default route is.
    pub routes: Vec<Prefix4>,
    /// The networks of the uplinks are such destinations as well.
    pub routes_uplinks: bool,
}

/// Where content comes from (`DatastoreConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    pub id: DatastoreId,
    pub kind: DatastoreKind,
    /// Scheme, host and port as ordered, e.g. `docker://registry.example:5000`.
    pub fqdn: String,
    pub path: String,
    pub credentials: Option<Credentials>,
    /// PEM certificates trusted for this datastore besides the common roots.
    pub ca_pem: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatastoreKind {
    ContainerRegistry,
    Http,
    Https,
    /// One this node cannot use; the number of `DsType`.
    Other(i32),
}

/// User name and password of a datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credentials {
    /// An `EncryptionBlock` with both inside.
    Sealed(SecretHandle),
    /// As the wire can carry them. The agent turns this into [`Credentials::Sealed`] before publishing.
    Clear { user: String, password: String },
}

/// Content by name (`ContentTree`): a file, or an image of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentTree {
    pub id: ContentTreeId,
    pub name: String,
    /// Tried in order.
    pub datastores: Vec<DatastoreId>,
    /// Appended to the datastore: `path`, or `repository:tag`, or `repository@sha256:…`.
    pub url: String,
    pub format: ContentFormat,
    /// Digest of the top blob; `None` for a tag: resolved on the node, again when `generation` changes.
    pub digest: Option<Digest>,
    /// 0: no limit.
    pub max_size_bytes: u64,
    pub generation: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentFormat {
    Container,
    /// A file as it is.
    Raw,
    Qcow2,
    Other(i32),
}

/// Which version of the operating system shall run (`BaseOS`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseOs {
    /// The update file.
    pub content_tree: ContentTreeId,
    pub version: String,
    /// False: it is put into the idle slot and not started.
    pub is_active: bool,
    /// A change has a version tried again that failed.
    pub retry_counter: u32,
}

/// A volume (`Volume`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub key: VolumeKey,
    pub name: String,
    pub origin: VolumeOrigin,
    /// 0: as large as its content.
    pub max_size_bytes: u64,
    pub is_read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeOrigin {
    Blank,
    Content(ContentTreeId),
}

/// A volume an app uses, and where it finds it (`VolumeRef`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRef {
    pub key: VolumeKey,
    /// Directory inside the app; empty: only below `/dev/eve/volumes`. Of the root volume it says nothing.
    pub mount_dir: String,
}

/// An app (`AppInstanceConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInstance {
    pub id: AppId,
    pub version: String,
    pub name: String,
    pub is_active: bool,
    pub resources: Resources,
    /// In disk order; the first is the root.
    pub volumes: Vec<VolumeRef>,
    pub interfaces: Vec<AppInterface>,
    pub restart_counter: u32,
    pub purge_counter: u32,
    pub user_data: Option<UserData>,
    pub profiles: Vec<String>,
    pub start_delay_s: u32,
    /// Assignment groups of physical devices given to the app.
    pub adapters: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Limit of memory.
    pub memory_bytes: u64,
    /// Number of processors; 0 is read as 1.
    pub vcpus: u32,
    pub mode: VirtualizationMode,
}

/// How an app is isolated (eve-api `VmMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtualizationMode {
    Pv,
    Hvm,
    Filler,
    Fml,
    /// A native container: no hypervisor.
    NoHyper,
    Legacy,
    Other(i32),
}

/// Data for the app's first start: `KEY=VALUE` lines, or a `#cloud-config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserData {
    Sealed(SecretHandle),
    /// As the wire can carry it: base64 text. The agent turns this into [`UserData::Sealed`] before publishing.
    Clear(String),
}

/// A network interface of an app (`NetworkAdapter`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInterface {
    pub name: String,
    pub network: NetworkInstanceId,
    /// `None`: made by the node.
    pub mac: Option<Mac>,
    /// `None`: handed out by the node.
    pub address: Option<Ipv4Addr>,
    /// In order; first match decides; what matches none is dropped.
    pub acl: Vec<AclRule>,
}

/// One rule (`ACE`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclRule {
    pub id: i32,
    pub direction: AclDirection,
    pub matches: AclMatch,
    pub action: AclAction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AclDirection {
    Both,
    /// From the app's point of view.
    Ingress,
    Egress,
}

/// All conditions that are set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclMatch {
    pub remote: Option<AclRemote>,
    pub protocol: Option<AclProtocol>,
    /// Port on the app's side; for a port map the port on the node.
    pub local_port: Option<PortRange>,
    /// Port on the other side.
    pub remote_port: Option<PortRange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AclRemote {
    Prefix(Prefix4),
    /// A DNS name; what it resolves to for this app is matched.
    Host(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AclProtocol {
    Tcp,
    Udp,
    Icmp,
    Number(u8),
}

/// First and last port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AclAction {
    Allow,
    Drop,
    /// Allow up to a rate, drop above.
    Limit {
        rate: u32,
        per_s: u32,
        burst: u32,
    },
    /// Traffic to `matches.local_port` of the node's uplink goes to this port of the app.
    PortMap {
        app_port: u16,
    },
}

impl DeviceConfig {
    /// A config that orders nothing.
    pub fn empty(id: DeviceId) -> DeviceConfig {
        DeviceConfig {
            id,
            version: String::new(),
            timestamp: None,
            name: String::new(),
            controller_cert_hash: String::new(),
            controller_epoch: 0,
            items: Vec::new(),
            reboot: None,
            shutdown: None,
            physical_ios: Vec::new(),
            networks: Vec::new(),
            system_adapters: Vec::new(),
            network_instances: Vec::new(),
            datastores: Vec::new(),
            content_trees: Vec::new(),
            volumes: Vec::new(),
            apps: Vec::new(),
            cipher_contexts: Vec::new(),
            global_profile: String::new(),
            base_os: None,
            faults: Vec::new(),
        }
    }

    pub fn volume(&self, key: VolumeKey) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.key == key)
    }

    pub fn volume_id(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.key.id == id)
    }

    pub fn content_tree(&self, id: ContentTreeId) -> Option<&ContentTree> {
        self.content_trees.iter().find(|tree| tree.id == id)
    }

    pub fn network_instance(&self, id: NetworkInstanceId) -> Option<&NetworkInstance> {
        self.network_instances.iter().find(|instance| instance.id == id)
    }

    pub fn datastore(&self, id: DatastoreId) -> Option<&Datastore> {
        self.datastores.iter().find(|store| store.id == id)
    }
}
