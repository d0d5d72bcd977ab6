// SPDX-License-Identifier: Apache-2.0
//! Reads the planner's file of the format before: apps had a root volume and no other, no probe, no start delay.
//!
//! The orders that stood are not read: they are planned again from the config and what is read here, before any other
//! process acts. What an app was last started with stays, so it runs on and keeps its numbers, addresses and volume.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::config::{AppInterface, Resources, UserData, VirtualizationMode};
use model::desired::{AppDesired, ImageConfig};
use model::id::{AppId, Digest, NetworkInstanceId, VolumeKey};
use node_core::apps::{self, VolumeUse};
use serde::Deserialize;

use super::{Desired, Memory};

pub(super) const FORMAT: u8 = 1;

#[derive(Deserialize)]
struct MemoryBefore {
    apps: BTreeMap<AppId, AppMemory>,
    networks: BTreeMap<NetworkInstanceId, u16>,
}

#[derive(Deserialize)]
struct AppMemory {
    number: u16,
    local_generation: u64,
    purge_counter: u32,
    instance: u64,
    leases: BTreeMap<(NetworkInstanceId, String), Ipv4Addr>,
    committed: Option<Committed>,
    retired: BTreeMap<u64, Vec<VolumeKey>>,
}

#[derive(Deserialize)]
struct Committed {
    restart_counter: u32,
    purge_counter: u32,
    resources: Resources,
    volumes: Vec<VolumeKey>,
    interfaces: Vec<AppInterface>,
    user_data: Option<UserData>,
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    app: AppId,
    name: String,
    instance: u64,
    mode: VirtualizationMode,
    memory_bytes: u64,
    vcpus: u32,
    root: VolumeKey,
    image: ImageConfig,
    layers: Vec<Digest>,
    vif_count: u16,
    dns: Vec<Ipv4Addr>,
    user_data: Option<UserData>,
}

pub(super) fn read(body: &[u8]) -> Result<(Memory, Desired), postcard::Error> {
    let (memory, _orders) = postcard::take_from_bytes::<MemoryBefore>(body)?;
    let apps = memory.apps.into_iter().map(|(id, app)| (id, app.into())).collect();
    Ok((Memory { apps, networks: memory.networks }, Desired::default()))
}

impl From<AppMemory> for apps::AppMemory {
    fn from(old: AppMemory) -> Self {
        apps::AppMemory {
            number: old.number,
            local_generation: old.local_generation,
            purge_counter: old.purge_counter,
            instance: old.instance,
            leases: old.leases,
            committed: old.committed.map(Into::into),
            retired: old.retired,
        }
    }
}

impl From<Committed> for apps::Committed {
    fn from(old: Committed) -> Self {
        // What was not told of them then is taken in at the app's next start.
        let used = |key| VolumeUse {
            key,
            name: String::new(),
            mount_dir: String::new(),
            max_size_bytes: 0,
            is_read_only: false,
        };
        apps::Committed {
            restart_counter: old.restart_counter,
            purge_counter: old.purge_counter,
            resources: old.resources,
            volumes: old.volumes.into_iter().map(used).collect(),
            interfaces: old.interfaces,
            user_data: old.user_data,
            probe: None,
            spec: old.spec.into(),
        }
    }
}

impl From<Spec> for AppDesired {
    fn from(old: Spec) -> Self {
        AppDesired {
            app: old.app,
            name: old.name,
            instance: old.instance,
            mode: old.mode,
            memory_bytes: old.memory_bytes,
            vcpus: old.vcpus,
            root: old.root,
            root_size_bytes: 0,
            mounts: Vec::new(),
            image: old.image,
            layers: old.layers,
            vif_count: old.vif_count,
            dns: old.dns,
            user_data: old.user_data,
            start_delay_s: 0,
            probe: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::StateFile;
    use super::*;
    use service::files::Directory;
    use std::fs;

    /// Written by the last software that wrote this format.
    const FILE: &[u8] = include_bytes!("format-1.golden");

    fn load(bytes: &[u8]) -> Result<(Memory, Desired), super::super::StateError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state"), bytes).unwrap();
        StateFile::new(Box::new(Directory::new(dir.path()))).load()
    }

    #[test]
    fn a_file_of_the_format_before_keeps_numbers_addresses_generations_and_what_runs() {
        let (memory, desired) = load(FILE).unwrap();
        assert_eq!(desired, Desired::default());
        let id = |number| format!("60000000-0000-4000-8000-00000000000{number}");
        let (first, second): (AppId, AppId) = (id(1).parse().unwrap(), id(2).parse().unwrap());
        let network: NetworkInstanceId = id(3).parse().unwrap();
        let root = |generation| VolumeKey { id: id(4).parse().unwrap(), generation };
        assert_eq!(memory.networks, [(network, 1)].into());
        assert_eq!(memory.apps[&second].number, 6);
        let app = &memory.apps[&first];
        assert_eq!((app.number, app.local_generation, app.purge_counter, app.instance), (7, 4, 2, 9));
        assert_eq!(app.leases, [((network, "eth0".into()), "10.1.0.2".parse().unwrap())].into());
        assert_eq!(app.retired, [(8, vec![root(4)])].into());
        let committed = app.committed.as_ref().unwrap();
        assert_eq!((committed.restart_counter, committed.purge_counter), (3, 2));
        assert_eq!(committed.volumes.iter().map(|volume| volume.key).collect::<Vec<_>>(), [root(5)]);
        assert_eq!(committed.interfaces[0].name, "eth0");
        let spec = &committed.spec;
        assert_eq!((&*spec.name, spec.instance, spec.root, spec.memory_bytes), ("web", 9, root(5), 64 << 20));
        assert_eq!(spec.layers, [Digest([7; 32]), Digest([8; 32])]);
        assert_eq!((&*spec.image.user, &*spec.image.stop_signal), ("web", "SIGINT"));
        assert_eq!(spec.user_data, Some(UserData::Clear("A=c".into())));
    }

    #[test]
    fn a_torn_file_of_the_format_before_is_told() {
        for length in 0..FILE.len() {
            assert!(load(&FILE[..length]).is_err(), "{length}");
        }
    }
}
