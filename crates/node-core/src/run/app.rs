// SPDX-License-Identifier: Apache-2.0
//! One app: its order, its shim, its next start.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;

use model::config::VirtualizationMode;
use model::desired::{AppDesired, ProbeAction};
use model::id::AppId;
use model::observed::{AppObserved, Exit, Health, RunState};
use model::reason::{Fault, Reason, Retry};
use model::time::MonoMs;
use reconcile::{Backoff, Outbox};
use serde::{Deserialize, Serialize};

use super::{Order, Shim, ShimPhase};

/// First wait after an app ended by itself, doubling to the longest.
const FIRST_RETRY_MS: u64 = 1_000;
const LONGEST_RETRY_MS: u64 = 60_000;
/// An app that ran this long was healthy: its next end is a first one.
const HEALTHY_MS: u64 = 60_000;
/// Between the stop signal and SIGKILL.
pub(super) const STOP_TIMEOUT_S: u32 = 10;
/// A shim that is to speak, start or stop and does nothing for so long is broken. Longer than its own limits together.
const SHIM_TIMEOUT_MS: u64 = 150_000;
/// After a stop the shim has its time-out and this.
const STOP_SLACK_MS: u64 = 15_000;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct App {
    id: AppId,
    desired: Option<AppDesired>,
    shim: ShimState,
    next: Next,
    backoff: Backoff,
    /// Starts of `instance` so far.
    starts: u32,
    instance: u64,
    /// Its first start since the node came up is not due before; `None` once there was one.
    first_start_at: Option<MonoMs>,
    was_started: bool,
    /// It is being stopped because of this.
    unhealthy: Option<Fault>,
    fault: Option<Fault>,
    published: Option<AppObserved>,
}

#[derive(Debug, Serialize, Deserialize)]
enum ShimState {
    None,
    /// It lives, and has to say what it does.
    Awaited {
        until: MonoMs,
    },
    Busy {
        shim: Shim,
        until: Option<MonoMs>,
    },
    /// To be ended; `asked` once that was ordered.
    Releasing {
        asked: bool,
        at: MonoMs,
    },
}

/// The next start.
#[derive(Debug, Serialize, Deserialize)]
enum Next {
    Now,
    /// After an end or a failure.
    At {
        retry_at: MonoMs,
        exit: Option<Exit>,
    },
    /// Only another instance is tried.
    Never,
}

impl App {
    pub(super) fn new(id: AppId) -> App {
        App {
            id,
            desired: None,
            shim: ShimState::None,
            next: Next::Now,
            backoff: Backoff::new(FIRST_RETRY_MS, LONGEST_RETRY_MS),
            starts: 0,
            instance: 0,
            first_start_at: None,
            was_started: false,
            unhealthy: None,
            fault: None,
            published: None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(&self.shim, ShimState::Busy { shim, .. } if matches!(shim.phase, ShimPhase::Running { .. }))
    }

    /// What it does is known.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.shim, ShimState::Awaited { .. })
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.desired.is_none() && matches!(self.shim, ShimState::None) && self.published.is_none()
    }

    pub(super) fn deadline(&self) -> Option<MonoMs> {
        match (&self.shim, &self.next) {
            (ShimState::None, Next::At { retry_at, .. }) if self.desired.is_some() => Some(*retry_at),
            (ShimState::None, Next::Now) if self.desired.is_some() => self.first_start_at,
            (ShimState::None, _) => None,
            (ShimState::Awaited { until }, _) => Some(*until),
            (ShimState::Busy { until, .. }, _) => *until,
            (ShimState::Releasing { asked, at }, _) => (!asked).then_some(*at),
        }
    }

    pub(super) fn shim_lives(&mut self, now: MonoMs) {
        if matches!(self.shim, ShimState::None) {
            self.shim = ShimState::Awaited { until: now.plus_ms(SHIM_TIMEOUT_MS) };
        }
    }

    pub(super) fn desire(&mut self, desired: Option<AppDesired>) {
        self.desired = desired;
    }

    pub(super) fn said(&mut self, now: MonoMs, shim: Shim) {
        if matches!(self.shim, ShimState::Releasing { .. }) {
            return;
        }
        if shim.instance != 0 {
            if self.instance != shim.instance {
                self.begin_instance(shim.instance);
            }
            self.starts = self.starts.max(shim.start);
            self.was_started = true;
        }
        let was_running_since = match &self.shim {
            ShimState::Busy { shim: Shim { phase: ShimPhase::Running { since, .. }, .. }, .. } => {
                Some(*since)
            }
            _ => None,
        };
        match &shim.phase {
            // Stopped for another instance, or for good: nothing failed.
            ShimPhase::Ended(_) if self.was_to_end() => {
                self.next = Next::Now;
                self.release(now);
            }
            ShimPhase::Ended(exit) => {
                if was_running_since.is_some_and(|since| now.since_ms(since) >= HEALTHY_MS) {
                    self.backoff.reset();
                }
                let wait_ms = self.backoff.wait_ms();
                self.fault = match self.unhealthy.take() {
                    Some(fault) => Some(fault),
                    None => Some(exit_fault(*exit, self.starts, wait_ms)),
                };
                self.wait_after_failure(now, Some(*exit));
                self.release(now);
            }
            ShimPhase::Failed(fault) => {
                self.fault = Some(fault.clone());
                self.wait_after_failure(now, None);
                if fault.reason.retry() == Retry::AfterChange {
                    self.next = Next::Never;
                }
                self.release(now);
            }
            ShimPhase::Idle | ShimPhase::Starting => {
                let until = Some(now.plus_ms(SHIM_TIMEOUT_MS));
                self.shim = ShimState::Busy { shim, until };
            }
            ShimPhase::Running { .. } => {
                self.fault = None;
                self.next = Next::Now;
                self.shim = ShimState::Busy { shim, until: None };
            }
            ShimPhase::Stopping => {
                let until = match self.shim {
                    ShimState::Busy { until, .. } => until,
                    _ => None,
                };
                let until = until.or(Some(now.plus_ms(SHIM_TIMEOUT_MS)));
                self.shim = ShimState::Busy { shim, until };
            }
        }
    }

    /// The shim died: so did its app. Whatever is left is cleared away before the next start.
    pub(super) fn gone(&mut self, now: MonoMs) {
        match &self.shim {
            ShimState::None | ShimState::Releasing { .. } => {}
            ShimState::Awaited { .. } | ShimState::Busy { .. } => {
                self.fault = Some(Fault::new(Reason::Internal, "the app's shim ended unexpectedly"));
                self.wait_after_failure(now, None);
                self.release(now);
            }
        }
    }

    pub(super) fn spawned(&mut self, now: MonoMs, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.fault = Some(fault);
            self.wait_after_failure(now, None);
            self.release(now);
        }
    }

    pub(super) fn released(&mut self, now: MonoMs, result: Result<(), Fault>) {
        if !matches!(self.shim, ShimState::Releasing { .. }) {
            return;
        }
        self.shim = match result {
            Ok(()) => ShimState::None,
            Err(_) => ShimState::Releasing { asked: false, at: now.plus_ms(FIRST_RETRY_MS) },
        };
    }

    /// `came_up`: when the node did.
    pub(super) fn decide(
        &mut self,
        now: MonoMs,
        came_up: MonoMs,
        are_orders_synced: bool,
        outbox: &mut Outbox<Order>,
    ) {
        let delay_s = self.desired.as_ref().map_or(0, |desired| desired.start_delay_s);
        let first_start_at = came_up.plus_s(u64::from(delay_s));
        self.first_start_at = Some(first_start_at).filter(|at| !self.was_started && *at > now);
        let wanted = self.desired.as_ref().map(|desired| desired.instance);
        if matches!(self.shim, ShimState::None)
            && let Some(instance) = wanted
            && instance != self.instance
        {
            self.begin_instance(instance);
        }
        let may_stop = wanted.is_some() || are_orders_synced;
        match &self.shim {
            ShimState::None => self.start_when_due(now, outbox),
            ShimState::Awaited { until } if *until <= now => self.release(now),
            ShimState::Awaited { .. } => {}
            ShimState::Busy { until, .. } if until.is_some_and(|until| until <= now) => {
                self.fault = Some(Fault::new(Reason::Internal, "the app's shim does not go on"));
                self.wait_after_failure(now, None);
                self.release(now);
            }
            ShimState::Busy { shim, .. } => match shim.phase {
                ShimPhase::Idle => self.start_idle(now, are_orders_synced, outbox),
                ShimPhase::Starting | ShimPhase::Running { .. } => {
                    let is_wanted = wanted == Some(shim.instance) && self.is_possible();
                    if !is_wanted && may_stop {
                        self.stop(now, outbox);
                    } else if let Some(fault) = self.sickness() {
                        self.stop_sick(now, fault, outbox);
                    }
                }
                ShimPhase::Stopping | ShimPhase::Ended(_) | ShimPhase::Failed(_) => {}
            },
            ShimState::Releasing { .. } => {}
        }
        if let ShimState::Releasing { asked, at } = &mut self.shim
            && !*asked
            && *at <= now
        {
            *asked = true;
            outbox.push(Order::Release { app: self.id });
        }
        self.publish(outbox);
    }

    /// Only containers without a hypervisor can be run here.
    fn is_possible(&self) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.mode == VirtualizationMode::NoHyper)
    }

    fn begin_instance(&mut self, instance: u64) {
        self.instance = instance;
        self.starts = 0;
        self.backoff.reset();
        self.next = Next::Now;
        self.unhealthy = None;
        self.fault = None;
    }

    /// What runs in the shim was told to stop, and is not what is ordered now.
    fn was_to_end(&self) -> bool {
        let ShimState::Busy { shim, .. } = &self.shim else { return false };
        let is_ordered = self.desired.as_ref().is_some_and(|desired| desired.instance == shim.instance);
        shim.phase == ShimPhase::Stopping && !is_ordered
    }

    /// Its probe fails, and for that it is to be started again.
    fn sickness(&self) -> Option<Fault> {
        let ShimState::Busy { shim: Shim { health: Some(Health::Bad(why)), .. }, .. } = &self.shim else {
            return None;
        };
        let probe = self.desired.as_ref()?.probe.as_ref()?;
        let message = format!("the app was stopped, its probe failed: {why}");
        (probe.action == ProbeAction::Restart).then(|| Fault::new(Reason::AppUnhealthy, message))
    }

    /// It runs, and gets no more processes.
    fn crowding(&self) -> Option<Fault> {
        let ShimState::Busy { shim, .. } = &self.shim else { return None };
        let message = "the app has as many processes as it may have, and gets no more";
        shim.wants_processes.then(|| Fault::new(Reason::AppProcessLimit, message))
    }

    fn stop_sick(&mut self, now: MonoMs, fault: Fault, outbox: &mut Outbox<Order>) {
        if let ShimState::Busy { shim: Shim { phase: ShimPhase::Running { since, .. }, .. }, .. } = &self.shim
            && now.since_ms(*since) >= 2 * HEALTHY_MS
        {
            self.backoff.reset();
        }
        self.unhealthy = Some(fault);
        self.stop(now, outbox);
    }

    fn wait_after_failure(&mut self, now: MonoMs, exit: Option<Exit>) {
        self.next = Next::At { retry_at: self.backoff.fail(now), exit };
    }

    fn release(&mut self, now: MonoMs) {
        self.shim = ShimState::Releasing { asked: false, at: now };
    }

    fn start_when_due(&mut self, now: MonoMs, outbox: &mut Outbox<Order>) {
        let Some(desired) = &self.desired else { return };
        if desired.mode != VirtualizationMode::NoHyper {
            self.fault = Some(Fault::new(
                Reason::IsolationUnavailable,
                format!(
                    "app {} asks for {:?}; this node runs containers without a hypervisor only",
                    desired.name, desired.mode
                ),
            ));
            return;
        }
        let is_due = match self.next {
            Next::Now => self.first_start_at.is_none(),
            Next::At { retry_at, .. } => retry_at <= now,
            Next::Never => false,
        };
        if is_due {
            let (memory_bytes, vcpus) = (desired.memory_bytes, desired.vcpus);
            outbox.push(Order::Spawn { app: self.id, memory_bytes, vcpus });
            self.shim = ShimState::Awaited { until: now.plus_ms(SHIM_TIMEOUT_MS) };
        }
    }

    fn start_idle(&mut self, now: MonoMs, are_orders_synced: bool, outbox: &mut Outbox<Order>) {
        match &self.desired {
            Some(desired) if self.is_possible() => {
                let spec = Box::new(desired.clone());
                if self.instance != spec.instance {
                    let instance = spec.instance;
                    self.begin_instance(instance);
                }
                self.starts = self.starts.saturating_add(1);
                let phase = ShimPhase::Starting;
                let shim = Shim {
                    instance: spec.instance,
                    start: self.starts,
                    phase,
                    health: None,
                    wants_processes: false,
                };
                self.shim = ShimState::Busy { shim, until: Some(now.plus_ms(SHIM_TIMEOUT_MS)) };
                outbox.push(Order::Start { spec, start: self.starts });
            }
            Some(_) => self.release(now),
            None if are_orders_synced => self.release(now),
            None => {}
        }
    }

    fn stop(&mut self, now: MonoMs, outbox: &mut Outbox<Order>) {
        let ShimState::Busy { shim, until } = &mut self.shim else { return };
        // A shim hears nothing while it starts; said now, it would be lost. Its start is bounded.
        if matches!(shim.phase, ShimPhase::Running { .. }) {
            shim.phase = ShimPhase::Stopping;
            *until = Some(now.plus_s(u64::from(STOP_TIMEOUT_S)).plus_ms(STOP_SLACK_MS));
            outbox.push(Order::Stop { app: self.id, timeout_s: STOP_TIMEOUT_S });
        }
    }

    fn publish(&mut self, outbox: &mut Outbox<Order>) {
        let seen = self.observe();
        if seen == self.published {
            return;
        }
        outbox.push(match &seen {
            Some(seen) => Order::Publish(seen.clone()),
            None => Order::Remove { app: self.id },
        });
        self.published = seen;
    }

    /// `None`: nothing to say.
    fn observe(&self) -> Option<AppObserved> {
        let state = match (&self.shim, &self.next) {
            (ShimState::Busy { shim, .. }, _) => match shim.phase {
                ShimPhase::Running { since, started_at } => RunState::Running { since, started_at },
                ShimPhase::Stopping => RunState::Stopping,
                ShimPhase::Idle if self.desired.is_none() => RunState::Halted,
                _ => RunState::Starting,
            },
            // Said again as it was until the shim has spoken.
            (ShimState::Awaited { .. }, _) if self.desired.is_none() => return self.published.clone(),
            (ShimState::Awaited { .. }, _) => RunState::Starting,
            (ShimState::Releasing { .. }, _) if self.desired.is_none() => RunState::Stopping,
            (ShimState::None, _) if self.desired.is_none() => return None,
            (_, Next::At { retry_at, exit: Some(exit) }) => {
                RunState::Backoff { retry_at: *retry_at, exit: *exit }
            }
            (_, Next::At { .. } | Next::Never) => RunState::Failed,
            (ShimState::None, Next::Now) => match self.first_start_at {
                Some(until) if self.is_possible() => RunState::Delayed { until },
                _ => RunState::Failed,
            },
            (ShimState::Releasing { .. }, Next::Now) => RunState::Stopping,
        };
        let fault = match state {
            RunState::Running { .. } => self.crowding(),
            RunState::Halted | RunState::Delayed { .. } => None,
            RunState::Stopping => self.unhealthy.clone(),
            RunState::Starting | RunState::Backoff { .. } | RunState::Failed => self.fault.clone(),
        };
        let health = match &self.shim {
            ShimState::Busy { shim, .. } if matches!(shim.phase, ShimPhase::Running { .. }) => {
                shim.health.clone()
            }
            _ => None,
        };
        let (app, instance, starts) = (self.id, self.instance, self.starts);
        Some(AppObserved { app, instance, state, starts, health, fault })
    }
}

/// How it ended, how often it was started, and how long it now waits.
fn exit_fault(exit: Exit, starts: u32, wait_ms: u64) -> Fault {
    let (reason, how) = match exit {
        Exit::Code(code) => (Reason::AppExited, format!("the app ended with code {code}")),
        Exit::Signal(signal) => {
            let name = signal_name(signal).map(|name| format!(" ({name})")).unwrap_or_default();
            (Reason::AppExited, format!("the app was ended by signal {signal}{name}"))
        }
        Exit::OutOfMemory => (Reason::AppOutOfMemory, "the app used more memory than its limit".to_string()),
    };
    let next = starts.saturating_add(1);
    Fault::new(reason, format!("{how}; start {next} follows after {} s", wait_ms.div_ceil(1000)))
}

/// Signals that end programs, with their numbers on all machines this runs on.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}
