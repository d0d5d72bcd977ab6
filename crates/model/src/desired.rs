// SPDX-License-Identifier: Apache-2.0
//! What the planner asks of one process. Values of topics: newest value per key, absent means to go.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::{
    AclRule, Credentials, LocalNetwork, NetworkInstanceKind, UserData, VirtualizationMode, VolumeOrigin,
};
use crate::id::{AppId, ContentTreeId, Digest, NetworkInstanceId, VolumeKey};
use crate::net::Mac;

/// A version the store shall put into the idle slot (topic `update-desired`, key: empty).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateDesired {
    pub version: String,
    /// A change has it tried again.
    pub attempt: u32,
    /// The update file. Of an image it is the one layer.
    pub content: ContentDesired,
}

/// What init shall do about the slots (topic `boot-desired`, key: empty).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootDesired {
    /// Of the version that runs, while it is on trial.
    pub verdict: Verdict,
    /// The box shall start again, into this version.
    pub start_into: Option<String>,
}

/// What is thought of a version on trial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    #[default]
    Pending,
    /// It stays.
    Good { version: String },
    /// It is not started again.
    Bad { version: String },
}

/// Content the store shall hold (topic `content-desired`, key: content tree id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentDesired {
    pub id: ContentTreeId,
    pub name: String,
    /// Raised to have a tag resolved again.
    pub generation: i64,
    pub sources: ContentSources,
    /// Digest of the manifest or index, when ordered by digest; of a file always.
    pub digest: Option<Digest>,
    /// 0: no limit.
    pub max_size_bytes: u64,
}

/// What the content is and where it can be had, tried in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentSources {
    /// An image.
    Registries(Vec<ContentSource>),
    /// A file.
    Servers(Vec<FileSource>),
}

/// A file on a web server. Everything fetch needs, so that it keeps nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSource {
    /// `https://…` or `http://…`, whole.
    pub url: String,
    pub credentials: Option<Credentials>,
    pub ca_pem: Vec<String>,
}

/// One place an image can be had from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentSource {
    pub registry: RegistrySource,
    /// Repository below the registry, without tag or digest.
    pub repository: String,
    /// Tag, or `sha256:…`.
    pub reference: String,
}

/// A registry and how to speak to it. Everything fetch needs, so that it keeps nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrySource {
    /// `https://host:port`, or `http://host:port` for a registry on loopback or one ordered with `http://`.
    pub base_url: String,
    pub credentials: Option<Credentials>,
    pub ca_pem: Vec<String>,
}

/// A volume the store shall make and keep (topic `volume-desired`, key: volume key).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDesired {
    pub key: VolumeKey,
    pub name: String,
    pub origin: VolumeOrigin,
    /// What apps may write into it; 0: no limit of its own.
    pub max_size_bytes: u64,
    pub is_read_only: bool,
}

/// A network the net process shall keep (topic `network-desired`, key: network instance id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDesired {
    pub id: NetworkInstanceId,
    pub name: String,
    /// Rises never falls: names the bridge, survives restarts.
    pub number: u16,
    pub kind: NetworkInstanceKind,
    /// Largest packet apps may send; 0: as the uplink, or the usual 1500.
    pub mtu: u16,
    /// Flows of apps and their name lookups are recorded.
    pub is_flow_logged: bool,
    /// Linux names of the uplinks allowed for this network, in order of preference; empty: no uplink.
    pub uplinks: Vec<String>,
}

impl NetworkDesired {
    /// Its addresses and names, when the node hands them out.
    pub fn local(&self) -> Option<&LocalNetwork> {
        match &self.kind {
            NetworkInstanceKind::Local(local) => Some(local),
            NetworkInstanceKind::Switch => None,
        }
    }
}

/// The interfaces of one app (topic `vifs-desired`, key: app id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifsDesired {
    pub app: AppId,
    /// DNS name of the app inside its networks: the app's name, lower case.
    pub name: String,
    pub vifs: Vec<VifDesired>,
}

/// One interface of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifDesired {
    /// Name inside the app, e.g. `eth0`.
    pub name: String,
    pub network: NetworkInstanceId,
    /// Name of the node's end, at most 15 bytes, unique on the node: `nbu<n>x<app number>`.
    pub host_name: String,
    pub mac: Mac,
    /// Always there in a local network. In a switch `None` means that it comes from a server outside.
    pub address: Option<Ipv4Addr>,
    pub acl: Vec<AclRule>,
}

/// An app the run process shall keep running (topic `app-desired`, key: app id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDesired {
    pub app: AppId,
    pub name: String,
    /// A change stops the running instance and starts a new one: made of restart and purge counters and all that
    /// can only be changed by a restart.
    pub instance: u64,
    pub mode: VirtualizationMode,
    pub memory_bytes: u64,
    pub vcpus: u32,
    pub root: VolumeKey,
    /// What the app may write beside its volumes; 0: no limit of its own.
    pub root_size_bytes: u64,
    /// Volumes besides the root, in disk order.
    pub mounts: Vec<MountDesired>,
    pub image: ImageConfig,
    /// Layer directories below the store's directory, lowest first.
    pub layers: Vec<Digest>,
    pub vif_count: u16,
    pub dns: Vec<Ipv4Addr>,
    pub user_data: Option<UserData>,
    /// Not started earlier than this after the node came up.
    pub start_delay_s: u32,
    pub probe: Option<Probe>,
}

/// A volume inside an app. It appears as `/dev/eve/volumes/by-id/INDEX`, as `/dev/eve/volumes/by-name/NAME`, and where
/// `dir` says: a tree at `dir` itself, a file as `dir/INDEX` and as `dir/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountDesired {
    pub volume: VolumeKey,
    /// Place in the app's list of volumes; the root has 0.
    pub index: u16,
    /// Fit to be a file name; empty: there is none.
    pub name: String,
    /// Absolute; empty: nowhere else.
    pub dir: String,
    pub content: MountContent,
    pub is_read_only: bool,
    /// 0: no limit of its own.
    pub max_size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountContent {
    /// A directory of the volume's own.
    Directory,
    /// A file of the volume's own.
    File,
    /// A file of the store, which nobody may write.
    StoredFile(Digest),
    /// The tree of an image: layers of the store, lowest first.
    Tree(Vec<Digest>),
}

/// A question that tells whether an app that runs does its work. Asked inside the app's own network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub kind: ProbeKind,
    pub port: u16,
    /// Between two questions.
    pub every_s: u32,
    /// An answer that comes later is none.
    pub timeout_s: u32,
    /// Questions in a row without a good answer after which the app is unhealthy.
    pub failures: u32,
    /// After its start the app has this long for the first good answer.
    pub grace_s: u32,
    pub action: ProbeAction,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeKind {
    /// The port takes connections.
    Tcp,
    /// `GET` of the path is answered with a status of 200 to 399.
    Http { path: String },
}

/// What follows when an app is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// It is stopped and started again, with growing pauses.
    Restart,
    /// It is reported.
    Report,
}

/// What the image says of how it is to be run (OCI image config).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Empty: root of the container.
    pub user: String,
    /// Empty: `/`.
    pub working_dir: String,
    /// Name or number; empty: SIGTERM.
    pub stop_signal: String,
}
