// SPDX-License-Identifier: Apache-2.0
//! Random configs whose references hold, as far as the wire can carry them.

use std::net::Ipv4Addr;

use model::config::*;
use model::id::*;
use model::net::{Mac, Prefix4};
use model::secret::{CipherBlock, CipherContext, SecretHandle};
use model::time::WallTime;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use uuid::Uuid;

/// Text with what breaks formats: quotes, colons, letters beyond ASCII.
pub fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 _.:/\"äß€-]{0,12}"
}

fn label() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,6}"
}

pub fn id() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

pub fn ip() -> impl Strategy<Value = Ipv4Addr> {
    (1u32..=0xdfff_ffff).prop_map(Ipv4Addr::from_bits)
}

pub fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

pub fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

pub fn time() -> impl Strategy<Value = WallTime> {
    (-1_000_000_000i64..4_000_000_000, 0u32..1_000_000_000)
        .prop_map(|(seconds, nanos)| WallTime { seconds, nanos })
}

fn command() -> impl Strategy<Value = OpsCommand> {
    (any::<u32>(), any::<bool>()).prop_map(|(counter, desired)| OpsCommand { counter, desired })
}

fn addressing() -> impl Strategy<Value = PortAddressing> {
    let prefix = (ip(), 8u8..=30).prop_map(|(address, length)| Prefix4 { address, length });
    prop_oneof![
        Just(PortAddressing::None),
        Just(PortAddressing::Dhcp),
        (prefix, option::of(ip()), vec(ip(), 0..3))
            .prop_map(|(subnet, gateway, dns)| PortAddressing::Static { subnet, gateway, dns }),
    ]
}

fn local() -> impl Strategy<Value = NetworkInstanceKind> {
    let names = vec(("[a-z]{1,8}", vec(ip(), 0..3)), 0..3);
    let more = ("[a-z.]{0,9}", vec(ip(), 0..3), vec((ip(), 0u8..=32), 0..3), any::<bool>());
    (ip(), 8u8..=29, vec(ip(), 0..3), names, any::<[prop::sample::Index; 3]>(), more).prop_map(
        |(address, length, dns, static_names, picks, (domain, ntp, routes, routes_uplinks))| {
            let subnet = Prefix4 { address, length };
            let (first, last) = (subnet.network().to_bits() + 1, subnet.broadcast().to_bits() - 1);
            let [gateway, a, b] = picks.map(|pick| first + pick.index((last - first + 1) as usize) as u32);
            let range = (Ipv4Addr::from_bits(a.min(b)), Ipv4Addr::from_bits(a.max(b)));
            let gateway = Ipv4Addr::from_bits(gateway);
            let routes = routes.into_iter().map(|(address, length)| Prefix4 { address, length }).collect();
            NetworkInstanceKind::Local(LocalNetwork {
                subnet,
                gateway,
                dns,
                range,
                static_names,
                domain,
                ntp,
                routes,
                routes_uplinks,
            })
        },
    )
}

fn range() -> impl Strategy<Value = PortRange> {
    (1u16.., 1u16..).prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) })
}

fn rule() -> impl Strategy<Value = AclRule> {
    let remote = prop_oneof![
        (ip(), 0u8..=32).prop_map(|(address, length)| AclRemote::Prefix(Prefix4 { address, length })),
        "[a-z.]{1,20}".prop_map(AclRemote::Host),
    ];
    let number = (0u8..).prop_filter("has a name", |n| ![1, 6, 17].contains(n));
    let protocol = prop_oneof![
        Just(AclProtocol::Tcp),
        Just(AclProtocol::Udp),
        Just(AclProtocol::Icmp),
        number.prop_map(AclProtocol::Number),
    ];
    let action = prop_oneof![
        Just(AclAction::Allow),
        Just(AclAction::Drop),
        (any::<u32>(), select(vec![1, 60, 3600, 86_400]), any::<u32>())
            .prop_map(|(rate, per_s, burst)| AclAction::Limit { rate, per_s, burst }),
        (1u16..).prop_map(|app_port| AclAction::PortMap { app_port }),
    ];
    let direction = select(vec![AclDirection::Both, AclDirection::Ingress, AclDirection::Egress]);
    let matches = (option::of(remote), option::of(protocol), option::of(range()), option::of(range()));
    (any::<i32>(), direction, matches, action).prop_map(|(id, direction, matches, action)| {
        let (remote, mut protocol, mut local_port, remote_port) = matches;
        if matches!(action, AclAction::PortMap { .. }) {
            protocol = Some(AclProtocol::Tcp);
            local_port = Some(PortRange { first: 8080, last: 8080 });
        }
        AclRule { id, direction, matches: AclMatch { remote, protocol, local_port, remote_port }, action }
    })
}

fn handle(contexts: Vec<CipherContext>) -> impl Strategy<Value = Option<SecretHandle>> + Clone {
    let block = (any::<[u8; 16]>(), vec(any::<u8>(), 1..20), any::<[u8; 32]>(), any::<prop::sample::Index>());
    option::of(block).prop_map(move |block| {
        let (iv, data, hash, pick) = block?;
        let context = contexts.get(pick.index(contexts.len().max(1)))?.clone();
        let block = CipherBlock {
            context_id: context.id.clone(),
            initial_value: iv.to_vec(),
            cipher_data: data,
            clear_text_sha256: hash.to_vec(),
        };
        Some(SecretHandle::Object { block, context })
    })
}

fn contexts() -> impl Strategy<Value = Vec<CipherContext>> {
    btree_map(label(), (any::<[u8; 16]>(), any::<[u8; 16]>()), 0..3).prop_map(|contexts| {
        let context = |(id, (device, controller)): (String, ([u8; 16], [u8; 16]))| CipherContext {
            id,
            device_cert_hash: device.to_vec(),
            controller_cert_hash: controller.to_vec(),
        };
        contexts.into_iter().map(context).collect()
    })
}

fn datastore(contexts: Vec<CipherContext>) -> impl Strategy<Value = Datastore> {
    let kind = prop_oneof![
        Just(DatastoreKind::ContainerRegistry),
        Just(DatastoreKind::Http),
        Just(DatastoreKind::Https),
        (8i32..).prop_map(DatastoreKind::Other),
    ];
    (id(), kind, text(), text(), handle(contexts), option::of("[a-z]{1,5}"), vec(text(), 0..2)).prop_map(
        |(id, kind, fqdn, path, sealed, user, ca_pem)| {
            let clear = user.map(|user| Credentials::Clear { user, password: "p".into() });
            let credentials = sealed.map(Credentials::Sealed).or(clear);
            Datastore { id: DatastoreId(id), kind, fqdn, path, credentials, ca_pem }
        },
    )
}

fn ports() -> impl Strategy<Value = (Vec<PhysicalIo>, Vec<NetworkConfig>, Vec<SystemAdapter>)> {
    let io = (any::<i32>(), text(), text(), option::of(label()), any::<i32>());
    let network = (id(), addressing());
    let adapter = (any::<bool>(), option::of(any::<prop::sample::Index>()), any::<u8>(), vec(label(), 0..3));
    (btree_map(label(), io, 0..4), vec(network, 0..3), vec(adapter, 4)).prop_map(
        |(ios, networks, adapters)| {
            let networks: Vec<_> = networks
                .into_iter()
                .map(|(id, addressing)| NetworkConfig { id: NetworkId(id), addressing })
                .collect();
            let physical: Vec<_> = ios
                .into_iter()
                .map(|(logical_label, (kind, physical_label, assignment_group, interface, usage))| {
                    PhysicalIo { kind, physical_label, logical_label, assignment_group, interface, usage }
                })
                .collect();
            let adapters = physical.iter().zip(adapters).enumerate().map(
                |(n, (io, (own_name, network, cost, labels)))| {
                    let lower = io.logical_label.clone();
                    SystemAdapter {
                        name: if own_name { lower.clone() } else { format!("Adapter{n}") },
                        lower_layer: if own_name { String::new() } else { lower },
                        network: network
                            .filter(|_| !networks.is_empty())
                            .map(|i| networks[i.index(networks.len())].id),
                        // One uplink at least: without any, all are.
                        is_uplink: n == 0 || own_name,
                        cost,
                        shared_labels: labels,
                    }
                },
            );
            let adapters = adapters.collect();
            (physical, networks, adapters)
        },
    )
}

/// The objects of a config by themselves; [`config`] joins them.
type Parts = (
    (Vec<PhysicalIo>, Vec<NetworkConfig>, Vec<SystemAdapter>),
    Vec<(Uuid, String, String, bool, NetworkInstanceKind)>,
    Vec<(Uuid, String, String, ContentFormat, Option<Digest>, u64, i64)>,
    Vec<(Uuid, u64, String, bool, u64, bool)>,
    Vec<AppParts>,
);
type AppParts = (
    (Uuid, String, String, bool, u32, u32, VirtualizationMode),
    (u32, u32, u32, Vec<String>, Option<String>, Option<SecretHandle>),
    Vec<prop::sample::Index>,
    Vec<(String, Option<Mac>, Option<Ipv4Addr>, Vec<AclRule>, prop::sample::Index)>,
);

fn parts(contexts: Vec<CipherContext>) -> impl Strategy<Value = Parts> {
    let kind = prop_oneof![Just(NetworkInstanceKind::Switch), local()];
    let instance = (id(), text(), text(), any::<bool>(), kind);
    let format = prop_oneof![
        Just(ContentFormat::Container),
        Just(ContentFormat::Raw),
        Just(ContentFormat::Qcow2),
        (9i32..).prop_map(ContentFormat::Other),
    ];
    let tree = (id(), text(), text(), format, option::of(digest()), any::<u64>(), any::<i64>());
    let volume = (id(), 0..=i64::MAX as u64, text(), any::<bool>(), 0..=i64::MAX as u64, any::<bool>());
    let mode = prop_oneof![
        select(vec![
            VirtualizationMode::Pv,
            VirtualizationMode::Hvm,
            VirtualizationMode::Filler,
            VirtualizationMode::Fml,
            VirtualizationMode::NoHyper,
            VirtualizationMode::Legacy,
        ]),
        (6i32..).prop_map(VirtualizationMode::Other),
    ];
    let app_id = (id(), text(), text(), any::<bool>(), any::<u32>(), any::<u32>(), mode);
    let app_data = (
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        vec(label(), 0..3),
        option::of("[a-z]{1,8}"),
        handle(contexts),
    );
    let interface =
        (text(), option::of(mac()), option::of(ip()), vec(rule(), 0..4), any::<prop::sample::Index>());
    let app = (app_id, app_data, vec(any::<prop::sample::Index>(), 0..3), vec(interface, 0..3));
    (ports(), vec(instance, 0..3), vec(tree, 0..3), vec(volume, 0..3), vec(app, 0..3))
}

/// A config whose references all hold.
pub fn config() -> impl Strategy<Value = DeviceConfig> {
    let head = (id(), text(), option::of(time()), text(), text(), any::<i64>(), text());
    let os = ("[a-z0-9.]{1,8}", any::<bool>(), any::<u32>());
    let orders = (vec((text(), text()), 0..4), option::of(command()), option::of(command()), option::of(os));
    let objects = contexts().prop_flat_map(|contexts| {
        (Just(contexts.clone()), vec(datastore(contexts.clone()), 0..3), parts(contexts))
    });
    (head, orders, objects).prop_map(|(head, orders, (contexts, datastores, parts))| {
        let (id, version, timestamp, name, cert_hash, epoch, profile) = head;
        let ((physical_ios, networks, system_adapters), instances, trees, volumes, apps) = parts;
        let mut config = DeviceConfig::empty(DeviceId(id));
        config.version = version;
        config.timestamp = timestamp;
        config.name = name;
        config.controller_cert_hash = cert_hash;
        config.controller_epoch = epoch;
        config.global_profile = profile;
        config.items = orders.0.into_iter().map(|(key, value)| ConfigItem { key, value }).collect();
        (config.reboot, config.shutdown) = (orders.1, orders.2);
        config.network_instances = instances
            .into_iter()
            .enumerate()
            .map(|(n, (id, version, name, is_active, kind))| NetworkInstance {
                id: NetworkInstanceId(id),
                version,
                name,
                is_active,
                port: match (n, system_adapters.first()) {
                    (0, Some(adapter)) => adapter.name.clone(),
                    (1, _) => "uplink".into(),
                    _ => String::new(),
                },
                mtu: if n == 1 { 1400 } else { 0 },
                is_flow_logged: n == 0,
                kind,
            })
            .collect();
        let stores: Vec<_> = datastores.iter().map(|store| store.id).collect();
        config.content_trees = trees
            .into_iter()
            .filter(|_| !stores.is_empty())
            .map(|(id, name, url, format, digest, max_size_bytes, generation)| ContentTree {
                id: ContentTreeId(id),
                name,
                datastores: stores.clone(),
                url,
                format,
                digest,
                max_size_bytes,
                generation,
            })
            .collect();
        let tree = config.content_trees.first().map(|tree| tree.id);
        config.base_os = tree.zip(orders.3).map(|(content_tree, (version, is_active, retry_counter))| {
            BaseOs { content_tree, version, is_active, retry_counter }
        });
        config.volumes = volumes
            .into_iter()
            .map(|(id, generation, name, is_blank, max_size_bytes, is_read_only)| Volume {
                key: VolumeKey { id: VolumeId(id), generation },
                name,
                origin: tree.filter(|_| !is_blank).map_or(VolumeOrigin::Blank, VolumeOrigin::Content),
                max_size_bytes,
                is_read_only,
            })
            .collect();
        config.apps = apps.into_iter().map(|parts| app(parts, &config, &physical_ios)).collect();
        (config.physical_ios, config.networks, config.system_adapters) =
            (physical_ios, networks, system_adapters);
        config.datastores = datastores;
        config.cipher_contexts = contexts;
        config
    })
}

fn app(parts: AppParts, config: &DeviceConfig, ios: &[PhysicalIo]) -> AppInstance {
    let ((id, version, name, is_active, kib, vcpus, mode), data, volumes, interfaces) = parts;
    let (restart_counter, purge_counter, start_delay_s, profiles, clear, sealed) = data;
    let interface = |(name, mac, address, acl, pick): (_, _, _, _, prop::sample::Index)| AppInterface {
        name,
        network: config.network_instances[pick.index(config.network_instances.len())].id,
        mac,
        address,
        acl,
    };
    AppInstance {
        id: AppId(id),
        version,
        name,
        is_active,
        resources: Resources { memory_bytes: u64::from(kib) * 1024, vcpus, mode },
        volumes: volumes
            .into_iter()
            .filter(|_| !config.volumes.is_empty())
            .enumerate()
            .map(|(index, pick)| VolumeRef {
                key: config.volumes[pick.index(config.volumes.len())].key,
                mount_dir: if index == 0 { String::new() } else { format!("/mnt/{index}") },
            })
            .collect(),
        interfaces: interfaces
            .into_iter()
            .filter(|_| !config.network_instances.is_empty())
            .map(interface)
            .collect(),
        restart_counter,
        purge_counter,
        user_data: sealed.map(UserData::Sealed).or(clear.map(UserData::Clear)),
        profiles,
        start_delay_s,
        adapters: ios
            .iter()
            .map(|io| io.assignment_group.clone())
            .filter(|group| !group.is_empty())
            .take(1)
            .collect(),
    }
}
