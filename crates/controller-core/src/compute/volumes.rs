// SPDX-License-Identifier: Apache-2.0
//! Volumes of apps, the files they are made of, and probes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use model::config::{ContentFormat, ContentTree, Datastore, DeviceConfig, Volume, VolumeOrigin, VolumeRef};
use model::id::{ContentTreeId, DatastoreId, VolumeKey};

use super::{Builder, Used, volume_id, wire_id};
use crate::flatten::digest;
use crate::image::{parse_image, parse_memory, parse_server};
use crate::intent::Object;
use crate::ledger::{Ledger, LedgerVolume};
use crate::resource::{AppSpec, AppVolumeSpec, FileSpec, ImageSpec, OnFailure, ProbeSpec, VolumeSpec};

/// What of a volume reaches an app only when it starts.
#[derive(serde::Serialize)]
pub(super) struct Place {
    mount_dir: String,
    max_size_bytes: u64,
    is_read_only: bool,
}

impl<'a> Builder<'a> {
    /// Adds an app's volumes besides its root to the config, and says how it uses them.
    pub(super) fn volumes(
        &self,
        app: &'a Object<AppSpec>,
        ledger: &mut Ledger,
        config: &mut DeviceConfig,
        used: &mut Used<'a>,
    ) -> Vec<VolumeRef> {
        let mut out = Vec::new();
        for volume in &app.spec.volumes {
            let key = match &volume.volume {
                Some(name) => self.named_volume(name, ledger, config, used),
                None => self.own_volume(app, volume, ledger, config),
            };
            out.extend(key.map(|key| VolumeRef { key, mount_dir: volume.mount_path.clone() }));
        }
        out
    }

    pub(super) fn places(&self, uses: &[VolumeRef], config: &DeviceConfig) -> Vec<Place> {
        let place = |used: &VolumeRef| {
            let volume = config.volume(used.key)?;
            Some(Place {
                mount_dir: used.mount_dir.clone(),
                max_size_bytes: volume.max_size_bytes,
                is_read_only: volume.is_read_only,
            })
        };
        uses.iter().filter_map(place).collect()
    }

    fn named_volume(
        &self,
        name: &str,
        ledger: &mut Ledger,
        config: &mut DeviceConfig,
        used: &mut Used<'a>,
    ) -> Option<VolumeKey> {
        let volume = self.inputs.intent.volumes.get(name)?;
        let spec = &volume.spec;
        let origin =
            digest(&(&spec.file, &spec.image, self.source(spec), spec.read_only, spec.purge_counter));
        let generation = ledger.volumes.entry(volume.uid).or_default().advance(origin);
        let key = VolumeKey { id: volume_id(LedgerVolume::Named(volume.uid), self.id), generation };
        if config.volume(key).is_some() {
            return Some(key);
        }
        let tree = ContentTreeId(wire_id(volume.uid, self.id, "content"));
        let (origin, shown) = match (&spec.file, &spec.image) {
            (Some(file), _) => {
                config.content_trees.push(self.file_tree(tree, name, file, generation)?);
                used.datastores.insert(&file.datastore);
                (VolumeOrigin::Content(tree), file.name.as_deref().unwrap_or(name))
            }
            (None, Some(image)) => {
                config.content_trees.push(self.image_tree(tree, name, image, generation)?);
                used.registries.insert(&image.registry);
                (VolumeOrigin::Content(tree), name)
            }
            (None, None) => (VolumeOrigin::Blank, name),
        };
        config.volumes.push(Volume {
            key,
            name: shown.into(),
            origin,
            max_size_bytes: spec.size.as_deref().and_then(|text| parse_memory(text).ok()).unwrap_or(0),
            is_read_only: spec.read_only,
        });
        Some(key)
    }

    fn own_volume(
        &self,
        app: &Object<AppSpec>,
        volume: &AppVolumeSpec,
        ledger: &mut Ledger,
        config: &mut DeviceConfig,
    ) -> Option<VolumeKey> {
        let path = &volume.mount_path;
        let image = volume
            .image
            .as_ref()
            .map(|image| ImageSpec { reference: image.clone(), registry: app.spec.registry.clone() });
        // A blank one keeps what was written into it when only its size is another.
        let origin = digest(&(&image, self.registry_address(&app.spec.registry), app.spec.purge_counter));
        let entry = ledger.apps.entry(app.uid).or_default().volumes.entry(path.clone()).or_default();
        let generation = entry.advance(origin);
        let id = volume_id(LedgerVolume::OfApp(app.uid, path), self.id);
        let key = VolumeKey { id, generation };
        let name = format!("{} {path}", app.name);
        let origin = match &image {
            None => VolumeOrigin::Blank,
            Some(image) => {
                let tree = ContentTreeId(wire_id(app.uid, self.id, &format!("content{path}")));
                config.content_trees.push(self.image_tree(tree, &name, image, generation)?);
                VolumeOrigin::Content(tree)
            }
        };
        config.volumes.push(Volume {
            key,
            name,
            origin,
            max_size_bytes: volume.blank.as_deref().and_then(|text| parse_memory(text).ok()).unwrap_or(0),
            is_read_only: image.is_some(),
        });
        Some(key)
    }

    /// Where a volume's content comes from: another server is another origin.
    fn source(&self, spec: &VolumeSpec) -> Option<(String, String)> {
        match (&spec.file, &spec.image) {
            // The digest says what it is, wherever it comes from.
            (Some(_), _) | (None, None) => None,
            (None, Some(image)) => self.registry_address(&image.registry),
        }
    }

    pub(super) fn file_tree(
        &self,
        id: ContentTreeId,
        name: &str,
        file: &FileSpec,
        generation: u64,
    ) -> Option<ContentTree> {
        Some(ContentTree {
            id,
            name: format!("{name} file"),
            datastores: alloc::vec![self.file_server_id(&file.datastore)],
            url: file.path.trim_start_matches('/').into(),
            format: ContentFormat::Raw,
            digest: Some(file.sha256.parse().ok()?),
            max_size_bytes: 0,
            generation: i64::try_from(generation).unwrap_or(i64::MAX),
        })
    }

    pub(super) fn image_tree(
        &self,
        id: ContentTreeId,
        name: &str,
        image: &ImageSpec,
        generation: u64,
    ) -> Option<ContentTree> {
        let reference = parse_image(&image.reference).ok()?;
        Some(ContentTree {
            id,
            name: format!("{name} image"),
            datastores: alloc::vec![self.datastore_id(&image.registry)],
            url: reference.text,
            format: ContentFormat::Container,
            digest: reference.digest,
            max_size_bytes: 0,
            generation: i64::try_from(generation).unwrap_or(i64::MAX),
        })
    }

    fn file_server_id(&self, name: &str) -> DatastoreId {
        let uid = self.inputs.intent.datastores.get(name).map(|store| store.uid).unwrap_or_default();
        DatastoreId(wire_id(uid, self.id, "datastore"))
    }

    pub(super) fn file_server(&self, name: &str) -> Option<Datastore> {
        let spec = &self.inputs.intent.datastores.get(name)?.spec;
        let (kind, fqdn, path) = parse_server(&spec.url).ok()?;
        let id = self.file_server_id(name);
        let credentials = self.credentials(id, &self.login(spec.credentials.as_deref()));
        Some(Datastore { id, kind, fqdn, path, credentials, ca_pem: spec.ca.clone().into_iter().collect() })
    }
}

/// A probe as its property carries it; `None` when it is none or both of http and tcp.
pub(crate) fn probe_text(probe: &ProbeSpec) -> Option<String> {
    let mut text = match (&probe.http, &probe.tcp) {
        (Some(http), None) => format!("http :{}{}", http.port, http.path.as_deref().unwrap_or("/")),
        (None, Some(tcp)) => format!("tcp :{}", tcp.port),
        _ => return None,
    };
    let numbers = [
        ("every", probe.every_seconds),
        ("timeout", probe.timeout_seconds),
        ("failures", probe.failures),
        ("grace", probe.grace_seconds),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            text.push_str(&format!(" {key}={value}"));
        }
    }
    text.push_str(match probe.on_failure {
        OnFailure::Restart => "",
        OnFailure::Report => " action=report",
    });
    Some(text.to_string())
}
