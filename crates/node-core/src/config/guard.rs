// SPDX-License-Identifier: Apache-2.0
//! Whether a verified config may be applied. A signature proves who made it, not when nor for whom.

use model::config::DeviceConfig;
use model::id::DeviceId;
use model::time::WallTime;

/// What an answer with a config means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Newer than the one in force, or the first.
    Apply,
    /// Made before the one in force: replayed, or a controller restored from an old backup.
    Obsolete,
    /// Made for another device.
    Foreign,
}

/// `in_force`: timestamp of the config applied last, also before a restart. Without timestamps there is no order.
pub fn judge(config: &DeviceConfig, own: DeviceId, in_force: Option<WallTime>) -> Verdict {
    if config.id != own {
        return Verdict::Foreign;
    }
    match (config.timestamp, in_force) {
        (Some(new), Some(old)) if new < old => Verdict::Obsolete,
        _ => Verdict::Apply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn older_and_foreign_configs_are_told_apart_from_good_ones() {
        let own = DeviceId(Uuid::from_u128(1));
        let at = |seconds| Some(WallTime { seconds, nanos: 0 });
        let config = |id, timestamp| DeviceConfig { timestamp, ..DeviceConfig::empty(id) };
        let other = DeviceId(Uuid::from_u128(2));
        for (config, in_force, verdict) in [
            (config(own, at(5)), None, Verdict::Apply),
            (config(own, at(5)), at(5), Verdict::Apply),
            (config(own, at(6)), at(5), Verdict::Apply),
            (config(own, at(4)), at(5), Verdict::Obsolete),
            (config(own, None), at(5), Verdict::Apply),
            (config(other, at(9)), at(5), Verdict::Foreign),
        ] {
            assert_eq!(judge(&config, own, in_force), verdict, "{:?} after {in_force:?}", config.timestamp);
        }
    }
}
