// SPDX-License-Identifier: Apache-2.0
//! Processes that run and do not go on: not ready, stopped, or silent. A service is ended and so started again; its apps
//! notice nothing. A shim that was stopped is told to continue, because its end would be its app's.

use model::time::MonoMs;
use rustix::process::Signal;
use service::log;

use super::Init;
use crate::heartbeat::Finding;

/// A process that is not confined and ready by then is broken.
const READY_S: u64 = 60;

impl Init {
    pub(super) fn look_at_health(&mut self, now: MonoMs) {
        for (name, process) in &mut self.processes {
            let Some(running) = process.running_mut() else { continue };
            let title = if name.1.is_empty() { name.0.clone() } else { format!("shim of app {}", name.1) };
            if !running.is_ready() && running.started.plus_s(READY_S) <= now {
                log::error(format_args!("{title} is not ready after {READY_S} s: ended"));
                process.kill();
                continue;
            }
            match running.look(now) {
                Finding::Nothing | Finding::Ask => {}
                // Its start has a limit of its own, above.
                Finding::Silent if !running.is_ready() => {}
                Finding::Stopped if name.1.is_empty() => {
                    log::error(format_args!("{title} is stopped by a signal and does not answer: ended"));
                    process.kill();
                }
                Finding::Stopped => {
                    log::warn(format_args!("{title} was stopped by a signal: told to continue"));
                    process.signal(Signal::CONT);
                }
                Finding::Silent => {
                    log::error(format_args!("{title} does not answer: ended"));
                    process.kill();
                }
            }
        }
    }
}
