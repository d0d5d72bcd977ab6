// SPDX-License-Identifier: Apache-2.0
//! The planner: the real one, on the simulated disk.

use std::rc::Rc;

use ipc::topics;
use model::status::SwState;
use model::time::MonoMs;
use node_base::planner::{Planner, Round};

use super::{Cx, Input, Name};
use crate::disk::{Disk, View};

/// Wait after a failed write of the state file, as the process has it.
const RETRY_MS: u64 = 1_000;

/// Planted faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Says of every app that it runs.
    SaysAllRun,
    /// Numbers the instances of an app anew after a restart.
    ForgetsInstances,
    /// Never says anything again.
    FallsSilent,
}

#[derive(Debug)]
pub struct Process {
    planner: Planner,
    retry_at: Option<MonoMs>,
    plant: Option<Plant>,
}

impl Process {
    pub fn load(disk: Rc<Disk>, plant: Option<Plant>) -> Process {
        let files = || Box::new(View::new(disk.clone(), Name::Planner));
        let (planner, _) = Planner::load(files(), files());
        Process { planner, retry_at: None, plant }
    }

    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    pub fn deadline(&self) -> Option<MonoMs> {
        self.retry_at
    }

    pub fn handle(&mut self, cx: &mut Cx<'_>, input: &Input) {
        if let Input::Start = input {
            return Planner::subscribe(cx.topics);
        }
        if self.plant == Some(Plant::FallsSilent) {
            return;
        }
        self.retry_at = None;
        match self.planner.round(cx.topics, cx.now.mono) {
            Round::Awaiting(_) | Round::Planned => {}
            Round::NotSaved(error) => {
                cx.say(format!("state not written: {error}"));
                self.retry_at = Some(cx.now.mono.plus_ms(RETRY_MS));
            }
        }
        match self.plant {
            Some(Plant::SaysAllRun) => {
                // What it published is known to its own client only by key: say it over the orders.
                for (id, app) in self.planner.state().1.apps.clone() {
                    let mut status = model::status::AppStatus::gone(id);
                    (status.name, status.state) = (app.name, SwState::Running);
                    cx.put::<topics::AppStatus>(&id.to_string(), &status);
                }
            }
            Some(Plant::ForgetsInstances) => {
                for (id, mut app) in self.planner.state().1.apps.clone() {
                    app.instance = u64::from(cx.machine.restart_counter == 1) * 1_000;
                    cx.put::<topics::AppDesired>(&id.to_string(), &app);
                }
            }
            Some(Plant::FallsSilent) | None => {}
        }
    }
}
