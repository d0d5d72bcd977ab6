// SPDX-License-Identifier: Apache-2.0
//! The registry's directory. Blocking; nothing here knows HTTP. Every function that changes something
//! returns after the change would survive a power cut, and readers see a file whole or not at all.
//!
//! ```text
//! format.json                           {"format":1}
//! tmp/                                  emptied at every start
//! uploads/SESSION/{session.json,data}   see `upload`
//! blobs/sha256/AB/HEX                   content, of layers and of manifests alike
//! repositories/NAME/_blobs/HEX          empty: this repository may read that blob
//!                  /_manifests/HEX      {"format":1,"mediaType":…}
//!                  /_tags/TAG           {"format":1,"digest":…}
//!                  /_referrers/HEX/HEX  empty: the second manifest has the first one as its subject
//! referrers.json                        {"format":1}: `_referrers` is complete
//! ```
//!
//! No component of a repository name starts with `_`, so names cannot meet our own directories.
//!
//! Whoever links content holds [`Adding`], whoever removes holds [`Removing`]; never both at once. What is linked, or
//! asked for by somebody who may be about to link it, is made young (its modification time is set), and only what is
//! old is ever collected: so a push that finds a blob present may rely on it for the grace period of [`super::collect`].

mod removal;

use super::name::{RepositoryName, Tag, digest_hex, digest_of, parse_digest};
use model::id::Digest;
pub(super) use removal::Removing;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Version of the files in this directory.
pub(super) const FORMAT: u32 = 1;
/// Our own JSON files are far smaller; a larger one is not ours.
const MAX_RECORD_BYTES: u64 = 64 * 1024;
/// What was made young this recently is left as it is: a write per look would be too many.
const YOUNG: Duration = Duration::from_secs(600);

/// Why a directory cannot serve as a registry.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or something in it cannot be read or made.
    #[error("open registry directory {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Written by a newer release.
    #[error("registry directory {} has format {format}, this release knows {FORMAT}", directory.display())]
    Format {
        /// The registry directory.
        directory: PathBuf,
        /// The format found there.
        format: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct FormatRecord {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestRecord {
    format: u32,
    media_type: String,
}

#[derive(Serialize, Deserialize)]
struct TagRecord {
    format: u32,
    digest: String,
}

/// A manifest as it was pushed.
pub(super) struct StoredManifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

/// The open directory.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    /// Shared by those who link content, held alone by those who remove.
    changes: RwLock<()>,
}

/// Proof that nothing is being removed.
#[derive(Debug)]
pub(super) struct Adding<'a>(#[allow(dead_code, reason = "held, not read")] RwLockReadGuard<'a, ()>);

impl Disk {
    pub(super) fn open(root: &Path) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Io(root.to_owned(), error);
        let disk = Self { root: root.to_owned(), changes: RwLock::new(()) };
        match fs::remove_dir_all(disk.root.join("tmp")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        for directory in ["tmp", "uploads", "blobs/sha256", "repositories"] {
            make_directories(&disk.root.join(directory)).map_err(failed)?;
        }
        let format = disk.root.join("format.json");
        match read_record::<FormatRecord>(&format).map_err(failed)? {
            Some(FormatRecord { format: FORMAT }) => {}
            Some(FormatRecord { format }) => {
                return Err(OpenError::Format { directory: root.to_owned(), format });
            }
            None => disk.write_record(&format, &FormatRecord { format: FORMAT }).map_err(failed)?,
        }
        Ok(disk)
    }

    /// While the answer lives nothing is removed.
    pub(super) fn adding(&self) -> Adding<'_> {
        Adding(self.changes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether every manifest with a subject stands in `_referrers`; once said it stays so.
    pub(super) fn has_referrers(&self) -> io::Result<bool> {
        Ok(read_record::<FormatRecord>(&self.root.join("referrers.json"))?.is_some())
    }

    pub(super) fn set_has_referrers(&self) -> io::Result<()> {
        self.write_record(&self.root.join("referrers.json"), &FormatRecord { format: FORMAT })
    }

    /// The directory as it is, for looking only; nothing is made or cleaned.
    pub(super) fn look(root: &Path) -> Self {
        Self { root: root.to_owned(), changes: RwLock::new(()) }
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// Bytes an unprivileged writer could still store.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.root)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// A new file in `tmp/` that vanishes unless it is committed.
    pub(super) fn temporary(&self) -> io::Result<Temporary> {
        let path = self.root.join("tmp").join(Uuid::new_v4().to_string());
        let file = OpenOptions::new().write(true).read(true).create_new(true).open(&path)?;
        Ok(Temporary { file, path, committed: false })
    }

    /// Makes a file the blob `digest`. The caller has verified that its content is that, and has synced it.
    pub(super) fn commit_blob(&self, _: &Adding<'_>, path: &Path, digest: Digest) -> io::Result<()> {
        self.move_to(path, &self.blob_path(digest))
    }

    /// Stores bytes in memory as a blob.
    fn put_blob(&self, adding: &Adding<'_>, bytes: &[u8]) -> io::Result<Digest> {
        let digest = digest_of(bytes);
        let mut temporary = self.temporary()?;
        temporary.file.write_all(bytes)?;
        temporary.file.sync_all()?;
        temporary.commit_blob(self, adding, digest)?;
        Ok(digest)
    }

    /// Opens a blob that `repository` may read, with its size.
    pub(super) fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: Digest,
    ) -> io::Result<Option<(File, u64)>> {
        if !self.blob_link(repository, digest).try_exists()? {
            return Ok(None);
        }
        self.open_content(digest)
    }

    /// Size of a blob that `repository` may read.
    pub(super) fn blob_size(&self, repository: &RepositoryName, digest: Digest) -> io::Result<Option<u64>> {
        if !self.blob_link(repository, digest).try_exists()? {
            return Ok(None);
        }
        found(fs::metadata(self.blob_path(digest))).map(|metadata| metadata.map(|m| m.len()))
    }

    /// Lets `repository` read a blob that is already stored.
    pub(super) fn link_blob(
        &self,
        _: &Adding<'_>,
        repository: &RepositoryName,
        digest: Digest,
    ) -> io::Result<()> {
        touch(&self.blob_path(digest))?;
        make_file(&self.blob_link(repository, digest))
    }

    /// Makes a blob young that somebody has found present: a push may be about to rely on it.
    pub(super) fn keep_blob(&self, repository: &RepositoryName, digest: Digest) -> io::Result<()> {
        let _adding = self.adding();
        touch(&self.blob_link(repository, digest))
    }

    /// The same for a manifest.
    pub(super) fn keep_manifest(&self, repository: &RepositoryName, digest: Digest) -> io::Result<()> {
        let _adding = self.adding();
        touch(&self.manifest_path(repository, digest))
    }

    /// When a blob of `repository` was last linked or asked for.
    pub(super) fn blob_used(&self, repository: &RepositoryName, digest: Digest) -> io::Result<SystemTime> {
        fs::metadata(self.blob_link(repository, digest))?.modified()
    }

    /// Size of a manifest of `repository`.
    pub(super) fn manifest_size(
        &self,
        repository: &RepositoryName,
        digest: Digest,
    ) -> io::Result<Option<u64>> {
        if !self.manifest_path(repository, digest).try_exists()? {
            return Ok(None);
        }
        found(fs::metadata(self.blob_path(digest))).map(|metadata| metadata.map(|m| m.len()))
    }

    /// Stores a manifest; what it references must be there already, or come through a mirror.
    pub(super) fn put_manifest(
        &self,
        adding: &Adding<'_>,
        repository: &RepositoryName,
        bytes: &[u8],
        media_type: &str,
    ) -> io::Result<Digest> {
        let digest = self.put_blob(adding, bytes)?;
        let record = ManifestRecord { format: FORMAT, media_type: media_type.to_owned() };
        self.write_record(&self.manifest_path(repository, digest), &record)?;
        Ok(digest)
    }

    /// Enters that a manifest of `repository` has `subject`.
    pub(super) fn put_referrer(
        &self,
        _: &Adding<'_>,
        repository: &RepositoryName,
        subject: Digest,
        digest: Digest,
    ) -> io::Result<()> {
        make_file(&self.referrers_path(repository, subject).join(digest_hex(digest)))
    }

    /// Manifests of `repository` that have `subject`, in order of their digests.
    pub(super) fn referrers(&self, repository: &RepositoryName, subject: Digest) -> io::Result<Vec<Digest>> {
        digests_in(&self.referrers_path(repository, subject))
    }

    /// All manifests of a repository, in order of their digests.
    pub(super) fn manifests(&self, repository: &RepositoryName) -> io::Result<Vec<Digest>> {
        digests_in(&self.repository(repository).join("_manifests"))
    }

    /// Reads a manifest and proves that its content is still what its digest says.
    pub(super) fn manifest(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        max_bytes: u64,
    ) -> io::Result<Option<StoredManifest>> {
        let record: Option<ManifestRecord> = read_record(&self.manifest_path(repository, digest))?;
        let Some(ManifestRecord { media_type, .. }) = record else { return Ok(None) };
        let Some((file, _)) = self.open_content(digest)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(max_bytes).read_to_end(&mut bytes)?;
        if digest_of(&bytes) != digest {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("content of {digest} is damaged")));
        }
        Ok(Some(StoredManifest { digest, media_type, bytes }))
    }

    /// A manifest that had the tag before counts as old only from now on.
    pub(super) fn put_tag(
        &self,
        _: &Adding<'_>,
        repository: &RepositoryName,
        tag: &Tag,
        digest: Digest,
    ) -> io::Result<()> {
        if let Some(before) = self.tag(repository, tag)?.filter(|before| *before != digest) {
            touch(&self.manifest_path(repository, before))?;
        }
        let record = TagRecord { format: FORMAT, digest: digest.to_string() };
        self.write_record(&self.tag_path(repository, tag), &record)
    }

    pub(super) fn tag(&self, repository: &RepositoryName, tag: &Tag) -> io::Result<Option<Digest>> {
        let record: Option<TagRecord> = read_record(&self.tag_path(repository, tag))?;
        Ok(record.and_then(|record| parse_digest(&record.digest).ok()))
    }

    /// All tags in ASCII order, or `None` when nothing was ever pushed under that name.
    pub(super) fn tags(&self, repository: &RepositoryName) -> io::Result<Option<Vec<String>>> {
        let directory = self.repository(repository);
        if !directory.join("_manifests").try_exists()? {
            return Ok(None);
        }
        let Some(entries) = found(fs::read_dir(directory.join("_tags")))? else {
            return Ok(Some(Vec::new()));
        };
        let mut tags = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            tags.extend(
                name.to_str().and_then(|name| Tag::parse(name).ok()).map(|tag| tag.as_str().to_owned()),
            );
        }
        tags.sort_unstable();
        Ok(Some(tags))
    }

    /// All repositories that hold a manifest, in ASCII order.
    pub(super) fn repositories(&self) -> io::Result<Vec<String>> {
        self.repositories_with(&["_manifests"])
    }

    /// Names of repositories that have one of these directories, once for each.
    fn repositories_with(&self, wanted: &[&str]) -> io::Result<Vec<String>> {
        let top = self.root.join("repositories");
        let mut names = Vec::new();
        let mut pending = vec![(top, String::new())];
        while let Some((directory, name)) = pending.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                match entry.file_name().to_str() {
                    Some(own) if wanted.contains(&own) => names.push(name.clone()),
                    Some(component) if !component.starts_with('_') => {
                        let separator = if name.is_empty() { "" } else { "/" };
                        pending.push((entry.path(), format!("{name}{separator}{component}")));
                    }
                    _ => {}
                }
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open_content(&self, digest: Digest) -> io::Result<Option<(File, u64)>> {
        let Some(file) = found(File::open(self.blob_path(digest)))? else {
            tracing::warn!(%digest, "a link names content that is not stored");
            return Ok(None);
        };
        let size = file.metadata()?.len();
        Ok(Some((file, size)))
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        let hex = digest_hex(digest);
        self.root.join("blobs/sha256").join(&hex[..2]).join(&hex)
    }

    fn repository(&self, repository: &RepositoryName) -> PathBuf {
        self.root.join("repositories").join(repository.as_str())
    }

    fn blob_link(&self, repository: &RepositoryName, digest: Digest) -> PathBuf {
        self.repository(repository).join("_blobs").join(digest_hex(digest))
    }

    fn manifest_path(&self, repository: &RepositoryName, digest: Digest) -> PathBuf {
        self.repository(repository).join("_manifests").join(digest_hex(digest))
    }

    fn tag_path(&self, repository: &RepositoryName, tag: &Tag) -> PathBuf {
        self.repository(repository).join("_tags").join(tag.as_str())
    }

    fn referrers_path(&self, repository: &RepositoryName, subject: Digest) -> PathBuf {
        self.repository(repository).join("_referrers").join(digest_hex(subject))
    }

    fn write_record(&self, path: &Path, record: &impl Serialize) -> io::Result<()> {
        let mut temporary = self.temporary()?;
        temporary.file.write_all(&serde_json::to_vec(record)?)?;
        temporary.file.sync_all()?;
        self.move_to(&temporary.path, path)?;
        temporary.committed = true;
        Ok(())
    }

    fn move_to(&self, from: &Path, to: &Path) -> io::Result<()> {
        let parent = parent_of(to)?;
        make_directories(parent)?;
        fs::rename(from, to)?;
        sync_directory(parent)
    }
}

/// A file in `tmp/`, removed when dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) file: File,
    path: PathBuf,
    committed: bool,
}

impl Temporary {
    /// See [`Disk::commit_blob`].
    pub(super) fn commit_blob(&mut self, disk: &Disk, adding: &Adding<'_>, digest: Digest) -> io::Result<()> {
        disk.commit_blob(adding, &self.path, digest)?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "temporary file of the registry stays until the next start");
        }
    }
}

/// Reads a JSON file of ours; one that is torn counts as absent.
pub(super) fn read_record<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(file) = found(File::open(path))? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes)?;
    let record = serde_json::from_slice(&bytes);
    if let Err(error) = &record {
        tracing::warn!(path = %path.display(), %error, "dropped an unreadable file of the registry");
    }
    Ok(record.ok())
}

/// Tells "not there" from real failures.
pub(super) fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "path without a directory"))
}

/// Like `create_dir_all`, and every new directory is on the disk afterwards.
fn make_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| *parent != OsStr::new(""));
    if let Some(parent) = parent {
        make_directories(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => other?,
    }
    sync_directory(parent.unwrap_or(Path::new(".")))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// An empty file that is young and on the disk.
fn make_file(path: &Path) -> io::Result<()> {
    let parent = parent_of(path)?;
    make_directories(parent)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.set_modified(SystemTime::now())?;
    sync_directory(parent)
}

/// Makes a file young; one that is not there is none of ours to keep.
fn touch(path: &Path) -> io::Result<()> {
    let Some(file) = found(File::open(path))? else { return Ok(()) };
    let now = SystemTime::now();
    let is_young = now.duration_since(file.metadata()?.modified()?).is_ok_and(|age| age < YOUNG);
    if is_young { Ok(()) } else { file.set_modified(now) }
}

/// The digests that files of a directory are named by, in order; none when there is no directory.
fn digests_in(directory: &Path) -> io::Result<Vec<Digest>> {
    let Some(entries) = found(fs::read_dir(directory))? else { return Ok(Vec::new()) };
    let mut digests = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        digests.extend(name.to_str().and_then(|name| parse_digest(&format!("sha256:{name}")).ok()));
    }
    digests.sort_unstable();
    Ok(digests)
}
