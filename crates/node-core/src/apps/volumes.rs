// SPDX-License-Identifier: Apache-2.0
//! Volumes: which are kept, how an app uses them, and what stands in the way.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use model::config::{AppInstance, ContentFormat, ContentTree, DeviceConfig, Volume, VolumeOrigin, VolumeRef};
use model::desired::{MountContent, MountDesired, VolumeDesired};
use model::id::VolumeKey;
use model::observed::{Image, MadeVolume};
use model::reason::{Fault, Reason};

use super::commit::is_wanted;
use super::{Desired, Memory, Observed, VolumeUse, is_alive};

/// Volumes of one app besides its root: each is a mount, and the kernel has limits of its own.
const MAX_MOUNTS: usize = 64;
/// `NAME_MAX` of Linux.
const MAX_NAME_BYTES: usize = 255;

/// What can be said of an app's volumes from the config alone.
pub(super) fn check(config: &DeviceConfig, app: &AppInstance) -> Result<(), Fault> {
    let invalid = |what: String| Fault::new(Reason::InvalidConfig, format!("app {} {what}", app.name));
    if app.volumes.is_empty() {
        return Err(invalid("has no root volume".into()));
    }
    if app.volumes.len() > MAX_MOUNTS {
        return Err(invalid(format!("has more than {MAX_MOUNTS} volumes")));
    }
    for (index, VolumeRef { key, mount_dir }) in app.volumes.iter().enumerate() {
        let Some(volume) = config.volume(*key) else {
            let message = format!("app {}: volume {key} is not in the config", app.name);
            return Err(Fault::new(Reason::MissingReference, message));
        };
        let tree = match volume.origin {
            VolumeOrigin::Blank => None,
            VolumeOrigin::Content(id) => Some(config.content_tree(id).ok_or_else(|| {
                let message = format!(
                    "app {}: content tree {id} of volume {} is not in the config",
                    app.name, volume.name
                );
                Fault::new(Reason::MissingReference, message)
            })?),
        };
        let is_image = |tree: &ContentTree| tree.format == ContentFormat::Container;
        if index == 0 {
            match tree {
                Some(tree) if is_image(tree) => {}
                Some(_) => {
                    return Err(invalid(format!("has a root volume {} that is no image", volume.name)));
                }
                None => return Err(invalid(format!("has a root volume {} without content", volume.name))),
            }
            continue;
        }
        if app.volumes[..index].iter().any(|other| other.key == *key) {
            return Err(invalid(format!("uses volume {} twice", volume.name)));
        }
        if mount_dir.trim_matches('/').is_empty() && !mount_dir.is_empty() {
            return Err(invalid(format!("cannot have volume {} mounted over its root", volume.name)));
        }
        // Files share a directory.
        let covers = |other: &&VolumeRef| !mount_dir.is_empty() && other.mount_dir == *mount_dir;
        let is_tree = tree.is_none_or(is_image);
        if is_tree && app.volumes[1..index].iter().any(|other| covers(&other)) {
            return Err(invalid(format!("has two volumes at {mount_dir}")));
        }
    }
    Ok(())
}

/// How an app is to use its volumes. The config has been [checked](check).
pub(super) fn uses(config: &DeviceConfig, app: &AppInstance, local_generation: u64) -> Vec<VolumeUse> {
    let use_of = |(index, VolumeRef { key, mount_dir }): (usize, &VolumeRef)| {
        let volume = config.volume(*key)?;
        Some(VolumeUse {
            key: effective(index, *key, local_generation),
            name: volume.name.clone(),
            mount_dir: mount_dir.clone(),
            max_size_bytes: volume.max_size_bytes,
            is_read_only: volume.is_read_only,
        })
    };
    app.volumes.iter().enumerate().filter_map(use_of).collect()
}

/// The image of the root and all other volumes, once every one of them stands.
pub(super) fn standing<'a>(
    uses: &[VolumeUse],
    observed: &'a Observed,
) -> Option<(&'a Image, Vec<MountDesired>)> {
    let (root, others) = uses.split_first()?;
    let image = observed.volumes.get(&root.key)?.image()?;
    let mounts = (1_u16..).zip(others).map(|(index, volume)| mount(index, volume, observed));
    Some((image, mounts.collect::<Option<_>>()?))
}

fn mount(index: u16, volume: &VolumeUse, observed: &Observed) -> Option<MountDesired> {
    let content = match observed.volumes.get(&volume.key)?.made.as_ref()? {
        MadeVolume::Directory => MountContent::Directory,
        MadeVolume::File(_) => MountContent::File,
        MadeVolume::StoredFile(digest) => MountContent::StoredFile(*digest),
        MadeVolume::Image(image) => MountContent::Tree(image.layers.clone()),
    };
    Some(MountDesired {
        volume: volume.key,
        index,
        name: file_name(&volume.name),
        dir: volume.mount_dir.clone(),
        content,
        is_read_only: volume.is_read_only,
        max_size_bytes: volume.max_size_bytes,
    })
}

fn file_name(name: &str) -> String {
    let is_fit = !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME_BYTES
        && !name.contains(['/', '\0'])
        && !name.contains(char::is_control);
    if is_fit { name.into() } else { String::new() }
}

/// Why an app must not run on: a volume of it is spoiled for now.
pub(super) fn obstacle(uses: &[VolumeUse], observed: &Observed) -> Option<Fault> {
    uses.iter().find_map(|volume| {
        let seen = observed.volumes.get(&volume.key)?;
        seen.fault.clone().filter(|_| seen.made.is_some())
    })
}

/// Volumes of the config, those an app will need after its purge, and those an app still runs from, or will run from as soon
/// as its interfaces are there: after a power cut nothing runs yet.
pub(super) fn plan_volumes(
    config: &DeviceConfig,
    observed: &Observed,
    memory: &Memory,
    previous: &Desired,
    desired: &mut Desired,
) {
    for volume in &config.volumes {
        for key in keys(config, memory, volume) {
            let wanted = VolumeDesired {
                key,
                name: volume.name.clone(),
                origin: volume.origin,
                max_size_bytes: volume.max_size_bytes,
                is_read_only: volume.is_read_only,
            };
            desired.volumes.insert(key, wanted);
        }
    }
    let in_use = memory.apps.iter().flat_map(|(id, entry)| {
        let is_to_run = config.apps.iter().any(|app| app.id == *id && is_wanted(config, app));
        let runs = is_to_run || desired.apps.contains_key(id) || observed.apps.get(id).is_some_and(is_alive);
        let committed = entry.committed.iter().filter(move |_| runs).flat_map(|c| &c.volumes).map(|v| v.key);
        committed.chain(entry.retired.values().flatten().copied()).collect::<Vec<_>>()
    });
    for key in in_use.collect::<Vec<_>>() {
        if let (false, Some(old)) = (desired.volumes.contains_key(&key), previous.volumes.get(&key)) {
            desired.volumes.insert(key, old.clone());
        }
    }
}

/// The volumes that stand for one of the config: what nobody uses as its root has only itself.
pub(super) fn keys(config: &DeviceConfig, memory: &Memory, volume: &Volume) -> Vec<VolumeKey> {
    let mut keys = Vec::new();
    for app in &config.apps {
        let local = memory.apps.get(&app.id).map_or(0, |m| m.local_generation);
        let place = app.volumes.iter().position(|used| used.key == volume.key);
        keys.extend(place.map(|index| effective(index, volume.key, local)));
    }
    if keys.is_empty() {
        keys.push(volume.key);
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The volume a key of the config stands for after local purges: they are of the root alone.
fn effective(index: usize, key: VolumeKey, local_generation: u64) -> VolumeKey {
    let added = if index == 0 { local_generation } else { 0 };
    VolumeKey { id: key.id, generation: key.generation.saturating_add(added) }
}
