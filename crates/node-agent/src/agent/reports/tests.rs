// SPDX-License-Identifier: Apache-2.0
//! The encoded reports against the whole list of fields of the standard, and their units.

mod table;

use std::collections::{BTreeMap, BTreeSet};

use eve_api::render;
use model::config::{NetworkConfig, PhysicalIo, SystemAdapter};
use model::id::{ContentTreeId, NetworkId, NetworkInstanceId, VolumeId};
use model::net::Mac;
use model::observed::{
    AppMetrics, BoxMetrics, DiskCounters, DiskFacts, Firmware, NodeObserved, ServiceObserved,
    StorageObserved, VaultObserved,
};
use model::reason::{Fault, Reason};
use model::status::{
    BaseOsStatus, ConfigApplied, ConfigItemStatus, ContentTreeStatus, NetworkInstanceStatus, NetworkKind,
    NetworkVifStatus, UpdateState, UpdateStep, VolumeStatus,
};
use model::time::Wall;
use uuid::Uuid;

use super::*;
use table::{INFO, METRICS, Rows, T};

const FIELDS: &str = include_str!("../../../../eve-api/tests/tables/fields.tsv");

/// Content of a field that has a length.
type Field<'a> = (u32, &'a [u8]);

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// The fields of one message, as the encoding of protobuf alone tells them.
fn fields(mut bytes: &[u8]) -> Vec<Field<'_>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let number = u32::try_from(key >> 3).unwrap();
        let length = match key & 7 {
            0 => {
                varint(&mut bytes);
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (content, rest) = bytes.split_at(length);
        out.push((number, content));
        bytes = rest;
    }
    out
}

/// All messages at the end of a way.
fn at<'a>(root: &'a [u8], way: &[u32]) -> Vec<&'a [u8]> {
    way.iter().fold(vec![root], |messages, step| {
        let inner = messages.into_iter().flat_map(fields).filter(|(number, _)| number == step);
        inner.map(|(_, content)| content).collect()
    })
}

/// Numbers and names of a message's fields, of the files whose messages these reports are made of.
fn standard(message: &str) -> BTreeMap<u32, &'static str> {
    let of_reports = ["info/info.proto", "metrics/metrics.proto"];
    let rows = FIELDS.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let rows = rows.filter(|row| of_reports.contains(&row[0]) && row[2] == message);
    rows.map(|row| (row[4].parse().unwrap(), row[3])).collect()
}

fn compare(root: &[u8], table: &[Rows]) {
    let mut wrong = Vec::new();
    for (message, way, rows) in table {
        let standard = standard(message);
        let listed: BTreeSet<&str> = rows.iter().map(|(name, _)| *name).collect();
        let known: BTreeSet<&str> = standard.values().copied().collect();
        if listed != known {
            wrong.push(format!("{message}: the table lists {listed:?}, the standard {known:?}"));
        }
        let seen: BTreeSet<u32> =
            at(root, way).into_iter().flat_map(fields).map(|(number, _)| number).collect();
        for (number, name) in standard {
            let reason = rows.iter().find(|(row, _)| *row == name).map_or(T, |(_, reason)| *reason);
            match (seen.contains(&number), reason) {
                (false, T) => wrong.push(format!("{message}.{name} at {way:?} is not told")),
                (true, T) | (false, _) => {}
                (true, reason) => {
                    wrong.push(format!("{message}.{name} at {way:?} is told, although: {reason}"))
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const AT: WallTime = WallTime { seconds: 1_800_000_000, nanos: 0 };
const MIB: u64 = 1 << 20;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn moment() -> Now {
    Now { mono: MonoMs(90_000), wall: Wall::Trusted(AT) }
}

fn link(name: &str, app: Option<AppId>) -> LinkMetrics {
    LinkMetrics {
        name: name.into(),
        label: name.into(),
        app,
        rx_bytes: 1,
        tx_bytes: 2,
        rx_packets: 3,
        tx_packets: 4,
        rx_drops: 5,
        tx_drops: 6,
        rx_errors: 7,
        tx_errors: 8,
        rx_acl_drops: 9,
        tx_acl_drops: 10,
        rx_rate_drops: 11,
        tx_rate_drops: 12,
    }
}

/// Of a box on which an update has failed.
fn base_os() -> BaseOsStatus {
    let slot = SoftwareStatus {
        partition: "IMGB".into(),
        partition_state: "unused".into(),
        device: "/dev/vda4".into(),
        version: "2.0".into(),
        is_running: true,
        state: SwState::Failed,
        update: UpdateState::Failed,
        step: UpdateStep::Verifying,
        step_text: "bytes".into(),
        progress_percent: 50,
        fault: Some(Fault::new(Reason::UpdateRolledBack, "no")),
    };
    BaseOsStatus { slots: vec![slot], update_counter: 3, is_updating: true, is_testing: false }
}

/// A node of which all is known that a node can know.
fn world() -> World {
    let app = AppId(id(1));
    let network = NetworkInstanceId(id(2));
    let key = VolumeKey { id: VolumeId(id(3)), generation: 0 };
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let mut status = AppStatus::gone(app);
    (status.name, status.version, status.volumes) = ("web".into(), "1".into(), vec![key]);
    (status.started_at, status.state) = (Some(AT), SwState::Running);
    World {
        apps: [(app.to_string(), status)].into(),
        contents: [(
            "tree".into(),
            ContentTreeStatus {
                id: ContentTreeId(id(4)),
                name: "image".into(),
                state: SwState::Loaded,
                digest: None,
                progress_percent: 100,
                total_bytes: MIB,
                blobs: vec![],
                users: 1,
                faults: vec![],
            },
        )]
        .into(),
        volumes: [(
            key.to_string(),
            VolumeStatus {
                key,
                name: "root".into(),
                state: SwState::CreatedVolume,
                progress_percent: 100,
                used_bytes: 3 * MIB,
                max_size_bytes: 64 * MIB,
                users: 1,
                faults: vec![],
            },
        )]
        .into(),
        networks: [(
            network.to_string(),
            NetworkInstanceStatus {
                id: network,
                version: "1".into(),
                name: "apps".into(),
                is_active: true,
                kind: Some(NetworkKind::Local),
                bridge: "sn0".into(),
                gateway: None,
                mtu: 1500,
                uplink: None,
                vifs: vec![NetworkVifStatus { app, vif: "sv0".into(), mac, address: None }],
                faults: vec![],
            },
        )]
        .into(),
        base_os: Some(base_os()),
        blobs: vec![],
        applied: Some(ConfigApplied {
            version: "1".into(),
            timestamp: Some(AT),
            items: [true, false]
                .map(|is_known| ConfigItemStatus {
                    key: format!("item.{is_known}"),
                    value: "1".into(),
                    is_known,
                    error: None,
                })
                .into(),
            is_maintenance: true,
            reboot_counter: 1,
            shutdown_counter: 1,
        }),
        node: Some(NodeObserved {
            version: "0.1.0".into(),
            kernel: "6.12".into(),
            architecture: "x86_64".into(),
            hostname: "box".into(),
            boot_id: "b".into(),
            booted_at: Some(AT),
            cpus: 2,
            memory_bytes: 1_000 * MIB,
            manufacturer: "Acme".into(),
            product: "Box".into(),
            serial: "S1".into(),
            firmware: Firmware {
                product_version: "2".into(),
                product_uuid: id(9).to_string(),
                compatible: "acme,box".into(),
                bios_vendor: "Seller".into(),
                bios_version: "1.0".into(),
                bios_date: "01/02/2026".into(),
            },
            has_watchdog: true,
            disk: Some(DiskFacts {
                device: "/dev/vda3".into(),
                serial: "D1".into(),
                filesystem: "ext4".into(),
            }),
            is_hosted: true,
            restart_counter: 7,
        }),
        services: [(
            "net".into(),
            ServiceObserved {
                name: "net".into(),
                pid: Some(12),
                restarts: 0,
                started: MonoMs(1_000),
                memory_bytes: 5 * MIB,
                memory_limit_bytes: 48 * MIB,
                cpu_ns: 3_000_000_000,
            },
        )]
        .into(),
        ports: ["eth0", "eth1"]
            .map(|name| {
                let port = PortObserved {
                    name: name.into(),
                    mac: Some(mac),
                    is_up: true,
                    mtu: 1500,
                    addresses: vec!["192.0.2.10/24".parse().unwrap()],
                    gateways: vec!["192.0.2.1".parse().unwrap()],
                    dns: vec!["192.0.2.53".parse().unwrap()],
                    search: vec!["example".into()],
                };
                (name.into(), port)
            })
            .into(),
        storage: [(
            "/persist".into(),
            StorageObserved {
                path: "/persist".into(),
                total_bytes: 9_000 * MIB,
                used_bytes: 4_000 * MIB,
                content_bytes: 30 * MIB,
            },
        )]
        .into(),
        app_metrics: [(
            app.to_string(),
            AppMetrics {
                app,
                cpu_ns: 2_000_000_000,
                memory_used_bytes: 16 * MIB,
                memory_peak_bytes: 17 * MIB,
                memory_limit_bytes: 64 * MIB,
                pids: 3,
            },
        )]
        .into(),
        links: [("eth0".into(), link("eth0", None)), ("sv0".into(), link("sv0", Some(app)))].into(),
        box_metrics: Some(BoxMetrics {
            memory_available_bytes: 750 * MIB,
            disk: Some(DiskCounters {
                read_bytes: 20 * MIB,
                written_bytes: 10 * MIB,
                reads: 200,
                writes: 100,
            }),
        }),
        vault: Some(VaultObserved { has_tpm: false, is_open: true, fault: None }),
        is_synced: true,
    }
}

fn own() -> Own {
    Own {
        device: Some(DeviceId(id(42))),
        requests: RequestCounts {
            succeeded: 9,
            failed: 2,
            refused: 1,
            last_success: Some(AT),
            last_failure: Some(AT),
        },
        flows: FlowCounts::default(),
        received_config: Some(AT),
        shown: Shown {
            serial: None,
            phase: Some(Phase::Complete),
            root_certs: Some(Digest([1; 32])),
            tls_root_certs: Some(Digest([2; 32])),
            unreached: Fault::new(Reason::ControllerUnreachable, "no route").to_string(),
        },
    }
}

fn config() -> DeviceConfig {
    let network = NetworkId(id(5));
    DeviceConfig {
        name: "edge-7".into(),
        physical_ios: vec![PhysicalIo {
            kind: 1,
            physical_label: "Ethernet0".into(),
            logical_label: "uplink".into(),
            assignment_group: "group0".into(),
            interface: Some("eth0".into()),
            usage: 1,
        }],
        networks: vec![NetworkConfig { id: network, addressing: PortAddressing::Dhcp }],
        system_adapters: [("uplink", 0), ("eth1", 5)]
            .map(|(name, cost)| SystemAdapter {
                name: name.into(),
                lower_layer: String::new(),
                network: Some(network),
                is_uplink: true,
                cost,
                shared_labels: vec![],
            })
            .into(),
        apps: vec![],
        ..DeviceConfig::empty(DeviceId(id(42)))
    }
}

fn device_info() -> Vec<u8> {
    let message = info(Subject::Device, moment(), &own(), Some(&config()), &world());
    render::info(&message.unwrap())
}

#[test]
fn every_field_of_device_info_is_told_or_has_a_reason() {
    compare(&device_info(), INFO);
}

#[test]
fn every_field_of_metrics_is_told_or_has_a_reason() {
    let metrics = metrics(moment(), &own(), Some(&config()), &world());
    compare(&render::metrics(&metrics), METRICS);
}

#[test]
fn numbers_have_the_units_of_eve() {
    use eve_api::Message as _;
    use eve_api::wire::info::{ZInfoMsg, z_info_msg::InfoContent};
    use eve_api::wire::metrics::{ZMetricMsg, z_metric_msg::MetricContent};
    let Some(InfoContent::Dinfo(device)) = ZInfoMsg::decode(&*device_info()).unwrap().info_content else {
        panic!("another kind of info")
    };
    assert_eq!((device.memory, device.storage), (1_000, 9_000), "in MiB");
    assert_eq!(device.storage_list[0].total, 9_000);
    assert_eq!((device.restart_counter, device.last_boot_reason), (7, BOOT_REASON_UNKNOWN));
    let port = &device.system_adapter.unwrap().status[0].ports[0];
    assert_eq!((port.dhcp_type, &*port.subnet, &*port.gateway), (4, "192.0.2.0/24", "192.0.2.1"));
    let message = render::metrics(&metrics(moment(), &own(), Some(&config()), &world()));
    let message = ZMetricMsg::decode(&*message).unwrap();
    let Some(MetricContent::Dm(node)) = message.metric_content else { panic!("no metrics of the device") };
    let memory = node.memory.unwrap();
    assert_eq!((memory.used_mem, memory.avail_mem), (250, 750), "of the whole box, in MiB");
    assert!((memory.used_percentage - 25.0).abs() < 1e-9);
    let disk = &node.disk[0];
    assert_eq!((disk.total, disk.used, disk.free), (9_000, 4_000, 5_000), "in MiB");
    assert_eq!((disk.read_bytes, disk.write_bytes, disk.read_count), (20, 10, 200), "bytes in MiB");
    let memory = node.device_memory.unwrap();
    assert_eq!((memory.memory_mb, memory.allocated_eve_mb, memory.used_eve_mb), (1_000, 48, 5));
    assert_eq!(node.cpu_metric.unwrap().total, 5, "in seconds");
    assert_eq!(node.network[0].rx_bytes, 1, "in bytes");
    let app = &message.am[0];
    assert_eq!(app.app_memory.unwrap().allocated_mb, 64);
    assert_eq!((app.disk[0].provisioned, app.disk[0].used), (64, 3), "in MiB");
    assert_eq!(app.network[0].rx_bytes, 2, "from the app's side");
}

#[test]
fn the_first_start_on_a_disk_is_told_as_such() {
    let reason = |restart_counter| {
        let mut world = world();
        world.node.as_mut().unwrap().restart_counter = restart_counter;
        device(&own().shown, None, &world).boot_reason
    };
    assert_eq!([reason(0), reason(1)], [BOOT_REASON_FIRST, BOOT_REASON_UNKNOWN]);
}
