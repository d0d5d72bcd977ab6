// SPDX-License-Identifier: Apache-2.0
//! Several timers of one machine, named by key.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use model::time::MonoMs;

/// One moment per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines<K> {
    at: BTreeMap<K, MonoMs>,
}

impl<K: Ord> Default for Deadlines<K> {
    fn default() -> Self {
        Deadlines { at: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Deadlines<K> {
    pub fn new() -> Self {
        Deadlines::default()
    }

    /// Sets the moment of `key`, in place of an earlier setting.
    pub fn set(&mut self, key: K, at: MonoMs) {
        self.at.insert(key, at);
    }

    /// As [`Deadlines::set`], unless the key is already due earlier.
    pub fn set_earlier(&mut self, key: K, at: MonoMs) {
        let due = self.at.entry(key).or_insert(at);
        *due = at.min(*due);
    }

    pub fn clear(&mut self, key: &K) {
        self.at.remove(key);
    }

    pub fn get(&self, key: &K) -> Option<MonoMs> {
        self.at.get(key).copied()
    }

    pub fn next(&self) -> Option<MonoMs> {
        self.at.values().copied().min()
    }

    /// Takes out all keys that are due, earliest first.
    pub fn take_due(&mut self, now: MonoMs) -> Vec<K> {
        let mut due: Vec<(MonoMs, K)> =
            self.at.iter().filter(|(_, at)| **at <= now).map(|(key, at)| (*at, key.clone())).collect();
        due.sort();
        self.at.retain(|_, at| *at > now);
        due.into_iter().map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_keys_come_earliest_first_and_once() {
        let mut deadlines = Deadlines::new();
        deadlines.set("b", MonoMs(10));
        deadlines.set("a", MonoMs(20));
        deadlines.set("c", MonoMs(30));
        deadlines.set_earlier("c", MonoMs(40));
        deadlines.set_earlier("a", MonoMs(15));
        assert_eq!(deadlines.next(), Some(MonoMs(10)));
        assert_eq!(deadlines.take_due(MonoMs(20)), ["b", "a"]);
        assert_eq!(deadlines.take_due(MonoMs(20)), [""; 0]);
        assert_eq!(deadlines.get(&"c"), Some(MonoMs(30)));
        deadlines.clear(&"c");
        assert_eq!(deadlines.next(), None);
    }
}
