// SPDX-License-Identifier: Apache-2.0
//! Ending the node in order: run first, so that it does not miss its shims; then the shims with their apps; then what
//! they needed; log and bus last. Who does not end in time is killed.

use model::time::MonoMs;
use service::log;

use super::{Init, Name, Process};

/// Milliseconds each phase has; 10 s in all.
const PHASES_MS: [u64; 5] = [1000, 6000, 2000, 500, 500];

/// A node that ends.
#[derive(Debug)]
pub(super) struct Stopping {
    phase: usize,
    until: MonoMs,
}

impl Stopping {
    pub(super) fn deadline(&self) -> MonoMs {
        self.until
    }
}

/// In which phase a process ends.
fn phase_of(name: &Name) -> usize {
    match (name.0.as_str(), name.1.as_str()) {
        ("run", _) => 0,
        ("log", _) => 3,
        ("bus", _) => 4,
        (_, "") => 2,
        _ => 1,
    }
}

impl Init {
    pub(super) fn begin_stopping(&mut self, now: MonoMs) {
        log::info(format_args!("the node is being stopped"));
        // Nothing is started any more.
        self.processes.retain(|_, process| process.running().is_some());
        self.enter_phase(0, now);
        self.go_on_stopping(now);
    }

    pub(super) fn go_on_stopping(&mut self, now: MonoMs) {
        while let Some(stopping) = &self.stopping {
            let phase = stopping.phase;
            let mut left = self.processes.iter().filter(|(name, _)| phase_of(name) == phase);
            if left.next().is_some() {
                if stopping.until > now {
                    return;
                }
                self.kill_phase(phase);
            } else if phase + 1 == PHASES_MS.len() {
                return;
            } else {
                self.enter_phase(phase + 1, now);
            }
        }
    }

    fn enter_phase(&mut self, phase: usize, now: MonoMs) {
        self.stopping = Some(Stopping { phase, until: now.plus_ms(PHASES_MS[phase]) });
        for (name, process) in &mut self.processes {
            if let Some(running) = process.running_mut()
                && phase_of(name) == phase
            {
                running.stop();
            }
        }
    }

    /// Their groups are emptied, which ends every process in them; then they are waited for.
    fn kill_phase(&mut self, phase: usize) {
        let names: Vec<Name> =
            self.processes.keys().filter(|name| phase_of(name) == phase).cloned().collect();
        for name in names {
            log::warn(format_args!("{} {} did not end in time: killed", name.0, name.1));
            self.processes.get(&name).inspect(|process: &&Process| process.kill());
            let group = if name.1.is_empty() { name.0.clone() } else { format!("app-{}", name.1) };
            if let Err(error) = self.cgroups.remove(&group) {
                log::error(format_args!("{error}"));
            }
            self.exited(&name);
            self.processes.remove(&name);
        }
    }
}
