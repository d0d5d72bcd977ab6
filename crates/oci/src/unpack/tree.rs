// SPDX-License-Identifier: Apache-2.0
//! Making and removing things below one directory handle, and nowhere else.
//!
//! A parent is looked up by the kernel with `RESOLVE_IN_ROOT`: symbolic links count as if the layer were the whole file
//! system. Whatever is made is made by its bare name in that parent, without following anything. Nobody else writes the
//! tree meanwhile.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fsetxattr, linkat, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::{MAX_DEPTH, UnpackError, attributes, show};
use crate::tar::Entry;

/// Symbolic links followed on one path at most, as Linux does.
const MAX_LINKS: usize = 40;
/// overlayfs reads this one when mounted with `userxattr`.
pub(super) const OPAQUE_XATTR: &str = "user.overlay.opaque";

const NEW_DIRECTORY: Mode = Mode::RWXU;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// The parent used last: archives go through a tree in order.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Tree<'a> {
        Tree { root, last: None }
    }

    /// A directory by its path, made with its parents where it is missing; those made are added to `implied`.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        implied: &mut BTreeSet<Vec<u8>>,
    ) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some((known, directory)) = &self.last
            && known == path
        {
            return Ok(directory.clone());
        }
        let directory = match self.existing(path) {
            Some(directory) => directory,
            None => Rc::new(self.walk(path, implied)?),
        };
        self.last = Some((path.to_vec(), directory.clone()));
        Ok(directory)
    }

    /// A directory by its path, where there is one.
    pub(super) fn existing(&self, path: &[u8]) -> Option<Rc<OwnedFd>> {
        let path = if path.is_empty() { b"." } else { path };
        openat2(self.root, path, DIRECTORY, Mode::empty(), INSIDE).ok().map(Rc::new)
    }

    /// A directory at its path. `None`: an entry that reached it through a link has put something else there since.
    pub(super) fn open_directory(&self, path: &[u8]) -> Result<Option<OwnedFd>, UnpackError> {
        let name = if path.is_empty() { b"." } else { path };
        match openat2(self.root, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty(), INSIDE) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(failed("open", path)(error)),
        }
    }

    /// Goes to a directory name by name, resolving links itself, so that a link to a directory which only a lower layer
    /// has leads to that place in this layer, never outside.
    fn walk(&self, path: &[u8], implied: &mut BTreeSet<Vec<u8>>) -> Result<OwnedFd, UnpackError> {
        let mut todo: Vec<Vec<u8>> = parts(path).rev().collect();
        let mut at: Vec<(Vec<u8>, OwnedFd)> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                at.pop();
                continue;
            }
            if at.len() >= MAX_DEPTH {
                return Err(UnpackError::Path { path: show(path), why: "is too deep" });
            }
            let here = at.last().map_or(self.root, |(_, directory)| directory.as_fd());
            let full = at
                .iter()
                .map(|(name, _)| name.as_slice())
                .chain([name.as_slice()])
                .collect::<Vec<_>>()
                .join(&b'/');
            match statat(here, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(UnpackError::Path {
                                path: show(path),
                                why: "goes through too many links",
                            });
                        }
                        let target = readlinkat(here, &name, Vec::new()).map_err(failed("read", &full))?;
                        if target.as_bytes().starts_with(b"/") {
                            at.clear();
                        }
                        todo.extend(parts(target.as_bytes()).rev());
                        if todo.len() > 2 * MAX_DEPTH {
                            return Err(UnpackError::Path { path: show(path), why: "is too deep" });
                        }
                        continue;
                    }
                    FileType::CharacterDevice => {
                        self.directory_at(here, &name, &full)?;
                        implied.insert(full.clone());
                    }
                    _ => {
                        return Err(UnpackError::Path {
                            path: show(path),
                            why: "lies below something that is no directory",
                        });
                    }
                },
                Err(Errno::NOENT) => {
                    self.directory_at(here, &name, &full)?;
                    implied.insert(full.clone());
                }
                Err(error) => return Err(failed("look at", &full)(error)),
            }
            let directory = openat(here, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                .map_err(failed("open", &full))?;
            at.push((name, directory));
        }
        match at.pop() {
            Some((_, directory)) => Ok(directory),
            None => openat(self.root, ".", DIRECTORY, Mode::empty()).map_err(failed("open", path)),
        }
    }

    /// A directory for an entry of its own. A directory that stands there stays with what is in it.
    pub(super) fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let replaced = self.directory_at(parent.as_fd(), name, path)?;
        if replaced {
            self.last = None;
        }
        Ok(())
    }

    /// Says whether something else stood there.
    fn directory_at(&self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool, UnpackError> {
        match mkdirat(parent, name, NEW_DIRECTORY) {
            Ok(()) => return Ok(false),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make directory", path)(error)),
        }
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return Ok(false);
        }
        unlinkat(parent, name, AtFlags::empty()).map_err(failed("replace", path))?;
        mkdirat(parent, name, NEW_DIRECTORY).map_err(failed("make directory", path))?;
        if kind == FileType::CharacterDevice {
            // A whiteout and a new directory of the same name: nothing of the lower directory shows through.
            let directory = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                .map_err(failed("open", path))?;
            self.opaque(&directory, path)?;
        }
        Ok(true)
    }

    pub(super) fn file(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make", path))
    }

    pub(super) fn symlink(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if entry.link.is_empty() {
            return Err(UnpackError::Path { path: show(&entry.path), why: "is a link to nothing" });
        }
        symlinkat(&entry.link[..], parent, name).map_err(failed("make link", &entry.path))
    }

    pub(super) fn fifo(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(failed("make fifo", path))
    }

    pub(super) fn hard_link(
        &self,
        from: &OwnedFd,
        from_name: &[u8],
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        linkat(from, from_name, parent, name, AtFlags::empty()).map_err(failed("make hard link", path))
    }

    /// Hides a name of the layers below. What this layer itself puts there stays: a file hides the lower one by being
    /// there, a directory becomes opaque.
    pub(super) fn whiteout(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        match mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make whiteout", path)(error)),
        }
        match openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(directory) => self.opaque(&directory, path),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn opaque(&self, directory: &OwnedFd, path: &[u8]) -> Result<(), UnpackError> {
        fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(failed("make opaque", path))
    }

    /// Owner and time of something that cannot be opened.
    pub(super) fn set_link_attributes(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        owner: Option<(u32, u32)>,
    ) -> Result<(), UnpackError> {
        if let Some((uid, gid)) = owner {
            chownat(
                parent,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(failed("change owner of", &entry.path))?;
        }
        let times: Timestamps = attributes::times(entry.mtime);
        utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set time of", &entry.path))
    }

    /// Only for what is known to be no link.
    pub(super) fn set_mode(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(failed("set mode of", &entry.path))
    }

    /// Removes what stands at a name, with all below it.
    pub(super) fn remove(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        self.last = None;
        remove_tree(parent.as_fd(), name).map_err(failed("replace", path))
    }
}

/// Removes a file or a whole directory below a handle, without following links and without recursion on the stack.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let mut stack = vec![(name.to_vec(), openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)];
    'descend: while let Some((name, directory)) = stack.last() {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let child = entry.file_name().to_bytes();
            if matches!(child, b"." | b"..") {
                continue;
            }
            match unlinkat(directory, child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    let inner = openat(directory, child, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
                    stack.push((child.to_vec(), inner));
                    continue 'descend;
                }
                Err(error) => return Err(error),
            }
        }
        let name = name.clone();
        stack.pop();
        let above = stack.last().map_or(parent, |(_, directory)| directory.as_fd());
        unlinkat(above, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}

fn failed(what: &'static str, path: &[u8]) -> impl Fn(Errno) -> UnpackError {
    let path = show(path);
    move |source| UnpackError::Disk { what, path: path.clone(), source }
}
