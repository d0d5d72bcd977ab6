// SPDX-License-Identifier: Apache-2.0
//! The two clocks, read once per decision and handed in. Never sets a clock.

use model::time::{MonoMs, Now, Wall, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Wall time before this is a clock that lost its battery: 2026-01-01, before the first release of this software.
const FLOOR_S: i64 = 1_767_225_600;

/// Monotonic time and how far the wall clock can be trusted.
pub fn now() -> Now {
    let wall = wall_time();
    let wall = match wall.seconds {
        ..FLOOR_S => Wall::Unset,
        _ if is_synchronised() => Wall::Trusted(wall),
        _ => Wall::Plausible(wall),
    };
    Now { mono: mono(), wall }
}

/// Milliseconds since the kernel started.
pub fn mono() -> MonoMs {
    let at = clock_gettime(ClockId::Boottime);
    MonoMs(at.tv_sec as u64 * 1000 + at.tv_nsec as u64 / 1_000_000)
}

/// What the wall clock shows, right or wrong.
pub fn wall_time() -> WallTime {
    let at = clock_gettime(ClockId::Realtime);
    WallTime { seconds: at.tv_sec, nanos: at.tv_nsec as u32 }
}

/// The kernel's clock is steered by a time source.
fn is_synchronised() -> bool {
    // SAFETY: all-zero is a valid timex, and with modes 0 the call only fills it in.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut timex)
    };
    (0..libc::TIME_ERROR).contains(&state)
}
