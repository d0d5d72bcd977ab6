// SPDX-License-Identifier: Apache-2.0
//! When which report is made: info on change and, for the device, every so often; metrics by their timer.
//!
//! It decides moments only. What is in a report is read at that moment from the newest state, so a change that
//! follows another within the gap travels in the same report. Reports go to the queue of [`crate::upload`].
//! Before the device is known nothing is due; what changed meanwhile is due at once then.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use model::id::{AppId, ContentTreeId, NetworkInstanceId, VolumeKey};
use model::time::{MonoMs, Now};
use reconcile::{Chance, Deadlines, Machine, Outbox, earliest};

/// Between two reports of one object: progress of a download changes many times a second.
const INFO_GAP_MS: u64 = 300;
/// The device's report is the largest, and many things change it.
const DEVICE_GAP_MS: u64 = 3_000;
/// The first metrics come soon after the start, when there is something to report.
const FIRST_METRICS_MS: u64 = 3_000;
/// Objects reported of: as many as a topic has keys.
const MAX_SUBJECTS: usize = 4 * 4096;
const DEFAULT_DEVICE_INTERVAL_S: u32 = 600;
const DEFAULT_METRIC_INTERVAL_S: u32 = 60;

/// What an info report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Device,
    App(AppId),
    NetworkInstance(NetworkInstanceId),
    Volume(VolumeKey),
    ContentTree(ContentTreeId),
    /// All blobs of the store, in one report.
    Blobs,
}

impl Subject {
    fn gap_ms(self) -> u64 {
        if self == Subject::Device { DEVICE_GAP_MS } else { INFO_GAP_MS }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The device has its UUID.
    Start,
    /// Something of it changed, or it is new.
    Changed(Subject),
    /// The device changed because a config was applied: who sent that waits for the echo, and not for the long gap.
    Applied,
    Gone(Subject),
    /// The controller lost what it knew (`controller_epoch` changed).
    ResendAll,
    /// `timer.deviceinfo.interval` and `timer.metric.interval`.
    Intervals {
        device_s: u32,
        metric_s: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Info(Subject),
    Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Device,
    Metrics,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Reports {
    is_started: bool,
    subjects: BTreeSet<Subject>,
    /// When it was reported last.
    reported: BTreeMap<Subject, MonoMs>,
    due: Deadlines<Subject>,
    timers: Deadlines<Timer>,
    device_s: u32,
    metric_s: u32,
    chance: Chance,
}

impl Reports {
    pub fn new(chance: Chance) -> Reports {
        Reports {
            is_started: false,
            subjects: BTreeSet::from([Subject::Device]),
            reported: BTreeMap::new(),
            due: Deadlines::new(),
            timers: Deadlines::new(),
            device_s: DEFAULT_DEVICE_INTERVAL_S,
            metric_s: DEFAULT_METRIC_INTERVAL_S,
            chance,
        }
    }

    fn changed(&mut self, now: MonoMs, subject: Subject) {
        if self.subjects.len() >= MAX_SUBJECTS && !self.subjects.contains(&subject) {
            return;
        }
        self.subjects.insert(subject);
        self.set_due(now, subject, subject.gap_ms());
    }

    fn set_due(&mut self, now: MonoMs, subject: Subject, gap_ms: u64) {
        let earliest = self.reported.get(&subject).map_or(now, |last| last.plus_ms(gap_ms));
        self.due.set_earlier(subject, earliest.max(now));
    }

    fn emit_due(&mut self, now: MonoMs, outbox: &mut Outbox<Output>) {
        if !self.is_started {
            return;
        }
        for timer in self.timers.take_due(now) {
            match timer {
                Timer::Device => self.changed(now, Subject::Device),
                Timer::Metrics => {
                    outbox.push(Output::Metrics);
                    self.set_metrics_timer(now);
                }
            }
        }
        let mut due = self.due.take_due(now);
        // What does not fit into one outbox stays due.
        let rest: Vec<Subject> = due.split_off(due.len().min(reconcile::MAX_ORDERS / 2));
        for subject in rest {
            self.due.set(subject, now.plus_ms(1));
        }
        for subject in due {
            self.reported.insert(subject, now);
            outbox.push(Output::Info(subject));
            if subject == Subject::Device {
                self.set_device_timer(now);
            }
        }
    }

    fn set_device_timer(&mut self, now: MonoMs) {
        let usual_ms = u64::from(self.device_s) * 1_000;
        let wait_ms = self.chance.between(usual_ms * 8 / 10, usual_ms * 12 / 10);
        self.timers.set(Timer::Device, now.plus_ms(wait_ms));
    }

    fn set_metrics_timer(&mut self, now: MonoMs) {
        let usual_ms = u64::from(self.metric_s) * 1_000;
        self.timers.set(Timer::Metrics, now.plus_ms(self.chance.between(usual_ms * 9 / 10, usual_ms).max(1)));
    }
}

impl Machine for Reports {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        let now = now.mono;
        match input {
            Input::Start => {
                if !self.is_started {
                    self.is_started = true;
                    self.changed(now, Subject::Device);
                    self.timers.set(Timer::Metrics, now.plus_ms(FIRST_METRICS_MS));
                }
            }
            Input::Changed(subject) => self.changed(now, subject),
            Input::Applied => self.set_due(now, Subject::Device, INFO_GAP_MS),
            Input::Gone(subject) => {
                self.subjects.remove(&subject);
                self.reported.remove(&subject);
                self.due.clear(&subject);
            }
            Input::ResendAll => {
                self.reported.clear();
                let all: Vec<Subject> = self.subjects.iter().copied().collect();
                all.into_iter().for_each(|subject| self.changed(now, subject));
            }
            Input::Intervals { device_s, metric_s } => {
                if (self.device_s, self.metric_s) != (device_s, metric_s) {
                    (self.device_s, self.metric_s) = (device_s, metric_s);
                    if self.timers.get(&Timer::Device).is_some() {
                        self.set_device_timer(now);
                    }
                    if let Some(at) = self.timers.get(&Timer::Metrics) {
                        self.set_metrics_timer(now);
                        self.timers.set_earlier(Timer::Metrics, at);
                    }
                }
            }
        }
        self.emit_due(now, outbox);
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        self.emit_due(now.mono, outbox);
    }

    fn deadline(&self) -> Option<MonoMs> {
        self.is_started.then(|| earliest([self.due.next(), self.timers.next()])).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::testing::at;
    use alloc::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn app(number: u128) -> Subject {
        Subject::App(AppId(Uuid::from_u128(number)))
    }

    fn handle(machine: &mut Reports, ms: u64, input: Input) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.handle(at(ms), input, &mut outbox);
        outbox.drain().collect()
    }

    fn wake(machine: &mut Reports, ms: u64) -> Vec<Output> {
        let mut outbox = Outbox::new();
        machine.wake(at(ms), &mut outbox);
        outbox.drain().collect()
    }

    #[test]
    fn changes_are_reported_at_once_and_then_at_most_once_per_gap() {
        let mut machine = Reports::new(Chance::new(1));
        assert_eq!(handle(&mut machine, 0, Input::Changed(app(1))), [], "the device is not known yet");
        assert_eq!(
            handle(&mut machine, 5, Input::Start),
            [Output::Info(app(1)), Output::Info(Subject::Device)]
        );
        assert_eq!(handle(&mut machine, 10, Input::Changed(app(1))), []);
        assert_eq!(handle(&mut machine, 20, Input::Changed(app(1))), []);
        assert_eq!(machine.deadline(), Some(MonoMs(305)));
        assert_eq!(wake(&mut machine, 305), [Output::Info(app(1))]);
        assert_eq!(
            handle(&mut machine, 9_000, Input::Changed(app(2))),
            [Output::Metrics, Output::Info(app(2))]
        );
    }

    #[test]
    fn an_applied_config_is_reported_before_the_gap_of_the_device_is_over() {
        let mut machine = Reports::new(Chance::new(1));
        handle(&mut machine, 0, Input::Start);
        assert_eq!(handle(&mut machine, 100, Input::Changed(Subject::Device)), []);
        assert_eq!(handle(&mut machine, 200, Input::Applied), []);
        assert_eq!(machine.deadline(), Some(MonoMs(INFO_GAP_MS)));
        assert_eq!(wake(&mut machine, INFO_GAP_MS), [Output::Info(Subject::Device)]);
        assert_eq!(handle(&mut machine, 1_000, Input::Applied), [Output::Info(Subject::Device)]);
    }

    #[test]
    fn a_new_epoch_reports_everything_that_still_exists() {
        let mut machine = Reports::new(Chance::new(1));
        handle(&mut machine, 0, Input::Start);
        handle(&mut machine, 0, Input::Changed(app(1)));
        handle(&mut machine, 0, Input::Changed(app(2)));
        handle(&mut machine, 0, Input::Gone(app(1)));
        let all = handle(&mut machine, 100, Input::ResendAll);
        assert_eq!(all, [Output::Info(Subject::Device), Output::Info(app(2))]);
    }

    #[test]
    fn device_info_and_metrics_come_by_their_timers() {
        let mut machine = Reports::new(Chance::new(1));
        handle(&mut machine, 0, Input::Intervals { device_s: 600, metric_s: 10 });
        handle(&mut machine, 0, Input::Start);
        let (mut devices, mut metrics, mut now) = (vec![], 0, 0);
        while now < 3_600_000 {
            now = machine.deadline().unwrap().0;
            for order in wake(&mut machine, now) {
                match order {
                    Output::Info(_) => devices.push(now),
                    Output::Metrics => metrics += 1,
                }
            }
        }
        assert!((5..=8).contains(&devices.len()), "{devices:?}");
        assert!(devices.windows(2).all(|w| (480_000..=720_000).contains(&(w[1] - w[0]))), "{devices:?}");
        assert!((360..=401).contains(&metrics), "{metrics}");
    }

    fn input() -> impl Strategy<Value = Input> {
        let subject = prop_oneof![(0_u128..4).prop_map(app), Just(Subject::Device), Just(Subject::Blobs)];
        prop_oneof![
            Just(Input::Start),
            subject.clone().prop_map(Input::Changed),
            subject.prop_map(Input::Gone),
            Just(Input::Applied),
            Just(Input::ResendAll),
            (30_u32..900, 5_u32..900)
                .prop_map(|(device_s, metric_s)| Input::Intervals { device_s, metric_s }),
        ]
    }

    proptest! {
        /// A change is reported within its gap, unless its object goes; deadlines lie ahead.
        #[test]
        fn every_change_is_reported(inputs in prop::collection::vec((input(), 0_u64..900), 0..60)) {
            let mut machine = Reports::new(Chance::new(9));
            let mut now = 0;
            let mut open: BTreeSet<Subject> = BTreeSet::new();
            for (input, step) in inputs {
                now += step;
                match &input {
                    Input::Changed(subject) => { open.insert(*subject); }
                    Input::Gone(subject) => { open.remove(subject); }
                    _ => {}
                }
                let mut out = handle(&mut machine, now, input);
                out.extend(wake(&mut machine, now));
                for order in out {
                    if let Output::Info(subject) = order {
                        open.remove(&subject);
                    }
                }
                prop_assert!(machine.deadline().is_none_or(|at| at.0 > now));
            }
            let mut out = handle(&mut machine, now, Input::Start);
            out.extend(wake(&mut machine, now + DEVICE_GAP_MS));
            for order in out {
                if let Output::Info(subject) = order {
                    open.remove(&subject);
                }
            }
            prop_assert!(open.is_empty(), "{open:?}");
        }
    }
}
