// SPDX-License-Identifier: Apache-2.0
//! Figures of the controller and of all nodes, for Prometheus ([`prometheus`]) and OpenTelemetry ([`otlp`]).
//!
//! Names are `selvedge_PROCESS_THING_UNIT`; counters end in `_total`. Labels are names from the intent, so their number is
//! bounded by it; names that devices give (interfaces, file systems) are cut and counted ([`MAX_LINKS`], [`MAX_DISKS`]).
//! Everything is gathered from memory: a scrape never reads the disk.

mod gather;
pub mod otlp;
mod prometheus;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use gather::gather;
pub(crate) use prometheus::{CONTENT_TYPE, render};

/// Interfaces told of one node.
const MAX_LINKS: usize = 8;
/// File systems told of one node.
const MAX_DISKS: usize = 8;
/// Apps told of one node.
const MAX_APPS: usize = 64;
/// Characters of a label's value.
const MAX_LABEL_CHARS: usize = 63;

/// How a figure goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Up and down.
    Gauge,
    /// Only up, but for a restart of what it counts.
    Counter,
}

/// All figures of one name.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub form: Form,
    /// As OpenTelemetry writes units (UCUM).
    pub unit: &'static str,
    pub samples: Vec<Sample>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// APIs whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Device,
    Operator,
    Registry,
}

impl Api {
    const ALL: [Api; 3] = [Api::Device, Api::Operator, Api::Registry];

    const fn name(self) -> &'static str {
        match self {
            Api::Device => "device",
            Api::Operator => "operator",
            Api::Registry => "registry",
        }
    }
}

/// Classes of answers, by the first digit of their status.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What is counted while the controller runs.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [[AtomicU64; CLASSES.len()]; Api::ALL.len()],
    /// Connections that are open.
    pub connections: AtomicU64,
    pub info_messages: AtomicU64,
    pub metric_messages: AtomicU64,
    pub log_lines: AtomicU64,
}

impl Counters {
    pub(crate) fn request(&self, api: Api, status: u16) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        add(&self.requests[api as usize][class], 1);
    }
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
