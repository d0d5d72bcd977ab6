// SPDX-License-Identifier: Apache-2.0
//! The whole config: every list read by itself, then every reference followed.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use model::config::{
    AppInstance, ConfigFault, ConfigItem, ContentTree, DeviceConfig, NetworkConfig, ObjectRef, OpsCommand,
    PortAddressing, SystemAdapter, Volume, VolumeOrigin, VolumeRef,
};
use model::reason::Reason;

use super::bad::{Bad, Read, quote};
use super::{ParseError, app, network, storage, wall_time};
use crate::cipher::context_from_wire;
use crate::wire::config as wire;

/// Most objects of one kind; a box holds some dozens. Following references takes their square.
const MAX_OBJECTS: usize = 10_000;
/// Labels of ports that every node knows.
pub(crate) const SHARED_LABELS: [&str; 4] = ["", "all", "uplink", "freeuplink"];

pub(super) fn read(wire: &wire::EdgeDevConfig) -> Result<DeviceConfig, ParseError> {
    let id = wire.id.as_ref().ok_or(ParseError::NoDevice)?;
    let mut reader = Reader::default();
    let mut config = DeviceConfig::empty(id.uuid.parse().map_err(|_| ParseError::NoDevice)?);
    config.version = id.version.clone();
    config.timestamp = wire.config_timestamp.as_ref().map(wall_time);
    config.name = wire.device_name.clone();
    config.controller_cert_hash = wire.controllercert_confighash.clone();
    config.controller_epoch = wire.controller_epoch;
    config.items = wire
        .config_items
        .iter()
        .map(|item| ConfigItem { key: item.key.clone(), value: item.value.clone() })
        .collect();
    config.reboot = wire.reboot.as_ref().map(command);
    config.shutdown = wire.shutdown.as_ref().map(command);
    config.global_profile = wire.global_profile.clone();

    config.cipher_contexts = reader.list(
        "cipherContexts",
        &wire.cipher_contexts,
        |_| None,
        |w| context_from_wire(w).map_err(|why| Bad::unsupported("", why.to_string())),
        |context| context.id.clone(),
    );
    let contexts = &config.cipher_contexts;
    config.physical_ios = reader.list(
        "deviceIoList",
        &wire.device_io_list,
        |_| None,
        network::physical_io,
        |io| io.logical_label.clone(),
    );
    config.networks =
        reader.list("networks", &wire.networks, |_| None, network::network, |network| network.id);
    let adapters = reader.list(
        "systemAdapterList",
        &wire.system_adapter_list,
        |_| None,
        network::system_adapter,
        |(adapter, _)| adapter.name.clone(),
    );
    config.network_instances = reader.list(
        "networkInstances",
        &wire.network_instances,
        |w| w.uuidandversion.as_ref()?.uuid.parse().ok().map(ObjectRef::NetworkInstance),
        network::network_instance,
        |instance| instance.id,
    );
    config.datastores = reader.list(
        "datastores",
        &wire.datastores,
        |w| w.id.parse().ok().map(ObjectRef::Datastore),
        |w| storage::datastore(w, contexts),
        |store| store.id,
    );
    config.content_trees = reader.list(
        "contentInfo",
        &wire.content_info,
        |w| w.uuid.parse().ok().map(ObjectRef::ContentTree),
        storage::content_tree,
        |tree| tree.id,
    );
    config.volumes = reader.list(
        "volumes",
        &wire.volumes,
        |w| storage::volume_key("", &w.uuid, w.generation_count).ok().map(ObjectRef::Volume),
        storage::volume,
        |volume| volume.key,
    );
    config.apps = reader.list(
        "apps",
        &wire.apps,
        |w| app::app_id(w).ok().map(ObjectRef::App),
        |w| app::app(w, contexts),
        |app| app.id,
    );
    for (name, count) in [("vlans", wire.vlans.len()), ("bonds", wire.bonds.len())] {
        for index in 0..count {
            reader.refuse(None, Bad::unsupported("", "not supported").at(format!("{name}[{index}]")));
        }
    }

    // What is refused here is missed by what comes after it.
    config.system_adapters = reader.adapters(adapters, &mut config);
    reader.instances(&mut config, &wire.system_adapter_list);
    reader.content_trees(&mut config);
    reader.volumes(&mut config);
    reader.apps(&mut config);
    reader.base_os(wire, &mut config);
    config.faults = reader.faults;
    Ok(config)
}

fn command(wire: &wire::DeviceOpsCmd) -> OpsCommand {
    OpsCommand { counter: wire.counter, desired: wire.desired_state }
}

#[derive(Default)]
struct Reader {
    faults: Vec<ConfigFault>,
}

impl Reader {
    fn refuse(&mut self, object: Option<ObjectRef>, bad: Bad) {
        let fault = bad.into_fault();
        let path = || ObjectRef::Path(fault.message.split(": ").next().unwrap_or_default().to_owned());
        self.faults.push(ConfigFault { object: object.unwrap_or_else(path), fault });
    }

    /// Reads every element; what cannot be read or was read before goes to the faults.
    fn list<W, T, K: Ord>(
        &mut self,
        name: &str,
        wire: &[W],
        object: impl Fn(&W) -> Option<ObjectRef>,
        read: impl Fn(&W) -> Read<T>,
        key: impl Fn(&T) -> K,
    ) -> Vec<T> {
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        if wire.len() > MAX_OBJECTS {
            self.refuse(None, Bad::unsupported(name, format!("more than {MAX_OBJECTS} objects")));
        }
        for (index, element) in wire.iter().enumerate().take(MAX_OBJECTS) {
            let at = || format!("{name}[{index}]");
            match read(element) {
                Ok(value) if seen.insert(key(&value)) => out.push(value),
                // The first one stands, so the fault is not of the object but of the place.
                Ok(_) => self.refuse(None, Bad::invalid("", "defined twice").at(at())),
                Err(bad) => self.refuse(object(element), bad.at(at())),
            }
        }
        out
    }

    /// Keeps what passes `check`.
    fn check<T>(
        &mut self,
        list: &mut Vec<T>,
        object: impl Fn(&T) -> ObjectRef,
        check: impl Fn(&Self, &T) -> Read<()>,
    ) {
        let mut refused = Vec::new();
        list.retain(|value| match check(self, value) {
            Ok(()) => true,
            Err(bad) => {
                refused.push((object(value), bad));
                false
            }
        });
        for (object, bad) in refused {
            self.refuse(Some(object), bad);
        }
    }

    /// The fault of a reference to an object that is not there: its own, if it was refused, down to the root of it.
    fn dangling(&self, field: impl Into<String>, what: &str, object: &ObjectRef) -> Bad {
        const BECAUSE: &str = " cannot be used: ";
        match self.faults.iter().find(|known| known.object == *object) {
            Some(known) => {
                let root = known.fault.message.rsplit(BECAUSE).next().unwrap_or_default();
                Bad::new(known.fault.reason, field, format!("{what}{BECAUSE}{root}"))
            }
            None => Bad::missing(field, format!("{what} is not in the config")),
        }
    }

    fn adapters(
        &mut self,
        adapters: Vec<(SystemAdapter, Option<Ipv4Addr>)>,
        config: &mut DeviceConfig,
    ) -> Vec<SystemAdapter> {
        let mut out = Vec::new();
        for (adapter, address) in adapters {
            match check_adapter(&adapter, address, config) {
                Ok(()) => out.push(adapter),
                Err(bad) => {
                    let path = format!("systemAdapterList[{}]", quote(&adapter.name));
                    self.refuse(None, bad.at(path));
                }
            }
        }
        // EVE's rule: where none is marked, all are for management and free.
        if out.iter().all(|adapter| !adapter.is_uplink) {
            for adapter in &mut out {
                adapter.is_uplink = true;
                adapter.cost = 0;
            }
        }
        out
    }

    fn instances(&mut self, config: &mut DeviceConfig, adapters: &[wire::SystemAdapter]) {
        let labels: BTreeSet<&str> = adapters
            .iter()
            .flat_map(|adapter| std::iter::once(&adapter.name).chain(&adapter.shared_labels))
            .map(String::as_str)
            .chain(SHARED_LABELS)
            .collect();
        self.check(
            &mut config.network_instances,
            |instance| ObjectRef::NetworkInstance(instance.id),
            |_, instance| {
                if labels.contains(instance.port.as_str()) {
                    return Ok(());
                }
                let bad = Bad::missing("port.name", format!("port label {}", quote(&instance.port)));
                Err(bad.at(format!("networkInstances[{}]", instance.id)))
            },
        );
    }

    fn content_trees(&mut self, config: &mut DeviceConfig) {
        let mut trees = std::mem::take(&mut config.content_trees);
        let object = |tree: &ContentTree| ObjectRef::ContentTree(tree.id);
        self.check(&mut trees, object, |reader, tree| {
            // One that can be used is enough.
            if tree.datastores.iter().any(|id| config.datastore(*id).is_some()) {
                return Ok(());
            }
            let first = tree.datastores[0];
            let bad =
                reader.dangling("ds_ids_list", &format!("datastore {first}"), &ObjectRef::Datastore(first));
            Err(bad.at(format!("contentInfo[{}]", tree.id)))
        });
        for tree in &mut trees {
            tree.datastores.retain(|id| config.datastores.iter().any(|store| store.id == *id));
        }
        config.content_trees = trees;
    }

    fn volumes(&mut self, config: &mut DeviceConfig) {
        let mut volumes = std::mem::take(&mut config.volumes);
        self.check(
            &mut volumes,
            |volume: &Volume| ObjectRef::Volume(volume.key),
            |reader, volume| {
                let VolumeOrigin::Content(tree) = volume.origin else { return Ok(()) };
                if config.content_tree(tree).is_some() {
                    return Ok(());
                }
                let object = ObjectRef::ContentTree(tree);
                let bad =
                    reader.dangling("origin.downloadContentTreeID", &format!("content tree {tree}"), &object);
                Err(bad.at(format!("volumes[{}]", volume.key)))
            },
        );
        config.volumes = volumes;
    }

    /// The one order of today, else the first active one of the list of old controllers.
    fn base_os(&mut self, wire: &wire::EdgeDevConfig, config: &mut DeviceConfig) {
        let read = match &wire.baseos {
            Some(os) if !os.content_tree_uuid.is_empty() || !os.base_os_version.is_empty() => {
                storage::base_os(os).map_err(|bad| bad.at("baseos"))
            }
            _ => {
                let Some((at, os)) = wire.base.iter().enumerate().find(|(_, os)| os.activate) else { return };
                storage::base_os_before(os, &config.volumes).map_err(|bad| bad.at(format!("base[{at}]")))
            }
        };
        let checked = read.and_then(|os| match config.content_tree(os.content_tree) {
            Some(_) => Ok(os),
            None => {
                let id = os.content_tree;
                let object = ObjectRef::ContentTree(id);
                let bad = self.dangling("content_tree_uuid", &format!("content tree {id}"), &object);
                Err(bad.at("baseos"))
            }
        });
        match checked {
            Ok(os) => config.base_os = Some(os),
            Err(bad) => self.refuse(Some(ObjectRef::BaseOs), bad),
        }
    }

    fn apps(&mut self, config: &mut DeviceConfig) {
        let mut apps = std::mem::take(&mut config.apps);
        self.check(
            &mut apps,
            |app: &AppInstance| ObjectRef::App(app.id),
            |reader, app| reader.check_app(app, config).map_err(|bad| bad.at(format!("apps[{}]", app.id))),
        );
        config.apps = apps;
    }

    fn check_app(&self, app: &AppInstance, config: &DeviceConfig) -> Read<()> {
        for VolumeRef { key, .. } in &app.volumes {
            if config.volume(*key).is_none() {
                return Err(self.dangling(
                    "volumeRefList",
                    &format!("volume {key}"),
                    &ObjectRef::Volume(*key),
                ));
            }
        }
        for interface in &app.interfaces {
            if config.network_instance(interface.network).is_none() {
                let what = format!("network instance {}", interface.network);
                return Err(self.dangling(
                    "interfaces",
                    &what,
                    &ObjectRef::NetworkInstance(interface.network),
                ));
            }
        }
        for group in &app.adapters {
            if !config.physical_ios.iter().any(|io| !group.is_empty() && io.assignment_group == *group) {
                return Err(Bad::missing("adapters", format!("assignment group {}", quote(group))));
            }
        }
        Ok(())
    }
}

/// Follows an adapter's references, and gives its static network the adapter's address.
fn check_adapter(adapter: &SystemAdapter, address: Option<Ipv4Addr>, config: &mut DeviceConfig) -> Read<()> {
    let below = if adapter.lower_layer.is_empty() { &adapter.name } else { &adapter.lower_layer };
    if !config.physical_ios.iter().any(|io| io.logical_label == *below) {
        return Err(Bad::missing("lowerLayerName", format!("port {}", quote(below))));
    }
    let Some(id) = adapter.network else { return Ok(()) };
    let network = config.networks.iter_mut().find(|network| network.id == id);
    let Some(NetworkConfig { addressing, .. }) = network else {
        return Err(Bad::new(Reason::MissingReference, "networkUUID", format!("network {id}")));
    };
    let (Some(address), PortAddressing::Static { subnet, .. }) = (address, addressing) else { return Ok(()) };
    if !subnet.contains(address) {
        return Err(Bad::invalid("addr", format!("{address} is not in {subnet}")));
    }
    subnet.address = address;
    Ok(())
}
