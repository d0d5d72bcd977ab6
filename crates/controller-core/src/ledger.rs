// SPDX-License-Identifier: Apache-2.0
//! What must be remembered per device besides the intent: numbers that may only rise.
//!
//! A config is computed, never stored. But a device tells restart, purge and a new config from the old by numbers, and
//! those depend on what it was told before. An app's entry stays while the App object exists, also when the device is
//! no longer chosen: the device may have been offline in between.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the stored form.
pub const FORMAT: u32 = 1;

/// Memory of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    pub format: u32,
    /// Of the last config, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Number of the last config.
    pub version: u64,
    /// Digest of the last config without these two, in hex.
    pub digest: String,
    /// Hash of the last config as it was published.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
    pub apps: BTreeMap<Uuid, AppLedger>,
    /// It comes from a backup: the device may have been told of later numbers. See [`Ledger::settle`].
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub is_restored: bool,
    /// Of Volume objects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<Uuid, VolumeLedger>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            format: FORMAT,
            timestamp_ms: 0,
            version: 0,
            digest: String::new(),
            hash: String::new(),
            apps: BTreeMap::new(),
            is_restored: false,
            volumes: BTreeMap::new(),
        }
    }
}

/// Counters of one app on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppLedger {
    /// Digest of what the root volume is made from.
    pub root: String,
    pub purge: u32,
    /// Of the root volume, and of its content tree.
    pub generation: u64,
    /// Digest of what a start of the app depends on.
    pub run: String,
    pub restart: u32,
    /// Digest of which volumes it uses besides the root, in which generation. Empty: never any was looked at.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uses: String,
    /// Volumes of its own, by mount path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, VolumeLedger>,
}

/// Generation of one volume on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeLedger {
    /// Digest of what it is made from.
    pub origin: String,
    pub generation: u64,
}

impl VolumeLedger {
    /// Takes in what the volume is made from now; another origin is another generation.
    pub fn advance(&mut self, origin: String) -> u64 {
        if self.origin != origin {
            if !self.origin.is_empty() {
                self.generation += 1;
            }
            self.origin = origin;
        }
        self.generation
    }
}

impl VolumeLedger {
    /// The device has had a later one: the next is later still. Apps that use it are purged for it, see `AppLedger::uses`.
    fn overtake(&mut self, reported: Option<u64>) {
        if let Some(later) = reported.filter(|later| *later > self.generation) {
            self.generation = later + 1;
        }
    }
}

impl AppLedger {
    /// Takes in what an app is made from now; counters rise when it differs from before.
    pub fn advance(&mut self, root: String, uses: String, run: String) {
        let has_other_root = self.root != root;
        let uses_others = self.uses != uses;
        if (has_other_root && !self.root.is_empty()) || (uses_others && !self.uses.is_empty()) {
            // Volumes are swapped only by a purge; those whose generation stays keep what they hold.
            self.purge = self.purge.wrapping_add(1);
        }
        if has_other_root && !self.root.is_empty() {
            self.generation += 1;
        }
        self.root = root;
        self.uses = uses;
        if self.run != run {
            if !self.run.is_empty() {
                self.restart = self.restart.wrapping_add(1);
            }
            self.run = run;
        }
    }
}

/// What a device shows of an app when its ledger was restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// It runs by the very order that the ledger knows.
    pub is_as_ordered: bool,
    /// Highest generation of a root volume it has reported.
    pub generation: Option<u64>,
}

/// A volume of which a ledger keeps the generation, besides the roots of apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerVolume<'a> {
    /// An app's own, by the app's uid and the mount path.
    OfApp(Uuid, &'a str),
    /// Of a Volume object, by its uid.
    Named(Uuid),
}

/// How far a counter is raised at least when it is not known how far the device got: more than anybody counts by hand
/// between a backup and its restore.
const RESTORED_STRIDE: u32 = 1000;

impl Ledger {
    /// Ends the doubt after a restore. `is_known`: the device has the very config that the ledger was made with, so nothing
    /// was lost. Else each app that is not shown to be as ordered gets counters that no device has seen: of restarts always,
    /// since the app starts anew in any case, and at least the `epoch` of the restore, in seconds, so that a second restore
    /// of the same backup goes on above the first; of its volume only when a later one was reported, since what an app wrote is
    /// not given up on a suspicion. The same holds for all other volumes, of which `reported` says the highest generation
    /// that the device has told.
    pub fn settle(
        &mut self,
        is_known: bool,
        epoch: i64,
        shown: impl Fn(Uuid) -> Shown,
        reported: impl Fn(LedgerVolume<'_>) -> Option<u64>,
    ) {
        self.is_restored = false;
        if is_known {
            return;
        }
        for (uid, volume) in &mut self.volumes {
            volume.overtake(reported(LedgerVolume::Named(*uid)));
        }
        for (uid, app) in &mut self.apps {
            for (path, volume) in &mut app.volumes {
                volume.overtake(reported(LedgerVolume::OfApp(*uid, path)));
            }
            let shown = shown(*uid);
            if shown.is_as_ordered {
                continue;
            }
            let restored = u32::try_from(epoch).unwrap_or(0);
            app.restart = app.restart.wrapping_add(RESTORED_STRIDE).max(restored);
            if let Some(later) = shown.generation.filter(|generation| *generation > app.generation) {
                let raise = later + 1 - app.generation;
                app.generation += raise;
                app.purge = app.purge.wrapping_add(u32::try_from(raise).unwrap_or(RESTORED_STRIDE));
            }
        }
    }

    /// Remembers what is published. In doubt after a restore the hash of before stays: it is what the device is asked for.
    pub fn publish(&mut self, hash: &str) {
        if !self.is_restored {
            hash.clone_into(&mut self.hash);
        }
    }

    /// The device has processed a config of this time: the next one must be later, and is a new one.
    pub fn overtake(&mut self, processed_ms: i64) {
        if processed_ms > self.timestamp_ms {
            self.timestamp_ms = processed_ms;
            self.digest.clear();
        }
    }

    /// Takes in the digest of the config as it is now; a new one gets a later time and the next version.
    pub fn advance(&mut self, digest: String, now_ms: i64) {
        if self.digest != digest {
            self.digest = digest;
            self.version += 1;
            self.timestamp_ms = now_ms.max(self.timestamp_ms + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_config_rises_even_when_the_clock_went_back() {
        let mut ledger = Ledger::default();
        ledger.advance("a".into(), 5000);
        assert_eq!((ledger.timestamp_ms, ledger.version), (5000, 1));
        ledger.advance("a".into(), 9000);
        assert_eq!((ledger.timestamp_ms, ledger.version), (5000, 1));
        ledger.advance("b".into(), 100);
        assert_eq!((ledger.timestamp_ms, ledger.version), (5001, 2));
    }

    #[test]
    fn a_restored_ledger_never_goes_back_and_gives_up_no_volume_on_a_suspicion() {
        let app = |generation| AppLedger { restart: 3, purge: 2, generation, ..AppLedger::default() };
        let (same, unseen, later) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let restored = Ledger {
            apps: [(same, app(1)), (unseen, app(1)), (later, app(1))].into(),
            is_restored: true,
            ..Ledger::default()
        };
        let shown = |uid: Uuid| Shown { is_as_ordered: uid == same, generation: (uid == later).then_some(5) };
        let told_nothing = |_: LedgerVolume<'_>| None;
        let mut known = restored.clone();
        known.settle(true, 5000, shown, told_nothing);
        assert_eq!((known.is_restored, &known.apps), (false, &restored.apps));
        let mut ledger = restored;
        let mut again = ledger.clone();
        ledger.settle(false, 500, shown, told_nothing);
        let counters = |uid| {
            let app = &ledger.apps[&uid];
            (app.restart, app.purge, app.generation)
        };
        assert_eq!(counters(same), (3, 2, 1));
        assert_eq!(counters(unseen), (1003, 2, 1));
        assert_eq!(counters(later), (1003, 7, 6));
        again.settle(false, 5000, shown, told_nothing);
        assert_eq!(again.apps[&unseen].restart, 5000, "above what a restore before it gave");
    }

    #[test]
    fn a_restored_ledger_raises_volumes_above_what_the_device_has_told_of_them() {
        let (app, named, unseen) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let volume = |generation| VolumeLedger { origin: "o".into(), generation };
        let own = AppLedger {
            volumes: [("/a".into(), volume(4)), ("/b".into(), volume(4))].into(),
            ..AppLedger::default()
        };
        let mut ledger = Ledger {
            apps: [(app, own)].into(),
            volumes: [(named, volume(4)), (unseen, volume(4))].into(),
            is_restored: true,
            ..Ledger::default()
        };
        let as_ordered = |_| Shown { is_as_ordered: true, generation: None };
        ledger.settle(false, 0, as_ordered, |of| match of {
            LedgerVolume::OfApp(uid, "/a") if uid == app => Some(7),
            LedgerVolume::OfApp(..) => Some(3),
            LedgerVolume::Named(uid) => (uid == named).then_some(5),
        });
        let own = &ledger.apps[&app].volumes;
        assert_eq!([own["/a"].generation, own["/b"].generation], [8, 4], "an earlier one is no news");
        assert_eq!([ledger.volumes[&named].generation, ledger.volumes[&unseen].generation], [6, 4]);
    }

    #[test]
    fn a_device_that_is_ahead_gets_a_later_config() {
        let mut ledger = Ledger::default();
        ledger.advance("a".into(), 5000);
        ledger.overtake(4000);
        ledger.advance("a".into(), 6000);
        assert_eq!(ledger.timestamp_ms, 5000);
        ledger.overtake(9000);
        ledger.advance("a".into(), 6000);
        assert_eq!((ledger.timestamp_ms, ledger.version), (9001, 2));
    }

    #[test]
    fn counters_rise_only_after_the_first_sight() {
        let mut app = AppLedger::default();
        app.advance("i1".into(), "v1".into(), "r1".into());
        assert_eq!((app.purge, app.generation, app.restart), (0, 0, 0));
        app.advance("i1".into(), "v1".into(), "r2".into());
        assert_eq!((app.purge, app.generation, app.restart), (0, 0, 1));
        app.advance("i2".into(), "v1".into(), "r2".into());
        assert_eq!((app.purge, app.generation, app.restart), (1, 1, 1));
        app.advance("i2".into(), "v2".into(), "r2".into());
        assert_eq!((app.purge, app.generation, app.restart), (2, 1, 1), "the root stays");
        let mut volume = VolumeLedger::default();
        assert_eq!(
            [volume.advance("a".into()), volume.advance("a".into()), volume.advance("b".into())],
            [0, 0, 1]
        );
    }
}
