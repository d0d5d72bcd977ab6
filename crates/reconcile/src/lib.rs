// SPDX-License-Identifier: Apache-2.0
//! How decisions are made: the contract of a machine, and the few tools every machine needs.
//!
//! A *machine* has state and no effects: inputs go in, orders for effects come out through an [`Outbox`], and one
//! [`Machine::deadline`] says when it wants to be woken. Results of effects come back as inputs. A *planner* needs no
//! contract: it is a pure function from desired, observed, memory and now to a plan, and the plan is empty when
//! desired equals observed.
//!
//! Nothing here reads a clock, draws a random number or iterates in an order that is not fixed: time comes as
//! [`Now`], chance as a seed in [`Chance`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
extern crate alloc;

mod backoff;
mod chance;
mod deadlines;
mod outbox;

pub use backoff::Backoff;
pub use chance::Chance;
pub use deadlines::Deadlines;
pub use outbox::{MAX_ORDERS, Outbox};

use model::time::{MonoMs, Now};

/// A decision with state, to be driven by a shell:
///
/// ```text
/// loop {
///     input or deadline ──▶ handle / wake ──▶ outbox ──▶ effects ──▶ their results are the next inputs
/// }
/// ```
pub trait Machine {
    /// What happened.
    type Input;
    /// What is to be done. Performing it twice must do no harm.
    type Output;

    /// Takes one input. Orders leave through the outbox, in order.
    fn handle(&mut self, now: Now, input: Self::Input, outbox: &mut Outbox<Self::Output>);

    /// Does what has become due; nothing when it comes early.
    fn wake(&mut self, now: Now, outbox: &mut Outbox<Self::Output>);

    /// When [`Machine::wake`] is wanted next. After `wake` at its own deadline a machine names a later one or none,
    /// so a shell never spins.
    fn deadline(&self) -> Option<MonoMs>;
}

/// The earlier of several deadlines.
pub fn earliest(deadlines: impl IntoIterator<Item = Option<MonoMs>>) -> Option<MonoMs> {
    deadlines.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_passes_over_machines_that_wait_for_nothing() {
        assert_eq!(earliest([None, Some(MonoMs(7)), Some(MonoMs(3))]), Some(MonoMs(3)));
        assert_eq!(earliest([None, None]), None);
    }
}
