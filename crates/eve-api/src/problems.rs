// SPDX-License-Identifier: Apache-2.0
//! What a controller checks of a whole config before it publishes it: everything that would crash a real EVE device
//! (a missing sub-message, an initial value of the wrong length) or that no device could resolve.
//!
//! Looks at the wire form, since that is what a device gets, and at all of it, also at what the model does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::cipher::IV_BYTES;
use crate::parse::SHARED_LABELS;
use crate::wire::common::CipherBlock;
use crate::wire::config::{
    EdgeDevConfig, EveBinaryArtifact, VolumeContentOriginType, eve_binary_artifact::BinaryBlob,
};

/// Every reason not to publish; empty when there is none. Each names the object and the field.
pub fn problems(config: &EdgeDevConfig) -> Vec<String> {
    let mut out = Problems(Vec::new());
    let device = config.id.as_ref().map(|id| id.uuid.as_str()).unwrap_or_default();
    if !is_uuid(device) {
        out.add(format!("id.uuid {device:?} is no lower-case UUID"));
    }
    out.missing_messages(config);
    out.references(config);
    out.ports(config);
    for (place, block) in cipher_blocks(config) {
        if block.initial_value.len() != IV_BYTES {
            out.add(format!("{place}: initialValue of {} bytes", block.initial_value.len()));
        }
        if block.clear_text_sha256.len() != 32 {
            out.add(format!("{place}: clearTextSha256 of {} bytes", block.clear_text_sha256.len()));
        }
        if !config.cipher_contexts.iter().any(|context| context.context_id == block.cipher_context_id) {
            out.add(format!("{place}: cipher context {:?} does not exist", block.cipher_context_id));
        }
    }
    out.0
}

struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    /// The set of keys; each must stand once.
    fn keys<K: Ord + Copy + Display>(&mut self, what: &str, keys: impl Iterator<Item = K>) -> BTreeSet<K> {
        let mut counts = BTreeMap::<K, usize>::new();
        for key in keys {
            *counts.entry(key).or_default() += 1;
        }
        for (key, count) in counts.iter().filter(|(_, count)| **count > 1) {
            self.add(format!("{what} {key} defined {count} times"));
        }
        counts.into_keys().collect()
    }

    fn ids<'a>(&mut self, what: &str, ids: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
        let keys = self.keys(what, ids);
        for id in keys.iter().filter(|id| !is_uuid(id)) {
            self.add(format!("{what} {id:?} is no lower-case UUID"));
        }
        keys
    }

    fn refer(&mut self, from: impl Display, what: &str, to: &str, known: &BTreeSet<&str>) {
        if !known.contains(to) {
            self.add(format!("{from} → {what} {to:?} does not exist"));
        }
    }

    /// EVE uses these without looking whether they are there.
    fn missing_messages(&mut self, config: &EdgeDevConfig) {
        for app in &config.apps {
            if app.uuidandversion.is_none() {
                self.add(format!("app {:?} without uuidandversion", app.displayname));
            }
            if app.fixedresources.is_none() {
                self.add(format!("app {:?} without fixedresources", app.displayname));
            }
        }
        for instance in &config.network_instances {
            if instance.uuidandversion.is_none() {
                self.add(format!("network instance {:?} without uuidandversion", instance.displayname));
            }
        }
    }

    fn references(&mut self, config: &EdgeDevConfig) {
        let id = |id: &'_ Option<crate::wire::config::UuiDandVersion>| id.clone().unwrap_or_default().uuid;
        let app_ids: Vec<_> = config.apps.iter().map(|app| id(&app.uuidandversion)).collect();
        let instance_ids: Vec<_> = config.network_instances.iter().map(|i| id(&i.uuidandversion)).collect();
        let apps = self.ids("app", app_ids.iter().map(String::as_str));
        let instances = self.ids("network instance", instance_ids.iter().map(String::as_str));
        let stores = self.ids("datastore", config.datastores.iter().map(|store| store.id.as_str()));
        let trees = self.ids("content tree", config.content_info.iter().map(|tree| tree.uuid.as_str()));
        self.ids("volume", config.volumes.iter().map(|volume| volume.uuid.as_str()));
        self.keys("cipher context", config.cipher_contexts.iter().map(|context| context.context_id.as_str()));
        let volumes: BTreeSet<_> =
            config.volumes.iter().map(|v| (v.uuid.as_str(), v.generation_count)).collect();
        let groups: BTreeSet<_> = config
            .device_io_list
            .iter()
            .map(|io| io.assigngrp.as_str())
            .filter(|group| !group.is_empty())
            .collect();

        for app in &config.apps {
            let name = format!("app {:?}", app.displayname);
            for volume in &app.volume_ref_list {
                if !volumes.contains(&(volume.uuid.as_str(), volume.generation_count)) {
                    let key = format!("{}#{}", volume.uuid, volume.generation_count);
                    self.add(format!("{name} → volume {key} does not exist"));
                }
            }
            for interface in &app.interfaces {
                let from = format!("{name} interface {:?}", interface.name);
                self.refer(from, "network instance", &interface.network_id, &instances);
            }
            for adapter in &app.adapters {
                self.refer(&name, "assignment group", &adapter.name, &groups);
            }
        }
        for volume in &config.volumes {
            let name = format!("volume {:?}", volume.display_name);
            let origin = volume.origin.clone().unwrap_or_default();
            match VolumeContentOriginType::try_from(origin.r#type) {
                Ok(VolumeContentOriginType::VcotDownload) => {
                    self.refer(name, "content tree", &origin.download_content_tree_id, &trees);
                }
                Ok(VolumeContentOriginType::VcotBlank) => {}
                _ => self.add(format!("{name}: origin of type {}", origin.r#type)),
            }
        }
        for tree in &config.content_info {
            let name = format!("content tree {:?}", tree.display_name);
            let one = std::slice::from_ref(&tree.ds_id);
            let wanted = if tree.ds_ids_list.is_empty() { one } else { &tree.ds_ids_list };
            for store in wanted {
                self.refer(&name, "datastore", store, &stores);
            }
            if !tree.sha256.is_empty()
                && (tree.sha256.len() != 64 || !tree.sha256.bytes().all(|b| b.is_ascii_hexdigit()))
            {
                self.add(format!("{name}: sha256 {:?} is no digest", tree.sha256));
            }
        }
        if let Some(os) = config.baseos.as_ref().filter(|os| !os.content_tree_uuid.is_empty()) {
            self.refer("base OS", "content tree", &os.content_tree_uuid, &trees);
        }
        for patch in &config.patch_envelopes {
            for app in &patch.app_inst_ids_allowed {
                self.refer(format!("patch envelope {:?}", patch.display_name), "app", app, &apps);
            }
        }
    }

    fn ports(&mut self, config: &EdgeDevConfig) {
        let networks = self.ids("network", config.networks.iter().map(|network| network.id.as_str()));
        let ios = self.keys("physical IO", config.device_io_list.iter().map(|io| io.logicallabel.as_str()));
        if ios.contains("") {
            self.add("physical IO without logicallabel".to_owned());
        }
        let names = self.keys("system adapter", config.system_adapter_list.iter().map(|a| a.name.as_str()));
        if names.contains("") {
            self.add("system adapter without name".to_owned());
        }
        let below = |label: &str| {
            let ios = config.device_io_list.iter().map(|io| &io.logicallabel);
            let vlans = config.vlans.iter().map(|vlan| &vlan.logicallabel);
            let bonds = config.bonds.iter().map(|bond| &bond.logicallabel);
            ios.chain(vlans).chain(bonds).filter(|known| *known == label).count()
        };
        for adapter in &config.system_adapter_list {
            let name = format!("system adapter {:?}", adapter.name);
            let lower =
                if adapter.lower_layer_name.is_empty() { &adapter.name } else { &adapter.lower_layer_name };
            if below(lower) != 1 {
                self.add(format!("{name} → lower layer {lower:?} matches {} ports, not one", below(lower)));
            }
            if !adapter.network_uuid.is_empty() {
                self.refer(name, "network", &adapter.network_uuid, &networks);
            }
        }
        let bonds = config.bonds.iter().map(|bond| bond.logicallabel.as_str());
        let under_vlans: BTreeSet<_> = ios.iter().copied().chain(bonds).collect();
        for vlan in &config.vlans {
            self.refer(format!("VLAN {:?}", vlan.logicallabel), "port", &vlan.lower_layer_name, &under_vlans);
        }
        for bond in &config.bonds {
            for lower in &bond.lower_layer_names {
                self.refer(format!("bond {:?}", bond.logicallabel), "port", lower, &ios);
            }
        }
        let shared = config.system_adapter_list.iter().flat_map(|adapter| &adapter.shared_labels);
        let labels: BTreeSet<_> =
            names.iter().copied().chain(shared.map(String::as_str)).chain(SHARED_LABELS).collect();
        for instance in &config.network_instances {
            let port = instance.port.as_ref().map(|port| port.name.as_str()).unwrap_or_default();
            self.refer(format!("network instance {:?}", instance.displayname), "port label", port, &labels);
        }
    }
}

/// Every encrypted object of a config and where it stands.
fn cipher_blocks(config: &EdgeDevConfig) -> Vec<(String, &CipherBlock)> {
    let mut out = Vec::new();
    let mut push =
        |place: String, block| out.extend(Option::map(block, |block: &CipherBlock| (place, block)));
    for app in &config.apps {
        push(format!("app {:?} cipherData", app.displayname), app.cipher_data.as_ref());
    }
    for store in &config.datastores {
        push(format!("datastore {:?} cipherData", store.id), store.cipher_data.as_ref());
    }
    for network in &config.networks {
        let Some(wireless) = &network.wireless else { continue };
        for wifi in &wireless.wifi_cfg {
            push(format!("network {:?} wifi {:?}", network.id, wifi.wifi_ssid), wifi.cipher_data.as_ref());
        }
        for point in wireless.cellular_cfg.iter().flat_map(|cellular| &cellular.access_points) {
            push(
                format!("network {:?} access point {:?}", network.id, point.apn),
                point.cipher_data.as_ref(),
            );
        }
    }
    for profile in &config.scep_profiles {
        push(format!("SCEP profile {:?}", profile.profile_name), profile.scep_challenge_password.as_ref());
    }
    if let Some(cluster) = &config.cluster {
        push("cluster token".to_owned(), cluster.encrypted_cluster_token.as_ref());
    }
    for patch in &config.patch_envelopes {
        for artifact in &patch.artifacts {
            let place = format!("patch envelope {:?}", patch.display_name);
            push(place.clone(), artifact.metadata_cipher_data.as_ref());
            push(place, artifact_block(artifact));
        }
    }
    out
}

fn artifact_block(artifact: &EveBinaryArtifact) -> Option<&CipherBlock> {
    match artifact.binary_blob.as_ref()? {
        BinaryBlob::EncryptedInline(inline) => inline.cipher_data.as_ref(),
        BinaryBlob::EncryptedVolumeref(volume) => volume.cipher_data.as_ref(),
        BinaryBlob::Inline(_) | BinaryBlob::VolumeRef(_) => None,
    }
}

/// Lower case with hyphens: the form EVE compares as text.
fn is_uuid(text: &str) -> bool {
    let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.len() == 36
        && text.bytes().enumerate().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == b'-',
            _ => is_digit(c),
        })
}
