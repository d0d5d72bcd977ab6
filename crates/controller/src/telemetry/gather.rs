// SPDX-License-Identifier: Apache-2.0
//! Gathers all figures.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use controller_core::compute::app_id;
use controller_core::intent::is_chosen;
use model::id::{AppId, DeviceId};
use model::report::Metrics;
use model::status::SwState;
use model::time::WallTime;

use super::{Api, CLASSES, Family, Form, MAX_APPS, MAX_DISKS, MAX_LABEL_CHARS, MAX_LINKS, Sample};
use crate::node::ConfigState;
use crate::observed::DeviceView;
use crate::state::{Controller, now_ms};

/// Clock ticks per second in `/proc`, on every Linux of today.
const TICKS_PER_S: f64 = 100.0;
const NS_PER_S: f64 = 1e9;

/// Families in the making, by name.
#[derive(Default)]
struct Families {
    list: Vec<Family>,
    index: HashMap<&'static str, usize>,
}

type Labels<'a> = &'a [(&'static str, &'a str)];

impl Families {
    fn add(
        &mut self,
        (name, unit, help): (&'static str, &'static str, &'static str),
        labels: Labels<'_>,
        value: f64,
    ) {
        let form = if name.ends_with("_total") { Form::Counter } else { Form::Gauge };
        let index = *self.index.entry(name).or_insert_with(|| {
            self.list.push(Family { name, help, form, unit, samples: Vec::new() });
            self.list.len() - 1
        });
        let cut = |text: &str| text.chars().take(MAX_LABEL_CHARS).collect();
        let labels = labels.iter().map(|(key, value)| (*key, cut(value))).collect();
        self.list[index].samples.push(Sample { labels, value });
    }
}

fn truth(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

#[allow(clippy::cast_precision_loss, reason = "figures for graphs")]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(at: WallTime) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "figures for graphs")]
    let seconds = at.seconds as f64;
    seconds + f64::from(at.nanos) / NS_PER_S
}

/// Everything, as it is now. Blocks for as long as it takes to read what all devices have reported last.
pub(crate) fn gather(controller: &Controller) -> Vec<Family> {
    let mut out = Families::default();
    of_controller(controller, &mut out);
    let project = controller.snapshot();
    for device in project.intent.devices.values() {
        let labels: Labels<'_> = &[("device", device.name.as_str())];
        let node = controller.node(device.uid);
        let seen_ms = node.as_ref().map_or(0, |node| node.last_seen_ms());
        let is_connected = seen_ms > 0 && now_ms() - seen_ms < crate::operator_api::SILENCE_MS;
        out.add(CONNECTED, labels, truth(is_connected));
        if seen_ms > 0 {
            #[allow(clippy::cast_precision_loss, reason = "figures for graphs")]
            out.add(SEEN, labels, seen_ms as f64 / 1000.0);
        }
        let Some(view) = controller.observed.peek(device.uid) else { continue };
        let metrics = view.metrics.as_ref().and_then(|latest| eve_api::parse::metrics(&latest.bytes).ok());
        if let (Some(node), Some(metrics)) = (&node, &metrics)
            && let ConfigState::Published(published) = &*node.config.borrow()
        {
            let is_applied = metrics.node.processed_config >= published.config.timestamp;
            out.add(APPLIED, labels, truth(is_applied));
        }
        let chosen = project.intent.apps.values().filter(|app| is_chosen(&app.spec, device));
        let apps: HashMap<AppId, &str> =
            chosen.map(|app| (app_id(app.uid, DeviceId(device.uid)), app.name.as_str())).collect();
        states(&view, &device.name, &apps, &mut out);
        if let Some(metrics) = &metrics {
            of_node(metrics, &device.name, &apps, &mut out);
        }
    }
    out.list
}

type Named = (&'static str, &'static str, &'static str);

const CONNECTED: Named =
    ("selvedge_node_connected_state", "1", "Whether the node was heard in the last two minutes.");
const SEEN: Named = ("selvedge_node_last_seen_seconds", "s", "When the node was heard last, since 1970.");
const APPLIED: Named =
    ("selvedge_node_config_applied_state", "1", "Whether the node has processed its newest config.");
const RUNNING: Named = ("selvedge_app_running_state", "1", "Whether the app runs on the device.");
const FAULTS: Named = ("selvedge_app_faults_count", "1", "Faults the device reports of the app.");

fn states(view: &DeviceView, device: &str, apps: &HashMap<AppId, &str>, out: &mut Families) {
    let reported = view.info.range("app/".to_owned()..).take_while(|(key, _)| key.starts_with("app/"));
    let mut told = 0;
    for (_, latest) in reported {
        let Ok(info) = eve_api::parse::info(&latest.bytes) else { continue };
        let model::report::Info::App(app) = info.info else { continue };
        let Some(name) = apps.get(&app.app).filter(|_| told < MAX_APPS) else { continue };
        told += 1;
        let labels: Labels<'_> = &[("device", device), ("app", name)];
        out.add(RUNNING, labels, truth(app.state == SwState::Running));
        out.add(FAULTS, labels, number(app.faults.len() as u64));
    }
}

fn of_node(metrics: &Metrics, device: &str, apps: &HashMap<AppId, &str>, out: &mut Families) {
    let node = &metrics.node;
    let labels: Labels<'_> = &[("device", device)];
    let mut add = |named: Named, labels: Labels<'_>, value: f64| out.add(named, labels, value);
    add(
        ("selvedge_node_cpu_seconds_total", "s", "Processor time of the node since it started."),
        labels,
        number(node.cpu_ns) / NS_PER_S,
    );
    if let Some(at) = node.booted_at {
        add(
            ("selvedge_node_boot_time_seconds", "s", "When the node started, since 1970."),
            labels,
            seconds(at),
        );
    }
    for (named, value) in [
        (("selvedge_node_memory_size_bytes", "By", "Memory of the node."), node.memory_total_bytes),
        (("selvedge_node_memory_used_bytes", "By", "Memory in use."), node.memory_used_bytes),
        (
            ("selvedge_node_services_memory_bytes", "By", "Memory of the node's own services."),
            node.services_used_bytes,
        ),
        (("selvedge_node_apps_memory_bytes", "By", "Memory allotted to apps."), node.apps_allotted_bytes),
    ] {
        add(named, labels, number(value));
    }
    for disk in node.disks.iter().take(MAX_DISKS) {
        let labels: Labels<'_> = &[("device", device), ("path", &disk.path)];
        add(
            ("selvedge_node_disk_size_bytes", "By", "Size of a file system."),
            labels,
            number(disk.total_bytes),
        );
        add(
            ("selvedge_node_disk_used_bytes", "By", "Used of a file system."),
            labels,
            number(disk.used_bytes),
        );
    }
    for link in node.links.iter().take(MAX_LINKS) {
        let labels: Labels<'_> = &[("device", device), ("link", &link.name)];
        for (named, value) in [
            (("selvedge_node_link_received_bytes_total", "By", "Received by an interface."), link.rx_bytes),
            (("selvedge_node_link_sent_bytes_total", "By", "Sent by an interface."), link.tx_bytes),
            (
                ("selvedge_node_link_dropped_packets_total", "1", "Dropped by an interface."),
                link.rx_drops.saturating_add(link.tx_drops),
            ),
            (
                ("selvedge_node_link_errors_total", "1", "Errors of an interface."),
                link.rx_errors.saturating_add(link.tx_errors),
            ),
        ] {
            add(named, labels, number(value));
        }
    }
    for app in metrics.apps.iter().take(MAX_APPS) {
        let Some(name) = apps.get(&app.metrics.app) else { continue };
        let labels: Labels<'_> = &[("device", device), ("app", name)];
        add(
            ("selvedge_app_cpu_seconds_total", "s", "Processor time of an app since it started."),
            labels,
            number(app.metrics.cpu_ns) / NS_PER_S,
        );
        add(
            ("selvedge_app_memory_used_bytes", "By", "Memory of an app."),
            labels,
            number(app.metrics.memory_used_bytes),
        );
        add(
            ("selvedge_app_memory_limit_bytes", "By", "Most memory an app may have; 0: all."),
            labels,
            number(app.metrics.memory_limit_bytes),
        );
        let sum = |of: fn(&model::observed::LinkMetrics) -> u64| {
            app.links.iter().map(of).fold(0, u64::saturating_add)
        };
        add(
            ("selvedge_app_received_bytes_total", "By", "Received by an app."),
            labels,
            number(sum(|link| link.rx_bytes)),
        );
        add(
            ("selvedge_app_sent_bytes_total", "By", "Sent by an app."),
            labels,
            number(sum(|link| link.tx_bytes)),
        );
    }
}

fn of_controller(controller: &Controller, out: &mut Families) {
    let counters = &controller.counters;
    let load = |counter: &std::sync::atomic::AtomicU64| number(counter.load(Ordering::Relaxed));
    for api in Api::ALL {
        for (class, counter) in CLASSES.iter().zip(&counters.requests[api as usize]) {
            out.add(
                ("selvedge_controller_requests_total", "1", "Requests answered, by API and class of status."),
                &[("api", api.name()), ("code", class)],
                load(counter),
            );
        }
    }
    let (devices, apps) =
        controller.with_project(|project| (project.intent.devices.len(), project.intent.apps.len()));
    let nodes = controller.all_nodes();
    let now = now_ms();
    let connected = nodes.iter().filter(|node| {
        node.last_seen_ms() > 0 && now - node.last_seen_ms() < crate::operator_api::SILENCE_MS
    });
    let process = process();
    for (named, value) in [
        (
            ("selvedge_controller_uptime_seconds", "s", "Time since the controller started."),
            controller.started.elapsed().as_secs_f64(),
        ),
        (("selvedge_controller_devices_count", "1", "Devices in the intent."), number(devices as u64)),
        (
            ("selvedge_controller_nodes_count", "1", "Devices that have registered."),
            number(nodes.len() as u64),
        ),
        (
            ("selvedge_controller_connected_nodes_count", "1", "Devices heard in the last two minutes."),
            number(connected.count() as u64),
        ),
        (("selvedge_controller_apps_count", "1", "Apps in the intent."), number(apps as u64)),
        (("selvedge_controller_connections_count", "1", "Connections open."), load(&counters.connections)),
        (
            ("selvedge_controller_watchers_count", "1", "Watches open."),
            number(controller.feed.watchers() as u64),
        ),
        (
            ("selvedge_controller_waiting_bytes", "By", "Reports that wait to be written."),
            number(controller.observed.waiting_bytes() as u64),
        ),
        (
            ("selvedge_controller_info_messages_total", "1", "Info messages taken in."),
            load(&counters.info_messages),
        ),
        (
            ("selvedge_controller_metric_messages_total", "1", "Metric messages taken in."),
            load(&counters.metric_messages),
        ),
        (("selvedge_controller_log_lines_total", "1", "Log lines taken in."), load(&counters.log_lines)),
        (
            ("selvedge_controller_cpu_seconds_total", "s", "Processor time of the controller."),
            process.map_or(0.0, |process| process.0),
        ),
        (
            ("selvedge_controller_memory_resident_bytes", "By", "Resident memory of the controller."),
            process.map_or(0.0, |process| process.1),
        ),
    ] {
        out.add(named, &[], value);
    }
}

/// Processor seconds and resident bytes of this process.
fn process() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let pages: u64 = fields.get(21)?.parse().ok()?;
    Some((ticks / TICKS_PER_S, number(pages * rustix::param::page_size() as u64)))
}
