// SPDX-License-Identifier: Apache-2.0
//! The exact difference between two configs of a device: what an operator reads before saying yes.
//!
//! Version and timestamp are left out: they say that something changed, not what.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use model::config::DeviceConfig;
use serde::{Deserialize, Serialize};

use crate::flatten::{Field, flatten};

/// What happens to an object of a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Op {
    Add,
    Change,
    Remove,
}

/// One object of a device's config that is added, changed or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ObjectChange {
    pub op: Op,
    /// `app`, `volume`, `network`, …
    pub kind: String,
    /// Name for people.
    pub name: String,
    /// Identity on the wire.
    pub id: String,
    pub fields: Vec<FieldChange>,
}

/// One field; absent on one side when it is added or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FieldChange {
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Everything that differs, in order of kind and identity. `None`: the device has or will have no config.
pub fn diff(old: Option<&DeviceConfig>, new: Option<&DeviceConfig>) -> Vec<ObjectChange> {
    let (old, new) = (old.map(entries).unwrap_or_default(), new.map(entries).unwrap_or_default());
    let mut keys: Vec<&Key> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().filter_map(|key| change(key, old.get(key), new.get(key))).collect()
}

/// Order in a plan, kind, identity.
type Key = (u8, &'static str, String);

struct Entry {
    name: String,
    fields: Vec<Field>,
}

fn change(key: &Key, old: Option<&Entry>, new: Option<&Entry>) -> Option<ObjectChange> {
    let op = match (old, new) {
        (None, Some(_)) => Op::Add,
        (Some(_), None) => Op::Remove,
        _ => Op::Change,
    };
    let empty = Vec::new();
    let before: BTreeMap<&str, &str> =
        old.map_or(&empty, |e| &e.fields).iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    let after: BTreeMap<&str, &str> =
        new.map_or(&empty, |e| &e.fields).iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    // Fields in the order in which they stand in the object.
    let mut paths: Vec<&str> =
        new.map_or(&empty, |e| &e.fields).iter().map(|(path, _)| path.as_str()).collect();
    for (path, _) in old.map_or(&empty, |e| &e.fields) {
        if !after.contains_key(path.as_str()) {
            paths.push(path);
        }
    }
    let fields: Vec<FieldChange> = paths
        .into_iter()
        .filter(|path| before.get(path) != after.get(path))
        .map(|path| FieldChange {
            path: path.into(),
            from: before.get(path).map(ToString::to_string),
            to: after.get(path).map(ToString::to_string),
        })
        .collect();
    if op == Op::Change && fields.is_empty() {
        return None;
    }
    let name = new.or(old).map(|entry| entry.name.clone()).unwrap_or_default();
    Some(ObjectChange { op, kind: key.1.into(), name, id: key.2.clone(), fields })
}

fn entries(config: &DeviceConfig) -> BTreeMap<Key, Entry> {
    let mut out = BTreeMap::new();
    let mut rest = config.clone();
    rest.version.clear();
    rest.timestamp = None;
    macro_rules! take {
        ($order:literal, $kind:literal, $list:ident, |$item:ident| $id:expr, $name:expr) => {
            for $item in core::mem::take(&mut rest.$list) {
                let entry = Entry { name: $name, fields: flatten(&$item) };
                out.insert(($order, $kind, $id), entry);
            }
        };
    }
    take!(1, "item", items, |item| item.key.clone(), item.key.clone());
    take!(2, "physicalIo", physical_ios, |io| io.logical_label.clone(), io.logical_label.clone());
    take!(3, "portNetwork", networks, |network| network.id.to_string(), network.id.to_string());
    take!(4, "port", system_adapters, |port| port.name.clone(), port.name.clone());
    take!(5, "cipherContext", cipher_contexts, |context| context.id.clone(), context.id.clone());
    take!(6, "network", network_instances, |network| network.id.to_string(), network.name.clone());
    take!(7, "datastore", datastores, |store| store.id.to_string(), format!("{}/{}", store.fqdn, store.path));
    take!(
        8,
        "contentTree",
        content_trees,
        |tree| tree.id.to_string(),
        format!("{} ({})", tree.name, tree.url)
    );
    take!(9, "volume", volumes, |volume| volume.key.to_string(), volume.name.clone());
    take!(10, "app", apps, |app| app.id.to_string(), app.name.clone());
    out.insert(
        (0, "device", config.id.to_string()),
        Entry { name: config.name.clone(), fields: flatten(&rest) },
    );
    out
}

#[cfg(test)]
mod tests;
