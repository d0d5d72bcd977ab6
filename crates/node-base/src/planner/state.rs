// SPDX-License-Identifier: Apache-2.0
//! The planner's one file: replaced as a whole, checked by a checksum, dropped with a reason when torn. Written is the
//! newest format, read are that one and the one before it.

mod before;

use std::io;

use model::reason::{Fault, Reason};
use service::durable;
use service::files::{Files, Reserve, replace};

use super::{Desired, Memory};

const NAME: &str = "state";
/// The state of a hundred apps has room in it.
const RESERVE_BYTES: usize = 512 << 10;

/// First bytes of the file; the format's number follows as one byte.
const MAGIC: &[u8; 7] = b"SELVPLN";
const FORMAT: u8 = 2;
/// A larger file is not ours.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Why the state is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot read the file {NAME}")]
    Read(#[source] io::Error),
    #[error("cannot write the file {NAME}")]
    Write(#[source] io::Error),
    #[error("the file {NAME} is torn, or not ours")]
    Torn,
    #[error("the file {NAME} has format {0}, this version reads {before} and {FORMAT}", before = before::FORMAT)]
    Format(u8),
}

impl StateError {
    /// For those who wait for it.
    pub(crate) fn fault(&self) -> Fault {
        if self.is_disk_full() {
            let text = "a change of this app waits until the planner can write its state: the disk is full";
            return Fault::new(Reason::DiskFull, text);
        }
        Fault::new(Reason::StorageFailed, format!("a change of this app waits: {self}"))
    }

    fn is_disk_full(&self) -> bool {
        matches!(self, StateError::Write(source) if durable::is_full(source))
    }
}

#[derive(Debug)]
pub(crate) struct StateFile {
    files: Box<dyn Files>,
    reserve: Reserve,
}

impl StateFile {
    pub(crate) fn new(files: Box<dyn Files>) -> StateFile {
        StateFile { files, reserve: Reserve::new(RESERVE_BYTES) }
    }

    /// What was saved last; nothing when there was never anything.
    pub(crate) fn load(&self) -> Result<(Memory, Desired), StateError> {
        let bytes = match self.files.read(NAME, FILE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(StateError::Torn),
            Err(error) => return Err(StateError::Read(error)),
        };
        let (format, rest) =
            bytes.strip_prefix(MAGIC).and_then(<[u8]>::split_first).ok_or(StateError::Torn)?;
        let (sum, body) = rest.split_at_checked(8).ok_or(StateError::Torn)?;
        if checksum(body).to_be_bytes() != sum {
            return Err(StateError::Torn);
        }
        match *format {
            FORMAT => postcard::from_bytes(body).map_err(|_| StateError::Torn),
            before::FORMAT => before::read(body).map_err(|_| StateError::Torn),
            other => Err(StateError::Format(other)),
        }
    }

    /// [`StateFile::save`]; on a full disk in the room that was kept for it. An order that makes room must not need any.
    pub(crate) fn save_on_full_disk(&self, memory: &Memory, desired: &Desired) -> Result<(), StateError> {
        let mut saved = self.save(memory, desired);
        if saved.as_ref().is_err_and(StateError::is_disk_full) && self.reserve.give_up(&*self.files) {
            saved = self.save(memory, desired);
        }
        if saved.is_ok() {
            // Not to be had on a disk that is still full; the next time it is tried again.
            let _ = self.reserve.keep(&*self.files);
        }
        saved
    }

    /// Returns when it is on the disk.
    pub(crate) fn save(&self, memory: &Memory, desired: &Desired) -> Result<(), StateError> {
        let body = postcard::to_allocvec(&(memory, desired))
            .map_err(|error| StateError::Write(io::Error::other(error)))?;
        replace(&*self.files, "", NAME, &framed(&body)).map_err(StateError::Write)
    }
}

/// The whole file.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &[FORMAT], &checksum(body).to_be_bytes(), body].concat()
}

/// FNV-1a, 64 bit: finds torn writes, not attackers; the directory is private.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_core::apps::AppMemory;
    use service::files::Directory;
    use std::fs;

    #[test]
    fn state_comes_back_and_a_torn_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(Box::new(Directory::new(dir.path())));
        assert_eq!(file.load().unwrap(), Default::default());
        let mut memory = Memory::default();
        let app = "60000000-0000-4000-8000-000000000001".parse().unwrap();
        memory.apps.insert(app, AppMemory { number: 7, ..AppMemory::default() });
        file.save(&memory, &Desired::default()).unwrap();
        assert_eq!(file.load().unwrap(), (memory, Desired::default()));
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(file.load(), Err(StateError::Torn)), "{length}");
        }
    }
    #[test]
    fn a_later_format_is_told_as_such_and_not_as_torn() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = framed(b"unknown");
        bytes[MAGIC.len()] = FORMAT + 1;
        fs::write(dir.path().join(NAME), bytes).unwrap();
        let file = StateFile::new(Box::new(Directory::new(dir.path())));
        assert!(matches!(file.load(), Err(StateError::Format(3))));
    }
}
