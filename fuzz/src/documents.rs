// SPDX-License-Identifier: Apache-2.0
//! What operators write: documents, the words in them, and whole intents made of them.

use std::collections::BTreeMap;
use std::path::Path;

use controller_core::compute::{Inputs, Site, compute};
use controller_core::image;
use controller_core::intent::Intent;
use controller_core::ledger::Ledger;
use controller_core::validate::problems;
use serde_json::Value;

// The reader of the command line, without the rest of it: arguments and output would double what is to be built.
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/cli/src/documents.rs"]
mod files;

/// A file as a person writes it. What the controller takes of it can be stored and read again.
pub(crate) fn yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(all) = files::parse(Path::new("f.yaml"), text) else { return };
    for document in &all {
        let _ = document.place("spec.ports[0].x");
        if let Ok(value) = document.value() {
            let _ = controller::untrusted::document(&value);
        }
    }
}

/// Documents in JSON, cut at zero bytes, as one intent. An intent without problems makes a config for every device that
/// the other side reads without a fault.
pub(crate) fn intent(data: &[u8]) {
    let mut intent = Intent::default();
    for part in super::parts(data).take(32) {
        if let Ok(value) = serde_json::from_slice::<Value>(part)
            && let Some(object) = controller::untrusted::document(&value)
        {
            intent.put(object);
        }
    }
    if !problems(&intent).is_empty() {
        return;
    }
    let site = Site {
        advertise: "controller.example:8443".into(),
        ca_pem: String::new(),
        cert_hash: "0".into(),
        epoch: 1,
        ..Site::default()
    };
    let mut ledgers: BTreeMap<String, Ledger> = BTreeMap::new();
    for device in intent.devices.keys() {
        let inputs = Inputs { intent: &intent, site: &site, device, seal: None };
        let before = ledgers.remove(device).unwrap_or_default();
        let Some(computed) = compute(inputs, &before, 1_735_689_600_000) else { continue };
        let again = compute(inputs, &computed.ledger, 1_735_689_600_000).expect("the device is there");
        assert_eq!(again.ledger, computed.ledger, "the same intent gives another config");
        let wire = eve_api::render::config_response(&computed.config, "hash");
        let read = eve_api::parse::config_response(&wire).expect("what is rendered can be read");
        let read = read.config.expect("and is there");
        assert!(read.faults.is_empty(), "{:?}", read.faults);
    }
}

/// Images, sizes, ports and addresses as they stand in documents.
pub(crate) fn words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = image::parse_image(&text);
    let _ = image::parse_memory(&text);
    let _ = image::parse_port_map(&text);
    let _ = image::parse_port_range(&text);
    let _ = image::parse_protocol(&text);
    let _ = image::parse_registry(&text, data.len().is_multiple_of(2));
    let _ = controller_core::validate::is_name(&text);
}
