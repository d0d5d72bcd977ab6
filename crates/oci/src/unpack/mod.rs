// SPDX-License-Identifier: Apache-2.0
//! One layer's archive becomes a directory that overlayfs can stack.
//!
//! | in the archive | in the directory |
//! |---|---|
//! | `.wh.name` | `name` as character device 0:0, overlayfs' whiteout, which an unprivileged process may make |
//! | `.wh..wh..opq` | `user.overlay.opaque=y` on the directory: the stack is mounted with `userxattr` |
//! | devices, unknown types, attributes that only the host may set | nothing; named in [`Report::skipped`] |
//! | a directory that is only implied by the path of a file | made, and named in [`Report::implied`] |
//!
//! No path leaves the directory: each is resolved by the kernel below the root handle, or component by component without
//! following links. A broken archive leaves half a tree behind, which the caller drops; nothing is synced to disk here.

mod attributes;
mod stack;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use crate::tar::{Archive, Entry, Kind, Segment, TarError};
pub use stack::adopt_attributes;
use tree::Tree;
pub use tree::remove_tree;

/// Deepest directory taken; each level costs a kernel lookup.
pub const MAX_DEPTH: usize = 256;
/// Longest single name (NAME_MAX of Linux).
pub const MAX_NAME_BYTES: usize = 255;
/// Memory for paths and attributes that are kept until the end of an archive; real images need a tenth.
pub const MAX_REMEMBERED_BYTES: usize = 64 << 20;
/// Skipped entries named in a report; the rest are only counted.
pub const MAX_SKIPPED_NAMED: usize = 32;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Whose files these become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As the archive says: for root of a user namespace that maps the range. Ids from the limit on are refused.
    AsIs { limit: u32 },
    /// Shifted by a base: for root of the host, with the same result on disk.
    Shifted { base: u32, limit: u32 },
    /// Left to whoever unpacks.
    Ignored,
}

/// How much one archive may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes written to files.
    pub bytes: u64,
    /// Entries, whatever they are.
    pub entries: u64,
    /// Logical size of one file, holes included.
    pub file_bytes: u64,
}

impl Default for Limits {
    /// Far above real images, far below what hurts a disk.
    fn default() -> Limits {
        Limits { bytes: 64 << 30, entries: 2_000_000, file_bytes: 1 << 40 }
    }
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub entries: u64,
    /// Written to files.
    pub bytes: u64,
    pub skipped_count: u64,
    pub skipped: Vec<Skipped>,
    /// Directories made only because something lies inside them, parents first. In the layers below they may have
    /// attributes of their own, which the stack must show.
    pub implied: Vec<Vec<u8>>,
    /// The archive had an entry for the root itself.
    pub has_root: bool,
}

/// Something the archive held and the directory does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub path: String,
    pub why: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("path {path:?} {why}")]
    Path { path: String, why: &'static str },
    #[error("hard link {path:?} to {target:?}, which is not in the layer")]
    HardLink { path: String, target: String },
    #[error("owner {uid}:{gid} of {path:?} lies outside the range of ids an app has")]
    Owner { path: String, uid: u64, gid: u64 },
    #[error("layer is larger than the limit of {limit} {unit}")]
    Limit { limit: u64, unit: &'static str },
    #[error("cannot {what} {path:?}")]
    Disk { what: &'static str, path: String, source: Errno },
}

impl UnpackError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, UnpackError::Disk { source: Errno::NOSPC | Errno::DQUOT, .. })
    }

    /// The archive is at fault, not this machine.
    pub fn is_archive_at_fault(&self) -> bool {
        match self {
            UnpackError::Tar(_)
            | UnpackError::Path { .. }
            | UnpackError::HardLink { .. }
            | UnpackError::Owner { .. }
            | UnpackError::Limit { .. } => true,
            UnpackError::Disk { .. } => false,
        }
    }
}

/// Unpacks an archive below `root`, an empty directory, and reads it to its very end.
pub fn unpack(
    root: BorrowedFd<'_>,
    untrusted_archive: impl BufRead,
    owners: Owners,
    limits: Limits,
) -> Result<Report, UnpackError> {
    let mut archive = Archive::new(untrusted_archive);
    let mut unpacker = Unpacker {
        tree: Tree::new(root),
        owners,
        limits,
        report: Report::default(),
        implied: BTreeSet::new(),
        directories: BTreeMap::new(),
        left_out: BTreeSet::new(),
        remembered: 0,
    };
    while let Some(entry) = archive.next_entry()? {
        unpacker.entry(entry, &mut archive)?;
    }
    archive.drain()?;
    unpacker.finish()
}

struct Unpacker<'a> {
    tree: Tree<'a>,
    owners: Owners,
    limits: Limits,
    report: Report,
    implied: BTreeSet<Vec<u8>>,
    /// Attributes of directories, set last: children change times, and a mode may forbid making children.
    directories: BTreeMap<Vec<u8>, Entry>,
    /// Paths of skipped devices, so that hard links to them are skipped too.
    left_out: BTreeSet<Vec<u8>>,
    /// Bytes held by the three above, never counted down.
    remembered: usize,
}

impl Unpacker<'_> {
    fn entry<R: BufRead>(&mut self, mut entry: Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        self.report.entries += 1;
        if self.report.entries > self.limits.entries {
            return Err(UnpackError::Limit { limit: self.limits.entries, unit: "entries" });
        }
        entry.path = clean(&entry.path)?;
        if entry.path.is_empty() {
            if entry.kind == Kind::Directory {
                self.report.has_root = true;
                self.remember_directory(entry)?;
            }
            return Ok(());
        }
        if !matches!(self.owners, Owners::Ignored) {
            self.owner(&entry)?;
        }
        let (parent, name) = split(&entry.path);
        if name.starts_with(WHITEOUT) {
            let (parent, name) = (parent.to_vec(), name.to_vec());
            return self.whiteout(&parent, &name);
        }
        match entry.kind {
            Kind::Directory => {
                let (parent, name) = self.place(&entry.path)?;
                self.tree.directory(&parent, &name, &entry.path)?;
                self.remember_directory(entry)
            }
            Kind::File => self.file(&entry, archive),
            Kind::Symlink => {
                let (parent, name) = self.place(&entry.path)?;
                self.make(&entry.path, |tree| tree.symlink(&parent, &name, &entry))?;
                self.tree.set_link_attributes(&parent, &name, &entry, self.ids(&entry))
            }
            Kind::Fifo => {
                let (parent, name) = self.place(&entry.path)?;
                self.make(&entry.path, |tree| tree.fifo(&parent, &name, &entry.path))?;
                self.tree.set_link_attributes(&parent, &name, &entry, self.ids(&entry))?;
                self.tree.set_mode(&parent, &name, &entry)
            }
            Kind::HardLink => self.hard_link(&entry),
            Kind::CharDevice | Kind::BlockDevice => self.skip(entry.path, "device nodes are not made"),
            Kind::Other(_) => self.skip(entry.path, "unknown type of entry"),
        }
    }

    fn file<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        if entry.size > self.limits.file_bytes {
            return Err(UnpackError::Limit { limit: self.limits.file_bytes, unit: "bytes in one file" });
        }
        self.report.bytes = self.report.bytes.saturating_add(archive.content_left());
        if self.report.bytes > self.limits.bytes {
            return Err(UnpackError::Limit { limit: self.limits.bytes, unit: "bytes" });
        }
        let (parent, name) = self.place(&entry.path)?;
        let file = self.make(&entry.path, |tree| tree.file(&parent, &name, &entry.path))?;
        write_content(&file, entry, archive)?;
        let skipped = attributes::set(file.as_fd(), entry, self.ids(entry), self.owners)?;
        self.note_skipped_attributes(&entry.path, skipped);
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let target = clean(&entry.link)?;
        if self.left_out.contains(&target) {
            return self.skip(entry.path.clone(), "hard link to a device node");
        }
        let missing = || UnpackError::HardLink { path: show(&entry.path), target: show(&entry.link) };
        if target.is_empty() || target == entry.path {
            return Err(missing());
        }
        let (parent, name) = self.place(&entry.path)?;
        let (target_parent, target_name) = split(&target);
        let target_parent = self.tree.existing(target_parent).ok_or_else(missing)?;
        let target_name = target_name.to_vec();
        self.make(&entry.path, |tree| {
            tree.hard_link(&target_parent, &target_name, &parent, &name, &entry.path)
        })
        .map_err(|error| match error {
            UnpackError::Disk { source: Errno::NOENT | Errno::NOTDIR | Errno::PERM, .. } => missing(),
            other => other,
        })
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        let path = [parent, b"/", name].concat();
        if name == OPAQUE {
            let parent = self.parent(parent)?;
            return self.tree.opaque(&parent, &path);
        }
        if name.starts_with(AUFS) {
            return Ok(()); // Bookkeeping of a file system of old.
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Path { path: show(&path), why: "is a whiteout of nothing" });
        }
        let parent = self.parent(parent)?;
        self.tree.whiteout(&parent, hidden, &path)
    }

    /// Handle of the directory in which a path lies, and its name there.
    fn place(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>), UnpackError> {
        let (parent, name) = split(path);
        Ok((self.parent(parent)?, name.to_vec()))
    }

    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        let before = self.implied.len();
        let parent = self.tree.parent(path, &mut self.implied)?;
        let made = self.implied.len() - before;
        if made > 0 {
            self.remember(made * path.len())?;
        }
        Ok(parent)
    }

    fn remember_directory(&mut self, entry: Entry) -> Result<(), UnpackError> {
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.remember(2 * entry.path.len() + xattrs)?;
        self.directories.insert(entry.path.clone(), entry);
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Result<(), UnpackError> {
        /// A node of a map and the fixed part of an entry.
        const OVERHEAD: usize = 256;
        self.remembered += bytes + OVERHEAD;
        if self.remembered > MAX_REMEMBERED_BYTES {
            return Err(UnpackError::Limit { limit: MAX_REMEMBERED_BYTES as u64, unit: "bytes of names" });
        }
        Ok(())
    }

    /// Makes something that is no directory; what stood there before goes, the last entry of a path wins.
    fn make<T>(
        &mut self,
        path: &[u8],
        make: impl Fn(&Tree<'_>) -> Result<T, UnpackError>,
    ) -> Result<T, UnpackError> {
        match make(&self.tree) {
            Err(UnpackError::Disk { source: Errno::EXIST, .. }) => {}
            other => return other,
        }
        let (parent, name) = self.place(path)?;
        self.tree.remove(&parent, &name, path)?;
        // Names below a directory sort between its name with a slash and with the byte after the slash.
        let below = [path, b"/"].concat()..[path, b"0"].concat();
        self.directories.remove(path);
        while let Some(gone) = self.directories.range(below.clone()).next().map(|(known, _)| known.clone()) {
            self.directories.remove(&gone);
        }
        self.implied.remove(path);
        while let Some(gone) = self.implied.range(below.clone()).next().cloned() {
            self.implied.remove(&gone);
        }
        make(&self.tree)
    }

    fn finish(mut self) -> Result<Report, UnpackError> {
        // A directory that got an entry after something inside it is not merely implied.
        self.implied.retain(|path| !self.directories.contains_key(path));
        for path in &self.implied {
            self.directories.insert(path.clone(), plain_directory(path.clone()));
        }
        if !self.report.has_root {
            self.directories.insert(Vec::new(), plain_directory(Vec::new()));
        }
        // Deepest first, so that no later change touches a time already set.
        for (path, entry) in std::mem::take(&mut self.directories).into_iter().rev() {
            let Some(directory) = self.tree.open_directory(&path)? else {
                self.implied.remove(&path);
                continue;
            };
            let skipped = attributes::set(directory.as_fd(), &entry, self.ids(&entry), self.owners)?;
            self.note_skipped_attributes(&path, skipped);
        }
        self.report.implied = self.implied.into_iter().collect();
        Ok(self.report)
    }

    /// Checked before by [`Unpacker::owner`].
    fn ids(&self, entry: &Entry) -> Option<(u32, u32)> {
        self.owner(entry).ok().flatten()
    }

    fn owner(&self, entry: &Entry) -> Result<Option<(u32, u32)>, UnpackError> {
        let (base, limit) = match self.owners {
            Owners::AsIs { limit } => (0, limit),
            Owners::Shifted { base, limit } => (base, limit),
            Owners::Ignored => return Ok(None),
        };
        let shift = |id: u64| u32::try_from(id).ok().filter(|id| *id < limit)?.checked_add(base);
        match (shift(entry.uid), shift(entry.gid)) {
            (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
            _ => Err(UnpackError::Owner { path: show(&entry.path), uid: entry.uid, gid: entry.gid }),
        }
    }

    fn skip(&mut self, path: Vec<u8>, why: &'static str) -> Result<(), UnpackError> {
        self.note_skipped(&path, why);
        self.remember(path.len())?;
        self.left_out.insert(path);
        Ok(())
    }

    fn note_skipped_attributes(&mut self, path: &[u8], count: usize) {
        for _ in 0..count {
            self.note_skipped(path, "extended attribute of the host's");
        }
    }

    fn note_skipped(&mut self, path: &[u8], why: &'static str) {
        self.report.skipped_count += 1;
        if self.report.skipped.len() < MAX_SKIPPED_NAMED {
            self.report.skipped.push(Skipped { path: show(path), why });
        }
    }
}

/// What a directory is that nothing is known of.
fn plain_directory(path: Vec<u8>) -> Entry {
    Entry {
        path,
        link: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
        size: 0,
        sparse: None,
    }
}

/// Largest single write: keeps the buffer of the reader warm in the cache.
const WRITE_BYTES: usize = 1 << 20;

fn write_content<R: BufRead>(
    file: &OwnedFd,
    entry: &Entry,
    archive: &mut Archive<R>,
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Disk { what: "write", path: show(&entry.path), source };
    let whole = [Segment { offset: 0, len: entry.size }];
    let segments = entry.sparse.as_deref().unwrap_or(&whole);
    for segment in segments {
        let (mut at, mut left) = (segment.offset, segment.len);
        while left > 0 {
            let content = archive.content()?;
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(content.len()).min(WRITE_BYTES);
            if len == 0 {
                return Err(TarError::Truncated.into());
            }
            let len = match rustix::io::pwrite(file, &content[..len], at) {
                Ok(len) => len,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(failed(error)),
            };
            archive.consume(len);
            at += len as u64;
            left -= len as u64;
        }
    }
    if entry.sparse.is_some() {
        rustix::fs::ftruncate(file, entry.size).map_err(failed)?;
    }
    Ok(())
}

/// The parts of a path without `.`, joined by single slashes; `..` is refused, since no tool that makes layers writes it.
fn clean(untrusted_path: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let refused = |why| UnpackError::Path { path: show(untrusted_path), why };
    let mut out = Vec::with_capacity(untrusted_path.len());
    let mut depth = 0;
    for part in untrusted_path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(refused("leads out of its directory")),
            _ if part.len() > MAX_NAME_BYTES => return Err(refused("has a name longer than 255 bytes")),
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
        depth += 1;
    }
    if depth > MAX_DEPTH { Err(refused("is too deep")) } else { Ok(out) }
}

/// Directory and name of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// A foreign path, fit for a message.
fn show(untrusted_path: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(&untrusted_path[..untrusted_path.len().min(SHOWN)]);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests;
