// SPDX-License-Identifier: Apache-2.0
//! Volumes of apps besides their roots.

use super::*;

/// The volume of an app besides its root.
fn second(number: u8) -> VolumeKey {
    VolumeKey { id: VolumeId(uuid(7, number)), generation: 0 }
}

/// `apps` with a volume of the origin each, mounted at `/data`.
fn with_second(apps: &mut [AppInstance], keys: &[VolumeKey], origin: VolumeOrigin) -> DeviceConfig {
    let mut config = config(apps);
    for (app, key) in apps.iter_mut().zip(keys) {
        app.volumes.push(VolumeRef { key: *key, mount_dir: "/data".into() });
        if config.volume(*key).is_none() {
            config.volumes.push(Volume {
                key: *key,
                name: "data".into(),
                origin,
                max_size_bytes: 1000,
                is_read_only: matches!(origin, VolumeOrigin::Content(_)),
            });
        }
    }
    config.apps = apps.to_vec();
    config
}

#[test]
fn an_app_waits_for_all_its_volumes_and_finds_them_where_ordered() {
    let mut world = World::new();
    let config = with_second(&mut [app(1)], &[second(1)], VolumeOrigin::Blank);
    world.settle(&config);
    assert_eq!(world.state(1), SwState::Running);
    let mount = &world.desired.apps[&AppId(uuid(6, 1))].mounts[0];
    assert_eq!(
        (mount.volume, mount.index, mount.dir.as_str(), mount.name.as_str()),
        (second(1), 1, "/data", "data")
    );
    assert_eq!((mount.max_size_bytes, &mount.content), (1000, &model::desired::MountContent::Directory));
}

#[test]
fn a_purge_leaves_volumes_besides_the_root_alone() {
    let mut world = World::new();
    let mut one = [app(1)];
    world.settle(&with_second(&mut one, &[second(1)], VolumeOrigin::Blank));
    let mut purged = [app(1)];
    purged[0].purge_counter = 1;
    world.settle(&with_second(&mut purged, &[second(1)], VolumeOrigin::Blank));
    let spec = &world.desired.apps[&AppId(uuid(6, 1))];
    assert_eq!((spec.root.generation, spec.mounts[0].volume), (1, second(1)));
}

#[test]
fn a_full_volume_stops_its_app_and_nothing_else_and_is_kept() {
    let mut world = World::new();
    let mut apps = [app(1), app(2)];
    let mut config = with_second(&mut apps, &[second(1), second(2)], VolumeOrigin::Blank);
    world.settle(&config);
    let full = model::reason::Fault::new(Reason::VolumeFull, "full");
    world.observed.volumes.get_mut(&second(1)).unwrap().fault = Some(full);
    world.settle(&config);
    assert_eq!((world.state(1), world.state(2)), (SwState::Failed, SwState::Running));
    assert_eq!(world.reasons(1), [Reason::VolumeFull]);
    assert!(world.desired.volumes.contains_key(&second(1)));
    assert_eq!(world.last.as_ref().unwrap().status.volumes[&second(1)].faults.len(), 1);
    // Given more room, it goes on with what it holds.
    config.volumes.iter_mut().find(|volume| volume.key == second(1)).unwrap().max_size_bytes = 5000;
    world.observed.volumes.get_mut(&second(1)).unwrap().fault = None;
    world.settle(&config);
    assert_eq!(world.state(1), SwState::Running);
    assert_eq!(world.desired.apps[&AppId(uuid(6, 1))].mounts[0].max_size_bytes, 5000);
}

#[test]
fn a_volume_is_shared_by_those_who_only_read_it() {
    let mut world = World::new();
    let mut apps = [app(1), app(2)];
    let tree = ContentTreeId(uuid(4, 1));
    let shared = with_second(&mut apps, &[second(1), second(1)], VolumeOrigin::Content(tree));
    world.settle(&shared);
    assert_eq!((world.state(1), world.state(2)), (SwState::Running, SwState::Running));
    let mut world = World::new();
    let mut apps = [app(1), app(2)];
    world.settle(&with_second(&mut apps, &[second(1), second(1)], VolumeOrigin::Blank));
    assert_eq!((world.state(1), world.state(2)), (SwState::Running, SwState::Failed));
    assert_eq!(world.reasons(2), [Reason::VolumeInUse]);
}

#[test]
fn a_file_becomes_a_volume_and_a_root_it_cannot_be() {
    let mut world = World::new();
    let mut config =
        with_second(&mut [app(1)], &[second(1)], VolumeOrigin::Content(ContentTreeId(uuid(4, 9))));
    config.datastores.push(Datastore {
        id: DatastoreId(uuid(3, 2)),
        kind: DatastoreKind::Https,
        fqdn: "files.example".into(),
        ..config.datastores[0].clone()
    });
    config.content_trees.push(ContentTree {
        id: ContentTreeId(uuid(4, 9)),
        datastores: vec![DatastoreId(uuid(3, 2))],
        url: "a.bin".into(),
        format: ContentFormat::Raw,
        digest: Some(Digest([9; 32])),
        ..config.content_trees[0].clone()
    });
    world.settle(&config);
    assert_eq!(world.state(1), SwState::Running);
    let mount = &world.desired.apps[&AppId(uuid(6, 1))].mounts[0];
    assert_eq!((&mount.content, mount.is_read_only), (&model::desired::MountContent::File, true));
    let mut swapped = config;
    swapped.apps[0].volumes.swap(0, 1);
    let mut world = World::new();
    world.settle(&swapped);
    assert_eq!((world.state(1), world.reasons(1)), (SwState::Failed, vec![Reason::InvalidConfig]));
}
