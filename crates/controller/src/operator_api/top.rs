// SPDX-License-Identifier: Apache-2.0
//! What devices and apps use, from the newest metrics of each device, in one answer.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::IntoResponse as _;
use controller_core::compute::app_id;
use controller_core::resource::Kind;
use model::id::{AppId, DeviceId};
use model::observed::LinkMetrics;
use model::report::Metrics;
use model::time::WallTime;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answered, Api, view};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TopQuery {
    /// Of devices: `key=value,key=value`.
    label_selector: Option<String>,
}

/// Names and ids.
type Named = Vec<(String, Uuid)>;

/// Devices with their newest metrics; those that have sent none since the start are left out.
pub(super) async fn top(State(api): State<Api>, Query(query): Query<TopQuery>) -> Answered {
    let pairs = query.label_selector.iter().flat_map(|text| text.split(',')).filter(|pair| !pair.is_empty());
    let wanted: Vec<(&str, &str)> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    let (devices, apps): (Named, Named) = api.with_project(|project| {
        let stored = project.stored.values();
        let devices = stored.filter(|stored| stored.kind() == Kind::Device).filter(|stored| {
            wanted.iter().all(|(key, value)| stored.labels.get(*key).is_some_and(|found| found == value))
        });
        let devices = devices.map(|stored| (stored.name.clone(), stored.uid)).collect();
        let apps = project.intent.apps.values().map(|app| (app.name.clone(), app.uid)).collect();
        (devices, apps)
    });
    let mut items = Vec::new();
    for (name, id) in devices {
        let Some(latest) = view::newest_metrics(&api, id).await? else { continue };
        let Ok(metrics) = eve_api::parse::metrics(&latest.bytes) else { continue };
        let names: BTreeMap<AppId, &str> =
            apps.iter().map(|(name, uid)| (app_id(*uid, DeviceId(id)), name.as_str())).collect();
        items.push(item(&name, latest.at_ms, &metrics, &names));
    }
    Ok(Json(json!({ "items": items })).into_response())
}

fn item(name: &str, at_ms: i64, metrics: &Metrics, names: &BTreeMap<AppId, &str>) -> Value {
    let node = &metrics.node;
    // The device's own clock, so that a wrong one does no harm.
    let since = |from: Option<WallTime>| match (from, metrics.at) {
        (Some(from), Some(at)) => Some((at.seconds - from.seconds).max(0)),
        _ => None,
    };
    let is_of_device = |link: &&LinkMetrics| node.uplinks.iter().any(|uplink| uplink.port == link.label);
    let uplinks: Vec<&LinkMetrics> = node.links.iter().filter(is_of_device).collect();
    let links = if uplinks.is_empty() { node.links.iter().collect() } else { uplinks };
    let disk = node.disks.iter().max_by_key(|disk| disk.total_bytes);
    let apps: Vec<Value> = metrics
        .apps
        .iter()
        .map(|app| {
            let (rx_bytes, tx_bytes) = traffic(&app.links.iter().collect::<Vec<_>>());
            json!({
                "name": names.get(&app.metrics.app).copied().unwrap_or(&app.name),
                "cpuNs": app.metrics.cpu_ns,
                "upS": since(app.started_at),
                "memoryUsedBytes": app.metrics.memory_used_bytes,
                "memoryLimitBytes": app.metrics.memory_limit_bytes,
                "rxBytes": rx_bytes,
                "txBytes": tx_bytes,
            })
        })
        .collect();
    let (rx_bytes, tx_bytes) = traffic(&links);
    json!({
        "device": name,
        "at": view::time(at_ms),
        "atMs": at_ms,
        "cpuNs": node.cpu_ns,
        "upS": since(node.booted_at),
        "memoryUsedBytes": node.memory_used_bytes,
        "memoryTotalBytes": node.memory_total_bytes,
        "diskUsedBytes": disk.map(|disk| disk.used_bytes),
        "diskTotalBytes": disk.map(|disk| disk.total_bytes),
        "rxBytes": rx_bytes,
        "txBytes": tx_bytes,
        "apps": apps,
    })
}

fn traffic(links: &[&LinkMetrics]) -> (u64, u64) {
    let sum =
        |of: fn(&LinkMetrics) -> u64| links.iter().map(|link| of(link)).fold(0_u64, u64::saturating_add);
    (sum(|link| link.rx_bytes), sum(|link| link.tx_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::observed::{AppMetrics, DiskCounters};
    use model::report::{AppReport, DiskReport, NodeMetrics, UplinkReport};

    fn link(name: &str, app: Option<AppId>, bytes: u64) -> LinkMetrics {
        LinkMetrics {
            name: name.into(),
            label: name.into(),
            app,
            rx_bytes: bytes,
            tx_bytes: bytes / 10,
            rx_packets: 0,
            tx_packets: 0,
            rx_drops: 0,
            tx_drops: 0,
            rx_errors: 0,
            tx_errors: 0,
            rx_acl_drops: 0,
            tx_acl_drops: 0,
            rx_rate_drops: 0,
            tx_rate_drops: 0,
        }
    }

    #[test]
    fn an_item_has_the_uplinks_the_largest_disk_and_the_apps_by_their_names() {
        let app = AppId(Uuid::from_u128(1));
        let at = |seconds| Some(WallTime { seconds, nanos: 0 });
        let disk = |path: &str, total_bytes| DiskReport {
            path: path.into(),
            total_bytes,
            used_bytes: 1,
            device: String::new(),
            counters: DiskCounters::default(),
        };
        let uplink = UplinkReport {
            port: "eth0".into(),
            succeeded: 1,
            failed: 0,
            last_success: None,
            last_failure: None,
            refused: 0,
        };
        let metrics = Metrics {
            at: at(1000),
            node: NodeMetrics {
                cpu_ns: 7,
                booted_at: at(400),
                memory_total_bytes: 100,
                memory_used_bytes: 50,
                links: vec![link("eth0", None, 1000), link("br0", None, 9999)],
                disks: vec![disk("/run", 5), disk("/persist", 500)],
                uplinks: vec![uplink],
                ..NodeMetrics::default()
            },
            apps: vec![AppReport {
                name: "as the device calls it".into(),
                version: "1".into(),
                started_at: at(1200),
                metrics: AppMetrics {
                    app,
                    cpu_ns: 3,
                    memory_used_bytes: 4,
                    memory_peak_bytes: 5,
                    memory_limit_bytes: 6,
                    pids: 1,
                },
                disks: vec![],
                links: vec![link("tap0", Some(app), 20), link("tap1", Some(app), 30)],
            }],
            ..Metrics::default()
        };
        let names = BTreeMap::from([(app, "shop")]);
        let found = item("berlin-07", 1_000_000, &metrics, &names);
        assert_eq!(
            found,
            json!({
                "device": "berlin-07", "at": "1970-01-01T00:16:40Z", "atMs": 1_000_000, "cpuNs": 7, "upS": 600,
                "memoryUsedBytes": 50, "memoryTotalBytes": 100, "diskUsedBytes": 1, "diskTotalBytes": 500,
                "rxBytes": 1000, "txBytes": 100,
                "apps": [{ "name": "shop", "cpuNs": 3, "upS": 0, "memoryUsedBytes": 4, "memoryLimitBytes": 6,
                    "rxBytes": 50, "txBytes": 5 }],
            })
        );
    }
}
