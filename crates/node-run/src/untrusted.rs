// SPDX-License-Identifier: Apache-2.0
//! Doors to the private parsers of this crate for whoever attacks them (package `fuzz`). No product uses them.

use crate::container::step::StepError;
use crate::container::user;

/// Whom an image's files say a user is; all ids are those of the container.
pub fn user(user: &str, untrusted_passwd: &str, untrusted_group: &str, ids: u32) {
    if let Ok(identity) = user::resolve(user, untrusted_passwd, untrusted_group, ids) {
        let all = [identity.uid, identity.gid].into_iter().chain(identity.groups);
        assert!(all.max().is_some_and(|id| id < ids), "an id outside of the container");
    }
}

/// The message of a child that failed.
pub fn step(untrusted_message: &[u8]) {
    if let Some(error) = StepError::decode(untrusted_message) {
        let _ = error.to_string();
        assert!(StepError::decode(&error.encode()).is_some());
    }
}
