// SPDX-License-Identifier: Apache-2.0
//! Health probes. The standard has no field for them, so they stand in a configuration property per app, which any
//! controller can set and every other node passes over:
//!
//! ```text
//! selvedge.probe.<app uuid> = tcp :5432
//! selvedge.probe.<app uuid> = http :8080/healthz every=10 timeout=2 failures=3 grace=30 action=restart
//! ```
//!
//! Times are in seconds; what is left out has the value shown in the second line.

use alloc::format;
use alloc::string::{String, ToString};

use model::config::DeviceConfig;
use model::desired::{Probe, ProbeAction, ProbeKind};
use model::id::AppId;

/// What a property that holds a probe begins with.
const PREFIX: &str = "selvedge.probe.";
/// Longest path of a probe: its question is one packet.
const MAX_PATH_BYTES: usize = 512;
/// Longest time of any kind: an hour.
const MAX_S: u32 = 3600;
/// Most failures that are waited for.
const MAX_FAILURES: u32 = 1000;

/// The probe of an app; what cannot be read is none, and its property says why.
pub(super) fn of(config: &DeviceConfig, app: AppId) -> Option<Probe> {
    let key = format!("{PREFIX}{app}");
    let item = config.items.iter().find(|item| item.key == key)?;
    parse(&item.value).ok()
}

/// Whether a property is a probe, and what is wrong with it.
pub(crate) fn check(key: &str, value: &str) -> Option<Result<(), String>> {
    let app = key.strip_prefix(PREFIX)?;
    if app.parse::<AppId>().is_err() {
        return Some(Err(format!("{app:?} is no id of an app")));
    }
    Some(parse(value).map(|_| ()))
}

fn parse(text: &str) -> Result<Probe, String> {
    let mut words = text.split_ascii_whitespace();
    let kind = words.next().unwrap_or_default();
    let place = words.next().unwrap_or_default();
    let place = place.strip_prefix(':').ok_or_else(|| format!("{place:?} is no place like :8080/healthz"))?;
    let (port, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let port =
        port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| format!("{port:?} is no port"))?;
    let kind = match (kind, path) {
        ("tcp", "") => ProbeKind::Tcp,
        ("http", path) => {
            if path.len() > MAX_PATH_BYTES || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("the path is longer than {MAX_PATH_BYTES} or not printable"));
            }
            ProbeKind::Http { path: if path.is_empty() { "/".into() } else { path.into() } }
        }
        ("tcp", path) => return Err(format!("a tcp probe has no path {path:?}")),
        (other, _) => return Err(format!("{other:?} is neither http nor tcp")),
    };
    let action = ProbeAction::Restart;
    let mut probe = Probe { kind, port, every_s: 10, timeout_s: 2, failures: 3, grace_s: 30, action };
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no KEY=VALUE"))?;
        let number = |most| {
            let number = value.parse::<u32>().ok().filter(|number| (1..=most).contains(number));
            number.ok_or_else(|| format!("{key} is not within 1 to {most}"))
        };
        match key {
            "every" => probe.every_s = number(MAX_S)?,
            "timeout" => probe.timeout_s = number(MAX_S)?,
            "failures" => probe.failures = number(MAX_FAILURES)?,
            "grace" => probe.grace_s = number(MAX_S)?,
            "action" => {
                probe.action = match value {
                    "restart" => ProbeAction::Restart,
                    "report" => ProbeAction::Report,
                    other => {
                        return Err(format!("action {:?} is neither restart nor report", other.to_string()));
                    }
                }
            }
            other => return Err(format!("{other:?} is none of every, timeout, failures, grace, action")),
        }
    }
    Ok(probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_with_their_defaults() {
        let probe = |text| parse(text).unwrap();
        assert_eq!(
            probe("http :8080/healthz"),
            probe("http :8080/healthz every=10 timeout=2 failures=3 grace=30 action=restart")
        );
        assert_eq!(probe("tcp :22").kind, ProbeKind::Tcp);
        assert_eq!(probe("http :80").kind, ProbeKind::Http { path: "/".into() });
        assert_eq!(probe("tcp :22 action=report every=1").action, ProbeAction::Report);
        for bad in [
            "",
            "tcp",
            "tcp 22",
            "tcp :0",
            "tcp :70000",
            "tcp :22/x",
            "exec :1",
            "http :80/ every=0",
            "http :80/ every=4000",
            "http :80/ soon",
            "http :80/ often=1",
            "http :80/ action=reboot",
            "http :80/\u{e4}",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn properties_tell_what_is_wrong() {
        let app = "60000000-0000-4000-8000-000000000001";
        assert_eq!(check("timer.config.interval", "1"), None);
        assert_eq!(check(&format!("selvedge.probe.{app}"), "tcp :22"), Some(Ok(())));
        assert!(check(&format!("selvedge.probe.{app}"), "tcp").unwrap().is_err());
        assert!(check("selvedge.probe.web", "tcp :22").unwrap().is_err());
    }
}
