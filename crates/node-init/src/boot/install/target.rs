// SPDX-License-Identifier: Apache-2.0
//! Which disk is installed on: a decision from what the disks carry and what was asked for.

use disk::content::Content;

use super::options::Options;

/// A disk that is not the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) access: Access,
    pub(super) content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    #[error("there is no disk {0}; there are: {1}")]
    NotThere(String, String),
    #[error("{0} can only be read")]
    ReadOnly(String),
    #[error("{name} has {mib} MiB, at least {needed_mib} are needed")]
    Small { name: String, mib: u64, needed_mib: u64 },
    #[error("{0} carries {1}: nothing was changed; eve_nuke_disks={0} allows to take it")]
    Data(String, String),
    #[error("several disks could be taken, {0}: name one with eve_install_disk")]
    Several(String),
    #[error("no disk can be taken: {0}")]
    NoDisk(String),
}

/// The disk that was named, else the only one that is free, large enough and may be written to.
pub(super) fn choose<'c>(
    candidates: &'c [Candidate],
    options: &Options,
    needed_bytes: u64,
) -> Result<&'c Candidate, TargetError> {
    let all = || candidates.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = &options.disk {
        let found = candidates.iter().find(|one| one.name == *wanted);
        let found = found.ok_or_else(|| TargetError::NotThere(wanted.clone(), all()))?;
        return check(found, options, needed_bytes).map(|()| found);
    }
    let judged: Vec<_> = candidates.iter().map(|one| (one, check(one, options, needed_bytes))).collect();
    let free: Vec<&Candidate> =
        judged.iter().filter(|(_, check)| check.is_ok()).map(|(one, _)| *one).collect();
    match free.as_slice() {
        [one] => Ok(one),
        [] => {
            let why = judged.into_iter().filter_map(|(_, check)| Some(check.err()?.to_string()));
            let why = why.collect::<Vec<_>>().join("; ");
            Err(TargetError::NoDisk(if why.is_empty() { "there is none".to_owned() } else { why }))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|one| one.name.as_str()).collect();
            Err(TargetError::Several(names.join(", ")))
        }
    }
}

fn check(one: &Candidate, options: &Options, needed_bytes: u64) -> Result<(), TargetError> {
    let name = || one.name.clone();
    if one.access == Access::ReadOnly {
        return Err(TargetError::ReadOnly(name()));
    }
    if one.bytes < needed_bytes {
        let (mib, needed_mib) = (one.bytes >> 20, needed_bytes >> 20);
        return Err(TargetError::Small { name: name(), mib, needed_mib });
    }
    match &one.content {
        Content::Data(what) if !options.may_erase.contains(&one.name) => {
            Err(TargetError::Data(name(), what.clone()))
        }
        Content::Data(_) | Content::Nothing | Content::Unfinished => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, content: Content) -> Candidate {
        Candidate { name: name.into(), bytes: 100 << 20, access: Access::ReadWrite, content }
    }

    fn chosen(candidates: &[Candidate], options: &str) -> Result<String, TargetError> {
        let options = Options::parse(options).unwrap();
        choose(candidates, &options, 50 << 20).map(|one| one.name.clone())
    }

    #[test]
    fn the_only_free_disk_is_taken_and_none_with_data() {
        let data = || Content::Data("x".into());
        let (a, b) = (disk("sda", Content::Nothing), disk("sdb", data()));
        assert_eq!(chosen(&[a.clone(), b.clone()], ""), Ok("sda".into()));
        assert_eq!(chosen(&[disk("sda", Content::Unfinished)], ""), Ok("sda".into()));
        assert!(
            matches!(chosen(std::slice::from_ref(&b), ""), Err(TargetError::NoDisk(why)) if why.contains("sdb carries x"))
        );
        assert_eq!(chosen(&[], ""), Err(TargetError::NoDisk("there is none".into())));
        let several = chosen(&[a.clone(), disk("sdc", Content::Nothing)], "");
        assert_eq!(several, Err(TargetError::Several("sda, sdc".into())));
        let both = [a, b];
        let refused = Err(TargetError::Data("sdb".into(), "x".into()));
        assert_eq!(chosen(&both, "eve_install_disk=sdb"), refused);
        // leave for one disk is none for another
        assert_eq!(chosen(&both, "eve_install_disk=sdb eve_nuke_disks=sda"), refused);
        assert_eq!(chosen(&both, "eve_install_disk=sdb eve_nuke_disks=sdb"), Ok("sdb".into()));
        let not_there = Err(TargetError::NotThere("sdz".into(), "sda, sdb".into()));
        assert_eq!(chosen(&both, "eve_install_disk=sdz"), not_there);
    }

    #[test]
    fn a_disk_that_is_too_small_or_cannot_be_written_is_none() {
        let small = Candidate { bytes: 1 << 20, ..disk("sda", Content::Nothing) };
        let fixed = Candidate { access: Access::ReadOnly, ..disk("sdb", Content::Nothing) };
        let wanted =
            |name: &str| chosen(&[small.clone(), fixed.clone()], &format!("eve_install_disk={name}"));
        assert!(matches!(wanted("sda"), Err(TargetError::Small { .. })));
        assert_eq!(wanted("sdb"), Err(TargetError::ReadOnly("sdb".into())));
    }
}
