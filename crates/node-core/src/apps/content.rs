// SPDX-License-Identifier: Apache-2.0
//! Content trees: which images and files, and where from.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{ContentFormat, ContentTree, Datastore, DatastoreKind, DeviceConfig, VolumeOrigin};
use model::desired::{ContentDesired, ContentSource, ContentSources, FileSource, RegistrySource};
use model::id::ContentTreeId;
use model::reason::{Fault, Reason};

use super::{Desired, Faults};

pub(super) fn plan_content(config: &DeviceConfig, desired: &mut Desired, faults: &mut Faults) {
    for tree in config.content_trees.iter().filter(|tree| !is_of_base_os(config, tree.id)) {
        match content_of(config, tree) {
            Ok(content) => {
                desired.content.insert(tree.id, content);
            }
            Err(fault) => faults.content(tree.id, fault),
        }
    }
}

/// A version of the operating system goes into a slot, not among the content.
fn is_of_base_os(config: &DeviceConfig, id: ContentTreeId) -> bool {
    let is_used = || config.volumes.iter().any(|volume| volume.origin == VolumeOrigin::Content(id));
    config.base_os.as_ref().is_some_and(|os| os.content_tree == id) && !is_used()
}

pub(crate) fn content_of(config: &DeviceConfig, tree: &ContentTree) -> Result<ContentDesired, Fault> {
    let mut stores = Vec::new();
    for id in &tree.datastores {
        stores.push(config.datastore(*id).ok_or_else(|| {
            Fault::new(
                Reason::MissingReference,
                format!("content tree {}: datastore {id} is not in the config", tree.name),
            )
        })?);
    }
    if stores.is_empty() {
        let message = format!("content tree {} names no datastore", tree.name);
        return Err(Fault::new(Reason::MissingReference, message));
    }
    let stores = stores.into_iter();
    let sources = match tree.format {
        ContentFormat::Container => {
            ContentSources::Registries(stores.map(|store| image_of(store, tree)).collect::<Result<_, _>>()?)
        }
        ContentFormat::Raw => {
            if tree.digest.is_none() {
                let message = format!("content tree {}: a file needs its sha256", tree.name);
                return Err(Fault::new(Reason::InvalidConfig, message));
            }
            ContentSources::Servers(stores.map(|store| file_of(store, tree)).collect::<Result<_, _>>()?)
        }
        ContentFormat::Qcow2 | ContentFormat::Other(_) => {
            let message = format!(
                "content tree {}: format {:?} cannot be used by containers; files come as RAW",
                tree.name, tree.format
            );
            return Err(Fault::new(Reason::Unsupported, message));
        }
    };
    Ok(ContentDesired {
        id: tree.id,
        name: tree.name.clone(),
        generation: tree.generation,
        sources,
        digest: tree.digest,
        max_size_bytes: tree.max_size_bytes,
    })
}

/// URL of a file: server, path of the datastore, path of the content tree.
fn file_of(store: &Datastore, tree: &ContentTree) -> Result<FileSource, Fault> {
    let scheme = match store.kind {
        DatastoreKind::Http => "http",
        DatastoreKind::Https => "https",
        DatastoreKind::ContainerRegistry | DatastoreKind::Other(_) => {
            let message =
                format!("content tree {}: datastore {} is no HTTP or HTTPS server", tree.name, store.id);
            return Err(Fault::new(Reason::Unsupported, message));
        }
    };
    let fqdn = store.fqdn.trim_end_matches('/');
    let server = match fqdn.split_once("://") {
        Some((said, _)) if said == scheme => fqdn.to_string(),
        None if !fqdn.is_empty() => format!("{scheme}://{fqdn}"),
        _ => {
            let message = format!("content tree {}: {fqdn:?} is no {scheme} server", tree.name);
            return Err(Fault::new(Reason::InvalidConfig, message));
        }
    };
    let url = [server.as_str(), store.path.trim_matches('/'), tree.url.trim_start_matches('/')];
    Ok(FileSource {
        url: url.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"),
        credentials: store.credentials.clone(),
        ca_pem: store.ca_pem.clone(),
    })
}

fn image_of(store: &Datastore, tree: &ContentTree) -> Result<ContentSource, Fault> {
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

    fn tree(url: &str) -> ContentTree {
        ContentTree {
            id: model::id::ContentTreeId(Default::default()),
            name: "t".into(),
            datastores: Vec::new(),
            url: url.into(),
            format: ContentFormat::Raw,
            digest: None,
            max_size_bytes: 0,
            generation: 0,
        }
    }

    #[test]
    fn files_have_whole_urls() {
        let store = |kind, fqdn: &str, path: &str| Datastore {
            id: model::id::DatastoreId(Default::default()),
            kind,
            fqdn: fqdn.into(),
            path: path.into(),
            credentials: None,
            ca_pem: Vec::new(),
        };
        use DatastoreKind::{Http, Https};
        for (kind, fqdn, path, url, whole) in [
            (Http, "files.example", "", "a.bin", "http://files.example/a.bin"),
            (
                Https,
                "https://files.example:8443/",
                "/x/y/",
                "/d/a.bin",
                "https://files.example:8443/x/y/d/a.bin",
            ),
            (Http, "http://10.0.0.1", "", "/a?b=c", "http://10.0.0.1/a?b=c"),
        ] {
            assert_eq!(file_of(&store(kind, fqdn, path), &tree(url)).unwrap().url, whole);
        }
        for (kind, fqdn) in [(Https, "http://files.example"), (Http, ""), (Http, "ftp://a")] {
            let fault = file_of(&store(kind, fqdn, ""), &tree("a")).unwrap_err();
            assert_eq!(fault.reason, Reason::InvalidConfig, "{fqdn}");
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
