// SPDX-License-Identifier: Apache-2.0
//! Random reports, as far as the wire can carry them.

use std::net::Ipv4Addr;

use model::flow::*;
use model::id::*;
use model::net::{Mac, Prefix4};
use model::observed::{AppMetrics, DiskCounters, DiskFacts, Firmware, LinkMetrics, PortObserved};
use model::reason::{Fault, Reason};
use model::report::*;
use model::status::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use uuid::Uuid;

use super::arbitrary::{digest, id, ip, mac, text, time};

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
    let names = (btree_set(ip(), 0..3), btree_set("[a-z.]{1,9}", 0..3));
    let observed =
        (text(), option::of(mac()), any::<bool>(), any::<u32>(), addresses, vec(ip(), 0..3), names).prop_map(
            |(name, mac, is_up, mtu, addresses, gateways, (dns, search))| PortObserved {
                name,
                mac,
                is_up,
                mtu,
                addresses,
                gateways,
                dns: dns.into_iter().collect(),
                search: search.into_iter().collect(),
            },
        );
    let addressing =
        option::of(select(vec![AddressingKind::None, AddressingKind::Dhcp, AddressingKind::Static]));
    let ordered = (addressing, option::of(id().prop_map(NetworkId)), any::<i32>());
    (text(), any::<bool>(), any::<u8>(), ordered, observed, option::of(fault())).prop_map(
        |(label, is_uplink, cost, (addressing, network, usage), observed, fault)| PortStatus {
            label,
            is_uplink,
            cost,
            addressing,
            network,
            usage,
            observed,
            fault,
        },
    )
}

fn mib() -> impl Strategy<Value = u64> {
    any::<u32>().prop_map(|mib| u64::from(mib) << 20)
}

fn device_status() -> impl Strategy<Value = DeviceStatus> {
    let names = (text(), text(), text(), text(), text(), text());
    let numbers = (any::<u32>(), mib(), mib(), option::of(time()), any::<i32>(), text());
    let counters = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    let slot = (text(), text(), text(), text(), any::<bool>());
    let update = select(vec![UpdateState::None, UpdateState::Updating, UpdateState::Failed]);
    let step = select(vec![UpdateStep::None, UpdateStep::Testing, UpdateStep::Deferred]);
    let more = (select(vec![SwState::Initial, SwState::Installed]), update, step, text(), 0u8..=100);
    let software = (slot, more, option::of(fault())).prop_map(|(slot, more, fault)| {
        let (partition, partition_state, device, version, is_running) = slot;
        let (state, update, step, step_text, progress_percent) = more;
        SoftwareStatus {
            partition,
            partition_state,
            device,
            version,
            is_running,
            state,
            update,
            step,
            step_text,
            progress_percent,
            fault,
        }
    });
    let disk = (text(), text(), select(vec!["ext4", "zfs", ""]))
        .prop_map(|(device, serial, filesystem)| DiskFacts { device, serial, filesystem: filesystem.into() });
    let mount = (mib(), any::<bool>(), option::of(disk));
    let mounts = btree_map(text(), mount, 0..3).prop_map(|mounts| {
        let mount =
            |(path, (total_bytes, is_storage, disk))| MountStatus { path, total_bytes, is_storage, disk };
        mounts.into_iter().map(mount).collect::<Vec<_>>()
    });
    let firmware = (text(), text(), text(), text(), text(), text()).prop_map(
        |(product_version, product_uuid, compatible, bios_vendor, bios_version, bios_date)| Firmware {
            product_version,
            product_uuid,
            compatible,
            bios_vendor,
            bios_version,
            bios_date,
        },
    );
    let times = (option::of(time()), option::of(time()), option::of(time()), text());
    let port_config = times.prop_map(|(made_at, last_success, last_failure, error)| PortConfigStatus {
        made_at,
        last_success,
        last_failure,
        error,
    });
    let adapter = (any::<i32>(), text(), vec(text(), 0..3), vec(mac(), 0..3), any::<i32>(), any::<bool>())
        .prop_map(|(kind, group, members, macs, usage, is_used_by_node)| AdapterStatus {
            kind,
            group,
            members,
            macs,
            usage,
            is_used_by_node,
        });
    let box_facts = (firmware, any::<bool>(), port_config, vec(adapter, 0..3));
    let roots = (option::of(digest()), option::of(digest()));
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
    let lists = (vec(software, 0..3), vec(port_status(), 0..3), mounts, items, apps);
    let facts = (box_facts, roots);
    (names, numbers, counters, lists, states, facts).prop_map(
        |(names, numbers, counters, lists, states, facts)| {
            let ((firmware, has_watchdog, port_config, adapters), roots) = facts;
            let (name, hostname, architecture, manufacturer, product, serial) = names;
            let (cpus, memory_bytes, storage_bytes, booted_at, boot_reason, boot_reason_text) = numbers;
            let (restart_counter, reboot_counter, shutdown_counter, update_counter) = counters;
            let (software, ports, mounts, items, apps) = lists;
            let (
                state,
                attestation,
                module,
                data_at_rest,
                data_at_rest_text,
                maintenance,
                has_virtualization,
            ) = states;
            DeviceStatus {
                name,
                hostname,
                state,
                architecture,
                manufacturer,
                product,
                serial,
                firmware,
                cpus,
                memory_bytes,
                storage_bytes,
                booted_at,
                boot_reason,
                boot_reason_text,
                restart_counter,
                update_counter,
                reboot_counter,
                shutdown_counter,
                software,
                ports,
                port_config,
                adapters,
                mounts,
                items,
                apps,
                security: SecurityStatus {
                    module,
                    data_at_rest,
                    data_at_rest_text,
                    root_certs_sha256: roots.0,
                    tls_root_certs_sha256: roots.1,
                },
                attestation,
                maintenance,
                has_virtualization,
                has_watchdog,
            }
        },
    )
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
    let counters =
        (mib(), mib(), any::<u64>(), any::<u64>()).prop_map(|(read_bytes, written_bytes, reads, writes)| {
            DiskCounters { read_bytes, written_bytes, reads, writes }
        });
    let disk = (text(), mib(), mib(), text(), counters).prop_map(
        |(path, total_bytes, used_bytes, device, counters)| DiskReport {
            path,
            total_bytes,
            used_bytes,
            device,
            counters,
        },
    );
    let uplink = (text(), any::<u64>(), any::<u64>(), option::of(time()), option::of(time()), any::<u64>())
        .prop_map(|(port, succeeded, failed, last_success, last_failure, refused)| UplinkReport {
            port,
            succeeded,
            failed,
            last_success,
            last_failure,
            refused,
        });
    let memory = (mib(), mib(), mib(), mib(), mib(), mib());
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
            services_allotted_bytes: memory.4,
            apps_storage_bytes: memory.5,
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
