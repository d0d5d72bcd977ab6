// SPDX-License-Identifier: Apache-2.0
//! The endpoints of device API v2: one table for the side that asks and the side that answers.

use std::fmt;

/// Everything lies below this path.
pub const BASE: &str = "/api/v2/edgedevice";
/// Envelopes, both ways; also on empty 2xx answers, which EVE counts only with a content type.
pub const MIME_PROTO: &str = "application/x-proto-binary";
/// Server metrics in the answer to uploaded logs.
pub const MIME_JSON: &str = "application/json";
/// Serial number of a device that does not know its UUID yet.
pub const HEADER_SERIAL: &str = "X-Serial-Number";
/// Soft serial of the same.
pub const HEADER_SOFT_SERIAL: &str = "X-Soft-Serial";
/// Fresh UUID for each request.
pub const HEADER_REQUEST_ID: &str = "X-Request-Id";
/// Largest request body a controller need take.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// Largest answer a device need take.
pub const MAX_RESPONSE_BYTES: usize = 10 * 1024 * 1024;

/// A call with the ids as they stand in the path; nothing says yet that they are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint<'a> {
    Certs,
    Register,
    Uuid,
    Ping,
    /// `/id/{device}/…`
    Device {
        device: &'a str,
        call: DeviceCall<'a>,
    },
    /// `/apps/instanceid/{app}/newlogs`: the path as the standard's text prints it.
    AppNewlogs {
        app: &'a str,
    },
}

/// Calls of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceCall<'a> {
    Config,
    Attest,
    Info,
    Metrics,
    Newlogs,
    /// `/apps/instanceid/{app}/newlogs`: the path EVE uses.
    AppNewlogs {
        app: &'a str,
    },
    Flowlog,
    HardwareHealth,
    ProxyScep,
    /// Old form, no longer sent by EVE.
    Logs,
}

impl<'a> Endpoint<'a> {
    /// The endpoint of a URL path; `None` for anything not in the table.
    pub fn parse(path: &'a str) -> Option<Endpoint<'a>> {
        let mut parts = path.strip_prefix(BASE)?.strip_prefix('/')?.split('/');
        let first = parts.next()?;
        let endpoint = match first {
            "certs" => Endpoint::Certs,
            "register" => Endpoint::Register,
            "uuid" => Endpoint::Uuid,
            "ping" => Endpoint::Ping,
            "apps" => Endpoint::AppNewlogs { app: app_newlogs(&mut parts)? },
            "id" => {
                let device = parts.next().filter(|id| !id.is_empty())?;
                let call = match parts.next()? {
                    "config" => DeviceCall::Config,
                    "attest" => DeviceCall::Attest,
                    "info" => DeviceCall::Info,
                    "metrics" => DeviceCall::Metrics,
                    "newlogs" => DeviceCall::Newlogs,
                    "apps" => DeviceCall::AppNewlogs { app: app_newlogs(&mut parts)? },
                    "flowlog" => DeviceCall::Flowlog,
                    "hardwarehealth" => DeviceCall::HardwareHealth,
                    "proxy" => (parts.next()? == "scep").then_some(DeviceCall::ProxyScep)?,
                    "logs" => DeviceCall::Logs,
                    _ => return None,
                };
                Endpoint::Device { device, call }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(endpoint)
    }

    /// Every row of the table, for one device and one app.
    pub fn all(device: &'a str, app: &'a str) -> Vec<Endpoint<'a>> {
        let calls = [
            DeviceCall::Config,
            DeviceCall::Attest,
            DeviceCall::Info,
            DeviceCall::Metrics,
            DeviceCall::Newlogs,
            DeviceCall::AppNewlogs { app },
            DeviceCall::Flowlog,
            DeviceCall::HardwareHealth,
            DeviceCall::ProxyScep,
            DeviceCall::Logs,
        ];
        let calls = calls.map(|call| Endpoint::Device { device, call });
        let others = [
            Endpoint::Certs,
            Endpoint::Register,
            Endpoint::Uuid,
            Endpoint::Ping,
            Endpoint::AppNewlogs { app },
        ];
        others.into_iter().chain(calls).collect()
    }

    /// Asked by GET; all others by POST.
    pub fn is_get(&self) -> bool {
        matches!(self, Endpoint::Certs | Endpoint::Ping)
    }
}

fn app_newlogs<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if parts.next()? != "instanceid" {
        return None;
    }
    let app = parts.next().filter(|id| !id.is_empty())?;
    (parts.next()? == "newlogs").then_some(app)
}

impl fmt::Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BASE)?;
        match self {
            Endpoint::Certs => f.write_str("/certs"),
            Endpoint::Register => f.write_str("/register"),
            Endpoint::Uuid => f.write_str("/uuid"),
            Endpoint::Ping => f.write_str("/ping"),
            Endpoint::Device { device, call } => write!(f, "/id/{device}/{call}"),
            Endpoint::AppNewlogs { app } => write!(f, "/apps/instanceid/{app}/newlogs"),
        }
    }
}

impl fmt::Display for DeviceCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceCall::Config => "config",
            DeviceCall::Attest => "attest",
            DeviceCall::Info => "info",
            DeviceCall::Metrics => "metrics",
            DeviceCall::Newlogs => "newlogs",
            DeviceCall::AppNewlogs { app } => return write!(f, "apps/instanceid/{app}/newlogs"),
            DeviceCall::Flowlog => "flowlog",
            DeviceCall::HardwareHealth => "hardwarehealth",
            DeviceCall::ProxyScep => "proxy/scep",
            DeviceCall::Logs => "logs",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_reads_back_from_its_own_path() {
        // A new variant has to be numbered here, and then to be in the list.
        let number = |endpoint: &Endpoint<'_>| match endpoint {
            Endpoint::Certs => 0,
            Endpoint::Register => 1,
            Endpoint::Uuid => 2,
            Endpoint::Ping => 3,
            Endpoint::AppNewlogs { .. } => 4,
            Endpoint::Device { call, .. } => match call {
                DeviceCall::Config => 5,
                DeviceCall::Attest => 6,
                DeviceCall::Info => 7,
                DeviceCall::Metrics => 8,
                DeviceCall::Newlogs => 9,
                DeviceCall::AppNewlogs { .. } => 10,
                DeviceCall::Flowlog => 11,
                DeviceCall::HardwareHealth => 12,
                DeviceCall::ProxyScep => 13,
                DeviceCall::Logs => 14,
            },
        };
        let all = Endpoint::all("U", "A");
        assert_eq!(all.iter().map(number).collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
        for endpoint in all {
            assert_eq!(Endpoint::parse(&endpoint.to_string()), Some(endpoint), "{endpoint}");
        }
        assert_eq!(
            Endpoint::Device { device: "U", call: DeviceCall::AppNewlogs { app: "A" } }.to_string(),
            "/api/v2/edgedevice/id/U/apps/instanceid/A/newlogs"
        );
    }

    #[test]
    fn other_paths_are_no_endpoints() {
        for path in [
            "",
            "/",
            BASE,
            "/api/v2/edgedevice/",
            "/api/v2/edgedevice/certs/",
            "/api/v2/edgedevice/id//config",
            "/api/v2/edgedevice/id/U",
            "/api/v2/edgedevice/id/U/config/x",
            "/api/v2/edgedevice/id/U/proxy",
            "/api/v2/edgedevice/apps/instanceid//newlogs",
            "/api/v1/edgedevice/ping",
        ] {
            assert_eq!(Endpoint::parse(path), None, "{path}");
        }
    }
}
