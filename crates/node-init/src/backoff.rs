// SPDX-License-Identifier: Apache-2.0
//! How long a dead service waits before it is started again: soon at first, slower when it goes on dying, never not.
//!
//! One that dies while it starts is broken, and slows down for long. One that had taken up its work was killed, or met
//! something that it may not meet again: the node is not whole without it, so it never waits long.

use model::time::MonoMs;

/// Deaths older than this are forgiven: of a process that did not come to work, and of one that did.
const WINDOW_S: u64 = 600;
const STEADY_WINDOW_S: u64 = 60;
/// A process that ran this long after it was ready had taken up its work.
const STEADY_MS: u64 = 1_000;
/// The wait doubles from the manifest's figure up to this.
const LONGEST_MS: u64 = 5_000;
/// After so many deaths in the window something is broken for good.
const BROKEN: usize = 10;
/// The wait then, and after twice as many.
const SLOW_MS: u64 = 10_000;
const SLOWEST_MS: u64 = 30_000;

/// The end of a process, or a start that failed.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    at: MonoMs,
    was_steady: bool,
}

impl Death {
    /// `ready`: since when it was ready, if it ever was.
    pub fn new(at: MonoMs, ready: Option<MonoMs>) -> Death {
        Death { at, was_steady: ready.is_some_and(|ready| at.since_ms(ready) >= STEADY_MS) }
    }
}

/// When a service that died like this (the last time just now) is started again.
pub fn restart_at(deaths: &[Death], backoff_ms: u32) -> MonoMs {
    let Some(&last) = deaths.last() else { return MonoMs(0) };
    let count = |was_steady: bool, window_s: u64| {
        let is_counted =
            |death: &&Death| death.was_steady == was_steady && last.at.since_ms(death.at) < window_s * 1000;
        deaths.iter().filter(is_counted).count()
    };
    let doubled = |recent: usize| (u64::from(backoff_ms) << recent.saturating_sub(1).min(16)).min(LONGEST_MS);
    let wait_ms = if last.was_steady {
        doubled(count(true, STEADY_WINDOW_S))
    } else {
        match count(false, WINDOW_S) {
            recent if recent <= BROKEN => doubled(recent),
            recent if recent <= 2 * BROKEN => SLOW_MS,
            _ => SLOWEST_MS,
        }
    };
    last.at.plus_ms(wait_ms)
}

/// Forgets what does not count any more.
pub fn forget(deaths: &mut Vec<Death>, now: MonoMs) {
    deaths.retain(|death| now.since_ms(death.at) < WINDOW_S * 1000);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits of a service that dies again and again, each time so long after it was ready; `None`: never ready.
    fn waits(lived_ms: Option<u64>, count: usize) -> Vec<u64> {
        let mut deaths = Vec::new();
        let mut now = MonoMs(1_000_000);
        let mut waits = Vec::new();
        for _ in 0..count {
            let dies = now.plus_ms(lived_ms.unwrap_or(0));
            deaths.push(Death::new(dies, lived_ms.map(|_| now)));
            now = restart_at(&deaths, 100);
            waits.push(now.since_ms(dies));
        }
        waits
    }

    #[test]
    fn a_service_that_dies_as_it_starts_is_started_ever_later_but_always() {
        for lived_ms in [None, Some(STEADY_MS - 1)] {
            let waits = waits(lived_ms, 25);
            assert_eq!(waits[..8], [100, 200, 400, 800, 1600, 3200, 5_000, 5_000]);
            assert_eq!(waits[10..20], [10_000; 10]);
            assert_eq!(waits[20..], [30_000; 5]);
        }
        let mut deaths = vec![Death::new(MonoMs(0), None); 30];
        let later = MonoMs(0).plus_s(WINDOW_S);
        deaths.push(Death::new(later, None));
        assert_eq!(restart_at(&deaths, 100), later.plus_ms(100));
        forget(&mut deaths, later);
        assert_eq!(deaths.len(), 1);
    }

    #[test]
    fn a_service_that_was_at_work_is_back_soon_however_often_it_is_killed() {
        assert_eq!(waits(Some(20_000), 30)[3..], [400; 27]);
        let often = waits(Some(STEADY_MS), 100);
        assert_eq!(often[..4], [100, 200, 400, 800]);
        assert!(often.iter().all(|wait| *wait <= LONGEST_MS));
    }
}
