// SPDX-License-Identifier: Apache-2.0
//! Time as decisions see it: handed in, never read. Boxes boot in 1970, so wall time carries how far it can be trusted.

use serde::{Deserialize, Serialize};

/// Monotonic milliseconds since the kernel started; counts suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MonoMs(pub u64);

impl MonoMs {
    pub const fn plus_s(self, seconds: u64) -> MonoMs {
        MonoMs(self.0.saturating_add(seconds.saturating_mul(1000)))
    }
    pub const fn plus_ms(self, ms: u64) -> MonoMs {
        MonoMs(self.0.saturating_add(ms))
    }
    /// Milliseconds from `earlier` to `self`, 0 when it lies ahead.
    pub const fn since_ms(self, earlier: MonoMs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Wall time: seconds and nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WallTime {
    pub seconds: i64,
    pub nanos: u32,
}

/// How far the wall clock can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wall {
    /// Before the time floor (build time, last signed timestamp): a clock that lost its battery.
    Unset,
    /// At or after the floor, not confirmed by anyone.
    Plausible(WallTime),
    /// Confirmed by a synchronised time source.
    Trusted(WallTime),
}

impl Wall {
    /// The time where one is at least plausible.
    pub const fn time(self) -> Option<WallTime> {
        match self {
            Wall::Unset => None,
            Wall::Plausible(at) | Wall::Trusted(at) => Some(at),
        }
    }
}

/// The moment of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    pub mono: MonoMs,
    pub wall: Wall,
}
