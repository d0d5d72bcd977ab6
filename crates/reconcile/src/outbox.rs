// SPDX-License-Identifier: Apache-2.0
//! What a machine orders while it handles one input.

use alloc::collections::VecDeque;

/// Most orders one input may lead to. A machine that orders more has a loop in it; resending everything goes through a
/// queue of its own, one order at a time.
pub const MAX_ORDERS: usize = 1024;

/// Orders in the sequence they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbox<T> {
    orders: VecDeque<T>,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Outbox { orders: VecDeque::new() }
    }
}

impl<T> Outbox<T> {
    pub fn new() -> Self {
        Outbox::default()
    }

    /// Adds an order.
    ///
    /// # Panics
    ///
    /// When [`MAX_ORDERS`] already wait: the machine is broken, and only its service is restarted.
    pub fn push(&mut self, order: T) {
        assert!(self.orders.len() < MAX_ORDERS, "outbox of one machine is full");
        self.orders.push_back(order);
    }

    /// The next order.
    pub fn pop(&mut self) -> Option<T> {
        self.orders.pop_front()
    }

    /// All orders, leaving none.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.orders.drain(..)
    }

    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    pub fn len(&self) -> usize {
        self.orders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_leave_in_the_sequence_they_came() {
        let mut outbox = Outbox::new();
        outbox.push(1);
        outbox.push(2);
        outbox.push(3);
        assert_eq!(outbox.pop(), Some(1));
        assert!(outbox.drain().eq([2, 3]));
        assert!(outbox.is_empty());
    }
}
