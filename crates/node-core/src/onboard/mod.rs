// SPDX-License-Identifier: Apache-2.0
//! Becoming a device of a controller, as EVE does it: register and ask for the UUID in turn until the UUID comes.
//!
//! ```text
//!            certificates known            any answer            UUID
//!  Waiting ────────────────────▶ Registering ───────▶ AskingUuid ────▶ Known
//!     │  ▲                            ▲                   │              │
//!     │  └─ (UUID of an earlier run: straight to Known)   │ anything else│ the controller does not know us:
//!     ▼                               └──── Pausing ◀─────┘              ▼ ask again, at most every 10 min
//!  (no onboarding key: AskingUuid at once)                          AskingUuid
//! ```
//!
//! The answer to a registration alone never counts as success, only the UUID does. [`certs`] keeps the controller's
//! certificates fresh beside it.

pub mod certs;

use model::id::DeviceId;
use model::time::{MonoMs, Now};
use reconcile::{Backoff, Machine, Outbox};

use crate::exchange::Outcome;

/// Waits between rounds.
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 10 * 60 * 1_000;
/// A device the controller says it does not know asks for its UUID no more often than this.
const ASK_AGAIN_S: u64 = 10 * 60;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The controller's certificates are known: its answers can be verified.
    CertsKnown,
    Registered(Outcome),
    Uuid(Outcome<DeviceId>),
    /// The controller answered a config request as if it did not know the device.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Register,
    AskUuid,
    /// Said for each change of the UUID, also for the one of an earlier run. To be stored.
    Known(DeviceId),
    /// The controller signs with another certificate than the one known.
    RefreshCerts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Registering,
    AskingUuid,
    Pausing { until: MonoMs },
    Known,
}

/// The machine. Answers may come late or twice; only the one it waits for counts.
#[derive(Clone, Debug)]
pub struct Onboard {
    state: State,
    can_register: bool,
    device: Option<DeviceId>,
    backoff: Backoff,
    may_ask_again: MonoMs,
}

impl Onboard {
    /// `device`: UUID of an earlier run. `can_register`: there is an onboarding key.
    pub fn new(device: Option<DeviceId>, can_register: bool) -> Onboard {
        Onboard {
            state: if device.is_some() { State::Known } else { State::Waiting },
            can_register,
            device,
            backoff: Backoff::new(FIRST_PAUSE_MS, LONGEST_PAUSE_MS),
            may_ask_again: MonoMs(0),
        }
    }

    pub fn device(&self) -> Option<DeviceId> {
        self.device
    }

    fn begin(&mut self, outbox: &mut Outbox<Output>) {
        if self.can_register && self.device.is_none() {
            self.state = State::Registering;
            outbox.push(Output::Register);
        } else {
            self.state = State::AskingUuid;
            outbox.push(Output::AskUuid);
        }
    }

    fn uuid_answered(&mut self, now: Now, outcome: Outcome<DeviceId>, outbox: &mut Outbox<Output>) {
        match outcome {
            Outcome::Good(device) => {
                self.backoff.reset();
                self.state = State::Known;
                if self.device.replace(device) != Some(device) {
                    outbox.push(Output::Known(device));
                }
            }
            // A device that has a UUID goes on with it: the controller may come to its senses.
            _ if self.device.is_some() => self.state = State::Known,
            other => {
                if other == Outcome::CertMiss {
                    outbox.push(Output::RefreshCerts);
                }
                self.state = State::Pausing { until: self.backoff.fail(now.mono) };
            }
        }
    }
}

impl Machine for Onboard {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        match (self.state, input) {
            (State::Waiting, Input::CertsKnown) => self.begin(outbox),
            (State::Registering, Input::Registered(_)) => {
                self.state = State::AskingUuid;
                outbox.push(Output::AskUuid);
            }
            (State::AskingUuid, Input::Uuid(outcome)) => self.uuid_answered(now, outcome, outbox),
            (State::Known, Input::Unknown) if self.may_ask_again <= now.mono => {
                self.may_ask_again = now.mono.plus_s(ASK_AGAIN_S);
                self.begin(outbox);
            }
            (_, Input::CertsKnown | Input::Registered(_) | Input::Uuid(_) | Input::Unknown) => {}
        }
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        if let State::Pausing { until } = self.state
            && until <= now.mono
        {
            self.begin(outbox);
        }
    }

    fn deadline(&self) -> Option<MonoMs> {
        match self.state {
            State::Pausing { until } => Some(until),
            State::Waiting | State::Registering | State::AskingUuid | State::Known => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{at, bad};
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    const DEVICE: DeviceId = DeviceId(Uuid::from_u128(7));

    fn handle(machine: &mut Onboard, ms: u64, input: Input) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.drain().collect()
    }

    fn wake(machine: &mut Onboard, ms: u64) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.drain().collect()
    }

    #[test]
    fn registration_is_sent_again_until_the_uuid_comes() {
        let mut machine = Onboard::new(None, true);
        assert_eq!(handle(&mut machine, 0, Input::CertsKnown), [Output::Register]);
        assert_eq!(handle(&mut machine, 1, Input::Registered(Outcome::Status(403))), [Output::AskUuid]);
        assert_eq!(handle(&mut machine, 2, Input::Uuid(Outcome::Status(401))), []);
        assert_eq!(machine.deadline(), Some(MonoMs(1_002)));
        assert_eq!(wake(&mut machine, 1_001), []);
        assert_eq!(wake(&mut machine, 1_002), [Output::Register]);
        handle(&mut machine, 1_003, Input::Registered(Outcome::Status(409)));
        assert_eq!(handle(&mut machine, 1_004, Input::Uuid(Outcome::Good(DEVICE))), [Output::Known(DEVICE)]);
        assert_eq!(machine.deadline(), None);
    }

    #[test]
    fn a_known_device_asks_again_at_most_every_ten_minutes_and_keeps_its_uuid_meanwhile() {
        let mut machine = Onboard::new(Some(DEVICE), true);
        assert_eq!(handle(&mut machine, 0, Input::CertsKnown), []);
        assert_eq!(handle(&mut machine, 5, Input::Unknown), [Output::AskUuid]);
        assert_eq!(handle(&mut machine, 6, Input::Uuid(Outcome::Status(404))), []);
        assert_eq!(machine.device(), Some(DEVICE));
        assert_eq!(handle(&mut machine, 7, Input::Unknown), []);
        assert_eq!(handle(&mut machine, 600_005, Input::Unknown), [Output::AskUuid]);
        let other = DeviceId(Uuid::from_u128(8));
        assert_eq!(handle(&mut machine, 600_006, Input::Uuid(Outcome::Good(other))), [Output::Known(other)]);
    }

    #[test]
    fn without_an_onboarding_key_only_the_uuid_is_asked() {
        let mut machine = Onboard::new(None, false);
        assert_eq!(handle(&mut machine, 0, Input::CertsKnown), [Output::AskUuid]);
        let miss = handle(&mut machine, 0, Input::Uuid(Outcome::CertMiss));
        assert_eq!(miss, [Output::RefreshCerts]);
        assert_eq!(wake(&mut machine, 1_000), [Output::AskUuid]);
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::CertsKnown),
            bad().prop_map(Input::Registered),
            Just(Input::Registered(Outcome::Good(()))),
            bad().prop_map(Input::Uuid),
            Just(Input::Unknown),
        ]
    }

    proptest! {
        /// Whatever happened before, a controller that behaves makes it a known device.
        #[test]
        fn no_state_is_stuck(inputs in prop::collection::vec(input(), 0..40), can_register: bool) {
            let mut machine = Onboard::new(None, can_register);
            let mut now = 0;
            for input in inputs {
                prop_assert!(handle(&mut machine, now, input).len() <= 2);
                now += 777;
                prop_assert!(wake(&mut machine, now).len() <= 1);
            }
            for _ in 0..8 {
                now = machine.deadline().map_or(now, |at| at.0.max(now));
                wake(&mut machine, now);
                for input in [
                    Input::CertsKnown, Input::Registered(Outcome::Good(())), Input::Uuid(Outcome::Good(DEVICE)),
                ] {
                    handle(&mut machine, now, input);
                }
            }
            prop_assert_eq!(machine.device(), Some(DEVICE));
        }
    }
}
