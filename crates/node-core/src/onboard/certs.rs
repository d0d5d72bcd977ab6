// SPDX-License-Identifier: Apache-2.0
//! When the controller's certificates are fetched: at start, every so often, and whenever something hints at a change.
//!
//! ```text
//!  Resting ── due, hint ──▶ Fetching ── good ──▶ Resting (next in 0.3..1 of the interval)
//!                              └──── bad ──────▶ Resting (retry, 1 s doubling to 2 min)
//! ```
//!
//! A set that fails its rules is refused and the known one stays. Hints while fetching are remembered; hints right
//! after a fetch wait a second, so that a controller that always signs wrongly cannot make the node spin.

use model::time::{MonoMs, Now};
use reconcile::{Backoff, Chance, Machine, Outbox};

use crate::exchange::Outcome;

const FIRST_RETRY_MS: u64 = 1_000;
const LONGEST_RETRY_MS: u64 = 2 * 60 * 1_000;
/// Gap between two fetches that hints ask for.
const HINT_GAP_MS: u64 = 1_000;
/// `timer.cert.interval` when the config names none.
const DEFAULT_INTERVAL_S: u32 = 86_400;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The network may be used. `is_known`: a set of an earlier run is there.
    Start {
        is_known: bool,
    },
    Fetched(Outcome),
    /// An answer was signed by another certificate, or the config says the set changed.
    Hint,
    /// `timer.cert.interval`.
    Interval {
        seconds: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Fetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Fetching,
    Resting { until: MonoMs },
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Certs {
    state: State,
    interval_s: u32,
    has_hint: bool,
    fetched: MonoMs,
    backoff: Backoff,
    chance: Chance,
}

impl Certs {
    pub fn new(chance: Chance) -> Certs {
        Certs {
            state: State::Off,
            interval_s: DEFAULT_INTERVAL_S,
            has_hint: false,
            fetched: MonoMs(0),
            backoff: Backoff::new(FIRST_RETRY_MS, LONGEST_RETRY_MS),
            chance,
        }
    }

    fn rest(&mut self, now: MonoMs) {
        let longest_ms = u64::from(self.interval_s) * 1_000;
        let wait_ms = self.chance.between(longest_ms * 3 / 10, longest_ms);
        self.state = State::Resting { until: now.plus_ms(wait_ms) };
    }

    fn fetch(&mut self, outbox: &mut Outbox<Output>) {
        self.state = State::Fetching;
        self.has_hint = false;
        outbox.push(Output::Fetch);
    }

    /// A fetch on a hint: soon, but not in a loop.
    fn hint(&mut self, now: MonoMs, outbox: &mut Outbox<Output>) {
        let earliest = self.fetched.plus_ms(HINT_GAP_MS);
        if self.backoff.failures() == 0 && earliest <= now {
            self.fetch(outbox);
        } else if let State::Resting { until } = self.state {
            self.state = State::Resting { until: until.min(earliest.max(now)) };
        }
    }
}

impl Machine for Certs {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        match (self.state, input) {
            // Also a known set is fetched anew, but nothing waits for it.
            (State::Off, Input::Start { .. }) => self.fetch(outbox),
            (State::Off, Input::Hint | Input::Fetched(_)) => {}
            (State::Fetching, Input::Fetched(outcome)) => {
                self.fetched = now.mono;
                if outcome.is_good() {
                    self.backoff.reset();
                    self.rest(now.mono);
                } else {
                    self.state = State::Resting { until: self.backoff.fail(now.mono) };
                }
                if self.has_hint {
                    self.has_hint = false;
                    self.hint(now.mono, outbox);
                }
            }
            (State::Fetching, Input::Hint) => self.has_hint = true,
            (State::Resting { .. }, Input::Hint) => self.hint(now.mono, outbox),
            (_, Input::Interval { seconds }) => {
                if self.interval_s != seconds {
                    self.interval_s = seconds;
                    if matches!(self.state, State::Resting { .. }) && self.backoff.failures() == 0 {
                        self.rest(now.mono);
                    }
                }
            }
            (State::Fetching | State::Resting { .. }, Input::Start { .. })
            | (State::Resting { .. }, Input::Fetched(_)) => {}
        }
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        if let State::Resting { until } = self.state
            && until <= now.mono
        {
            self.fetch(outbox);
        }
    }

    fn deadline(&self) -> Option<MonoMs> {
        match self.state {
            State::Resting { until } => Some(until),
            State::Off | State::Fetching => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{at, bad};
    use proptest::prelude::*;

    fn handle(machine: &mut Certs, ms: u64, input: Input) -> usize {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.len()
    }

    fn wake(machine: &mut Certs, ms: u64) -> usize {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.len()
    }

    #[test]
    fn failures_are_retried_soon_and_success_rests_for_a_day() {
        let mut machine = Certs::new(Chance::new(1));
        assert_eq!(handle(&mut machine, 0, Input::Start { is_known: false }), 1);
        assert_eq!(handle(&mut machine, 0, Input::Fetched(Outcome::NoAnswer)), 0);
        assert_eq!(machine.deadline(), Some(MonoMs(1_000)));
        assert_eq!(wake(&mut machine, 1_000), 1);
        handle(&mut machine, 1_000, Input::Fetched(Outcome::Good(())));
        let next = machine.deadline().unwrap().0;
        assert!((25_920_000..=86_401_000).contains(&next), "{next}");
    }

    #[test]
    fn a_hint_fetches_at_once_but_no_faster_than_once_a_second() {
        let mut machine = Certs::new(Chance::new(1));
        handle(&mut machine, 0, Input::Start { is_known: true });
        assert_eq!(handle(&mut machine, 0, Input::Hint), 0, "one is under way");
        assert_eq!(handle(&mut machine, 500, Input::Fetched(Outcome::Good(()))), 0);
        assert_eq!(machine.deadline(), Some(MonoMs(1_500)), "the hint is not forgotten");
        assert_eq!(wake(&mut machine, 1_500), 1);
        handle(&mut machine, 1_600, Input::Fetched(Outcome::Good(())));
        assert_eq!(handle(&mut machine, 9_000, Input::Hint), 1);
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            any::<bool>().prop_map(|is_known| Input::Start { is_known }),
            bad().prop_map(Input::Fetched),
            Just(Input::Fetched(Outcome::Good(()))),
            Just(Input::Hint),
            (60_u32..100_000).prop_map(|seconds| Input::Interval { seconds }),
        ]
    }

    proptest! {
        /// Once started it either waits for an answer or names its next moment, and hints do not make it spin.
        #[test]
        fn no_state_is_stuck_and_none_spins(inputs in prop::collection::vec((input(), 0_u64..400), 0..80)) {
            let mut machine = Certs::new(Chance::new(3));
            let mut outstanding = handle(&mut machine, 0, Input::Start { is_known: false });
            let (mut now, mut fetches) = (0, 0);
            for (input, step) in inputs {
                now += step;
                if matches!(input, Input::Fetched(_)) {
                    outstanding = 0;
                }
                let more = handle(&mut machine, now, input) + wake(&mut machine, now);
                outstanding += more;
                fetches += more;
                prop_assert!(outstanding <= 1);
                prop_assert!(outstanding == 1 || machine.deadline().is_some());
            }
            prop_assert!(fetches as u64 <= now / 999 + 1);
        }
    }
}
