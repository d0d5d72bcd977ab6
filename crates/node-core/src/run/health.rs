// SPDX-License-Identifier: Apache-2.0
//! What the answers to an app's probe say of its health, and when to ask next. Kept by the app's shim.
//!
//! ```text
//!            good answer               `failures` bad ones in a row
//! Unknown ────────────────▶ Good ───────────────────────────────────▶ Bad
//!    │ no good one in `grace_s`      ▲             good answer         │ ▲
//!    └───────────────────────────────┼─────────────────────────────────┼─┘
//!                                    └─────────────────────────────────┘
//! ```

use alloc::string::String;

use model::desired::Probe;
use model::observed::Health;
use model::time::MonoMs;

/// Until the first good answer it is asked this often, so that an app that is ready is soon known to be.
const EAGER_MS: u64 = 1_000;

/// The health of one start of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    probe: Probe,
    grace_until: MonoMs,
    bad_in_a_row: u32,
    health: Health,
    ask_at: MonoMs,
}

impl Watch {
    pub fn new(probe: Probe, started: MonoMs) -> Watch {
        let grace_until = started.plus_s(u64::from(probe.grace_s));
        Watch { probe, grace_until, bad_in_a_row: 0, health: Health::Unknown, ask_at: started }
    }

    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// When the next question is due.
    pub fn ask_at(&self) -> MonoMs {
        self.ask_at
    }

    /// Takes the answer to a question; true when the health is another now.
    pub fn answered(&mut self, now: MonoMs, answer: Result<(), String>) -> bool {
        let every_ms = u64::from(self.probe.every_s) * 1000;
        let is_new = self.health == Health::Unknown;
        self.ask_at = now.plus_ms(if is_new && answer.is_err() { every_ms.min(EAGER_MS) } else { every_ms });
        let next = match answer {
            Ok(()) => {
                self.bad_in_a_row = 0;
                Health::Good
            }
            Err(why) => {
                self.bad_in_a_row = self.bad_in_a_row.saturating_add(1);
                let is_over = match self.health {
                    Health::Unknown => now >= self.grace_until,
                    Health::Good => self.bad_in_a_row >= self.probe.failures,
                    // Its first reason stands: it is told once.
                    Health::Bad(_) => false,
                };
                if !is_over {
                    return false;
                }
                Health::Bad(why)
            }
        };
        let changes = next != self.health;
        self.health = next;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::desired::{ProbeAction, ProbeKind};

    fn watch() -> Watch {
        let probe = Probe {
            kind: ProbeKind::Tcp,
            port: 80,
            every_s: 10,
            timeout_s: 2,
            failures: 2,
            grace_s: 5,
            action: ProbeAction::Restart,
        };
        Watch::new(probe, MonoMs(1_000))
    }

    fn bad() -> Result<(), String> {
        Err("refused".into())
    }

    #[test]
    fn an_app_has_its_grace_and_then_as_many_failures_as_ordered() {
        let mut watch = watch();
        assert_eq!((watch.ask_at(), watch.health()), (MonoMs(1_000), &Health::Unknown));
        assert!(!watch.answered(MonoMs(1_000), bad()));
        assert_eq!(watch.ask_at(), MonoMs(2_000));
        assert!(watch.answered(MonoMs(2_000), Ok(())));
        assert_eq!((watch.ask_at(), watch.health()), (MonoMs(12_000), &Health::Good));
        assert!(!watch.answered(MonoMs(12_000), bad()));
        assert!(!watch.answered(MonoMs(22_000), Ok(())));
        assert!(!watch.answered(MonoMs(32_000), bad()));
        assert!(watch.answered(MonoMs(42_000), bad()));
        assert_eq!(watch.health(), &Health::Bad("refused".into()));
        assert!(!watch.answered(MonoMs(52_000), Err("another".into())));
        assert!(watch.answered(MonoMs(62_000), Ok(())));
    }

    #[test]
    fn an_app_that_never_answers_is_bad_after_its_grace() {
        let mut watch = watch();
        for ms in [1_000, 3_000, 5_999] {
            assert!(!watch.answered(MonoMs(ms), bad()), "{ms}");
        }
        assert!(watch.answered(MonoMs(6_000), bad()));
    }
}
