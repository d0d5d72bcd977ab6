// SPDX-License-Identifier: Apache-2.0
//! Which devices a change can reach: of a large fleet only these are computed anew.
//!
//! Errs on the side of too many: a device that is named here may have the same config after all, one that is not has.

use alloc::collections::BTreeSet;

use crate::intent::Intent;
use crate::resource::Kind;

/// The devices that may get another config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected<'a> {
    is_everyone: bool,
    devices: BTreeSet<&'a str>,
    apps: BTreeSet<&'a str>,
    base_oses: BTreeSet<&'a str>,
}

impl<'a> Affected<'a> {
    /// By changes of these objects.
    pub fn by(changed: impl Iterator<Item = (Kind, &'a str)>) -> Affected<'a> {
        let mut out = Affected::default();
        for (kind, name) in changed {
            match kind {
                Kind::Device => {
                    out.devices.insert(name);
                }
                Kind::App => {
                    out.apps.insert(name);
                }
                Kind::BaseOs => {
                    out.base_oses.insert(name);
                }
                // Only those who join later see it.
                Kind::JoinToken => {}
                // Apps and other objects refer to it in many ways.
                _ => out.is_everyone = true,
            }
        }
        out
    }

    /// Whether this device is among them; `intents` are those before and after the change.
    pub fn includes(&self, device: &str, intents: &[&Intent]) -> bool {
        self.is_everyone
            || self.devices.contains(device)
            || intents.iter().any(|intent| {
                let Some(device) = intent.devices.get(device) else { return false };
                let mut apps = self.apps.iter().filter_map(|name| intent.apps.get(*name));
                let mut versions = self.base_oses.iter().filter_map(|name| intent.base_oses.get(*name));
                apps.any(|app| crate::intent::is_chosen(&app.spec, device))
                    || versions.any(|os| crate::intent::is_base_os_of(&os.spec, device))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Object;
    use crate::resource::{AppSpec, DeviceSpec, Spec};
    use alloc::vec::Vec;
    use uuid::Uuid;

    fn object<S>(name: &str, spec: S) -> Object<S> {
        Object { name: name.into(), uid: Uuid::nil(), labels: Default::default(), generation: 1, spec }
    }

    fn app(devices: &[&str]) -> Object<Spec> {
        let spec: AppSpec =
            serde_json::from_value(serde_json::json!({ "image": "a:1", "devices": devices })).unwrap();
        object("app", Spec::App(spec))
    }

    #[test]
    fn an_app_affects_the_devices_it_leaves_and_those_it_comes_to() {
        let mut before = Intent::default();
        for name in ["a", "b", "c"] {
            before.put(object(name, Spec::Device(DeviceSpec::default())));
        }
        before.put(app(&["a"]));
        let mut after = before.clone();
        after.put(app(&["b"]));
        let included = |kind, name| -> Vec<&str> {
            let affected = Affected::by([(kind, name)].into_iter());
            ["a", "b", "c"].into_iter().filter(|d| affected.includes(d, &[&before, &after])).collect()
        };
        assert_eq!(included(Kind::App, "app"), ["a", "b"]);
        assert_eq!(included(Kind::App, "other"), [""; 0]);
        assert_eq!(included(Kind::Device, "c"), ["c"]);
        assert_eq!(included(Kind::JoinToken, "t"), [""; 0]);
        assert_eq!(included(Kind::Network, "n"), ["a", "b", "c"]);
    }
}
