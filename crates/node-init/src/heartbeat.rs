// SPDX-License-Identifier: Apache-2.0
//! Whether a process goes on: init asks its main loop now and then and waits for the answer. Pure.
//!
//! ```text
//! idle ── after ASK_MS ──▶ asked ── answer ──▶ idle
//!                            └─ no answer: stopped (after STOPPED_MS), else silent (after the limit of its kind)
//! ```
//!
//! A process that waits for a disk is neither: it cannot be ended either, and goes on when the disk does. Time in which
//! init itself did not run (the box slept, a virtual machine was paused) counts for nobody.

use model::time::MonoMs;

/// Between an answer and the next question.
const ASK_MS: u64 = 3_000;
/// Without an answer after so long, a process is looked at: a stopped one does not come back by itself.
const STOPPED_MS: u64 = 1_000;
/// A service answers between two pieces of work. None waits so long: slow disks sync in seconds, calls answer pings.
pub const SERVICE_SILENT_MS: u64 = 30_000;
/// A shim that starts its app mounts, clones and waits without a look at its channel; its own limits are shorter, and
/// its end is the app's end.
pub const SHIM_SILENT_MS: u64 = 180_000;
/// init looks more often than this; a longer gap means that it did not run.
const AWAY_MS: u64 = 3 * ASK_MS;

/// What the kernel says of a process that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// By a signal or a debugger.
    Stopped,
    /// In the kernel, where no signal reaches it.
    WaitsForDisk,
    Other,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Nothing,
    /// Send a question.
    Ask,
    Stopped,
    /// It did not answer in time.
    Silent,
}

/// The questions to one process.
#[derive(Debug)]
pub struct Heartbeat {
    silent_ms: u64,
    asked: Option<MonoMs>,
    /// The next look.
    next: MonoMs,
}

impl Heartbeat {
    /// Asks at once.
    pub fn new(now: MonoMs, silent_ms: u64) -> Heartbeat {
        Heartbeat { silent_ms, asked: None, next: now }
    }

    pub fn deadline(&self) -> MonoMs {
        self.next
    }

    /// Any word of the main loop is an answer.
    pub fn heard(&mut self, now: MonoMs) {
        self.asked = None;
        self.next = now.plus_ms(ASK_MS);
    }

    /// `state` is asked for only when an answer is overdue.
    pub fn look(&mut self, now: MonoMs, state: impl FnOnce() -> State) -> Finding {
        if now < self.next {
            return Finding::Nothing;
        }
        let away_ms = now.since_ms(self.next);
        let Some(asked) = self.asked else {
            self.asked = Some(now);
            self.next = now.plus_ms(STOPPED_MS);
            return Finding::Ask;
        };
        self.next = now.plus_ms(STOPPED_MS);
        if away_ms > AWAY_MS {
            self.asked = Some(now);
            return Finding::Nothing;
        }
        match state() {
            State::Stopped => Finding::Stopped,
            State::WaitsForDisk => Finding::Nothing,
            State::Other if now.since_ms(asked) >= self.silent_ms => Finding::Silent,
            State::Other => Finding::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at every deadline from 0 on while the process is in `state`; what was found at which second.
    fn story(beat: &mut Heartbeat, until_ms: u64, state: State) -> Vec<(u64, Finding)> {
        let mut story = Vec::new();
        while beat.deadline().0 <= until_ms {
            let now = beat.deadline();
            let finding = beat.look(now, || state);
            if finding != Finding::Nothing {
                story.push((now.0 / 1000, finding));
            }
            if matches!(finding, Finding::Stopped | Finding::Silent) {
                break;
            }
        }
        story
    }

    #[test]
    fn who_answers_is_asked_again_and_never_looked_at() {
        let mut beat = Heartbeat::new(MonoMs(0), SERVICE_SILENT_MS);
        for second in [0, 3, 6] {
            let now = MonoMs(second * 1000);
            assert_eq!(beat.look(now, || panic!("looked at")), Finding::Ask);
            assert_eq!(beat.look(now.plus_ms(500), || panic!("looked at")), Finding::Nothing);
            beat.heard(now);
        }
    }

    #[test]
    fn a_stopped_process_is_found_at_once_and_a_silent_one_at_its_limit() {
        let story = |state| story(&mut Heartbeat::new(MonoMs(0), SERVICE_SILENT_MS), 200_000, state);
        assert_eq!(story(State::Stopped), [(0, Finding::Ask), (1, Finding::Stopped)]);
        assert_eq!(story(State::Other), [(0, Finding::Ask), (30, Finding::Silent)]);
        assert_eq!(story(State::WaitsForDisk), [(0, Finding::Ask)]);
    }

    #[test]
    fn time_in_which_init_did_not_run_does_not_count() {
        let mut beat = Heartbeat::new(MonoMs(0), SERVICE_SILENT_MS);
        beat.look(MonoMs(0), || State::Other);
        let woken = MonoMs(3_600_000);
        assert_eq!(beat.look(woken, || State::Other), Finding::Nothing);
        assert_eq!(beat.look(woken.plus_ms(SERVICE_SILENT_MS - 1), || State::Other), Finding::Nothing);
        beat.heard(woken.plus_ms(SERVICE_SILENT_MS));
        assert_eq!(beat.look(woken.plus_ms(SERVICE_SILENT_MS), || State::Stopped), Finding::Nothing);
    }
}
