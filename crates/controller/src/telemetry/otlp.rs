// SPDX-License-Identifier: Apache-2.0
//! Export to a collector of OpenTelemetry: OTLP over HTTP in its JSON form, `URL/v1/metrics` and `URL/v1/logs`.
//!
//! One thread sends. Log records wait in a queue with a limit; what does not fit is dropped and counted, and the count is
//! sent as a record of its own. A collector that is away costs nothing but that.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::{Family, Form, gather};
use crate::node::lock;
use crate::state::{Controller, now_ms};

/// Records that wait at most: some minutes of a busy fleet.
const MAX_WAITING: usize = 20_000;
/// Bytes of one record's text; what is longer is cut.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Records in one request.
const BATCH: usize = 1000;
/// Figures in one request.
const POINTS: usize = 5000;
const LOG_PERIOD: Duration = Duration::from_secs(2);
const METRIC_PERIOD: Duration = Duration::from_secs(15);
/// A collector that does not answer in this time is not there.
const TIMEOUT: Duration = Duration::from_secs(10);
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u8 = 2;
/// Where systems keep the certificates they trust.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where to send.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://host:4318`
    pub url: String,
    /// File with the certificates to trust, in PEM; left out: the system's.
    pub ca: Option<std::path::PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    #[error("'{0}' is no http:// or https:// address of a collector")]
    Url(String),
    #[error("read the certificates in {0}")]
    Read(String, #[source] std::io::Error),
    #[error("no certificate can be read in {0}; name a file with --otlp-ca")]
    NoRoots(String),
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}

/// One line of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRecord {
    /// Nanoseconds since 1970.
    pub at_ns: i128,
    /// A word like `info`, as its writer said it.
    pub severity: String,
    pub body: String,
    /// `selvedge-controller` or `selvedge-node`.
    pub service: &'static str,
    pub attributes: Vec<(&'static str, String)>,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<LogRecord>,
    dropped: u64,
}

/// Records on their way. A copy is the same queue.
#[derive(Clone, Debug, Default)]
pub struct LogQueue(Arc<(Mutex<Waiting>, Condvar)>);

impl LogQueue {
    pub fn push(&self, mut record: LogRecord) {
        if record.body.len() > MAX_BODY_BYTES {
            let end = (0..=MAX_BODY_BYTES).rev().find(|at| record.body.is_char_boundary(*at)).unwrap_or(0);
            record.body.truncate(end);
        }
        let mut waiting = lock(&self.0.0);
        if waiting.records.len() >= MAX_WAITING {
            waiting.dropped += 1;
            return;
        }
        waiting.records.push_back(record);
        if waiting.records.len() == BATCH {
            self.0.1.notify_one();
        }
    }

    /// Waits until a batch is there or the time is over.
    fn wait(&self, timeout: Duration) {
        let waiting = lock(&self.0.0);
        if waiting.records.len() < BATCH {
            // Whatever woke it, the queue is looked at next.
            drop(self.0.1.wait_timeout(waiting, timeout));
        }
    }

    fn take(&self) -> (Vec<LogRecord>, u64) {
        let mut waiting = lock(&self.0.0);
        let count = waiting.records.len().min(BATCH);
        let records = waiting.records.drain(..count).collect();
        (records, std::mem::take(&mut waiting.dropped))
    }

    /// Records that could not be sent come first next time, as far as there is room.
    fn give_back(&self, records: Vec<LogRecord>, dropped: u64) {
        let mut waiting = lock(&self.0.0);
        waiting.dropped += dropped;
        for record in records.into_iter().rev() {
            if waiting.records.len() < MAX_WAITING {
                waiting.records.push_front(record);
            } else {
                waiting.dropped += 1;
            }
        }
    }
}

/// Starts the thread that sends; it ends with the controller.
pub(crate) fn start(controller: &Arc<Controller>, target: &Target, logs: LogQueue) -> Result<(), OtlpError> {
    let sender = Sender::new(target)?;
    let controller = Arc::downgrade(controller);
    let thread = std::thread::Builder::new().name("otlp".into());
    thread.spawn(move || sender.run(&controller, &logs)).map_err(OtlpError::Thread)?;
    Ok(())
}

struct Sender {
    agent: Agent,
    url: String,
    is_failing: std::cell::Cell<bool>,
}

impl Sender {
    fn new(target: &Target) -> Result<Sender, OtlpError> {
        let url = target.url.trim_end_matches('/').to_owned();
        let is_secure = url.starts_with("https://");
        if !(is_secure || url.starts_with("http://")) {
            return Err(OtlpError::Url(url));
        }
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if is_secure || target.ca.is_some() {
            let path = target.ca.clone().unwrap_or_else(|| SYSTEM_ROOTS.into());
            let name = path.display().to_string();
            let pem = std::fs::read(&path).map_err(|error| OtlpError::Read(name.clone(), error))?;
            let roots: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if roots.is_empty() {
                return Err(OtlpError::NoRoots(name));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&roots));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("selvedge/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Sender { agent, url, is_failing: std::cell::Cell::new(false) })
    }

    fn run(&self, controller: &Weak<Controller>, logs: &LogQueue) {
        let mut metrics_due = Instant::now();
        let start_ms = now_ms();
        loop {
            logs.wait(LOG_PERIOD);
            let Some(controller) = controller.upgrade() else { return };
            if Instant::now() >= metrics_due {
                metrics_due = Instant::now() + METRIC_PERIOD;
                for body in metrics(&gather(&controller), start_ms, now_ms()) {
                    if !self.send("metrics", &body) {
                        break;
                    }
                }
            }
            drop(controller);
            loop {
                let (records, dropped) = logs.take();
                if records.is_empty() && dropped == 0 {
                    break;
                }
                let is_last = records.len() < BATCH;
                if !self.send("logs", &log_body(&records, dropped)) {
                    logs.give_back(records, dropped);
                    break;
                }
                if is_last {
                    break;
                }
            }
        }
    }

    fn send(&self, what: &str, body: &Value) -> bool {
        let url = format!("{}/v1/{what}", self.url);
        let sent = self.agent.post(&url).header("Content-Type", "application/json").send(body.to_string());
        let refusal = match sent {
            Ok(answer) if answer.status().is_success() => None,
            // What a collector does not understand it will not understand later either.
            Ok(answer) if answer.status().as_u16() == 400 => {
                tracing::warn!(url, "the collector refuses what it was sent");
                None
            }
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        match (&refusal, self.is_failing.replace(refusal.is_some())) {
            (Some(why), false) => tracing::warn!(url, why, "cannot send to the collector; trying on"),
            (None, true) => tracing::info!(url, "the collector is there again"),
            _ => {}
        }
        refusal.is_none()
    }
}

fn attributes<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Value> {
    pairs.map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } })).collect()
}

fn resource(service: &str) -> Value {
    json!({ "attributes": attributes([("service.name", service), ("service.namespace", "selvedge")].into_iter()) })
}

fn scope() -> Value {
    json!({ "name": "selvedge", "version": env!("CARGO_PKG_VERSION") })
}

fn nanos(at_ms: i64) -> String {
    (i128::from(at_ms) * 1_000_000).to_string()
}

/// `ExportMetricsServiceRequest`s, each with so many figures at most.
fn metrics(families: &[Family], start_ms: i64, at_ms: i64) -> Vec<Value> {
    let mut bodies = Vec::new();
    let (mut list, mut count) = (Vec::new(), 0);
    let mut close = |list: &mut Vec<Value>| {
        let list = std::mem::take(list);
        if !list.is_empty() {
            bodies.push(json!({ "resourceMetrics": [{
                "resource": resource("selvedge-controller"),
                "scopeMetrics": [{ "scope": scope(), "metrics": list }],
            }] }));
        }
    };
    for family in families {
        for samples in family.samples.chunks(POINTS) {
            let points: Vec<Value> = samples
                .iter()
                .map(|sample| {
                    let labels = sample.labels.iter().map(|(key, value)| (*key, value.as_str()));
                    let mut point = json!({
                        "attributes": attributes(labels), "timeUnixNano": nanos(at_ms), "asDouble": sample.value,
                    });
                    if family.form == Form::Counter {
                        point["startTimeUnixNano"] = json!(nanos(start_ms));
                    }
                    point
                })
                .collect();
            let mut metric = json!({ "name": family.name, "description": family.help, "unit": family.unit });
            match family.form {
                Form::Gauge => metric["gauge"] = json!({ "dataPoints": points }),
                Form::Counter => {
                    metric["sum"] = json!({
                        "dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true,
                    });
                }
            }
            count += samples.len();
            list.push(metric);
            if count >= POINTS {
                count = 0;
                close(&mut list);
            }
        }
    }
    close(&mut list);
    bodies
}

/// `SeverityNumber` of the words that nodes, EVE and syslog use.
fn severity(word: &str) -> u8 {
    match word.to_ascii_lowercase().as_str() {
        "trace" => 1,
        "debug" => 5,
        "info" | "notice" => 9,
        "warn" | "warning" => 13,
        "error" | "err" => 17,
        "fatal" | "panic" | "crit" | "alert" | "emerg" => 21,
        _ => 0,
    }
}

/// An `ExportLogsServiceRequest`.
fn log_body(records: &[LogRecord], dropped: u64) -> Value {
    let lost = (dropped > 0).then(|| LogRecord {
        at_ns: i128::from(now_ms()) * 1_000_000,
        severity: "warning".into(),
        body: format!("{dropped} log records were dropped: the collector was away or too slow"),
        service: "selvedge-controller",
        attributes: Vec::new(),
    });
    let mut services: std::collections::BTreeMap<&str, Vec<Value>> = std::collections::BTreeMap::new();
    for record in records.iter().chain(&lost) {
        let labels = record.attributes.iter().map(|(key, value)| (*key, value.as_str()));
        services.entry(record.service).or_default().push(json!({
            "timeUnixNano": record.at_ns.max(0).to_string(),
            "severityNumber": severity(&record.severity),
            "severityText": record.severity,
            "body": { "stringValue": record.body },
            "attributes": attributes(labels),
        }));
    }
    let resources: Vec<Value> = services
        .into_iter()
        .map(|(service, records)| {
            json!({ "resource": resource(service), "scopeLogs": [{ "scope": scope(), "logRecords": records }] })
        })
        .collect();
    json!({ "resourceLogs": resources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Sample;

    fn record(body: &str) -> LogRecord {
        LogRecord { body: body.into(), service: "selvedge-node", ..LogRecord::default() }
    }

    #[test]
    fn a_queue_keeps_its_limit_and_counts_what_it_drops() {
        let queue = LogQueue::default();
        (0..MAX_WAITING + 5).for_each(|_| queue.push(record("x")));
        let (records, dropped) = queue.take();
        assert_eq!((records.len(), dropped), (BATCH, 5));
        (0..BATCH).for_each(|_| queue.push(record("new")));
        queue.give_back(records, dropped);
        assert_eq!(lock(&queue.0.0).dropped, 5 + BATCH as u64, "there is room for none of them again");
        queue.take();
        queue.push(record(&"é".repeat(MAX_BODY_BYTES)));
        assert!(lock(&queue.0.0).records.back().is_some_and(|last| last.body.len() <= MAX_BODY_BYTES));
    }

    #[test]
    fn figures_are_split_into_requests() {
        let samples = vec![Sample { labels: vec![("device", "d".into())], value: 1.0 }; POINTS + 1];
        let family = Family { name: "n", help: "h", form: Form::Counter, unit: "1", samples };
        let bodies = metrics(&[family], 1, 2);
        assert_eq!(bodies.len(), 2);
        let sum = &bodies[1]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"];
        assert_eq!((&sum["isMonotonic"], sum["dataPoints"].as_array().unwrap().len()), (&json!(true), 1));
        assert_eq!(sum["dataPoints"][0]["timeUnixNano"], "2000000");
    }
}
