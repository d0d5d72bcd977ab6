// SPDX-License-Identifier: Apache-2.0
//! What lies on the disk, below the store's own directory:
//!
//! | path | what | whole because |
//! |---|---|---|
//! | `blobs/HEX` | manifests and configs, named by their digest | checked when read |
//! | `layers/HEX` | unpacked layers, named by diff id or chain id | renamed after a sync, and `layer-info/HEX` exists |
//! | `files/HEX` | files, named by their digest | renamed after a sync and a check |
//! | `partial/HEX` | what came so far of a file | checked when it is complete |
//! | `images/ID` | what a content tree holds: [`ContentRecord`] | written last, by rename |
//! | `volumes/KEY/{upper,work,volume}` | a writable layer and the image below it | renamed when complete |
//! | `volumes/KEY/{data,volume}` | a directory that began empty, or a copy of a file | renamed when complete |
//! | `volumes/KEY/volume` | a volume that is a file of the store as it is | renamed when complete |
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

use model::desired::{ContentDesired, ContentSources};
use model::id::{ContentTreeId, Digest, VolumeKey};
use model::observed::{Blob, Image, MadeVolume};
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

/// Directories of the store, itself first.
const DIRECTORIES: [&str; 10] =
    ["", "blobs", "layers", "layer-info", "files", "partial", "images", "volumes", "tmp", "trash"];

/// A file of the store: its apps read it, nobody writes it.
const STORED_FILE_MODE: u32 = 0o444;
/// The copy of a file in a volume belongs to its app, whatever user of the image that runs as; so does a blank volume.
const VOLUME_FILE_MODE: u32 = 0o666;
const BLANK_MODE: u32 = 0o777;

/// What a content tree holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRecord {
    format: u32,
    pub id: ContentTreeId,
    pub order: Order,
    #[serde(flatten)]
    pub held: Held,
}

/// Content, ready to be used. In a record the name of the field tells which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Held {
    #[serde(rename = "image")]
    Image(Image),
    #[serde(rename = "file")]
    File(Blob),
}

/// The part of an order that decides what is to be held. When it changes the image is looked up again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub generation: i64,
    pub digest: Option<Digest>,
    /// Registry, repository and reference of each source; with a digest they do not matter.
    pub names: Vec<String>,
}

impl ContentRecord {
    pub fn new(id: ContentTreeId, order: Order, held: Held) -> ContentRecord {
        ContentRecord { format: FORMAT, id, order, held }
    }
}

impl Order {
    pub fn of(desired: &ContentDesired) -> Order {
        let names = match (&desired.sources, desired.digest) {
            (_, Some(_)) => Vec::new(),
            (ContentSources::Registries(sources), None) => sources
                .iter()
                .map(|from| format!("{}/{} {}", from.registry.base_url, from.repository, from.reference))
                .collect(),
            (ContentSources::Servers(sources), None) => sources.iter().map(|from| from.url.clone()).collect(),
        };
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
    #[serde(flatten)]
    made: MadeRecord,
}

/// What a volume was made of, as it stands in its record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MadeRecord {
    Image(Image),
    Directory(()),
    File(Digest),
    StoredFile(Digest),
}

impl From<MadeRecord> for MadeVolume {
    fn from(record: MadeRecord) -> MadeVolume {
        match record {
            MadeRecord::Image(image) => MadeVolume::Image(image),
            MadeRecord::Directory(()) => MadeVolume::Directory,
            MadeRecord::File(digest) => MadeVolume::File(digest),
            MadeRecord::StoredFile(digest) => MadeVolume::StoredFile(digest),
        }
    }
}

impl From<MadeVolume> for MadeRecord {
    fn from(made: MadeVolume) -> MadeRecord {
        match made {
            MadeVolume::Image(image) => MadeRecord::Image(image),
            MadeVolume::Directory => MadeRecord::Directory(()),
            MadeVolume::File(digest) => MadeRecord::File(digest),
            MadeVolume::StoredFile(digest) => MadeRecord::StoredFile(digest),
        }
    }
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
    /// Bytes of each.
    files: BTreeMap<Digest, u64>,
    contents: BTreeMap<ContentTreeId, ContentRecord>,
    volumes: BTreeMap<VolumeKey, MadeVolume>,
}

/// Something found at the start that was dropped.
pub type Dropped = String;

impl Catalog {
    /// Opens the store's directory and looks through it.
    pub fn open(root: &Path, owners: Owners) -> Result<(Catalog, Vec<Dropped>), StorageError> {
        for name in DIRECTORIES {
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
        // No number we gave was ever that high; going on from there would come back to names that are taken.
        let last = numbers.filter(|number| *number < u64::MAX / 2).max();
        catalog.next_number.store(last.map_or(0, |last| last + 1), Ordering::Relaxed);
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

    pub fn contents(&self) -> BTreeMap<ContentTreeId, ContentRecord> {
        self.lock().contents.clone()
    }

    pub fn volumes(&self) -> BTreeMap<VolumeKey, MadeVolume> {
        self.lock().volumes.clone()
    }

    /// Bytes of content held.
    pub fn content_bytes(&self) -> u64 {
        let state = self.lock();
        state.layers.values().map(|info| info.bytes).sum::<u64>() + state.files.values().sum::<u64>()
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

    /// Bytes of a file that is here, whole.
    pub fn file_bytes(&self, digest: &Digest) -> Option<u64> {
        self.lock().files.get(digest).copied()
    }

    pub fn file_path(&self, digest: &Digest) -> PathBuf {
        self.path("files", digest)
    }

    /// Where a file that is still coming is kept.
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.path("partial", digest)
    }

    pub fn discard_partial(&self, digest: &Digest) {
        let _ = fs::remove_file(self.partial_path(digest));
    }

    /// Gives a file that came whole, and whose digest is right, its name. Apps may read it.
    pub fn put_file(&self, digest: &Digest, file: &File) -> Result<(), StorageError> {
        let (from, to) = (self.partial_path(digest), self.file_path(digest));
        let finish = || -> io::Result<u64> {
            file.set_permissions(fs::Permissions::from_mode(STORED_FILE_MODE))?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        let bytes = finish().map_err(failed("finish", &from))?;
        self.own(&from)?;
        fs::rename(&from, &to).map_err(failed("name file", &to))?;
        sync_directory(&self.root.join("files"))?;
        self.lock().files.insert(*digest, bytes);
        Ok(())
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

    pub fn put_content(&self, id: ContentTreeId, order: Order, held: Held) -> Result<(), StorageError> {
        let record = ContentRecord::new(id, order, held);
        self.write_record(&self.root.join("images").join(id.to_string()), &record)?;
        self.lock().contents.insert(id, record);
        Ok(())
    }

    /// Forgets what a content tree holds; its layers go with [`Catalog::sweep`].
    pub fn drop_content(&self, id: ContentTreeId) -> Result<(), StorageError> {
        let path = self.root.join("images").join(id.to_string());
        remove_if_there(&path)?;
        self.lock().contents.remove(&id);
        Ok(())
    }

    /// Makes a volume. What it is made of is here.
    pub fn make_volume(&self, key: VolumeKey, made: MadeVolume) -> Result<(), StorageError> {
        let temporary = self.temporary()?;
        match &made {
            MadeVolume::Image(image) => self.fill_layer(&temporary, image)?,
            MadeVolume::Directory => {
                let path = temporary.join("data");
                fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed("make directory", &path))?;
                File::open(&path)
                    .and_then(|file| file.set_permissions(fs::Permissions::from_mode(BLANK_MODE)))
                    .map_err(failed("set mode of", &path))?;
                self.own(&path)?;
            }
            MadeVolume::File(digest) => {
                let path = temporary.join("data");
                let copied = copy_file(&self.file_path(digest), &path).map_err(failed("copy file to", &path));
                if copied.is_err() {
                    self.discard(&temporary);
                }
                copied?;
                self.own(&path)?;
            }
            MadeVolume::StoredFile(_) => {}
        }
        let record = VolumeRecord { format: FORMAT, made: made.clone().into() };
        write_synced(&temporary.join("volume"), &encode(&record))?;
        sync_directory(&temporary)?;
        let path = self.volume_path(key);
        fs::rename(&temporary, &path).map_err(failed("name volume", &path))?;
        sync_directory(&self.root.join("volumes"))?;
        self.lock().volumes.insert(key, made);
        Ok(())
    }

    /// An empty upper directory that looks like the root of the image, and a work directory.
    fn fill_layer(&self, temporary: &Path, image: &Image) -> Result<(), StorageError> {
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

    /// Takes away layers, files and blobs that no content tree and no volume needs, and downloads that nobody waits for.
    /// Only while nothing is being pulled or made. Says how many.
    pub fn sweep(&self, awaited: &BTreeSet<Digest>) -> Result<usize, StorageError> {
        let (needed_layers, needed_blobs, needed_files) = {
            let state = self.lock();
            let held = || {
                state.contents.values().filter_map(|record| match &record.held {
                    Held::Image(image) => Some(image),
                    Held::File(_) => None,
                })
            };
            let below = || {
                state.volumes.values().filter_map(|made| match made {
                    MadeVolume::Image(image) => Some(image),
                    MadeVolume::Directory | MadeVolume::File(_) | MadeVolume::StoredFile(_) => None,
                })
            };
            let images = || held().chain(below());
            let files = state.contents.values().filter_map(|record| match &record.held {
                Held::File(file) => Some(file.digest),
                Held::Image(_) => None,
            });
            let stored = state.volumes.values().filter_map(|made| match made {
                MadeVolume::StoredFile(digest) => Some(*digest),
                MadeVolume::Image(_) | MadeVolume::Directory | MadeVolume::File(_) => None,
            });
            let files: BTreeSet<Digest> = files.chain(stored).collect();
            let layers: BTreeSet<Digest> = images().flat_map(|image| image.layers.iter().copied()).collect();
            let blobs: BTreeSet<Digest> =
                images().flat_map(|image| image.blobs.iter().map(|blob| blob.digest)).collect();
            (layers, blobs, files)
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
        self.lock().files.retain(|digest, _| needed_files.contains(digest));
        for (kind, needed) in [("blobs", &needed_blobs), ("files", &needed_files), ("partial", awaited)] {
            for (name, path) in list(&self.root.join(kind))? {
                if !parse_hex(&name).is_some_and(|digest| needed.contains(&digest)) {
                    remove_if_there(&path)?;
                    gone += 1;
                }
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

    /// Bytes that what apps may write takes on the disk.
    pub fn volume_bytes(&self, key: VolumeKey) -> u64 {
        let volume = self.volume_path(key);
        let data = volume.join("data");
        if let Ok(stat) = fs::symlink_metadata(&data)
            && stat.is_file()
        {
            return stat.blocks().saturating_mul(512);
        }
        let mut todo = vec![volume.join("upper"), data];
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
        for (name, path) in list(&self.root.join("files"))? {
            // Its digest was right when it got its name; who uses it learns of a damage.
            match (parse_hex(&name), fs::symlink_metadata(&path)) {
                (Some(digest), Ok(stat)) if stat.is_file() => {
                    state.files.insert(digest, stat.len());
                }
                _ => {
                    dropped.push(format!("file {name}: it is none of the store's"));
                    self.put_aside(&path)?;
                }
            }
        }
        let is_whole = |state: &State, held: &Held| match held {
            Held::Image(image) => image.layers.iter().all(|name| state.layers.contains_key(name)),
            Held::File(file) => state.files.get(&file.digest) == Some(&file.size_bytes),
        };
        for (name, path) in list(&self.root.join("images"))? {
            match read_record::<ContentRecord>(&path) {
                Ok(record)
                    if record.format == FORMAT
                        && record.id.to_string() == name
                        && is_whole(&state, &record.held) =>
                {
                    state.contents.insert(record.id, record);
                }
                Ok(_) => {
                    dropped.push(format!("content tree {name}: not all of it is here"));
                    remove_if_there(&path)?;
                }
                Err(error) => {
                    dropped.push(format!("content tree {name}: {error}"));
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
                    state.volumes.insert(key, record.made.into());
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

/// By `copy_file_range`, which shares the blocks where the file system can.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = File::create_new(to)?;
    io::copy(&mut source, &mut target)?;
    target.set_permissions(fs::Permissions::from_mode(VOLUME_FILE_MODE))?;
    target.sync_all()
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
