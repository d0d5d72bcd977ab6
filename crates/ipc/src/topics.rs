// SPDX-License-Identifier: Apache-2.0
//! The map of the running system: every topic, its one writer and the type of its values.
//!
//! Topics carry state only: the newest value per key. Who may read one stands in the service manifests.

use model::{config, desired, observed, status};
use serde::{Serialize, de::DeserializeOwned};

/// A kind of state that one process publishes and others may read.
pub trait Topic: 'static {
    type Value: Serialize + DeserializeOwned + PartialEq + Clone + core::fmt::Debug;
    const NAME: &'static str;
    /// The only service that may write it.
    const WRITER: &'static str;
}

macro_rules! topics {
    ($($(#[$doc:meta])* $name:ident: $text:literal, $writer:literal, $value:ty;)*) => {
        $($(#[$doc])* #[derive(Debug)] pub enum $name {}
        impl Topic for $name {
            type Value = $value;
            const NAME: &'static str = $text;
            const WRITER: &'static str = $writer;
        })*
        /// Name and writer of every topic.
        pub const ALL: &[(&str, &str)] = &[$(($text, $writer)),*];
    };
}

topics! {
    /// The device config in force, secrets sealed. Key: empty.
    Config: "config", "agent", config::DeviceConfig;
    /// What the agent knows of its controller. Key: empty.
    AgentObserved: "agent-observed", "agent", observed::AgentObserved;
    /// Key: content tree id.
    ContentDesired: "content-desired", "planner", desired::ContentDesired;
    /// Key: volume key.
    VolumeDesired: "volume-desired", "planner", desired::VolumeDesired;
    /// Key: network instance id.
    NetworkDesired: "network-desired", "planner", desired::NetworkDesired;
    /// Key: app id.
    VifsDesired: "vifs-desired", "planner", desired::VifsDesired;
    /// Key: app id.
    AppDesired: "app-desired", "planner", desired::AppDesired;
    /// Key: empty.
    UpdateDesired: "update-desired", "planner", desired::UpdateDesired;
    /// Read by init. Key: empty.
    BootDesired: "boot-desired", "planner", desired::BootDesired;
    /// Key: empty.
    UpdateObserved: "update-observed", "store", observed::UpdateObserved;
    /// Nothing on a hosted node. Key: empty.
    SlotsObserved: "slots-observed", "init", observed::SlotsObserved;
    /// Nothing on a hosted node. Key: empty.
    BaseOsStatus: "base-os-status", "planner", status::BaseOsStatus;
    /// Key: content tree id.
    ContentObserved: "content-observed", "store", observed::ContentObserved;
    /// Key: volume key.
    VolumeObserved: "volume-observed", "store", observed::VolumeObserved;
    /// Key: mount point.
    StorageObserved: "storage-observed", "store", observed::StorageObserved;
    /// Key: network instance id.
    NetworkObserved: "network-observed", "net", observed::NetworkObserved;
    /// Key: app id.
    VifsObserved: "vifs-observed", "net", observed::VifsObserved;
    /// Key: Linux name of the interface.
    LinkMetrics: "link-metrics", "net", observed::LinkMetrics;
    /// Key: Linux name of the port.
    PortObserved: "port-observed", "net", observed::PortObserved;
    /// Key: app id.
    AppObserved: "app-observed", "run", observed::AppObserved;
    /// Key: app id.
    AppMetrics: "app-metrics", "run", observed::AppMetrics;
    /// Key: service name.
    ServiceObserved: "service-observed", "init", observed::ServiceObserved;
    /// Key: empty.
    NodeObserved: "node-observed", "init", observed::NodeObserved;
    /// Key: empty.
    BoxMetrics: "box-metrics", "init", observed::BoxMetrics;
    /// Key: empty.
    VaultObserved: "vault-observed", "vault", observed::VaultObserved;
    /// Key: app id.
    AppStatus: "app-status", "planner", status::AppStatus;
    /// Key: content tree id.
    ContentStatus: "content-status", "planner", status::ContentTreeStatus;
    /// Key: volume key.
    VolumeStatus: "volume-status", "planner", status::VolumeStatus;
    /// Key: network instance id.
    NetworkStatus: "network-status", "planner", status::NetworkInstanceStatus;
    /// Key: empty.
    ConfigApplied: "config-applied", "planner", status::ConfigApplied;
}
