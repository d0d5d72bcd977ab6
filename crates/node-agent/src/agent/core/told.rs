// SPDX-License-Identifier: Apache-2.0
//! Apps the controller was told of, and not yet told that they are gone. On disk, since an app may go while nobody looks:
//! deleted while the box was off, or just before the power went. Without the list the controller's last word on it would
//! be for ever that it runs.

use std::collections::BTreeSet;

use model::id::AppId;
use node_core::report::Subject;

use super::reports;

#[derive(Debug, Default)]
pub(super) struct Told {
    apps: BTreeSet<AppId>,
    /// Of which the last message waits in the queue.
    leaving: BTreeSet<AppId>,
}

impl Told {
    pub(super) fn new(apps: BTreeSet<AppId>) -> Told {
        Told { apps, leaving: BTreeSet::new() }
    }

    pub(super) fn apps(&self) -> &BTreeSet<AppId> {
        &self.apps
    }

    /// The controller is about to be told of it; whether that is new.
    pub(super) fn tell(&mut self, app: AppId) -> bool {
        self.leaving.remove(&app);
        self.apps.insert(app)
    }

    /// The controller is about to be told that it is gone.
    pub(super) fn say_gone(&mut self, app: AppId) {
        self.leaving.insert(app);
    }

    /// Apps that are not there and of which nobody has said so.
    pub(super) fn lost(&self, is_there: impl Fn(&AppId) -> bool) -> Vec<AppId> {
        self.apps.iter().filter(|app| !self.leaving.contains(app) && !is_there(app)).copied().collect()
    }

    /// A message of this key has left the queue for good; whether the list changed.
    pub(super) fn was_delivered(&mut self, key: &str) -> bool {
        let app = self.leaving.iter().find(|app| reports::queue_key(Subject::App(**app)).0 == key).copied();
        app.is_some_and(|app| {
            self.leaving.remove(&app);
            self.apps.remove(&app)
        })
    }
}
