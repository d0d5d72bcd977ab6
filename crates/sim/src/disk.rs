// SPDX-License-Identifier: Apache-2.0
//! A disk with a write cache: what was not synced is lost or torn when the power goes.
//!
//! A file's bytes are safe after a sync of the file, a name after a sync of its directory. At a power cut every file
//! keeps its synced bytes, or part of what was written since, or all of it; every directory keeps its synced names and
//! any number of the changes after that, from the first on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use reconcile::Chance;
use service::files::Files;

use crate::fuse::Fuse;
use crate::node::Name;

type Bytes = Rc<[u8]>;

#[derive(Clone, Debug)]
struct Inode {
    now: Bytes,
    safe: Bytes,
    written_ms: u64,
}

#[derive(Clone, Debug)]
enum NameChange {
    Put(String, u64),
    Remove(String),
}

#[derive(Debug, Default)]
struct Directory {
    now: BTreeMap<String, u64>,
    safe: BTreeMap<String, u64>,
    /// Since the last sync, in order.
    unsynced: Vec<NameChange>,
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    dirs: BTreeMap<String, Directory>,
    next_inode: u64,
}

/// The disk of one node.
#[derive(Debug)]
pub struct Disk {
    state: RefCell<State>,
    fuse: Rc<Fuse>,
    pub now_ms: Cell<u64>,
    pub is_full: Cell<bool>,
    /// A planted fault: says that it is done, and keeps nothing.
    pub is_lying: Cell<bool>,
}

impl Disk {
    pub fn new(fuse: Rc<Fuse>) -> Disk {
        Disk {
            state: RefCell::default(),
            fuse,
            now_ms: Cell::new(0),
            is_full: Cell::new(false),
            is_lying: Cell::new(false),
        }
    }

    /// The power is gone: what was in the cache is kept or lost as chance has it.
    pub fn cut(&self, chance: &mut Chance) {
        let state = &mut *self.state.borrow_mut();
        for dir in state.dirs.values_mut() {
            let kept = match dir.unsynced.len() {
                0 => 0,
                all => chance.between(0, all as u64) as usize,
            };
            let mut names = std::mem::take(&mut dir.safe);
            for change in dir.unsynced.drain(..).take(kept) {
                apply(&mut names, change);
            }
            dir.now.clone_from(&names);
            dir.safe = names;
        }
        for inode in state.inodes.values_mut() {
            if inode.now != inode.safe {
                inode.safe = match chance.between(0, 3) {
                    0 => inode.safe.clone(),
                    1 => inode.now.clone(),
                    2 => torn(&inode.now, chance),
                    _ => vec![0; inode.now.len()].into(),
                };
            }
            inode.now = inode.safe.clone();
        }
        let used: std::collections::BTreeSet<u64> =
            state.dirs.values().flat_map(|dir| dir.now.values().copied()).collect();
        state.inodes.retain(|number, _| used.contains(number));
    }

    /// Files below a directory.
    pub fn count(&self, dir: &str) -> usize {
        self.state.borrow().dirs.get(dir).map_or(0, |dir| dir.now.len())
    }
}

fn torn(bytes: &Bytes, chance: &mut Chance) -> Bytes {
    let length = chance.between(0, bytes.len() as u64) as usize;
    bytes.get(..length).unwrap_or_default().into()
}

fn apply(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Put(name, inode) => {
            names.insert(name, inode);
        }
        NameChange::Remove(name) => {
            names.remove(&name);
        }
    }
}

impl State {
    fn change(&mut self, dir: &str, change: NameChange) {
        let dir = self.dirs.entry(dir.into()).or_default();
        apply(&mut dir.now, change.clone());
        dir.unsynced.push(change);
    }

    fn inode(&self, path: &str) -> io::Result<u64> {
        let (dir, name) = split(path);
        let found = self.dirs.get(dir).and_then(|dir| dir.now.get(name));
        found.copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Directory and name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// What one process sees of the disk: its own directory.
#[derive(Debug, Clone)]
pub(crate) struct View {
    disk: Rc<Disk>,
    owner: Name,
    root: &'static str,
}

impl View {
    pub(crate) fn new(disk: Rc<Disk>, owner: Name) -> View {
        View { disk, owner, root: owner.text() }
    }

    fn path(&self, name: &str) -> String {
        if name.is_empty() { self.root.into() } else { format!("{}/{name}", self.root) }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.disk.fuse.effect(self.owner) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }
}

impl Files for View {
    fn read(&self, name: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        let state = self.disk.state.borrow();
        let inode = state.inode(&self.path(name))?;
        let bytes = &state.inodes[&inode].now;
        if bytes.len() as u64 > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes.to_vec())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.may_write()?;
        if self.disk.is_full.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let state = &mut *self.disk.state.borrow_mut();
        let path = self.path(name);
        let written_ms = self.disk.now_ms.get();
        if let Ok(number) = state.inode(&path) {
            if let Some(inode) = state.inodes.get_mut(&number) {
                inode.now = bytes.into();
                inode.written_ms = written_ms;
            }
            return Ok(());
        }
        let number = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(number, Inode { now: bytes.into(), safe: Rc::new([]), written_ms });
        let (dir, name) = split(&path);
        state.change(dir, NameChange::Put(name.into(), number));
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        let state = &mut *self.disk.state.borrow_mut();
        let number = state.inode(&self.path(name))?;
        if !self.disk.is_lying.get()
            && let Some(inode) = state.inodes.get_mut(&number)
        {
            inode.safe = inode.now.clone();
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.may_write()?;
        let state = &mut *self.disk.state.borrow_mut();
        let (from, to) = (self.path(from), self.path(to));
        let number = state.inode(&from)?;
        let ((dir, name), (to_dir, to_name)) = (split(&from), split(&to));
        // One step of the journal: never both names, never none.
        state.change(to_dir, NameChange::Put(to_name.into(), number));
        state.change(dir, NameChange::Remove(name.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        let state = &mut *self.disk.state.borrow_mut();
        let path = self.path(name);
        state.inode(&path)?;
        let (dir, name) = split(&path);
        state.change(dir, NameChange::Remove(name.into()));
        Ok(())
    }

    fn make_dir(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        self.disk.state.borrow_mut().dirs.entry(self.path(name)).or_default();
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.disk.state.borrow();
        let dir = state.dirs.get(&self.path(dir)).ok_or(io::ErrorKind::NotFound)?;
        Ok(dir.now.keys().cloned().collect())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.may_write()?;
        let state = &mut *self.disk.state.borrow_mut();
        if !self.disk.is_lying.get()
            && let Some(dir) = state.dirs.get_mut(&self.path(dir))
        {
            dir.safe.clone_from(&dir.now);
            dir.unsynced.clear();
        }
        Ok(())
    }

    fn age(&self, name: &str) -> Option<Duration> {
        let state = self.disk.state.borrow();
        let inode = state.inode(&self.path(name)).ok()?;
        let written_ms = state.inodes.get(&inode)?.written_ms;
        Some(Duration::from_millis(self.disk.now_ms.get().checked_sub(written_ms)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::files::replace;

    fn disk() -> (Rc<Disk>, View, Rc<Fuse>) {
        let fuse = Rc::new(Fuse::default());
        let disk = Rc::new(Disk::new(fuse.clone()));
        (disk.clone(), View::new(disk, Name::Agent), fuse)
    }

    #[test]
    fn what_was_replaced_is_old_or_new_at_every_cut() {
        for seed in 0..200 {
            for effects in 0..6 {
                let (disk, files, fuse) = disk();
                replace(&files, "", "a", b"old").unwrap();
                fuse.arm(crate::fuse::Blow::Power, effects);
                let result = replace(&files, "", "a", b"newer");
                disk.cut(&mut Chance::new(seed));
                fuse.take_blown();
                let found = files.read("a", 100).unwrap();
                if result.is_ok() {
                    assert_eq!(found, b"newer", "seed {seed}, {effects} effects");
                } else {
                    assert!(
                        found == b"old" || found == b"newer",
                        "seed {seed}, {effects} effects: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_was_not_synced_is_lost_or_torn_sooner_or_later() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let (disk, files, _) = disk();
            files.write("a", b"12345678").unwrap();
            disk.cut(&mut Chance::new(seed));
            seen.insert(files.read("a", 100).ok());
        }
        assert!(
            seen.contains(&None) && seen.contains(&Some(b"12345678".to_vec())) && seen.len() > 4,
            "{seen:?}"
        );
    }
}
