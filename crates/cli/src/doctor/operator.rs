// SPDX-License-Identifier: Apache-2.0
//! The operator's side: the way to the controller, and its data directory where this machine has it.

use std::path::Path;

use controller::examine;
use controller_core::resource::Kind;
use serde_json::Value;

use super::{Findings, host, tls};
use crate::advice::Advice;
use crate::args::Connection;
use crate::client::{ApiError, Client, Target};
use crate::output::cell;

/// A certificate that is not renewed by itself: time to plan the exchange.
const DAYS_ODD: i64 = 90;
/// Certificates of TLS are renewed with 130 days left, so with less than this something hinders it.
const TLS_DAYS_ODD: i64 = 100;
/// Signatures are judged by clocks; minutes apart they still hold.
const SKEW_ODD_S: i64 = 30;
const SKEW_BAD_S: i64 = 300;
/// Names in one line.
const MAX_NAMES: usize = 5;

pub(super) fn look(connection: &Connection, findings: &mut Findings) {
    let data = connection.data.as_path();
    let is_local = data.join("intent.db").exists();
    if is_local {
        data_directory(data, findings);
    }
    let target = match Target::resolve(connection) {
        Ok(target) => target,
        Err(error) => {
            let advice = error.chain().find_map(|cause| cause.downcast_ref::<Advice>());
            let next = match advice {
                Some(advice) if !is_local => advice.next.clone(),
                _ => "start the controller once: selvedge serve".into(),
            };
            return findings.bad("settings", format!("{error:#}"), next);
        }
    };
    findings.good("settings", format!("the controller is {}", target.server));
    let Some(host_port) = target.server.strip_prefix("https://") else {
        let next = "the controller speaks HTTPS only: give --server https://HOST:PORT";
        return findings.bad("settings", format!("{} is no https:// address", target.server), next);
    };
    match tls::reach(host_port, &target.ca) {
        Err(failed) => return findings.bad("connection", failed.to_string(), failed.next()),
        Ok(reached) => reached_findings(&reached, findings),
    }
    match Client::new(&target) {
        Ok(client) => api(&client, findings),
        Err(error) => findings.bad("token", format!("{error:#}"), "give the right --ca and --token"),
    }
}

fn reached_findings(reached: &tls::Reached, findings: &mut Findings) {
    let ms = reached.round_trip.as_millis();
    findings.good("connection", format!("{} answers, {ms} ms away", reached.address));
    match reached.days_left {
        Some(days) if days < TLS_DAYS_ODD => findings.odd(
            "TLS",
            format!("the certificate ends in {days} days and was not renewed"),
            "see the controller's log for what hinders it, or restart the controller",
        ),
        Some(days) => findings.good("TLS", format!("the certificate holds for {days} days")),
        None => {
            findings.odd("TLS", "the certificate's end cannot be read", "restart the controller to renew it")
        }
    }
    match reached.skew_s.map(|skew| (skew, skew.abs())) {
        Some((skew, far)) if far > SKEW_BAD_S => findings.bad(
            "clock",
            format!("the controller's differs by {skew} s from ours"),
            "set the clock that is wrong (timedatectl); devices refuse what is signed in their future",
        ),
        Some((skew, far)) if far > SKEW_ODD_S => {
            findings.odd(
                "clock",
                format!("the controller's differs by {skew} s from ours"),
                "start NTP on both machines",
            );
        }
        Some((skew, _)) => findings.good("clock", format!("the controller's differs by {skew} s from ours")),
        None => {}
    }
}

fn data_directory(data: &Path, findings: &mut Findings) {
    let shown = data.display();
    if host::owner(data).is_some_and(|uid| uid != rustix::process::geteuid().as_raw())
        && !rustix::process::geteuid().is_root()
    {
        let what = format!("{shown} belongs to another user");
        return findings.odd("data", what, "run doctor as that user to have the directory looked at");
    }
    let names = [
        "",
        "admin-token",
        "pull-password",
        "intent.db",
        "pki",
        "pki/root.key.pem",
        "pki/signing.key.pem",
        "pki/ecdh.key.pem",
        "pki/tls.key.pem",
        "pki/iv.key",
        "observed",
    ];
    if host::private("data", data, &names, findings) {
        findings.good("data", format!("{shown} is closed to others"));
    }
    host::space("disk", data, "collect unused images (selvedge registry gc), or free some space", findings);
    match examine::database(&data.join("intent.db")) {
        Ok(()) => findings.good("database", "intent.db is whole"),
        Err(why) => findings.bad(
            "database",
            format!("intent.db: {why}"),
            "stop the controller and restore the last backup; keep the damaged file",
        ),
    }
    certificates(data, findings);
    registry(&data.join("registry"), findings);
}

fn certificates(data: &Path, findings: &mut Findings) {
    let mut soonest: Option<(i64, String)> = None;
    for certificate in examine::lifetimes(data) {
        let file = &certificate.file;
        let Some(days) = certificate.days_left else {
            if !certificate.is_renewed {
                let next = "restore the directory pki from a backup; devices trust only that root";
                findings.bad("certificates", format!("{file} cannot be read"), next);
            }
            continue;
        };
        if days <= 0 {
            let next = match file.as_str() {
                "pki/root-certificate.pem" => {
                    "nodes need a new root: make their config directories anew (node bundle)"
                }
                _ => {
                    "restart the controller: TLS is renewed; of the others remove the .cert.pem first, it is made anew from its key"
                }
            };
            findings.bad("certificates", format!("{file} ended {} days ago", -days), next);
        } else if days < DAYS_ODD && !certificate.is_renewed {
            let next = "plan its exchange while all devices are connected";
            findings.odd("certificates", format!("{file} ends in {days} days"), next);
        } else if soonest.as_ref().is_none_or(|(least, _)| days < *least) {
            soonest = Some((days, file.clone()));
        }
    }
    if let Some((days, file)) = soonest {
        findings.good("certificates", format!("the next to end is {file}, in {days} days"));
    }
}

fn registry(directory: &Path, findings: &mut Findings) {
    match examine::registry(directory) {
        Ok(found) if found.is_empty() => findings.good("registry", "every image is whole"),
        Ok(found) => {
            let first = found.iter().take(MAX_NAMES).map(|one| format!("{}: {}", one.repository, one.what));
            let more = if found.len() > MAX_NAMES {
                format!("; and {} more", found.len() - MAX_NAMES)
            } else {
                String::new()
            };
            let what = first.collect::<Vec<_>>().join("; ");
            findings.bad(
                "registry",
                format!("{what}{more}"),
                "push these images again, or delete their tags",
            );
        }
        Err(error) => {
            findings.bad(
                "registry",
                format!("{}: {error}", directory.display()),
                "run doctor as the controller's user",
            );
        }
    }
}

fn api(client: &Client, findings: &mut Findings) {
    let devices = match client.get(Kind::Device.plural()) {
        Ok(list) => list["items"].as_array().cloned().unwrap_or_default(),
        Err(error) => {
            let api = error.downcast_ref::<ApiError>();
            let next = api.and_then(|api| api.problem.next_step.clone());
            let next = next.unwrap_or_else(|| "see the controller's log".into());
            return findings.bad("token", format!("{error:#}"), next);
        }
    };
    findings.good("token", "is taken");
    if devices.is_empty() {
        return findings.odd("devices", "there are none yet", "selvedge node bundle --serial '*' --out DIR");
    }
    let total = devices.len();
    let are = |kind: &str| -> Vec<&Value> {
        devices.iter().filter(|device| status(device, kind) == Some("False")).collect()
    };
    let silent = are("Connected");
    match silent.as_slice() {
        [] => findings.good("devices", format!("all {total} are connected")),
        some => findings.odd(
            "devices",
            format!("{} of {total} are silent: {}", some.len(), names(some)),
            format!("selvedge describe device/{}", cell(some[0], "/metadata/name")),
        ),
    }
    // One that is silent cannot have taken anything.
    let behind: Vec<&Value> = are("ConfigApplied")
        .into_iter()
        .filter(|device| status(device, "Connected") == Some("True"))
        .collect();
    match behind.as_slice() {
        [] => findings.good("configs", "connected devices have taken theirs"),
        some => findings.odd(
            "configs",
            format!("{} devices have not taken theirs: {}", some.len(), names(some)),
            format!(
                "metrics tell within a minute or so; then: selvedge logs device/{0}",
                cell(some[0], "/metadata/name")
            ),
        ),
    }
    apps(client, findings);
}

fn apps(client: &Client, findings: &mut Findings) {
    let Ok(list) = client.get(Kind::App.plural()) else { return };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let faulty: Vec<&Value> = items
        .iter()
        .filter(|app| condition(app, "Ready").is_some_and(|ready| ready["reason"] == "Faulty"))
        .collect();
    match faulty.as_slice() {
        [] => findings.good("apps", format!("none of {} reports a fault", items.len())),
        some => findings.odd(
            "apps",
            format!("{} report faults: {}", some.len(), names(some)),
            format!("selvedge describe app/{}", cell(some[0], "/metadata/name")),
        ),
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn status<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    condition(object, kind)?["status"].as_str()
}

fn names(objects: &[&Value]) -> String {
    let mut names: Vec<String> =
        objects.iter().take(MAX_NAMES).map(|object| cell(object, "/metadata/name")).collect();
    if objects.len() > MAX_NAMES {
        names.push(format!("and {} more", objects.len() - MAX_NAMES));
    }
    names.join(", ")
}
