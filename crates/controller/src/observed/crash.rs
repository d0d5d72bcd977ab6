// SPDX-License-Identifier: Apache-2.0
//! Tells whether the whole machine went down under a running controller: then what the kernel had not written of
//! acknowledged reports is lost, and devices are to be asked for all of it again.
//!
//! While the controller runs there is a file with the id of this boot. Found with another id, the machine went down.

use std::fs;
use std::io;
use std::path::Path;

const NAME: &str = "running";
/// Another text after each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How the run before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, or killed: what was written is there.
    Whole,
    /// With the machine.
    WithMachine,
}

/// A run begins.
pub(crate) fn begin(dir: &Path) -> io::Result<Ended> {
    begin_with(dir, &fs::read(BOOT_ID).unwrap_or_default())
}

fn begin_with(dir: &Path, boot: &[u8]) -> io::Result<Ended> {
    let path = dir.join(NAME);
    let before = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read?),
    };
    if before.as_deref() == Some(boot) {
        return Ok(Ended::Whole);
    }
    fs::write(&path, boot)?;
    // After a power cut it must be there, or nobody knows.
    fs::File::open(&path)?.sync_all()?;
    fs::File::open(dir)?.sync_all()?;
    Ok(if before.is_some() { Ended::WithMachine } else { Ended::Whole })
}

/// The run ends in order. Not synced: after a power cut in the next seconds the file is there again, like what was lost.
pub(crate) fn end(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_that_ended_with_its_machine_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(begin_with(dir.path(), b"first").unwrap(), Ended::Whole);
        assert_eq!(begin_with(dir.path(), b"first").unwrap(), Ended::Whole, "killed");
        assert_eq!(begin_with(dir.path(), b"second").unwrap(), Ended::WithMachine);
        assert_eq!(begin_with(dir.path(), b"second").unwrap(), Ended::Whole);
        end(dir.path()).unwrap();
        assert_eq!(begin_with(dir.path(), b"third").unwrap(), Ended::Whole, "stopped in order");
    }
}
