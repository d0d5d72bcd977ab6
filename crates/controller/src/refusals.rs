// SPDX-License-Identifier: Apache-2.0
//! Which refusals have been told lately: a device that is refused comes again every few seconds, and a stranger as often
//! as he likes. Each is told once in a while, and only so many at all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The same is told again after this time.
const AGAIN_MS: i64 = 600_000;
/// Different refusals told within that time; the events that are kept are for everyone.
const MAX_TOLD: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// When each was told.
    told: Mutex<BTreeMap<(String, String), i64>>,
}

impl Refusals {
    /// Whether this is to be told now; if so, it counts as told.
    pub(crate) fn is_news(&self, now_ms: i64, object: &str, why: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that went back forgets, so that it does not silence.
        told.retain(|_, at| (0..AGAIN_MS).contains(&(now_ms - *at)));
        let key = (object.to_owned(), why.to_owned());
        if told.len() >= MAX_TOLD || told.contains_key(&key) {
            return false;
        }
        told.insert(key, now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_in_a_while_and_not_everything_of_everyone() {
        let refusals = Refusals::default();
        let told = [0, 1_000, AGAIN_MS - 1, AGAIN_MS].map(|at| refusals.is_news(at, "jointoken/t", "old"));
        assert_eq!(told, [true, false, false, true]);
        let count = (0..1_000).filter(|n| refusals.is_news(AGAIN_MS, "jointoken/t", &n.to_string())).count();
        assert_eq!(count, MAX_TOLD - 1);
        assert!(refusals.is_news(0, "jointoken/t", "a clock that went back"));
    }
}
