// SPDX-License-Identifier: Apache-2.0
//! run: the real machine, with shims played by the box.

use std::collections::BTreeMap;

use ipc::client::Topics;
use ipc::topics;
use model::id::AppId;
use model::reason::{Fault, Reason};
use model::time::MonoMs;
use node_core::run::{Apps, Input as RunInput, Order};
use reconcile::{Machine as _, Outbox};

use super::{Cx, Input, Plants, shim};
use crate::Fact;

#[derive(Debug)]
pub struct Run {
    apps: Apps,
    outbox: Outbox<Order>,
    /// Shims whose words are heard: none of those that were released.
    channels: BTreeMap<AppId, ()>,
    plants: Plants,
}

impl Run {
    pub fn new(plants: Plants) -> Run {
        Run { apps: Apps::default(), outbox: Outbox::new(), channels: BTreeMap::new(), plants }
    }

    pub fn deadline(&self) -> Option<MonoMs> {
        self.apps.deadline()
    }

    pub fn handle(&mut self, cx: &mut Cx<'_>, input: Input) {
        match input {
            Input::Start => {
                cx.topics.subscribe(<topics::AppDesired as ipc::topics::Topic>::NAME);
                // Channels of shims that live come first, then init's answer, then what each shim says.
                let live: Vec<AppId> = cx.machine.shims.keys().copied().collect();
                self.channels = live.iter().map(|app| (*app, ())).collect();
                self.input(cx, RunInput::Live(live.iter().copied().collect()));
                for app in live {
                    if let Some(shim) = cx.machine.shims.get(&app) {
                        let words = shim.words();
                        self.input(cx, RunInput::Said { app, shim: words });
                    }
                }
            }
            Input::Topics => {
                let all = cx.all::<topics::AppDesired>();
                let apps = all.into_values().map(|desired| (desired.app, desired)).collect();
                let is_synced = Topics::is_synced::<topics::AppDesired>(cx.topics);
                self.input(cx, RunInput::Desired { apps, is_synced });
            }
            Input::Shim(app, words) if self.channels.contains_key(&app) => match words {
                Some(shim) => self.input(cx, RunInput::Said { app, shim }),
                None => {
                    self.channels.remove(&app);
                    self.input(cx, RunInput::Gone { app });
                }
            },
            Input::Wake => {
                self.apps.wake(cx.now, &mut self.outbox);
                self.perform(cx);
            }
            Input::Shim(..) | Input::Done(_) | Input::Pulled(..) => {}
        }
    }

    fn input(&mut self, cx: &mut Cx<'_>, input: RunInput) {
        self.apps.handle(cx.now, input, &mut self.outbox);
        self.perform(cx);
    }

    fn perform(&mut self, cx: &mut Cx<'_>) {
        let t = cx.machine.disk.now_ms.get();
        while let Some(order) = self.outbox.pop() {
            if !cx.effect() {
                return;
            }
            let result = match order {
                Order::Spawn { app, .. } => {
                    let result = if cx.machine.is_spawn_failing {
                        Err(Fault::new(Reason::ServiceUnavailable, "init cannot spawn"))
                    } else {
                        shim::spawn(cx.machine, app, cx.chance, cx.out);
                        self.channels.insert(app, ());
                        Ok(())
                    };
                    Some(RunInput::Spawned { app, result })
                }
                Order::Release { app } => {
                    self.channels.remove(&app);
                    if let Some(shim) = cx.machine.shims.remove(&app)
                        && shim.is_running()
                    {
                        let fact = Fact::AppStopped { app, instance: shim.instance };
                        cx.out.push(super::Out::Fact(fact));
                    }
                    Some(RunInput::Released { app, result: Ok(()) })
                }
                Order::Start { spec, start } => {
                    shim::start(cx.machine, t, *spec, start, cx.chance, cx.out);
                    None
                }
                Order::Stop { app, timeout_s } => {
                    shim::stop(cx.machine, app, timeout_s, cx.chance, cx.out);
                    None
                }
                Order::Publish(seen) => {
                    cx.put::<topics::AppObserved>(&seen.app.to_string(), &seen);
                    None
                }
                Order::Remove { app } => {
                    cx.take_away::<topics::AppObserved>(&app.to_string());
                    None
                }
                Order::Synced => {
                    cx.all_stand::<topics::AppObserved>();
                    cx.all_stand::<topics::AppMetrics>();
                    None
                }
            };
            if let Some(result) = result {
                self.apps.handle(cx.now, result, &mut self.outbox);
            }
        }
        if self.plants.run_stops_offline && cx.now.mono.0 > 3_600_000 {
            let running: Vec<AppId> = self.apps.running().collect();
            running.into_iter().for_each(|app| shim::stop(cx.machine, app, 10, cx.chance, cx.out));
        }
    }
}
