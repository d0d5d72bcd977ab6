// SPDX-License-Identifier: Apache-2.0
//! How long a dead service waits before it is started again: soon at first, slower when it goes on dying, never not.

use model::time::MonoMs;

/// Deaths older than this are forgiven.
const WINDOW_S: u64 = 600;
/// Deaths in the window that double the wait from the manifest's figure.
const QUICK: usize = 5;
/// The wait after that, and after twice as many.
const SLOW_MS: u64 = 10_000;
const SLOWEST_MS: u64 = 30_000;

/// When a service that died at these moments (the last one just now) is started again.
pub fn restart_at(deaths: &[MonoMs], backoff_ms: u32) -> MonoMs {
    let Some(&last) = deaths.last() else { return MonoMs(0) };
    let recent = deaths.iter().filter(|at| last.since_ms(**at) < WINDOW_S * 1000).count();
    let wait_ms = if recent <= QUICK {
        u64::from(backoff_ms) << recent.saturating_sub(1)
    } else if recent <= 2 * QUICK {
        SLOW_MS
    } else {
        SLOWEST_MS
    };
    last.plus_ms(wait_ms.min(SLOWEST_MS))
}

/// Forgets what does not count any more.
pub fn forget(deaths: &mut Vec<MonoMs>, now: MonoMs) {
    deaths.retain(|at| now.since_ms(*at) < WINDOW_S * 1000);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_goes_on_dying_is_started_ever_later_but_always() {
        let mut deaths = Vec::new();
        let mut now = MonoMs(1_000_000);
        let mut waits = Vec::new();
        for _ in 0..13 {
            deaths.push(now);
            let at = restart_at(&deaths, 100);
            waits.push(at.since_ms(now));
            now = at;
        }
        assert_eq!(waits[..7], [100, 200, 400, 800, 1600, 10_000, 10_000]);
        assert_eq!(waits[10..], [30_000; 3]);
        deaths.push(now.plus_s(WINDOW_S));
        assert_eq!(restart_at(&deaths, 100), now.plus_s(WINDOW_S).plus_ms(100));
        forget(&mut deaths, now.plus_s(WINDOW_S));
        assert_eq!(deaths.len(), 1);
    }
}
