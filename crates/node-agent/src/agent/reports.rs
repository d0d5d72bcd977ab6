// SPDX-License-Identifier: Apache-2.0
//! Reports made of what the agent knows: one info message per object, and metrics. Pure.

use std::collections::BTreeMap;

use model::config::{DeviceConfig, PortAddressing};
use model::flow::{Delivery, FlowCounters};
use model::id::{AppId, DeviceId, Digest, VolumeKey};
use model::observed::{LinkMetrics, PortObserved};
use model::reason::{Fault, Reason};
use model::report::{
    AdapterStatus, AddressingKind, AppDiskReport, AppReport, AttestationState, BlobStatus, DataAtRest,
    DeviceState, DeviceStatus, DiskReport, Info, InfoMessage, Metrics, MountStatus, NetworkReport,
    NodeMetrics, PortConfigStatus, PortStatus, ProcessReport, SecurityModule, SecurityStatus, UplinkReport,
    VolumeReport,
};
use model::status::{AppStatus, SoftwareStatus, SwState};
use model::time::{MonoMs, Now, WallTime};
use node_core::attest::Phase;
use node_core::report::Subject;
use node_core::upload::Urgency;

use super::http::Flows;
use super::world::World;

/// `BootReason` of a start nobody explained.
const BOOT_REASON_UNKNOWN: i32 = 12;
/// The very first start on this disk.
const BOOT_REASON_FIRST: i32 = 1;
/// `MaintenanceModeReason` of a mode that was ordered.
const MAINTENANCE_ORDERED: i32 = 1;
/// Blobs in one report.
const MAX_BLOBS: usize = 4096;

/// What the agent knows besides the topics.
#[derive(Clone, Debug, Default)]
pub struct Own {
    pub device: Option<DeviceId>,
    pub shown: Shown,
    pub requests: RequestCounts,
    pub flows: FlowCounts,
    pub received_config: Option<WallTime>,
}

/// What of it makes the device's report another one: the rest changes with each answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Serial number the node registers by, when it is not the machine's.
    pub serial: Option<String>,
    pub phase: Option<Phase>,
    /// Digests of the root certificates, for the controller's own and for its TLS server.
    pub root_certs: Option<Digest>,
    pub tls_root_certs: Option<Digest>,
    /// Why the last request had no answer; empty when it had one.
    pub unreached: String,
}

/// Requests to the controller so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    pub succeeded: u64,
    pub failed: u64,
    pub refused: u64,
    pub last_success: Option<WallTime>,
    pub last_failure: Option<WallTime>,
}

/// Flow reports so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    posted: FlowCounters,
    /// What nobody took in time, as net counts.
    pub lost: FlowCounters,
}

impl FlowCounts {
    /// A report was posted.
    pub fn count(&mut self, report: Option<Flows>, is_taken: bool) {
        let Some(Flows { flows, lookups, .. }) = report else { return };
        let posted = &mut self.posted;
        for (delivery, count) in
            [(&mut posted.messages, 1), (&mut posted.flows, flows), (&mut posted.lookups, lookups)]
        {
            let place = if is_taken { &mut delivery.sent } else { &mut delivery.failed_attempts };
            *place += count;
        }
    }

    fn total(&self) -> FlowCounters {
        let both = |posted: Delivery, lost: Delivery| Delivery { dropped: lost.dropped, ..posted };
        FlowCounters {
            messages: both(self.posted.messages, self.lost.messages),
            flows: both(self.posted.flows, self.lost.flows),
            lookups: both(self.posted.lookups, self.lost.lookups),
        }
    }
}

fn acl_rules(config: &DeviceConfig) -> u64 {
    config.apps.iter().flat_map(|app| &app.interfaces).map(|interface| interface.acl.len() as u64).sum()
}

/// Counters of ports, under the labels of the config.
fn port_links(ports: &[PortStatus], world: &World) -> Vec<LinkMetrics> {
    let link = |port: &PortStatus| {
        let link = world.links.get(&port.observed.name)?.clone();
        Some(LinkMetrics { label: port.label.clone(), ..link })
    };
    ports.iter().filter_map(link).collect()
}

/// Key and urgency of a subject's message in the queue.
pub fn queue_key(subject: Subject) -> (String, Urgency) {
    match subject {
        Subject::Device => ("device".into(), Urgency::Rest),
        Subject::App(id) => (format!("app/{id}"), Urgency::App),
        Subject::NetworkInstance(id) => (format!("network/{id}"), Urgency::Rest),
        Subject::Volume(key) => (format!("volume/{key}"), Urgency::Rest),
        Subject::ContentTree(id) => (format!("content/{id}"), Urgency::Rest),
        Subject::Blobs => ("blobs".into(), Urgency::Rest),
    }
}

/// The message about a subject; `None` when it is no longer there.
pub fn info(
    subject: Subject,
    now: Now,
    own: &Own,
    config: Option<&DeviceConfig>,
    world: &World,
) -> Option<InfoMessage> {
    let info = match subject {
        Subject::Device => {
            let mut status = device(&own.shown, config, world);
            // Not part of what is compared: each answer would be a change to be told.
            status.port_config.last_success = own.requests.last_success;
            status.port_config.last_failure = own.requests.last_failure;
            Info::Device(Box::new(status))
        }
        Subject::App(id) => Info::App(world.apps.get(&id.to_string())?.clone()),
        Subject::NetworkInstance(id) => Info::NetworkInstance(world.networks.get(&id.to_string())?.clone()),
        Subject::Volume(key) => Info::Volume(world.volumes.get(&key.to_string())?.clone()),
        Subject::ContentTree(id) => Info::ContentTree(world.contents.get(&id.to_string())?.clone()),
        Subject::Blobs => Info::Blobs(blobs(world)),
    };
    Some(InfoMessage { device: own.device, at: now.wall.time(), info })
}

/// The last message about a subject that is gone; `None` where the device's own report tells it.
pub fn gone(subject: Subject, now: Now, own: &Own) -> Option<InfoMessage> {
    let Subject::App(id) = subject else { return None };
    Some(InfoMessage { device: own.device, at: now.wall.time(), info: Info::App(AppStatus::gone(id)) })
}

/// The device as a whole.
pub fn device(own: &Shown, config: Option<&DeviceConfig>, world: &World) -> DeviceStatus {
    let node = world.node.clone();
    let applied = world.applied.as_ref();
    let is_maintenance = applied.is_some_and(|applied| applied.is_maintenance);
    let restart_counter = node.as_ref().map_or(0, |node| node.restart_counter);
    let is_first = restart_counter == 0;
    let mut status = DeviceStatus {
        name: config.map(|config| config.name.clone()).unwrap_or_default(),
        state: match &world.base_os {
            Some(base_os) if base_os.is_updating => DeviceState::BaseOsUpdating,
            _ if is_maintenance => DeviceState::Maintenance,
            _ => DeviceState::Online,
        },
        update_counter: world.base_os.as_ref().map_or(0, |base_os| base_os.update_counter),
        storage_bytes: world.storage.values().map(|disk| disk.total_bytes).max().unwrap_or(0),
        boot_reason: if is_first { BOOT_REASON_FIRST } else { BOOT_REASON_UNKNOWN },
        boot_reason_text: if is_first { "first start on this disk" } else { "node software was started" }
            .into(),
        restart_counter,
        reboot_counter: applied.map_or(0, |applied| applied.reboot_counter),
        shutdown_counter: applied.map_or(0, |applied| applied.shutdown_counter),
        ports: ports(config, world),
        port_config: PortConfigStatus {
            made_at: applied.and_then(|applied| applied.timestamp),
            error: own.unreached.clone(),
            ..PortConfigStatus::default()
        },
        adapters: config.map(|config| adapters(config, world)).unwrap_or_default(),
        mounts: world
            .storage
            .values()
            .map(|disk| MountStatus {
                path: disk.path.clone(),
                total_bytes: disk.total_bytes,
                is_storage: true,
                disk: node.as_ref().and_then(|node| node.disk.clone()),
            })
            .collect(),
        items: applied.map(|applied| applied.items.clone()).unwrap_or_default(),
        apps: world.apps.values().map(|app| (app.app, app.name.clone())).collect(),
        security: security(own, world),
        attestation: own.phase.map_or(AttestationState::Unknown, attestation),
        maintenance: if is_maintenance { vec![MAINTENANCE_ORDERED] } else { Vec::new() },
        ..DeviceStatus::default()
    };
    if let Some(node) = node {
        status.software = match &world.base_os {
            Some(base_os) => base_os.slots.clone(),
            None => vec![hosted(node.version, config)],
        };
        status.hostname = node.hostname;
        status.architecture = node.architecture;
        status.manufacturer = node.manufacturer;
        status.product = node.product;
        status.serial = own.serial.clone().unwrap_or(node.serial);
        status.firmware = node.firmware;
        status.has_watchdog = node.has_watchdog;
        status.cpus = node.cpus;
        status.memory_bytes = node.memory_bytes;
        status.booted_at = node.booted_at;
    }
    status
}

/// A hosted node has no slots. Controllers find the version that runs by the active one.
fn hosted(version: String, config: Option<&DeviceConfig>) -> SoftwareStatus {
    let order = config.and_then(|config| config.base_os.as_ref()).filter(|order| order.version != version);
    let fault = order.map(|order| {
        let text =
            format!("version {}: a node that is hosted by another system does not update it", order.version);
        Fault::new(Reason::Unsupported, text)
    });
    SoftwareStatus {
        partition: "IMGA".into(),
        partition_state: "active".into(),
        version,
        is_running: true,
        state: SwState::Installed,
        fault,
        ..SoftwareStatus::default()
    }
}

fn attestation(phase: Phase) -> AttestationState {
    match phase {
        Phase::Off => AttestationState::Unknown,
        Phase::NonceWait => AttestationState::NonceWait,
        Phase::QuoteWait => AttestationState::QuoteWait,
        Phase::AttestWait => AttestationState::AttestWait,
        Phase::RestartWait => AttestationState::RestartWait,
        Phase::Complete => AttestationState::Complete,
    }
}

fn security(own: &Shown, world: &World) -> SecurityStatus {
    let module = match &world.vault {
        None => SecurityModule::Unknown,
        Some(vault) if vault.has_tpm => SecurityModule::Enabled,
        Some(_) => SecurityModule::NotFound,
    };
    SecurityStatus {
        module,
        data_at_rest: DataAtRest::Disabled,
        data_at_rest_text: "persist is not encrypted by this node".into(),
        root_certs_sha256: own.root_certs,
        tls_root_certs_sha256: own.tls_root_certs,
    }
}

/// Ports under the labels of the config; those it does not name under their own names.
fn ports(config: Option<&DeviceConfig>, world: &World) -> Vec<PortStatus> {
    let port = |observed: &PortObserved| {
        let io = config.and_then(|config| {
            config.physical_ios.iter().find(|io| io.interface.as_deref() == Some(&observed.name))
        });
        let label = io.map_or(&observed.name, |io| &io.logical_label);
        let adapter = config.and_then(|config| {
            let is_on = |adapter: &&model::config::SystemAdapter| {
                let lower = if adapter.lower_layer.is_empty() { &adapter.name } else { &adapter.lower_layer };
                lower == label
            };
            config.system_adapters.iter().find(is_on)
        });
        let network = config
            .zip(adapter.and_then(|adapter| adapter.network))
            .and_then(|(config, id)| config.networks.iter().find(|network| network.id == id));
        let is_named = config.is_some_and(|config| !config.system_adapters.is_empty());
        PortStatus {
            label: adapter.map_or(label, |adapter| &adapter.name).clone(),
            // Without a word of the config every port with a gateway is used.
            is_uplink: adapter
                .map_or(!is_named && !observed.gateways.is_empty(), |adapter| adapter.is_uplink),
            cost: adapter.map_or(0, |adapter| adapter.cost),
            addressing: network.map(|network| addressing(&network.addressing)),
            network: adapter.and_then(|adapter| adapter.network),
            usage: io.map_or(0, |io| io.usage),
            observed: observed.clone(),
            fault: None,
        }
    };
    world.ports.values().map(port).collect()
}

fn addressing(ordered: &PortAddressing) -> AddressingKind {
    match ordered {
        PortAddressing::None => AddressingKind::None,
        PortAddressing::Dhcp => AddressingKind::Dhcp,
        PortAddressing::Static { .. } => AddressingKind::Static,
    }
}

/// Adapters of the config that are there, those of one group together. A hosted node sees network interfaces alone.
fn adapters(config: &DeviceConfig, world: &World) -> Vec<AdapterStatus> {
    let mut out: Vec<AdapterStatus> = Vec::new();
    for io in &config.physical_ios {
        let Some(port) = io.interface.as_ref().and_then(|name| world.ports.get(name)) else { continue };
        let group = out.iter().position(|one| !one.group.is_empty() && one.group == io.assignment_group);
        let place = group.unwrap_or_else(|| {
            out.push(AdapterStatus {
                kind: io.kind,
                group: io.assignment_group.clone(),
                members: Vec::new(),
                macs: Vec::new(),
                usage: io.usage,
                // None is given to an app yet.
                is_used_by_node: true,
            });
            out.len() - 1
        });
        if let Some(adapter) = out.get_mut(place) {
            adapter.members.push(io.logical_label.clone());
            adapter.macs.extend(port.mac);
        }
    }
    out
}

fn blobs(world: &World) -> Vec<BlobStatus> {
    let mut all: BTreeMap<Digest, BlobStatus> = BTreeMap::new();
    for tree in world.contents.values() {
        for digest in &tree.blobs {
            let blob = all.entry(*digest).or_insert(BlobStatus {
                digest: *digest,
                state: tree.state,
                size_bytes: 0,
                users: 0,
                progress_percent: tree.progress_percent,
            });
            blob.users += 1;
            // A blob that any tree has loaded is there.
            blob.state = blob.state.max(tree.state).min(SwState::Loaded);
            blob.progress_percent = blob.progress_percent.max(tree.progress_percent);
        }
    }
    for blob in &world.blobs {
        if let Some(status) = all.get_mut(&blob.digest) {
            status.size_bytes = blob.size_bytes;
        }
    }
    all.into_values().take(MAX_BLOBS).collect()
}

/// Counters of this moment.
pub fn metrics(now: Now, own: &Own, config: Option<&DeviceConfig>, world: &World) -> Metrics {
    let links_of = |app: AppId| -> Vec<LinkMetrics> {
        world.links.values().filter(|link| link.app == Some(app)).cloned().collect()
    };
    let node = world.node.as_ref();
    let services_used_bytes: u64 = world.services.values().map(|service| service.memory_bytes).sum();
    let apps_used_bytes: u64 = world.app_metrics.values().map(|app| app.memory_used_bytes).sum();
    let at = now.wall.time();
    let uplinks = ports(config, world);
    let uplink = uplinks.iter().find(|port| port.is_uplink).map_or("", |port| &port.label).to_owned();
    Metrics {
        device: own.device,
        at,
        node: NodeMetrics {
            cpu_ns: world.services.values().map(|service| service.cpu_ns).sum::<u64>()
                + world.app_metrics.values().map(|app| app.cpu_ns).sum::<u64>(),
            booted_at: node.and_then(|node| node.booted_at),
            memory_total_bytes: node.map_or(0, |node| node.memory_bytes),
            memory_used_bytes: node
                .zip(world.box_metrics.as_ref())
                .map_or(services_used_bytes + apps_used_bytes, |(node, metrics)| {
                    node.memory_bytes.saturating_sub(metrics.memory_available_bytes)
                }),
            services_used_bytes,
            services_allotted_bytes: world.services.values().map(|service| service.memory_limit_bytes).sum(),
            apps_allotted_bytes: world.app_metrics.values().map(|app| app.memory_limit_bytes).sum(),
            apps_storage_bytes: world.storage.values().map(|disk| disk.content_bytes).sum(),
            links: port_links(&uplinks, world),
            flows: own.flows.total(),
            acl_rules: config.map_or(0, acl_rules),
            disks: world
                .storage
                .values()
                .map(|disk| DiskReport {
                    path: disk.path.clone(),
                    total_bytes: disk.total_bytes,
                    used_bytes: disk.used_bytes,
                    device: node
                        .and_then(|node| Some(node.disk.as_ref()?.device.clone()))
                        .unwrap_or_default(),
                    counters: world.box_metrics.as_ref().and_then(|metrics| metrics.disk).unwrap_or_default(),
                })
                .collect(),
            uplinks: vec![UplinkReport {
                port: uplink,
                succeeded: own.requests.succeeded,
                failed: own.requests.failed,
                last_success: own.requests.last_success,
                last_failure: own.requests.last_failure,
                refused: own.requests.refused,
            }],
            received_config: own.received_config,
            processed_config: world.applied.as_ref().and_then(|applied| applied.timestamp),
        },
        apps: world
            .app_metrics
            .values()
            .map(|metrics| {
                let status = world.apps.get(&metrics.app.to_string());
                AppReport {
                    name: status.map(|status| status.name.clone()).unwrap_or_default(),
                    version: status.map(|status| status.version.clone()).unwrap_or_default(),
                    started_at: status.and_then(|status| status.started_at),
                    metrics: metrics.clone(),
                    disks: status
                        .into_iter()
                        .flat_map(|status| &status.volumes)
                        .filter_map(|key| disk(world, *key))
                        .collect(),
                    links: links_of(metrics.app),
                }
            })
            .collect(),
        networks: world
            .networks
            .values()
            .map(|network| NetworkReport {
                id: network.id,
                version: network.version.clone(),
                name: network.name.clone(),
                is_active: network.is_active,
                kind: network.kind,
                links: [&network.bridge]
                    .into_iter()
                    .chain(network.vifs.iter().map(|vif| &vif.vif))
                    .filter_map(|name| world.links.get(name).cloned())
                    .collect(),
            })
            .collect(),
        volumes: world
            .volumes
            .values()
            .map(|volume| VolumeReport {
                id: volume.key.id,
                name: volume.name.clone(),
                total_bytes: volume.max_size_bytes,
                used_bytes: volume.used_bytes,
            })
            .collect(),
        processes: world
            .services
            .values()
            .filter_map(|service| {
                Some(ProcessReport {
                    pid: service.pid?,
                    name: service.name.clone(),
                    started_at: wall_of(now, service.started),
                    memory_bytes: service.memory_bytes,
                    cpu_ns: service.cpu_ns,
                })
            })
            .collect(),
    }
}

fn disk(world: &World, key: VolumeKey) -> Option<AppDiskReport> {
    let volume = world.volumes.get(&key.to_string())?;
    Some(AppDiskReport {
        name: volume.name.clone(),
        provisioned_bytes: volume.max_size_bytes,
        used_bytes: volume.used_bytes,
    })
}

/// Wall time of an earlier moment.
fn wall_of(now: Now, moment: MonoMs) -> Option<WallTime> {
    let ago_s = i64::try_from(now.mono.since_ms(moment) / 1_000).ok()?;
    now.wall.time().map(|at| WallTime { seconds: at.seconds - ago_s, nanos: at.nanos })
}

#[cfg(test)]
mod tests;
