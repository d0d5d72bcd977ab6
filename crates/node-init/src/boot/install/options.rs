// SPDX-License-Identifier: Apache-2.0
//! What somebody wants of an installation: a text on CONFIG of the medium, words with the names that EVE's installer takes from
//! its kernel's command line. Ours is signed and cannot be changed.
//!
//! ```text
//! eve_install_disk=nvme0n1         the target; else the only disk without data
//! eve_nuke_disks=nvme0n1,sda       disks that may be taken although they carry data
//! eve_install_server=host:port     instead of the server that CONFIG names
//! eve_soft_serial=text             the box's serial of the operator's own
//! eve_reboot_after_install         instead of switching off
//! eve_pause_before_install         wait for the enter key
//! ```
//! A word nobody knows ends the installation before it begins: it may be one that should have protected something.

use std::collections::BTreeSet;

use crate::boot::Ending;

/// Where the words stand on CONFIG. Not taken over to the target.
pub(super) const FILE: &str = "installer.options";
/// Of a value: all of them are names.
const VALUE_BYTES_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) disk: Option<String>,
    pub(super) may_erase: BTreeSet<String>,
    pub(super) server: Option<String>,
    pub(super) soft_serial: Option<String>,
    pub(super) ending: Ending,
    pub(super) start: Start,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    AtOnce,
    AfterKey,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionsError {
    #[error("{FILE} has a word that is not known: {0:?}")]
    Unknown(String),
    #[error("{FILE}: {0} needs a value, and one of at most {VALUE_BYTES_MAX} bytes")]
    Value(String),
    #[error("{FILE}: P3 on a disk of its own ({0}) is not there yet")]
    PersistDisk(String),
}

impl Options {
    pub(super) fn parse(untrusted_text: &str) -> Result<Options, OptionsError> {
        let mut options = Options {
            disk: None,
            may_erase: BTreeSet::new(),
            server: None,
            soft_serial: None,
            ending: Ending::PowerOff,
            start: Start::AtOnce,
        };
        let lines = untrusted_text.lines().map(|line| line.split('#').next().unwrap_or_default());
        for word in lines.flat_map(str::split_whitespace) {
            let (name, value) =
                word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            let value = value.filter(|value| !value.is_empty() && value.len() <= VALUE_BYTES_MAX);
            let needed = || value.map(str::to_owned).ok_or_else(|| OptionsError::Value(name.to_owned()));
            match name {
                "eve_install_disk" => options.disk = Some(plain(&needed()?)),
                "eve_nuke_disks" => options.may_erase.extend(needed()?.split(',').map(plain)),
                "eve_install_server" => options.server = Some(needed()?),
                "eve_soft_serial" => options.soft_serial = Some(needed()?),
                "eve_persist_disk" => return Err(OptionsError::PersistDisk(needed()?)),
                "eve_reboot_after_install" => options.ending = Ending::Restart,
                "eve_pause_before_install" => options.start = Start::AfterKey,
                _ => return Err(OptionsError::Unknown(word.to_owned())),
            }
        }
        Ok(options)
    }
}

/// The kernel's name of a disk, however it was written.
fn plain(name: &str) -> String {
    name.trim_start_matches("/dev/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_eve() {
        let text = "# our boxes\r\neve_install_disk=/dev/sda eve_nuke_disks=sda,sdb # both\n\
            eve_soft_serial=S-1\neve_reboot_after_install\neve_install_server=c:443\neve_pause_before_install\n";
        let options = Options::parse(text).unwrap();
        assert_eq!(options.disk.as_deref(), Some("sda"));
        assert_eq!(options.may_erase, ["sda".to_owned(), "sdb".to_owned()].into());
        assert_eq!((options.soft_serial.as_deref(), options.server.as_deref()), (Some("S-1"), Some("c:443")));
        assert_eq!((options.ending, options.start), (Ending::Restart, Start::AfterKey));
        let nothing = Options::parse("").unwrap();
        assert_eq!((nothing.ending, nothing.start, nothing.disk), (Ending::PowerOff, Start::AtOnce, None));
    }

    #[test]
    fn what_is_not_understood_ends_it() {
        let refused = |text: &str| Options::parse(text).unwrap_err();
        assert_eq!(refused("eve_install_disc=sda"), OptionsError::Unknown("eve_install_disc=sda".to_owned()));
        assert_eq!(refused("eve_install_disk"), OptionsError::Value("eve_install_disk".to_owned()));
        assert_eq!(refused("eve_persist_disk=sdb"), OptionsError::PersistDisk("sdb".to_owned()));
    }
}
