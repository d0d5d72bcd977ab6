// SPDX-License-Identifier: Apache-2.0
//! The resources of the operator API, v1alpha1: what an operator writes.
//!
//! Names in JSON and YAML are camelCase. Optional fields that are left out have the defaults told at each field.
//! Nothing here is checked beyond its type; [`crate::intent`] does that for all of them together.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Group and version that every object carries.
pub const API_VERSION: &str = "selvedge/v1alpha1";
/// The project of objects that name none.
pub const DEFAULT_PROJECT: &str = "default";

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Kind {
    Device,
    JoinToken,
    App,
    Network,
    Registry,
    Datastore,
    Volume,
    Secret,
    #[serde(rename = "BaseOS")]
    BaseOs,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Device,
        Kind::JoinToken,
        Kind::App,
        Kind::Network,
        Kind::Registry,
        Kind::Datastore,
        Kind::Volume,
        Kind::Secret,
        Kind::BaseOs,
    ];

    /// As written in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Device => "Device",
            Kind::JoinToken => "JoinToken",
            Kind::App => "App",
            Kind::Network => "Network",
            Kind::Registry => "Registry",
            Kind::Datastore => "Datastore",
            Kind::Volume => "Volume",
            Kind::Secret => "Secret",
            Kind::BaseOs => "BaseOS",
        }
    }

    /// As it stands in paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::Device => "devices",
            Kind::JoinToken => "jointokens",
            Kind::App => "apps",
            Kind::Network => "networks",
            Kind::Registry => "registries",
            Kind::Datastore => "datastores",
            Kind::Volume => "volumes",
            Kind::Secret => "secrets",
            Kind::BaseOs => "baseoses",
        }
    }

    /// As it stands in messages and in `KIND/NAME`.
    pub const fn singular(self) -> &'static str {
        match self {
            Kind::Device => "device",
            Kind::JoinToken => "jointoken",
            Kind::App => "app",
            Kind::Network => "network",
            Kind::Registry => "registry",
            Kind::Datastore => "datastore",
            Kind::Volume => "volume",
            Kind::Secret => "secret",
            Kind::BaseOs => "baseos",
        }
    }

    /// Reads any of the three forms, in any case.
    pub fn parse(text: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| {
            [kind.name(), kind.plural(), kind.singular()].iter().any(|form| form.eq_ignore_ascii_case(text))
        })
    }
}

/// What every object carries. The controller fills in what the operator leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique per kind: lower-case letters, digits, `-` and `.`, at most 63 characters.
    pub name: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Given by the controller; another object of the same name has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uuid>,
    /// Changes with every write. Sent back, it makes a write fail when somebody else wrote in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Rises with every change of `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
}

/// An edge node. Made by the controller when a node registers, or by the operator beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceSpec {
    /// Serial number of the box: a node that registers with it becomes this device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Soft serial of the installation medium: the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_serial: Option<String>,
    /// Overrides the policy of the join token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Attestation>,
    /// Network ports. None: the node keeps what it finds by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Configuration properties of the node, e.g. `timer.metric.interval: "30"`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// What a node must prove before it gets its config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Attestation {
    /// A quote by a TPM.
    Required,
    /// A quote where the node has a TPM; a node without one passes, and is shown as not attested.
    #[default]
    Software,
    /// Nothing; even the dialogue may be left out.
    None,
}

/// A network port of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PortSpec {
    /// Label that networks refer to.
    pub name: String,
    /// Linux name of the interface; left out: the port's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Left out: DHCP.
    #[serde(default)]
    pub addressing: Addressing,
    /// Not used to reach the controller, only for apps.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub apps_only: bool,
}

/// How a port gets its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Addressing {
    /// From a DHCP server.
    #[default]
    Dhcp,
    /// No address.
    None,
    /// As written here.
    Static(StaticAddress),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StaticAddress {
    /// Address with prefix length: `192.0.2.10/24`.
    pub address: String,
    /// Router to all other networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
}

/// Lets nodes join: an onboarding certificate, and who may use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenSpec {
    /// Serial numbers that may join; `*` allows any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serials: Vec<String>,
    /// Soft serials that may join; `*` allows any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub soft_serials: Vec<String>,
    /// Onboarding certificate in PEM. Left out: the controller makes one with its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    pub attestation: Attestation,
    /// Labels of devices that join with it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub device_labels: BTreeMap<String, String>,
}

/// An app: one image that runs on every device chosen by name or by labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AppSpec {
    /// `repository:tag` or `repository@sha256:…`.
    pub image: String,
    /// Registry the image comes from; left out: `builtin`, the controller's own.
    #[serde(default = "builtin", skip_serializing_if = "is_builtin")]
    pub registry: String,
    /// Devices by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Devices that carry all these labels; `{}` chooses every device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
    /// Networks in the order of the app's interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<AttachmentSpec>,
    /// Ports of the node that lead to ports of the app: `8080:80` or `5353:53/udp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// What the app may talk to; in order, the first match decides. Left out: everything outgoing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Vec<AclSpec>>,
    /// Volumes besides the app's own disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<AppVolumeSpec>,
    /// Environment of the app.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Environment whose values come from secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_env: BTreeMap<String, SecretRef>,
    /// `KEY=VALUE` lines or a `#cloud-config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserDataSpec>,
    /// What the app may use of the node.
    #[serde(default)]
    pub resources: ResourcesSpec,
    #[serde(default)]
    pub isolation: Isolation,
    /// Left out: true. False keeps the app installed but stopped.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub activate: bool,
    /// A question that tells whether the app does its work. Left out: it is taken to, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeSpec>,
    /// After the device came up the app is not started earlier than this.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_delay_seconds: u32,
    /// Another number restarts the app.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restart_counter: u32,
    /// Another number builds the app's disk and its own volumes anew; what it wrote there is lost. Volumes by name stay.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub purge_counter: u32,
}

fn builtin() -> String {
    BUILTIN_REGISTRY.into()
}

fn is_builtin(name: &String) -> bool {
    name == BUILTIN_REGISTRY
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Name of the controller's own registry.
pub const BUILTIN_REGISTRY: &str = "builtin";

/// A volume inside an app: one of `volume`, `blank` and `image`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AppVolumeSpec {
    /// Name of a Volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// A directory of the app's own that begins empty; its size, e.g. `1Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blank: Option<String>,
    /// The files of an image of the app's registry, read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Directory inside the app. A directory appears there itself, a file below it under its name.
    pub mount_path: String,
}

/// How an app is asked whether it does its work: one of `http` and `tcp`, inside the app's own network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeSpec {
    /// Good is an answer with a status of 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// Good is a port that takes connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// Between two questions; left out: 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u32>,
    /// Left out: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Questions in a row without a good answer after which the app is unhealthy; left out: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// For the first good answer after a start; left out: 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
    pub on_failure: OnFailure,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// Port of the app itself, 1 to 65535.
    pub port: u16,
    /// Left out: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TcpProbe {
    /// Port of the app itself, 1 to 65535.
    pub port: u16,
}

/// What follows when an app is unhealthy. It is shown as not ready in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// The device starts it again, also without the controller.
    #[default]
    Restart,
    Report,
}

/// Attaches an app to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AttachmentSpec {
    /// Name of a Network.
    pub network: String,
    /// Fixed address; left out: handed out by the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Fixed Ethernet address; left out: made by the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// What the app may talk to through this network, instead of the app's `acl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Vec<AclSpec>>,
}

/// One rule of an app's access list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AclSpec {
    /// What happens to what matches.
    pub action: AclActionSpec,
    /// As the app sees it; left out: both.
    #[serde(default)]
    pub direction: Direction,
    /// Address, prefix (`192.0.2.0/24`) or DNS name of the other side; left out: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// `tcp`, `udp`, `icmp` or a number; left out: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Port or range (`8000-8010`) of the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<String>,
    /// Port or range of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<String>,
    /// Needed for `limit`: packets let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitSpec>,
}

/// So many packets in a time; more are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LimitSpec {
    /// Packets let through in that time.
    pub packets: u32,
    /// Left out: a second.
    #[serde(default)]
    pub per: LimitUnit,
    /// Packets that may come at once; left out: as many as `packets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum LimitUnit {
    #[default]
    Second,
    Minute,
    Hour,
    Day,
}

impl LimitUnit {
    pub const fn seconds(self) -> u32 {
        match self {
            LimitUnit::Second => 1,
            LimitUnit::Minute => 60,
            LimitUnit::Hour => 3_600,
            LimitUnit::Day => 86_400,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum AclActionSpec {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// Allow up to a rate, drop above.
    Limit,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Either way.
    #[default]
    Both,
    /// Connections to the app.
    In,
    /// Connections of the app.
    Out,
}

/// Names one value of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    pub name: String,
    /// Key in its `data`.
    pub key: String,
}

/// User data, in line or from a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum UserDataSpec {
    /// In line.
    Text(String),
    /// A value of a Secret, delivered encrypted.
    SecretRef(SecretRef),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ResourcesSpec {
    /// Number of processors; default 1.
    pub cpus: u32,
    /// Limit of memory: bytes, or with Ki, Mi, Gi; default 256Mi.
    pub memory: String,
    /// What the app may write beside its volumes, as for memory. Left out: no limit but the device's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

impl Default for ResourcesSpec {
    fn default() -> Self {
        ResourcesSpec { cpus: 1, memory: "256Mi".into(), disk: None }
    }
}

/// What stands between the app and the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Isolation {
    /// A native container: namespaces, seccomp, no hypervisor.
    #[default]
    Container,
    /// A virtual machine of its own.
    Vm,
}

/// A network for apps, made on each device that runs an app attached to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// How apps are connected.
    pub kind: NetworkKind,
    /// Label of the uplink: a port's name, or `uplink` for any. Left out: `uplink`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Needed for `local`: `10.11.0.0/24`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Left out: the first address of the subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers for what is not a name of an app. Left out: those of the uplink.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
    /// Names that apps can look up, besides the names of apps.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Domain apps are told they are in, for `local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Time servers apps are told, for `local`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<Ipv4Addr>,
    /// Destinations that apps reach through this network besides its own subnet, for `local`: `198.51.100.0/24`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// Largest packet; left out: as the uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Records what apps talk to and which names they look up: `selvedge get app/NAME --flows`.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub flow_log: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum NetworkKind {
    /// Behind NAT, with addresses and names handed out by the node.
    #[default]
    Local,
    /// Layer 2 on the uplink.
    Switch,
}

/// Where images come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RegistrySpec {
    /// `registry.example:5000` with an optional path.
    pub url: String,
    /// Plain HTTP.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub insecure: bool,
    /// Certificates trusted for it besides the common roots, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Name of a Secret with the keys `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// The controller's own registry keeps copies of images that are pulled as `mirror/NAME/REPOSITORY`, NAME being the
    /// name of this Registry, and serves them when this registry does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorSpec>,
}

/// How a registry is mirrored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct MirrorSpec {
    /// What the copies may take on the controller's disk: bytes, or with Mi, Gi, Ti. What was not used for longest goes
    /// first, what an app uses stays.
    pub quota: String,
}

impl Default for MirrorSpec {
    fn default() -> Self {
        MirrorSpec { quota: "20Gi".into() }
    }
}

/// A web server that files come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DatastoreSpec {
    /// `https://files.example:8443/some/path` or `http://…`; paths of files go below it.
    pub url: String,
    /// Certificates trusted for it besides the common roots, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Name of a Secret with the keys `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// A volume, made on each device that runs an app which uses it. Without `file` and `image` it begins as an empty
/// directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// It is a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSpec>,
    /// It is the tree of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// What apps may write into it: bytes, or with Ki, Mi, Gi. Left out: no limit but the device's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Several apps of a device may use it, and none can write. One that is not belongs to one app of a device.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub read_only: bool,
    /// Another number builds it anew; what was written is lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub purge_counter: u32,
}

/// A file of a Datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FileSpec {
    /// Name of a Datastore.
    pub datastore: String,
    /// Below the datastore's URL.
    pub path: String,
    /// Of the whole file, 64 hex digits as `sha256sum` prints them.
    pub sha256: String,
    /// Name inside the app; left out: the name of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// An image of a Registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// `repository:tag` or `repository@sha256:…`.
    pub reference: String,
    /// Left out: `builtin`, the controller's own.
    #[serde(default = "builtin", skip_serializing_if = "is_builtin")]
    pub registry: String,
}

/// A version of the operating system for every device chosen by name or by labels: one of `file` and `image`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BaseOsSpec {
    /// As the image was built with.
    pub version: String,
    /// The update file on a web server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSpec>,
    /// The update file as an artifact of a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// Devices by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Devices that carry all these labels; `{}` chooses every device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
    /// Left out: true. False has the version written into the idle slot, and not started.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub activate: bool,
    /// Another number has the version tried again where it failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_counter: u32,
}

/// Values that are delivered encrypted. Never returned by the API.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct SecretSpec {
    /// Values by key. A Secret that is sent without `spec` keeps the values it has.
    pub data: BTreeMap<String, String>,
}

impl core::fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.data.keys()).finish()
    }
}

/// The part of an object that its kind decides.
#[allow(clippy::large_enum_variant, reason = "one per object of the intent, never in a hot path")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    Device(DeviceSpec),
    JoinToken(JoinTokenSpec),
    App(AppSpec),
    Network(NetworkSpec),
    Registry(RegistrySpec),
    Datastore(DatastoreSpec),
    Volume(VolumeSpec),
    Secret(SecretSpec),
    BaseOs(BaseOsSpec),
}

impl Spec {
    pub fn kind(&self) -> Kind {
        match self {
            Spec::Device(_) => Kind::Device,
            Spec::JoinToken(_) => Kind::JoinToken,
            Spec::App(_) => Kind::App,
            Spec::Network(_) => Kind::Network,
            Spec::Registry(_) => Kind::Registry,
            Spec::Datastore(_) => Kind::Datastore,
            Spec::Volume(_) => Kind::Volume,
            Spec::Secret(_) => Kind::Secret,
            Spec::BaseOs(_) => Kind::BaseOs,
        }
    }
}
