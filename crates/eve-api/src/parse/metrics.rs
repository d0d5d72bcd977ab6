// SPDX-License-Identifier: Apache-2.0
//! Metrics, as a controller reads them. Refused is only what is no message; entries without a readable id are left out.

use model::flow::{Delivery, FlowCounters};
use model::id::AppId;
use model::observed::{AppMetrics, DiskCounters, LinkMetrics};
use model::report::{
    AppDiskReport, AppReport, DiskReport, Metrics, NetworkReport, NodeMetrics, ProcessReport, UplinkReport,
    VolumeReport,
};
use prost::Message;

use super::info::{MIB, network_kind};
use super::{ParseError, wall_time};
use crate::render::turned;
use crate::wire::metrics as wire;

const NS_PER_S: u64 = 1_000_000_000;

/// Reads a `ZMetricMsg`.
pub fn metrics(untrusted_payload: &[u8]) -> Result<Metrics, ParseError> {
    let message = wire::ZMetricMsg::decode(untrusted_payload).map_err(|_| ParseError::Malformed)?;
    let network = |wire: &wire::ZMetricNetworkInstance| {
        Some(NetworkReport {
            id: wire.network_id.parse().ok()?,
            version: wire.network_version.clone(),
            name: wire.displayname.clone(),
            kind: network_kind(wire.inst_type),
            is_active: wire.activated,
            links: wire.network.iter().map(|link| self::link(link, None)).collect(),
        })
    };
    let volume = |wire: &wire::ZMetricVolume| {
        Some(VolumeReport {
            id: wire.uuid.parse().ok()?,
            name: wire.display_name.clone(),
            total_bytes: wire.total_bytes,
            used_bytes: wire.used_bytes,
        })
    };
    let process = |wire: &wire::ZMetricProcess| ProcessReport {
        pid: wire.pid,
        name: wire.name.clone(),
        started_at: wire.create_time.as_ref().map(wall_time),
        memory_bytes: wire.rss_bytes,
        // Seconds in a float keep their microseconds for centuries. The cast saturates; what is no number is 0.
        cpu_ns: (((wire.user_time + wire.system_time) * 1e6).round() as u64).saturating_mul(1000),
    };
    let device = match message.metric_content {
        Some(wire::z_metric_msg::MetricContent::Dm(device)) => device,
        None => wire::DeviceMetric::default(),
    };
    Ok(Metrics {
        device: message.dev_id.parse().ok(),
        at: message.at_time_stamp.as_ref().map(wall_time),
        node: node(&device),
        apps: message.am.iter().filter_map(app).collect(),
        networks: message.nm.iter().filter_map(network).collect(),
        volumes: message.vm.iter().filter_map(volume).collect(),
        processes: message.pr.iter().map(process).collect(),
    })
}

fn bytes(mib: u32) -> u64 {
    u64::from(mib) * MIB
}

fn node(wire: &wire::DeviceMetric) -> NodeMetrics {
    let cpu = wire.cpu_metric.unwrap_or_default();
    let memory = wire.device_memory.unwrap_or_default();
    let disk = |disk: &wire::DiskMetric| DiskReport {
        path: disk.mount_path.clone(),
        total_bytes: disk.total.saturating_mul(MIB),
        used_bytes: disk.used.saturating_mul(MIB),
        device: disk.disk.clone(),
        counters: DiskCounters {
            read_bytes: disk.read_bytes.saturating_mul(MIB),
            written_bytes: disk.write_bytes.saturating_mul(MIB),
            reads: disk.read_count,
            writes: disk.write_count,
        },
    };
    let uplink = |uplink: &wire::ZedcloudMetric| UplinkReport {
        port: uplink.if_name.clone(),
        succeeded: uplink.success,
        failed: uplink.failures,
        last_success: uplink.last_success.as_ref().map(wall_time),
        last_failure: uplink.last_failure.as_ref().map(wall_time),
        refused: uplink.auth_verify_failure,
    };
    NodeMetrics {
        cpu_ns: cpu_ns(&cpu),
        booted_at: cpu.up_time.as_ref().map(wall_time),
        memory_total_bytes: bytes(memory.memory_mb),
        memory_used_bytes: wire.memory.as_ref().map_or(0, |memory| bytes(memory.used_mem)),
        services_used_bytes: bytes(memory.used_eve_mb),
        services_allotted_bytes: bytes(memory.allocated_eve_mb),
        apps_allotted_bytes: bytes(memory.allocated_apps_mb),
        apps_storage_bytes: wire.app_run_time_storage_mb.saturating_mul(MIB),
        links: wire.network.iter().map(|link| self::link(link, None)).collect(),
        disks: wire.disk.iter().map(disk).collect(),
        uplinks: wire.zedcloud.iter().map(uplink).collect(),
        flows: wire.flowlog.as_ref().map(flows).unwrap_or_default(),
        acl_rules: wire.acl.as_ref().map_or(0, |acl| acl.total_rule_count),
        received_config: wire.last_received_config.as_ref().map(wall_time),
        processed_config: wire.last_processed_config.as_ref().map(wall_time),
    }
}

fn flows(wire: &wire::FlowlogMetric) -> FlowCounters {
    let of = |counters: &Option<wire::FlowlogCounters>| {
        let counters = counters.unwrap_or_default();
        Delivery {
            sent: counters.success,
            dropped: counters.drops,
            failed_attempts: counters.failed_attempts,
        }
    };
    FlowCounters { messages: of(&wire.messages), flows: of(&wire.flows), lookups: of(&wire.dns_requests) }
}

/// Older nodes send seconds alone.
fn cpu_ns(cpu: &wire::AppCpuMetric) -> u64 {
    if cpu.total_ns == 0 { cpu.total.saturating_mul(NS_PER_S) } else { cpu.total_ns }
}

fn app(wire: &wire::AppMetric) -> Option<AppReport> {
    let app: AppId = wire.app_id.parse().ok()?;
    let cpu = wire.cpu.unwrap_or_default();
    let memory = wire.app_memory.unwrap_or_default();
    Some(AppReport {
        name: wire.app_name.clone(),
        version: wire.app_version.clone(),
        started_at: cpu.up_time.as_ref().map(wall_time),
        metrics: AppMetrics {
            app,
            cpu_ns: cpu_ns(&cpu),
            memory_used_bytes: bytes(memory.used_mb),
            memory_peak_bytes: 0,
            memory_limit_bytes: bytes(memory.allocated_mb),
            pids: 0,
        },
        disks: wire.disk.iter().map(disk_of_app).collect(),
        links: wire.network.iter().map(|link| self::link(&turned(link.clone()), Some(app))).collect(),
    })
}

fn disk_of_app(wire: &wire::AppDiskMetric) -> AppDiskReport {
    AppDiskReport {
        name: wire.disk.clone(),
        provisioned_bytes: wire.provisioned.saturating_mul(MIB),
        used_bytes: wire.used.saturating_mul(MIB),
    }
}

fn link(wire: &wire::NetworkMetric, app: Option<AppId>) -> LinkMetrics {
    LinkMetrics {
        // Other nodes may leave out the Linux name.
        name: if wire.local_name.is_empty() { wire.i_name.clone() } else { wire.local_name.clone() },
        label: wire.i_name.clone(),
        app,
        rx_bytes: wire.rx_bytes,
        tx_bytes: wire.tx_bytes,
        rx_packets: wire.rx_pkts,
        tx_packets: wire.tx_pkts,
        rx_drops: wire.rx_drops,
        tx_drops: wire.tx_drops,
        rx_errors: wire.rx_errors,
        tx_errors: wire.tx_errors,
        rx_acl_drops: wire.rx_acl_drops,
        tx_acl_drops: wire.tx_acl_drops,
        rx_rate_drops: wire.rx_acl_rate_limit_drops,
        tx_rate_drops: wire.tx_acl_rate_limit_drops,
    }
}
