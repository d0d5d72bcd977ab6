// SPDX-License-Identifier: Apache-2.0
//! Files written into an app's root file system before it starts.
//!
//! Runs as container root inside the container's root. Every path is resolved by `openat2` below the root and without
//! magic links; what an image puts in the way (links, pipes, directories) ends in an error, never outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::step::{Step, StepError};

/// What is read of a passwd or group file.
const MAX_ACCOUNT_FILE_BYTES: usize = 1 << 20;

/// A file of the app's user data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToWrite {
    /// Absolute; missing directories are made.
    pub path: String,
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// `user` or `user:group` of the image; empty: root.
    pub owner: String,
    /// Add to what is there instead of replacing it.
    pub append: bool,
}

/// Inside `root` whatever the path says.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

pub(super) fn open_root() -> Result<OwnedFd, StepError> {
    rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(StepError::at(Step::Files, "/"))
}

/// A directory below the root, made with its parents where missing.
pub(super) fn make_dirs(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let open = |path: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE)
    };
    match open(path) {
        Err(Errno::NOENT) => {}
        done => return done,
    }
    let mut reached = String::from("/");
    let mut dir = open("/")?;
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        if name == ".." {
            return Err(Errno::INVAL);
        }
        reached.push_str(name);
        dir = match open(&reached) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                open(&reached)?
            }
            there => there?,
        };
        reached.push('/');
    }
    Ok(dir)
}

/// Replaces one of the files the node keeps for the app, as `/etc/hosts`. A link in its place is removed, not followed.
pub(super) fn write_own(etc: BorrowedFd<'_>, name: &str, content: &[u8]) -> Result<(), StepError> {
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::TRUNC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(etc, name, flags, Mode::from_raw_mode(0o644));
    let failed = |errno| StepError::at(Step::Files, &format!("/etc/{name}"))(errno);
    let file = match open() {
        Err(Errno::LOOP | Errno::NXIO | Errno::ACCESS | Errno::ISDIR) => {
            rustix::fs::unlinkat(etc, name, rustix::fs::AtFlags::empty()).map_err(failed)?;
            open().map_err(failed)?
        }
        opened => opened.map_err(failed)?,
    };
    write_all(&file, content).map_err(failed)
}

/// Writes one file of the user data for an owner, ids of the container.
pub(super) fn write_file(
    root: BorrowedFd<'_>,
    file: &FileToWrite,
    owner: (u32, u32),
) -> Result<(), StepError> {
    let failed = |errno| StepError::at(Step::Files, &file.path)(errno);
    let path = file.path.trim_end_matches('/');
    let (parent, _) = path.rsplit_once('/').ok_or_else(|| failed(Errno::INVAL))?;
    make_dirs(root, if parent.is_empty() { "/" } else { parent }).map_err(failed)?;
    let how = if file.append { OFlags::APPEND } else { OFlags::TRUNC };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC | how;
    // Closed to others until it is written and has its owner.
    let fd = rustix::fs::openat2(root, path, flags, Mode::from_raw_mode(0o600), INSIDE).map_err(failed)?;
    if !is_regular(fd.as_fd()) {
        return Err(failed(Errno::INVAL));
    }
    write_all(&fd, &file.content).map_err(failed)?;
    let (uid, gid) = owner;
    rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(file.mode & 0o7777)).map_err(failed)
}

/// An account file of the image; empty when there is none.
pub(super) fn read_account_file(root: BorrowedFd<'_>, path: &str) -> Result<String, StepError> {
    let failed = |errno| StepError::at(Step::User, path)(errno);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        opened => opened.map_err(failed)?,
    };
    if !is_regular(fd.as_fd()) {
        return Err(failed(Errno::INVAL));
    }
    let mut out = vec![0; 4096];
    let mut filled = 0;
    loop {
        match rustix::io::read(&fd, &mut out[filled..]).map_err(failed)? {
            0 => break,
            count => filled += count,
        }
        if filled > MAX_ACCOUNT_FILE_BYTES {
            return Err(failed(Errno::FBIG));
        }
        if filled == out.len() {
            out.resize(filled * 2, 0);
        }
    }
    out.truncate(filled);
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn is_regular(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn write_all(fd: &OwnedFd, mut content: &[u8]) -> Result<(), Errno> {
    while !content.is_empty() {
        match rustix::io::write(fd, content) {
            Ok(count) => content = &content[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(dir: &std::path::Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn file(path: &str) -> FileToWrite {
        FileToWrite {
            path: path.into(),
            content: b"x".to_vec(),
            mode: 0o640,
            owner: String::new(),
            append: false,
        }
    }

    fn me() -> (u32, u32) {
        (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    }

    #[test]
    fn links_of_the_image_do_not_lead_outside() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        std::fs::create_dir_all(inner.join("etc")).unwrap();
        symlink("/../../secret", inner.join("etc/up")).unwrap();
        symlink(outer.path(), inner.join("abs")).unwrap();
        let fd = root(&inner);
        write_file(fd.as_fd(), &file("/etc/up"), me()).unwrap();
        assert!(inner.join("secret").exists() && !outer.path().join("secret").exists());
        // The link's target does not exist below the root, and is not made.
        assert!(write_file(fd.as_fd(), &file("/abs/f"), me()).is_err());
        assert!(!outer.path().join("f").exists());
    }

    #[test]
    fn directories_are_made_and_modes_kept() {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path());
        write_file(fd.as_fd(), &file("/a/b/c"), me()).unwrap();
        write_file(fd.as_fd(), &FileToWrite { append: true, ..file("/a/b/c") }, me()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("a/b/c")).unwrap(), b"xx");
        let mode =
            std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path().join("a/b/c")).unwrap());
        assert_eq!(mode & 0o7777, 0o640);
        for bad in ["relative", "/", "", "/x/../y/z"] {
            assert!(write_file(fd.as_fd(), &file(bad), me()).is_err(), "{bad}");
        }
    }

    #[test]
    fn own_files_replace_links_and_pipes_do_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/run/systemd/resolve/stub", dir.path().join("resolv.conf")).unwrap();
        let fd = root(dir.path());
        write_own(fd.as_fd(), "resolv.conf", b"nameserver 10.0.0.1\n").unwrap();
        assert_eq!(std::fs::read(dir.path().join("resolv.conf")).unwrap(), b"nameserver 10.0.0.1\n");
        rustix::fs::mknodat(&fd, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(write_file(fd.as_fd(), &file("/fifo"), me()).is_err());
        write_own(fd.as_fd(), "fifo", b"y").unwrap();
        assert_eq!(std::fs::read(dir.path().join("fifo")).unwrap(), b"y");
    }
}
