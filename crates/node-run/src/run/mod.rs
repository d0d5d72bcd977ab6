// SPDX-License-Identifier: Apache-2.0
//! Process run: the shell around `node_core::run`. Hears the planner's orders and the shims, asks init for new shims, and
//! publishes what became of the apps. Holds no capability, touches no app.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipc::calls::{AppLimits, Init, InitReply, InitRequest};
use ipc::frame::Channel;
use ipc::shim::{self, ShimEvent, ShimRequest, StartApp};
use ipc::topics;
use model::id::AppId;
use model::reason::{Fault, Reason};
use model::time::MonoMs;
use node_core::run::{Apps, Input, Order, Shim, ShimPhase};
use reconcile::{Machine, Outbox, earliest};
use service::{ChannelEvent, Event, Service};

/// init spawns in milliseconds, but may be busy clearing away a large app.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two questions to an init that does not answer.
const INIT_RETRY_MS: u64 = 1_000;
/// Processes and threads of one app: enough for any server, and no fork bomb.
const APP_PIDS_MAX: u32 = 8_192;
/// What a small app may have nevertheless.
const APP_PIDS_MIN: u32 = 256;
/// Memory that one more may be had for. The kernel alone takes a quarter of it for each, so that an app that forks without
/// end is refused more processes before it is killed for memory.
const BYTES_PER_PID: u64 = 256 << 10;
/// Between two looks at the apps' use of the machine, unless the setting `metrics_s` says otherwise.
const METRICS_S: u64 = 5;

struct Run {
    service: Service,
    apps: Apps,
    outbox: Outbox<Order>,
    /// A channel per live shim. None is kept for a shim that was released, so that its late words are not heard.
    shims: BTreeMap<AppId, Arc<Channel>>,
    /// When init is asked what lives; `None` once it said so.
    ask_live_at: Option<MonoMs>,
    metrics_at: MonoMs,
    metrics_s: u64,
}

/// The main of run.
pub fn run(mut service: Service) {
    service.subscribe::<topics::AppDesired>();
    let now = service.now().mono;
    let metrics_s = service.settings().get("metrics_s").and_then(|text| text.parse().ok());
    let metrics_s = metrics_s.filter(|seconds| *seconds > 0).unwrap_or(METRICS_S);
    let mut run = Run {
        service,
        apps: Apps::default(),
        outbox: Outbox::new(),
        shims: BTreeMap::new(),
        ask_live_at: Some(now),
        metrics_at: now.plus_s(metrics_s),
        metrics_s,
    };
    loop {
        run.keyframe();
        run.do_due();
        let deadline = earliest([run.apps.deadline(), run.ask_live_at, Some(run.metrics_at)]);
        match run.service.next(deadline) {
            Event::Topics(_) => run.read_orders(),
            Event::Channel(event) => run.hear(event),
            Event::Deadline => {}
            // Apps are stopped by init through their shims, or outlive this process.
            Event::Stop => return,
            Event::Call(_) | Event::Worker(()) | Event::Readable(_) => {}
        }
    }
}

impl Run {
    fn do_due(&mut self) {
        let now = self.service.now();
        if self.ask_live_at.is_some_and(|at| at <= now.mono) {
            self.ask_live();
        }
        if self.metrics_at <= now.mono {
            self.metrics_at = now.mono.plus_s(self.metrics_s);
            let running: Vec<AppId> = self.apps.running().collect();
            for app in running {
                self.tell(app, &ShimRequest::Metrics);
            }
        }
        if self.apps.deadline().is_some_and(|at| at <= now.mono) {
            self.decide(None);
            self.perform();
        }
    }

    fn ask_live(&mut self) {
        let failure = match self.service.caller::<Init>().call(&InitRequest::Shims, &[], INIT_TIMEOUT) {
            Ok((Ok(InitReply::Shims(shims)), _)) => {
                self.ask_live_at = None;
                let live: BTreeSet<AppId> = shims.into_iter().map(|shim| shim.app).collect();
                return self.input(Input::Live(live));
            }
            Ok((Ok(InitReply::Done | InitReply::Slot), _)) => "another answer".to_owned(),
            Ok((Err(fault), _)) => fault.to_string(),
            Err(error) => error.to_string(),
        };
        service::log::warn(format_args!("init does not say which shims live: {failure}"));
        self.ask_live_at = Some(self.service.now().mono.plus_ms(INIT_RETRY_MS));
    }

    fn read_orders(&mut self) {
        let all = self.service.all::<topics::AppDesired>();
        let is_synced = self.service.is_synced::<topics::AppDesired>();
        let apps = all.into_values().map(|desired| (desired.app, desired)).collect();
        self.input(Input::Desired { apps, is_synced });
    }

    fn hear(&mut self, event: ChannelEvent) {
        let (ChannelEvent::Opened { kind, key, .. }
        | ChannelEvent::Readable { kind, key }
        | ChannelEvent::Writable { kind, key }
        | ChannelEvent::Closed { kind, key }) = &event;
        if kind != "shim" {
            return;
        }
        let Ok(app) = key.parse::<AppId>() else { return };
        match event {
            ChannelEvent::Opened { channel, .. } => {
                self.shims.insert(app, channel);
                self.take_words(app);
            }
            ChannelEvent::Readable { .. } => self.take_words(app),
            ChannelEvent::Writable { .. } => {}
            ChannelEvent::Closed { .. } => {
                // What it said last counts before its end.
                self.take_words(app);
                if self.shims.remove(&app).is_some() {
                    self.input(Input::Gone { app });
                }
            }
        }
    }

    fn take_words(&mut self, app: AppId) {
        while let Some(channel) = self.shims.get(&app).cloned() {
            match channel.try_recv::<ShimEvent>() {
                Ok(Some((ShimEvent::Status(status), _))) => {
                    self.input(Input::Said { app, shim: shim_of(status) });
                }
                Ok(Some((ShimEvent::Metrics(metrics), _))) => {
                    self.service.publish::<topics::AppMetrics>(&app.to_string(), &metrics);
                }
                Ok(None) => return,
                // Closed comes as an event of its own.
                Err(_) => return,
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.decide(Some(input));
        self.perform();
    }

    /// Gives the machine an input, or the time; both and what it orders are recorded.
    fn decide(&mut self, input: Option<Input>) {
        let now = self.service.now();
        self.service.record_input(now, &input);
        let mut orders = Outbox::new();
        match input {
            Some(input) => self.apps.handle(now, input, &mut orders),
            None => self.apps.wake(now, &mut orders),
        }
        for order in orders.drain() {
            self.service.record_order(&order);
            self.outbox.push(order);
        }
    }

    fn keyframe(&mut self) {
        let apps = &self.apps;
        // Our own types have no failing parts.
        self.service.keyframe(|| postcard::to_allocvec(apps).unwrap_or_default());
    }

    /// Results of orders are inputs, which may lead to more orders.
    fn perform(&mut self) {
        while let Some(order) = self.outbox.pop() {
            let result = match order {
                Order::Spawn { app, memory_bytes, vcpus } => {
                    let limits = AppLimits { memory_bytes, vcpus, pids_max: pids_max(memory_bytes) };
                    let result = self.ask_init(&InitRequest::SpawnShim { app, limits });
                    Some(Input::Spawned { app, result })
                }
                Order::Release { app } => {
                    self.shims.remove(&app);
                    let result = self.ask_init(&InitRequest::KillShim { app });
                    Some(Input::Released { app, result })
                }
                Order::Start { spec, start } => {
                    let app = spec.app;
                    self.tell(app, &ShimRequest::Start(Box::new(StartApp { spec: *spec, start })));
                    None
                }
                Order::Stop { app, timeout_s } => {
                    self.tell(app, &ShimRequest::Stop { timeout_s });
                    None
                }
                Order::Publish(seen) => {
                    let key = seen.app.to_string();
                    self.service.publish::<topics::AppObserved>(&key, &seen);
                    None
                }
                Order::Remove { app } => {
                    self.service.remove::<topics::AppObserved>(&app.to_string());
                    self.service.remove::<topics::AppMetrics>(&app.to_string());
                    None
                }
                Order::Synced => {
                    self.service.synced::<topics::AppObserved>();
                    self.service.synced::<topics::AppMetrics>();
                    None
                }
            };
            if result.is_some() {
                self.decide(result);
            }
        }
    }

    fn ask_init(&self, request: &InitRequest) -> Result<(), Fault> {
        let result = match self.service.caller::<Init>().call(request, &[], INIT_TIMEOUT) {
            Ok((result, _)) => result.map(drop),
            Err(error) => Err(Fault::new(Reason::ServiceUnavailable, error.to_string())),
        };
        if let Err(fault) = &result {
            service::log::warn(format_args!("{request:?}: {fault}"));
        }
        result
    }

    /// A shim that cannot be told is found out by its silence.
    fn tell(&self, app: AppId, request: &ShimRequest) {
        let Some(channel) = self.shims.get(&app) else { return };
        match channel.try_send(request, &[]) {
            Ok(true) => {}
            Ok(false) => service::log::warn(format_args!("shim of app {app} does not read")),
            Err(error) => service::log::warn(format_args!("shim of app {app} not told: {error}")),
        }
    }
}

fn pids_max(memory_bytes: u64) -> u32 {
    match memory_bytes {
        0 => APP_PIDS_MAX,
        bytes => u32::try_from(bytes / BYTES_PER_PID).unwrap_or(u32::MAX).clamp(APP_PIDS_MIN, APP_PIDS_MAX),
    }
}

fn shim_of(status: shim::ShimStatus) -> Shim {
    let phase = match status.phase {
        shim::ShimPhase::Idle => ShimPhase::Idle,
        shim::ShimPhase::Starting => ShimPhase::Starting,
        shim::ShimPhase::Running { since, started_at } => ShimPhase::Running { since, started_at },
        shim::ShimPhase::Stopping => ShimPhase::Stopping,
        shim::ShimPhase::Ended(exit) => ShimPhase::Ended(exit),
        shim::ShimPhase::Failed(fault) => ShimPhase::Failed(fault),
    };
    Shim {
        instance: status.instance,
        start: status.start,
        phase,
        health: status.health,
        wants_processes: status.wants_processes,
    }
}

#[cfg(test)]
mod tests {
    use super::pids_max;

    #[test]
    fn processes_are_limited_by_memory() {
        let mib = |mib: u64| pids_max(mib << 20);
        assert_eq!([mib(0), mib(1), mib(64), mib(128), mib(4096)], [8192, 256, 256, 512, 8192]);
    }
}
