// SPDX-License-Identifier: Apache-2.0
//! What must be remembered per device besides the intent: numbers that may only rise.
//!
//! A config is computed, never stored. But a device tells restart, purge and a new config from the old by numbers, and
//! those depend on what it was told before. An app's entry stays while the App object exists, also when the device is
//! no longer chosen: the device may have been offline in between.

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
    pub apps: BTreeMap<Uuid, AppLedger>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger { format: FORMAT, timestamp_ms: 0, version: 0, digest: String::new(), apps: BTreeMap::new() }
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
}

impl AppLedger {
    /// Takes in what an app is made from now; counters rise when it differs from before.
    pub fn advance(&mut self, root: String, run: String) {
        if self.root != root {
            if !self.root.is_empty() {
                self.purge = self.purge.wrapping_add(1);
                self.generation += 1;
            }
            self.root = root;
        }
        if self.run != run {
            if !self.run.is_empty() {
                self.restart = self.restart.wrapping_add(1);
            }
            self.run = run;
        }
    }
}

impl Ledger {
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
    fn counters_rise_only_after_the_first_sight() {
        let mut app = AppLedger::default();
        app.advance("i1".into(), "r1".into());
        assert_eq!((app.purge, app.generation, app.restart), (0, 0, 0));
        app.advance("i1".into(), "r2".into());
        assert_eq!((app.purge, app.generation, app.restart), (0, 0, 1));
        app.advance("i2".into(), "r2".into());
        assert_eq!((app.purge, app.generation, app.restart), (1, 1, 1));
    }
}
