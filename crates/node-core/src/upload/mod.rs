// SPDX-License-Identifier: Apache-2.0
//! The queue of info messages: newest per key, sent one at a time, kept until the controller has it.
//!
//! ```text
//!  enqueue ─▶ waiting (due) ─ posted ─▶ under way ─ 2xx ─▶ gone
//!                 ▲                        │
//!                 ├─ retriable status: this item waits, doubling to 15 min; others go on
//!                 ├─ no answer: all wait, doubling to 1 min, and at the next sign of life all are due
//!                 └─ (any other 4xx: dropped, as EVE does)
//! ```
//!
//! A message is written to disk when its first try failed, not before: most are delivered in the same second, and
//! after a restart the present state of every object is reported anyway. The disk is for messages whose object may be
//! gone by then. [`logs`] uploads log files beside it.

pub mod logs;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use model::time::{MonoMs, Now};
use reconcile::{Backoff, Machine, Outbox, earliest};

use crate::exchange::Outcome;

/// Messages kept; the least urgent goes first when there are more.
pub const MAX_ITEMS: usize = 4096;
/// Bytes of one message: what a controller need take, without its envelope.
pub const MAX_PAYLOAD_BYTES: usize = 1_000_000;
const FIRST_RETRY_MS: u64 = 2_000;
const LONGEST_RETRY_MS: u64 = 15 * 60 * 1_000;
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 60_000;

/// What is sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    App,
    Hardware,
    Rest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Replaces a waiting message of the same key.
    Enqueue {
        key: String,
        urgency: Urgency,
        payload: Vec<u8>,
    },
    /// A message of an earlier run, read from disk.
    Restore {
        key: String,
        urgency: Urgency,
        payload: Vec<u8>,
    },
    /// No message of this key is wanted any more.
    Forget {
        key: String,
    },
    /// The device is known: messages may be sent.
    Start,
    Posted {
        key: String,
        number: u64,
        outcome: Outcome,
    },
    /// The controller answered something else: it is there.
    Contact,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Post {
        key: String,
        number: u64,
        payload: Vec<u8>,
    },
    /// Write to disk.
    Save {
        key: String,
        urgency: Urgency,
        payload: Vec<u8>,
    },
    /// Remove from disk.
    Erase {
        key: String,
    },
}

#[derive(Clone, Debug)]
struct Item {
    urgency: Urgency,
    payload: Vec<u8>,
    number: u64,
    due: MonoMs,
    backoff: Backoff,
    is_saved: bool,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Queue {
    items: BTreeMap<String, Item>,
    /// Key and number of the message under way.
    under_way: Option<(String, u64)>,
    is_started: bool,
    last_number: u64,
    paused_until: MonoMs,
    pause: Backoff,
}

impl Default for Queue {
    fn default() -> Self {
        Queue {
            items: BTreeMap::new(),
            under_way: None,
            is_started: false,
            last_number: 0,
            paused_until: MonoMs(0),
            pause: Backoff::new(FIRST_PAUSE_MS, LONGEST_PAUSE_MS),
        }
    }
}

/// Whether a message refused with this status is sent again: all but those that say the message itself is wrong. A
/// redirection is the word of something in between.
pub fn is_retriable(status: u16) -> bool {
    !(400..500).contains(&status) || matches!(status, 401 | 403 | 407 | 408 | 429)
}

impl Queue {
    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// A message of this key waits or is under way.
    pub fn contains(&self, key: &str) -> bool {
        self.items.contains_key(key)
    }

    fn put(
        &mut self,
        now: MonoMs,
        key: String,
        urgency: Urgency,
        payload: Vec<u8>,
        is_saved: bool,
        outbox: &mut Outbox<Output>,
    ) {
        self.last_number += 1;
        let number = self.last_number;
        match self.items.get_mut(&key) {
            // Same content: it keeps its backoff, and what is under way stays valid.
            Some(item) if item.payload == payload => {}
            Some(item) => {
                (item.payload, item.number, item.urgency) = (payload, number, urgency);
                item.due = item.due.min(now.plus_ms(item.backoff.wait_ms()));
                if item.is_saved {
                    outbox.push(Output::Save { key, urgency, payload: item.payload.clone() });
                }
            }
            None => {
                self.make_room(outbox);
                let backoff = Backoff::new(FIRST_RETRY_MS, LONGEST_RETRY_MS);
                self.items.insert(key, Item { urgency, payload, number, due: now, backoff, is_saved });
            }
        }
    }

    fn make_room(&mut self, outbox: &mut Outbox<Output>) {
        while self.items.len() >= MAX_ITEMS {
            let worst =
                self.items.iter().max_by_key(|(_, item)| (item.urgency, core::cmp::Reverse(item.number)));
            let Some(key) = worst.map(|(key, _)| key.clone()) else { return };
            self.remove(&key, outbox);
        }
    }

    fn remove(&mut self, key: &str, outbox: &mut Outbox<Output>) {
        if self.items.remove(key).is_some_and(|item| item.is_saved) {
            outbox.push(Output::Erase { key: key.into() });
        }
    }

    fn posted(
        &mut self,
        now: MonoMs,
        key: &str,
        number: u64,
        outcome: &Outcome,
        outbox: &mut Outbox<Output>,
    ) {
        if self.under_way.as_ref().is_none_or(|(k, n)| k != key || *n != number) {
            return;
        }
        self.under_way = None;
        let is_newest = self.items.get(key).is_some_and(|item| item.number == number);
        match outcome {
            Outcome::Good(()) => {
                self.pause.reset();
                if is_newest {
                    self.remove(key, outbox);
                } else if let Some(item) = self.items.get_mut(key) {
                    item.backoff.reset();
                    item.due = now;
                }
            }
            Outcome::Status(status) if !is_retriable(*status) => {
                self.pause.reset();
                if is_newest {
                    self.remove(key, outbox);
                }
            }
            Outcome::Status(_) | Outcome::CertMiss | Outcome::Refused => {
                self.pause.reset();
                self.keep(now, key, outbox);
            }
            Outcome::NoAnswer => {
                self.paused_until = self.pause.fail(now);
                self.save(key, outbox);
            }
        }
    }

    fn keep(&mut self, now: MonoMs, key: &str, outbox: &mut Outbox<Output>) {
        if let Some(item) = self.items.get_mut(key) {
            item.due = item.backoff.fail(now);
        }
        self.save(key, outbox);
    }

    fn save(&mut self, key: &str, outbox: &mut Outbox<Output>) {
        if let Some(item) = self.items.get_mut(key)
            && !item.is_saved
        {
            item.is_saved = true;
            outbox.push(Output::Save {
                key: key.into(),
                urgency: item.urgency,
                payload: item.payload.clone(),
            });
        }
    }

    fn post_next(&mut self, now: MonoMs, outbox: &mut Outbox<Output>) {
        if !self.is_started || self.under_way.is_some() || self.paused_until > now {
            return;
        }
        let due = self.items.iter().filter(|(_, item)| item.due <= now);
        if let Some((key, item)) = due.min_by_key(|(_, item)| (item.urgency, item.number)) {
            self.under_way = Some((key.clone(), item.number));
            outbox.push(Output::Post {
                key: key.clone(),
                number: item.number,
                payload: item.payload.clone(),
            });
        }
    }
}

impl Machine for Queue {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        let now = now.mono;
        match input {
            Input::Enqueue { key, urgency, payload } if payload.len() <= MAX_PAYLOAD_BYTES => {
                self.put(now, key, urgency, payload, false, outbox);
            }
            // A newer message of this run goes before the one on disk.
            Input::Restore { key, urgency, payload } if !self.items.contains_key(&key) => {
                self.put(now, key, urgency, payload, true, outbox);
            }
            Input::Enqueue { .. } | Input::Restore { .. } => {}
            Input::Forget { key } => self.remove(&key, outbox),
            Input::Start => self.is_started = true,
            Input::Posted { key, number, outcome } => self.posted(now, &key, number, &outcome, outbox),
            Input::Contact => {
                self.pause.reset();
                self.paused_until = self.paused_until.min(now);
            }
        }
        self.post_next(now, outbox);
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        self.post_next(now.mono, outbox);
    }

    fn deadline(&self) -> Option<MonoMs> {
        if !self.is_started || self.under_way.is_some() {
            return None;
        }
        let due = earliest(self.items.values().map(|item| Some(item.due)))?;
        Some(due.max(self.paused_until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::{at, bad};
    use alloc::vec;
    use proptest::prelude::*;

    fn handle(machine: &mut Queue, ms: u64, input: Input) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.drain().collect()
    }

    fn wake(machine: &mut Queue, ms: u64) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.drain().collect()
    }

    fn enqueue(key: &str, byte: u8) -> Input {
        let urgency = if key == "app" { Urgency::App } else { Urgency::Rest };
        Input::Enqueue { key: key.into(), urgency, payload: vec![byte] }
    }

    fn post(key: &str, number: u64, byte: u8) -> Output {
        Output::Post { key: key.into(), number, payload: vec![byte] }
    }

    fn posted(key: &str, number: u64, outcome: Outcome) -> Input {
        Input::Posted { key: key.into(), number, outcome }
    }

    fn save(key: &str, byte: u8) -> Output {
        Output::Save { key: key.into(), urgency: Urgency::Rest, payload: vec![byte] }
    }

    fn started() -> Queue {
        let mut queue = Queue::default();
        handle(&mut queue, 0, Input::Start);
        queue
    }

    #[test]
    fn apps_go_first_and_a_newer_message_replaces_the_waiting_one() {
        let mut queue = started();
        assert_eq!(handle(&mut queue, 0, enqueue("x", 1)), [post("x", 1, 1)]);
        assert_eq!(handle(&mut queue, 0, enqueue("y", 2)), []);
        assert_eq!(handle(&mut queue, 0, enqueue("app", 3)), []);
        assert_eq!(handle(&mut queue, 0, enqueue("app", 4)), []);
        assert_eq!(handle(&mut queue, 0, enqueue("x", 5)), []);
        assert_eq!(handle(&mut queue, 1, posted("x", 1, Outcome::Good(()))), [post("app", 4, 4)]);
        assert_eq!(handle(&mut queue, 2, posted("app", 4, Outcome::Good(()))), [post("y", 2, 2)]);
        assert_eq!(handle(&mut queue, 3, posted("y", 2, Outcome::Good(()))), [post("x", 5, 5)]);
        handle(&mut queue, 4, posted("x", 5, Outcome::Good(())));
        assert!(queue.is_empty());
    }

    #[test]
    fn retriable_statuses_keep_the_message_on_disk_and_others_drop_it() {
        for status in [302, 307, 401, 403, 407, 408, 429, 500, 503, 599] {
            let mut queue = started();
            handle(&mut queue, 0, enqueue("x", 1));
            assert_eq!(handle(&mut queue, 0, posted("x", 1, Outcome::Status(status))), [save("x", 1)]);
            assert_eq!(queue.deadline(), Some(MonoMs(2_000)));
            assert_eq!(wake(&mut queue, 2_000), [post("x", 1, 1)]);
            let gone = handle(&mut queue, 2_001, posted("x", 1, Outcome::Good(())));
            assert_eq!(gone, [Output::Erase { key: "x".into() }]);
        }
        for status in [400, 404, 409, 413, 422] {
            let mut queue = started();
            handle(&mut queue, 0, enqueue("x", 1));
            assert_eq!(handle(&mut queue, 0, posted("x", 1, Outcome::Status(status))), []);
            assert!(queue.is_empty(), "{status}");
        }
    }

    #[test]
    fn without_an_answer_all_wait_until_the_controller_shows_up() {
        let mut queue = started();
        handle(&mut queue, 0, enqueue("x", 1));
        handle(&mut queue, 0, enqueue("y", 2));
        assert_eq!(handle(&mut queue, 0, posted("x", 1, Outcome::NoAnswer)), [save("x", 1)]);
        assert_eq!(queue.deadline(), Some(MonoMs(1_000)));
        assert_eq!(handle(&mut queue, 500, Input::Contact), [post("x", 1, 1)]);
    }

    #[test]
    fn the_same_content_again_keeps_its_backoff() {
        let mut queue = started();
        handle(&mut queue, 0, enqueue("x", 1));
        handle(&mut queue, 0, posted("x", 1, Outcome::Status(503)));
        assert_eq!(handle(&mut queue, 1, enqueue("x", 1)), []);
        assert_eq!(queue.deadline(), Some(MonoMs(2_000)));
    }

    #[test]
    fn messages_of_an_earlier_run_are_sent_unless_newer_ones_exist() {
        let mut queue = Queue::default();
        let restore = |byte| Input::Restore { key: "x".into(), urgency: Urgency::Rest, payload: vec![byte] };
        assert_eq!(handle(&mut queue, 0, restore(1)), []);
        assert_eq!(handle(&mut queue, 0, enqueue("x", 2)), [save("x", 2)], "the disk follows");
        assert_eq!(handle(&mut queue, 0, restore(3)), []);
        assert_eq!(handle(&mut queue, 0, Input::Start), [post("x", 2, 2)]);
    }

    fn input() -> impl Strategy<Value = Input> {
        let key = prop::sample::select(vec!["app", "x", "y", "z"]);
        prop_oneof![
            (key.clone(), 0_u8..3).prop_map(|(key, byte)| enqueue(key, byte)),
            key.clone().prop_map(|key| Input::Forget { key: key.into() }),
            (key, 0_u64..9, bad()).prop_map(|(key, number, outcome)| posted(key, number, outcome)),
            Just(Input::Start),
            Just(Input::Contact),
        ]
    }

    proptest! {
        /// One message at a time; the queue and the disk end empty once the controller behaves, and the last
        /// message of each key that was delivered is the newest one.
        #[test]
        fn nothing_is_lost_and_nothing_is_left(
            inputs in prop::collection::vec((input(), 0_u64..3_000), 0..80),
        ) {
            let mut queue = Queue::default();
            let mut world = World::default();
            let mut now = 0;
            for (input, step) in inputs.into_iter().chain([(Input::Start, 0)]) {
                now += step;
                let input = world.before(input);
                for order in handle(&mut queue, now, input).into_iter().chain(wake(&mut queue, now)) {
                    world.perform(order)?;
                }
                prop_assert!(queue.deadline().is_none_or(|at| at.0 > now));
            }
            for _ in 0..40 {
                let orders = match world.under_way.take() {
                    Some((key, number, payload)) => {
                        world.owed.remove(&(key.clone(), payload));
                        handle(&mut queue, now, posted(&key, number, Outcome::Good(())))
                    }
                    None => {
                        now = queue.deadline().map_or(now, |at| at.0.max(now));
                        wake(&mut queue, now)
                    }
                };
                for order in orders {
                    world.perform(order)?;
                }
            }
            prop_assert!(queue.is_empty());
            prop_assert!(world.disk.is_empty(), "{:?}", world.disk);
            prop_assert!(world.owed.is_empty(), "{:?}", world.owed);
        }
    }

    /// What surrounds the queue: one request under way, a disk, and the messages it still owes.
    #[derive(Default)]
    struct World {
        under_way: Option<(String, u64, Vec<u8>)>,
        disk: BTreeMap<String, Vec<u8>>,
        owed: alloc::collections::BTreeSet<(String, Vec<u8>)>,
    }

    impl World {
        /// Answers only what was really posted, and notes what is owed from now on.
        fn before(&mut self, input: Input) -> Input {
            match input {
                Input::Posted { outcome, .. } => {
                    let Some((key, number, payload)) = self.under_way.take() else { return Input::Contact };
                    if matches!(outcome, Outcome::Status(status) if !is_retriable(status)) {
                        self.owed.remove(&(key.clone(), payload));
                    }
                    Input::Posted { key, number, outcome }
                }
                Input::Enqueue { key, urgency, payload } => {
                    self.owed.retain(|(k, _)| *k != key);
                    self.owed.insert((key.clone(), payload.clone()));
                    Input::Enqueue { key, urgency, payload }
                }
                Input::Forget { key } => {
                    self.owed.retain(|(k, _)| *k != key);
                    Input::Forget { key }
                }
                other => other,
            }
        }

        fn perform(&mut self, order: Output) -> Result<(), TestCaseError> {
            match order {
                Output::Post { key, number, payload } => {
                    prop_assert!(self.under_way.is_none());
                    self.under_way = Some((key, number, payload));
                }
                Output::Save { key, payload, .. } => drop(self.disk.insert(key, payload)),
                Output::Erase { key } => drop(self.disk.remove(&key)),
            }
            Ok(())
        }
    }
}
