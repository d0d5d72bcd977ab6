// SPDX-License-Identifier: Apache-2.0
//! What lies on the disk, below the store's own directory:
//!
//! | path | what | whole because |
//! |---|---|---|
//! | `blobs/HEX` | manifests and configs, named by their digest | checked when read |
//! | `layers/HEX` | unpacked layers, named by diff id or chain id | renamed after a sync, and `layer-info/HEX` exists |
//! | `images/ID` | what a content tree holds: [`ImageRecord`] | written last, by rename |
//! | `volumes/KEY/{upper,work,volume}` | a writable layer and the image below it | renamed when complete |
//! | `tmp/` | work in progress | put aside at the start |
//! | `trash/` | what is to be deleted, by a thread that takes its time | – |
//!
//! Whatever does not fit at the start is dropped, with a reason in the log, and fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use model::desired::ContentDesired;
use model::id::{ContentTreeId, Digest, VolumeKey};
use model::observed::Image;
use model::reason::{Fault, Reason};
use oci::digest;
use oci::unpack::Owners;
use rustix::fs::{CWD, Mode, RenameFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of every record; readers take this one and the one before, of which there is none yet.
const FORMAT: u32 = 1;
/// Largest record read.
const MAX_RECORD_BYTES: u64 = 8 << 20;

/// Files of a volume that are counted at most: an app can make any number.
const MAX_LOOKED_AT: usize = 1_000_000;

/// What a content tree holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    format: u32,
    pub id: ContentTreeId,
    pub order: Order,
    pub image: Image,
}

/// The part of an order that decides what is to be held. When it changes the image is looked up again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub generation: i64,
    pub digest: Option<Digest>,
    /// Registry, repository and reference of each source; with a digest they do not matter.
    pub names: Vec<String>,
}

impl ImageRecord {
    pub fn new(id: ContentTreeId, order: Order, image: Image) -> ImageRecord {
        ImageRecord { format: FORMAT, id, order, image }
    }
}

impl Order {
    pub fn of(desired: &ContentDesired) -> Order {
        let names = desired
            .sources
            .iter()
            .map(|from| format!("{}/{} {}", from.registry.base_url, from.repository, from.reference));
        let names = if desired.digest.is_some() { Vec::new() } else { names.collect() };
        Order { generation: desired.generation, digest: desired.digest, names }
    }

    /// Content held for this order serves the other one too.
    pub fn serves(&self, other: &Order) -> bool {
        // The same digest is the same content, whatever the generation.
        if self.digest.is_some() { self.digest == other.digest } else { self == other }
    }
}

/// What is known of an unpacked layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    format: u32,
    /// Bytes in its files.
    pub bytes: u64,
    /// It says what the root of the tree looks like.
    pub has_root: bool,
}

impl LayerInfo {
    pub fn new(bytes: u64, has_root: bool) -> LayerInfo {
        LayerInfo { format: FORMAT, bytes, has_root }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct VolumeRecord {
    format: u32,
    image: Image,
}

/// Something about the disk that did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct StorageError {
    what: &'static str,
    path: String,
    #[source]
    pub source: io::Error,
}

impl StorageError {
    pub fn new(what: &'static str, path: &Path, source: io::Error) -> StorageError {
        failed(what, path)(source)
    }

    pub fn fault(&self) -> Fault {
        let full = matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let reason = if full { Reason::DiskFull } else { Reason::StorageFailed };
        Fault::new(reason, format!("{self}: {}", self.source))
    }
}

fn failed<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> StorageError + use<'p> {
    move |source| StorageError { what, path: path.display().to_string(), source }
}

/// The store's directory. Shared by the main loop and the pulling threads.
#[derive(Debug)]
pub struct Catalog {
    root: PathBuf,
    owners: Owners,
    state: Mutex<State>,
    next_number: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    layers: BTreeMap<Digest, LayerInfo>,
    images: BTreeMap<ContentTreeId, ImageRecord>,
    volumes: BTreeMap<VolumeKey, Image>,
}

/// Something found at the start that was dropped.
pub type Dropped = String;

impl Catalog {
    /// Opens the store's directory and looks through it.
    pub fn open(root: &Path, owners: Owners) -> Result<(Catalog, Vec<Dropped>), StorageError> {
        for name in ["", "blobs", "layers", "layer-info", "images", "volumes", "tmp", "trash"] {
            let path = root.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(failed("make directory", &path))?;
        }
        let catalog =
            Catalog { root: root.into(), owners, state: Mutex::default(), next_number: AtomicU64::new(0) };
        let numbers = list(&root.join("trash"))?.into_iter().filter_map(|(name, _)| name.parse::<u64>().ok());
        catalog.next_number.store(numbers.max().map_or(0, |last| last.saturating_add(1)), Ordering::Relaxed);
        for (_, path) in list(&root.join("tmp"))? {
            catalog.put_aside(&path)?;
        }
        let mut dropped = Vec::new();
        let state = catalog.scan(&mut dropped)?;
        *catalog.lock() = state;
        Ok((catalog, dropped))
    }

    pub fn owners(&self) -> Owners {
        self.owners
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn images(&self) -> BTreeMap<ContentTreeId, ImageRecord> {
        self.lock().images.clone()
    }

    pub fn volumes(&self) -> BTreeMap<VolumeKey, Image> {
        self.lock().volumes.clone()
    }

    /// Bytes of content held.
    pub fn content_bytes(&self) -> u64 {
        self.lock().layers.values().map(|info| info.bytes).sum()
    }

    pub fn layer(&self, name: &Digest) -> Option<LayerInfo> {
        self.lock().layers.get(name).copied()
    }

    pub fn layer_path(&self, name: &Digest) -> PathBuf {
        self.path("layers", name)
    }

    /// A blob's bytes, when it is here and unspoiled.
    pub fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = read_bounded(&self.path("blobs", digest)).ok()?;
        (digest::of(&bytes) == *digest).then_some(bytes)
    }

    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StorageError> {
        self.write(&self.path("blobs", digest), bytes)
    }

    /// A fresh directory for work in progress.
    pub fn temporary(&self) -> Result<PathBuf, StorageError> {
        let path = self.temporary_path();
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed("make directory", &path))?;
        Ok(path)
    }

    /// Gives finished layers their names, after one sync of all of them. What has its name already stays.
    pub fn put_layers(&self, finished: &[(PathBuf, Digest, LayerInfo)]) -> Result<(), StorageError> {
        if finished.is_empty() {
            return Ok(());
        }
        let layers = self.root.join("layers");
        let directory = File::open(&layers).map_err(failed("open", &layers))?;
        rustix::fs::syncfs(&directory).map_err(|error| failed("sync", &layers)(error.into()))?;
        for (temporary, name, info) in finished {
            if self.layer(name).is_some() {
                self.discard(temporary);
                continue;
            }
            self.write_record(&self.path("layer-info", name), info)?;
            let path = self.layer_path(name);
            match rustix::fs::renameat_with(CWD, temporary, CWD, &path, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                // Another pull was faster.
                Err(rustix::io::Errno::EXIST) => self.discard(temporary),
                Err(error) => return Err(failed("name layer", &path)(error.into())),
            }
            self.lock().layers.insert(*name, *info);
        }
        directory.sync_all().map_err(failed("sync", &layers))
    }

    pub fn put_image(&self, id: ContentTreeId, order: Order, image: Image) -> Result<(), StorageError> {
        let record = ImageRecord::new(id, order, image);
        self.write_record(&self.root.join("images").join(id.to_string()), &record)?;
        self.lock().images.insert(id, record);
        Ok(())
    }

    /// Forgets what a content tree holds; its layers go with [`Catalog::sweep`].
    pub fn drop_image(&self, id: ContentTreeId) -> Result<(), StorageError> {
        let path = self.root.join("images").join(id.to_string());
        remove_if_there(&path)?;
        self.lock().images.remove(&id);
        Ok(())
    }

    /// Makes a volume: an empty upper directory that looks like the root of the image, and a work directory.
    pub fn make_volume(&self, key: VolumeKey, image: &Image) -> Result<(), StorageError> {
        let temporary = self.temporary()?;
        let model = self.root_of(image);
        for name in ["upper", "work"] {
            let path = temporary.join(name);
            fs::DirBuilder::new().mode(0o755).create(&path).map_err(failed("make directory", &path))?;
            match &model {
                Some(model) => {
                    if self.owners != Owners::Ignored {
                        std::os::unix::fs::chown(&path, Some(model.uid()), Some(model.gid()))
                            .map_err(failed("change owner of", &path))?;
                    }
                    // By handle: one system call fewer to allow.
                    File::open(&path)
                        .and_then(|file| file.set_permissions(model.permissions()))
                        .map_err(failed("set mode of", &path))?;
                }
                None => self.own(&path)?,
            }
        }
        let record = VolumeRecord { format: FORMAT, image: image.clone() };
        write_synced(&temporary.join("volume"), &encode(&record))?;
        sync_directory(&temporary)?;
        let path = self.volume_path(key);
        fs::rename(&temporary, &path).map_err(failed("name volume", &path))?;
        sync_directory(&self.root.join("volumes"))?;
        self.lock().volumes.insert(key, image.clone());
        Ok(())
    }

    pub fn volume_path(&self, key: VolumeKey) -> PathBuf {
        self.root.join("volumes").join(key.to_string())
    }

    /// Takes a volume away; its bytes go with [`Catalog::empty_trash`].
    pub fn drop_volume(&self, key: VolumeKey) -> Result<(), StorageError> {
        self.put_aside(&self.volume_path(key))?;
        self.lock().volumes.remove(&key);
        Ok(())
    }

    /// Takes away layers and blobs that no image and no volume needs. Only while nothing is being pulled. Says how many.
    pub fn sweep(&self) -> Result<usize, StorageError> {
        let (needed_layers, needed_blobs) = {
            let state = self.lock();
            let images = || state.images.values().map(|record| &record.image).chain(state.volumes.values());
            let layers: BTreeSet<Digest> = images().flat_map(|image| image.layers.iter().copied()).collect();
            let blobs: BTreeSet<Digest> =
                images().flat_map(|image| image.blobs.iter().map(|blob| blob.digest)).collect();
            (layers, blobs)
        };
        let mut gone = 0;
        let unneeded: Vec<Digest> =
            self.lock().layers.keys().filter(|name| !needed_layers.contains(name)).copied().collect();
        for name in unneeded {
            // The name goes first: a layer without info is dropped at the next start.
            self.lock().layers.remove(&name);
            self.put_aside(&self.layer_path(&name))?;
            remove_if_there(&self.path("layer-info", &name))?;
            gone += 1;
        }
        for (name, path) in list(&self.root.join("blobs"))? {
            if !parse_hex(&name).is_some_and(|digest| needed_blobs.contains(&digest)) {
                remove_if_there(&path)?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Removes what was put aside. Slow: for a thread of its own.
    pub fn empty_trash(&self) -> Result<(), StorageError> {
        for (_, path) in list(&self.root.join("trash"))? {
            self.discard(&path);
        }
        Ok(())
    }

    /// Bytes an app's writes take on the disk.
    pub fn volume_bytes(&self, key: VolumeKey) -> u64 {
        let mut todo = vec![self.volume_path(key).join("upper")];
        let mut bytes = 0u64;
        let mut looked_at = 0usize;
        while let Some(path) = todo.pop() {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                looked_at += 1;
                if looked_at > MAX_LOOKED_AT {
                    return bytes;
                }
                let Ok(stat) = entry.metadata() else { continue };
                bytes = bytes.saturating_add(stat.blocks().saturating_mul(512));
                if stat.is_dir() {
                    todo.push(entry.path());
                }
            }
        }
        bytes
    }

    /// Removes a tree of work in progress; what cannot be removed now is tried again at the next start.
    pub fn discard(&self, temporary: &Path) {
        let (Some(parent), Some(name)) = (temporary.parent(), temporary.file_name()) else { return };
        if let Ok(parent) = File::open(parent) {
            let _ = oci::unpack::remove_tree(parent.as_fd(), name.as_encoded_bytes());
        }
    }

    /// The uppermost layer that says what the root looks like, else the uppermost.
    fn root_of(&self, image: &Image) -> Option<fs::Metadata> {
        let says = |name: &&Digest| self.layer(name).is_some_and(|info| info.has_root);
        let layer = image.layers.iter().rev().find(says).or(image.layers.last())?;
        fs::symlink_metadata(self.layer_path(layer)).ok()
    }

    /// Root of the container owns it.
    fn own(&self, path: &Path) -> Result<(), StorageError> {
        let id = match self.owners {
            Owners::AsIs { .. } => 0,
            Owners::Shifted { base, .. } => base,
            Owners::Ignored => return Ok(()),
        };
        std::os::unix::fs::chown(path, Some(id), Some(id)).map_err(failed("change owner of", path))
    }

    fn scan(&self, dropped: &mut Vec<Dropped>) -> Result<State, StorageError> {
        let mut state = State::default();
        for (name, path) in list(&self.root.join("layers"))? {
            let info = parse_hex(&name).and_then(|digest| {
                let info: LayerInfo = read_record(&self.path("layer-info", &digest)).ok()?;
                (info.format == FORMAT).then_some((digest, info))
            });
            match info {
                Some((digest, info)) => {
                    state.layers.insert(digest, info);
                }
                None => {
                    dropped.push(format!("layer {name}: it has no readable record"));
                    self.put_aside(&path)?;
                }
            }
        }
        for (name, path) in list(&self.root.join("layer-info"))? {
            if !parse_hex(&name).is_some_and(|digest| state.layers.contains_key(&digest)) {
                remove_if_there(&path)?;
            }
        }
        let is_whole =
            |state: &State, image: &Image| image.layers.iter().all(|name| state.layers.contains_key(name));
        for (name, path) in list(&self.root.join("images"))? {
            match read_record::<ImageRecord>(&path) {
                Ok(record)
                    if record.format == FORMAT
                        && record.id.to_string() == name
                        && is_whole(&state, &record.image) =>
                {
                    state.images.insert(record.id, record);
                }
                Ok(_) => {
                    dropped.push(format!("image of content tree {name}: not all of its layers are here"));
                    remove_if_there(&path)?;
                }
                Err(error) => {
                    dropped.push(format!("image of content tree {name}: {error}"));
                    remove_if_there(&path)?;
                }
            }
        }
        for (name, path) in list(&self.root.join("volumes"))? {
            let key = parse_volume_key(&name);
            match (key, read_record::<VolumeRecord>(&path.join("volume"))) {
                // A volume holds what an app wrote: it stays even when its image is damaged. The app then cannot start,
                // and says so.
                (Some(key), Ok(record)) if record.format == FORMAT => {
                    state.volumes.insert(key, record.image);
                }
                (_, record) => {
                    let why = record
                        .err()
                        .map_or_else(|| "unknown format or name".into(), |error| error.to_string());
                    dropped.push(format!("volume {name}: {why}"));
                    self.put_aside(&path)?;
                }
            }
        }
        Ok(state)
    }

    fn put_aside(&self, path: &Path) -> Result<(), StorageError> {
        let aside = self.root.join("trash").join(self.number().to_string());
        match fs::rename(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(failed("put aside", path)),
        }
    }

    fn temporary_path(&self) -> PathBuf {
        self.root.join("tmp").join(self.number().to_string())
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn path(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.root.join(kind).join(&digest.to_string()["sha256:".len()..])
    }

    fn write_record<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), StorageError> {
        self.write(path, &encode(record))
    }

    /// Whole or not at all, also after a power cut.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
        let temporary = self.temporary_path();
        write_synced(&temporary, bytes)?;
        fs::rename(&temporary, path).map_err(failed("name", path))?;
        match path.parent() {
            Some(parent) => sync_directory(parent),
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Our own records have string keys and no failing parts.
    serde_json::to_vec(record).unwrap_or_default()
}

fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&read_bounded(path)?)?)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, MAX_RECORD_BYTES), &mut bytes)?;
    Ok(bytes)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.set_permissions(fs::Permissions::from_mode(Mode::from_raw_mode(0o600).as_raw_mode()))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("write", path))
}

fn sync_directory(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))
}

fn remove_if_there(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove", path)),
    }
}

fn list(path: &Path) -> Result<Vec<(String, PathBuf)>, StorageError> {
    let entries =
        fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed("list", path))?;
    Ok(entries.iter().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect())
}

fn parse_hex(name: &str) -> Option<Digest> {
    name.bytes().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()).then(|| name.parse().ok())?
}

fn parse_volume_key(name: &str) -> Option<VolumeKey> {
    let (id, generation) = name.split_once('#')?;
    let key = VolumeKey { id: id.parse().ok()?, generation: generation.parse().ok()? };
    (key.to_string() == name).then_some(key)
}

#[cfg(test)]
mod tests;
