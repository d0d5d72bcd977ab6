// SPDX-License-Identifier: Apache-2.0
//! Who an app runs as: the image's `user` resolved against the image's own passwd and group files.
//!
//! Pure; the files are untrusted text and broken lines in them are skipped.

use std::collections::BTreeSet;

/// More groups than the kernel takes for one process (`NGROUPS_MAX`) make no sense; images have a handful.
const MAX_GROUPS: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("`{0}`: not in the image's /etc/passwd")]
    UnknownUser(String),
    #[error("`{0}`: not in the image's /etc/group")]
    UnknownGroup(String),
    #[error("{id}: ids end at {end}")]
    OutOfRange { id: u32, end: u32 },
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// `ids` is the number of ids the container has.
pub(crate) fn resolve(
    user: &str,
    untrusted_passwd: &str,
    untrusted_group: &str,
    ids: u32,
) -> Result<Identity, UserError> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let by_name = passwd(untrusted_passwd).find(|entry| entry.name == user);
    let (uid, entry) = match (by_name, user.parse::<u32>()) {
        (Some(entry), _) => (entry.uid, Some(entry)),
        (None, Ok(uid)) => (uid, passwd(untrusted_passwd).find(|entry| entry.uid == uid)),
        (None, Err(_)) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    let gid = match group {
        None => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(group) => group_id(group, untrusted_group)?,
    };
    // As docker does it: a group named explicitly stands alone.
    let groups = match (&entry, group) {
        (Some(entry), None) => member_of(entry.name, untrusted_group, ids),
        _ => Vec::new(),
    };
    match [uid, gid].into_iter().find(|id| *id >= ids) {
        Some(id) => Err(UserError::OutOfRange { id, end: ids }),
        None => Ok(Identity { uid, gid, groups, home: entry.map(|entry| entry.home.to_owned()) }),
    }
}

/// `user` or `user:group` as cloud-config spells an owner.
pub(crate) fn resolve_owner(
    owner: &str,
    untrusted_passwd: &str,
    untrusted_group: &str,
    ids: u32,
) -> Result<(u32, u32), UserError> {
    resolve(owner, untrusted_passwd, untrusted_group, ids).map(|identity| (identity.uid, identity.gid))
}

fn group_id(group: &str, untrusted_group: &str) -> Result<u32, UserError> {
    groups(untrusted_group)
        .find(|(name, _, _)| *name == group)
        .map(|(_, gid, _)| gid)
        .or_else(|| group.parse().ok())
        .ok_or_else(|| UserError::UnknownGroup(group.to_owned()))
}

fn member_of(user: &str, untrusted_group: &str, ids: u32) -> Vec<u32> {
    let gids: BTreeSet<u32> = groups(untrusted_group)
        .filter(|(_, gid, members)| *gid < ids && members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .take(MAX_GROUPS)
        .collect();
    gids.into_iter().collect()
}

fn passwd(untrusted: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    untrusted.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn groups(untrusted: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    untrusted.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\nweb:x:101:102::/var/www:/bin/false\n\
                          123:x:7:8::/odd:/bin/sh\nfar:x:70000:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\ndisk:x:6:web,root\naudio:x:29:web\nfar:x:70000:web\n";

    fn who(user: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(user, PASSWD, GROUP, 65_536).map(|id| (id.uid, id.gid, id.groups))
    }

    #[test]
    fn users_are_resolved_by_name_and_number() {
        assert_eq!(who(""), Ok((0, 0, vec![6])));
        assert_eq!(who("web"), Ok((101, 102, vec![6, 29])));
        assert_eq!(who("101"), Ok((101, 102, vec![6, 29])));
        assert_eq!(who("web:disk"), Ok((101, 6, vec![])));
        assert_eq!(who("5000:6000"), Ok((5000, 6000, vec![])));
        assert_eq!(who("5000"), Ok((5000, 0, vec![])));
        assert_eq!(who("123"), Ok((7, 8, vec![])), "a name of digits is a name first");
        assert_eq!(resolve("web", PASSWD, GROUP, 65_536).unwrap().home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn what_is_not_there_or_not_mapped_is_refused() {
        assert_eq!(who("nobody"), Err(UserError::UnknownUser("nobody".into())));
        assert_eq!(who("web:wheel"), Err(UserError::UnknownGroup("wheel".into())));
        assert_eq!(who("70000"), Err(UserError::OutOfRange { id: 70_000, end: 65_536 }));
        assert_eq!(who("0:4294967295"), Err(UserError::OutOfRange { id: u32::MAX, end: 65_536 }));
        assert_eq!(who("far"), Err(UserError::OutOfRange { id: 70_000, end: 65_536 }));
    }

    #[test]
    fn an_image_without_passwd_runs_as_root() {
        assert_eq!(resolve("", "", "", 65_536).unwrap().uid, 0);
        assert_eq!(resolve("0:0", "\0\u{fffd}:::", ":::", 65_536).unwrap().gid, 0);
    }
}
