// SPDX-License-Identifier: Apache-2.0
//! A queue that holds each item once: what a slow reader has not been told yet.
//!
//! An item that is queued again while it waits keeps its place; what is sent for it is looked up when its turn comes,
//! so the reader gets the newest value and the queue never grows beyond the number of different items.

use std::collections::BTreeMap;

/// Items in the order in which they were first queued.
#[derive(Clone, Debug)]
pub struct Outbox<T> {
    next: u64,
    by_turn: BTreeMap<u64, T>,
    turns: BTreeMap<T, u64>,
}

impl<T: Ord + Clone> Default for Outbox<T> {
    fn default() -> Self {
        Outbox { next: 0, by_turn: BTreeMap::new(), turns: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Outbox<T> {
    /// Queues the item unless it waits already.
    pub fn push(&mut self, item: T) {
        if !self.turns.contains_key(&item) {
            self.by_turn.insert(self.next, item.clone());
            self.turns.insert(item, self.next);
            self.next += 1;
        }
    }

    /// Queues the item behind everything else, even when it waits already.
    pub fn push_last(&mut self, item: T) {
        if let Some(turn) = self.turns.remove(&item) {
            self.by_turn.remove(&turn);
        }
        self.push(item);
    }

    /// Takes the item out wherever it waits.
    pub fn remove(&mut self, item: &T) {
        if let Some(turn) = self.turns.remove(item) {
            self.by_turn.remove(&turn);
        }
    }

    pub fn front(&self) -> Option<&T> {
        self.by_turn.first_key_value().map(|(_, item)| item)
    }

    pub fn pop(&mut self) -> Option<T> {
        let (_, item) = self.by_turn.pop_first()?;
        self.turns.remove(&item);
        Some(item)
    }

    pub fn clear(&mut self) {
        self.by_turn.clear();
        self.turns.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.by_turn.is_empty()
    }

    pub fn len(&self) -> usize {
        self.by_turn.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_waits_once_and_keeps_its_place() {
        let mut outbox = Outbox::default();
        for item in ["a", "b", "a", "c", "b"] {
            outbox.push(item);
        }
        outbox.push_last("a");
        assert_eq!(outbox.len(), 3);
        let order: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(order, ["b", "c", "a"]);
        assert!(outbox.is_empty());
    }
}
