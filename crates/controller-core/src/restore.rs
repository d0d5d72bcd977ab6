// SPDX-License-Identifier: Apache-2.0
//! After a restore: where a device is, compared with the backup.
//!
//! A device's poll names the hash of the config it has. The hash that the ledger remembers says that nothing was lost; any
//! other, that the device was told more than the backup knows. Then its reports, as far as there are any, show which apps
//! are concerned; see [`Ledger::settle`].

use alloc::collections::BTreeMap;
use alloc::string::String;

use model::config::DeviceConfig;
use model::id::{AppId, DeviceId, VolumeId};

use crate::compute::{app_id, root_volume_id, volume_id};
use crate::ledger::{Ledger, LedgerVolume, Shown};

/// What a device has said of itself, whenever that was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Version of the order by which each app runs.
    pub versions: BTreeMap<AppId, String>,
    /// Highest generation of each volume.
    pub generations: BTreeMap<VolumeId, u64>,
}

/// A device's first poll after a restore.
#[derive(Clone, Copy, Debug)]
pub struct Poll<'a> {
    pub device: DeviceId,
    /// The hash of the config it has; empty when it has none.
    pub known: &'a str,
    /// `controller_epoch`: the time of the restore, in seconds since 1970.
    pub epoch: i64,
}

/// The ledger of a device that has come back. `computed` is the config that the ledger gives.
pub fn settle(
    ledger: &Ledger,
    Poll { device, known, epoch }: Poll<'_>,
    computed: Option<&DeviceConfig>,
    reported: &Reported,
) -> Ledger {
    let is_known = !known.is_empty() && known == ledger.hash;
    let ordered: BTreeMap<AppId, &String> =
        computed.into_iter().flat_map(|config| &config.apps).map(|app| (app.id, &app.version)).collect();
    let shown = |app| {
        let id = app_id(app, device);
        let is_as_ordered =
            ordered.get(&id).is_some_and(|version| reported.versions.get(&id) == Some(*version));
        Shown { is_as_ordered, generation: reported.generations.get(&root_volume_id(app, device)).copied() }
    };
    let generation = |volume: LedgerVolume<'_>| reported.generations.get(&volume_id(volume, device)).copied();
    let mut settled = ledger.clone();
    settled.settle(is_known, epoch, shown, generation);
    settled
}
