// SPDX-License-Identifier: Apache-2.0
//! `serve`: the controller.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use controller::telemetry::otlp::{LogQueue, Target};
use controller::{Options, ServeError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::DONE;
use crate::advice::Advice;
use crate::args::{Connection, ServeArgs};
use crate::otlp::Export;

/// Time for work on the disk to end after the controller has stopped.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Reads `35s`, `500ms`, `2m`, `24h` or plain seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is no time like 35s"))?;
    match &text[digits.len()..] {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        unit => Err(format!("'{unit}' is no unit of time; use ms, s, m or h")),
    }
}

pub(crate) fn serve(connection: &Connection, args: ServeArgs) -> anyhow::Result<u8> {
    let filter = EnvFilter::try_from_env("SELVEDGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let otlp = args.otlp.map(|url| (Target { url, ca: args.otlp_ca }, LogQueue::default()));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let export = otlp.as_ref().map(|(_, queue)| Export(queue.clone()));
    tracing_subscriber::registry().with(filter).with(lines).with(export).init();
    let data = std::path::absolute(&connection.data).context("the data directory has no absolute path")?;
    let options = Options {
        data: data.clone(),
        listen: args.listen,
        advertise: args.advertise,
        hold: args.hold,
        names: args.names,
        max_connections: args.max_connections,
        otlp,
        open_metrics: args.metrics_listen,
    };
    if options.advertise.as_ref().is_some_and(|text| !is_host_port(text)) {
        return Err(anyhow!("--advertise wants host:port"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let data = data.display().to_string();
    let served = runtime.block_on(controller::serve(options, |address, advertise| {
        eprintln!("controller listens on {address}, nodes reach it at {advertise}");
        eprintln!("admin token: {data}/admin-token    root certificate: {data}/pki/root-certificate.pem");
        eprintln!("next: selvedge --data {data} node bundle --serial '*' --out DIR");
    }));
    // A blob that is being fetched from a registry far away holds up nobody's restart.
    runtime.shutdown_timeout(STOP_TIME);
    served.map_err(|error| match next_of(&error) {
        Some(next) => {
            let what = error.to_string();
            match std::error::Error::source(&error).map(ToString::to_string) {
                Some(source) => Advice::new(format!("{what}: {source}"), next).into(),
                None => Advice::new(what, next).into(),
            }
        }
        None => anyhow::Error::from(error),
    })?;
    Ok(DONE)
}

/// What to do when the controller does not start.
fn next_of(error: &ServeError) -> Option<&'static str> {
    match error {
        ServeError::Listen(_, source) if source.kind() == std::io::ErrorKind::AddrInUse => {
            Some("another program listens there, perhaps another controller: choose another --listen")
        }
        ServeError::Listen(_, source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("ports under 1024 are for root: choose a higher one with --listen")
        }
        ServeError::Listen(..) => Some("--listen wants an address of this machine, or 0.0.0.0 for all"),
        ServeError::File(_) => Some("give a directory that you may write: --data DIR"),
        _ => None,
    }
}

/// Reads `ADDR:PORT`; of a port alone every address is meant.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(SocketAddr::from(([0, 0, 0, 0], port)));
    }
    text.parse().map_err(|_| format!("'{text}' is no ADDR:PORT like 0.0.0.0:8443, and no port"))
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_listens_everywhere() {
        assert_eq!(listen("8443").unwrap(), listen("0.0.0.0:8443").unwrap());
        assert_eq!(listen(":8443").unwrap(), listen("0.0.0.0:8443").unwrap());
        assert!(listen("localhost").is_err() && listen("99999").is_err());
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("35s"), Ok(Duration::from_secs(35)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("1d").is_err() && duration("s").is_err() && duration("-1s").is_err());
    }
}
