// SPDX-License-Identifier: Apache-2.0
//! Uploading logs, one batch at a time, oldest first. The log process keeps a batch until it is told it was taken.
//!
//! ```text
//!  Resting ─ due ─▶ Reading ─ batch ─▶ Posting ─ 2xx ─▶ taken, next at once
//!     ▲                └─ nothing ─┐        └─ failure: longer rest, the same batch again
//!     └────────────────────────────┴───────────────────┘
//! ```
//!
//! Also a batch the controller refuses too often is given up, so that it does not hold up the others.

use model::time::{MonoMs, Now};
use reconcile::{Backoff, Machine, Outbox};

use crate::exchange::Outcome;

/// Between looks for new lines.
const LOOK_MS: u64 = 3_000;
const FIRST_RETRY_MS: u64 = 2_000;
const LONGEST_RETRY_MS: u64 = 5 * 60 * 1_000;
/// Rest after the controller said it gets too much.
const TOO_MANY_MS: u64 = 60_000;
/// Refusals with a 4xx after which a batch is given up.
const MAX_REFUSALS: u32 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Start,
    /// The log process answered; `None` when there is nothing, or when it could not be asked.
    Read {
        batch: Option<u64>,
    },
    Posted(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Read,
    /// Post the batch that was read last.
    Post {
        batch: u64,
    },
    /// The log process may forget it.
    Taken {
        batch: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Resting { until: MonoMs },
    Reading,
    Posting { batch: u64 },
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Logs {
    state: State,
    refusals: u32,
    refused: Option<u64>,
    backoff: Backoff,
}

impl Default for Logs {
    fn default() -> Self {
        let backoff = Backoff::new(FIRST_RETRY_MS, LONGEST_RETRY_MS);
        Logs { state: State::Off, refusals: 0, refused: None, backoff }
    }
}

impl Logs {
    fn read(&mut self, outbox: &mut Outbox<Output>) {
        self.state = State::Reading;
        outbox.push(Output::Read);
    }

    fn taken(&mut self, batch: u64, outbox: &mut Outbox<Output>) {
        self.backoff.reset();
        outbox.push(Output::Taken { batch });
        self.read(outbox);
    }

    fn posted(&mut self, now: MonoMs, batch: u64, outcome: &Outcome, outbox: &mut Outbox<Output>) {
        match outcome {
            Outcome::Good(()) => return self.taken(batch, outbox),
            Outcome::Status(429) => {
                self.state = State::Resting { until: now.plus_ms(TOO_MANY_MS) };
                return;
            }
            Outcome::Status(400..=499) => {
                if self.refused != Some(batch) {
                    (self.refused, self.refusals) = (Some(batch), 0);
                }
                self.refusals += 1;
                if self.refusals > MAX_REFUSALS {
                    return self.taken(batch, outbox);
                }
            }
            Outcome::Status(_) | Outcome::NoAnswer | Outcome::CertMiss | Outcome::Refused => {}
        }
        self.state = State::Resting { until: self.backoff.fail(now) };
    }
}

impl Machine for Logs {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        match (self.state, input) {
            (State::Off, Input::Start) => self.read(outbox),
            (State::Reading, Input::Read { batch: Some(batch) }) => {
                self.state = State::Posting { batch };
                outbox.push(Output::Post { batch });
            }
            (State::Reading, Input::Read { batch: None }) => {
                self.state = State::Resting { until: now.mono.plus_ms(LOOK_MS) };
            }
            (State::Posting { batch }, Input::Posted(outcome)) => {
                self.posted(now.mono, batch, &outcome, outbox);
            }
            (
                State::Off | State::Resting { .. } | State::Reading | State::Posting { .. },
                Input::Start | Input::Read { .. } | Input::Posted(_),
            ) => {}
        }
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        if let State::Resting { until } = self.state
            && until <= now.mono
        {
            self.read(outbox);
        }
    }

    fn deadline(&self) -> Option<MonoMs> {
        match self.state {
            State::Resting { until } => Some(until),
            State::Off | State::Reading | State::Posting { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{at, bad};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn handle(machine: &mut Logs, ms: u64, input: Input) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.drain().collect()
    }

    fn wake(machine: &mut Logs, ms: u64) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.drain().collect()
    }

    #[test]
    fn batches_follow_each_other_without_a_rest() {
        let mut logs = Logs::default();
        assert_eq!(handle(&mut logs, 0, Input::Start), [Output::Read]);
        assert_eq!(handle(&mut logs, 0, Input::Read { batch: Some(4) }), [Output::Post { batch: 4 }]);
        let taken = handle(&mut logs, 1, Input::Posted(Outcome::Good(())));
        assert_eq!(taken, [Output::Taken { batch: 4 }, Output::Read]);
        assert_eq!(handle(&mut logs, 2, Input::Read { batch: None }), []);
        assert_eq!(wake(&mut logs, 3_002), [Output::Read]);
    }

    #[test]
    fn a_batch_that_is_always_refused_is_given_up_and_an_outage_keeps_it() {
        for (status, is_given_up) in [(400, true), (503, false), (429, false)] {
            let mut logs = Logs::default();
            handle(&mut logs, 0, Input::Start);
            let mut taken = 0;
            for _ in 0..=MAX_REFUSALS {
                handle(&mut logs, 0, Input::Read { batch: Some(1) });
                let out = handle(&mut logs, 0, Input::Posted(Outcome::Status(status)));
                taken += out.iter().filter(|order| matches!(order, Output::Taken { .. })).count();
                wake(&mut logs, 10_000_000);
            }
            assert_eq!(taken > 0, is_given_up, "{status}");
        }
    }

    proptest! {
        /// It waits for one answer or names its next moment.
        #[test]
        fn no_state_is_stuck(
            inputs in prop::collection::vec((prop_oneof![
                prop::option::of(0_u64..3).prop_map(|batch| Input::Read { batch }),
                bad().prop_map(Input::Posted),
                Just(Input::Posted(Outcome::Good(()))),
            ], 0_u64..9_000), 0..60),
        ) {
            let mut logs = Logs::default();
            handle(&mut logs, 0, Input::Start);
            let mut now = 0;
            for (input, step) in inputs {
                now += step;
                prop_assert!(handle(&mut logs, now, input).len() <= 2);
                prop_assert!(wake(&mut logs, now).len() <= 1);
                let waits = matches!(logs.state, State::Reading | State::Posting { .. });
                prop_assert!(waits || logs.deadline().is_some_and(|at| at.0 > now));
            }
        }
    }
}
