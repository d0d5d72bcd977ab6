// SPDX-License-Identifier: Apache-2.0
//! Proving to the controller what booted: publishing the node's certificates, then nonce, quote, integrity token.
//!
//! ```text
//!  Off ─ device known ─▶ Certs ─ answered ─▶ Nonce ─▶ InternalQuote ─▶ Quote ─ accepted ─▶ Complete(token)
//!                          ▲                   ▲          │              │                   │
//!                          │ controller has    │          └── anything ──┴──▶ Restart (15 s) │
//!                          └ no certificate ───┴────────────────────────────────┘◀──────────┘ 403 on config
//! ```
//!
//! Certificates that the controller does not take are sent again beside the dialogue, which goes on: EVE runs both in
//! parallel. The token lives in memory only. Without a TPM the quote is empty and there is no volume key to escrow.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use model::time::{MonoMs, Now};
use reconcile::{Backoff, Machine, Outbox, earliest};

use crate::exchange::Outcome;

/// Bytes of a nonce a TPM takes and a controller may send.
pub const NONCE_BYTES: RangeInclusive<usize> = 12..=32;
/// Longest token kept; known controllers send 32 or 128 bytes.
pub const MAX_TOKEN_BYTES: usize = 1024;
/// EVE's retry timer of the dialogue.
const RESTART_MS: u64 = 15_000;
/// The first failures of our own node's dialogue are retried faster: at start services come up one by one.
const FIRST_RESTART_MS: u64 = 2_000;
/// Retry of the certificates.
const CERTS_RETRY_MS: u64 = 10_000;
const CERTS_LONGEST_RETRY_MS: u64 = 5 * 60 * 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The UUID is known and the controller's answers can be verified.
    Start,
    CertsAnswered(Outcome),
    Nonce(Outcome<Vec<u8>>),
    /// The vault made a quote, or an empty one; false: it failed.
    Quoted {
        is_made: bool,
    },
    QuoteAnswered(Outcome<Verdict>),
    /// The controller refused a config request for lack of a good token.
    TokenRefused,
}

/// The controller's answer to a quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted {
        token: Vec<u8>,
    },
    NonceMismatch,
    /// The quote arrived before the certificate that verifies it.
    NoCertificate,
    QuoteFailed,
    /// `INVALID` or a number not known.
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    PublishCerts,
    AskNonce,
    MakeQuote {
        nonce: Vec<u8>,
    },
    SendQuote,
    /// To be sent with config requests from now on.
    Token(Vec<u8>),
    /// The dialogue failed for now: go on without a token.
    Failed,
    /// The controller signs with another certificate than the one known.
    RefreshCerts,
}

/// Numbers are those of eve-api `AttestationState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Off = 0,
    NonceWait = 1,
    QuoteWait = 2,
    AttestWait = 4,
    RestartWait = 6,
    Complete = 7,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    /// The first answer to the certificates is awaited.
    Certs,
    Nonce,
    InternalQuote,
    Quote,
    Restart {
        until: MonoMs,
    },
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CertsState {
    Unsent,
    Sending,
    Retry { at: MonoMs },
    Published,
}

/// The machine. Answers it does not wait for are ignored.
#[derive(Clone, Debug)]
pub struct Attest {
    state: State,
    certs: CertsState,
    certs_backoff: Backoff,
    backoff: Backoff,
    has_told_failure: bool,
}

impl Default for Attest {
    fn default() -> Self {
        Attest {
            state: State::Off,
            certs: CertsState::Unsent,
            certs_backoff: Backoff::new(CERTS_RETRY_MS, CERTS_LONGEST_RETRY_MS),
            backoff: Backoff::new(FIRST_RESTART_MS, RESTART_MS),
            has_told_failure: false,
        }
    }
}

impl Attest {
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Off => Phase::Off,
            State::Certs | State::Nonce => Phase::NonceWait,
            State::InternalQuote => Phase::QuoteWait,
            State::Quote => Phase::AttestWait,
            State::Restart { .. } => Phase::RestartWait,
            State::Complete => Phase::Complete,
        }
    }

    /// The controller took the node's certificates in this run.
    pub fn is_published(&self) -> bool {
        self.certs == CertsState::Published
    }

    fn publish(&mut self, outbox: &mut Outbox<Output>) {
        self.certs = CertsState::Sending;
        outbox.push(Output::PublishCerts);
    }

    fn ask_nonce(&mut self, outbox: &mut Outbox<Output>) {
        self.state = State::Nonce;
        outbox.push(Output::AskNonce);
    }

    fn certs_answered(&mut self, now: MonoMs, outcome: &Outcome, outbox: &mut Outbox<Output>) {
        self.certs = if outcome.is_good() {
            self.certs_backoff.reset();
            CertsState::Published
        } else {
            CertsState::Retry { at: self.certs_backoff.fail(now) }
        };
        if *outcome == Outcome::CertMiss {
            outbox.push(Output::RefreshCerts);
        }
        if self.state == State::Certs {
            self.ask_nonce(outbox);
        }
    }

    fn fail(&mut self, now: MonoMs, outbox: &mut Outbox<Output>) {
        self.state = State::Restart { until: self.backoff.fail(now) };
        if !self.has_told_failure {
            self.has_told_failure = true;
            outbox.push(Output::Failed);
        }
    }

    fn quote_answered(&mut self, now: MonoMs, outcome: Outcome<Verdict>, outbox: &mut Outbox<Output>) {
        match outcome {
            Outcome::Good(Verdict::Accepted { token }) if token.len() <= MAX_TOKEN_BYTES => {
                self.backoff.reset();
                self.has_told_failure = false;
                self.state = State::Complete;
                outbox.push(Output::Token(token));
                return;
            }
            Outcome::Good(Verdict::NoCertificate) if self.certs == CertsState::Published => {
                self.publish(outbox);
            }
            Outcome::CertMiss => outbox.push(Output::RefreshCerts),
            Outcome::Good(_) | Outcome::Status(_) | Outcome::NoAnswer | Outcome::Refused => {}
        }
        self.fail(now, outbox);
    }
}

impl Machine for Attest {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        match (self.state, input) {
            (State::Off, Input::Start) => {
                self.state = State::Certs;
                self.publish(outbox);
            }
            (_, Input::CertsAnswered(outcome)) => {
                if self.certs == CertsState::Sending {
                    self.certs_answered(now.mono, &outcome, outbox);
                }
            }
            (State::Nonce, Input::Nonce(outcome)) => match outcome {
                Outcome::Good(nonce) if NONCE_BYTES.contains(&nonce.len()) => {
                    self.state = State::InternalQuote;
                    outbox.push(Output::MakeQuote { nonce });
                }
                other => {
                    if other == Outcome::CertMiss {
                        outbox.push(Output::RefreshCerts);
                    }
                    self.fail(now.mono, outbox);
                }
            },
            (State::InternalQuote, Input::Quoted { is_made }) => {
                if is_made {
                    self.state = State::Quote;
                    outbox.push(Output::SendQuote);
                } else {
                    self.fail(now.mono, outbox);
                }
            }
            (State::Quote, Input::QuoteAnswered(outcome)) => self.quote_answered(now.mono, outcome, outbox),
            (State::Complete, Input::TokenRefused) => self.ask_nonce(outbox),
            // In any other state the dialogue is under way already, or the answer is one nobody waits for.
            (
                _,
                Input::Start
                | Input::Nonce(_)
                | Input::Quoted { .. }
                | Input::QuoteAnswered(_)
                | Input::TokenRefused,
            ) => {}
        }
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        if let CertsState::Retry { at } = self.certs
            && at <= now.mono
        {
            self.publish(outbox);
        }
        if let State::Restart { until } = self.state
            && until <= now.mono
        {
            self.ask_nonce(outbox);
        }
    }

    fn deadline(&self) -> Option<MonoMs> {
        let certs = match self.certs {
            CertsState::Retry { at } => Some(at),
            CertsState::Unsent | CertsState::Sending | CertsState::Published => None,
        };
        let dialogue = match self.state {
            State::Restart { until } => Some(until),
            State::Off
            | State::Certs
            | State::Nonce
            | State::InternalQuote
            | State::Quote
            | State::Complete => None,
        };
        earliest([certs, dialogue])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{at, bad};
    use alloc::vec;
    use proptest::prelude::*;

    fn handle(machine: &mut Attest, ms: u64, input: Input) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.drain().collect()
    }

    fn wake(machine: &mut Attest, ms: u64) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.drain().collect()
    }

    fn accepted() -> Input {
        Input::QuoteAnswered(Outcome::Good(Verdict::Accepted { token: vec![5; 32] }))
    }

    /// Brings a machine to the state that waits for the answer to its quote.
    fn quoting() -> Attest {
        let mut machine = Attest::default();
        assert_eq!(handle(&mut machine, 0, Input::Start), [Output::PublishCerts]);
        assert_eq!(handle(&mut machine, 0, Input::CertsAnswered(Outcome::Good(()))), [Output::AskNonce]);
        let nonce = vec![1; 20];
        let made = handle(&mut machine, 0, Input::Nonce(Outcome::Good(nonce.clone())));
        assert_eq!(made, [Output::MakeQuote { nonce }]);
        assert_eq!(handle(&mut machine, 0, Input::Quoted { is_made: true }), [Output::SendQuote]);
        machine
    }

    #[test]
    fn the_dialogue_ends_with_a_token_and_a_refused_token_starts_it_again() {
        let mut machine = quoting();
        assert_eq!(handle(&mut machine, 1, accepted()), [Output::Token(vec![5; 32])]);
        assert_eq!(machine.phase(), Phase::Complete);
        assert_eq!(handle(&mut machine, 2, Input::TokenRefused), [Output::AskNonce]);
        assert_eq!(handle(&mut machine, 3, Input::TokenRefused), [], "one dialogue at a time");
    }

    #[test]
    fn nonces_of_a_wrong_length_are_no_nonces() {
        for length in [0, 11, 33] {
            let mut machine = Attest::default();
            handle(&mut machine, 0, Input::Start);
            handle(&mut machine, 0, Input::CertsAnswered(Outcome::Good(())));
            let out = handle(&mut machine, 0, Input::Nonce(Outcome::Good(vec![1; length])));
            assert_eq!(out, [Output::Failed], "{length} bytes");
            assert_eq!(machine.phase(), Phase::RestartWait);
        }
    }

    #[test]
    fn a_controller_that_misses_the_certificate_gets_it_again() {
        let mut machine = quoting();
        let out = handle(&mut machine, 0, Input::QuoteAnswered(Outcome::Good(Verdict::NoCertificate)));
        assert_eq!(out, [Output::PublishCerts, Output::Failed]);
        assert_eq!(handle(&mut machine, 1, Input::CertsAnswered(Outcome::Good(()))), []);
        assert_eq!(wake(&mut machine, 2_000), [Output::AskNonce]);
    }

    #[test]
    fn refused_certificates_do_not_hold_up_the_dialogue() {
        let mut machine = Attest::default();
        handle(&mut machine, 0, Input::Start);
        assert_eq!(handle(&mut machine, 0, Input::CertsAnswered(Outcome::Status(400))), [Output::AskNonce]);
        assert!(!machine.is_published());
        assert_eq!(wake(&mut machine, 10_000), [Output::PublishCerts]);
        handle(&mut machine, 10_001, Input::CertsAnswered(Outcome::Good(())));
        assert!(machine.is_published());
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Start),
            bad().prop_map(Input::CertsAnswered),
            Just(Input::CertsAnswered(Outcome::Good(()))),
            bad().prop_map(Input::Nonce),
            (0_usize..40).prop_map(|n| Input::Nonce(Outcome::Good(vec![0; n]))),
            any::<bool>().prop_map(|is_made| Input::Quoted { is_made }),
            bad().prop_map(Input::QuoteAnswered),
            Just(Input::QuoteAnswered(Outcome::Good(Verdict::NoCertificate))),
            Just(Input::QuoteAnswered(Outcome::Good(Verdict::NonceMismatch))),
            Just(accepted()),
            Just(Input::TokenRefused),
        ]
    }

    proptest! {
        /// Whatever happened before, a controller and a vault that behave bring it to a token.
        #[test]
        fn no_state_is_stuck(inputs in prop::collection::vec(input(), 0..60)) {
            let mut machine = Attest::default();
            let mut now = 0;
            for input in inputs {
                now += 500;
                prop_assert!(handle(&mut machine, now, input).len() <= 3);
                prop_assert!(wake(&mut machine, now).len() <= 2);
                prop_assert!(machine.deadline().is_none_or(|at| at.0 > now));
            }
            for _ in 0..3 {
                handle(&mut machine, now, Input::Start);
                now = machine.deadline().map_or(now, |at| at.0.max(now));
                wake(&mut machine, now);
                for input in [
                    Input::CertsAnswered(Outcome::Good(())),
                    Input::Nonce(Outcome::Good(vec![0; 12])),
                    Input::Quoted { is_made: true },
                    accepted(),
                ] {
                    handle(&mut machine, now, input);
                }
            }
            prop_assert_eq!(machine.phase(), Phase::Complete);
            prop_assert!(machine.is_published());
        }
    }
}
