// SPDX-License-Identifier: Apache-2.0
//! Waiting longer after each failure.

use model::time::MonoMs;
use serde::{Deserialize, Serialize};

/// Doubles the wait from `first_ms` to `max_ms`; starts anew after a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    first_ms: u64,
    max_ms: u64,
    failures: u32,
}

impl Backoff {
    pub const fn new(first_ms: u64, max_ms: u64) -> Backoff {
        Backoff { first_ms, max_ms, failures: 0 }
    }

    /// Counts a failure and says when to try again.
    pub fn fail(&mut self, now: MonoMs) -> MonoMs {
        let wait_ms = self.wait_ms();
        self.failures = self.failures.saturating_add(1);
        now.plus_ms(wait_ms)
    }

    /// The wait after the next failure.
    pub fn wait_ms(&self) -> u64 {
        let factor = 1_u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        self.first_ms.saturating_mul(factor).min(self.max_ms)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew_after_success() {
        let mut backoff = Backoff::new(1000, 5000);
        let waits: [u64; 5] = core::array::from_fn(|_| backoff.fail(MonoMs(100)).0 - 100);
        assert_eq!(waits, [1000, 2000, 4000, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.fail(MonoMs(0)), MonoMs(1000));
    }

    #[test]
    fn endless_failures_do_not_overflow() {
        let mut backoff = Backoff::new(u64::MAX / 2, u64::MAX);
        for _ in 0..200 {
            backoff.fail(MonoMs(u64::MAX));
        }
        assert_eq!(backoff.wait_ms(), u64::MAX);
    }
}
