// SPDX-License-Identifier: Apache-2.0
//! One device's config, computed from the intent.
//!
//! Deterministic: the same intent, site, ledger and keys give the same config. Ids on the wire are UUIDv5 of
//! (object uid, device, role). Expects a validated intent ([`crate::validate`]); what is wrong nevertheless is left out.
//! Secrets are left out until the device has published the key to encrypt them for.

mod base_os;
mod volumes;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{
    AclAction, AclDirection, AclMatch, AclRemote, AclRule, AppInstance, AppInterface, ConfigItem,
    ContentFormat, ContentTree, Credentials, Datastore, DatastoreKind, DeviceConfig, LocalNetwork,
    NetworkConfig, NetworkInstance, NetworkInstanceKind, PhysicalIo, PortAddressing, PortRange, Resources,
    SystemAdapter, UserData, VirtualizationMode, Volume, VolumeOrigin, VolumeRef,
};
use model::id::{
    AppId, ContentTreeId, DatastoreId, DeviceId, NetworkId, NetworkInstanceId, VolumeId, VolumeKey,
};
use model::net::Prefix4;
use model::secret::{CipherBlock, CipherContext, SecretHandle};
use model::time::WallTime;
use uuid::Uuid;

use crate::flatten::digest;
use crate::image::{
    parse_image, parse_memory, parse_port_map, parse_port_range, parse_protocol, parse_registry,
};
use crate::intent::{Intent, Object};
use crate::ledger::{Ledger, LedgerVolume};
use crate::resource::{
    AclActionSpec, AclSpec, Addressing, AppSpec, BUILTIN_REGISTRY, DeviceSpec, Direction, Isolation,
    LimitSpec, NetworkKind, NetworkSpec, PortSpec, UserDataSpec,
};

/// Label of any uplink, known to every node.
const ANY_UPLINK: &str = "uplink";
/// eve-api `PhyIoNetEth`.
const PHYSICAL_IO_ETHERNET: i32 = 1;
/// eve-api `PhyIoUsageMgmtAndApps` and `PhyIoUsageShared`.
const USAGE_MANAGEMENT_AND_APPS: i32 = 1;
const USAGE_SHARED: i32 = 2;
/// How often a node asks. Answers are held, so this is only the pause between two of them.
const POLL_INTERVAL: &str = "timer.config.interval";
/// Property that holds the probe of an app, before its id. Nodes of others pass it over.
const PROBE: &str = "selvedge.probe.";

/// Digits of an object's version.
const VERSION_CHARS: usize = 8;

/// What configs contain of the controller itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// `host:port` that devices reach.
    pub advertise: String,
    /// The root certificate.
    pub ca_pem: String,
    /// Changes with the controller's certificates.
    pub cert_hash: String,
    /// A change makes devices send all their info again.
    pub epoch: i64,
    /// For the built-in registry.
    pub pull_user: String,
    pub pull_password: String,
    /// Pause between two polls, when answers are held.
    pub poll_interval_s: Option<u32>,
}

/// A secret before it is sealed. Not printable.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Clear {
    pub user: String,
    pub password: String,
    pub user_data: String,
}

impl core::fmt::Debug for Clear {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Clear(…)")
    }
}

/// Encrypts for one device. The same object and text must give the same block.
pub trait Seal {
    fn context(&self) -> CipherContext;
    /// `None`: cannot be encrypted; the secret is left out.
    fn seal(&self, object: Uuid, clear: &Clear) -> Option<CipherBlock>;
}

/// A config and the memory that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computed {
    pub config: DeviceConfig,
    pub ledger: Ledger,
}

/// Everything a config is computed from, but the ledger.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub intent: &'a Intent,
    pub site: &'a Site,
    /// The device's name, key of `intent.devices`.
    pub device: &'a str,
    /// `None`: the device has not published its key yet.
    pub seal: Option<&'a dyn Seal>,
}

impl core::fmt::Debug for Inputs<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Inputs").field("device", &self.device).finish_non_exhaustive()
    }
}

/// The id an object has on a device in a role.
pub fn wire_id(object: Uuid, device: DeviceId, role: &str) -> Uuid {
    Uuid::new_v5(&object, format!("{device}/{role}").as_bytes())
}

/// The id an app has on a device.
pub fn app_id(app: Uuid, device: DeviceId) -> AppId {
    AppId(wire_id(app, device, "app"))
}

/// The id of an app's root volume on a device.
pub fn root_volume_id(app: Uuid, device: DeviceId) -> VolumeId {
    VolumeId(wire_id(app, device, "root"))
}

/// The id of any other volume on a device.
pub fn volume_id(volume: LedgerVolume<'_>, device: DeviceId) -> VolumeId {
    VolumeId(match volume {
        LedgerVolume::OfApp(app, path) => wire_id(app, device, &format!("volume{path}")),
        LedgerVolume::Named(volume) => wire_id(volume, device, "volume"),
    })
}

/// The id of a network on a device.
pub fn network_id(network: Uuid, device: DeviceId) -> NetworkInstanceId {
    NetworkInstanceId(wire_id(network, device, "network"))
}

/// Computes a device's config; `None` when there is no such device.
pub fn compute(inputs: Inputs<'_>, before: &Ledger, now_ms: i64) -> Option<Computed> {
    let device = inputs.intent.devices.get(inputs.device)?;
    let mut ledger = before.clone();
    let uids: BTreeSet<Uuid> = inputs.intent.apps.values().map(|app| app.uid).collect();
    ledger.apps.retain(|uid, _| uids.contains(uid));
    let uids: BTreeSet<Uuid> = inputs.intent.volumes.values().map(|volume| volume.uid).collect();
    ledger.volumes.retain(|uid, _| uids.contains(uid));
    let mut config = Builder { inputs, device, id: DeviceId(device.uid) }.config(&mut ledger);
    ledger.advance(digest(&config), now_ms);
    config.version = ledger.version.to_string();
    config.timestamp = Some(WallTime {
        seconds: ledger.timestamp_ms.div_euclid(1000),
        nanos: ledger.timestamp_ms.rem_euclid(1000) as u32 * 1_000_000,
    });
    Some(Computed { config, ledger })
}

/// What the apps of a device refer to, by name.
#[derive(Default)]
struct Used<'a> {
    networks: BTreeSet<&'a str>,
    registries: BTreeSet<&'a str>,
    datastores: BTreeSet<&'a str>,
}

struct Builder<'a> {
    inputs: Inputs<'a>,
    device: &'a Object<DeviceSpec>,
    id: DeviceId,
}

impl<'a> Builder<'a> {
    fn config(&self, ledger: &mut Ledger) -> DeviceConfig {
        let site = self.inputs.site;
        let mut config = DeviceConfig::empty(self.id);
        config.name.clone_from(&self.device.name);
        config.controller_cert_hash.clone_from(&site.cert_hash);
        config.controller_epoch = site.epoch;
        config.items = self.items();
        for port in &self.device.spec.ports {
            self.port(port, &mut config);
        }
        let mut used = Used::default();
        for app in self.inputs.intent.apps_of(self.device) {
            self.app(app, ledger, &mut config, &mut used);
        }
        if let Some(os) = self.inputs.intent.base_os_of(self.device) {
            config.base_os = self.base_os(os, &mut config.content_trees, &mut used);
        }
        for name in used.networks {
            config
                .network_instances
                .extend(self.inputs.intent.networks.get(name).and_then(|n| self.network(n)));
        }
        for name in used.registries {
            config.datastores.extend(self.datastore(name));
        }
        for name in used.datastores {
            config.datastores.extend(self.file_server(name));
        }
        if let Some(seal) = self.inputs.seal {
            config.cipher_contexts.push(seal.context());
        }
        config
    }

    fn items(&self) -> Vec<ConfigItem> {
        let mut items = self.device.spec.properties.clone();
        if let Some(interval_s) = self.inputs.site.poll_interval_s {
            items.entry(POLL_INTERVAL.into()).or_insert_with(|| interval_s.to_string());
        }
        items.into_iter().map(|(key, value)| ConfigItem { key, value }).collect()
    }

    fn port(&self, port: &PortSpec, config: &mut DeviceConfig) {
        let addressing = match &port.addressing {
            Addressing::Dhcp => PortAddressing::Dhcp,
            Addressing::None => PortAddressing::None,
            Addressing::Static(fixed) => {
                let Ok(subnet) = fixed.address.parse::<Prefix4>() else { return };
                PortAddressing::Static { subnet, gateway: fixed.gateway, dns: fixed.dns.clone() }
            }
        };
        let network = NetworkId(wire_id(self.device.uid, self.id, &format!("port/{}", port.name)));
        let interface = port.interface.clone().unwrap_or_else(|| port.name.clone());
        config.physical_ios.push(PhysicalIo {
            kind: PHYSICAL_IO_ETHERNET,
            physical_label: interface.clone(),
            logical_label: port.name.clone(),
            assignment_group: port.name.clone(),
            interface: Some(interface),
            usage: if port.apps_only { USAGE_SHARED } else { USAGE_MANAGEMENT_AND_APPS },
        });
        config.networks.push(NetworkConfig { id: network, addressing });
        config.system_adapters.push(SystemAdapter {
            name: port.name.clone(),
            lower_layer: port.name.clone(),
            network: Some(network),
            is_uplink: !port.apps_only,
            cost: 0,
            shared_labels: Vec::new(),
        });
    }

    fn app(
        &self,
        app: &'a Object<AppSpec>,
        ledger: &mut Ledger,
        config: &mut DeviceConfig,
        used: &mut Used<'a>,
    ) {
        let spec = &app.spec;
        let (Ok(image), Ok(memory_bytes)) = (parse_image(&spec.image), parse_memory(&spec.resources.memory))
        else {
            return;
        };
        let user_data = self.user_data(spec);
        let probe = spec.probe.as_ref().and_then(volumes::probe_text);
        let volumes = self.volumes(app, ledger, config, used);
        let disk_bytes = spec.resources.disk.as_deref().and_then(|text| parse_memory(text).ok()).unwrap_or(0);
        let entry = ledger.apps.entry(app.uid).or_default();
        entry.advance(
            digest(&(&image.text, &spec.registry, self.registry_address(&spec.registry), spec.purge_counter)),
            digest(&volumes.iter().map(|volume| volume.key.to_string()).collect::<Vec<_>>()),
            digest(&RunInputs {
                memory_bytes,
                vcpus: spec.resources.cpus,
                mode: mode(spec.isolation),
                user_data: &user_data,
                networks: spec.networks.iter().map(|n| &*n.network).collect(),
                counter: spec.restart_counter,
                places: self.places(&volumes, config),
                disk_bytes: (disk_bytes > 0).then_some(disk_bytes),
                probe: &probe,
            }),
        );

        let id = app_id(app.uid, self.id);
        let tree = ContentTreeId(wire_id(app.uid, self.id, "content"));
        let key = VolumeKey { id: root_volume_id(app.uid, self.id), generation: entry.generation };
        config.content_trees.push(ContentTree {
            id: tree,
            name: format!("{} image", app.name),
            datastores: alloc::vec![self.datastore_id(&spec.registry)],
            url: image.text,
            format: ContentFormat::Container,
            digest: image.digest,
            max_size_bytes: 0,
            generation: i64::try_from(entry.generation).unwrap_or(i64::MAX),
        });
        config.volumes.push(Volume {
            key,
            name: format!("{} root", app.name),
            origin: VolumeOrigin::Content(tree),
            max_size_bytes: disk_bytes,
            is_read_only: false,
        });
        let root = VolumeRef { key, mount_dir: String::new() };
        let mut instance = AppInstance {
            id,
            version: String::new(),
            name: app.name.clone(),
            is_active: spec.activate,
            resources: Resources {
                memory_bytes,
                vcpus: spec.resources.cpus.max(1),
                mode: mode(spec.isolation),
            },
            volumes: core::iter::once(root).chain(volumes).collect(),
            interfaces: self.interfaces(spec),
            restart_counter: entry.restart,
            purge_counter: entry.purge,
            user_data: user_data
                .and_then(|text| self.sealed(id.0, Clear { user_data: text, ..Clear::default() })),
            profiles: Vec::new(),
            start_delay_s: spec.start_delay_seconds,
            adapters: Vec::new(),
        };
        instance.version = content_version(&instance);
        config.apps.push(instance);
        used.registries.insert(&spec.registry);
        used.networks.extend(spec.networks.iter().map(|n| &*n.network));
        if let Some(value) = probe {
            config.items.push(ConfigItem { key: format!("{PROBE}{id}"), value });
        }
    }

    fn sealed(&self, object: Uuid, clear: Clear) -> Option<UserData> {
        self.handle(object, &clear).map(UserData::Sealed)
    }

    fn handle(&self, object: Uuid, clear: &Clear) -> Option<SecretHandle> {
        let seal = self.inputs.seal?;
        Some(SecretHandle::Object { block: seal.seal(object, clear)?, context: seal.context() })
    }

    fn interfaces(&self, spec: &AppSpec) -> Vec<AppInterface> {
        let mut out = Vec::new();
        let first_local = spec.networks.iter().position(|attachment| {
            let network = self.inputs.intent.networks.get(&attachment.network);
            network.is_some_and(|network| network.spec.kind == NetworkKind::Local)
        });
        for (index, attachment) in spec.networks.iter().enumerate() {
            let Some(network) = self.inputs.intent.networks.get(&attachment.network) else { continue };
            let mut acl = Vec::new();
            // Ports of the node lead to the first network that is behind it.
            if first_local == Some(index) {
                acl.extend(spec.ports.iter().filter_map(|text| parse_port_map(text).ok()).map(|map| {
                    AclRule {
                        id: 0,
                        direction: AclDirection::Both,
                        matches: AclMatch {
                            protocol: Some(map.protocol),
                            local_port: Some(PortRange { first: map.host, last: map.host }),
                            ..AclMatch::default()
                        },
                        action: AclAction::PortMap { app_port: map.app },
                    }
                }));
            }
            match attachment.acl.as_ref().or(spec.acl.as_ref()) {
                Some(rules) => acl.extend(rules.iter().filter_map(acl_rule)),
                None => acl.push(allow_all()),
            }
            for (number, rule) in (1..).zip(&mut acl) {
                rule.id = number;
            }
            out.push(AppInterface {
                name: format!("eth{index}"),
                network: network_id(network.uid, self.id),
                mac: attachment.mac.as_deref().and_then(|mac| mac.parse().ok()),
                address: attachment.address,
                acl,
            });
        }
        out
    }

    fn user_data(&self, spec: &AppSpec) -> Option<String> {
        let mut text = String::new();
        let secrets =
            spec.secret_env.iter().filter_map(|(k, r)| Some((k.as_str(), self.inputs.intent.secret(r)?)));
        let env = spec.env.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let mut lines: Vec<_> = env.chain(secrets).collect();
        lines.sort_unstable();
        for (key, value) in lines {
            text.push_str(&format!("{key}={value}\n"));
        }
        match &spec.user_data {
            Some(UserDataSpec::Text(more)) => text.push_str(more),
            Some(UserDataSpec::SecretRef(reference)) => {
                text.push_str(self.inputs.intent.secret(reference).unwrap_or_default());
            }
            None => {}
        }
        (!text.is_empty()).then_some(text)
    }

    fn network(&self, network: &Object<NetworkSpec>) -> Option<NetworkInstance> {
        let spec = &network.spec;
        let kind = match spec.kind {
            NetworkKind::Switch => NetworkInstanceKind::Switch,
            NetworkKind::Local => NetworkInstanceKind::Local(local_network(spec)?),
        };
        let mut instance = NetworkInstance {
            id: network_id(network.uid, self.id),
            version: String::new(),
            name: network.name.clone(),
            is_active: true,
            port: spec.port.clone().unwrap_or_else(|| ANY_UPLINK.into()),
            mtu: spec.mtu.unwrap_or(0),
            is_flow_logged: spec.flow_log,
            kind,
        };
        instance.version = content_version(&instance);
        Some(instance)
    }

    fn login(&self, secret: Option<&str>) -> Clear {
        let data = secret.and_then(|name| self.inputs.intent.secrets.get(name)).map(|s| &s.spec.data);
        let value = |key: &str| data.and_then(|data| data.get(key)).cloned().unwrap_or_default();
        Clear { user: value("username"), password: value("password"), ..Clear::default() }
    }

    fn credentials(&self, store: DatastoreId, clear: &Clear) -> Option<Credentials> {
        if clear.user.is_empty() && clear.password.is_empty() {
            return None;
        }
        self.handle(store.0, clear).map(Credentials::Sealed)
    }

    fn registry_address(&self, name: &str) -> Option<(String, String)> {
        match self.inputs.intent.registries.get(name) {
            Some(registry) => parse_registry(&registry.spec.url, registry.spec.insecure).ok(),
            // The built-in one is the same registry wherever the controller listens.
            None => (name == BUILTIN_REGISTRY).then(|| (String::new(), String::new())),
        }
    }

    fn datastore_id(&self, name: &str) -> DatastoreId {
        let uid = self.inputs.intent.registries.get(name).map_or(Uuid::nil(), |registry| registry.uid);
        DatastoreId(wire_id(uid, self.id, "datastore"))
    }

    fn datastore(&self, name: &str) -> Option<Datastore> {
        let id = self.datastore_id(name);
        let site = self.inputs.site;
        let intent = self.inputs.intent;
        let (fqdn, path, clear, ca) = match intent.registries.get(name) {
            Some(registry) => {
                let spec = &registry.spec;
                let (fqdn, path) = parse_registry(&spec.url, spec.insecure).ok()?;
                (fqdn, path, self.login(spec.credentials.as_deref()), spec.ca.clone())
            }
            None if name == BUILTIN_REGISTRY => (
                format!("docker://{}", site.advertise),
                String::new(),
                Clear {
                    user: site.pull_user.clone(),
                    password: site.pull_password.clone(),
                    ..Clear::default()
                },
                Some(site.ca_pem.clone()),
            ),
            None => return None,
        };
        let credentials = self.credentials(id, &clear);
        Some(Datastore {
            id,
            kind: DatastoreKind::ContainerRegistry,
            fqdn,
            path,
            credentials,
            ca_pem: ca.into_iter().collect(),
        })
    }
}

/// Version of an object on the wire: opaque, and another one only when the object is another on this device.
fn content_version<T: serde::Serialize>(object: &T) -> String {
    let mut text = digest(object);
    text.truncate(VERSION_CHARS);
    text
}

/// What a start of an app depends on: another value restarts it.
#[derive(serde::Serialize)]
struct RunInputs<'a> {
    memory_bytes: u64,
    vcpus: u32,
    mode: VirtualizationMode,
    user_data: &'a Option<String>,
    networks: Vec<&'a str>,
    counter: u32,
    places: Vec<volumes::Place>,
    disk_bytes: Option<u64>,
    probe: &'a Option<String>,
}

fn mode(isolation: Isolation) -> VirtualizationMode {
    match isolation {
        Isolation::Container => VirtualizationMode::NoHyper,
        Isolation::Vm => VirtualizationMode::Hvm,
    }
}

fn allow_all() -> AclRule {
    AclRule {
        id: 0,
        direction: AclDirection::Both,
        matches: AclMatch {
            remote: Some(AclRemote::Prefix(Prefix4 { address: Ipv4Addr::UNSPECIFIED, length: 0 })),
            ..AclMatch::default()
        },
        action: AclAction::Allow,
    }
}

/// Reads the other side of a rule: an address, a prefix or a name.
pub(crate) fn parse_remote(text: &str) -> Option<AclRemote> {
    if let Ok(prefix) = text.parse() {
        return Some(AclRemote::Prefix(prefix));
    }
    if let Ok(address) = text.parse() {
        return Some(AclRemote::Prefix(Prefix4 { address, length: 32 }));
    }
    let is_name = !text.is_empty()
        && text.len() <= 253
        && !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'/'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    is_name.then(|| AclRemote::Host(text.into()))
}

pub(crate) fn acl_rule(spec: &AclSpec) -> Option<AclRule> {
    let all = || AclRemote::Prefix(Prefix4 { address: Ipv4Addr::UNSPECIFIED, length: 0 });
    let port = |text: &Option<String>| text.as_deref().map(parse_port_range).transpose().ok();
    Some(AclRule {
        id: 0,
        direction: match spec.direction {
            Direction::Both => AclDirection::Both,
            Direction::In => AclDirection::Ingress,
            Direction::Out => AclDirection::Egress,
        },
        matches: AclMatch {
            remote: Some(spec.remote.as_deref().map_or_else(|| Some(all()), parse_remote)?),
            protocol: spec.protocol.as_deref().map(parse_protocol).transpose().ok()?,
            local_port: port(&spec.local_port)?,
            remote_port: port(&spec.remote_port)?,
        },
        action: match spec.action {
            AclActionSpec::Allow => AclAction::Allow,
            AclActionSpec::Deny => AclAction::Drop,
            AclActionSpec::Limit => {
                let LimitSpec { packets, per, burst } = spec.limit?;
                let burst = burst.unwrap_or(packets);
                AclAction::Limit { rate: packets, per_s: per.seconds(), burst }
            }
        },
    })
}

/// A local network with its defaults filled in; `None` when the subnet is missing, unreadable or too small.
pub(crate) fn local_network(spec: &NetworkSpec) -> Option<LocalNetwork> {
    let subnet: Prefix4 = spec.subnet.as_deref()?.parse().ok()?;
    // A gateway, an address for an app, and the two that no one may have.
    if !(8..=29).contains(&subnet.length) {
        return None;
    }
    let (first, last) = (subnet.network().to_bits() + 1, subnet.broadcast().to_bits() - 1);
    let gateway = spec.gateway.unwrap_or(Ipv4Addr::from_bits(first));
    let range = match gateway.to_bits() {
        at if at == first => (first + 1, last),
        at if at == last => (first, last - 1),
        // The longer side of a gateway in the middle.
        at if at.saturating_sub(first) > last.saturating_sub(at) => (first, at.saturating_sub(1)),
        at => (at.saturating_add(1), last),
    };
    Some(LocalNetwork {
        subnet: Prefix4 { address: subnet.network(), length: subnet.length },
        gateway,
        dns: spec.dns.clone(),
        range: (Ipv4Addr::from_bits(range.0), Ipv4Addr::from_bits(range.1)),
        static_names: spec.hosts.iter().map(|(name, addresses)| (name.clone(), addresses.clone())).collect(),
        domain: spec.domain.clone().unwrap_or_default(),
        ntp: spec.ntp.clone(),
        routes: spec.routes.iter().filter_map(|text| text.parse().ok()).collect(),
        routes_uplinks: false,
    })
}
