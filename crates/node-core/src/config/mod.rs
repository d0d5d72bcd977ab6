// SPDX-License-Identifier: Apache-2.0
//! When the config is asked for, and what an answer leads to.
//!
//! ```text
//!  Off ─ start ─▶ Asking ─ answered ─▶ Resting (until) ─ due, new token, new certificates ─▶ Asking
//! ```
//!
//! A controller that holds its answers back until something changes is asked again at once; one that answers at once
//! is asked as EVE does, every 0.3..1 of `timer.config.interval`. Which one it is shows by itself. What may be
//! applied is decided in [`guard`].

pub mod guard;

use alloc::string::String;

use model::time::{MonoMs, Now};
use reconcile::{Backoff, Chance, Machine, Outbox};

use crate::exchange::Outcome;

/// An answer that took longer was held back on purpose; a controller that holds does so for 35 s.
pub const HELD_MS: u64 = 10_000;
/// Gap between a held answer and the next request.
const HELD_GAP_MS: u64 = 50;
/// A controller known to hold that answers "not modified" at once: so many times in a row until it no longer counts
/// as holding, with this gap between.
const QUICK_ANSWERS: u32 = 3;
const QUICK_GAP_MS: u64 = 1_000;
/// Retries after failures begin with this and end with the interval, or this if it is longer.
const FIRST_RETRY_MS: u64 = 1_000;
const LONGEST_RETRY_MS: u64 = 60_000;
/// `timer.config.interval` when the config names none.
const DEFAULT_INTERVAL_S: u32 = 60;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The device is known, and the attestation done or given up for now.
    Start,
    Answered(Outcome<Answer>),
    /// A new integrity token.
    Token,
    /// The controller's certificates were fetched.
    CertsFetched,
    /// `timer.config.interval`.
    Interval {
        seconds: u32,
    },
}

/// A verified answer, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    NotModified,
    /// A config that was taken, or one that is remembered as refused: it need not be sent again.
    New {
        hash: String,
    },
    /// A config that is not for us or older than the one in force; as if nothing had come.
    Ignored,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask with this hash.
    Ask {
        hash: String,
    },
    /// 403: the token is not good.
    TokenRefused,
    /// 400 or 404: the controller may not know the device.
    Unknown,
    RefreshCerts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Asking { since: MonoMs },
    Resting { until: MonoMs, why: Rest },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Usual,
    ForToken,
    ForCerts,
}

/// What is known of the controller's manner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Unknown,
    Holds { quick_answers: u32 },
    AnswersAtOnce,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Polling {
    state: State,
    hash: String,
    manner: Manner,
    interval_s: u32,
    has_new_token: bool,
    backoff: Backoff,
    miss_backoff: Backoff,
    chance: Chance,
}

impl Polling {
    pub fn new(chance: Chance) -> Polling {
        Polling {
            state: State::Off,
            hash: String::new(),
            manner: Manner::Unknown,
            interval_s: DEFAULT_INTERVAL_S,
            has_new_token: false,
            backoff: Backoff::new(FIRST_RETRY_MS, LONGEST_RETRY_MS),
            miss_backoff: Backoff::new(FIRST_RETRY_MS, LONGEST_RETRY_MS),
            chance,
        }
    }

    fn ask(&mut self, now: MonoMs, outbox: &mut Outbox<Output>) {
        self.state = State::Asking { since: now };
        self.has_new_token = false;
        outbox.push(Output::Ask { hash: self.hash.clone() });
    }

    fn rest(&mut self, until: MonoMs, why: Rest) {
        self.state = State::Resting { until, why };
    }

    fn usual_pause(&mut self, now: MonoMs) -> MonoMs {
        let longest_ms = u64::from(self.interval_s) * 1_000;
        now.plus_ms(self.chance.between(longest_ms * 3 / 10, longest_ms))
    }

    /// Never longer than the usual pause: a controller that is back is noticed as fast as a change would be.
    fn retry(&mut self, now: MonoMs) -> MonoMs {
        let usual = self.usual_pause(now);
        self.backoff.fail(now).min(usual)
    }

    fn not_modified(&mut self, now: MonoMs, took_ms: u64) {
        let until = if took_ms >= HELD_MS {
            self.manner = Manner::Holds { quick_answers: 0 };
            now.plus_ms(HELD_GAP_MS)
        } else {
            match self.manner {
                Manner::Holds { quick_answers } if quick_answers < QUICK_ANSWERS => {
                    self.manner = Manner::Holds { quick_answers: quick_answers + 1 };
                    now.plus_ms(QUICK_GAP_MS)
                }
                Manner::Unknown | Manner::AnswersAtOnce | Manner::Holds { .. } => {
                    self.manner = Manner::AnswersAtOnce;
                    self.usual_pause(now)
                }
            }
        };
        self.rest(until, Rest::Usual);
    }

    fn answered(&mut self, now: MonoMs, took_ms: u64, outcome: Outcome<Answer>, outbox: &mut Outbox<Output>) {
        match outcome {
            Outcome::Good(answer) => {
                self.backoff.reset();
                self.miss_backoff.reset();
                match answer {
                    Answer::NotModified => self.not_modified(now, took_ms),
                    Answer::New { hash } => {
                        let is_change = self.hash != hash;
                        self.hash = hash;
                        // The next answer shows whether the controller holds; it must be asked to find out.
                        let until = match self.manner {
                            Manner::AnswersAtOnce => self.usual_pause(now),
                            _ if !is_change => self.usual_pause(now),
                            Manner::Unknown | Manner::Holds { .. } => now.plus_ms(HELD_GAP_MS),
                        };
                        self.rest(until, Rest::Usual);
                    }
                    Answer::Ignored => {
                        let until = self.usual_pause(now);
                        self.rest(until, Rest::Usual);
                    }
                }
            }
            Outcome::Status(403) => {
                outbox.push(Output::TokenRefused);
                let until = self.retry_after_refusal(now);
                self.rest(until, Rest::ForToken);
            }
            Outcome::Status(400 | 404) => {
                outbox.push(Output::Unknown);
                let until = self.usual_pause(now);
                self.rest(until, Rest::Usual);
            }
            Outcome::CertMiss => {
                outbox.push(Output::RefreshCerts);
                let until = self.miss_backoff.fail(now);
                self.rest(until, Rest::ForCerts);
            }
            Outcome::Status(_) | Outcome::NoAnswer | Outcome::Refused => {
                let until = self.retry(now);
                self.rest(until, Rest::Usual);
            }
        }
    }

    /// The dialogue for a new token is under way; should it fail, the config is asked for without.
    fn retry_after_refusal(&mut self, now: MonoMs) -> MonoMs {
        let usual = self.usual_pause(now);
        if self.has_new_token { now.plus_ms(FIRST_RETRY_MS) } else { usual }
    }
}

impl Machine for Polling {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        match (self.state, input) {
            (State::Off, Input::Start) => self.ask(now.mono, outbox),
            (State::Asking { since }, Input::Answered(outcome)) => {
                self.answered(now.mono, now.mono.since_ms(since), outcome, outbox);
            }
            (State::Asking { .. }, Input::Token) => self.has_new_token = true,
            (State::Resting { why: Rest::ForToken, .. }, Input::Token) => self.ask(now.mono, outbox),
            // The first failures ask at once with the fresh set; a controller that never fits has to wait.
            (State::Resting { why: Rest::ForCerts, .. }, Input::CertsFetched)
                if self.miss_backoff.failures() == 1 =>
            {
                self.ask(now.mono, outbox);
            }
            (_, Input::Interval { seconds }) => {
                if self.interval_s != seconds {
                    self.interval_s = seconds;
                    if let State::Resting { until, why } = self.state {
                        let usual = self.usual_pause(now.mono);
                        self.rest(until.min(usual), why);
                    }
                }
            }
            (
                State::Off | State::Asking { .. } | State::Resting { .. },
                Input::Start | Input::Answered(_) | Input::Token | Input::CertsFetched,
            ) => {}
        }
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        if let State::Resting { until, .. } = self.state
            && until <= now.mono
        {
            self.ask(now.mono, outbox);
        }
    }

    fn deadline(&self) -> Option<MonoMs> {
        match self.state {
            State::Resting { until, .. } => Some(until),
            State::Off | State::Asking { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{at, bad};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn handle(machine: &mut Polling, ms: u64, input: Input) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.drain().collect()
    }

    fn wake(machine: &mut Polling, ms: u64) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.drain().collect()
    }

    fn new(hash: &str) -> Input {
        Input::Answered(Outcome::Good(Answer::New { hash: hash.into() }))
    }

    const SAME: Input = Input::Answered(Outcome::Good(Answer::NotModified));

    fn ask(hash: &str) -> [Output; 1] {
        [Output::Ask { hash: hash.into() }]
    }

    fn polling() -> Polling {
        Polling::new(Chance::new(5))
    }

    #[test]
    fn a_controller_that_answers_at_once_is_asked_within_the_interval() {
        let mut machine = polling();
        assert_eq!(handle(&mut machine, 0, Input::Start), ask(""));
        handle(&mut machine, 100, Input::Interval { seconds: 10 });
        handle(&mut machine, 100, new("A"));
        assert_eq!(wake(&mut machine, 150), ask("A"), "asked once more to see whether it holds");
        let mut now = 150;
        for _ in 0..50 {
            handle(&mut machine, now + 10, SAME);
            let next = machine.deadline().unwrap().0;
            let pause = next - now - 10;
            assert!((3_000..=10_000).contains(&pause), "{pause}");
            assert_eq!(wake(&mut machine, next), ask("A"));
            now = next;
        }
    }

    #[test]
    fn a_controller_that_holds_is_asked_again_at_once() {
        let mut machine = polling();
        handle(&mut machine, 0, Input::Start);
        handle(&mut machine, 10, new("A"));
        assert_eq!(wake(&mut machine, 60), ask("A"));
        handle(&mut machine, 35_060, SAME);
        assert_eq!(wake(&mut machine, 35_110), ask("A"));
        handle(&mut machine, 40_000, new("B"));
        assert_eq!(wake(&mut machine, 40_050), ask("B"));
        for quick in 0..u64::from(QUICK_ANSWERS) {
            let now = 40_060 + quick * 1_000;
            handle(&mut machine, now, SAME);
            assert_eq!(wake(&mut machine, now + 1_000), ask("B"), "after quick answer {quick}");
        }
        handle(&mut machine, 50_000, SAME);
        assert!(machine.deadline().unwrap().0 >= 50_000 + 18_000);
    }

    #[test]
    fn a_refused_token_waits_for_the_next_one_but_not_for_ever() {
        let mut machine = polling();
        handle(&mut machine, 0, Input::Start);
        let refused = Input::Answered(Outcome::Status(403));
        assert_eq!(handle(&mut machine, 10, refused.clone()), [Output::TokenRefused]);
        assert!(machine.deadline().is_some());
        assert_eq!(handle(&mut machine, 500, Input::Token), ask(""));
        assert_eq!(handle(&mut machine, 510, Input::Token), []);
        assert_eq!(handle(&mut machine, 520, refused), [Output::TokenRefused]);
        assert_eq!(wake(&mut machine, 1_520), ask(""), "a token came while the request was under way");
    }

    #[test]
    fn a_changed_signer_is_asked_again_once_at_once_and_then_slower() {
        let mut machine = polling();
        handle(&mut machine, 0, Input::Start);
        let miss = Input::Answered(Outcome::CertMiss);
        assert_eq!(handle(&mut machine, 10, miss.clone()), [Output::RefreshCerts]);
        assert_eq!(handle(&mut machine, 20, Input::CertsFetched), ask(""));
        assert_eq!(handle(&mut machine, 30, miss), [Output::RefreshCerts]);
        assert_eq!(handle(&mut machine, 40, Input::CertsFetched), []);
        assert_eq!(machine.deadline(), Some(MonoMs(2_030)));
    }

    #[test]
    fn an_unknown_device_asks_for_its_uuid() {
        for status in [400, 404] {
            let mut machine = polling();
            handle(&mut machine, 0, Input::Start);
            let out = handle(&mut machine, 10, Input::Answered(Outcome::Status(status)));
            assert_eq!(out, [Output::Unknown]);
        }
    }

    #[test]
    fn ignored_configs_leave_the_hash_alone() {
        let mut machine = polling();
        handle(&mut machine, 0, Input::Start);
        handle(&mut machine, 10, new("A"));
        wake(&mut machine, 60);
        handle(&mut machine, 70, Input::Answered(Outcome::Good(Answer::Ignored)));
        let next = machine.deadline().unwrap();
        assert!(next.0 >= 18_000, "no haste to hear the same again");
        assert_eq!(wake(&mut machine, next.0), ask("A"));
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Start),
            bad().prop_map(Input::Answered),
            Just(SAME),
            "[ab]".prop_map(|hash| new(&hash)),
            Just(Input::Answered(Outcome::Good(Answer::Ignored))),
            Just(Input::Token),
            Just(Input::CertsFetched),
            (5_u32..100_000).prop_map(|seconds| Input::Interval { seconds }),
        ]
    }

    proptest! {
        /// Once started it waits for exactly one answer or names its next moment, within the interval.
        #[test]
        fn no_state_is_stuck(inputs in prop::collection::vec((input(), 0_u64..40_000), 0..80)) {
            let mut machine = polling();
            handle(&mut machine, 0, Input::Start);
            let (mut outstanding, mut now, mut interval_s) = (1, 0, u64::from(DEFAULT_INTERVAL_S));
            for (input, step) in inputs {
                now += step;
                if matches!(input, Input::Answered(_)) {
                    outstanding = 0;
                }
                if let Input::Interval { seconds } = input {
                    interval_s = u64::from(seconds);
                }
                let mut out = handle(&mut machine, now, input);
                out.extend(wake(&mut machine, now));
                prop_assert!(out.len() <= 2);
                outstanding += out.iter().filter(|order| matches!(order, Output::Ask { .. })).count();
                prop_assert!(outstanding <= 1);
                match machine.deadline() {
                    Some(at) => {
                        prop_assert_eq!(outstanding, 0);
                        prop_assert!(at.0 > now && at.0 <= now + (interval_s * 1_000).max(LONGEST_RETRY_MS));
                    }
                    None => prop_assert_eq!(outstanding, 1),
                }
            }
        }
    }
}
