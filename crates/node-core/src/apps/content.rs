// SPDX-License-Identifier: Apache-2.0
//! Content trees and volumes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{ContentFormat, ContentTree, Datastore, DatastoreKind, DeviceConfig, VolumeOrigin};
use model::desired::{ContentDesired, ContentSource, RegistrySource, VolumeDesired};
use model::id::VolumeKey;
use model::reason::{Fault, Reason};

use super::{Desired, Faults, Memory, Observed, is_alive};

pub(super) fn plan_content(config: &DeviceConfig, desired: &mut Desired, faults: &mut Faults) {
    for tree in &config.content_trees {
        match content_of(config, tree) {
            Ok(content) => {
                desired.content.insert(tree.id, content);
            }
            Err(fault) => faults.content(tree.id, fault),
        }
    }
}

fn content_of(config: &DeviceConfig, tree: &ContentTree) -> Result<ContentDesired, Fault> {
    if tree.format != ContentFormat::Container {
        let message = format!("content tree {}: only container images can be used so far", tree.name);
        return Err(Fault::new(Reason::Unsupported, message));
    }
    let mut sources = Vec::new();
    for id in &tree.datastores {
        let store = config.datastore(*id).ok_or_else(|| {
            Fault::new(
                Reason::MissingReference,
                format!("content tree {}: datastore {id} is not in the config", tree.name),
            )
        })?;
        sources.push(source_of(store, tree)?);
    }
    if sources.is_empty() {
        let message = format!("content tree {} names no datastore", tree.name);
        return Err(Fault::new(Reason::MissingReference, message));
    }
    Ok(ContentDesired {
        id: tree.id,
        name: tree.name.clone(),
        generation: tree.generation,
        sources,
        digest: tree.digest,
        max_size_bytes: tree.max_size_bytes,
    })
}

fn source_of(store: &Datastore, tree: &ContentTree) -> Result<ContentSource, Fault> {
    if store.kind != DatastoreKind::ContainerRegistry {
        let message = format!("content tree {}: datastore {} is no container registry", tree.name, store.id);
        return Err(Fault::new(Reason::Unsupported, message));
    }
    let whole = [store.path.as_str(), tree.url.as_str()]
        .iter()
        .map(|part| part.trim_matches('/'))
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let (repository, reference) = split_reference(&whole);
    if repository.is_empty() {
        let message = format!("content tree {}: no repository in {whole:?}", tree.name);
        return Err(Fault::new(Reason::InvalidConfig, message));
    }
    let reference = match (tree.digest, reference) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(text)) => text.to_string(),
        (None, None) => String::from("latest"),
    };
    Ok(ContentSource {
        registry: RegistrySource {
            base_url: base_url(store),
            credentials: store.credentials.clone(),
            ca_pem: store.ca_pem.clone(),
        },
        repository: repository.to_string(),
        reference,
    })
}

/// `repository`, and the tag or digest behind it.
fn split_reference(whole: &str) -> (&str, Option<&str>) {
    if let Some((repository, digest)) = whole.split_once('@') {
        // name:tag@digest is legal; the digest decides
        let repository =
            repository.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(repository, |(r, _)| r);
        return (repository, Some(digest));
    }
    match whole.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (whole, None),
    }
}

/// Scheme, host and port. A scheme that was ordered stands. `docker://` is TLS, but for a loopback or private address
/// without a CA of its own: there the field's clients speak plain HTTP, and real controllers rely on it.
fn base_url(store: &Datastore) -> String {
    let fqdn = store.fqdn.trim_end_matches('/');
    if fqdn.starts_with("https://") || fqdn.starts_with("http://") {
        return fqdn.to_string();
    }
    let authority = fqdn.split_once("://").map_or(fqdn, |(_, rest)| rest);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let is_near = host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback() || address.is_private());
    let scheme = if is_near && store.ca_pem.is_empty() { "http" } else { "https" };
    format!("{scheme}://{authority}")
}

/// Volumes of the config, those an app will need after its purge, and those an app still runs from.
pub(super) fn plan_volumes(
    config: &DeviceConfig,
    observed: &Observed,
    memory: &Memory,
    previous: &Desired,
    desired: &mut Desired,
) {
    for volume in &config.volumes {
        let VolumeOrigin::Content(content) = volume.origin else { continue };
        let users: Vec<_> = config.apps.iter().filter(|app| app.volumes.contains(&volume.key)).collect();
        let mut keys: Vec<VolumeKey> = users
            .iter()
            .map(|app| effective(volume.key, memory.apps.get(&app.id).map_or(0, |m| m.local_generation)))
            .collect();
        if users.is_empty() {
            keys.push(volume.key);
        }
        for key in keys {
            desired.volumes.insert(key, VolumeDesired { key, name: volume.name.clone(), content });
        }
    }
    let in_use = memory.apps.iter().flat_map(|(id, entry)| {
        let runs = desired.apps.contains_key(id) || observed.apps.get(id).is_some_and(is_alive);
        let committed = entry.committed.iter().filter(move |_| runs).flat_map(|c| &c.volumes);
        committed.chain(entry.retired.values().flatten()).copied().collect::<Vec<_>>()
    });
    for key in in_use.collect::<Vec<_>>() {
        if let (false, Some(old)) = (desired.volumes.contains_key(&key), previous.volumes.get(&key)) {
            desired.volumes.insert(key, old.clone());
        }
    }
}

/// The volume a key of the config stands for after local purges.
pub(super) fn effective(key: VolumeKey, local_generation: u64) -> VolumeKey {
    VolumeKey { id: key.id, generation: key.generation.saturating_add(local_generation) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split_as_registries_write_them() {
        for (whole, repository, reference) in [
            ("web", "web", None),
            ("web:1", "web", Some("1")),
            ("team/web:1.2", "team/web", Some("1.2")),
            ("web@sha256:ab", "web", Some("sha256:ab")),
            ("team/web:1@sha256:ab", "team/web", Some("sha256:ab")),
        ] {
            assert_eq!(split_reference(whole), (repository, reference), "{whole}");
        }
    }

    #[test]
    fn scheme_follows_what_was_ordered() {
        let store = |fqdn: &str, ca: &[&str]| Datastore {
            id: model::id::DatastoreId(Default::default()),
            kind: DatastoreKind::ContainerRegistry,
            fqdn: fqdn.into(),
            path: String::new(),
            credentials: None,
            ca_pem: ca.iter().map(|c| c.to_string()).collect(),
        };
        for (fqdn, ca, url) in [
            ("docker://registry.example", &[][..], "https://registry.example"),
            ("docker://127.0.0.1:5000", &[], "http://127.0.0.1:5000"),
            ("docker://10.1.1.1:5000/", &[], "http://10.1.1.1:5000"),
            ("docker://10.1.1.1:8443", &["PEM"], "https://10.1.1.1:8443"),
            ("https://10.1.1.1:8443", &[], "https://10.1.1.1:8443"),
            ("http://registry.example:80", &["PEM"], "http://registry.example:80"),
            ("registry.example:5000", &[], "https://registry.example:5000"),
        ] {
            assert_eq!(base_url(&store(fqdn, ca)), url, "{fqdn}");
        }
    }
}
