// SPDX-License-Identifier: Apache-2.0
//! Metrics. Counters are cumulative, so a lost message costs nothing. Memory and disks go out in MiB. Traffic of an
//! app is told from the app's side, while our own counters are the node's: the two directions change places.

use model::flow::{Delivery, FlowCounters};
use model::observed::LinkMetrics;
use model::report::{AppDiskReport, AppReport, Metrics, NodeMetrics};
use prost::Message;

use super::info::{MIB, device_id, instance_type};
use super::timestamp;
use crate::wire::metrics as wire;

const NS_PER_S: u64 = 1_000_000_000;

/// The payload of `POST /metrics`.
pub fn metrics(metrics: &Metrics) -> Vec<u8> {
    let network = |report: &model::report::NetworkReport| wire::ZMetricNetworkInstance {
        network_id: report.id.to_string(),
        network_version: report.version.clone(),
        inst_type: report.kind.map_or(0, instance_type),
        displayname: report.name.clone(),
        activated: report.is_active,
        network: report.links.iter().map(link).collect(),
        network_stats: report.links.first().map(network_stats),
        ..Default::default()
    };
    let volume = |report: &model::report::VolumeReport| wire::ZMetricVolume {
        uuid: report.id.to_string(),
        display_name: report.name.clone(),
        total_bytes: report.total_bytes,
        used_bytes: report.used_bytes,
        free_bytes: report.total_bytes.saturating_sub(report.used_bytes),
        ..Default::default()
    };
    let process = |report: &model::report::ProcessReport| wire::ZMetricProcess {
        pid: report.pid,
        name: report.name.clone(),
        watched: true,
        user_time: report.cpu_ns as f64 / NS_PER_S as f64,
        create_time: report.started_at.map(timestamp),
        rss_bytes: report.memory_bytes,
        ..Default::default()
    };
    wire::ZMetricMsg {
        dev_id: device_id(metrics.device),
        at_time_stamp: metrics.at.map(timestamp),
        metric_content: Some(wire::z_metric_msg::MetricContent::Dm(node(&metrics.node))),
        am: metrics.apps.iter().map(app).collect(),
        nm: metrics.networks.iter().map(network).collect(),
        vm: metrics.volumes.iter().map(volume).collect(),
        pr: metrics.processes.iter().map(process).collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

fn memory(used_bytes: u64, total_bytes: u64) -> wire::MemoryMetric {
    let available = total_bytes.saturating_sub(used_bytes);
    let percent = |part: u64| if total_bytes == 0 { 0.0 } else { part as f64 * 100.0 / total_bytes as f64 };
    wire::MemoryMetric {
        used_mem: mib(used_bytes),
        avail_mem: mib(available),
        used_percentage: percent(used_bytes),
        avail_percentage: percent(available),
    }
}

fn node(node: &NodeMetrics) -> wire::DeviceMetric {
    let disk = |disk: &model::report::DiskReport| wire::DiskMetric {
        disk: disk.device.clone(),
        mount_path: disk.path.clone(),
        total: disk.total_bytes / MIB,
        used: disk.used_bytes / MIB,
        free: disk.total_bytes.saturating_sub(disk.used_bytes) / MIB,
        read_bytes: disk.counters.read_bytes / MIB,
        write_bytes: disk.counters.written_bytes / MIB,
        read_count: disk.counters.reads,
        write_count: disk.counters.writes,
    };
    let uplink = |uplink: &model::report::UplinkReport| wire::ZedcloudMetric {
        if_name: uplink.port.clone(),
        failures: uplink.failed,
        success: uplink.succeeded,
        last_failure: uplink.last_failure.map(timestamp),
        last_success: uplink.last_success.map(timestamp),
        auth_verify_failure: uplink.refused,
        ..Default::default()
    };
    wire::DeviceMetric {
        memory: Some(memory(node.memory_used_bytes, node.memory_total_bytes)),
        network: node.links.iter().map(link).collect(),
        zedcloud: node.uplinks.iter().map(uplink).collect(),
        disk: node.disks.iter().map(disk).collect(),
        cpu_metric: Some(wire::AppCpuMetric {
            up_time: node.booted_at.map(timestamp),
            total: node.cpu_ns / NS_PER_S,
            total_ns: node.cpu_ns,
            ..Default::default()
        }),
        app_run_time_storage_mb: node.apps_storage_bytes / MIB,
        system_services_memory_mb: Some(memory(node.services_used_bytes, node.memory_total_bytes)),
        device_memory: Some(wire::DeviceMemoryMetric {
            memory_mb: mib(node.memory_total_bytes),
            allocated_apps_mb: mib(node.apps_allotted_bytes),
            allocated_eve_mb: mib(node.services_allotted_bytes),
            used_eve_mb: mib(node.services_used_bytes),
        }),
        acl: Some(wire::AclMetric { total_rule_count: node.acl_rules }),
        flowlog: Some(flowlog(&node.flows)),
        last_received_config: node.received_config.map(timestamp),
        last_processed_config: node.processed_config.map(timestamp),
        ..Default::default()
    }
}

fn app(report: &AppReport) -> wire::AppMetric {
    let metrics = &report.metrics;
    wire::AppMetric {
        app_id: metrics.app.to_string(),
        app_version: report.version.clone(),
        app_name: report.name.clone(),
        cpu: Some(wire::AppCpuMetric {
            up_time: report.started_at.map(timestamp),
            total: metrics.cpu_ns / NS_PER_S,
            total_ns: metrics.cpu_ns,
            ..Default::default()
        }),
        memory: Some(memory(metrics.memory_used_bytes, metrics.memory_limit_bytes)),
        network: report.links.iter().map(|counters| turned(link(counters))).collect(),
        disk: report.disks.iter().map(disk).collect(),
        app_memory: Some(wire::AppMemoryMetric {
            allocated_mb: mib(metrics.memory_limit_bytes),
            used_mb: mib(metrics.memory_used_bytes),
        }),
        ..Default::default()
    }
}

fn network_stats(link: &LinkMetrics) -> wire::ZMetricNetworkStats {
    wire::ZMetricNetworkStats {
        rx: Some(wire::NetworkStats {
            total_packets: link.rx_packets,
            errors: link.rx_errors,
            drops: link.rx_drops,
            total_bytes: link.rx_bytes,
        }),
        tx: Some(wire::NetworkStats {
            total_packets: link.tx_packets,
            errors: link.tx_errors,
            drops: link.tx_drops,
            total_bytes: link.tx_bytes,
        }),
    }
}

fn flowlog(counters: &FlowCounters) -> wire::FlowlogMetric {
    let of = |delivery: Delivery| wire::FlowlogCounters {
        success: delivery.sent,
        drops: delivery.dropped,
        failed_attempts: delivery.failed_attempts,
    };
    wire::FlowlogMetric {
        messages: Some(of(counters.messages)),
        flows: Some(of(counters.flows)),
        dns_requests: Some(of(counters.lookups)),
    }
}

fn disk(disk: &AppDiskReport) -> wire::AppDiskMetric {
    wire::AppDiskMetric {
        disk: disk.name.clone(),
        provisioned: disk.provisioned_bytes / MIB,
        used: disk.used_bytes / MIB,
        ..Default::default()
    }
}

fn link(link: &LinkMetrics) -> wire::NetworkMetric {
    wire::NetworkMetric {
        i_name: link.label.clone(),
        local_name: link.name.clone(),
        tx_bytes: link.tx_bytes,
        rx_bytes: link.rx_bytes,
        tx_drops: link.tx_drops,
        rx_drops: link.rx_drops,
        tx_pkts: link.tx_packets,
        rx_pkts: link.rx_packets,
        tx_errors: link.tx_errors,
        rx_errors: link.rx_errors,
        tx_acl_drops: link.tx_acl_drops,
        rx_acl_drops: link.rx_acl_drops,
        tx_acl_rate_limit_drops: link.tx_rate_drops,
        rx_acl_rate_limit_drops: link.rx_rate_drops,
        ..Default::default()
    }
}

/// The same counters seen from the other end of the link.
pub(crate) fn turned(link: wire::NetworkMetric) -> wire::NetworkMetric {
    wire::NetworkMetric {
        tx_bytes: link.rx_bytes,
        rx_bytes: link.tx_bytes,
        tx_drops: link.rx_drops,
        rx_drops: link.tx_drops,
        tx_pkts: link.rx_pkts,
        rx_pkts: link.tx_pkts,
        tx_errors: link.rx_errors,
        rx_errors: link.tx_errors,
        tx_acl_drops: link.rx_acl_drops,
        rx_acl_drops: link.tx_acl_drops,
        tx_acl_rate_limit_drops: link.rx_acl_rate_limit_drops,
        rx_acl_rate_limit_drops: link.tx_acl_rate_limit_drops,
        ..link
    }
}
