// SPDX-License-Identifier: Apache-2.0
//! All objects of one project: what the operator wants, as one value.

use alloc::collections::BTreeMap;
use alloc::string::String;

use uuid::Uuid;

use crate::resource::{
    AppSpec, BaseOsSpec, DatastoreSpec, DeviceSpec, JoinTokenSpec, Kind, NetworkSpec, RegistrySpec,
    SecretRef, SecretSpec, Spec, VolumeSpec,
};

/// One object as decisions see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<S> {
    pub name: String,
    pub uid: Uuid,
    pub labels: BTreeMap<String, String>,
    /// Rises with every change of `spec`.
    pub generation: u64,
    pub spec: S,
}

/// The objects of a project by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    pub devices: BTreeMap<String, Object<DeviceSpec>>,
    pub join_tokens: BTreeMap<String, Object<JoinTokenSpec>>,
    pub apps: BTreeMap<String, Object<AppSpec>>,
    pub networks: BTreeMap<String, Object<NetworkSpec>>,
    pub registries: BTreeMap<String, Object<RegistrySpec>>,
    pub datastores: BTreeMap<String, Object<DatastoreSpec>>,
    pub volumes: BTreeMap<String, Object<VolumeSpec>>,
    pub secrets: BTreeMap<String, Object<SecretSpec>>,
    pub base_oses: BTreeMap<String, Object<BaseOsSpec>>,
}

impl Intent {
    /// Adds an object or replaces the one of its name.
    pub fn put(&mut self, object: Object<Spec>) {
        let Object { name, uid, labels, generation, spec } = object;
        macro_rules! put {
            ($map:ident, $spec:expr) => {{
                let key = name.clone();
                self.$map.insert(key, Object { name, uid, labels, generation, spec: $spec });
            }};
        }
        match spec {
            Spec::Device(spec) => put!(devices, spec),
            Spec::JoinToken(spec) => put!(join_tokens, spec),
            Spec::App(spec) => put!(apps, spec),
            Spec::Network(spec) => put!(networks, spec),
            Spec::Registry(spec) => put!(registries, spec),
            Spec::Datastore(spec) => put!(datastores, spec),
            Spec::Volume(spec) => put!(volumes, spec),
            Spec::Secret(spec) => put!(secrets, spec),
            Spec::BaseOs(spec) => put!(base_oses, spec),
        }
    }

    /// Takes an object away; false when there was none.
    pub fn remove(&mut self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Device => self.devices.remove(name).is_some(),
            Kind::JoinToken => self.join_tokens.remove(name).is_some(),
            Kind::App => self.apps.remove(name).is_some(),
            Kind::Network => self.networks.remove(name).is_some(),
            Kind::Registry => self.registries.remove(name).is_some(),
            Kind::Datastore => self.datastores.remove(name).is_some(),
            Kind::Volume => self.volumes.remove(name).is_some(),
            Kind::Secret => self.secrets.remove(name).is_some(),
            Kind::BaseOs => self.base_oses.remove(name).is_some(),
        }
    }

    /// The value a reference names.
    pub fn secret(&self, reference: &SecretRef) -> Option<&str> {
        self.secrets.get(&reference.name)?.spec.data.get(&reference.key).map(String::as_str)
    }

    /// Apps chosen for a device, in order of their names.
    pub fn apps_of<'a>(
        &'a self,
        device: &'a Object<DeviceSpec>,
    ) -> impl Iterator<Item = &'a Object<AppSpec>> {
        self.apps.values().filter(|app| is_chosen(&app.spec, device))
    }

    /// The version of the operating system chosen for a device; of several, which is a fault, the first by name.
    pub fn base_os_of<'a>(&'a self, device: &Object<DeviceSpec>) -> Option<&'a Object<BaseOsSpec>> {
        self.base_oses.values().find(|os| is_base_os_of(&os.spec, device))
    }
}

/// Whether an app is to run on a device.
pub fn is_chosen(app: &AppSpec, device: &Object<DeviceSpec>) -> bool {
    is_selected(&app.devices, app.selector.as_ref(), device)
}

/// Whether a version of the operating system is to run on a device.
pub fn is_base_os_of(os: &BaseOsSpec, device: &Object<DeviceSpec>) -> bool {
    is_selected(&os.devices, os.selector.as_ref(), device)
}

fn is_selected(
    names: &[String],
    selector: Option<&BTreeMap<String, String>>,
    device: &Object<DeviceSpec>,
) -> bool {
    let carries = |labels: &BTreeMap<String, String>| {
        labels.iter().all(|(key, value)| device.labels.get(key) == Some(value))
    };
    names.contains(&device.name) || selector.is_some_and(carries)
}
