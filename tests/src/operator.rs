// SPDX-License-Identifier: Apache-2.0
//! What tests do as operators of a laboratory: documents in few words, orders, and looking at what became of them.
//! A failure panics with what was last seen.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::http;
use crate::lab::{Lab, Place, descendants};
use crate::progress::wait_for;
use crate::toolbox;

/// Longest time from an order to what its user sees of it, when nothing has to be downloaded anew.
pub const SOON: Duration = Duration::from_secs(10);
/// The same for an order that stops an app first: it may take the whole stop timeout.
pub const STOPPED: Duration = Duration::from_secs(20);

/// A laboratory with the toolbox images as `box:TAG` in the controller's registry.
pub fn toolbox_lab(name: &str, number: u8) -> Lab {
    let lab = Lab::start(Place::new(name, number).unwrap()).unwrap();
    for variant in toolbox::VARIANTS {
        push(&lab, variant.tag, &format!("box:{}", variant.tag));
    }
    lab
}

pub fn push(lab: &Lab, tag: &str, to: &str) {
    lab.controller.push(&toolbox::layout(&lab.place.cache).unwrap(), tag, to).unwrap();
}

/// A document for `apply`; `spec` stands below `spec:` as it is.
pub fn document(kind: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: selvedge/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}---\n")
}

pub fn network(name: &str, subnet: &str) -> String {
    document("Network", name, &format!("kind: local\nsubnet: {subnet}"))
}

/// An app on every device that answers at a port of the node.
pub fn app(name: &str, image: &str, network: &str, port: u16, more: &str) -> String {
    let spec = format!(
        "image: {image}\nselector: {{}}\nnetworks: [{{network: {network}}}]\nports: ['{port}:80']\n\
         resources: {{cpus: 1, memory: 64Mi}}\n{more}"
    );
    document("App", name, &spec)
}

pub fn apply(lab: &Lab, text: &str) {
    lab.controller.apply("documents.yaml", text).unwrap();
}

pub fn object(lab: &Lab, what: &str) -> Value {
    serde_json::from_str(&lab.controller.cli(&["get", what, "-o", "json"]).unwrap()).unwrap()
}

/// The app's line of its only device.
pub fn on_device(lab: &Lab, app: &str) -> Value {
    object(lab, &format!("app/{app}"))["status"]["devices"][0].clone()
}

pub fn state(lab: &Lab, app: &str) -> String {
    on_device(lab, app)["state"].as_str().unwrap_or_default().to_owned()
}

pub fn wait_state(lab: &Lab, app: &str, wanted: &str, timeout: Duration) {
    let mut last = String::new();
    wait_for(&format!("app {app} is {wanted}"), timeout, || {
        last = state(lab, app);
        (last == wanted).then_some(())
    })
    .unwrap_or_else(|error| {
        panic!("{error}, it is {last}\n{}", lab.controller.cli(&["describe", &format!("app/{app}")]).unwrap())
    });
}

/// What `describe` says of an app, once it names a text.
pub fn wait_described(lab: &Lab, app: &str, wanted: &str, timeout: Duration) -> String {
    let mut last = String::new();
    wait_for(&format!("describe app/{app} says {wanted}"), timeout, || {
        last = lab.controller.cli(&["describe", &format!("app/{app}")]).unwrap_or_default();
        last.contains(wanted).then(|| last.clone())
    })
    .unwrap_or_else(|error| panic!("{error}:\n{last}"))
}

/// Answer of an app's port to `GET /`.
pub fn answer(lab: &Lab, port: u16) -> Option<String> {
    http::get(lab.app_address(port).unwrap(), "/", Duration::from_secs(1))
}

pub fn wait_answer(lab: &mut Lab, port: u16, wanted: &str, timeout: Duration) {
    let mut last = None;
    wait_for(&format!("port {port} answers {wanted:?}"), timeout, || {
        last = answer(lab, port);
        last.as_deref().is_some_and(|body| body == wanted).then_some(())
    })
    .unwrap_or_else(|error| {
        let apps = lab.controller.cli(&["get", "apps", "-o", "wide"]).unwrap_or_default();
        panic!("{error}, last {last:?}\n{apps}\n{}", lab.node.process().log_tail())
    });
}

pub fn wait_silent(lab: &Lab, port: u16, timeout: Duration) {
    wait_for(&format!("port {port} is silent"), timeout, || answer(lab, port).is_none().then_some(()))
        .unwrap();
}

/// Runs a command inside the app behind a port.
pub fn sh(lab: &Lab, port: u16, command: &str) -> String {
    let said = toolbox::sh(lab.app_address(port).unwrap(), command);
    said.unwrap_or_else(|| panic!("port {port} does not answer to: {command}"))
}

/// Processes of an app on the node.
pub fn pids(lab: &mut Lab, id: &str) -> Vec<u32> {
    let group = format!("app-{id}/app");
    let all = descendants(lab.node.process().pid()).unwrap();
    let is_in =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group));
    all.into_iter().filter(is_in).collect()
}
