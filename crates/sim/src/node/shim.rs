// SPDX-License-Identifier: Apache-2.0
//! One app's shim: takes its steps in its own time, outlives the services, dies with the box.
//!
//! ```text
//! born ─▶ Idle ─ Start ─▶ Starting ─ interfaces, user data ─▶ Running ─ Stop ─▶ Stopping ─▶ Ended
//!                            └──▶ Failed                          └ its own end ──▶ Ended
//! ```

use model::config::UserData;
use model::desired::AppDesired;
use model::id::AppId;
use model::observed::Exit;
use model::reason::{Fault, Reason};
use node_core::run::{self, ShimPhase};
use reconcile::Chance;

use super::{Input, Machine, Name, Out};
use crate::Fact;

/// Time of each step.
const STEP_MS: (u64, u64) = (5, 60);
/// A shim waits so long for the order of its interfaces, as net has it.
const ATTACH_PATIENCE_MS: u64 = 10_000;

#[derive(Clone, Debug)]
pub struct Shim {
    pub instance: u64,
    pub start: u32,
    pub phase: ShimPhase,
    pub spec: Option<AppDesired>,
    /// The step that is due; an older one does not count.
    token: u64,
    has_spoken: bool,
    attach_until_ms: u64,
    stop_ms: u64,
}

impl Shim {
    pub fn is_running(&self) -> bool {
        matches!(self.phase, ShimPhase::Running { .. } | ShimPhase::Stopping)
    }

    pub fn words(&self) -> run::Shim {
        run::Shim {
            instance: self.instance,
            start: self.start,
            phase: self.phase.clone(),
            health: None,
            wants_processes: false,
        }
    }
}

fn step(machine: &mut Machine, app: AppId, wait_ms: u64, out: &mut Vec<Out>) {
    let token = machine.token();
    if let Some(shim) = machine.shims.get_mut(&app) {
        shim.token = token;
        out.push(Out::Shim(wait_ms, app, token));
    }
}

/// init makes one.
pub fn spawn(machine: &mut Machine, app: AppId, chance: &mut Chance, out: &mut Vec<Out>) {
    let shim = Shim {
        instance: 0,
        start: 0,
        phase: ShimPhase::Idle,
        spec: None,
        token: 0,
        has_spoken: false,
        attach_until_ms: 0,
        stop_ms: 0,
    };
    machine.shims.insert(app, shim);
    step(machine, app, chance.between(STEP_MS.0, STEP_MS.1), out);
}

/// run tells it to start. A shim starts once.
pub fn start(
    machine: &mut Machine,
    t: u64,
    spec: AppDesired,
    start: u32,
    chance: &mut Chance,
    out: &mut Vec<Out>,
) {
    let app = spec.app;
    let Some(shim) = machine.shims.get_mut(&app) else { return };
    if shim.phase != ShimPhase::Idle {
        return;
    }
    (shim.instance, shim.start, shim.phase) = (spec.instance, start, ShimPhase::Starting);
    shim.attach_until_ms = t + ATTACH_PATIENCE_MS;
    shim.spec = Some(spec);
    say(machine, app, out);
    step(machine, app, chance.between(STEP_MS.0, STEP_MS.1), out);
}

/// run tells it to stop.
pub fn stop(machine: &mut Machine, app: AppId, timeout_s: u32, chance: &mut Chance, out: &mut Vec<Out>) {
    let Some(shim) = machine.shims.get_mut(&app) else { return };
    if matches!(shim.phase, ShimPhase::Running { .. }) {
        shim.phase = ShimPhase::Stopping;
        shim.stop_ms = chance.between(10, u64::from(timeout_s) * 1_000);
        let wait_ms = shim.stop_ms;
        say(machine, app, out);
        step(machine, app, wait_ms, out);
    }
}

/// The app ends by itself, or its shim with it.
pub fn end(machine: &mut Machine, app: AppId, exit: Option<Exit>, out: &mut Vec<Out>) -> bool {
    let Some(shim) = machine.shims.get_mut(&app) else { return false };
    if !shim.is_running() {
        return false;
    }
    match exit {
        Some(exit) => {
            shim.phase = ShimPhase::Ended(exit);
            shim.token = 0;
            say(machine, app, out);
        }
        None => {
            machine.shims.remove(&app);
            out.push(Out::Later(0, Name::Run, Input::Shim(app, None)));
        }
    }
    true
}

fn say(machine: &Machine, app: AppId, out: &mut Vec<Out>) {
    if let Some(shim) = machine.shims.get(&app) {
        out.push(Out::Later(0, Name::Run, Input::Shim(app, Some(shim.words()))));
    }
}

/// Takes the step that is due.
pub fn take_step(
    machine: &mut Machine,
    t: u64,
    now: model::time::Now,
    app: AppId,
    token: u64,
    chance: &mut Chance,
    out: &mut Vec<Out>,
) {
    let Some(shim) = machine.shims.get(&app).filter(|shim| shim.token == token) else { return };
    let next = match &shim.phase {
        ShimPhase::Idle => {
            if let Some(shim) = machine.shims.get_mut(&app) {
                shim.has_spoken = true;
            }
            return say(machine, app, out);
        }
        ShimPhase::Starting => match try_start(machine, t, app, shim) {
            Some(Ok(())) => {
                if let Some(spec) = shim.spec.clone() {
                    out.push(Out::Fact(Fact::AppStarted { spec: Box::new(spec) }));
                }
                ShimPhase::Running { since: now.mono, started_at: now.wall.time() }
            }
            Some(Err(fault)) => ShimPhase::Failed(fault),
            None => return step(machine, app, chance.between(100, 400), out),
        },
        ShimPhase::Stopping => {
            out.push(Out::Fact(Fact::AppStopped { app, instance: shim.instance }));
            ShimPhase::Ended(Exit::Signal(15))
        }
        ShimPhase::Running { .. } | ShimPhase::Ended(_) | ShimPhase::Failed(_) => return,
    };
    if let Some(shim) = machine.shims.get_mut(&app) {
        shim.phase = next;
    }
    say(machine, app, out);
}

/// `None`: not yet.
fn try_start(machine: &Machine, t: u64, app: AppId, shim: &Shim) -> Option<Result<(), Fault>> {
    let spec = shim.spec.as_ref()?;
    let unavailable = |what: &str| Some(Err(Fault::new(Reason::ServiceUnavailable, what)));
    match machine.attachable.get(&app) {
        _ if spec.vif_count == 0 => {}
        Some(Some(fault)) if machine.is_net_alive => return Some(Err(fault.clone())),
        Some(None) if machine.is_net_alive => {}
        _ if t < shim.attach_until_ms => return None,
        _ => return unavailable("interfaces are not ordered"),
    }
    if machine.is_vault_down && matches!(spec.user_data, Some(UserData::Sealed(_))) {
        return unavailable("vault");
    }
    Some(Ok(()))
}
