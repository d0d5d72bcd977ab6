// SPDX-License-Identifier: Apache-2.0
//! Random configs whose references hold, and random reports, as far as the wire can carry them.

use std::net::Ipv4Addr;

use model::config::*;
use model::flow::*;
use model::id::*;
use model::net::{Mac, Prefix4};
use model::observed::{AppMetrics, LinkMetrics, PortObserved};
use model::reason::{Fault, Reason};
use model::report::*;
use model::secret::{CipherBlock, CipherContext, SecretHandle};
use model::status::*;
use model::time::WallTime;
use proptest::collection::{btree_map, btree_set, vec};
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

fn id() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

pub fn ip() -> impl Strategy<Value = Ipv4Addr> {
    (1u32..=0xdfff_ffff).prop_map(Ipv4Addr::from_bits)
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn digest() -> impl Strategy<Value = Digest> {
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
    let orders = (vec((text(), text()), 0..4), option::of(command()), option::of(command()));
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

fn fault() -> impl Strategy<Value = Fault> {
    (select(Reason::ALL), text()).prop_map(|(reason, message)| Fault::new(reason, message))
}

fn state() -> impl Strategy<Value = SwState> {
    use SwState::*;
    select(vec![
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
        Unknown,
    ])
}

fn app_status() -> impl Strategy<Value = AppStatus> {
    let vif = (text(), mac(), option::of(ip()), any::<bool>()).prop_map(|(name, mac, address, is_up)| {
        VifStatus { name, network: NetworkInstanceId(Uuid::nil()), mac, address, is_up }
    });
    (id(), text(), text(), state(), vec(fault(), 0..3), vec(id(), 0..3), vec(vif, 0..3), option::of(time()))
        .prop_map(|(app, version, name, state, faults, volumes, vifs, started_at)| AppStatus {
            app: AppId(app),
            version,
            name,
            state,
            is_activated: !matches!(state, SwState::Halted | SwState::Halting),
            faults,
            volumes: volumes.into_iter().map(|id| VolumeKey { id: VolumeId(id), generation: 0 }).collect(),
            vifs,
            restart_counter: 0,
            purge_counter: 0,
            started_at,
        })
}

fn network_kind() -> impl Strategy<Value = Option<NetworkKind>> {
    select(vec![None, Some(NetworkKind::Local), Some(NetworkKind::Switch)])
}

fn network_status() -> impl Strategy<Value = NetworkInstanceStatus> {
    let vifs = btree_map(any::<[u8; 6]>(), (id(), text(), option::of(ip())), 0..3).prop_map(|vifs| {
        let vif =
            |(mac, (app, vif, address))| NetworkVifStatus { app: AppId(app), vif, mac: Mac(mac), address };
        vifs.into_iter().map(vif).collect::<Vec<_>>()
    });
    let facts = (network_kind(), option::of(ip()), any::<u16>());
    (id(), text(), text(), any::<bool>(), text(), option::of(text()), vifs, vec(fault(), 0..3), facts)
        .prop_map(|(id, version, name, is_active, bridge, uplink, vifs, faults, (kind, gateway, mtu))| {
            NetworkInstanceStatus {
                id: NetworkInstanceId(id),
                version,
                name,
                is_active,
                kind,
                bridge,
                gateway,
                mtu,
                uplink,
                vifs,
                faults,
            }
        })
}
fn volume_status() -> impl Strategy<Value = VolumeStatus> {
    (
        id(),
        0..=i64::MAX as u64,
        text(),
        state(),
        0u8..=100,
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
        vec(fault(), 0..2),
    )
        .prop_map(
            |(id, generation, name, state, progress_percent, used_bytes, max_size_bytes, users, faults)| {
                VolumeStatus {
                    key: VolumeKey { id: VolumeId(id), generation },
                    name,
                    state,
                    progress_percent,
                    used_bytes,
                    max_size_bytes,
                    users,
                    faults,
                }
            },
        )
}
fn tree_status() -> impl Strategy<Value = ContentTreeStatus> {
    let parts = (option::of(digest()), 0u8..=100, any::<u64>(), vec(digest(), 0..3), any::<u32>());
    (id(), text(), state(), parts, vec(fault(), 0..2)).prop_map(|(id, name, state, parts, faults)| {
        let (digest, progress_percent, total_bytes, blobs, users) = parts;
        let id = ContentTreeId(id);
        ContentTreeStatus { id, name, state, digest, progress_percent, total_bytes, blobs, users, faults }
    })
}

fn blob_status() -> impl Strategy<Value = BlobStatus> {
    (digest(), state(), any::<u64>(), any::<u32>(), 0u8..=100).prop_map(
        |(digest, state, size_bytes, users, progress_percent)| BlobStatus {
            digest,
            state,
            size_bytes,
            users,
            progress_percent,
        },
    )
}

fn port_status() -> impl Strategy<Value = PortStatus> {
    // All addresses in one subnet: the wire names one.
    let addresses = (ip(), 8u8..=32, vec(any::<u32>(), 0..3)).prop_map(|(base, length, hosts)| {
        let base = Prefix4 { address: base, length };
        let host = |n: u32| Ipv4Addr::from_bits(base.network().to_bits() | (n & !base.mask().to_bits()));
        hosts.into_iter().map(|n| Prefix4 { address: host(n), length }).collect::<Vec<_>>()
    });
    let observed =
        (text(), option::of(mac()), any::<bool>(), any::<u32>(), addresses, vec(ip(), 0..3), vec(ip(), 0..3))
            .prop_map(|(name, mac, is_up, mtu, addresses, gateways, dns)| PortObserved {
                name,
                mac,
                is_up,
                mtu,
                addresses,
                gateways,
                dns,
            });
    (text(), any::<bool>(), any::<u8>(), observed, option::of(fault())).prop_map(
        |(label, is_uplink, cost, observed, fault)| PortStatus { label, is_uplink, cost, observed, fault },
    )
}

fn mib() -> impl Strategy<Value = u64> {
    any::<u32>().prop_map(|mib| u64::from(mib) << 20)
}

fn device_status() -> impl Strategy<Value = DeviceStatus> {
    let names = (text(), text(), text(), text(), text(), text());
    let numbers = (any::<u32>(), mib(), mib(), option::of(time()), any::<i32>(), text());
    let counters = (any::<u32>(), any::<u32>(), any::<u32>());
    let software = (text(), text(), text(), any::<bool>()).prop_map(
        |(partition, partition_state, version, is_running)| SoftwareStatus {
            partition,
            partition_state,
            version,
            is_running,
        },
    );
    let mount = (text(), mib(), any::<bool>()).prop_map(|(path, total_bytes, is_storage)| MountStatus {
        path,
        total_bytes,
        is_storage,
    });
    let items = (btree_map("[a-z.]{1,9}", (text(), "[a-z]{0,4}"), 0..3), btree_set("[A-Z]{1,9}", 0..3))
        .prop_map(|(known, unknown)| {
            let known = known.into_iter().map(|(key, (value, error))| ConfigItemStatus {
                key,
                value,
                is_known: true,
                error: Some(error).filter(|error| !error.is_empty()),
            });
            let unknown = unknown.into_iter().map(|key| ConfigItemStatus {
                key,
                value: "v".into(),
                is_known: false,
                error: None,
            });
            known.chain(unknown).collect::<Vec<_>>()
        });
    let apps = vec((id().prop_map(AppId), text()), 0..3);
    use DeviceState as D;
    let state = select(vec![D::Unknown, D::Online, D::Rebooting, D::Maintenance, D::Booting, D::PoweringOff]);
    use AttestationState as A;
    let attestation = select(vec![A::Unknown, A::NonceWait, A::QuoteWait, A::AttestEscrowWait, A::Complete]);
    let module = select(vec![
        SecurityModule::Unknown,
        SecurityModule::NotFound,
        SecurityModule::Disabled,
        SecurityModule::Enabled,
    ]);
    let at_rest =
        select(vec![DataAtRest::Unknown, DataAtRest::Disabled, DataAtRest::Enabled, DataAtRest::Error]);
    let states = (state, attestation, module, at_rest, text(), vec(any::<i32>(), 0..3), any::<bool>());
    let lists = (vec(software, 0..3), vec(port_status(), 0..3), vec(mount, 0..3), items, apps);
    (names, numbers, counters, lists, states).prop_map(|(names, numbers, counters, lists, states)| {
        let (name, hostname, architecture, manufacturer, product, serial) = names;
        let (cpus, memory_bytes, storage_bytes, booted_at, boot_reason, boot_reason_text) = numbers;
        let (restart_counter, reboot_counter, shutdown_counter) = counters;
        let (software, ports, mounts, items, apps) = lists;
        let (state, attestation, module, data_at_rest, data_at_rest_text, maintenance, has_virtualization) =
            states;
        DeviceStatus {
            name,
            hostname,
            state,
            architecture,
            manufacturer,
            product,
            serial,
            cpus,
            memory_bytes,
            storage_bytes,
            booted_at,
            boot_reason,
            boot_reason_text,
            restart_counter,
            reboot_counter,
            shutdown_counter,
            software,
            ports,
            mounts,
            items,
            apps,
            security: SecurityStatus { module, data_at_rest, data_at_rest_text },
            attestation,
            maintenance,
            has_virtualization,
        }
    })
}

pub fn info() -> impl Strategy<Value = InfoMessage> {
    let info = prop_oneof![
        device_status().prop_map(|status| Info::Device(Box::new(status))),
        app_status().prop_map(Info::App),
        network_status().prop_map(Info::NetworkInstance),
        volume_status().prop_map(Info::Volume),
        tree_status().prop_map(Info::ContentTree),
        vec(blob_status(), 0..4).prop_map(Info::Blobs),
        any::<i32>().prop_map(Info::Other),
    ];
    (option::of(id().prop_map(DeviceId)), option::of(time()), info)
        .prop_map(|(device, at, info)| InfoMessage { device, at, info })
}

fn link(app: Option<AppId>) -> impl Strategy<Value = LinkMetrics> {
    ("[a-z0-9]{1,9}", text(), any::<[u64; 12]>()).prop_map(move |(name, label, n)| LinkMetrics {
        name,
        label,
        app,
        rx_bytes: n[0],
        tx_bytes: n[1],
        rx_packets: n[2],
        tx_packets: n[3],
        rx_drops: n[4],
        tx_drops: n[5],
        rx_errors: n[6],
        tx_errors: n[7],
        rx_acl_drops: n[8],
        tx_acl_drops: n[9],
        rx_rate_drops: n[10],
        tx_rate_drops: n[11],
    })
}
fn app_report() -> impl Strategy<Value = AppReport> {
    id().prop_map(AppId).prop_flat_map(|app| {
        let disk = (text(), mib(), mib());
        let disk = disk.prop_map(|(name, provisioned_bytes, used_bytes)| AppDiskReport {
            name,
            provisioned_bytes,
            used_bytes,
        });
        let counters = (vec(disk, 0..3), vec(link(Some(app)), 0..3));
        (text(), text(), option::of(time()), 1u64.., mib(), mib(), counters).prop_map(
            move |(name, version, started_at, cpu_ns, used, limit, (disks, links))| AppReport {
                name,
                version,
                started_at,
                metrics: AppMetrics {
                    app,
                    cpu_ns,
                    memory_used_bytes: used,
                    memory_peak_bytes: 0,
                    memory_limit_bytes: limit,
                    pids: 0,
                },
                disks,
                links,
            },
        )
    })
}

fn node_metrics() -> impl Strategy<Value = NodeMetrics> {
    let disk = (text(), mib(), mib()).prop_map(|(path, total_bytes, used_bytes)| DiskReport {
        path,
        total_bytes,
        used_bytes,
    });
    let uplink = (text(), any::<u64>(), any::<u64>(), option::of(time()), option::of(time()), any::<u64>())
        .prop_map(|(port, succeeded, failed, last_success, last_failure, refused)| UplinkReport {
            port,
            succeeded,
            failed,
            last_success,
            last_failure,
            refused,
        });
    let memory = (mib(), mib(), mib(), mib());
    let times = (option::of(time()), option::of(time()), option::of(time()));
    let delivery = || {
        any::<[u64; 3]>().prop_map(|[sent, dropped, failed_attempts]| Delivery {
            sent,
            dropped,
            failed_attempts,
        })
    };
    let flows = (delivery(), delivery(), delivery(), any::<u64>());
    (1u64.., memory, vec(link(None), 0..3), vec(disk, 0..3), vec(uplink, 0..3), times, flows).prop_map(
        |(cpu_ns, memory, links, disks, uplinks, times, (messages, flows, lookups, acl_rules))| NodeMetrics {
            cpu_ns,
            booted_at: times.0,
            memory_total_bytes: memory.0,
            memory_used_bytes: memory.1,
            services_used_bytes: memory.2,
            apps_allotted_bytes: memory.3,
            links,
            disks,
            uplinks,
            flows: FlowCounters { messages, flows, lookups },
            acl_rules,
            received_config: times.1,
            processed_config: times.2,
        },
    )
}

pub fn metrics() -> impl Strategy<Value = Metrics> {
    let network = (id(), text(), text(), any::<bool>(), vec(link(None), 0..3), network_kind()).prop_map(
        |(id, version, name, is_active, links, kind)| NetworkReport {
            id: NetworkInstanceId(id),
            version,
            name,
            kind,
            is_active,
            links,
        },
    );
    let volume =
        (id(), text(), any::<u64>(), any::<u64>()).prop_map(|(id, name, total_bytes, used_bytes)| {
            VolumeReport { id: VolumeId(id), name, total_bytes, used_bytes }
        });
    // A float carries whole milliseconds of a year without loss.
    let process = (any::<i32>(), text(), option::of(time()), any::<u64>(), 0u64..31_000_000_000).prop_map(
        |(pid, name, started_at, memory_bytes, cpu_ms)| ProcessReport {
            pid,
            name,
            started_at,
            memory_bytes,
            cpu_ns: cpu_ms * 1_000_000,
        },
    );
    let lists = (vec(app_report(), 0..3), vec(network, 0..3), vec(volume, 0..3), vec(process, 0..3));
    (option::of(id().prop_map(DeviceId)), option::of(time()), node_metrics(), lists).prop_map(
        |(device, at, node, (apps, networks, volumes, processes))| Metrics {
            device,
            at,
            node,
            apps,
            networks,
            volumes,
            processes,
        },
    )
}

pub fn flow_report() -> impl Strategy<Value = FlowReport> {
    let ends = (ip(), any::<u16>(), ip(), any::<u16>());
    let rule = (
        any::<bool>(),
        any::<i32>(),
        select(vec![FlowAction::Unknown, FlowAction::Dropped, FlowAction::Accepted]),
    );
    let times = (option::of(time()), option::of(time()));
    let flow = (ends, any::<u8>(), rule, times, any::<[u32; 4]>()).prop_map(
        |((local, local_port, remote, remote_port), protocol, (is_inbound, acl_id, action), times, n)| Flow {
            local,
            local_port,
            remote,
            remote_port,
            protocol,
            is_inbound,
            acl_id,
            action,
            started: times.0,
            ended: times.1,
            tx_bytes: n[0].into(),
            tx_packets: n[1].into(),
            rx_bytes: n[2].into(),
            rx_packets: n[3].into(),
        },
    );
    let lookup = (text(), vec(ip(), 0..3), option::of(time())).prop_map(|(name, addresses, at)| Lookup {
        name,
        addresses,
        at,
    });
    let scope = (id(), text(), text(), id()).prop_map(|(app, interface, host_name, network)| FlowScope {
        app: AppId(app),
        interface,
        host_name,
        network: NetworkInstanceId(network),
    });
    (option::of(id().prop_map(DeviceId)), scope, vec(flow, 0..4), vec(lookup, 0..4))
        .prop_map(|(device, scope, flows, lookups)| FlowReport { device, scope, flows, lookups })
}
