// SPDX-License-Identifier: Apache-2.0
//! What the node's processes publish, as the agent reads it for its reports: one value of the whole.

use std::collections::BTreeMap;

use ipc::client::Topics;
use ipc::topics;
use model::observed::{
    AppMetrics, Blob, BoxMetrics, ContentState, LinkMetrics, NodeObserved, PortObserved, ServiceObserved,
    StorageObserved, VaultObserved,
};
use model::status::{
    AppStatus, BaseOsStatus, ConfigApplied, ContentTreeStatus, NetworkInstanceStatus, VolumeStatus,
};
use node_core::report::Subject;

/// Newest values of all topics the agent reads. A kind whose writer has not said "synced" misses only what is not
/// there yet; see [`World::is_synced`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub apps: BTreeMap<String, AppStatus>,
    pub contents: BTreeMap<String, ContentTreeStatus>,
    pub volumes: BTreeMap<String, VolumeStatus>,
    pub networks: BTreeMap<String, NetworkInstanceStatus>,
    /// Blobs of the store, without those that are in no image yet.
    pub blobs: Vec<Blob>,
    pub applied: Option<ConfigApplied>,
    pub node: Option<NodeObserved>,
    pub services: BTreeMap<String, ServiceObserved>,
    pub ports: BTreeMap<String, PortObserved>,
    pub storage: BTreeMap<String, StorageObserved>,
    pub app_metrics: BTreeMap<String, AppMetrics>,
    pub links: BTreeMap<String, LinkMetrics>,
    pub box_metrics: Option<BoxMetrics>,
    pub vault: Option<VaultObserved>,
    /// Nothing: the node is hosted.
    pub base_os: Option<BaseOsStatus>,
    /// The planner's topics are complete: what is absent is gone.
    pub is_synced: bool,
}

/// Objects that differ between two worlds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub changed: Vec<Subject>,
    pub gone: Vec<Subject>,
}

impl World {
    pub fn subscribe(topics: &mut impl Topics) {
        topics.subscribe::<topics::AppStatus>();
        topics.subscribe::<topics::ContentStatus>();
        topics.subscribe::<topics::ContentObserved>();
        topics.subscribe::<topics::VolumeStatus>();
        topics.subscribe::<topics::NetworkStatus>();
        topics.subscribe::<topics::ConfigApplied>();
        topics.subscribe::<topics::NodeObserved>();
        topics.subscribe::<topics::ServiceObserved>();
        topics.subscribe::<topics::PortObserved>();
        topics.subscribe::<topics::StorageObserved>();
        topics.subscribe::<topics::AppMetrics>();
        topics.subscribe::<topics::LinkMetrics>();
        topics.subscribe::<topics::BoxMetrics>();
        topics.subscribe::<topics::VaultObserved>();
        topics.subscribe::<topics::BaseOsStatus>();
    }

    /// The newest of everything.
    pub fn read(topics: &impl Topics) -> World {
        let blobs =
            topics.all::<topics::ContentObserved>().into_values().flat_map(|content| match content.state {
                ContentState::Loaded(image) => image.blobs,
                ContentState::LoadedFile(file) => vec![file],
                ContentState::ResolvingTag
                | ContentState::Downloading { .. }
                | ContentState::Verified { .. } => Vec::new(),
            });
        let mut blobs: Vec<Blob> = blobs.collect();
        blobs.sort_by_key(|blob| blob.digest);
        blobs.dedup_by_key(|blob| blob.digest);
        World {
            apps: topics.all::<topics::AppStatus>(),
            contents: topics.all::<topics::ContentStatus>(),
            volumes: topics.all::<topics::VolumeStatus>(),
            networks: topics.all::<topics::NetworkStatus>(),
            blobs,
            applied: topics.get::<topics::ConfigApplied>(""),
            node: topics.get::<topics::NodeObserved>(""),
            services: topics.all::<topics::ServiceObserved>(),
            ports: topics.all::<topics::PortObserved>(),
            storage: topics.all::<topics::StorageObserved>(),
            app_metrics: topics.all::<topics::AppMetrics>(),
            links: topics.all::<topics::LinkMetrics>(),
            box_metrics: topics.get::<topics::BoxMetrics>(""),
            vault: topics.get::<topics::VaultObserved>(""),
            base_os: topics.get::<topics::BaseOsStatus>(""),
            is_synced: topics.is_synced::<topics::AppStatus>() && topics.is_synced::<topics::VolumeStatus>(),
        }
    }

    /// What is to be reported after `self` was followed by `next`. The device itself is compared by its report.
    pub fn changes(&self, next: &World) -> Changes {
        let mut out = Changes::default();
        differ(&self.apps, &next.apps, |app| Subject::App(app.app), &mut out);
        differ(&self.networks, &next.networks, |network| Subject::NetworkInstance(network.id), &mut out);
        differ(&self.volumes, &next.volumes, |volume| Subject::Volume(volume.key), &mut out);
        differ(&self.contents, &next.contents, |tree| Subject::ContentTree(tree.id), &mut out);
        if self.blobs != next.blobs || self.contents != next.contents {
            out.changed.push(Subject::Blobs);
        }
        if !next.is_synced {
            out.gone.clear();
        }
        out
    }
}

fn differ<T: PartialEq>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    subject: impl Fn(&T) -> Subject,
    out: &mut Changes,
) {
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
    out.changed.extend(changed.map(|(_, value)| subject(value)));
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    out.gone.extend(gone.map(|(_, value)| subject(value)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::{VolumeId, VolumeKey};
    use model::status::SwState;
    use uuid::Uuid;

    fn volume(number: u128, used_bytes: u64) -> (String, VolumeStatus) {
        let key = VolumeKey { id: VolumeId(Uuid::from_u128(number)), generation: 0 };
        let status = VolumeStatus {
            key,
            name: "v".into(),
            state: SwState::Initial,
            progress_percent: 0,
            used_bytes,
            max_size_bytes: 0,
            users: 1,
            faults: vec![],
        };
        (key.to_string(), status)
    }

    fn subject(number: u128) -> Subject {
        Subject::Volume(VolumeKey { id: VolumeId(Uuid::from_u128(number)), generation: 0 })
    }

    #[test]
    fn only_what_differs_is_reported_and_absent_is_gone_only_when_synced() {
        let old = World { volumes: [volume(1, 0), volume(2, 0)].into(), ..World::default() };
        let mut new = World { volumes: [volume(2, 5), volume(3, 0)].into(), ..World::default() };
        assert_eq!(old.changes(&new), Changes { changed: vec![subject(2), subject(3)], gone: vec![] });
        new.is_synced = true;
        assert_eq!(old.changes(&new).gone, [subject(1)]);
        assert_eq!(new.changes(&new), Changes::default());
    }
}
